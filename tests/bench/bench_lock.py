"""Locking: one adapter out of 10,000 candidates, and a project of 1,000 adapters, fresh and unchanged.

    python -m tests.bench.bench_lock [--candidates 10000] [--adapters 1000]

Peer: `tomllib` reading the same lock file, in the same run. Floor of the candidates: one pass over the same files, with
a look at each and `json` and `sha256` of each manifest. The curves, the floor's too, are for a hundredth, a tenth and
all of them, each the least of three. The library and the directory are real; the weights are never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import tomllib

from adapterhub.core.specs import parse_name
from adapterhub.formats.manifest import MANIFEST_FILE, Manifest
from adapterhub.library.directory import PublishedDirectory
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.projects.lock.lockfile import lock_problems, lock_text, parse_lock
from adapterhub.projects.locking import LockOutcome, lock_project
from adapterhub.projects.project import read_project
from tests.bench.harness import given, timed, told
from tests.support.tiny import make_adapter, make_base


def least(run: Callable[[], object]) -> float:
    """The least of three runs: the first finds what the kernel does not hold yet."""
    return min(timed(run)[0] for _ in range(3))


def manifest_of(folder: Path, library: Library) -> Manifest:
    """The manifest of a tiny adapter on a registered base."""
    base = library.bases.add(make_base(folder / "base"), "base-7b")
    made = make_adapter(folder / "made")
    about = Description(name=parse_name("adapter-0"), version="1.0.0")
    return library.add(made, about, base=base).build.manifest


def publish(root: Path, manifest: Manifest) -> None:
    """A build in a directory; all share the files of one."""
    folder = root / manifest.name / f"{manifest.version}-r{manifest.rank}"
    folder.mkdir(parents=True)
    for entry in manifest.files:
        (folder / entry.path).hardlink_to(root.parent / "made" / entry.path)
    (folder / MANIFEST_FILE).write_bytes(manifest.to_bytes())


def look_at_all(root: Path) -> None:
    """The least that reading a directory of builds takes."""
    for folder, _, names in os.walk(root):
        for name in names:
            os.lstat(f"{folder}/{name}")
        raw = Path(folder, MANIFEST_FILE).read_bytes() if MANIFEST_FILE in names else b"{}"
        json.loads(raw)
        hashlib.sha256(raw).digest()


def lock(library: Library, folder: Path, places: PublishedDirectory, previous: LockOutcome | None) -> LockOutcome:
    """One lock of the project in `folder`, from its files."""
    text = lock_text(previous.lock) if previous else None
    project = read_project(folder)
    before = parse_lock(text) if text else None
    return lock_project(library, project, lambda _: [places], previous=before)


def main() -> None:
    """Measure and print."""
    asked = given(__doc__, candidates=10_000, adapters=1_000)
    with TemporaryDirectory() as name:
        folder = Path(name)
        library = Library(folder / "home")
        manifest = manifest_of(folder, library)

        many = folder / "many"
        for number in range(asked.candidates):
            publish(many, replace(manifest, version=f"1.{number // 100}.{number % 100}"))
        (folder / "one").mkdir()
        (folder / "one" / "adapters.toml").write_text(
            '[project]\nbase = "base-7b"\n[adapters]\nadapter-0 = ">=1.2,<1.90"\n'
        )
        places = PublishedDirectory(many)
        seconds, _ = timed(lambda: lock(library, folder / "one", places, None))
        again, _ = timed(lambda: lock(library, folder / "one", places, None))
        floor, _ = timed(lambda: look_at_all(many))
        print(f"{asked.candidates:,} candidates of one name: {seconds:.2f} s CPU, of that read from disk "
              f"{seconds - again:.2f} s, chosen {again:.2f} s; floor {floor:.2f} s, ratio {seconds / floor:.1f}")  # fmt: skip
        curve, floors = {}, {}
        for count in (asked.candidates // 100, asked.candidates // 10, asked.candidates):
            part = folder / f"part-{count}"
            (part / "adapter-0").mkdir(parents=True)
            for build in sorted((many / "adapter-0").iterdir())[:: asked.candidates // count]:
                shutil.copytree(build, part / "adapter-0" / build.name, copy_function=os.link)
            curve[count] = least(lambda: lock(library, folder / "one", PublishedDirectory(part), None))  # noqa: B023 - at once
            floors[count] = least(lambda: look_at_all(part))  # noqa: B023 - at once
        print(told("lock, candidates", curve))
        print(told("the floor", floors))

        wide = folder / "wide"
        names = [f"adapter-{number}" for number in range(asked.adapters)]
        for one in names:
            publish(wide, replace(manifest, name=parse_name(one)))
        (folder / "all").mkdir()
        wanted = "".join(f'{one} = ">=1"\n' for one in names)
        (folder / "all" / "adapters.toml").write_text(f'[project]\nbase = "base-7b"\n[adapters]\n{wanted}')
        seconds, first = timed(lambda: lock(library, folder / "all", PublishedDirectory(wide), None))
        assert isinstance(first, LockOutcome)
        again, same = timed(lambda: lock(library, folder / "all", PublishedDirectory(wide), first))
        assert isinstance(same, LockOutcome)
        assert same.lock == first.lock
        print(f"{asked.adapters:,} adapters: locked fresh {seconds:.2f} s CPU, again unchanged {again:.3f} s")

        text = lock_text(first.lock)
        ours, _ = timed(lambda: parse_lock(text))
        peer, _ = timed(lambda: tomllib.loads(text))
        printed, _ = timed(lambda: lock_text(first.lock))
        project = read_project(folder / "all")
        stale, _ = timed(lambda: lock_problems(project, first.lock))
        print(f"lock file of {len(text):,} bytes: read and checked {ours:.3f} s, printed {printed:.3f} s, compared with "
              f"the project {stale:.3f} s; tomllib alone {peer:.3f} s   ratio {ours / peer:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
