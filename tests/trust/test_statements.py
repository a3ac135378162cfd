"""Signed statements of how a merge was made: what they say, where they go, and which do not count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub.core.specs import parse_name
from adapterhub.formats.manifest import Parent
from adapterhub.formats.signature import Bundle, pre_authentication
from adapterhub.library.intake.description import Description
from adapterhub.library.store.catalog import Installed
from adapterhub.trust.signing.keys import KeyFolder
from tests.support.oci_registry import serving
from tests.support.signing_homes import Homes, make_homes
from tests.support.tiny import make_adapter


@pytest.fixture
def homes(tmp_path: Path) -> Homes:
    """Ann has `legal-qa`, and `both`, which was merged from it and from a folder."""
    homes = make_homes(tmp_path)
    homes.add("1.0.0")
    library = homes.ann.library
    (parent,) = library.installed()
    parents = (
        Parent(digest=parent.manifest.digest, spec=parent.spec, weight=0.75),
        Parent(digest=None, spec="./out/tables", weight=0.25),
    )
    recipe = {"method": "svd", "options": {"rank": 4}}
    about = Description(name=parse_name("both"), version="1.0.0", parents=parents, recipe=recipe)
    library.add(make_adapter(tmp_path / "both"), about, base=library.bases.get("base-7b"))
    return homes


def both(homes: Homes) -> Installed:
    return next(one for one in homes.ann.library.installed() if one.manifest.name == "both")


def stated(homes: Homes) -> Path:
    return Path(homes.ann.json("key", "sign", "both", "--statement")["statement"])


def findings(home: Any, *more: str) -> list[tuple[str, str]]:
    audited = json.loads(home("audit", "both", "--offline", "--json", *more).stdout)["adapters"][0]["findings"]
    return [(one["code"], one["message"]) for one in audited if one["code"].endswith("STATEMENT")]


def test_a_statement_is_slsa_provenance_with_parents_base_and_recipe(homes: Homes) -> None:
    bundle = Bundle.parse(stated(homes).read_bytes())
    statement, build = json.loads(bundle.payload), both(homes)

    definition = statement["predicate"]["buildDefinition"]
    parents = build.manifest.parents
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert statement["subject"] == [{"name": "both 1.0.0", "digest": {"sha256": build.manifest.digest[7:]}}]
    assert definition["externalParameters"]["recipe"] == {"method": "svd", "options": {"rank": 4}}
    assert definition["resolvedDependencies"] == [
        {"name": parents[0].spec, "digest": {"sha256": str(parents[0].digest)[7:]}, "annotations": {"weight": 0.75}},
        {"name": "./out/tables", "annotations": {"weight": 0.25}},
        {"name": "base", "digest": {"sha256": build.base.fingerprint.weights[7:]}},  # type: ignore[union-attr]
    ]
    assert (
        KeyFolder(homes.ann.library.root).public("ann").verifies(bundle.signature, pre_authentication(bundle.payload))
    )


def test_one_key_states_it_once_and_what_was_trained_has_nothing_to_state(homes: Homes) -> None:
    first, again = stated(homes), stated(homes)

    told = homes.ann.fails(2, "key", "sign", "legal-qa", "--statement")

    assert first == again
    assert len(list(first.parent.iterdir())) == 1
    assert "has no recipe, so there is nothing to state. Nothing was signed" in told


@pytest.mark.parametrize("way", ["directory", "oci"])
def test_a_statement_travels_with_the_build(way: str, homes: Homes, online: None, monkeypatch: Any) -> None:
    stated(homes)
    with serving(refers=False) as server:
        if way == "oci":
            monkeypatch.setenv("HOME", str(homes.folder))
            homes.ann.ok("push", "both", "--to", f"{server.address}/acme/both")
            homes.ben.ok("install", "acme/both@base-7b", "--remote", server.address)
        else:
            homes.ann.ok("push", "both", "--to", "./published")
            homes.ben.ok("install", "both@base-7b", "--from", "./published")

    ((code, unknown),) = findings(homes.ben)
    homes.trust()
    assert (code, "the unknown key sha256:" in unknown) == ("N_STATEMENT", True)
    assert findings(homes.ben) == [
        ("N_STATEMENT", "`ann`, whom you trust, states how it was made, as its manifest says")
    ]


def changed(change: Callable[[dict[str, Any]], object], *, signs: bool = True) -> Callable[[Homes, bytes], bytes]:
    def made(homes: Homes, raw: bytes) -> bytes:
        bundle = Bundle.parse(raw)
        statement = json.loads(bundle.payload)
        change(statement)
        payload = json.dumps(statement).encode()
        key = KeyFolder(homes.ann.library.root).open("ann", None)
        signature = key.sign(pre_authentication(payload)) if signs else bundle.signature
        return Bundle(hint=bundle.hint, payload=payload, signature=signature).to_bytes()

    return made


def definition(statement: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = statement["predicate"]["buildDefinition"]
    return found


FALSE: dict[str, tuple[Callable[[Homes, bytes], bytes], str]] = {
    "no bundle": (lambda _homes, _raw: b"{}", "mediaType"),
    "a changed byte": (changed(lambda one: one["subject"][0].update(name="x"), signs=False), "it is forged"),
    "another build": (changed(lambda one: one["subject"][0]["digest"].update(sha256="0" * 64)), "not about"),
    "two builds": (changed(lambda one: one["subject"].append(one["subject"][0])), "not about"),
    "another parent": (
        changed(lambda one: definition(one)["resolvedDependencies"][0]["digest"].update(sha256="1" * 64)),
        "resolvedDependencies: says otherwise than the manifest",
    ),
    "another recipe": (
        changed(lambda one: definition(one)["externalParameters"].update(recipe={})),
        "externalParameters: says otherwise than the manifest",
    ),
    "another kind of build": (
        changed(lambda one: definition(one).update(buildType="urn:x")),
        "expected `urn:adapterhub",
    ),
    "a test result": (changed(lambda one: one.update(predicateType="https://in-toto.io/x")), "predicateType"),
}


def test_false_statements_do_not_count_and_do_not_come_in(homes: Homes) -> None:
    path = stated(homes)
    raw = path.read_bytes()
    homes.ann.ok("key", "trust", "ann")

    for number, (make, words) in enumerate(FALSE.values()):
        path.unlink()
        path = path.with_name(f"{number}.json")
        path.write_bytes(make(homes, raw))
        ((code, message),) = findings(homes.ann)
        assert code == "W_STATEMENT"
        assert words in message
    for number, (make, _) in enumerate(FALSE.values()):
        path.with_name(f"{number}.json").write_bytes(make(homes, raw))
    homes.ann.ok("push", "both", "--to", "./published")
    homes.trust()
    homes.ben.ok("install", "both@base-7b", "--from", "./published")

    assert len(list((homes.published / "both" / ".made").glob("*/*.json"))) == len(FALSE)
    assert findings(homes.ben) == []


def test_gc_takes_the_statements_of_what_it_takes(homes: Homes) -> None:
    path = stated(homes)
    library = homes.ann.library
    library.gc(grace_s=0)
    assert path.is_file()

    library.remove([both(homes)])
    library.gc(grace_s=0)

    assert not path.exists()
