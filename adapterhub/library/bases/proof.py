"""Proves that a model file, which an engine is about to load, holds a registered base or a copy of it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol

from adapterhub.core.digests import Digest, Progress
from adapterhub.core.disk.files import read_json, write_durably
from adapterhub.core.errors import BaseMismatch, CouldNotTell, shown
from adapterhub.core.extras import extra_named
from adapterhub.formats.base.fingerprint import BaseComparison, BaseVerdict
from adapterhub.formats.base.weight_files import identity_of, is_settled, weight_files
from adapterhub.formats.documented import Documented
from adapterhub.library.bases.links import SIDES

if TYPE_CHECKING:
    from adapterhub.library.bases.records import BaseRecord, Bases


class Bar(Protocol):
    """Shows how much is done; see `Reporter.progress`."""

    def __call__(self, what: str, total: int | None, *, unit: str = ...) -> AbstractContextManager[Progress]:
        """Yield what counts."""


_METHOD: Final = "adapterhub/proof/1"  # another way to compare needs another number
_LIMIT_BYTES: Final = 1 << 20
_LISTED: Final = 4
_DECIDED: Final = frozenset({BaseVerdict.ACCEPTED_QUANTISED, BaseVerdict.SAME_FAMILY})
"""What a user decided about two bases, whatever their numbers show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof(
    Documented, keys="file=place verdict=comparison.verdict form?=comparison.form differences=comparison.differences"
):
    """How the model at `place` relates to `base`; `files` has the identity of each file of which this is true."""

    place: Annotated[Path, "a path on this machine"]
    base: BaseRecord
    comparison: BaseComparison
    files: Mapping[Path, Mapping[str, int]]

    @property
    def text(self) -> str:
        """The proof in one line."""
        verdict, name = self.comparison.verdict, f"`{shown(self.place.name, 200)}`"
        if verdict in _DECIDED:
            how = "by your own decision, runs adapters of"
        else:
            how = f"is a {self.comparison.form} copy of" if self.comparison.form else "holds"
        said = "; ".join(self.comparison.differences[:1])
        return f"{name} {how} `{self.base.label}`" + (f": {said}" if said else "")

    def ensure(self) -> None:
        """Raise unless adapters of the base may run on the model.

        Raises:
            BaseMismatch: it is another model, or likely a copy, which is not accepted.
            CouldNotTell: nothing can be proved of it.
        """
        verdict = self.comparison.verdict
        if verdict.allows_attach and verdict is not BaseVerdict.UNKNOWN:
            return
        name, base = f"`{shown(self.place.name, 200)}`", f"base `{self.base.label}`"
        told = "".join(f"\n  {sentence}" for sentence in self.comparison.differences[:_LISTED])
        if verdict in (BaseVerdict.CANNOT_TELL, BaseVerdict.UNKNOWN):
            raise CouldNotTell(
                f"nothing proves that {name} holds {base}{told}",
                hint="take a form that can be compared, such as Q8_0 or Q4_K_M, and keep the files of the base here",
            )
        if verdict is BaseVerdict.LIKELY_SAME_QUANTISED:
            way = f"`adapt base add {shown(str(self.place), 200)} --accept likely`"
            raise BaseMismatch(
                f"{name} is likely a copy of {base}, which its form cannot prove{told}",
                hint=f"{way} accepts it in place of its source",
            )
        raise BaseMismatch(
            f"{name} does not hold {base}{told}",
            hint="convert the files of the base, or name with `--base` the base that this file was made from",
        )

    def ensure_unchanged(self) -> None:
        """Raise if a file was replaced or written since it was compared.

        Raises:
            CouldNotTell: one was.
        """
        for path, identity in self.files.items():
            if identity_of(path) != identity:
                raise CouldNotTell(
                    f"`{shown(str(path), 200)}` changed while the engine loaded it", hint="start again when it is whole"
                )

    def weights(self, bases: Bases, bar: Bar) -> Digest:
        """Return the digest of the model's own weights, as a base of its own.

        Weights that the cache lacks are read once.
        """
        return _looked(bases, self.place, self.files, bar).fingerprint.weights


