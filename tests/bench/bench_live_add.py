"""CPU time of `add`, `install`, `alias set`, `list --limit`, `search`, `info --path`, `remove` and `sync` beside many builds.

python -m tests.bench.bench_live_add [--largest] [--kinds names versions twins] [--runs 9]

The libraries have 1, 100, 1,000 and 10,000 builds of 1 MB, with `--largest` 100,000. The builds have names of their own
(`names`), are versions of one name (`versions`), or these with one update (`twins`). Each number is the median of the runs
in a running process, in milliseconds; the exponent is that between the smallest library above one build and the largest.
`sync` brings 999 of the builds into a fresh project, and then finds them there; with `names`, from 1,000 builds on. Then `adapt add` as a command in the first
and the last library: what its process takes to load the modules that it ends with, and what it takes after that.

python -m tests.bench.bench_live_add --reads [--largest] [--whole] [--folder FOLDER] [--pages 100]

Instead the commands that list and look up, as processes in libraries of 10, 1,000, 10,000 and with `--largest` 100,000
builds under names of their own, and the pages of `adapt ui`, p50 and p99 of one client. `--whole` adds the commands that read every build: `doctor`, `verify --all`, `upgrade --check` and
`cache clean --dry-run`. `--folder` keeps the libraries there (1.7 GB for 100,000), or measures those that it has.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import httpx

from adapterhub.api.library import Library
from tests.bench.bench_sync import make_project
from tests.bench.harness import best, given, measured, timed
from tests.bench.installed_builds import Kind, fill, write_adapter
from tests.support.locks import sync

SYNCED: Final = 1_000
"""So many builds a library has of which a project takes all but one."""

_LISTED = "import sys; from adapterhub.cli import main\ntry: main()\nexcept SystemExit: pass\nprint(*sys.modules)"
_LOADED = """import importlib, os, sys, time
for name in os.environ["MODULES"].split():
    try: importlib.import_module(name)
    except Exception: pass
