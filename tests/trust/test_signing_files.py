"""The files that trust rests on: every field that is written and read back, every bound, every refusal's words."""

from __future__ import annotations

import base64
import hashlib
import json
import stat
from collections.abc import Callable
from dataclasses import replace
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
from adapterhub.formats import signature as bundles
from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE, BaseRef, Parent
from adapterhub.formats.signature import (
    BUNDLE_TYPE,
    KEY_LIMIT_BYTES,
    PAYLOAD_TYPE,
    Bundle,
    Identity,
    PublicKey,
    pre_authentication,
    read_statement,
    signed_files,
    statement_bytes,
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
from tests.support.signed_offers import ANN, BEN, key, manifest, release, signed, statement

D1, D2 = digest_of(b"1"), digest_of(b"2")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


# ------------------------------------------------------------ the bundle
def test_a_bundle_is_written_field_by_field() -> None:
    value = json.loads(Bundle(hint=D1, payload=b"what was said", signature=b"by whom").to_bytes())

    assert value == {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": D1[7:]}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(b"what was said").decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": base64.b64encode(b"by whom").decode(), "keyid": ""}],
        },
    }


def test_a_bundle_holds_no_spaces_and_reads_back() -> None:
    made = Bundle(hint=D1, payload=b"x", signature=b"y")

    assert b" " not in made.to_bytes()
    assert Bundle.parse(made.to_bytes()) == made


def test_the_pre_authentication_encoding_counts_both_parts() -> None:
    assert pre_authentication(b"hello world") == b"DSSEv1 28 application/vnd.in-toto+json 11 hello world"


Change = Callable[[dict[str, Any]], object]
SIG = "dsseEnvelope.signatures"
HEX = "expected 64 lower-case hex digits, got"


def at(path: str, item: object = ...) -> Change:
    """Set or delete what lies at a dotted path."""

    def apply(value: Any) -> None:
        *outer, last = path.split(".")
        for name in outer:
            value = value[int(name) if isinstance(value, list) else name]
        if item is ...:
            del value[last]
        else:
            value[last] = item

    return apply


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (at("mediaType", "x"), f"mediaType: expected `{BUNDLE_TYPE}`, got x"),
        (at("mediaType"), f"mediaType: expected `{BUNDLE_TYPE}`, got None"),
        (at("verificationMaterial"), "verificationMaterial: expected an object, got nothing"),
        (at("verificationMaterial", 7), "verificationMaterial: expected an object, got 7"),
        (
            at("verificationMaterial.publicKey"),
            "was not made with a key: verificationMaterial.publicKey is missing",
        ),
        (at("verificationMaterial.publicKey", []), "verificationMaterial.publicKey: expected an object, got []"),
        (
            at("verificationMaterial.publicKey.hint"),
            "verificationMaterial.publicKey.hint: expected a text, got nothing",
        ),
        (
            at("verificationMaterial.publicKey.hint", "A" * 64),
            f"verificationMaterial.publicKey.hint: {HEX} {'A' * 64}",
        ),
        (at("verificationMaterial.publicKey.hint", "a" * 63), f"verificationMaterial.publicKey.hint: {HEX} {'a' * 63}"),
        (at("verificationMaterial.publicKey.hint", "a" * 65), f"verificationMaterial.publicKey.hint: {HEX} {'a' * 65}"),
        (at("dsseEnvelope"), "dsseEnvelope: expected an object, got nothing"),
        (
            at("dsseEnvelope.payloadType", "x"),
            f"dsseEnvelope.payloadType: expected `{PAYLOAD_TYPE}`, got x",
        ),
        (at(SIG), f"{SIG}: expected a list, got nothing"),
        (at(SIG, []), f"{SIG}: expected one signature, got 0"),
        (at(SIG, [{}, {}]), f"{SIG}: expected one signature, got 2"),
        (at(SIG, [1]), f"{SIG}[0]: expected an object"),
        (at(SIG, [{}]), f"{SIG}[0].sig: expected a text, got nothing"),
        (at(SIG, [{"sig": "*"}]), f"{SIG}[0].sig: not base64: "),
        (at("dsseEnvelope.payload", "a*=="), "dsseEnvelope.payload: not base64: "),
        (at("dsseEnvelope.payload", None), "dsseEnvelope.payload: expected a text, got None"),
    ],
)
def test_a_bundle_with_one_wrong_field_is_refused_by_its_path(change: Change, words: str) -> None:
    value = json.loads(Bundle(hint=D1, payload=b"x", signature=b"y").to_bytes())
    change(value)

    with pytest.raises(ValueError, match=r".") as told:
        Bundle.parse(json.dumps(value).encode())

    if words.endswith("base64: "):
        assert str(told.value).startswith(words)
    else:
        assert str(told.value) == words


