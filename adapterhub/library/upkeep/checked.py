"""Checks every installed build, on several cores; `interrupted.py` keeps the results of a run that was interrupted."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, Final, TypeVar

from adapterhub.core.digests import Digest, Progress, digest_of, hex_of
from adapterhub.core.errors import AdapterHubError, CouldNotTell, MalformedManifest, shown
from adapterhub.core.limits import Limits, limits, use_limits
from adapterhub.formats.manifest import CONTRACT_FILE, MANIFEST_FILE, WEIGHTS_FILE
from adapterhub.formats.release import Release
from adapterhub.library.admission import Admission, signature_findings
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.installed import while_installed
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed, RowOf, row_of
from adapterhub.library.store.rows import BuildRow
from adapterhub.library.upkeep.damage import Damage, Hashed, hashed_with, missing_objects
from adapterhub.library.upkeep.interrupted import Before, digest_of_facts, facts_below, key_of_files, key_of_folder
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify import Report

_AT_ONCE: Final = 8

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True, kw_only=True)
class LookedAt:
    """The findings in the folder of a build; without a `report` nothing is there, or no build, as `broken` explains.

    `own` is the part of the report that was made of the bytes, `key` what decides about it, "" if that is not
    settled. `hashed` are the files that were read.
    """

    folder: Path
    label: str = ""
    report: Report | None = None
    broken: str = ""
    own: Report | None = None
    key: str = ""
    hashed: tuple[Hashed, ...] = ()
    missing: tuple[Damage, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BuildCheck:
    """The check of each build of a library: called with its folder, and with the key and own report of an earlier look.

    `base` stands in for one not declared. `yanked` are the reasons of the builds that their servers have yanked.
    """

    root: Path
    base: BaseRecord | None = None
    yanked: Mapping[Digest, str] = field(default_factory=dict)
    progress: Progress | None = None

    def header(self) -> str:
        """Return a digest of what decides about all builds."""
        from adapterhub import __version__

        known = [facts_below(self.root / name) for name in ("bases", "families")]
        base = hex_of(digest_of(self.base.to_bytes())) if self.base else ""
        return digest_of_facts([__version__, sys.version, repr(limits()), known, base])

    @cached_property
    def library(self) -> Library:
        """The library; a damaged record is reported by itself."""
        return Library(self.root).past_damage()

    def __call__(self, asked: tuple[Path, Before | None]) -> LookedAt:
        """Check the build in a folder, or take the finding of an interrupted check."""
        folder, before = asked
        try:
            build = self.library.read_build(folder)
        except MalformedManifest as error:
            return LookedAt(folder=folder, broken="; ".join(error.problems))
        except OSError as error:
            there = os.path.lexists(folder)
            return LookedAt(folder=folder, broken=f"`{MANIFEST_FILE}`: {error.strerror}" if there else "")
        broken = self.library.why_broken(build)
        if folder != self.library.folder_for(build.manifest, build.namespace):
            return LookedAt(folder=folder, broken=broken)
        key, own = _key_of(build), None
        try:
            if before is not None and key and before[0] == key:
                own = Report.from_json(before[1])
                if self.progress is not None:
                    self.progress(weights_bytes(folder))
            else:
                own = while_installed(build, partial(self.library.verify_build, build, self.base, self.progress))
            yanked = self.yanked.get(build.manifest.digest)
            signed = partial(with_signature, self.library, build, own or Report.of([]), yanked=yanked)
            report = own and while_installed(build, signed)
        except AdapterHubError as error:  # a damaged record, which is reported by itself
            message = f"the check could not run: {error.message}"
            own, report = None, Report.of([Finding("U_CHECK", "", message, hint=error.hint)])
        if report is None:
            return LookedAt(folder=folder)
        is_kept = own is not None and bool(key) and key == _key_of(build)
        return LookedAt(
            folder=folder,
            label=f"{build.full_name} {build.manifest.label}",
            report=report,
            broken=broken,
            own=own,
            key=key if is_kept else "",
            hashed=tuple(hashed_with(build)),
            missing=tuple(missing_objects(self.library, build)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LookedUp:
    """The row that the index should have of the build in a folder, and why the build is broken, "" if it is not.

    `key` decides about the row, "" if that is not settled.
    """

    folder: Path
    row: RowOf | None = None
    broken: str = ""
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class RowCheck:
    """The row of each build of a library: called with its folder, and with the key and the row of an earlier look."""

    root: Path
    told: set[str] = field(default_factory=set, compare=False)

    def header(self) -> str:
        """Return a digest of what decides about all rows."""
        from adapterhub import __version__

        return digest_of_facts(
            [__version__, sys.version, repr(limits()), BuildRow._fields, facts_below(self.root / "pins")]
        )

    @cached_property
    def library(self) -> Library:
        """The library; a damaged record is reported by itself."""
        return BuildCheck(root=self.root).library

    def __call__(self, asked: tuple[Path, Before | None]) -> LookedUp:
        """Read the index row of the build in a folder, or take that of an interrupted check."""
        folder, before = asked
        key = key_of_files(folder, MANIFEST_FILE, CONTRACT_FILE)
        if before is not None and key and before[0] == key:
            row = BuildRow(*before[1])
            known = not row.base_weights or row.base_weights in self.told
            if known and self.library.store.has_manifest(Digest(row.digest)):
                return LookedUp(folder=folder, row=RowOf(row, None), key=key)
        try:
            build = self.library.read_build(folder)
        except MalformedManifest as error:
            return LookedUp(folder=folder, broken="; ".join(error.problems))
        except OSError as error:
            broken = f"`{MANIFEST_FILE}`: {error.strerror}" if os.path.lexists(folder) else ""
            return LookedUp(folder=folder, broken=broken)
        base = build.base.fingerprint
        if base is not None and base.weights in self.told:  # it is large, and goes to another process once
            base = None
        elif base is not None:
            self.told.add(base.weights)
        row, broken = row_of(build, self.root), self.library.why_broken(build)
        is_kept = not broken and bool(key) and key == key_of_files(folder, MANIFEST_FILE, CONTRACT_FILE)
        return LookedUp(folder=folder, row=RowOf(row, base), broken=broken, key=key if is_kept else "")


def weights_bytes(folder: Path) -> int:
    """Return the size of the numbers in a folder's weights file; 0 when it cannot be read."""
    path = folder / WEIGHTS_FILE
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # opening a pipe would wait
            return 0
        with path.open("rb") as file:
            return max(0, facts.st_size - 8 - int.from_bytes(file.read(8), "little"))
    except OSError:
        return 0