begun = time.process_time()
try: sys.modules["adapterhub.cli"].main()
except SystemExit: pass
print(begun, time.process_time() - begun)"""


def curves(place: Path, kind: Kind, count: int, runs: int) -> dict[str, float]:
    """Milliseconds of each verb in a library of `count` builds; the first run is left out."""
    library, far = fill(place / "home", count, kind), Library(place / "far")
    far.add_base(place / "home-made" / "base", "base-7b")
    took: dict[str, list[float]] = {}
    syncs = kind == "names" and count >= SYNCED
    builds = [library.builds_named(f"agent-{at}")[0] for at in range(SYNCED - 1)] if syncs else []

    def noted(verb: str, work: Callable[[], object]) -> None:
        took.setdefault(verb, []).append(1000 * timed(work)[0])

    for number in range(runs + 1):
        name, other = (f"new-{number}", f"far-{number}") if kind == "names" else ("agent", "agent")
        version = f"3.{number}.0"
        one, two, three = (write_adapter(place / str(number) / str(at), 3 * number + at) for at in range(3))
        far.add(two, name=other, version=f"2.0.{number}", base="base-7b")
        noted("add", lambda: library.add(one, name=name, version=version, base="base-7b"))  # noqa: B023 - called at once
        noted("add --bump", lambda: library.add(three, name=name, bump="patch", base="base-7b"))  # noqa: B023
        noted("install", lambda: library.install(f"{other}==2.0.{number}", places=far.root))  # noqa: B023
        noted("alias set", lambda: library.set_alias("prod", f"{name}=={version}"))  # noqa: B023
        noted("info --path", lambda: library.info(f"{name}@prod", only="path"))  # noqa: B023
        library.remove_alias(f"{name}@prod")
        noted("install, newest", lambda: library.install(other, places=far.root))  # noqa: B023
        noted("info --path, newest", lambda: library.info(name, only="path"))  # noqa: B023
        noted("remove", lambda: library.remove(f"{name}=={version}"))  # noqa: B023
        noted("list --limit 20", lambda: list(library.list(limit=20)))
        noted("search one word", lambda: library.search("agent", limit=20))
        noted("search two words", lambda: library.search(name, "agent", limit=20))  # noqa: B023
        if syncs:
            project = place / "projects" / str(number)
            project.parent.mkdir(exist_ok=True)
            lock = make_project(project, builds)
            noted("sync of 999", lambda: sync(library, project, lock))  # noqa: B023
            noted("sync of 999 again", lambda: sync(library, project, lock))  # noqa: B023
    return {verb: statistics.median(times[1:]) for verb, times in took.items()}


def as_command(place: Path, runs: int) -> tuple[float, float]:
    """Milliseconds of `adapt add` in a new process: until its modules are loaded, and after that."""
    environment = os.environ | {"ADAPTERHUB_HOME": str(place / "home"), "OMP_NUM_THREADS": "1"}
    found = []
    for number in range(runs + 1):
        words = ["add", str(write_adapter(place / "command" / str(number), 1000 + number)), "--name", "agent"]
        words += ["--base", "base-7b", "--version", f"8.{number}", "--description", "Answers."]
        python = [sys.executable, "-W", "ignore", "-c", _LOADED if number else _LISTED, *words]
        said = measured(python, cwd=place, env=environment).said.splitlines()[-1]
        if number:
            found.append([1000 * float(seconds) for seconds in said.split()])
        else:
            environment["MODULES"] = said
    start, work = map(min, zip(*found, strict=True))
    return start, work


def exponent(curve: Mapping[int, float]) -> float:
    """How the largest library compares with the smallest of more than one build."""
    small, large = min(count for count in curve if count > 1), max(curve)
    return math.log(curve[large] / curve[small]) / math.log(large / small)


ONE_PAGE: Final = {
    "list --limit 20": ["list", "--limit", "20"],
    "list --limit 20 --sort date": ["list", "--limit", "20", "--sort", "date"],
    "search one word": ["search", "agent", "--limit", "20"],
    "search two words": ["search", "agent", "five"],
    "info": ["info", "agent-7"],
    "info --path": ["info", "agent-7", "--path"],
    "tree NAME": ["tree", "agent-7"],
    "tree --invert NAME": ["tree", "--invert", "agent-7"],
    "alias list": ["alias", "list"],
}
EVERY_ROW: Final = {"list": ["list"], "list --json": ["list", "--json"]}
EVERY_BUILD: Final = {
    "doctor --offline": ["doctor", "--offline"],
    "doctor --offline --jobs 2": ["doctor", "--offline", "--jobs", "2"],
    "verify --all": ["verify", "--all", "--offline"],
    "verify --all --jobs 2": ["verify", "--all", "--offline", "--jobs", "2"],
    "upgrade --check": ["upgrade", "--check"],
    "cache clean --dry-run": ["cache", "clean", "--dry-run"],
}
PAGES: Final = {
    "home": "/",
    "all, by name": "/search",
    "all, by date": "/search?sort=date",
    "search": "/search?q=agent",
    "facets": "/search?base=base-7b&rank=4",
    "facets that match nothing": "/search?base=base-7b&rank=5",
    "adapter": "/-/agent-7",
    "base and its contract matrix": "/base/{base}",
}


def reads(folder: Path, sizes: Sequence[int], pages: int, *, whole: bool) -> None:
    """Measure and print commands and pages that read."""
    commands = {**ONE_PAGE, **EVERY_ROW, **(EVERY_BUILD if whole else {})}
    took: dict[str, dict[int, str]] = {}
    for count in sizes:
        home = folder / f"library-{count}"
        library = Library(home) if home.exists() else fill(home, count, "names")
        environment = os.environ | {"ADAPTERHUB_HOME": str(home), "OMP_NUM_THREADS": "1", "ADAPTERHUB_SOURCES": ""}
        for name, command in commands.items():
            line = [Path(sys.executable).with_name("adapt"), *command]
            run = best([measured(line, codes=(0, 3), env=environment) for _ in range(3 if name in ONE_PAGE else 1)])
            took.setdefault(name, {})[count] = f"{run.cpu_s:.2f}, {run.wall_s:.2f} s"
        for name, (cpu, middle, slowest) in asked(library, pages).items():
            took.setdefault(f"page {name}", {})[count] = f"{cpu:.1f}, {middle:.1f}, {slowest:.1f} ms"
    print(f"| CPU and time on the clock; of a page CPU, p50 and p99 | {' | '.join(f'{count:,}' for count in sizes)} |")
    print(f"| --- | {' | '.join('---:' for _ in sizes)} |")
    for name, cells in took.items():
        print(f"| `{name}` | {' | '.join(cells.values())} |", flush=True)


def asked(library: Library, pages: int) -> dict[str, tuple[float, float, float]]:
    """Milliseconds of each page: CPU of server and client, p50 and p99."""
    [record] = library.bases.list()
    found = {}
    with library.ui() as ui, httpx.Client(base_url=ui.url.partition("/?")[0], timeout=600) as client:
        client.get(ui.url)
        for name, path in PAGES.items():
            url = path.replace("{base}", record.fingerprint.weights.removeprefix("sha256:"))
            client.get(url).raise_for_status()
            begun = time.process_time()
            times = sorted(1000 * timed(lambda: client.get(url), time.perf_counter)[0] for _ in range(pages))  # noqa: B023
            cpu = 1000 * (time.process_time() - begun) / pages
            found[name] = cpu, statistics.median(times), times[math.ceil(0.99 * pages) - 1]
    return found


def main() -> None:
    """Measure and print."""
    options = given(
        __doc__,
        largest=False,
        kinds=["names", "versions", "twins"],
        runs=9,
        reads=False,
        whole=False,
        folder=Path,
        pages=100,
    )
    if options.reads:
        with tempfile.TemporaryDirectory() as place:
            counts = [10, 1_000, 10_000, *([100_000] if options.largest else [])]
            reads(options.folder or Path(place), counts, options.pages, whole=options.whole)
        return
    sizes = [1, 100, 1_000, 10_000, *([100_000] if options.largest else [])]
    for kind in options.kinds:
        found: dict[str, dict[int, float]] = {}
        commands: dict[int, tuple[float, float]] = {}
        for count in sizes:
            with tempfile.TemporaryDirectory(dir=options.folder) as place:
                for verb, milliseconds in curves(Path(place), kind, count, options.runs).items():
                    found.setdefault(verb, {})[count] = milliseconds
                if count in (sizes[0], sizes[-1]):
                    commands[count] = as_command(Path(place), 5)
        print(f"\n| {kind} | {' | '.join(f'{count:,}' for count in sizes)} | exponent |")
        print(f"| --- | {' | '.join('---:' for _ in sizes)} | ---: |")
        for verb, curve in found.items():
            print(
                f"| {verb} | {' | '.join(f'{curve[count]:.1f}' if count in curve else '' for count in sizes)} | {exponent(curve):.2f} |"
            )
        for count, (start, work) in commands.items():
            print(f"`adapt add` beside {count:,}: start-up {start:.0f} ms, and then {work:.1f} ms", flush=True)


if __name__ == "__main__":
    main()
