"""A spec that fits several ranks of one version: which one is taken, what is said, and how `remove` asks."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

import adapterhub
from adapterhub.core.errors import AmbiguousSpec
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base


@pytest.fixture
def adapt(tmp_path) -> Adapt:
    make_base(tmp_path / "base", width=16)
    adapt = Adapt(tmp_path)
    adapt.ok("base", "add", "./base", "--as", "base-7b")
    for rank in (4, 8):
        make_adapter(tmp_path / "out" / f"r{rank}", rank=rank, seed=rank, width=16)
        adapt.ok("add", f"out/r{rank}", "--name", "qa", "--variant")
    make_adapter(tmp_path / "out" / "tables", width=16)
    adapt.ok("add", "out/tables")
    return adapt


def spec_of(adapt: Adapt, rank: int) -> str:
    [build] = [b for b in adapt.library.builds_named("qa") if b.manifest.rank == rank]
    return f"qa#{build.manifest.digest[:19]}"


def ranks(adapt: Adapt) -> list[int]:
    return sorted(b.manifest.rank for b in adapt.library.builds_named("qa"))


def test_the_highest_rank_is_taken_and_the_other_named_once_where_one_is_chosen(adapt):
    note = f"`qa` 1.0.0 has 2 builds that fit; took rank 8. The other is `{spec_of(adapt, 4)}` (rank 4)"
    for line in (
        "info qa --path",
        "info qa@base-7b --path",
        "info qa",
        "verify qa",
        "merge qa tables -o ./mix",
        "resize qa@base-7b --rank 2 -o ./small",
        "push qa --to ./published --dry-run",
        "export qa --format peft -o ./exported",
    ):
        done = adapt(*line.split())
        assert done.exit_code == 0, done.stderr
        assert done.stderr.splitlines().count(note) == 1, (line, done.stderr)
    for line in ("list", "search qa", "info qa --path --rank 4", "info tables --path", "info qa --path -q"):
        assert "builds that fit" not in adapt(*line.split()).stderr
    assert adapt.ok("info", spec_of(adapt, 4), "--path").endswith("1.0.0-r4\n")


def test_an_install_names_the_rank_that_it_left(adapt):
    adapt.ok("push", "qa", "--rank", "4", "--to", "./published")
    adapt.ok("push", "qa", "--rank", "8", "--to", "./published")

    done = Adapt(adapt.folder, "other")("install", "qa", "--from", "./published")

    assert f"took rank 8. The other is `{spec_of(adapt, 4)}` (rank 4)" in done.stderr
    other = Adapt(adapt.folder, "other")
    other.ok("install", spec_of(adapt, 4), "--from", "./published")
    assert ranks(other) == [4, 8]


def test_python_logs_the_choice(adapt, tmp_path, caplog):
    with caplog.at_level("INFO", "adapterhub"):
        adapterhub.Library(tmp_path / "home").info("qa", only="path")

    assert "took rank 8" in caplog.text


def test_without_a_terminal_remove_lists_all_and_removes_none(adapt):
    for command in ("remove", "uninstall"):
        said = adapt.fails(AmbiguousSpec.exit_code, command, "qa")
        assert "`qa` fits 2 builds of one version. Nothing was removed" in said
        assert "rank 4" in said
        assert "pass `--yes` to remove them all" in said
    assert ranks(adapt) == [4, 8]


def test_a_script_removes_all_of_them_or_the_one_that_it_names(adapt):
    adapt.ok("remove", spec_of(adapt, 8), "--yes")
    assert ranks(adapt) == [4]

    adapt.ok("add", "out/r8", "--name", "qa", "--variant")
    assert adapt.ok("remove", "qa", "--yes") == "removed qa 1.0.0 (rank 8), qa 1.0.0 (rank 4)\n"
    assert ranks(adapt) == []


def test_remove_takes_the_newest_version_alone(adapt):
    adapt.ok("add", "out/r4", "--name", "qa", "--version", "2.0")

    assert adapt.ok("remove", "qa", "--yes") == "removed qa 2.0 (rank 4)\n"
    assert ranks(adapt) == [4, 8]


def test_python_refuses_to_choose_what_to_remove(adapt, tmp_path):
    library = adapterhub.Library(tmp_path / "home")

    with pytest.raises(AmbiguousSpec) as refusal:
        library.remove("tables", "qa")
    assert len(library) == 3

    for spec, _ in refusal.value.choices[:1]:
        library.remove(spec)
    assert ranks(adapt) == [4]


@pytest.mark.parametrize(("answer", "left"), [("2", [8]), ("all", [])])
def test_on_a_terminal_remove_asks_which(adapt, answer, left):
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(
        [sys.executable, "-m", "adapterhub.cli", "remove", "qa"],
        cwd=adapt.folder,
        env=os.environ | {"ADAPTERHUB_HOME": str(adapt.folder / "home")},
        stdin=theirs,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "1  qa 1.0.0 (rank 8)" in done.stderr
    assert ranks(adapt) == left
