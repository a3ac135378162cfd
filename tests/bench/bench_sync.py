"""What `adapt sync` costs: 100 adapters of the store into a fresh project against copying them, a sync that has nothing
to do as a whole process, 1,000 adapters, and a curve for 160, 1,600 and 16,000.

    python -m tests.bench.bench_sync [--runs 5] [--adapters 100] [--rank 128] [--many 1000] [--growth 16000]

Floor of the curve: the system calls that a folder of links takes, and nothing else, in the same run: make the folder,
three links, write the card, rename.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from adapterhub.core.digests import digest_of
from adapterhub.core.disk.home import ADAPTERS_FOLDER
from adapterhub.core.specs import parse_name
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.library.store.roots import KnownProjects
from adapterhub.projects.lock.lockfile import write_lock
from adapterhub.projects.values import Lock
from tests.bench.harness import given, measured, timed, told
from tests.support.locks import entry_of, lock_of, sync
from tests.support.tiny import make_adapter

WIDTH = 4096


def fill(library: Library, folder: Path, count: int, *, rank: int, width: int) -> list[Installed]:
    """Adapters of their own bytes each."""
    builds = []
    for number in range(count):
        made = make_adapter(folder / f"made-{number}", seed=number, rank=rank, width=width)
        about = Description(name=parse_name(f"adapter-{number:04}"), version="1.0.0")
        builds.append(library.add(made, about).build)
        shutil.rmtree(made)
    return builds


def make_project(folder: Path, builds: list[Installed]) -> Lock:
    """A project that locks all of them."""
    folder.mkdir()
    wanted = "".join(f'{build.manifest.name} = ""\n' for build in builds)
    (folder / "adapters.toml").write_text(f"[adapters]\n{wanted}")
    lock = lock_of(*(entry_of(build) for build in builds))
    write_lock(folder, lock)
    return lock


Times = tuple[float, float]
"""Median seconds: on the clock, and of the processors."""


def median_of(what: Callable[[], float], runs: int, before: Callable[[], object] = lambda: None) -> Times:
    """A call that gives the processor seconds it took; what comes before each is not counted."""
    clock, processor = [], []
    for _ in range(runs):
        before()
        start = time.perf_counter()
        processor.append(what())
        clock.append(time.perf_counter() - start)
    return statistics.median(clock), statistics.median(processor)


def here(what: Callable[[], object], runs: int, before: Callable[[], object] = lambda: None) -> Times:
    """A call in this process."""

    return median_of(lambda: timed(what)[0], runs, before)


def process(project: Path, home: Path, runs: int, before: Callable[[], object] = lambda: None) -> Times:
    """`adapt sync --frozen` as a whole process."""
    environment = os.environ | {"ADAPTERHUB_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}

    command = [sys.executable, "-m", "adapterhub.cli", "sync", "--frozen", "--quiet"]
    return median_of(lambda: measured(command, cwd=project, env=environment).cpu_s, runs, before)


def text(times: Times) -> str:
    """Both, for people."""
    return f"{times[0]:.3f} s ({times[1]:.3f} s CPU)"


def against_copying(folder: Path, runs: int, count: int, rank: int) -> None:
    """Links against copies of the same folders, both into an empty place, pages cached."""
    library = Library(folder / "home")
    builds = fill(library, folder, count, rank=rank, width=WIDTH)
    size = sum(build.manifest.size_bytes for build in builds)
    project, copies = folder / "project", folder / "copies"
    lock = make_project(project, builds)

    def clear() -> None:
        shutil.rmtree(project / ADAPTERS_FOLDER, ignore_errors=True)
        shutil.rmtree(copies, ignore_errors=True)

    def copy() -> None:
        for build in builds:
            shutil.copytree(build.folder, copies / build.manifest.name)

    copied = here(copy, runs, clear)
    linked = here(lambda: sync(library, project, lock), runs, clear)
    print(f"{count} adapters, {size / 1e6:,.0f} MB: copytree {text(copied)}, sync {text(linked)}")
    print(f"faster by the clock {copied[0] / linked[0]:.0f} x, by the processor {copied[1] / linked[1]:.0f} x")
    print(f"the same as a whole process: {text(process(project, library.root, runs, clear))}")
    print(f"a sync with nothing to do, whole process: {text(process(project, library.root, runs))}")


def many(folder: Path, runs: int, count: int) -> None:
    """A project of so many small adapters."""
    library = Library(folder / "home")
    builds = fill(library, folder, count, rank=4, width=8)
    project = folder / "project"
    lock = make_project(project, builds)

    def clear() -> None:
        shutil.rmtree(project / ADAPTERS_FOLDER, ignore_errors=True)

    print(f"{count} adapters: sync {text(here(lambda: sync(library, project, lock), runs, clear))}")
    print(f"the same as a whole process: {text(process(project, library.root, runs, clear))}")
    print(f"nothing to do: {text(here(lambda: sync(library, project, lock), runs))}")
    print(f"nothing to do, whole process: {text(process(project, library.root, runs))}")
    known = KnownProjects(library.root)
    print(f"gc roots of the project: {text(here(known.all, runs))}")


def bare(library: Library, folder: Path, count: int) -> list[Installed]:
    """Builds of weights of their own, straight into the store: `add` takes twenty milliseconds for each."""
    [first] = fill(library, folder, 1, rank=4, width=8)
    store, card = library.store, (first.folder / CARD_FILE).read_bytes()
    config, weights = sorted(first.manifest.files, key=lambda entry: entry.path)
    data = store.blob_path(weights.sha256).read_bytes()
    builds = []
    for number in range(count):
        own = data + number.to_bytes(8, "big")
        entry = replace(weights, sha256=digest_of(own), size_bytes=len(own))
        manifest = replace(first.manifest, name=parse_name(f"bare-{number:05}"), files=(config, entry))
        place = library.folder_for(manifest, None)
        for path, raw in ((store.blob_path(entry.sha256), own), (store.manifest_path(manifest.digest), manifest.to_bytes()),
                          (place / CARD_FILE, card)):  # fmt: skip
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)
        for file in manifest.files:
            store.link(file.sha256, place / file.path)
        store.link(manifest.digest, place / MANIFEST_FILE, is_manifest=True)
        builds.append(replace(first, manifest=manifest, folder=place))
    return builds


def link_only(library: Library, builds: list[Installed], folder: Path) -> None:
    """The folders that a sync makes, without a look at anything."""
    folder.mkdir()
    for build in builds:
        fresh, store = f"{folder}/.{build.manifest.name}", library.store
        os.mkdir(fresh)  # noqa: PTH102 - the call itself
        for file in build.manifest.files:
            os.link(store.blob_name(file.sha256), f"{fresh}/{file.path}")
        os.link(store.manifest_name(build.manifest.digest), f"{fresh}/{MANIFEST_FILE}")
        Path(fresh, CARD_FILE).write_bytes(b"x" * 800)
        os.rename(fresh, f"{folder}/{build.manifest.name}")  # noqa: PTH104 - the call itself


def growth(folder: Path, most: int) -> None:
    """The curve of a first sync as a whole process, and the floor."""
    curve = {}
    for count in (most // 100, most // 10, most):
        library = Library(folder / f"home-{count}")
        builds = bare(library, folder / f"made-{count}", count)
        project, links = folder / f"project-{count}", folder / f"links-{count}"
        make_project(project, builds)
        times = process(project, library.root, 1)
        again = process(project, library.root, 1)
        floor = here(lambda: link_only(library, builds, links), 1)  # noqa: B023 - at once
        shared = process(project, library.root, 1)  # each link above moved a stamp, so every file is read again
        curve[count] = times[1]
        print(f"{count:,} adapters, whole process: {text(times)}; links alone {text(floor)}, ratio "
              f"{times[1] / floor[1]:.2f} CPU, {times[0] / floor[0]:.2f} clock; nothing to do {text(again)}, after other links to "
              f"every object {text(shared)}")  # fmt: skip
        shutil.rmtree(project)
        shutil.rmtree(links)
    print(told("sync, adapters, CPU", curve))


def main() -> None:
    """Measure and print."""
    asked = given(
        __doc__,
        runs=5,
        adapters=100,
        rank=128,
        many=1000,
        growth=16_000,
        only=(None, "copying", "many", "growth"),
        folder=Path,
    )
    parts: dict[str, Callable[[Path], None]] = {
        "copying": lambda folder: against_copying(folder, asked.runs, asked.adapters, asked.rank),
        "many": lambda folder: many(folder, asked.runs, asked.many),
        "growth": lambda folder: growth(folder, asked.growth),
    }
    for name, part in parts.items():
        if asked.only in (None, name):
            with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
                part(Path(folder))


if __name__ == "__main__":
    main()