def test_what_is_no_bundle_at_all_is_refused() -> None:
    for raw, words in ((b"", "is empty"), (b"[]", "the file: expected an object"), (b"x", "not JSON: ")):
        with pytest.raises(ValueError, match=words) as told:
            Bundle.parse(raw)
        assert str(told.value).startswith(words)


def test_a_bundle_may_be_just_as_large_as_the_limit() -> None:
    raw = Bundle(hint=D1, payload=b"x", signature=b"y").to_bytes()
    full = raw + b" " * ((1 << 20) - len(raw))

    assert Bundle.parse(full).payload == b"x"
    with pytest.raises(ValueError, match="1048577 bytes, at most 1048576 are read"):
        Bundle.parse(full + b" ")


def identity(**fields: Any) -> Identity:
    return Identity(**({"name": "legal-qa", "version": "1.0.0"} | fields))


def test_a_statement_is_written_field_by_field() -> None:
    who = identity(namespace="acme", base=D1, rank=4, parents=(D2,))

    value = json.loads(statement_bytes({"b": D2, "a": D1}, who))

    whole = hashlib.sha256(bytes.fromhex(D1[7:] + D2[7:])).hexdigest()
    assert value == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "acme/legal-qa", "digest": {"sha256": whole}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []},
            "resources": [
                {"name": "a", "algorithm": "sha256", "digest": D1[7:]},
                {"name": "b", "algorithm": "sha256", "digest": D2[7:]},
            ],
            "adapter": {
                "name": "legal-qa",
                "version": "1.0.0",
                "base": D1,
                "rank": 4,
                "parents": [D2],
                "namespace": "acme",
            },
        },
    }
    read = read_statement(statement_bytes({"b": D2, "a": D1}, who))
    assert (dict(read.files), read.identity) == ({"a": D1, "b": D2}, who)


def test_an_identity_without_namespace_writes_none_and_reads_back() -> None:
    who = identity()

    assert who.to_json() == {"name": "legal-qa", "version": "1.0.0", "base": None, "rank": None, "parents": []}
    assert read_statement(statement_bytes({"a": D1}, who)).identity == who
    assert (who.full_name, identity(namespace="acme").full_name) == ("legal-qa", "acme/legal-qa")


def test_the_identity_of_a_build_is_that_of_its_manifest() -> None:
    parents = (Parent(digest=D1, spec="a==1", weight=1.0), Parent(digest=None, spec="b==2", weight=1.0))

    made = Identity.of(manifest("2.0.0", rank=8, parents=parents), "acme")

    assert made == Identity(name="legal-qa", version="2.0.0", namespace="acme", rank=8, parents=(D1, "b==2"))
    assert manifest().base == BaseRef()


def test_the_base_of_an_identity_is_the_digest_of_the_weights() -> None:
    base = BaseFingerprint(weights=D1, tensors=D2, structure=D2, samples={})
    made = Identity.of(replace(manifest(), base=BaseRef(fingerprint=base)), None)

    assert (made.base, made.namespace) == (D1, None)


@pytest.mark.parametrize("field", ["namespace", "name", "version", "base", "rank", "parents"])
def test_identities_differ_in_each_field(field: str) -> None:
    one = identity(namespace="acme", base="b", rank=4, parents=("p",))
    value = {"namespace": "beta", "name": "other", "version": "2", "base": "c", "rank": 5, "parents": ()}[field]
    fields = {"namespace": "acme", "base": "b", "rank": 4, "parents": ("p",)} | {field: value}

    assert one.differences(one) == []
    assert len(one.differences(identity(**fields))) == 1


def test_an_open_namespace_on_either_side_differs_from_none() -> None:
    named, bare = identity(namespace="acme"), identity()

    assert (named.differences(bare), bare.differences(named)) == ([], [])


