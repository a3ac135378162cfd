"""What the command's options refuse, the functions of the Python interface refuse, too: before they do anything."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

import adapterhub as ah
from adapterhub.core import errors
from adapterhub.core.arguments import ByName
from adapterhub.core.errors import AdapterHubError, SignatureRefused, SpecError, UsageProblem
from adapterhub.core.specs import parse_name
from adapterhub.formats.manifest import MANIFEST_FILE
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library as LocalLibrary
from adapterhub.trust.signing.trust import EffectivePolicy
from tests.support.command_line import Adapt
from tests.support.docs_sandbox import make_sandbox
from tests.support.public_functions import POOL, Function, accepts, functions

FUNCTIONS = tuple(functions())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outer") / "deep" / "world"
    folder.mkdir(parents=True)
    make_sandbox(folder, filled=True)
    return folder


@pytest.fixture
def world(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    monkeypatch.setenv("ADAPTERHUB_HOME", "home")
    return made


@pytest.mark.parametrize("name", sorted({function.module for function in FUNCTIONS}))
def test_what_a_module_imports_for_its_types_only_is_a_class_or_is_not_asked_for(name: str) -> None:
    """An alias or a literal of that kind would be taken for the name of a class."""
    module = importlib.import_module(name)
    kinds = [kind for function in FUNCTIONS if function.module == name for kind in function.kinds.values()]
    typing_only = {
        alias.asname or alias.name: (node.module, alias.name)
        for block in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }

    for asked in {each for kind in kinds for each in names_in(kind)} & typing_only.keys():
        found = getattr(importlib.import_module(typing_only[asked][0]), typing_only[asked][1])
        assert isinstance(found, type), asked


def names_in(kind: Any) -> set[str]:
    """The names that stand for classes in a type."""
    inside = {name for each in get_args(kind) if not isinstance(each, str) for name in names_in(each)}
    return inside | ({kind.__name__} if isinstance(kind, ByName) else set())


def wrong_calls(function: Function) -> Iterator[tuple[str, Any]]:
    return (
        (p.name, value)
        for p, value in itertools.product(function.parameters, POOL)
        if not accepts(function.kinds[p.name], value)
    )


def test_every_public_function_is_found() -> None:
    names = {function.name for function in FUNCTIONS}

    assert {
        "attach",
        "Library.install",
        "Project.sync",
        "AdapterBank.load",
        "AddOnSave.__init__",
        "KnownRemotes.add",
    } <= names
    assert len(names) > 120


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
def test_a_wrong_argument_is_refused_before_anything_is_done(function: Function, world: Path) -> None:
    before = contents(world)
    passed = []

    for name, value in wrong_calls(function):
        args, kwargs = function.with_one(name, value)
        try:
            function.call(*args, **kwargs)
        except AdapterHubError:
            continue
        except Exception as error:  # noqa: BLE001 - each counts
            passed.append(f"{name}={value!r}: {type(error).__name__}: {error}")
        else:
            passed.append(f"{name}={value!r} was accepted")

    assert passed == []
    assert contents(world) == before


# ---------------------------------------------------------------- of the right type, and hostile
HOSTILE = ("../../../../outside/x", "/etc/outside", "..", "~nobody-here/x", "", "x" * 70_000, "a\nb", "\ud800", "-x")
WITH_SERVERS = {"remote", "token", "origin", "target", "url"}


def hostile_calls(function: Function) -> Iterator[tuple[str, str]]:
    return (
        (p.name, text)
        for p, text in itertools.product(function.parameters, HOSTILE)
        if accepts(function.kinds[p.name], text)
        and not (p.name == "output" and text.startswith("/"))  # the user may write a list of adapters anywhere
    )


@pytest.mark.parametrize(
    "name",
    sorted(
        {f.name.partition(".")[2] for f in FUNCTIONS if f.name.startswith("Library.")} - {"__init__", "ui", "default"}
    ),
)
def test_a_hostile_text_ends_in_our_error_or_inside_the_library(name: str, world: Path) -> None:
    library = ah.Library("home")
    function = next(f for f in FUNCTIONS if f.name == f"Library.{name}")
    outer = world.parent.parent

    def outside() -> set[Path]:
        return {path for path in outer.rglob("*") if not path.is_relative_to(world)}

    before = outside()
    failed = []
    seen: set[type[AdapterHubError]] = set()

    for parameter, text in hostile_calls(function):
        args, kwargs = function.with_one(parameter, text)
        kwargs |= {"offline": True} if "offline" in function.kinds and parameter not in WITH_SERVERS else {}
        try:
            getattr(library, name)(*args, **kwargs)
        except AdapterHubError as error:
            seen.add(type(error))
        except Exception as error:  # noqa: BLE001 - each counts
            failed.append(f"{parameter}={text[:30]!r}: {type(error).__name__}: {str(error)[:100]}")

    assert failed == []
    assert outside() == before
    assert {kind.__name__ for kind in seen if not issubclass(kind, (UsageProblem, *documented(name)))} == set()
    assert not Path("/etc/outside").exists()


def documented(name: str) -> tuple[type[AdapterHubError], ...]:
    """The errors that the docstring of a function names, with those of the function that it refers to."""
    text = inspect.getdoc(getattr(ah.Library, name)) or ""
    words = re.findall(r"\b[A-Z]\w+", text.partition("Raises:")[2])
    found = [getattr(errors, word) for word in words if isinstance(getattr(errors, word, None), type)]
    other = re.search(r"errors are those of `(?:Library\.)?(\w+)`", text)
    return (*found, *(documented(other.group(1)) if other else ()))


# ---------------------------------------------------------------- policies
@pytest.mark.parametrize("typed", ["Require", "requier", "REQUIRE", "", " require", 5, True, ["require"]])
def test_a_mistyped_policy_does_not_let_an_unsigned_build_in(typed: Any, world: Path, tmp_path: Path) -> None:
    library = ah.Library(tmp_path / "home")
    library.add_base(world / "models" / "base-7b", "base-7b")
    library.keys.policy("require")

    with pytest.raises(UsageProblem, match="signatures"):
        library.install("summarize@base-7b", places=world / "published", signatures=typed)
    with pytest.raises(UsageProblem, match="signatures"):
        EffectivePolicy.of(typed)

    assert len(library) == 0


@pytest.mark.parametrize("stored", ["maybe", "Require", "", 5, None])
def test_a_stored_policy_that_is_none_counts_as_require_and_can_be_mended(
    stored: Any, world: Path, tmp_path: Path
) -> None:
    adapt = Adapt(tmp_path)
    library = ah.Library(tmp_path / "home")
    library.add_base(world / "models" / "base-7b", "base-7b")
    library.keys.policy("require")
    file = tmp_path / "home" / "trusted_keys.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"policies": {"*": stored}}))

    with pytest.raises(SignatureRefused):
        library.install("summarize@base-7b", places=world / "published")
    assert library.list_bases()[0].alias == "base-7b"
    (line,) = [line for line in library.doctor(offline=True) if line.what == "settings"]
    assert (line.state, "policies.*" in line.fact, "adapt key policy" in line.hint) == ("failed", True, True)

    adapt.ok("key", "policy", "off")

    assert [line.state for line in library.doctor(offline=True) if line.what == "settings"] == ["ok"]
    assert library.install("summarize@base-7b", places=world / "published")[0].build.full_name == "summarize"


def test_a_stored_policy_of_a_remote_that_is_none_counts_as_require_and_can_be_mended(tmp_path: Path) -> None:
    library = ah.Library(tmp_path / "home")
    library.remotes.add("ours", "https://adapters.example.org", signatures="warn")
    file = tmp_path / "home" / "remotes.json"
    file.write_text(file.read_text().replace('"warn"', '"maybe"'))

    assert library.remotes.get("ours").signatures == "require"
    assert [line.state for line in library.doctor(offline=True) if line.what == "settings"] == ["failed"]

    Adapt(tmp_path).ok("key", "policy", "off", "--remote", "ours")

    assert library.remotes.get("ours").signatures == "off"
    assert [line.state for line in library.doctor(offline=True) if line.what == "settings"] == ["ok"]


def test_stored_defaults_for_tests_that_cannot_be_meant_are_named_and_can_be_mended(tmp_path: Path) -> None:
    library = ah.Library(tmp_path / "home")
    library.contracts.policy("require")
    file = tmp_path / "home" / "config.json"
    file.write_text(file.read_text().replace('"require"', '"maybe"'))

    with pytest.raises(AdapterHubError):
        library.contracts.policy()
    (line,) = [line for line in library.doctor(offline=True) if line.what == "settings"]
    assert (line.state, "maybe" in line.fact) == ("failed", True)

    assert "--reset" in line.hint

    Adapt(tmp_path).ok("contract", "policy", "require", "--reset")

    assert library.contracts.policy().policy == "require"


# ---------------------------------------------------------------- one text where several are expected
def test_one_text_where_several_are_expected_is_one_item(world: Path, tmp_path: Path) -> None:
    library = ah.Library(tmp_path / "home")
    library.keys.new("ana", "a password")

    assert library.keys.trust("ana", scope="acme/*", remotes="hub", accept="old/*").adapters == ("acme/*",)
    assert library.keys.all()[-1].to_json()["remotes"] == ["hub"]
    assert library.keys.all()[-1].to_json()["accepts"] == ["old/*"]
    assert library.remotes.add("ours", "https://adapters.example.org", namespaces="acme").namespaces == ("acme",)
    added = library.add(world / "out" / "tables", examples="What is due?", guess_base=False)
    assert added.build.manifest.examples == ("What is due?",)


# ---------------------------------------------------------------- names that lead out of the library
@pytest.mark.parametrize("namespace", ["../../../../outside/x", "..", "a/b", "/tmp/x", "a\\b", "", "a--b"])
def test_no_name_leads_out_of_the_library(namespace: str, world: Path, tmp_path: Path) -> None:
    library = ah.Library(tmp_path / "deep" / "home")
    local = LocalLibrary(tmp_path / "deep" / "home")
    about = Description(name=parse_name("tables"), version="1.0.0")

    for add in (
        lambda: library.add(world / "out" / "tables", namespace=namespace),
        lambda: library.add(world / "out" / "tables", about, namespace=namespace),
        lambda: local.add(world / "out" / "tables", about, namespace=namespace or ".."),
        lambda: ah.callbacks.AddOnSave(f"{namespace}/tables", library=library),
    ):
        with pytest.raises(SpecError):
            add()

    assert [path for path in tmp_path.rglob("*") if path.name == MANIFEST_FILE] == []
    assert len(library) == 0
