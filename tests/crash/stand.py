"""A small library in which every command has something to do, and the question that follows each fault.

After a fault: `list` and each folder of the project are as before or as after the command, nothing is damaged, the command
run again succeeds, and `gc` leaves no trace of the stopped one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.core.digests import digest_of
from adapterhub.core.specs import AdapterSpec
from adapterhub.library.directory import PublishedDirectory
from adapterhub.library.library import Library
from adapterhub.library.upkeep.damage import damaged_index, damaged_objects, missing_objects
from adapterhub.trust.verify import verify_folder
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = (sys.executable, "-c", "from adapterhub.cli import main; main()")
NAMES = ("one", "two", "three", "new", "merged")

COMMANDS: dict[str, tuple[str, ...]] = {
    "add": ("add", "./new", "--name", "new", "--base", "base-7b"),
    "install": ("install", "three@base-7b", "--from", "./published"),
    "merge": ("merge", "one@base-7b", "two@base-7b", "-o", "merged"),
    "gc": ("cache", "clean", "--grace", "0"),
    "push": ("push", "one@base-7b", "--to", "./pushed"),
    "remove": ("remove", "two@base-7b", "--yes"),
    "record": ("contract", "record", "b", "--examples", "examples.jsonl", "--max-new-tokens", "5"),
    "install-test": ("install", "three@base-7b", "--from", "./published", "--test"),
    "merge-test": ("merge", "a", "b", "--weights", "1,0.001", "-o", "merged", "--test"),
    "sync": ("sync", "--frozen", "--prune", "--project", "project"),
}

ASKING = ("record", "install-test", "merge-test")
"""Commands that ask a model, which have a stand of their own."""

PROJECT = """\
[project]
base = "base-7b"

[remotes.published]
path = "../published"