ADAPTER = "statement.predicate.adapter"
RESOURCES = "statement.predicate.resources"
NO_PATH = "which is no path inside a folder"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (at("_type", "x"), f"statement._type: expected `{bundles.STATEMENT_TYPE}`, got x"),
        (at("predicateType", "x"), f"statement.predicateType: expected `{bundles.PREDICATE_TYPE}`, got x"),
        (at("subject", []), "statement.subject: expected one, got 0"),
        (at("subject", [{}, {}]), "statement.subject: expected one, got 2"),
        (at("subject", [{}]), "statement.subject[0].digest: expected an object, got nothing"),
        (at("subject", [{"digest": {}}]), "statement.subject[0].digest.sha256: expected a text, got nothing"),
        (
            at("subject", [{"digest": {"sha256": "0" * 64}}]),
            "contradicts itself: the digest of its subject is not that of its files",
        ),
        (at("predicate"), "statement.predicate: expected an object, got nothing"),
        (at("predicate.serialization"), "statement.predicate.serialization: expected an object, got nothing"),
        (
            at("predicate.serialization.method", "shards"),
            "statement.predicate.serialization.method: expected `files`, got shards",
        ),
        (
            at("predicate.serialization.hash_type", "blake2"),
            "statement.predicate.serialization.hash_type: expected `sha256`, got blake2",
        ),
        (at("predicate.resources", {}), f"{RESOURCES}: expected a list, got {{}}"),
        (at("predicate.resources", []), f"{RESOURCES}: expected 1 to 1024 files, got 0"),
        (at("predicate.resources", [{}] * 1025), f"{RESOURCES}: expected 1 to 1024 files, got 1025"),
        (at("predicate.resources.1.algorithm", "md5"), f"{RESOURCES}[1].algorithm: expected `sha256`, got md5"),
        (at("predicate.resources.1.name", 5), f"{RESOURCES}[1].name: expected a text, got 5"),
        (at("predicate.resources.1.name", CONFIG_FILE), f"names `{CONFIG_FILE}` twice"),
        (at("predicate.resources.1.digest", "A" * 64), f"{RESOURCES}[1].digest: {HEX} {'A' * 64}"),
        (at("predicate.adapter", []), f"{ADAPTER}: expected an object, got []"),
        (at("predicate.adapter.namespace", 1), f"{ADAPTER}.namespace: expected a text, got 1"),
        (at("predicate.adapter.base", 1), f"{ADAPTER}.base: expected a text, got 1"),
        (at("predicate.adapter.rank", "4"), f"{ADAPTER}.rank: expected an integer, got 4"),
        (at("predicate.adapter.rank", True), f"{ADAPTER}.rank: expected an integer, got True"),
        (at("predicate.adapter.parents"), f"{ADAPTER}.parents: expected a list of texts"),
        (at("predicate.adapter.parents", ["x", 1]), f"{ADAPTER}.parents: expected a list of texts"),
        (at("predicate.adapter.name"), f"{ADAPTER}.name: expected a text, got nothing"),
        (at("predicate.adapter.version", None), f"{ADAPTER}.version: expected a text, got None"),
    ],
)
def test_a_statement_with_one_wrong_field_is_refused_by_its_path(change: Change, words: str) -> None:
    value = statement(release())
    change(value)

    with pytest.raises(ValueError, match=r".") as told:
        read_statement(json.dumps(value).encode())

    assert str(told.value) == words


def with_names(*names: str) -> bytes:
    return statement_bytes(dict.fromkeys(names, D1), identity())


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\\b", "a\nb", "x" * 513])
def test_a_name_that_is_no_path_inside_a_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=NO_PATH) as told:
        read_statement(with_names(name))

    assert str(told.value).startswith("names the file `")


@pytest.mark.parametrize("name", ["a", "a/b", "..a", "a.", ".git", "x" * 512, "é"])
def test_a_plain_name_is_taken(name: str) -> None:
    assert list(read_statement(with_names(name)).files) == [name]


def test_a_statement_may_name_just_as_many_files_as_the_limit() -> None:
    assert len(read_statement(with_names(*(f"{n:04}" for n in range(1024)))).files) == 1024


def test_a_statement_may_be_just_as_large_as_the_limit() -> None:
    raw = with_names("a")
    full = raw + b" " * ((1 << 20) - len(raw))

    assert list(read_statement(full).files) == ["a"]
    with pytest.raises(ValueError, match="at most 1048576 are read"):
        read_statement(full + b" ")
    with pytest.raises(ValueError, match=r"^statement: expected an object$"):
        read_statement(b"[]")


def test_a_signature_covers_files_manifest_and_card() -> None:
    what = manifest()
    names = {CONFIG_FILE: digest_of(CONFIG_FILE.encode()), WEIGHTS_FILE: digest_of(WEIGHTS_FILE.encode())}
    names["adapterhub.json"] = what.digest

    assert signed_files(what) == names
    assert signed_files(what, D1) == names | {"README.md": D1}


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
    assert (hint, len(message) <= len("`w` is not a public key in PEM: ") + 120) == ("", True)
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
    assert wrong == ("`w`: the password is wrong", "")
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
    assert (message, hint) == (f"`{root / 'keys' / 'ann.pem'}` cannot be read: Is a directory", "")


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
