"""A path where nothing is: every verb that takes one says so by exit code 10, with the nearest path."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.core.disk.files import nearest
from tests.support.command_line import Adapt
from tests.support.docs_sandbox import make_sandbox

NOT_FOUND = 10
WRONG, RIGHT = "./out/legal-q", "./out/legal-qa"
CASES = [
    ("add", WRONG), ("add", "out/legal-q"), ("verify", WRONG), ("verify", WRONG, "--engine", "vllm@0.32"),
    ("audit", WRONG, "--offline"), ("compare", "--diff", "legal-qa", WRONG), ("compare", "legal-qa", WRONG),
    ("merge", "legal-qa", WRONG, "-o", "./x"), ("resize", WRONG, "--rank", "2", "-o", "./x"),
    ("run", WRONG, "hi", "--base", "base-7b"), ("export", WRONG, "--format", "peft", "-o", "e"),
    ("compare", WRONG), ("identify", WRONG), ("test", WRONG), ("fuse", WRONG, "-o", "f"),
]  # fmt: skip
BASES = [
    ("base", "add"), ("base", "compare", "base-7b"), ("base", "show"),
    ("extract", "--base", "base-7b", "--rank", "2", "-o", "./x"), ("search", "x", "--base"),
]  # fmt: skip
ROWS, RECIPE = "./data/row.jsonl", "./data/recip.toml"
FILES = [
    ("route", "--file", "./data/rout.json", "hi"), ("test", "legal-qa", "--tests", "./data/test.jsonl"),
    ("run", "legal-qa", "--base", "base-7b", "--batch", ROWS), ("merge", "--recipe", RECIPE, "-o", "./x"),
    ("contract", "record", "legal-qa", "--examples", ROWS),
    ("merge", "legal-qa", "legal-qa", "--tune", ROWS), ("search", "--try", ROWS, "--base", "base-7b"),
    ("serve", "--route", "./data/rout.json"),
]  # fmt: skip
PROJECTS = [("lock", "--project"), ("sync", "--project"), ("remote", "trust")]
FROM = [("install", "summarize"), ("upgrade", "summarize"), ("doctor", "--repair")]


@pytest.fixture(scope="module")
def adapt(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    folder = tmp_path_factory.mktemp("paths")
    make_sandbox(folder, filled=True)
    (folder / "data").mkdir()
    for name in ("route.json", "tests.jsonl", "rows.jsonl", "recipe.toml"):
        (folder / "data" / name).touch()
    return Adapt(folder)


@pytest.mark.parametrize("command", CASES, ids=lambda one: one[0])
def test_a_folder_of_an_adapter(adapt: Adapt, command: tuple[str, ...]) -> None:
    said = adapt.fails(NOT_FOUND, *command)

    assert "no such folder" in said
    assert f"did you mean `{RIGHT}`?" in said


@pytest.mark.parametrize("command", BASES, ids=" ".join)
def test_a_folder_of_a_base(adapt: Adapt, command: tuple[str, ...]) -> None:
    said = adapt.fails(NOT_FOUND, *command, "./models/base-7")

    assert "no such folder" in said
    assert "models/base-7b`?" in said


@pytest.mark.parametrize("command", FROM, ids=lambda one: one[0])
def test_a_place_of_builds(adapt: Adapt, command: tuple[str, ...]) -> None:
    assert "did you mean `./published`?" in adapt.fails(NOT_FOUND, *command, "--from", "./publishe")


def test_a_file(adapt: Adapt) -> None:
    said = adapt.fails(NOT_FOUND, "add", "loras/in.safetensors")

    assert "no such file" in said
    assert "did you mean `./loras/ink.safetensors`?" in said
    assert "no such file" in adapt.fails(NOT_FOUND, "install", "-r", "./nope.txt")
    assert "no such file" in adapt.fails(NOT_FOUND, "key", "trust", "x", "./nope.pub")


@pytest.mark.parametrize("command", FILES, ids=" ".join)
def test_a_file_that_an_option_names(adapt: Adapt, command: tuple[str, ...]) -> None:
    [wrong] = [word for word in command if word.startswith("./data/")]
    [right] = [path.name for path in (adapt.folder / "data").iterdir() if path.name.startswith(Path(wrong).stem)]

    said = adapt.fails(NOT_FOUND, *command)

    assert f"no such file: `{wrong.removeprefix('./')}`" in said
    assert f"did you mean `./data/{right}`?" in said


@pytest.mark.parametrize("command", PROJECTS, ids=" ".join)
def test_a_folder_of_a_project(adapt: Adapt, command: tuple[str, ...]) -> None:
    said = adapt.fails(NOT_FOUND, *command, "./dat")

    assert "no such folder" in said
    assert "did you mean `./data`?" in said


def test_of_several_folders_the_others_are_added(adapt: Adapt) -> None:
    done = adapt("add", "out/legal-q", "out/tables")

    assert done.exit_code == 3
    assert "no such folder" in done.stderr
    assert "tables" in done.stdout


def test_the_nearest_path_differs_in_one_part_and_is_there(tmp_path: Path) -> None:
    (tmp_path / "one" / "two").mkdir(parents=True)

    assert nearest(tmp_path / "onee" / "two") == str(tmp_path / "one" / "two")
    assert nearest(tmp_path / "onee" / "other") == str(tmp_path / "one")
    assert nearest(tmp_path / "quite" / "different") == ""
    assert nearest(tmp_path / "one" / "twoo" / "x") == str(tmp_path / "one" / "two")
