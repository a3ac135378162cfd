"""Keys, the file `model.sig`, whom one trusts, and that `model_signing` and we read each other's signatures."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.core.digests import digest_of
from adapterhub.core.errors import SignatureRefused
from adapterhub.formats.signature import Bundle, Identity, PublicKey, read_statement, statement_bytes
from adapterhub.trust.signing.appraisal import FirstUseBuild, FirstUseFile, read_signature
from adapterhub.trust.signing.keys import SigningKey
from adapterhub.trust.signing.trust import TrustFile, parse_day
from tests.support.signing_homes import SIGNATURE, make_homes, replace_file, statement_of
from tests.support.tiny import make_adapter

PEER = ("model-signing==1.1.1", "pyOpenSSL")
SIGNED_BY_PEER = Path(__file__).resolve().parent.parent / "data" / "model-signing"


@pytest.fixture
def homes(tmp_path):
    return make_homes(tmp_path)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ------------------------------------------------------------ keys
def test_a_new_key_is_encrypted_and_of_its_owner_alone(homes, monkeypatch):
    monkeypatch.setenv("ADAPTERHUB_PASSWORD", "open sesame")
    made = homes.ann.json("key", "new", "safe")
    private, public = Path(made["private"]), Path(made["public"])

    assert (mode(private), made["encrypted"]) == (0o600, True)
    assert private.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert made["fingerprint"] == f"sha256:{hashlib.sha256(public.read_bytes()).hexdigest()}"
    assert homes.ann.ok("key", "show", "safe") == public.read_text()


def test_a_key_without_a_password_is_only_made_when_that_is_said(homes):
    told = homes.ann.fails(2, "key", "new", "safe")

    assert "--unencrypted" in told
    assert not (homes.folder / "ann" / "keys" / "safe.pem").exists()


def test_a_name_is_given_once(homes):
    before = (homes.folder / "ann" / "keys" / "ann.pem").read_bytes()

    homes.ann.fails(15, "key", "new", "ann", "--unencrypted")

    assert (homes.folder / "ann" / "keys" / "ann.pem").read_bytes() == before


@pytest.mark.parametrize(("password", "told"), [(None, "no password was given"), ("wrong", "password is wrong")])
def test_an_encrypted_key_opens_with_its_password_only(homes, monkeypatch, password, told):
    monkeypatch.setenv("ADAPTERHUB_PASSWORD", "open sesame")
    homes.ann.ok("key", "new", "safe")
    homes.add("1.0.0")
    if password is None:
        monkeypatch.delenv("ADAPTERHUB_PASSWORD")
    else:
        monkeypatch.setenv("ADAPTERHUB_PASSWORD", password)

    assert told in homes.ann.fails(14, "key", "sign", "legal-qa", "--key", "safe")

    monkeypatch.setenv("ADAPTERHUB_PASSWORD", "open sesame")
    homes.ann.ok("key", "sign", "legal-qa", "--key", "safe")


def test_a_private_key_that_others_may_read_is_not_used(homes):
    homes.add("1.0.0")
    (homes.folder / "ann" / "keys" / "ann.pem").chmod(0o644)

    assert "chmod 600" in homes.ann.fails(14, "key", "sign", "legal-qa")


def test_in_ci_the_key_comes_from_the_environment(homes, monkeypatch):
    monkeypatch.setenv("ADAPTERHUB_PASSWORD", "open sesame")
    made = homes.ann.json("key", "new", "ci")
    homes.add("1.0.0")
    monkeypatch.setenv("ADAPTERHUB_KEY", Path(made["private"]).read_text())
    Path(made["private"]).unlink()

    signed = homes.ann.json("key", "sign", "legal-qa")

    assert signed["fingerprint"] == made["fingerprint"]


def test_which_key_is_said_when_there_are_several(homes):
    homes.add("1.0.0")
    homes.new_key("other")

    assert "`ann`, `other`" in homes.ann.fails(2, "key", "sign", "legal-qa")


@pytest.mark.parametrize("text", ["", "hello", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_public_key_is_not_trusted(homes, text):
    (homes.folder / "x.pub").write_text(text)

    homes.ben.fails(16, "key", "trust", "x", "x.pub")

    assert homes.ben.json("key", "list") == []


def test_a_private_key_or_one_of_another_kind_is_not_trusted(homes):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    pem = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    (homes.folder / "ed.pub").write_bytes(pem)

    assert "P-256" in homes.ben.fails(16, "key", "trust", "ed", "ed.pub")
    assert "private key" in homes.ben.fails(16, "key", "trust", "ann", "ann/keys/ann.pem")


# ------------------------------------------------------------ trust
def test_trust_is_a_file_of_its_owner_and_tells_the_fingerprint(homes):
    homes.trust("ann", "--scope", "acme/*", "--not-after", "2099-01-31")
    [trusted] = homes.ben.json("key", "list")
    path = homes.folder / "ben" / "trusted_keys.json"

    assert mode(path) == 0o600
    assert trusted["fingerprint"] == homes.ann.json("key", "show", "ann")["fingerprint"]
    assert (trusted["adapters"], trusted["not_after"]) == (["acme/*"], "2099-01-31T23:59:59+00:00")


def test_trusting_again_keeps_what_is_not_said_anew(homes):
    homes.trust("ann", "--scope", "acme", "--not-after", "2099-01-31", "--remote", "ours")
    homes.ben.ok("key", "trust", "ann", "--accept", "acme/x")
    [trusted] = homes.ben.json("key", "list")

    assert (trusted["adapters"], trusted["remotes"], trusted["accepts"]) == (["acme"], ["ours"], ["acme/x"])
    assert trusted["not_after"].startswith("2099-01-31")


def test_a_name_keeps_its_key_until_it_is_replaced(homes):
    homes.new_key("new")
    homes.trust("ann")
    other = homes.folder / "ann" / "keys" / "new.pub"

    assert "--replace" in homes.ben.fails(15, "key", "trust", "ann", other)

    [old] = homes.ben.json("key", "list")
    replaced = homes.ben.json("key", "trust", "ann", other, "--replace")
    assert replaced["replaces"] == [old["fingerprint"]]
    assert len(homes.ben.json("key", "list")) == 1


def test_a_trust_file_that_others_may_write_is_not_believed(homes):
    homes.publish("1.0.0")
    homes.trust()
    (homes.folder / "ben" / "trusted_keys.json").chmod(0o666)

    assert "others may write it" in homes.ben.fails(14, *homes.install())


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"keys": [{"name": "x"}]}'])
def test_a_broken_trust_file_is_told_and_trusts_nobody(homes, text):
    path = homes.folder / "ben" / "trusted_keys.json"
    path.write_text(text)
    path.chmod(0o600)
    homes.publish("1.0.0")

    assert str(path.name) in homes.ben.fails(16, *homes.install())
    assert not homes.is_installed()


def test_a_policy_that_cannot_be_meant_counts_as_require(homes):
    path = homes.folder / "ben" / "trusted_keys.json"
    path.write_text('{"keys": [], "policies": {"*": "no"}}')
    path.chmod(0o600)
    homes.publish("1.0.0")

    assert "requires a signature" in homes.ben.fails(14, *homes.install())
    assert not homes.is_installed()


def test_untrusting_forgets_a_key(homes):
    homes.trust()
    homes.ben.ok("key", "untrust", "ann")

    assert homes.ben.json("key", "list") == []
    homes.ben.fails(10, "key", "untrust", "ann")


@given(st.dates())
def test_a_day_lasts_until_its_last_second(day):
    if day.year >= 1000:
        assert parse_day(f"{day.isoformat()}T00:00:00+00:00") + 86_399 == parse_day(day.isoformat())


# ------------------------------------------------------------ the file
names = st.text("abcdefghijklmnopqrstuvwxyz._-", min_size=1, max_size=20).filter(lambda n: n not in {".", ".."})
identities = st.builds(
    Identity,
    name=names,
    version=st.sampled_from(["1.0", "2.0rc1"]),
    namespace=st.none() | names,
    base=st.none() | st.binary().map(digest_of),
    rank=st.none() | st.integers(1, 4096),
    parents=st.lists(names, max_size=3).map(tuple),
)


@given(st.dictionaries(names, st.binary().map(digest_of), min_size=1, max_size=5), identities)
def test_what_is_signed_is_what_is_read(files, identity):
    payload = statement_bytes(files, identity)
    bundle = Bundle(hint=digest_of(b"key"), payload=payload, signature=b"sig")

    assert Bundle.parse(bundle.to_bytes()) == bundle
    assert (dict(read_statement(payload).files), read_statement(payload).identity) == (files, identity)


def test_signing_stands_beside_the_files_and_in_the_store(homes):
    homes.add("1.0.0")
    made = homes.ann.json("key", "sign", "legal-qa", "--namespace", "acme")
    path = Path(made["path"])
    statement = statement_of(path)
    predicate = statement["predicate"]
    build = next(homes.ann.library.installed())

    assert {r["name"] for r in predicate["resources"]} == {p.name for p in path.parent.iterdir()} - {SIGNATURE}
    assert all(
        r["digest"] == hashlib.sha256((path.parent / r["name"]).read_bytes()).hexdigest()
        for r in predicate["resources"]
    )
    assert (predicate["serialization"]["ignore_paths"], statement["subject"][0]["name"]) == ([], "acme/legal-qa")
    assert predicate["adapter"] == {
        "name": "legal-qa", "version": "1.0.0", "namespace": "acme", "rank": 4, "parents": [],
        "base": build.base.fingerprint.weights,
    }  # fmt: skip
    assert homes.ann.library.store.blob_path(digest_of(path.read_bytes())).samefile(path)
    assert SIGNATURE not in {entry.path for entry in build.manifest.files}


def test_signing_again_changes_nothing_and_another_key_replaces_it(homes):
    homes.add("1.0.0")
    homes.new_key("other")
    first = homes.ann.json("key", "sign", "legal-qa", "--key", "ann")
    before = Path(first["path"]).read_bytes()
    again = homes.ann.json("key", "sign", "legal-qa", "--key", "ann")
    after = Path(first["path"]).read_bytes()
    other = homes.ann.json("key", "sign", "legal-qa", "--key", "other")

    assert (first["created"], again["created"], other["created"]) == (True, False, True)
    assert before == after != Path(first["path"]).read_bytes()


def test_gc_keeps_a_signature_as_long_as_its_build(homes):
    homes.add("1.0.0")
    path = Path(homes.ann.json("key", "sign", "legal-qa")["path"])
    blob = homes.ann.library.store.blob_path(digest_of(path.read_bytes()))

    replace_file(path, path.read_bytes())  # as on a file system without hard links, where a link is a copy
    homes.ann.library.gc(grace_s=0)
    assert blob.exists()

    homes.ann.ok("remove", "legal-qa", "--yes")
    homes.ann.library.gc(grace_s=0)
    assert not blob.exists()


def test_a_signature_is_read_from_a_plain_file_only(tmp_path):
    (tmp_path / "there").write_bytes(b"{}")
    (tmp_path / SIGNATURE).symlink_to("there")

    with pytest.raises(SignatureRefused, match="is a link"):
        read_signature(tmp_path / SIGNATURE)
    with pytest.raises(SignatureRefused, match="not a regular file"):
        read_signature(tmp_path)
    assert read_signature(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    "put",
    [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("gone"), lambda path: path.write_bytes(b" " * (1 << 21))],
)
def test_what_stands_in_the_place_of_a_signature_is_told_set_aside_and_the_signature_fetched_again(homes, put):
    homes.publish("1.0.0")
    homes.publish("1.0.0", name="summarize")
    homes.trust()
    homes.ben.ok(*homes.install())
    homes.ben.ok(*homes.install("summarize@base-7b"))
    path = Path(homes.ben.ok("info", "legal-qa", "--path").strip()) / SIGNATURE
    signed = path.read_bytes()
    path.unlink()
    put(path)

    told = homes.ben("audit", "--offline")
    swept = homes.ben("cache", "clean", "--yes")
    mended = homes.ben.ok("doctor", "--repair", "--offline")

    assert (told.exit_code, told.stdout.count("E_SIGNATURE")) == (3, 1)
    assert (swept.exit_code, "doctor --repair" in swept.stderr) == (14, True)
    assert f"quarantined\t{path}" in mended
    assert path.read_bytes() == signed
    assert homes.ben("verify", "legal-qa").exit_code in (0, 17)
    homes.ben.ok("cache", "clean", "--yes")


def test_damaged_files_are_not_signed(homes):
    homes.add("1.0.0")
    folder = next(homes.ann.library.installed()).folder
    replace_file(folder / "adapter_config.json", b"{}")

    assert "nothing was signed" in homes.ann.fails(12, "key", "sign", "legal-qa")
    assert not (folder / SIGNATURE).exists()


def test_verify_tells_the_signer(homes):
    homes.add("1.0.0")
    assert "signed" not in homes.ann.ok("verify", "legal-qa")

    homes.ann.ok("key", "sign", "legal-qa")
    assert "unknown key" in homes.ann.ok("verify", "legal-qa")

    homes.ann.ok("key", "trust", "ann")
    assert "ok, is signed by `ann`" in homes.ann.ok("verify", "legal-qa")
    [report] = homes.ann.json("verify", "legal-qa")
    assert [f["message"] for f in report["findings"] if f["code"] == "N_SIGNATURE"] == ["is signed by `ann`"]


def test_verify_of_an_installed_build_finds_what_was_changed_since(homes):
    homes.add("1.0.0")
    path = Path(homes.ann.json("key", "sign", "legal-qa")["path"])
    homes.ann.ok("key", "trust", "ann")
    (path.parent / "more.py").write_text("1")

    done = homes.ann("verify", "legal-qa")

    assert (done.exit_code, "[E_SIGNATURE]" in done.stdout, "`more.py`" in done.stdout) == (3, True, True)


def test_signing_and_checking_import_nothing_heavy(homes):
    homes.publish("1.0.0")
    homes.trust()
    heavy = ["torch", "peft", "transformers", "numpy", "huggingface_hub", "rich"]
    for arguments in (["key", "sign", "legal-qa", "--root", "ann"], ["key", "list", "--root", "ann"]):
        code = (
            f"import sys, json, contextlib; sys.argv = ['adapt', *{arguments!r}]\n"
            "from adapterhub.cli import main\nwith contextlib.suppress(SystemExit): main()\n"
            f"print(json.dumps([m for m in {heavy!r} if m in sys.modules]), file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=homes.folder, capture_output=True, text=True, check=True
        )
        assert json.loads(done.stderr.strip().splitlines()[-1]) == [], arguments


# ------------------------------------------------------------ memory
def test_the_newest_version_stays_remembered_per_base_and_rank(tmp_path):
    seen, key = FirstUseFile(tmp_path), digest_of(b"key")
    for base, rank, version in (("a", 4, "1.2"), ("a", 4, "1.1"), ("a", 8, "1.0"), ("b", 4, "0.9")):
        seen.remember("acme/x", FirstUseBuild(base=base, rank=rank, version=version), key)

    known = FirstUseFile(tmp_path).of("acme/x")
    assert {(b.base, b.rank, b.version) for b in known.builds} == {("a", 4, "1.2"), ("a", 8, "1.0"), ("b", 4, "0.9")}


@pytest.mark.parametrize("text", ["", "[]", '{"adapters": {"x": {"signer": 1, "builds": []}}}'])
def test_a_broken_memory_is_told_and_not_taken_for_an_empty_one(homes, text):
    homes.publish("1.0.0")
    homes.trust()
    (homes.folder / "ben" / "seen_signatures.json").write_text(text)

    assert "seen_signatures.json" in homes.ben.fails(16, *homes.install())
    assert not homes.is_installed()


# ------------------------------------------------------------ the other tool
@pytest.fixture(scope="session")
def peer(tmp_path_factory) -> Path:
    """`model_signing`, in an environment of its own: it brings 36 packages."""
    folder = tmp_path_factory.mktemp("model-signing")
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin" / "pip", "install", "-q", "--disable-pip-version-check", *PEER], check=True)
    return folder / "bin" / "model_signing"


def peer_says(peer: Path, *arguments: object) -> tuple[int, str]:
    done = subprocess.run([peer, *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_what_model_signing_signed_is_verified(homes):
    """The folder was signed by `model_signing` 1.1.1, with a key that was made by `adapt key new` and thrown away."""
    plain = Path(shutil.copytree(SIGNED_BY_PEER / "plain", homes.folder / "plain"))
    homes.ben.ok("key", "trust", "ann", SIGNED_BY_PEER / "ann.pub")

    assert "signed by `ann`" in homes.ben.ok("verify", plain, "--base", "base-7b")
    config = json.loads((plain / "adapter_config.json").read_text())
    (plain / "adapter_config.json").write_text(json.dumps(config | {"lora_dropout": 0.5}))
    assert "E_SIGNATURE" in homes.ben("verify", plain, "--base", "base-7b").stdout


@pytest.mark.exhaustive
@pytest.mark.slow
def test_model_signing_verifies_ours_and_we_verify_theirs(peer, homes):
    build = homes.publish("1.0.0")
    public, private = (homes.folder / "ann" / "keys" / f"ann.{end}" for end in ("pub", "pem"))
    homes.trust()
    wanted = ("verify", "key", build, "--signature", build / SIGNATURE, "--public_key", public, "--no-ignore-git-paths")

    assert peer_says(peer, *wanted)[0] == 0
    (build / "more.txt").write_text("x")
    code, said = peer_says(peer, *wanted)
    assert (code, "more.txt" in said) == (1, True)
    (build / "more.txt").unlink()

    # the same folder, signed by them: every file is as signed, but no field says which adapter was meant
    (build / SIGNATURE).unlink()
    signing = ("sign", "key", build, "--private_key", private, "--signature", build / SIGNATURE)
    assert peer_says(peer, *signing)[0] == 0
    assert "not for this name" in homes.ben.ok("verify", build, "--base", "base-7b")
    assert "not for this name" in homes.ben.fails(14, *homes.install("legal-qa@base-7b", "--signatures", "require"))
    done = homes.ben(*homes.install())
    assert (done.exit_code, "signed by `ann`, but not for this name" in done.stderr) == (0, True)

    # and a plain PEFT folder of theirs, first whole, then with one byte changed
    plain = make_adapter(homes.folder / "plain")
    assert peer_says(peer, "sign", "key", plain, "--private_key", private, "--signature", plain / SIGNATURE)[0] == 0
    assert "signed by `ann`" in homes.ben.ok("verify", plain, "--base", "base-7b")
    config = json.loads((plain / "adapter_config.json").read_text())
    (plain / "adapter_config.json").write_text(json.dumps(config | {"lora_dropout": 0.5}))
    assert "E_SIGNATURE" in homes.ben("verify", plain, "--base", "base-7b").stdout


def test_a_signature_needs_its_very_key(homes):
    homes.new_key("other")
    keys = [(homes.folder / "ann" / "keys" / f"{name}.pem").read_bytes() for name in ("ann", "other")]
    ann, other = (SigningKey.parse(pem, None, name="x", where="x") for pem in keys)

    assert ann.public.verifies(ann.sign(b"data"), b"data")
    assert not other.public.verifies(ann.sign(b"data"), b"data")
    assert not ann.public.verifies(ann.sign(b"data"), b"date")
    assert not ann.public.verifies(b"", b"data")
    assert PublicKey.parse(ann.public.pem.encode(), "x") == ann.public


def test_the_trust_of_processes_at_once_is_added_up(homes):
    processes = []
    for number in range(6):
        homes.new_key(f"key{number}")
        code = "from adapterhub.cli import main; main()"
        arguments = ["key", "trust", f"key{number}", f"ann/keys/key{number}.pub", "--root", "ben"]
        processes.append(
            subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=homes.folder, stdout=subprocess.DEVNULL)
        )

    assert [process.wait(30) for process in processes] == [0] * 6
    assert {key.name for key in TrustFile(homes.folder / "ben").read().keys} == {f"key{n}" for n in range(6)}
