"""The bill of materials: what it lists of an adapter, a merge, a project and a library, valid by CycloneDX's own schema."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

import adapterhub
from adapterhub.core.specs import parse_name
from adapterhub.formats.manifest import WEIGHTS_FILE, Parent
from adapterhub.library.installed import Added
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter

CARD = """\
---
license: apache-2.0
datasets: [acme/contracts, squad]
---
Answers on contracts.
"""

SBOM = ("export", "--format", "cyclonedx")


@pytest.fixture
def home(tmp_path: Path) -> Adapt:
    return Adapt(tmp_path)


@pytest.fixture
def legal(library: Library, base: Any, tmp_path: Path) -> Added:
    folder = make_adapter(tmp_path / "legal", rank=4)
    (folder / "README.md").write_text(CARD)
    (base.path / "README.md").write_text("---\nlicense: llama3.1\n---\n")
    about = Description(name=parse_name("legal-qa"), version="1.0.0", task="legal", metrics={"error": {"worst": 0.25}})
    return library.add(folder, about, base=base, namespace="acme")


def of_kind(bill: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
    return [one for one in bill["components"] if one["bom-ref"].startswith(prefix)]


def ensure_valid(bill: dict[str, Any]) -> None:
    """Check against the schemas that CycloneDX's own library carries; without it the test skips."""
    found = importlib.util.find_spec("cyclonedx")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs CycloneDX's schemas: `pip install cyclonedx-python-lib`")
    folder = Path(found.submodule_search_locations[0]) / "schema" / "_res"
    schemas = {name: json.loads(next(folder.glob(f"{name}.SNAPSHOT.schema.json")).read_text()) for name in SCHEMAS}
    resources = [
        (schemas[name]["$id"].rpartition("/")[0] + f"/{file}", schemas[name]) for name, file in SCHEMAS.items()
    ]
    validator = jsonschema_rs.Draft7Validator(
        schemas["bom-1.6"], registry=jsonschema_rs.Registry(resources), validate_formats=True
    )
    assert [error.message for error in validator.iter_errors(bill)] == []


SCHEMAS = {
    "bom-1.6": "bom-1.6.SNAPSHOT.schema.json",
    "spdx": "spdx.SNAPSHOT.schema.json",
    "jsf-0.82": "jsf-0.82.SNAPSHOT.schema.json",
}


def test_a_bill_lists_the_adapter_its_base_and_its_data_sets(home: Adapt, legal: Added) -> None:
    bill = home.json(*SBOM, "acme/legal-qa@base-7b")

    subject, manifest = bill["metadata"]["component"], legal.build.manifest
    (base,) = of_kind(bill, "base:")
    assert (subject["type"], subject["group"], subject["name"]) == ("machine-learning-model", "acme", "legal-qa")
    assert subject["bom-ref"] == manifest.digest
    assert f"sha256:{subject['hashes'][0]['content']}" == manifest.file(WEIGHTS_FILE).sha256
    assert subject["licenses"] == [{"expression": "Apache-2.0", "acknowledgement": "declared"}]
    assert base["licenses"][0]["expression"] == "LicenseRef-Llama-3.1"
    assert [one["name"] for one in of_kind(bill, "dataset:")] == ["acme/contracts", "squad"]
    card = subject["modelCard"]
    assert card["modelParameters"]["task"] == "legal"
    assert card["modelParameters"]["datasets"] == [{"ref": "dataset:acme/contracts"}, {"ref": "dataset:squad"}]
    assert card["quantitativeAnalysis"]["performanceMetrics"] == [{"type": "error.worst", "value": "0.25"}]
    assert {
        "ref": manifest.digest,
        "dependsOn": sorted([base["bom-ref"], "dataset:acme/contracts", "dataset:squad"]),
    } in (bill["dependencies"])


def merged(library: Library, base: Any, tmp_path: Path, *parents: Added) -> Added:
    told = tuple(Parent(digest=one.build.manifest.digest, spec=one.build.spec, weight=0.5) for one in parents)
    gone = Parent(digest=None, spec="gone", weight=0.25)
    recipe = {"method": "svd"}
    about = Description(name=parse_name("both"), version="1.0.0", parents=(*told, gone), recipe=recipe)
    return library.add(make_adapter(tmp_path / "both"), about, base=base)


def test_a_merge_depends_on_its_parents_and_says_how_it_was_made(home, legal, add, library, base, tmp_path) -> None:
    other = add("summarize")
    both = merged(library, base, tmp_path, legal, other)

    bill = home.json(*SBOM, "both")

    subject = bill["metadata"]["component"]
    uses = next(one["dependsOn"] for one in bill["dependencies"] if one["ref"] == both.build.manifest.digest)
    assert [one["name"] for one in subject["pedigree"]["ancestors"]] == [legal.build.spec, other.build.spec, "gone"]
    assert subject["pedigree"]["notes"].startswith(f"merged from by svd: {legal.build.spec} at 0.5, ")
    assert {legal.build.manifest.digest, other.build.manifest.digest, "parent:gone"} < set(uses)
    assert [one["name"] for one in of_kind(bill, "dataset:")] == ["acme/contracts", "squad"]


def test_a_library_and_a_project_are_bills_of_all_they_hold(home, legal, add, tmp_path) -> None:
    add("summarize")
    project = tmp_path / "project"
    home.ok("init", project, "--base", "base-7b")
    (project / "adapters.toml").write_text('[project]\nbase = "base-7b"\n[adapters]\nsummarize = "*"\n')
    home.ok("lock", "--project", project)

    whole, locked = home.json(*SBOM), home.json(*SBOM, "--project", project)
    assert adapterhub.Project(project, library=home.library.root).sbom()["components"] == locked["components"]
    home.ok("remove", "summarize", "--yes")
    gone = home.json(*SBOM, "--project", project)

    names = [one["name"] for one in of_kind(whole, "sha256:")]
    assert names == ["legal-qa", "summarize"]
    assert next(one for one in whole["dependencies"] if one["ref"] == "adapters")["dependsOn"] == sorted(
        one["bom-ref"] for one in of_kind(whole, "sha256:")
    )
    assert locked["metadata"]["component"]["name"] == gone["metadata"]["component"]["name"] == "summarize"
    assert {"name": "adapterhub:installed", "value": "false"} in gone["metadata"]["component"]["properties"]
    assert "files" not in gone["metadata"]["component"]


def test_the_same_content_has_the_same_serial_number(home: Adapt, legal: Added, library: Library) -> None:
    first, again = (home.json(*SBOM, "acme/legal-qa")["serialNumber"] for _ in range(2))
    opened = adapterhub.Library(library.root)

    assert first == again == opened.export("acme/legal-qa", format="cyclonedx").document["serialNumber"]
    home.ok(*SBOM, "acme/legal-qa", "-o", "./bill.json")
    assert json.loads((home.folder / "bill.json").read_text())["serialNumber"] == first
    assert "name no adapter" in home.fails(2, *SBOM, "acme/legal-qa", "--library")
    assert "only `--format cyclonedx`" in home.fails(
        2, "export", "legal-qa", "acme/legal-qa", "--format", "peft", "-o", "x"
    )


def test_every_bill_is_valid_by_the_official_schema(home, legal, add, library, base, tmp_path) -> None:
    add("plain", known=False)
    merged(library, base, tmp_path, legal, add("summarize"))

    for asked in ([], ["acme/legal-qa"], ["both"], ["plain"]):
        ensure_valid(home.json(*SBOM, *asked))
    with pytest.raises(AssertionError):
        ensure_valid(home.json(*SBOM) | {"specVersion": 7})