def proof_of(bases: Bases, base: BaseRecord, place: Path, bar: Bar) -> Proof:
    """Compare the model at `place`, a file or a folder, with a registered base.

    If the files of the base are here, many numbers of each tensor are compared, and a result is cached as long as no
    file changes. Otherwise the fingerprints are compared, for which every byte at `place` is read once. A quantised
    base is compared by its source. The user may have accepted a copy, or declared a family.

    Raises:
        BaseNotFound, Malformed, MalformedTensorFile: there is no model at `place`.
        BaseMismatch: the files of the base are not those that were registered.
        CouldNotTell: a file cannot be read, or changed while it was read.
        MissingExtra: numpy is not installed.
    """
    files = {path: identity_of(path) for path in weight_files(place)}
    known = _registered(bases, place, files, bar)
    if known is not None and known.fingerprint.weights == base.fingerprint.weights:
        found: BaseComparison | None = BaseComparison(verdict=BaseVerdict.SAME_WEIGHTS)
    else:
        found = next((_by_files(bases, one, place, files, bar) for one in bases.sources_here(base)), None)
        other = known
        if found is None and other is None:
            other = _looked(bases, place, files, bar)
        if other is not None and (found is None or not found.verdict.allows_attach):
            told = bases.judged(base.fingerprint, other.fingerprint)
            found = told if found is None or told.verdict in _DECIDED else found
    assert found is not None  # a fingerprint always tells something
    return Proof(place=place, base=base, comparison=found, files=files)


def _registered(bases: Bases, place: Path, files: Mapping[Path, object], bar: Bar) -> BaseRecord | None:
    """Return the registered base whose files these are, unchanged."""
    here = {os.path.realpath(place), os.path.realpath(place.parent)}
    for record in bases.list():
        if record.path is None or record.component or os.path.realpath(record.path) not in here:
            continue
        if set(map(os.path.realpath, weight_files(record.path))) == set(map(os.path.realpath, files)):
            with suppress(BaseMismatch), bar(f"fingerprint {place.name}", _size(files)) as progress:
                return bases.current(record, progress=progress)
    return None


def _looked(bases: Bases, place: Path, files: Mapping[Path, object], bar: Bar) -> BaseRecord:
    with bar(f"fingerprint {place.name}", _size(files)) as progress:
        return bases.look(place, progress=progress)


def _size(files: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def _by_files(
    bases: Bases, source: BaseRecord, place: Path, files: Mapping[Path, Mapping[str, int]], bar: Bar
) -> BaseComparison:
    """Return the comparison by many numbers of each tensor, from the cache while no file has changed."""
    looked_at_ns = time.time_ns()
    assert source.path is not None  # the caller found it
    with bar(f"fingerprint {source.label}", _size(weight_files(source.path))) as progress:
        bases.current(source, progress=progress)
    key = {
        "schema": _METHOD,
        "source": source.fingerprint.weights,
        "files": [[os.path.realpath(path), dict(identity)] for path, identity in files.items()],
    }
    kept = _cache_path(bases.cache_folder, source, place)
    if kept is not None and (cached := _cached(kept, key)) is not None:
        return cached
    with extra_named("comparing numbers"):
        from adapterhub.formats.base.quantised.deep import compare_models
        from adapterhub.formats.base.quantised.opening import opened
    found = compare_models(
        opened(source.path),
        opened(place),
        bar=lambda count: bar(f"compare {place.name}", count, unit="numbers"),
        named=SIDES,
    )
    if kept is not None and all(is_settled(identity, looked_at_ns) for identity in files.values()):
        value = {**key, "verdict": found.verdict.value, "form": found.form, "differences": list(found.differences)}
        with suppress(OSError):  # a cache that cannot be written costs time, never the result
            write_durably(kept, json.dumps(value).encode(), sync=False)
    return found


def _cache_path(folder: Path | None, source: BaseRecord, place: Path) -> Path | None:
    if folder is None:
        return None
    named = f"{source.fingerprint.weights} {os.path.realpath(place)}"
    return folder / f"{hashlib.sha256(os.fsencode(named)).hexdigest()}-proof.json"


def _cached(path: Path, key: Mapping[str, Any]) -> BaseComparison | None:
    """Return the cached comparison of exactly these files; None without one, and where the cache is damaged."""
    try:
        value = read_json(path, _LIMIT_BYTES)
        if not isinstance(value, dict) or not key.items() <= value.items():
            return None
        form, said = value["form"], [str(sentence) for sentence in value["differences"]]
        verdict = BaseVerdict(value["verdict"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return BaseComparison(verdict=verdict, form=form if isinstance(form, str) else None, differences=tuple(said))
