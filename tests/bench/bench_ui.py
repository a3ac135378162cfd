"""The pages of `adapt ui` beside many builds: CPU, and p50 and p99 on the clock, of each page with an address of its own each time.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_ui [--builds 100000] [--pages 200] [--folder DIR] [--only NAME ...]

The builds lie on 20 bases under ten tasks; each fourth has a contract with results on two bases, each fiftieth is a
merge, one name has a thousand versions, and a thousand builds have an alias. They share their files, as
`installed_builds` makes them. The server runs in a process of its own, which tells the CPU that a page took; the first request of each page
is left out. A page that nothing delays has a time on the clock near its CPU: other programs on the machine make the rest.
With `--folder`, the library stays there for the next run.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import httpx

from adapterhub.api.library import Library
from adapterhub.core.disk.files import make_folder
from adapterhub.core.specs import parse_name
from adapterhub.formats.contract.results import Tested
from adapterhub.formats.manifest import MANIFEST_FILE, BaseRef, Parent
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.find.sketching import sketches
from adapterhub.library.results import KeptResults
from adapterhub.library.store.catalog import Installed, base_row_of, row_of
from adapterhub.library.store.rows import BuildRow, PlaceRow, SketchRow
from tests.bench.bench_pages import cpu_s, measured
from tests.bench.harness import given
from tests.bench.installed_builds import link, write_adapter, write_base
from tests.bench.many_builds import BASES, TASKS
from tests.support.results import with_contract

VERSIONS: Final = 1000
ALIASES: Final = 1000
_SERVES: Final = "import sys; from adapterhub.api.library import Library; ui = Library(sys.argv[1]).ui(); print(ui.url, flush=True); ui.wait()"


def name_of(number: int) -> tuple[str, str]:
    """The name and the version of a build; the first ones are the versions of one name."""
    is_version = number < VERSIONS
    return ("agent", f"1.0.{number}") if is_version else (f"{TASKS[number // BASES % len(TASKS)]}-{number}", "1.0.0")


def fill(home: Path, builds: int) -> None:
    """Fill a library with builds, results of tests and aliases."""
    library, made = Library(home), home.parent / f"{home.name}-made"
    bases = [library.add_base(write_base(made / f"base-{one}", one), f"base-{one}") for one in range(BASES)]
    plain = library.add(write_adapter(made / "first", 0), name="first", base=bases[0], description="The first.").build
    tested = with_contract(library.session.library, plain)
    sketch = next(iter(sketches(library.session.library)[0].values()))
    rows: list[BuildRow] = []
    sketched: list[SketchRow] = []
    kept = KeptResults(library.store)
    for number, (build, row) in enumerate(_built(home, bases, plain, tested, builds)):
        make_folder(build.folder)
        for entry in build.manifest.files:
            link(library.store.blob_path(entry.sha256), build.folder / entry.path)
        path = library.store.manifest_path(build.manifest.digest)
        path.write_bytes(build.manifest.to_bytes())
        os.link(path, build.folder / MANIFEST_FILE)
        rows.append(row)
        sketched.append(sketch._replace(digest=row.digest, sketch=os.urandom(len(sketch.sketch))))
        for base in (bases[number % BASES], bases[(number + 7) % BASES]) if row.has_tests else ():
            kept.keep(build.manifest.digest, {"base": base.alias}, _result(build, base))
    folders = {(home / row.folder).parent for row in rows}
    places = [
        PlaceRow(place.relative_to(home).as_posix(), place.stat().st_mtime_ns)
        for place in (*folders, *{place.parent for place in folders})
    ]
    library.catalog.index.rebuild(rows, [base_row_of(base) for base in bases], (), sketched, places)
    for number in range(0, builds, max(builds // ALIASES, 1)):
        library.set_alias("prod", "{}=={}".format(*name_of(number)))


def _built(
    home: Path, bases: Sequence[BaseRecord], plain: Installed, tested: Installed, builds: int
) -> Iterator[tuple[Installed, BuildRow]]:
    """Yield the builds, which are not there yet, with the row of each in the index."""
    first = {one: row_of(one, home) for one in (plain, tested)}
    before: dict[int, list[Parent]] = {}
    for number in range(builds):
        base, like = bases[number % BASES], tested if number % 4 == 0 else plain
        name, version = name_of(number)
        kin = before.setdefault(number % BASES, [])
        manifest = replace(
            like.manifest,
            name=parse_name(name),
            version=version,
            task=TASKS[number // BASES % len(TASKS)],
            description=f"Adapter number {number}, trained on corpus {number % 977}",
            base=BaseRef(fingerprint=base.fingerprint, hints=base.hints),
            parents=tuple(kin[-2:]) if number % 50 == 49 else (),
            recipe={"method": "linear"} if number % 50 == 49 else {},
        )
        place = home / "adapters" / base.alias / name / f"{version}-r{manifest.rank}"
        build = Installed(manifest=manifest, namespace=None, folder=place, base=manifest.base, added_at=1.7e9 + number)
        row = first[like]._replace(
            digest=manifest.digest,
            name=name,
            version=version,
            task=manifest.task or "",
            description=manifest.description,
            base_weights=base.fingerprint.weights,
            base_tensors=base.fingerprint.tensors,
            folder=place.relative_to(home).as_posix(),
            added_at=build.added_at,
            parents=len(manifest.parents),
            weights_file=f"sha256:{manifest.digest[7:]}",  # as if each had weights of its own
            made_from="\n".join(str(parent.digest) for parent in manifest.parents),
        )
        kin[:] = [*kin[-1:], Parent(digest=manifest.digest, spec=f"{name}=={version}", weight=0.5)]
        yield build, row


def _result(build: Installed, base: BaseRecord) -> Tested:
    return Tested(
        name=build.full_name,
        version=build.manifest.version,
        digest=build.manifest.digest,
        verdict="PASS",
        base=base.alias,
        base_weights=base.fingerprint.weights,
        dtype="float32",
        drift=0.01,
    )


def pages_of(library: Library, builds: int) -> dict[str, Callable[[], str]]:
    """Each page with a function that draws an address of it."""
    draw = random.Random(0)
    bases = [one.fingerprint.weights.removeprefix("sha256:") for one in library.bases.list()]

    def of(*, step: int = 1, at: int = 0) -> str:
        return name_of(draw.randrange(VERSIONS // step, builds // step) * step + at)[0]

    def one(name: str) -> str:
        return f"/-/{name}"

    return {
        "home": lambda: "/",
        "search, by name": lambda: "/search",
        "search, by date": lambda: "/search?sort=date",
        "search, a late page": lambda: f"/search?from={50 * draw.randrange(100)}",
        "search, a word of all": lambda: "/search?q=adapter",
        "search, a word of all, by date": lambda: "/search?q=adapter&sort=date",
        "search, a word of some": lambda: f"/search?q={draw.randrange(977)}",
        "search, a word of none": lambda: f"/search?q=zebra{draw.randrange(977)}",
        "search, words": lambda: f"/search?q=adapter+corpus+{draw.randrange(977)}",
        "search, a word and a base": lambda: f"/search?q=adapter&base=base-{draw.randrange(BASES)}",
        "search, facets": lambda: f"/search?base=base-{draw.randrange(BASES)}&task={draw.choice(TASKS)}",
        "search, facets of none": lambda: f"/search?base=base-{draw.randrange(BASES)}&rank=5",
        "adapter": lambda: one(of()),
        "adapter with many versions": lambda: one("agent"),
        "adapter, a merge": lambda: one(of(step=50, at=49)),
        "build": lambda: f"{one(of())}/1.0.0",
        "files": lambda: f"{one(of())}/tree/1.0.0",
        "lineage": lambda: f"/lineage{one(of())}",
        "lineage, a merge": lambda: f"/lineage{one(of(step=50, at=49))}",
        "lineage, many versions": lambda: f"/lineage{one('agent')}?version=1.0.{draw.randrange(VERSIONS)}",
        "base": lambda: f"/base/{draw.choice(bases)}",
        "contracts": lambda: "/contracts",
        "updates": lambda: "/updates",
        "projects": lambda: "/projects",
        "make": lambda: f"/make{one(of())}",
        "compare, nothing chosen": lambda: "/compare",
        "compare, one chosen": lambda: f"/compare?a={of()}",
        "playground": lambda: f"/playground?base=base-{draw.randrange(BASES)}",
    }


def settled(pid: int) -> None:
    """Wait until a server has made what it makes after its start, for searches to come."""
    before = -1.0
    while (now := cpu_s(pid)) - before > 0.02:
        before = now
        time.sleep(1)


def main() -> None:
    """Fill a library, serve it, measure and print."""
    options = given(__doc__, builds=100_000, pages=200, folder=Path, only=[""])
    with tempfile.TemporaryDirectory() as place:
        home = (options.folder or Path(place)) / f"ui-{options.builds}"
        if not home.exists():
            fill(home, options.builds)
        serving = [sys.executable, "-c", _SERVES, str(home)]
        server = subprocess.Popen(serving, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        print("| page | CPU ms | p50 ms | p99 ms |\n| --- | ---: | ---: | ---: |")
        try:
            with httpx.Client(base_url=url.partition("/?")[0], timeout=600) as client:
                client.get(url)
                settled(server.pid)
                for name, path in pages_of(Library(home), options.builds).items():
                    if any(one in name for one in options.only):
                        middle, late, cpu = measured(client, server.pid, iter(path, None), options.pages)
                        print(f"| {name} | {cpu:.1f} | {middle:.1f} | {late:.1f} |", flush=True)
        finally:
            server.terminate()
            server.wait(20)


if __name__ == "__main__":
    main()