def with_signature(library: Library, build: Installed, report: Report, *, yanked: str | None = None) -> Report:
    """Return the report on a build, with findings about its signature, and one if it was `yanked`."""
    release = Release(manifest=build.manifest, namespace=build.namespace, origin=library.label)
    place = library.origins.place_of(build.manifest.digest, build.full_name)
    found = [*signature_findings(Admission(library), release, lambda: library.provenance(release), place)]
    if yanked is not None:
        message = f"yanked on {shown(place, 200)}: {shown(yanked or 'no reason given', 200)}"
        found.append(Finding("W_YANKED", MANIFEST_FILE, message))
    return Report.of([*report.findings, *found], report.facts)


# ---------------------------------------------------------------- what decides
def _key_of(build: Installed) -> str:
    """Return a digest of what decides about the bytes of a build; "" if they are not settled, or too many."""
    return key_of_folder(build.folder, hex_of(digest_of(build.manifest.with_base(build.base).to_bytes())))


# ---------------------------------------------------------------- on several cores
def on_cores(work: Callable[[_T], _R], items: Iterable[_T], jobs: int) -> Iterator[_R]:
    """`work` on each item, in order: in `jobs` processes, each with a copy of `work`, or in this one."""
    if jobs == 1:
        yield from map(work, items)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (work, limits())) as pool:
        every, waiting = iter(items), deque[Future[list[_R]]]()
        try:
            while some := list(islice(every, _AT_ONCE)):
                waiting.append(pool.submit(_each, some))
                if len(waiting) > 4 * jobs:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool:
            raise CouldNotTell(
                "a process that checked a part ended", hint="look for what ended it; run again"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_work: list[Callable[[Any], Any]] = []
"""What this process does, in one that `on_cores` started."""


def _begin(work: Callable[[Any], Any], in_force: Limits) -> None:
    """Leave an interruption to the process that started this one, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    use_limits(in_force)
    _work[:] = [work]
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _each(items: Sequence[Any]) -> list[Any]:
    return [*map(_work[0], items)]
