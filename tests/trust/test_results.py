"""Signed results of tests: who states what about which build, and what does not count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub.api.steps.contracts.recording import state_result
from adapterhub.api.steps.contracts.testing import subject_of
from adapterhub.core.digests import digest_of
from adapterhub.formats.contract.results import RESULT_LIMIT_BYTES
from adapterhub.formats.signature import Bundle, pre_authentication
from adapterhub.library.results import BESIDE_BUILDS, MOST_UNKNOWN, ResultFiles
from adapterhub.library.store.catalog import Installed
from adapterhub.trust.signing.keys import KeyFolder
from tests.support.command_line import Adapt
from tests.support.results import signed, verdict_of, with_contract
from tests.support.signing_homes import Homes, make_homes, statement_of

OTHER = digest_of(b"another")


@pytest.fixture
def homes(tmp_path: Path) -> Homes:
    """Ann's `legal-qa` has a contract in its version 1.0.1."""
    homes = make_homes(tmp_path)
    homes.add("1.0.0")
    with_contract(homes.ann.library, next(homes.ann.library.installed()))
    return homes


def build_of(home: Adapt) -> Installed:
    [build] = [one for one in home.library.installed() if one.manifest.version == "1.0.1"]
    return build


def push(homes: Homes) -> Path:
    homes.ann.ok("push", "legal-qa==1.0.1", "--to", "./published")
    return homes.build("1.0.1")


def shown_to(home: Adapt) -> dict[str, Any]:
    [document] = home.json("contract", "results", "legal-qa")
    return dict(document)


def test_a_result_travels_with_the_build_and_counts_for_those_who_trust_the_key(homes: Homes) -> None:
    path = signed(homes.ann.library, build_of(homes.ann), "ann")
    assert path.is_relative_to(homes.ann.library.root / "tests")
    push(homes)
    homes.ben.ok(*homes.install())

    [before] = shown_to(homes.ben)["results"]
    homes.trust()
    [after] = shown_to(homes.ben)["results"]

    assert (before["standing"], before["signer"]) == ("unknown_key", None)
    assert (after["standing"], after["signer"], after["verdict"]) == ("trusted", "ann", "PASS")
    assert after["base_weights"] == build_of(homes.ben).base.fingerprint.weights  # type: ignore[union-attr]
    assert "PASS  on base-7b, float32  by `ann`, trusted" in homes.ben.ok("contract", "results", "legal-qa")


def test_a_published_folder_keeps_its_results_beside_it_where_older_clients_pass_over_them(homes: Homes) -> None:
    folder = push(homes)
    key = KeyFolder(homes.ann.library.root).open("ann", None)
    subject = subject_of(homes.ann.library, str(folder))
    path = state_result(homes.ann.library, subject, verdict_of(build_of(homes.ann)), key)

    assert path is not None
    assert path.parent == folder.parent / BESIDE_BUILDS / build_of(homes.ann).manifest.digest[7:]
    homes.trust()
    homes.ben.ok(*homes.install())
    assert [one["signer"] for one in shown_to(homes.ben)["results"]] == ["ann"]


def test_a_later_result_supersedes_an_earlier_one_wherever_that_comes_from(homes: Homes) -> None:
    library, build = homes.ann.library, build_of(homes.ann)
    homes.ann.ok("key", "trust", "ann")
    passed = signed(library, build, "ann").read_bytes()
    signed(library, build, "ann", "CHANGED")
    signed(library, build, "ann", dtype="bfloat16")

    ResultFiles.of_library(library.store, build.manifest.digest).add(passed)
    found = shown_to(homes.ann)["results"]

    assert [(one["sequence"], one["verdict"], one["dtype"]) for one in found] == [
        (3, "PASS", "bfloat16"),
        (2, "CHANGED", "float32"),
    ]


def test_no_verdict_makes_no_result(homes: Homes) -> None:
    library, build = homes.ann.library, build_of(homes.ann)
    key = KeyFolder(library.root).open("ann", None)
    subject = subject_of(library, "legal-qa==1.0.1")

    assert state_result(library, subject, verdict_of(build, "UNKNOWN"), key) is None
    assert not (library.root / "tests").exists()


def changed(change: Callable[[dict[str, Any]], None]) -> Callable[[Homes, bytes], bytes]:
    """What Ann signs has other content, and her key signs that."""

    def made(homes: Homes, raw: bytes) -> bytes:
        statement = json.loads(Bundle.parse(raw).payload)
        change(statement)
        payload = json.dumps(statement).encode()
        key = KeyFolder(homes.ann.library.root).open("ann", None)
        return Bundle(
            hint=key.public.fingerprint, payload=payload, signature=key.sign(pre_authentication(payload))
        ).to_bytes()

    return made


def forged(homes: Homes, raw: bytes) -> bytes:
    homes.new_key("eve")
    bundle, eve = Bundle.parse(raw), KeyFolder(homes.ann.library.root).open("eve", None)
    return Bundle(
        hint=bundle.hint, payload=bundle.payload, signature=eve.sign(pre_authentication(bundle.payload))
    ).to_bytes()


