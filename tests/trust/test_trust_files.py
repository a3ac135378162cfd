"""Keys, the keys that a user trusts, and what was seen of signers: each field of their files, each bound, each refusal."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from adapterhub.core.digests import digest_of
from adapterhub.core.errors import (
    AdapterHubError,
    Conflict,
    Malformed,
    NotAllowed,
    NotFound,
    UsageProblem,
)
from adapterhub.formats.signature import (
    KEY_LIMIT_BYTES,
    Bundle,
    PublicKey,
    pre_authentication,
)
from adapterhub.trust.signing import appraisal as seen_files
from adapterhub.trust.signing import trust as trust_files
from adapterhub.trust.signing.appraisal import FirstUseBuild, FirstUseFile, is_older
from adapterhub.trust.signing.keys import KeyFolder, SigningKey, parse_key_name
from adapterhub.trust.signing.trust import (
    EffectivePolicy,
    Terms,
    Trust,
    TrustedKey,
    TrustFile,
    clock,
    day_text,
    parse_day,
)
from tests.support.signed_offers import ANN, BEN, key, release, signed

D1, D2 = digest_of(b"1"), digest_of(b"2")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


# ------------------------------------------------------------ keys
def pem_of(private: Any) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    made: bytes = private.public_key().public_bytes(serialization.Encoding.PEM, form)
    return made


def private_pem(private: Any, password: bytes | None = None) -> bytes:
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    made: bytes = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)
    return made


def curve_key(curve: Any) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(4711, curve)


@pytest.mark.parametrize("name", ["a", "A9", "ann@example.org", "a._-@", "9", "x" * 64])
def test_a_name_of_a_key_is_taken(name: str) -> None:
    assert parse_key_name(name) == name


@pytest.mark.parametrize("name", ["", ".a", "-a", "_a", "@a", "a b", "a/b", "é", "x" * 65, "a\n"])
def test_what_is_no_name_of_a_key_is_refused(name: str) -> None:
    with pytest.raises(UsageProblem, match=r"is not a valid key name: expected 1 to 64 of a-z, A-Z, 0-9 and"):
        parse_key_name(name)


@pytest.mark.parametrize(
    ("curve", "size"), [(ec.SECP256R1(), "SHA256"), (ec.SECP384R1(), "SHA384"), (ec.SECP521R1(), "SHA512")]
)
def test_each_curve_signs_with_its_hash(curve: Any, size: str) -> None:
    private = curve_key(curve)
    public = PublicKey.parse(pem_of(private), "x")
    signature = SigningKey(private, "x").sign(b"data")

    assert public.verifies(signature, b"data") is True
    assert public.verifies(signature, b"other") is False
    assert public.verifies(b"none", b"data") is False
    assert public.verifies(private.sign(b"data", ec.ECDSA(getattr(hashes, size)())), b"data") is True
    other = "SHA384" if size != "SHA384" else "SHA256"
    assert public.verifies(private.sign(b"data", ec.ECDSA(getattr(hashes, other)())), b"data") is False


def test_the_fingerprint_is_that_of_the_text() -> None:
    public = PublicKey.parse(pem_of(curve_key(ec.SECP256R1())), "x")

    assert public.fingerprint == digest_of(public.pem.encode())
    assert PublicKey.parse(public.pem.replace("\n", "\r\n").encode(), "x") == public


def refused(error: type[AdapterHubError], what: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(error) as told:
        what()
    assert type(told.value) is error
    return told.value.message, told.value.hint


def test_what_is_no_public_key_is_refused() -> None:
    good = pem_of(curve_key(ec.SECP256R1()))
    parse = PublicKey.parse
    new = "`adapt key new NAME` makes one"

    assert refused(Malformed, lambda: parse(private_pem(curve_key(ec.SECP256R1())), "w")) == (
        "`w` is a private key; give the public half",
        "`adapt key show NAME` prints it",
    )
    assert refused(Malformed, lambda: parse(good + good, "w")) == (
        "`w` holds 2 keys or certificates, expected one public key. Nothing was changed",
        "write each key to a file of its own, and trust each under its own name",
    )
    message, hint = refused(Malformed, lambda: parse(b"x", "w"))
    assert message.startswith("`w` is not a public key in PEM: ")
    assert (hint, len(message) <= len("`w` is not a public key in PEM: ") + 120) == (
        "`adapt key show NAME > key.pub` writes one",
        True,
    )
    other = "`w` is not a key on P-256, P-384 or P-521"
    assert refused(Malformed, lambda: parse(pem_of(curve_key(ec.SECP256K1())), "w")) == (other, new)
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - refused
    assert refused(Malformed, lambda: parse(pem_of(rsa_key), "w")) == (other, new)
    assert refused(Malformed, lambda: SigningKey.parse(private_pem(rsa_key), None, name="n", where="w")) == (
        "`w` is not an elliptic-curve key",
        new,
    )
    with pytest.raises(Malformed, match="`n` is not a key on P-256"):
        SigningKey(curve_key(ec.SECP256K1()), "n")


def test_a_key_file_may_be_just_as_large_as_the_limit() -> None:
    assert KEY_LIMIT_BYTES == 16384
    good = pem_of(curve_key(ec.SECP256R1()))
    full = good + b"\n" * (16384 - len(good))

    assert PublicKey.parse(full, "w").pem.encode() == good
    assert refused(Malformed, lambda: PublicKey.parse(full + b"\n", "w"))[0].endswith(": more than 16384 bytes")
    private = private_pem(curve_key(ec.SECP256R1()))
    full = private + b"\n" * (16384 - len(private))
    assert SigningKey.parse(full, None, name="n", where="w").name == "n"
    parse = SigningKey.parse
    assert refused(Malformed, lambda: parse(full + b"\n", None, name="n", where="w"))[0] == (
        "`w` is not a private key in PEM: more than 16384 bytes"
    )


def test_a_password_opens_its_key_and_no_other_does() -> None:
    private = curve_key(ec.SECP256R1())
    locked, plain, parse = private_pem(private, b"secret"), private_pem(private), SigningKey.parse

    for raw, password in ((locked, "secret"), (plain, None), (plain, ""), (plain, "needless")):
        opened = parse(raw, password, name="n", where="w")
        assert (opened.name, opened.public.pem.encode()) == ("n", pem_of(private))
    for password in (None, ""):
        assert refused(NotAllowed, lambda p=password: parse(locked, p, name="n", where="w")) == (  # type: ignore[misc]
            "`w` is encrypted, and no password was given",
            "in CI, set ADAPTERHUB_PASSWORD",
        )
    wrong = refused(NotAllowed, lambda: parse(locked, "wrong", name="n", where="w"))
    assert wrong == ("`w`: the password is wrong", "set ADAPTERHUB_PASSWORD, or type it again")
    for password in (None, "some"):
        message, _ = refused(Malformed, lambda p=password: parse(b"x", p, name="n", where="w"))  # type: ignore[misc]
        assert message.startswith("`w` is not a private key in PEM: ")


def test_a_new_key_is_written_for_its_owner_only(root: Path) -> None:
    folder = KeyFolder(root)
    assert folder.names() == []

    public = folder.new("ann", None)

    path = root / "keys" / "ann.pem"
    assert (folder.path("ann"), folder.public_path("ann")) == (path, root / "keys" / "ann.pub")
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (path, root / "keys" / "ann.pub", root / "keys")]
    assert modes == [0o600, 0o644, 0o700]
    assert (folder.public("ann"), folder.open("ann", None).public) == (public, public)
    assert (root / "keys" / "ann.pub").read_text() == public.pem
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert (folder.is_encrypted("ann"), folder.open("ann", None).name) == (False, "ann")
    private = serialization.load_pem_private_key(path.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.curve.name == "secp256r1"
    assert refused(Conflict, lambda: folder.new("ann", None)) == (
        "there is a key `ann` already; nothing was changed",
        "choose another name",
    )
    assert folder.public("ann") == public


def test_keys_of_ones_own_are_told_by_name_and_by_what_is_missing(root: Path) -> None:
    folder = KeyFolder(root)
    hint = "`adapt key new zoe` makes one"
    assert refused(NotFound, lambda: folder.public("zoe")) == ("no key `zoe` of your own; there is none", hint)
    (root / "keys").mkdir()
    for name in ("ben", "ann"):
        (root / "keys" / f"{name}.pem").write_bytes(private_pem(curve_key(ec.SECP256R1()), b"secret"))
        (root / "keys" / f"{name}.pem").chmod(0o600)

    assert folder.names() == ["ann", "ben"]
    told = "no key `zoe` of your own; there are `ann`, `ben`"
    assert refused(NotFound, lambda: folder.open("zoe", None)) == (told, hint)
    assert refused(NotFound, lambda: folder.is_encrypted("zoe")) == (told, hint)
    assert folder.is_encrypted("ann") is True
    assert folder.open("ann", "secret").name == "ann"
    path = root / "keys" / "ann.pem"
    assert refused(NotAllowed, lambda: folder.open("ann", None))[0].startswith(f"`{path}` is encrypted")
    for name in ("../ann", ""):
        with pytest.raises(UsageProblem):
            folder.path(name)
        with pytest.raises(UsageProblem):
            folder.public_path(name)


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601])
def test_a_private_key_that_others_may_use_is_refused(root: Path, mode: int) -> None:
    (root / "keys").mkdir()
    path = root / "keys" / "ann.pem"
    path.write_bytes(private_pem(curve_key(ec.SECP256R1())))
    path.chmod(mode)

    assert refused(NotAllowed, lambda: KeyFolder(root).open("ann", None)) == (
        f"`{path}` is a private key that others can read",
        f"`chmod 600 {path}`",
    )


def test_a_folder_in_the_place_of_a_key_is_told(root: Path) -> None:
    (root / "keys" / "ann.pem").mkdir(parents=True)

    message, hint = refused(NotAllowed, lambda: KeyFolder(root).open("ann", None))
    assert (message, hint) == (
        f"`{root / 'keys' / 'ann.pem'}` cannot be read: Is a directory",
        "check its permissions with `ls -l`",
    )


# ------------------------------------------------------------ whom the user trusts
def stored(root: Path) -> Any:
    return json.loads((root / "trusted_keys.json").read_bytes())


FULL = Terms(adapters=("acme/*",), remotes=("corp",), not_after=1, accepts=("beta/x",))


def test_a_trusted_key_is_written_field_by_field_and_reads_back(root: Path) -> None:
    file = TrustFile(root)
    assert (file.path, file.read()) == (root / "trusted_keys.json", Trust())

    made = file.trust("ann", ANN.public, FULL)
    file.set_policy("acme", "require")
    file.set_policy(None, "warn")

    assert stored(root) == {
        "keys": [
            {
                "name": "ann",
                "key": ANN.public.pem,
                "adapters": ["acme/*"],
                "remotes": ["corp"],
                "accepts": ["beta/x"],
                "not_after": "1970-01-01T00:00:01+00:00",
            }
        ],
        "policies": {"acme": "require", "*": "warn"},
    }
    assert made == TrustedKey(
        name="ann",
        key=ANN.public,
        adapters=("acme/*",),
        remotes=("corp",),
        not_after=1,
        accepts=("beta/x",),
    )
    assert file.read() == Trust(keys=(made,), policies={"acme": "require", "*": "warn"})
    assert file.path.read_bytes().endswith(b"}\n")
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_a_key_without_terms_may_sign_everything_for_ever(root: Path) -> None:
    made = TrustFile(root).trust("ann", ANN.public, Terms())

    assert made == TrustedKey(
        name="ann", key=ANN.public, adapters=("*",), remotes=("*",), not_after=None, accepts=(), replaces=()
    )
    assert stored(root)["keys"] == [{"name": "ann", "key": ANN.public.pem, "adapters": ["*"], "remotes": ["*"]}]
    assert not made.is_over(float("inf"))


def test_the_same_key_again_changes_only_what_is_given(root: Path) -> None:
    file = TrustFile(root)
    file.trust("ann", ANN.public, FULL)

    assert file.trust("ann", ANN.public, Terms()) == TrustedKey(
        name="ann", key=ANN.public, adapters=("acme/*",), remotes=("corp",), not_after=1, accepts=("beta/x",)
    )
    again = file.trust("ann", ANN.public, Terms(adapters=("a",), remotes=("b",), not_after=0, accepts=("c", "beta/x")))
    assert (again.adapters, again.remotes, again.not_after) == (("a",), ("b",), 0)
    assert again.accepts == ("beta/x", "c")
    assert file.read().keys == (again,)


def test_another_key_by_the_same_name_needs_replace(root: Path) -> None:
    file = TrustFile(root)
    file.trust("ann", ANN.public, FULL)
    file.trust("zoe", key(3).public, Terms())

    assert refused(Conflict, lambda: file.trust("ann", BEN.public, Terms())) == (
        f"`ann` is the key {ANN.public.fingerprint}, not this one; nothing was changed",
        "if its owner announced a new key to you, add `--replace`",
    )
    assert refused(Conflict, lambda: file.trust("other", ANN.public, Terms(), replace_key=True))[0] == (
        "this key is trusted as `ann` already; nothing was changed"
    )
    made = file.trust("ann", BEN.public, Terms(), replace_key=True)
    assert (made.key, made.replaces, made.adapters) == (BEN.public, (ANN.public.fingerprint,), ("acme/*",))
    assert [k.name for k in file.read().keys] == ["zoe", "ann"]
    assert stored(root)["keys"][1]["replaces"] == [ANN.public.fingerprint]
    made = file.trust("ann", key(4).public, Terms(), replace_key=True)
    assert made.replaces == (ANN.public.fingerprint, BEN.public.fingerprint)
    assert file.trust("ann", key(4).public, Terms(), replace_key=True) == made
    with pytest.raises(UsageProblem):
        file.trust("a b", key(5).public, Terms())


def test_a_key_is_forgotten_alone_and_policies_stay(root: Path) -> None:
    file = TrustFile(root)
    file.set_policy("acme", "off")
    for name, signer in (("ann", ANN), ("ben", BEN)):
        file.trust(name, signer.public, Terms())

    assert file.untrust("ann").name == "ann"
    assert ([k.name for k in file.read().keys], file.read().policies) == (["ben"], {"acme": "off"})
    assert refused(NotFound, lambda: file.untrust("ann")) == ("no trusted key `ann`", "`adapt key list` shows them")


def test_a_policy_is_set_changed_and_taken_back(root: Path) -> None:
    file = TrustFile(root)
    file.set_policy("acme", "warn")
    file.set_policy("beta", "off")
    file.set_policy("acme", "require")
    assert file.read().policies == {"acme": "require", "beta": "off"}
    file.set_policy("acme", None)
    file.set_policy(None, None)
    assert file.read().policies == {"beta": "off"}
    with pytest.raises(UsageProblem):
        file.set_policy("a b", "warn")
    with pytest.raises(UsageProblem):
        file.set_policy("*", "warn")


TRUSTED = {"name": "ann", "key": "PEM"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "keys: expected a list"),
        ({}, "keys: expected a list"),
        ({"keys": {}}, "keys: expected a list"),
        ({"keys": [], "policies": []}, "policies: expected an object"),
        ({"keys": [TRUSTED, 1]}, "keys[1]: expected the texts `name` and `key`"),
        ({"keys": [{"name": "ann"}]}, "keys[0]: expected the texts `name` and `key`"),
        ({"keys": [{"key": "PEM"}]}, "keys[0]: expected the texts `name` and `key`"),
        ({"keys": [{"name": 1, "key": "PEM"}]}, "keys[0]: expected the texts `name` and `key`"),
        ({"keys": [TRUSTED, TRUSTED]}, "keys: a name is given twice"),
        ({"keys": [TRUSTED | {"name": "a b"}]}, "`a b` is not a valid key name"),
        ({"keys": [TRUSTED | {"not_after": "soon"}]}, "expected a day as in 2027-01-31, got soon"),
        *(
            ({"keys": [TRUSTED | {name: wrong}]}, f"keys[0].{name}: expected a list of texts")
            for name in ("adapters", "remotes", "accepts", "replaces")
            for wrong in ("x", ["x", 1])
        ),
    ],
)
def test_a_damaged_trust_file_is_refused(root: Path, value: object, words: str) -> None:
    path = root / "trusted_keys.json"
    path.write_text(json.dumps(value))
    path.chmod(0o600)

    message, hint = refused(Malformed, TrustFile(root).read)

    assert message.startswith(f"`{path}`: {words}")
    assert hint == "mend the file, or move it away and trust the keys again"


def test_a_key_that_lists_nothing_may_sign_nothing(root: Path) -> None:
    path = root / "trusted_keys.json"
    path.write_text(json.dumps({"keys": [TRUSTED]}))

    [found] = TrustFile(root).read().keys

    assert found == TrustedKey(name="ann", key=PublicKey(pem="PEM"), adapters=(), remotes=())
    assert not found.covers("acme/legal-qa", ["x"])


@pytest.mark.parametrize(
    ("file", "limit", "name", "start"),
    [
        (TrustFile, trust_files._LIMIT_BYTES, "trusted_keys.json", b'{"keys": []}'),
        (FirstUseFile, seen_files._LIMIT_BYTES, "seen_signatures.json", b'{"adapters": {}}'),
    ],
)
def test_files_of_trust_are_bounded(
    root: Path, file: Any, limit: int, name: str, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert limit == (4 << 20 if file is TrustFile else 64 << 20)
    module = trust_files if file is TrustFile else seen_files
    monkeypatch.setattr(module, "_LIMIT_BYTES", 1 << 21)  # above what JSON is read to unless a limit is given
    full = start + b" " * ((1 << 21) - len(start))
    (root / name).write_bytes(full)
    reader: Callable[[], object] = file(root).read if file is TrustFile else lambda: file(root).of("x")
    reader()
    (root / name).write_bytes(full + b" ")

    assert "2097153 bytes, at most 2097152 are read" in refused(Malformed, reader)[0]


def test_a_file_of_trust_that_cannot_be_read_is_told(root: Path) -> None:
    for name, reader in (
        ("trusted_keys.json", TrustFile(root).read),
        ("seen_signatures.json", FirstUseFile(root)._read),
    ):
        (root / name).mkdir()
        message, _ = refused(NotAllowed, reader)
        assert message.startswith(f"`{root / name}` cannot be read: ")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("trusted_keys.json", "says which keys to trust"),
        ("seen_signatures.json", "says which signed versions were seen"),
    ],
)
def test_a_file_of_trust_that_others_may_write_is_refused(root: Path, name: str, says: str) -> None:
    (root / name).write_bytes(b"{}")
    (root / name).chmod(0o666)
    reader = TrustFile(root).read if name.startswith("trusted") else FirstUseFile(root)._read

    assert f" {says}, and others may write it" in refused(NotAllowed, reader)[0]


def test_the_reason_of_a_damaged_trust_file_is_cut_at_200_characters(root: Path) -> None:
    (root / "trusted_keys.json").write_text(f'{{"{"k" * 300}": 1, "{"k" * 300}": 2}}')

    message, _ = refused(Malformed, TrustFile(root).read)

    assert len(message) <= len(f"`{root / 'trusted_keys.json'}`: ") + 200


def trusted(**fields: Any) -> TrustedKey:
    return TrustedKey(name="ann", key=ANN.public, **fields)


@pytest.mark.parametrize(
    ("fields", "name", "places", "expected"),
    [
        ({}, "acme/x", [], True),
        ({"adapters": ("acme/*",)}, "acme/x", [], True),
        ({"adapters": ("acme/*",)}, "beta/x", [], False),
        ({"adapters": ("acme",)}, "acme/x", [], True),
        ({"adapters": ("acme",)}, "acme", [], True),
        ({"adapters": ("x",)}, "acme/x", [], False),
        ({"adapters": ("ACME/*",)}, "acme/x", [], False),
        ({"adapters": ("no", "acme/x")}, "acme/x", [], True),
        ({"adapters": ()}, "acme/x", [], False),
        ({"remotes": ("corp",)}, "acme/x", ["corp"], True),
        ({"remotes": ("corp",)}, "acme/x", ["url", "corp"], True),
        ({"remotes": ("corp",)}, "acme/x", [], False),
        ({"remotes": ("corp",)}, "acme/x", ["other"], False),
        ({"remotes": ("no", "c*")}, "acme/x", ["corp"], True),
        ({"adapters": ("beta/*",), "remotes": ("corp",)}, "acme/x", ["corp"], False),
        ({"adapters": ("acme/*",), "remotes": ("other",)}, "acme/x", ["corp"], False),
    ],
)
def test_a_key_covers_the_names_and_places_of_its_globs(
    fields: dict[str, Any],
    name: str,
    places: list[str],
    expected: bool,  # noqa: FBT001
) -> None:
    assert trusted(**fields).covers(name, places) is expected


def test_a_key_takes_over_its_own_names_and_those_it_was_given() -> None:
    assert trusted().takes_over("acme/x", [ANN.public.fingerprint])
    assert not trusted().takes_over("acme/x", [D1])
    assert trusted(accepts=("acme/*",)).takes_over("acme/x", [D1])
    assert not trusted(accepts=("beta/*",)).takes_over("acme/x", [D1])
    assert trusted(replaces=(D2, D1)).takes_over("acme/x", [D1])
    assert not trusted(replaces=(D2,)).takes_over("acme/x", [D1])


def test_a_key_is_over_after_its_last_second() -> None:
    ends = trusted(not_after=10)

    assert [ends.is_over(9), ends.is_over(10), ends.is_over(10.5), trusted().is_over(10)] == [False, False, True, False]


def test_a_key_is_called_by_its_name_or_the_start_of_its_fingerprint() -> None:
    trust = Trust(keys=(TrustedKey(name="ben", key=BEN.public), trusted()))

    assert (trust.name_of(ANN.public.fingerprint), trust.key_of(D1)) == ("`ann`", None)
    assert trust.name_of(D1) == f"{D1[:19]}…"
    assert trust.key_of(ANN.public.fingerprint) == trusted()


def test_a_policy_is_that_of_the_namespace_then_the_remote_then_in_general() -> None:
    remote = EffectivePolicy(policy="off", where="the remote")
    trust = Trust(policies={"acme": "warn", "*": "require"})

    policies = [trust.policy_for(*each) for each in (("acme", remote), ("b", remote), (None, None))]
    assert [d.policy for d in policies if d] == ["warn", "off", "require"]
    assert Trust().policy_for("acme", None) is None
    assert (EffectivePolicy.of(None), EffectivePolicy.of("warn")) == (
        None,
        EffectivePolicy(policy="warn", where="the option `--signatures`"),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01", 86399),
        ("1970-01-02", 2 * 86400 - 1),
        ("1970-01-01T00:00:10+00:00", 10),
        ("1970-01-01T00:00:10", 10),
        ("1970-01-01T01:00:00+01:00", 0),
    ],
)
def test_a_day_lasts_to_its_last_second_and_a_moment_is_one(text: str, expected: int) -> None:
    assert parse_day(text) == expected
    assert parse_day(day_text(expected)) == expected


def test_what_is_no_day_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^expected a day as in 2027-01-31, got soon$"):
        parse_day("soon")


def test_the_clock_is_that_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 42.0)

    assert clock() == 42.0


# ------------------------------------------------------------ what was seen
def build(version: str = "1.0.0", base: str = "", rank: int | None = 4) -> FirstUseBuild:
    return FirstUseBuild(base=base, rank=rank, version=version)


def test_what_was_seen_is_written_field_by_field_and_reads_back(root: Path) -> None:
    file = FirstUseFile(root)
    assert (file.path, file.of("acme/x")) == (root / "seen_signatures.json", None)

    file.remember("acme/x", build("1.0.0", D1, None), ANN.public.fingerprint)
    file.remember("beta/y", build(), BEN.public.fingerprint)

    assert json.loads(file.path.read_bytes()) == {
        "adapters": {
            "acme/x": {
                "signer": ANN.public.fingerprint,
                "builds": [{"base": D1, "rank": None, "version": "1.0.0"}],
            },
            "beta/y": {"signer": BEN.public.fingerprint, "builds": [{"base": "", "rank": 4, "version": "1.0.0"}]},
        }
    }
    assert file.path.read_bytes().endswith(b"}\n")
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    found = file.of("acme/x")
    assert found is not None
    assert (found.signer, found.builds) == (ANN.public.fingerprint, (build("1.0.0", D1, None),))


def test_the_newest_is_kept_for_each_base_and_rank(root: Path) -> None:
    file = FirstUseFile(root)
    for each in (build("1.0"), build("2.0"), build("1.5"), build("0.1", D1), build("0.2", "", 8), build("2.0")):
        file.remember("x", each, ANN.public.fingerprint)

    found = file.of("x")
    assert found is not None
    assert found.builds == (build("2.0"), build("0.1", D1), build("0.2", "", 8))


def test_an_older_version_changes_only_the_signer(root: Path) -> None:
    file = FirstUseFile(root)
    file.remember("x", build("2.0"), ANN.public.fingerprint)
    file.remember("x", build("1.0"), BEN.public.fingerprint)

    found = file.of("x")
    assert found is not None
    assert (found.signer, found.builds) == (BEN.public.fingerprint, (build("2.0"),))


def test_what_is_known_already_is_not_written_again(root: Path) -> None:
    file = FirstUseFile(root)
    file.remember("x", build("2.0"), ANN.public.fingerprint)
    before = file.path.stat().st_ino
    file.remember("x", build("1.0"), ANN.public.fingerprint)

    assert file.path.stat().st_ino == before


def test_versions_are_ordered_as_versions() -> None:
    assert [is_older("9", "10"), is_older("10", "9"), is_older("1", "1.0"), is_older("1rc1", "1")] == [
        True,
        False,
        False,
        True,
    ]


GOOD_BUILD = {"base": "", "rank": 4, "version": "1.0.0"}
BASE_AND_RANK = "builds: expected a text `base` and a number `rank`"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], ""),
        ({}, "'adapters'"),
        ({"adapters": []}, ""),
        ({"adapters": {"x": {"signer": D1}}}, "'builds'"),
        ({"adapters": {"x": {"builds": []}}}, "'signer'"),
        ({"adapters": {"x": {"signer": "sha1:0", "builds": []}}}, "expected sha256:"),
        ({"adapters": {"x": {"signer": D1, "builds": [GOOD_BUILD | {"base": None}]}}}, BASE_AND_RANK),
        ({"adapters": {"x": {"signer": D1, "builds": [GOOD_BUILD | {"rank": "4"}]}}}, BASE_AND_RANK),
        ({"adapters": {"x": {"signer": D1, "builds": [GOOD_BUILD | {"rank": True}]}}}, BASE_AND_RANK),
        ({"adapters": {"x": {"signer": D1, "builds": [GOOD_BUILD | {"version": "new"}]}}}, "`new`"),
    ],
)
def test_a_damaged_memory_is_refused(root: Path, value: object, words: str) -> None:
    path = root / "seen_signatures.json"
    path.write_text(json.dumps(value))

    message, hint = refused(Malformed, lambda: FirstUseFile(root).of("x"))

    assert message.startswith(f"`{path}`: {words}")
    assert hint == "mend the file; deleting it forgets which signed versions were seen"


def test_signatures_of_tests_are_genuine() -> None:
    raw = signed(release()).signature
    assert raw is not None
    made = Bundle.parse(raw)

    assert ANN.public.verifies(made.signature, pre_authentication(made.payload))
