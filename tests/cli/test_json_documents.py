"""What scripts rely on: the document of every command is of its documented type and as its golden file says.

python -m pytest tests/cli/test_json_documents.py --update-goldens
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from pydantic import TypeAdapter, ValidationError

from adapterhub.cli import BELOW_HELP, cli, documents
from tests.cli.test_cli import leaves
from tests.support.command_line import Adapt
from tests.support.json_world import ERROR, steady, world
from tests.support.json_world import documents as say_everything
from tests.support.real_base import smollm2_base

ROOT = Path(__file__).resolve().parent.parent.parent
GOLDENS = Path(__file__).resolve().parent.parent / "goldens" / "json"
TYPES = {name: kind for chapter in documents.CHAPTERS.values() for name, kind in chapter.items()}
OWN_TEST = {"demo"}
"""Documents that need a real model."""


def problems(document: Any, kind: Any) -> list[str]:
    """Missing, unknown and wrong fields, each with its place."""
    try:
        TypeAdapter(kind).validate_python(document, strict=True, extra="forbid")
    except ValidationError as error:
        return [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    return []


def golden(name: str) -> Path:
    return GOLDENS / f"{name}.json"


def text_of(document: Any) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def compare(said: dict[str, Any], *, update: bool) -> list[str]:
    """Golden files that say something else, each with the first line that differs; written anew on `update`."""
    different = []
    for name, document in said.items():
        text, path = text_of(document), golden(name)
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if text != old and update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif text != old:
            lines = zip(text.splitlines(), [*old.splitlines(), *[""] * len(text)], strict=False)
            number, (new, was) = next((n, pair) for n, pair in enumerate(lines, 1) if pair[0] != pair[1])
            different.append(f"{path.name}, line {number}: {new.strip()}   golden: {was.strip()}")
    return different


@pytest.mark.slow
def test_documents_are_of_their_types_and_as_the_golden_files_say(tmp_path, online, request):
    with world(tmp_path) as made:
        said = say_everything(made)
        wrong = [f"{name}: {p}" for name, document in said.items() for p in problems(document, TYPES[name])]
        different = compare(
            {name: made.steady(name) for name in said},
            update=request.config.getoption("--update-goldens"),
        )

    assert wrong == []
    assert different == []
    assert set(said) == set(TYPES) - OWN_TEST


@pytest.mark.slow
def test_the_demo_answers_in_its_document(tmp_path, monkeypatch, request):
    from adapterhub.cli.start import demo

    folder = tmp_path / "demo" / "models"
    folder.mkdir(parents=True)
    (folder / "smollm2-135m-instruct").symlink_to(smollm2_base())
    monkeypatch.setattr(demo, "MAX_NEW_TOKENS", 1)  # what it answers is for another test

    document = Adapt(tmp_path).json("demo", "--root", tmp_path / "demo")

    told = steady(document, {str(tmp_path): "<folder>"})
    assert problems(document, TYPES["demo"]) == []
    assert compare({"demo": told}, update=request.config.getoption("--update-goldens")) == []


def test_every_command_has_a_golden_file_and_every_golden_file_a_type():
    commands = {"-".join(words) for words in leaves(cli)} | {*BELOW_HELP}
    files = {path.stem for path in GOLDENS.glob("*.json")}

    assert {name for name in commands if not golden(name).exists()} == set()
    assert files == set(TYPES)
    assert {name.partition(".")[0] for name in files} == commands | {ERROR}


REMOTE = {
    "name": "a",
    "url": "b",
    "namespaces": [],
    "default": True,
    "signatures": None,
    "token": False,
    "witness": None,
}


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"name": 1}, "name: Input should be a valid string"),
        ({"url": None}, "url: Input should be a valid string"),
        ({"namespaces": ["a", 2]}, "namespaces.1: Input should be a valid string"),
        ({"default": 0}, "default: Input should be a valid boolean"),
        ({"signatures": 3}, "signatures: Input should be a valid string"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
    ],
)
def test_a_document_of_another_shape_is_told(document, problem):
    assert problems(REMOTE, TYPES["remote-add"]) == []
    assert problems(REMOTE | document, TYPES["remote-add"]) == [problem]


def test_a_missing_field_is_told_unless_it_may_be_missing():
    finding = dict.fromkeys(["code", "severity", "where", "message", "expected"], "")
    error = {"error": {"type": "NotFound", "message": "no", "exit_code": 10}}

    assert problems(finding, documents.Finding) == ["hint: Field required"]
    assert problems(error, documents.Failure) == []


def test_the_published_schemas_know_a_right_document_from_a_wrong_one():
    schemas = json.loads((ROOT / "docs" / "reference" / "schemas" / "documents.json").read_text(encoding="utf-8"))
    remote = jsonschema_rs.validator_for(schemas | {"$ref": "#/properties/remote-add"})

    assert jsonschema_rs.meta.is_valid(schemas)
    assert schemas["properties"].keys() == TYPES.keys()
    assert remote.is_valid(REMOTE)
    assert remote.is_valid(REMOTE | {"added in a later release": 1})
    assert not remote.is_valid(REMOTE | {"name": 1})
    assert not remote.is_valid({"name": "a"})


def test_commands_do_not_import_the_types(tmp_path):
    code = (
        "import sys; from adapterhub.cli import _run; sys.argv = ['adapt', 'list', '--json']; _run();"
        "print([n for n in sys.modules if n.startswith('adapterhub.cli.documents')], file=sys.stderr)"
    )
    environ = os.environ | {"ADAPTERHUB_HOME": str(tmp_path)}

    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True, env=environ)

    assert done.stderr.strip() == "[]"