def of_a_build(homes: Homes, raw: bytes) -> bytes:
    """The signature of the build, which is no result."""
    homes.ann.ok("key", "sign", "legal-qa==1.0.1", "--key", "ann")
    return (build_of(homes.ann).folder / "model.sig").read_bytes()


HOSTILE: dict[str, tuple[Callable[[Homes, bytes], bytes], str]] = {
    "forged": (forged, "it is forged"),
    "other payload": (lambda _, raw: raw.replace(b'"payload":"ey', b'"payload":"eY'), "it "),
    "other build": (changed(lambda s: s["subject"][0]["digest"].update(sha256=OTHER[7:])), "it is about sha256:"),
    "two builds": (changed(lambda s: s["subject"].append(s["subject"][0])), "subject"),
    "passed and failed": (changed(lambda s: s["predicate"].update(failedTests=["golden-1"])), "contradicts itself"),
    "two verdicts": (changed(lambda s: s["predicate"].update(result="FAILED")), "contradicts itself"),
    "two bases": (
        changed(lambda s: s["predicate"]["configuration"].append(s["predicate"]["configuration"][1])),
        "is there twice",
    ),
    "no base": (changed(lambda s: s["predicate"]["configuration"].pop(1)), "names no base"),
    "no sequence": (changed(lambda s: s["predicate"]["adapterhub"].pop("sequence")), "sequence"),
    "sequence 0": (changed(lambda s: s["predicate"]["adapterhub"].update(sequence=0)), "sequence"),
    "the future": (
        changed(lambda s: s["predicate"]["adapterhub"].update(time="2999-01-01T00:00:00Z")),
        "in the future",
    ),
    "another predicate": (changed(lambda s: s.update(predicateType="https://slsa.dev/provenance/v1")), "predicateType"),
    "a signature of files": (of_a_build, "predicateType"),
    "no JSON": (lambda *_: b"\x80\x02", "it "),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_false_is_told_and_never_counts(homes: Homes, name: str) -> None:
    make, reason = HOSTILE[name]
    library, build = homes.ann.library, build_of(homes.ann)
    homes.ann.ok("key", "trust", "ann")
    path = signed(library, build, "ann")
    raw = make(homes, path.read_bytes())
    path.unlink()
    ResultFiles.of_library(library.store, build.manifest.digest).add(raw)

    found = shown_to(homes.ann)

    assert found["results"] == []
    [refusal] = found["refusals"]
    assert reason in refusal
    assert refusal.isprintable()


def test_a_large_file_and_a_link_are_passed_over(homes: Homes, tmp_path: Path) -> None:
    library, build = homes.ann.library, build_of(homes.ann)
    path = signed(library, build, "ann")
    (tmp_path / "elsewhere.json").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere.json")
    (path.parent / f"{'a' * 64}.json").write_bytes(b" " * (RESULT_LIMIT_BYTES + 1))

    assert ResultFiles.of_library(library.store, build.manifest.digest).read() == []


def test_unknown_keys_cannot_crowd_out_a_trusted_one(homes: Homes) -> None:
    library, build = homes.ann.library, build_of(homes.ann)
    folder = push(homes)
    homes.new_key("eve")
    homes.trust()
    eve = signed(library, build, "eve")
    bundle = Bundle.parse(eve.read_bytes())
    beside = ResultFiles.beside(folder, build.manifest.digest)
    for number in range(MOST_UNKNOWN + 5):
        statement = json.loads(bundle.payload) | {"n": number}
        raw = Bundle(hint=bundle.hint, payload=json.dumps(statement).encode(), signature=b"none").to_bytes()
        beside.add(raw)
    beside.add(signed(library, build, "ann").read_bytes())
    homes.ben.ok(*homes.install())

    kept = ResultFiles.of_library(homes.ben.library.store, build.manifest.digest).read()

    assert len(kept) == MOST_UNKNOWN + 1
    assert [one["signer"] for one in shown_to(homes.ben)["results"] if one["signer"]] == ["ann"]


def test_a_statement_is_of_in_toto_and_names_what_was_asked(homes: Homes) -> None:
    build = build_of(homes.ann)
    statement = statement_of(signed(homes.ann.library, build, "ann", rules=OTHER))

    assert statement["subject"] == [{"name": "legal-qa 1.0.1", "digest": {"sha256": build.manifest.digest[7:]}}]
    assert statement["predicate"]["result"] == "PASSED"
    names = [part["name"] for part in statement["predicate"]["configuration"]]
    assert names == ["contract", "base", "weights", "bounds", "rules"]


def test_signing_needs_a_build_and_a_key_and_says_so_before_a_model_is_loaded(homes: Homes) -> None:
    assert "has no `adapterhub.json`" in homes.ann.fails(2, "test", "./out/legal-qa-1.0.0-0", "--sign")
    assert "add `--sign`" in homes.ann.fails(2, "test", "legal-qa", "--key", "ann")
    assert "no signing key chosen" in homes.ben.fails(2, "test", "./out/legal-qa-1.0.0-0", "--sign")
    assert "are for adapters that are named" in homes.ann.fails(2, "test", "--all", "--sign")
