"""The published schemas of files: what `adapt` writes and reads fits them, what it refuses does not."""

import json
import re
from pathlib import Path

import jsonschema_rs
import pytest

import adapterhub
from adapterhub.core.errors import Malformed
from adapterhub.formats.documents import toml_of
from adapterhub.formats.manifest import Manifest
from adapterhub.projects.file import parse_project
from adapterhub.weights.recipes.toml import parse_recipe
from tests.support.docs_sandbox import make_sandbox

DOCS = Path(__file__).resolve().parent.parent / "docs"


def schema(name):
    return jsonschema_rs.validator_for(json.loads((DOCS / "reference" / "schemas" / f"{name}.json").read_text()))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A locked project with an adapter, a group and a merge."""
    folder = tmp_path_factory.mktemp("schemas")
    make_sandbox(folder, filled=True)
    library = adapterhub.Library(folder / "home")
    project = adapterhub.Project.create(folder / "project", base="base-7b", library=library)
    (project.folder / "adapters.toml").write_text(
        '[project]\nbase = "base-7b"\n[remotes.team]\npath = "../team"\n[adapters]\nlegal-qa = ">=1"\n'
        '[groups.eval]\nsummarize = { spec = "~=1.0", rank = "-4" }\n[merges.both]\nmethod = "svd"\noptions = { rank = 4 }\n'
        'inputs = [{ adapter = "legal-qa", weight = 0.7 }, { adapter = "summarize", weight = 0.3 }]\n'
    )
    project.lock()
    return project


def of_page(page, pattern):
    """The TOML of the first block of a reference page that matches."""
    blocks = re.findall(r"```(?:toml|sh)\n(.*?)```", (DOCS / "reference" / page).read_text(encoding="utf-8"), re.DOTALL)
    return next(found[1] for block in blocks if (found := re.search(pattern, block, re.DOTALL)))


def test_what_adapt_writes_fits_the_schemas(project):
    lock = toml_of((project.folder / "adapters.lock").read_bytes())
    [installed] = [one for one in project.library if one.full_name == "legal-qa"]

    assert {"adapter", "merge", "base"} <= lock.keys()
    schema("lock").validate(lock)
    schema("project").validate(toml_of((project.folder / "adapters.toml").read_bytes()))
    schema("manifest").validate(json.loads((installed.folder / "adapterhub.json").read_bytes()))


def test_the_examples_of_the_reference_fit_the_schemas():
    schema("project").validate(toml_of(of_page("files.md", r"(\[project\]\nbase.*)").encode()))
    schema("recipe").validate(toml_of(of_page("files.md", r"'END'\n(.*?)\nEND").encode()))


@pytest.mark.parametrize(
    ("name", "document", "read"),
    [
        ("project", "[policy]\nmax-rang = 8\n", lambda raw: parse_project(raw, Path(), "here")),
        ("project", '[adapters]\na = { spec = "a", rank = 0 }\n', lambda raw: parse_project(raw, Path(), "here")),
        ("project", '[merges.m]\nmethod = "none"\ninputs = []\n', lambda raw: parse_project(raw, Path(), "here")),
        ("recipe", 'format = 2\ninputs = [{ spec = "a", weight = 1 }]\n', lambda raw: parse_recipe(raw, "here")),
        ("recipe", "format = 1\ninputs = [{ weight = 1 }]\n", lambda raw: parse_recipe(raw, "here")),
    ],
)  # fmt: skip
def test_what_a_reader_refuses_for_its_shape_the_schema_refuses(name, document, read):
    raw = document.encode()

    assert not schema(name).is_valid(toml_of(raw))
    with pytest.raises(Malformed):
        read(raw)


@pytest.mark.parametrize("change", [{"schema": "adapterhub/9"}, {"files": []}, {"method": "LORA"}, {"rank": "4"}])
def test_a_manifest_of_another_shape_is_refused_by_both(project, change):
    [installed] = [one for one in project.library if one.full_name == "legal-qa"]
    document = json.loads((installed.folder / "adapterhub.json").read_bytes()) | change

    assert not schema("manifest").is_valid(document)
    with pytest.raises(Malformed):
        Manifest.parse(json.dumps(document).encode())