[adapters]
"""


def environment(folder: Path) -> dict[str, str]:
    """For `adapt` as a process of its own, with the library `folder/home`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ADAPTERHUB_", "PYTEST"))}
    path = os.pathsep.join([str(ROOT), str(ROOT / "registry")])
    return kept | {
        "ADAPTERHUB_HOME": str(folder / "home"),
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",  # the writes that are counted are those of the library
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def run(folder: Path, arguments: Sequence[str], *, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """`adapt …` in `folder`, started through the words in `before`."""
    return subprocess.run(
        [*before, *PROGRAM, *arguments],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def make_stand(folder: Path, *, width: int = 8) -> Path:
    """Base, two adapters, a published third, an unpacked fourth, and objects that nobody names."""
    folder.mkdir(parents=True)
    adapt = Adapt(folder)
    make_base(folder / "base", width=width)
    for seed, name in enumerate(("one", "two", "three", "new", "gone")):
        make_adapter(folder / name, seed=seed, width=width)
    adapt.ok("base", "add", "./base", "--as", "base-7b")
    for name in ("one", "two", "three", "gone"):
        adapt.ok("add", f"./{name}", "--name", name, "--base", "base-7b")
    adapt.ok("push", "three@base-7b", "--to", "./published")
    adapt.ok("remove", "three@base-7b", "--yes")
    adapt.ok("remove", "gone@base-7b", "--yes")
    return folder


def make_asking_stand(folder: Path) -> Path:
    """A base that answers, `a` with its contract, `b` without one, and a published `three` with the contract of `a`."""
    from tests.support.contracts import recorded_library  # torch

    folder.mkdir(parents=True)
    adapt = recorded_library(folder)
    [contract] = (folder / "home").glob("adapters/*/a/1.0.1-*/evals.jsonl")
    shutil.copytree(folder / "a", folder / "three")
    shutil.copy(contract, folder / "three")
    adapt.ok("add", "./three", "--name", "three", "--base", "base-7b")
    adapt.ok("push", "three@base-7b", "--to", "./published")
    adapt.ok("remove", "three@base-7b", "--yes")
    return folder


def make_project(folder: Path) -> None:
    """A project in the stand whose lock changed since it was synced: a folder to replace, to keep, to take away, and two
    to make, of which one is not in the library; beside and in them what a user put there."""
    adapt, project = Adapt(folder), folder / "project"
    project.mkdir()
    (project / "adapters.toml").write_text(f'{PROJECT}one = ""\nkept = "two"\nleft = "two"\n')
    adapt.ok("sync", "--project", "project")
    make_adapter(folder / "newer", seed=9)
    adapt.ok("add", "./newer", "--name", "one", "--version", "1.1.0", "--base", "base-7b")
    (project / "adapters.toml").write_text(f'{PROJECT}one = ">=1.1"\nkept = "two"\nmore = "two"\nthree = ""\n')
    adapt.ok("lock", "--project", "project")
    make_adapter(project / "adapters" / "mine", seed=10)
    (project / "adapters" / "kept" / "notes.txt").write_text("mine")
    (project / "adapters" / "notes.txt").write_text("mine")


@dataclass(frozen=True)
class State:
    """What a user sees: the adapters that are listed, those that `push` wrote, and all in `adapters/` of the project."""

    listed: tuple[str, ...] = ()
    pushed: tuple[str, ...] = ()
    synced: tuple[tuple[str, str], ...] = ()

    def is_made_of(self, old: State, new: State) -> bool:
        """Whether each part is as in one of the two; each folder of the project is a part."""
        was, then, now = dict(old.synced), dict(new.synced), dict(self.synced)
        return (
            self.listed in (old.listed, new.listed)
            and self.pushed in (old.pushed, new.pushed)
            and all(now.get(name) in (was.get(name), then.get(name)) for name in {*was, *then, *now})
        )


def state_of(folder: Path) -> State:
    """The state by the library itself, in this process."""
    listed = Adapt(folder).json("list")
    return State(
        listed=tuple(sorted(f"{row['name']} {row['digest']}" for row in listed)),
        pushed=tuple(sorted(r.digest for r in _published(folder / "pushed"))),
        synced=tuple((p.name, _content_of(p)) for p in sorted((folder / "project" / "adapters").glob("[!.]*"))),
    )


def _content_of(path: Path) -> str:
    """Names and bytes of a file or a folder, as one digest."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return digest_of(repr([(file.name, file.read_bytes()) for file in files]).encode())


def _published(folder: Path) -> list:
    return (
        [r for n in NAMES for r in PublishedDirectory(folder).releases(AdapterSpec.parse(n))] if folder.exists() else []
    )


def damage_in(folder: Path) -> list[str]:
    """Everything that is wrong, in words: installed and published builds, objects, index."""
    library = Library(folder / "home")
    found = [f"{b.folder}: {b.reason}" for b in library.broken()]
    for build in library.installed():
        found += [f"{build.full_name}: {f}" for f in library.verify_build(build).errors]
    missing = (damage for build in library.installed() for damage in missing_objects(library, build))
    found += [f"{d.path}: {d.message}" for d in (*damaged_objects(library), *missing, *damaged_index(library))]
    for path in (folder / "pushed").glob("*/[!.]*"):
        found += [f"{path}: {f}" for f in verify_folder(path).errors]
    return found


def leftovers_in(folder: Path) -> list[str]:
    """Files that belong to no finished thing."""
    home = folder / "home"
    patterns = ("tmp/*", "intents/*", "intents/.*", "index.new", "*/.*.json.*", ".*.json.*", "manifests/sha256/.*")
    inside = [str(p.relative_to(folder)) for g in patterns for p in home.glob(g)]
    inside += [str(p.relative_to(folder)) for p in (folder / "pushed").glob("*/.*")]
    places = (folder / "project" / "adapters").glob(".*")
    return inside + [str(p.relative_to(folder)) for p in places if p.name != ".gitignore"]


@dataclass(frozen=True)
class Trial:
    """One fault and what came of it; `problem` is "" when all is as promised."""

    fault: str
    exit_code: int
    is_old: bool
    problem: str


class Stand:
    """One command on one stand that is put back before each trial; it keeps its path, which the index knows."""

    def __init__(self, folder: Path, command: str) -> None:
        self.command, self.arguments = command, COMMANDS[command]
        self._folder, self._template = folder, folder.with_name(f"{folder.name}.template")
        if not self._template.exists():
            if command == "sync":
                make_project(folder)
            folder.rename(self._template)
        self.before = state_of(self.copy())
        done = self.copy()
        finished = Adapt(done)(*self.arguments)
        assert finished.exit_code == 0, finished.stderr
        self.after = state_of(done)

    def copy(self) -> Path:
        """The stand as it was in the beginning, hard links and all."""
        shutil.rmtree(self._folder, ignore_errors=True)
        subprocess.run(["cp", "-a", str(self._template), str(self._folder)], check=True)
        return self._folder

    def trial(
        self,
        fault: str,
        hurt: Callable[[Path, tuple[str, ...]], subprocess.CompletedProcess[str]],
        *,
        codes: Sequence[int] = (),
        is_tidy: bool = False,
    ) -> Trial:
        """Run the command through `hurt`, then ask the question of this module.

        `codes` are the exit codes that are allowed (none: any); `is_tidy` wants no leftovers right after it.
        """
        folder = self.copy()
        done = hurt(folder, self.arguments)
        if "strace: Unexpected wait status" in done.stderr:  # strace itself gave up, as it may when threads are stopped
            folder = self.copy()
            done = hurt(folder, self.arguments)
        problems = []
        if codes and done.returncode not in codes:
            problems.append(f"exit code {done.returncode}: {done.stderr[-300:]}")
        if "Traceback" in done.stderr or "a bug in" in done.stderr:
            problems.append(f"not plain: {done.stderr[-300:]}")
        if is_tidy and (left := leftovers_in(folder)):
            problems.append(f"left behind: {left}")
        state, is_old = State(), False
        try:
            state = state_of(folder)
            is_old = state == self.before
            if not state.is_made_of(self.before, self.after):
                problems.append(f"neither old nor new: {state}")
            problems += [f"damaged: {text}" for text in damage_in(folder)]
            problems += self._again(folder)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told as this trial's problem
            problems.append(f"{type(error).__name__}: {error}")
        return Trial(fault=fault, exit_code=done.returncode, is_old=is_old, problem="; ".join(problems))

    def _again(self, folder: Path) -> list[str]:
        problems = []
        again = Adapt(folder)(*self.arguments)
        is_done_before = self.command == "remove" and again.exit_code == 10
        if again.exit_code and not is_done_before:
            problems.append(f"again: exit code {again.exit_code}: {again.stderr[-300:]}")
        if (state := state_of(folder)) != self.after:
            problems.append(f"again: not as it should be: {state}")
        problems += [f"again: damaged: {text}" for text in damage_in(folder)]
        Adapt(folder).ok("cache", "clean", "--grace", "0")
        for path in [
            p for g in ("*/.*.json.*", "intents/.*", "manifests/sha256/.*") for p in (folder / "home").glob(g)
        ]:
            path.unlink()  # swept when an hour old
        left = [name for name in leftovers_in(folder) if not name.startswith("pushed")]
        if left:
            problems.append(f"left after gc: {left}")
        return problems
