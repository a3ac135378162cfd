"""Everything that can be done to a signed adapter on its way: refused with one plain line, and nothing is stored."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.formats.manifest import Manifest
from adapterhub.formats.signature import Bundle
from tests.support.signing_homes import SIGNATURE, Homes, make_homes, replace_file

pytestmark = pytest.mark.slow

WEIGHTS, CONFIG, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "adapterhub.json"


@pytest.fixture
def homes(tmp_path: Path) -> Homes:
    """Ann's adapter is published and signed, Ben trusts her key."""
    homes = make_homes(tmp_path)
    homes.publish("1.0.0")
    homes.trust()
    return homes


def change_a_byte(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    replace_file(path, bytes(data))


def rename(folder: Path, **fields: str) -> None:
    """Say in the manifest that it is something else."""
    value = json.loads((folder / MANIFEST).read_bytes()) | fields
    replace_file(folder / MANIFEST, Manifest.parse(json.dumps(value).encode()).to_bytes())


# ------------------------------------------------------------ what is done
def byte_of_weights(homes: Homes, folder: Path) -> None:
    change_a_byte(folder / WEIGHTS)


def byte_of_config(homes: Homes, folder: Path) -> None:
    data = (folder / CONFIG).read_bytes()
    replace_file(folder / CONFIG, data.replace(b'"lora_alpha": 8', b'"lora_alpha": 9'))


def byte_with_its_digest(homes: Homes, folder: Path) -> None:
    """The weights and, to match, their entry in the manifest."""
    from adapterhub.core.digests import digest_of

    value = json.loads((folder / MANIFEST).read_bytes())
    old = digest_of((folder / WEIGHTS).read_bytes())
    change_a_byte(folder / WEIGHTS)
    new = digest_of((folder / WEIGHTS).read_bytes())
    value["files"] = [e | {"sha256": new} if e["sha256"] == old else e for e in value["files"]]
    replace_file(folder / MANIFEST, Manifest.parse(json.dumps(value).encode()).to_bytes())


def extra_file(homes: Homes, folder: Path) -> None:
    (folder / "more.py").write_text("1")


def extra_folder(homes: Homes, folder: Path) -> None:
    (folder / "more").mkdir()


def missing_file(homes: Homes, folder: Path) -> None:
    (folder / CONFIG).unlink()


def moved_file(homes: Homes, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / CONFIG).rename(folder / "sub" / CONFIG)


def link(homes: Homes, folder: Path) -> None:
    (folder / CONFIG).rename(homes.published / "config")
    (folder / CONFIG).symlink_to(homes.published / "config")


def link_for_signature(homes: Homes, folder: Path) -> None:
    (folder / SIGNATURE).rename(homes.published / "sig")
    (folder / SIGNATURE).symlink_to(homes.published / "sig")


def pipe_for_signature(homes: Homes, folder: Path) -> None:
    (folder / SIGNATURE).unlink()
    os.mkfifo(folder / SIGNATURE)


def wrong_key(homes: Homes, folder: Path) -> None:
    """Made with another key, under the name of the trusted one."""
    homes.new_key("eve")
    trusted = Bundle.parse((folder / SIGNATURE).read_bytes()).hint
    homes.rewrite(folder / SIGNATURE, lambda _: None, key="eve")
    bundle = Bundle.parse((folder / SIGNATURE).read_bytes())
    forged = Bundle(hint=trusted, payload=bundle.payload, signature=bundle.signature)
    replace_file(folder / SIGNATURE, forged.to_bytes())


def untrusted_key(homes: Homes, folder: Path) -> None:
    homes.new_key("eve")
    homes.rewrite(folder / SIGNATURE, lambda _: None, key="eve")


def forged_payload(homes: Homes, folder: Path) -> None:
    homes.rewrite(folder / SIGNATURE, lambda s: s["predicate"]["adapter"].update(version="9.0.0"))


def byte_of_signature(homes: Homes, folder: Path) -> None:
    bundle = Bundle.parse((folder / SIGNATURE).read_bytes())
    other = bytes([*bundle.signature[:-1], bundle.signature[-1] ^ 1])
    forged = Bundle(hint=bundle.hint, payload=bundle.payload, signature=other)
    replace_file(folder / SIGNATURE, forged.to_bytes())


def cut(homes: Homes, folder: Path) -> None:
    data = (folder / SIGNATURE).read_bytes()
    replace_file(folder / SIGNATURE, data[: len(data) // 2])


def empty(homes: Homes, folder: Path) -> None:
    replace_file(folder / SIGNATURE, b"")


def deep(homes: Homes, folder: Path) -> None:
    replace_file(folder / SIGNATURE, b"[" * 100_000)


def deep_payload(homes: Homes, folder: Path) -> None:
    bundle = Bundle.parse((folder / SIGNATURE).read_bytes())
    nested = Bundle(hint=bundle.hint, payload=b'{"a":' * 100_000, signature=bundle.signature)
    replace_file(folder / SIGNATURE, nested.to_bytes())


def huge(homes: Homes, folder: Path) -> None:
    replace_file(folder / SIGNATURE, b" " * ((1 << 20) + 1))


def key_given_twice(homes: Homes, folder: Path) -> None:
    data = (folder / SIGNATURE).read_bytes()
    replace_file(folder / SIGNATURE, data[:-1] + b',"mediaType":"x"}')


def two_signatures(homes: Homes, folder: Path) -> None:
    value = json.loads((folder / SIGNATURE).read_bytes())
    value["dsseEnvelope"]["signatures"] *= 2
    replace_file(folder / SIGNATURE, json.dumps(value).encode())


def other_version(homes: Homes, folder: Path) -> None:
    rename(folder, version="2.0.0")


def other_name(homes: Homes, folder: Path) -> None:
    """Another adapter of Ann's, put in the place of this one."""
    other = homes.publish("1.0.0", name="summarize")
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    rename(folder, name="legal-qa")


def signature_of_another(homes: Homes, folder: Path) -> None:
    other = homes.publish("1.1.0")
    replace_file(folder / SIGNATURE, (other / SIGNATURE).read_bytes())
    shutil.rmtree(other)


def signed_for_another_base(homes: Homes, folder: Path) -> None:
    """By the trusted key, so nothing is forged: it only was not meant for this."""
    homes.rewrite(folder / SIGNATURE, lambda s: s["predicate"]["adapter"].update(base=f"sha256:{'0' * 64}"), key="ann")


def signed_with_other_parents(homes: Homes, folder: Path) -> None:
    homes.rewrite(folder / SIGNATURE, lambda s: s["predicate"]["adapter"].update(parents=["x"]), key="ann")


def signed_at_another_rank(homes: Homes, folder: Path) -> None:
    homes.rewrite(folder / SIGNATURE, lambda s: s["predicate"]["adapter"].update(rank=64), key="ann")


def a_file_less_signed(homes: Homes, folder: Path) -> None:
    homes.rewrite(folder / SIGNATURE, lambda s: s["predicate"]["resources"].pop(), key="ann")


def unsigned(homes: Homes, folder: Path) -> None:
    (folder / SIGNATURE).unlink()


def expired_key(homes: Homes, folder: Path) -> None:
    homes.ben.ok("key", "trust", "ann", "--not-after", "2020-01-31")


def key_of_another_scope(homes: Homes, folder: Path) -> None:
    homes.ben.ok("key", "trust", "ann", "--scope", "acme/*")


def key_of_another_place(homes: Homes, folder: Path) -> None:
    homes.ben.ok("key", "trust", "ann", "--remote", "ours")


FALSE = {  # refused whatever the policy
    byte_of_weights: (12, "digest"),
    byte_of_config: (12, "digest"),
    byte_with_its_digest: (14, "… was signed"),
    extra_file: (14, "`more.py` was not there when it was signed"),
    extra_folder: (14, "`more`, a folder, was not there"),
    missing_file: (16, "[E_CONFIG] adapter_config.json: is missing"),
    moved_file: (16, "[E_CONFIG] adapter_config.json: is missing"),
    link: (14, "is a link"),
    link_for_signature: (16, "[E_LINK] model.sig: is a link"),
    pipe_for_signature: (16, "[E_KIND] model.sig: is a pipe"),
    wrong_key: (14, "forged"),
    forged_payload: (14, "forged"),
    byte_of_signature: (14, "forged"),
    cut: (14, "not JSON"),
    empty: (14, "is empty"),
    deep: (14, "nested too deeply"),
    deep_payload: (14, "forged"),
    huge: (14, "1048576 bytes"),
    key_given_twice: (14, "given twice"),
    two_signatures: (14, "expected one signature"),
    other_version: (14, "signed as another adapter: version 1.0.0, offered 2.0.0"),
    other_name: (14, "signed as another adapter: name summarize, offered legal-qa"),
    signature_of_another: (14, "signed as another adapter: version 1.1.0, offered 1.0.0"),
    signed_for_another_base: (14, "signed as another adapter: base sha256:000"),
    signed_with_other_parents: (14, "other parents"),
    signed_at_another_rank: (14, "rank 64, offered 4"),
    a_file_less_signed: (14, "contradicts itself"),
}
UNKNOWN = {  # for the policy to decide
    unsigned: "is not signed",
    untrusted_key: "unknown key",
    expired_key: "ended on 2020-01-31",
    key_of_another_scope: "not trusted for `legal-qa`",
    key_of_another_place: "not trusted for `legal-qa`",
}

Tamper = Callable[[Homes, Path], None]


def refused(homes: Homes, *options: str, spec: str = "legal-qa@base-7b") -> tuple[int, str]:
    """Exit code and message of an install that must leave nothing behind; the message is one line and a hint."""
    done = homes.ben(*homes.install(spec, *options))
    lines = [line for line in done.stderr.splitlines() if not line.startswith("  [")]  # what `verify` finds in a folder
    assert (done.stdout, homes.is_installed()) == ("", False), done
    assert [line.partition(":")[0] for line in lines] in (["error"], ["error", "hint"]), done.stderr
    assert not list((homes.folder / "ben" / "tmp").glob("*"))
    assert not list((homes.folder / "ben").glob("blobs/sha256/*/*"))
    return done.exit_code, done.stderr


@pytest.mark.parametrize("tamper", FALSE, ids=lambda f: f.__name__)
def test_what_is_false_is_refused_by_every_policy(homes: Homes, tamper: Tamper) -> None:
    tamper(homes, homes.build("1.0.0"))

    for policy in ("require", "warn", "off"):
        code, message = refused(homes, "--signatures", policy)

        assert (code, FALSE[tamper][1] in message) == (FALSE[tamper][0], True), message


@pytest.mark.parametrize("tamper", UNKNOWN, ids=lambda f: f.__name__)
def test_what_nobody_vouches_for_is_up_to_the_policy(homes: Homes, tamper: Tamper) -> None:
    tamper(homes, homes.build("1.0.0"))

    code, message = refused(homes, "--signatures", "require")
    assert (code, UNKNOWN[tamper] in message) == (14, True)

    warned = homes.ben(*homes.install("legal-qa@base-7b", "--signatures", "warn"))
    assert (warned.exit_code, UNKNOWN[tamper] in warned.stderr) == (0, True), warned.stderr

    homes.ben.ok("remove", "legal-qa", "--yes")
    silent = homes.ben(*homes.install("legal-qa@base-7b", "--signatures", "off", "--quiet"))
    assert (silent.exit_code, silent.stderr) == (0, "")


@pytest.mark.parametrize(
    ("tamper", "code", "told"), [(unsigned, 0, ""), (untrusted_key, 0, "unknown key"), (expired_key, 14, "ended")]
)
def test_without_a_policy_an_unknown_key_warns_and_one_that_ended_is_refused(homes, tamper, code, told):
    tamper(homes, homes.build("1.0.0"))

    done = homes.ben(*homes.install())

    assert (done.exit_code, told in done.stderr, bool(done.stderr)) == (code, True, bool(told)), done.stderr


def test_a_good_one_goes_in_after_all_that(homes):
    for tamper in (extra_file, cut, untrusted_key):
        folder = homes.build("1.0.0")
        kept = shutil.copytree(folder, homes.folder / tamper.__name__)
        tamper(homes, folder)
        refused(homes, "--signatures", "require")
        shutil.rmtree(folder)
        kept.rename(folder)

    homes.ben.ok(*homes.install("legal-qa@base-7b", "--signatures", "require"))
    assert "is signed by `ann`" in homes.ben.ok("verify", "legal-qa")


def test_a_card_may_be_edited_where_it_is_published(homes):
    replace_file(homes.build("1.0.0") / "README.md", b"# Mine\n")

    homes.ben.ok(*homes.install("legal-qa@base-7b", "--signatures", "require"))


def test_a_namespace_that_was_signed_is_the_one_it_is_offered_in(homes):
    homes.add("1.0.0", name="signed-for")
    homes.ann.ok("key", "sign", "signed-for", "--namespace", "acme")
    homes.ann.ok("push", "signed-for", "--to", "./published")

    told = homes.ben.fails(14, *homes.install("evil/signed-for@base-7b"))

    assert "name acme/signed-for, offered evil/signed-for" in told
    homes.ben.ok(*homes.install("acme/signed-for@base-7b", "--signatures", "require"))
