"""Results of checks of contracts: measured here and kept, so that the same check is free the second time, or signed.

    cache/tests/<64 hex of the manifest>/<64 hex of the question>.json    measured here, numbered in their order
    tests/<64 hex of the manifest>/<64 hex of the file>.json              signed by a tester

A result counts only for the very question: the same manifest, contract, base, precision, engine and bounds. A published
directory has the signed ones in `.tests/`, beside the folder of the build. The cache may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.digests import Digest, canonical_json, digest_of, hex_of, strict_json
from adapterhub.core.disk.files import read_plain
from adapterhub.core.errors import NotAllowed, SignatureRefused, StoreLocked
from adapterhub.formats.contract.results import RESULT_LIMIT_BYTES
from adapterhub.library.store.blobs import Store
from adapterhub.library.store.signed_files import SignedFiles
from adapterhub.trust.signing.results import SignedResult, newest, read_result
from adapterhub.trust.signing.trust import Trust, TrustFile, clock

if TYPE_CHECKING:
    from adapterhub.formats.contract.results import Tested
    from adapterhub.formats.release import Release
    from adapterhub.library.library import Library
    from adapterhub.library.transfer import Source

BESIDE_BUILDS: Final = ".tests"
"""The folder of signed results in a published directory; clients that do not know it pass over it."""

MOST_UNKNOWN: Final = 100
"""Results by keys that are not trusted which a library takes for one manifest."""

_LIMIT_BYTES: Final = 4 << 20
_SMALL_BYTES: Final = 16 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A kept result, the question that it answers, and when. Of two on one build, the larger `sequence` is later."""

    result: Tested
    question: Mapping[str, Any]
    sequence: int
    time: float


