"""A library by another path: through a link, a relative path or `..`, moved, or copied. All commands work at once."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

SOME_FAILED = 3


@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    adapt = Adapt(tmp_path)
    make_base(tmp_path / "base")
    adapt.ok("base", "add", "base", "--as", "base-7b")
    for seed, name in enumerate(("legal-qa", "tables")):
        make_adapter(tmp_path / "made" / name, seed=seed)
        adapt.ok("add", f"made/{name}", "--name", name, "--base", "base-7b")
    return adapt


def facts_of_index(adapt: Adapt, root: str) -> tuple[str, str]:
    done = adapt("doctor", "--offline", "--json", "--root", root)
    [line] = [line for line in json.loads(done.stdout) if line["check"] == "index"]
    return line["state"], line["fact"]


def is_well(adapt: Adapt, root: str) -> bool:
    """Whether each command that reads the index is content and shows folders below `root`."""
    done = adapt("verify", "--all", "--root", root)
    paths = [row["path"] for row in adapt.json("list", "--root", root)]
    paths += [one["path"] for one in adapt.json("list", "--format", "json", "--root", root)]
    adapt.ok("tree", "--library", "--root", root)
    return (
        done.exit_code == 0
        and all((adapt.folder / path).is_dir() for path in paths)
        and facts_of_index(adapt, root) == ("ok", "2 builds")
        and "nothing is damaged" in adapt.ok("doctor", "--repair", "--dry-run", "--offline", "--root", root)
    )


@pytest.mark.parametrize("root", ["home", "./home", "made/../home", "link", "link/../home", "around/home", "home/"])
def test_a_library_is_well_by_whatever_path_it_is_named(adapt, tmp_path, root):
    (tmp_path / "link").symlink_to("home")
    (tmp_path / "around").symlink_to(tmp_path)

    assert is_well(adapt, root)
    assert is_well(adapt, str(tmp_path / root))


def test_an_adapter_that_is_added_by_one_path_is_well_by_another(adapt, tmp_path):
    (tmp_path / "link").symlink_to("home")
    adapt.ok("remove", "tables", "--yes", "--root", "made/../home")
    adapt.ok("add", "made/tables", "--name", "tables", "--base", "base-7b", "--root", "link")

    assert is_well(adapt, "home")


@pytest.mark.parametrize("command", ["cp", "mv"])
def test_a_copied_or_moved_library_works_at_once(adapt, tmp_path, command):
    subprocess.run([command, *(["-a"] if command == "cp" else []), "home", "other"], cwd=tmp_path, check=True)
    before = (tmp_path / "other" / "index.db").stat().st_ino

    assert is_well(adapt, "other")
    shown = [row["path"] for row in adapt.json("list", "--root", str(tmp_path / "other"))]
    assert all(Path(path).is_relative_to(tmp_path / "other") for path in shown)
    assert (tmp_path / "other" / "index.db").stat().st_ino == before


def test_a_copied_library_names_nothing_of_the_first(adapt, tmp_path):
    shutil.copytree(tmp_path / "home", tmp_path / "other", symlinks=True)
    shutil.rmtree(tmp_path / "home")

    assert is_well(adapt, "other")
    with closing(sqlite3.connect(tmp_path / "other" / "index.db")) as index:
        folders = [folder for (folder,) in index.execute("SELECT folder FROM builds")]
    assert [folder.partition("/")[0] for folder in folders] == ["adapters", "adapters"]


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE builds SET folder = '/elsewhere' WHERE name = 'tables'",
        "UPDATE builds SET description = 'other' WHERE name = 'tables'",
        "UPDATE bases SET alias = 'other'",
    ],
)
def test_doctor_sees_in_the_index_what_verify_sees(adapt, tmp_path, sql):
    with closing(sqlite3.connect(tmp_path / "home" / "index.db")) as index, index:
        index.execute(sql)

    assert "E_INDEX" in adapt("verify", "--all").stdout
    assert adapt("doctor", "--offline").exit_code == SOME_FAILED
    state, fact = facts_of_index(adapt, "home")
    assert state == "failed"
    assert "wrong" in fact
    adapt.ok("doctor", "--offline", "--rebuild-index")
    assert is_well(adapt, "home")
