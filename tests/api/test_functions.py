"""Python is the first face: each command calls public functions, and they are there and shown."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import adapterhub
from tests import measure_house
from tests.support.docs_sandbox import make_sandbox

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "reference" / "python.md"


def owner_of(method: str) -> str:
    """The class that has a method; most are the library's, also where a project has one of that name."""
    return "Library" if "." in method or hasattr(adapterhub.Library, method) else "Project"


METHODS = {one.words: one.methods for one in measure_house.commands() if one.is_a_verb}
NAMES = sorted({f"{owner_of(name)}.{name}" for names in METHODS.values() for name in names})


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """`Library` and `Project` as objects, whose attributes the functions are."""
    folder = tmp_path_factory.mktemp("faces")
    make_sandbox(folder, filled=True)
    library = adapterhub.Library(folder / "home")
    return {"Library": library, "Project": adapterhub.Project.create(folder / "project", library=library)}


def found_in(faces: dict[str, Any], name: str) -> Any:
    """The public function of that name; a property of the class is the property itself."""
    first, *rest = name.split(".")
    assert first in adapterhub.__all__
    value = faces[first]
    for part in rest:
        assert not part.startswith("_")
        declared = inspect.getattr_static(type(value), part, None)
        value = declared if isinstance(declared, property) and part == rest[-1] else getattr(value, part)
    return value


def test_every_command_only_calls_methods() -> None:
    assert [words for words, names in METHODS.items() if not names] == []


def test_the_functions_are_public_and_say_what_they_do(faces: dict[str, Any]) -> None:
    assert [name for name in NAMES if not inspect.getdoc(found_in(faces, name))] == []


def test_the_reference_has_an_example_of_each() -> None:
    page = PAGE.read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))

    def is_shown(name: str) -> bool:
        first, dot, rest = name.partition(".")
        owner = {"Library": "library", "Project": "(project|Project)"}[first]
        return re.search(rf"\b{owner}{re.escape(dot + rest)}\b", blocks) is not None

    assert [name for name in NAMES if not is_shown(name)] == []