class KeptResults:
    """The kept results of one library."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def find(self, manifest: Digest, question: Mapping[str, Any]) -> Tested | None:
        """Return the result of the very same question; None if there is none, or it cannot be read."""
        kept = self._read(self._path(manifest, question))
        return kept.result if kept is not None and kept.question == dict(question) else None

    def all(self, manifest: Digest) -> list[Kept]:
        """Every result that was measured here on a build, in their order; what cannot be read is left out.

        Those of runners are not among them: they measure something else than a contract.
        """
        return [kept for kept in self._every(manifest) if "runner" not in kept.question]

    def latest(self, manifest: Digest, contract: str, first: str = "") -> list[Kept]:
        """Return the latest result of a build on each base: that on the base of weights `first`, then others.

        The others come with the latest first.
        """
        of_base = {kept.result.base_weights: kept for kept in self.all(manifest) if kept.result.contract == contract}
        return sorted(of_base.values(), key=lambda kept: (kept.result.base_weights != first, -kept.sequence))

    def keep(self, manifest: Digest, question: Mapping[str, Any], result: Tested) -> None:
        """Keep a result as the latest of its build; a library that cannot be written keeps none."""
        with contextlib.suppress(NotAllowed, StoreLocked), self._store.lock("tests", exclusive=True):
            order = {"sequence": max((kept.sequence for kept in self._every(manifest)), default=0) + 1}
            value = {"question": dict(question), "result": result.to_json(), "time": round(time.time()), **order}
            self._store.write(self._path(manifest, question), canonical_json(value), sync=False)

    def _every(self, manifest: Digest) -> list[Kept]:
        read = map(self._read, self._folder(manifest).glob("*.json"))
        return sorted((kept for kept in read if kept is not None), key=lambda kept: kept.sequence)

    def _read(self, path: Path) -> Kept | None:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            data = read_plain(path, _LIMIT_BYTES)
            return (_parsed if len(data) <= _SMALL_BYTES else _parsed.__wrapped__)(data)
        return None

    def _folder(self, manifest: Digest) -> Path:
        return self._store.root / "cache" / "tests" / hex_of(manifest)

    def _path(self, manifest: Digest, question: Mapping[str, Any]) -> Path:
        return self._folder(manifest) / f"{hex_of(digest_of(canonical_json(dict(question))))}.json"


@lru_cache(maxsize=1024)
def _parsed(data: bytes) -> Kept:
    """Return the result in the bytes of a file: a page of many builds reads the same ones again."""
    from adapterhub.formats.contract.results import Tested

    value = strict_json(data, limit_bytes=_LIMIT_BYTES)
    result = Tested.from_json({**value["result"], "is_cached": True})
    question, sequence = MappingProxyType(dict(value["question"])), int(value["sequence"])
    return Kept(result=result, question=question, sequence=sequence, time=float(value["time"]))


class ResultFiles(SignedFiles):
    """The signed results on one manifest, in a library or beside a published build."""

    def __init__(self, folder: Path, manifest: Digest, store: Store | None = None) -> None:
        """`folder` is `tests` or `.tests`; `store` is that of the library, None in a published directory."""
        super().__init__(folder, manifest, store, limit_bytes=RESULT_LIMIT_BYTES)

    @classmethod
    def of_library(cls, store: Store, manifest: Digest) -> ResultFiles:
        """Those of a library."""
        return cls(store.root / "tests", manifest, store)

    @classmethod
    def beside(cls, build: Path, manifest: Digest) -> ResultFiles:
        """Those beside the folder of a published build."""
        return cls(build.parent / BESIDE_BUILDS, manifest)

    def current(self, full_name: str) -> list[bytes]:
        """Return the files without those that a later result by the same key supersedes.

        A broken one is still among them.
        """
        files, parsed = self.read(), []
        for raw in files:
            with contextlib.suppress(SignatureRefused):
                parsed.append(read_result(raw, Trust(), full_name=full_name, manifest=self._manifest, now=math.inf))
        superseded = {one.digest for one in parsed} - {one.digest for one in newest(parsed)}
        return [raw for raw in files if digest_of(raw) not in superseded]


def results_of(library: Library, manifest: Digest, full_name: str) -> tuple[list[SignedResult], list[str]]:
    """Return the signed results that a library has on a build, each verified now, and why others do not count.

    A result that the same key supersedes by a later one is left out. The latest comes first.

    Raises:
        NotAllowed, Malformed: the file of the trusted keys cannot be used.
    """
    trust = TrustFile(library.root).read()
    place = library.origins.place_of(manifest, full_name)
    found, refusals = [], []
    for raw in ResultFiles.of_library(library.store, manifest).read():
        try:
            found.append(read_result(raw, trust, full_name=full_name, manifest=manifest, places=[place], now=clock()))
        except SignatureRefused as error:
            refusals.append(error.clause)
    return newest(found), refusals


def keeps_results(source: Source) -> bool:
    """Return whether a place has room for signed results: another library, a published directory, or our registry."""
    has_room = getattr(source, "keeps_results", hasattr(source, "results"))
    return bool(has_room) or isinstance(getattr(source, "store", None), Store)


def results_at(source: Source, release: Release) -> Sequence[bytes]:
    """Return the signed results that a place offers for a release, unverified.

    None if its kind has no room for them.
    """
    if isinstance(store := getattr(source, "store", None), Store):  # another library
        return ResultFiles.of_library(store, release.digest).read()
    read = getattr(source, "results", None)
    found: Sequence[bytes] = read(release) if read is not None else ()
    return found


def take_results(library: Library, offered: Sequence[bytes], manifest: Digest, full_name: str) -> int:
    """Keep results that a place offers for a build; returns how many are new.

    Broken and forged ones are left, and so are those by keys that are not trusted beyond the first hundred.
    """
    if not offered:
        return 0
    files = ResultFiles.of_library(library.store, manifest)
    present = files.read()
    new = [raw for raw in offered if raw not in present]
    trust = TrustFile(library.root).read()
    count, room = 0, MOST_UNKNOWN - len(present)
    for raw in new:
        try:
            one = read_result(raw, trust, full_name=full_name, manifest=manifest, now=clock())
        except SignatureRefused:
            continue
        if one.standing == "unknown_key":
            room -= 1
            if room < 0:
                continue
        files.add(raw)
        count += 1
    return count
