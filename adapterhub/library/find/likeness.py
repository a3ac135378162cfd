"""Installed builds whose updates are alike, and those that an update is a sum of.

Sketches propose, in one pass over all of them; the factors of the proposed files decide. So each cosine in an
answer is exact, and a forged sketch proposes in vain.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, TypeAlias

from adapterhub.core.digests import Progress
from adapterhub.core.errors import AdapterHubError, UnsupportedAdapter, UsageProblem, shown
from adapterhub.formats.derived.likeness import (
    LEFT,
    MOST_PARENTS,
    NEAR,
    RELATED,
    SAME,
    Alike,
    Kind,
    Sketches,
    alike,
    explain,
    gram,
    kind_of,
    pursue,
    pursued,
    sketch_of,
)
from adapterhub.formats.derived.reading import AdapterUpdates
from adapterhub.formats.documented import Documented
from adapterhub.library.find.sketching import sketches, sketches_of, updates_of
from adapterhub.library.installed import InstalledBuilds
from adapterhub.library.store.catalog import Installed
from adapterhub.library.store.rows import BuildRow, SketchRow

SHOWN_ABOVE: Final = RELATED
GROUPED_ABOVE: Final = 0.99
MOST_COMPARED: Final = 100
"""The most files that are read to decide about one adapter."""
MOSTLY: Final = 0.3
"""A sum that leaves more of the norm than this explains nothing."""
_PROMISING: Final = 0.6
"""A sum whose sketches leave more of the norm is not looked at: `MOSTLY`, and five times the error of 256 numbers."""
BETTER: Final = 0.5
"""Nor does one that leaves more than this share of what its best part leaves alone: it is near that part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Similar(
    Documented,
    keys="name=build.full_name version=build.version digest=build.digest rank=build.rank dtype=build.dtype cosine scale"
    " kind exact modules_shared modules notes",
):
    """An installed build that is like an adapter. `scale` times the adapter comes closest to it."""

    build: BuildRow
    cosine: Annotated[float, "cosine of the updates"]
    scale: Annotated[float | None, "what the adapter is multiplied by to come closest to this build"]
    kind: Annotated[Kind, "`same update`, `negated`, `near`, `related` or `far`"]
    exact: Annotated[bool, "false: its files cannot be read, and the cosine is an estimate"]
    modules_shared: Annotated[int, "modules that both have, in the same shape"]
    modules: Annotated[int, "modules of the adapter"]
    notes: Annotated[tuple[str, ...], "what else is different, as text"]

    @property
    def words(self) -> str:
        """`legal-qa 1.2.0`, and in brackets what is different about it."""
        differs = [*(["negated"] if self.cosine < 0 else []), *self.scale_words, *self.notes]
        return f"{self.build.full_name} {self.build.version}" + (f" ({', '.join(differs)})" if differs else "")

    @property
    def scale_words(self) -> tuple[str, ...]:
        """`2 times as strong`, where the strength differs by more than rounding; the sign is that of the cosine."""
        scale = abs(self.scale or 1.0)
        return () if abs(scale - 1) < 0.01 else (f"{scale:.3g} times as strong",)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartOf(Documented, keys="name=build.full_name version=build.version digest=build.digest weight declared"):
    """An installed build that an adapter is a sum of, with its weight."""

    build: BuildRow
    weight: float
    declared: Annotated[bool, "the adapter's manifest names it as a parent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness(Documented):
    """What is like one adapter here, the most alike first.

    `parents` is empty if no sum of two builds or more comes much closer to it than one; `unexplained` is then None.
    A sum has no direction: where `turned` is set, a parent has a higher rank than the adapter, and is rather made from
    it. `compared` counts the builds that have a sketch, and `without` says of each other one why it has none.
    """

    of: Annotated[str | None, "digest of the adapter; null for a folder without a manifest"]
    similar: tuple[Similar, ...]
    parents: tuple[PartOf, ...]
    unexplained: Annotated[float | None, "norm of what the parents leave, relative to the whole; null without parents"]
    turned: Annotated[bool, "true: a parent has a higher rank, and may rather be made from the adapter"]
    compared: Annotated[int, "builds that the adapter was compared with"]
    without: Annotated[dict[str, str], "builds that have no sketch, with the reason"] = field(hash=False)

    @property
    def is_plain_sum(self) -> bool:
        """Whether the parents leave no more than rounding to 16 bits does."""
        return self.unexplained is not None and self.unexplained <= LEFT


@dataclass(frozen=True, slots=True, kw_only=True)
class LikeGroup(Documented, title="Group"):
    """Builds of one update or nearly so; each cosine is that with the first of them."""

    members: tuple[Similar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LikenessGroups(Documented, title="SimilarGroups"):
    """The installed adapters that have another one with a cosine of at least `above`."""

    above: Annotated[float, "the least cosine with another of the group"]
    groups: Annotated[tuple[LikeGroup, ...], "each cosine is that with the first of the group"]


def similar_to(
    library: InstalledBuilds,
    adapter: Installed | Path,
    *,
    above: float = SHOWN_ABOVE,
    with_parents: bool = True,
    most_made: int | None = None,
    progress: Progress | None = None,
    among: Sequence[BuildRow] | None = None,
    most: int = MOST_COMPARED,
) -> Likeness:
    """Return the installed builds whose update is like that of a build or of the adapter in a folder.

    Lists cosines of at least `above`, from 0 to 1, and negated updates as much; at most `most` of them. Of the sketches
    that are missing it makes at most `most_made`; builds without one are passed over. With `among`, only these builds
    are compared.

    Raises:
        UsageProblem: `above` is out of bounds.
        UnsupportedAdapter: the adapter has no update to compare: another method, zeros, numbers that are not finite.
        DigestMismatch, Malformed: its files cannot be read.
    """
    if not 0 <= above <= 1:
        raise UsageProblem(f"`above` {above}: expected a cosine from 0 to 1")
    if among is None:
        known, rows = sketches(library, progress, most_made=most_made)
    else:
        rows = {row.digest: [row] for row in among}
        known = sketches_of(library, among, progress, most_made=most_made)
    build = adapter if isinstance(adapter, Installed) else None
    digests = build.manifest.digests if build is not None else None
    with updates_of(build.folder if build is not None else Path(str(adapter)), digests) as updates:
        sketch = sketch_of(updates).packed()
        if not sketch:
            raise UnsupportedAdapter(
                f"{shown(_name(adapter))} has no direction: its update is zero or not finite",
                hint="`adapt verify` names the fault",
            )
        own, rank = build.manifest.digest if build is not None else None, max(m.rank for m in updates.modules.values())
        others = [one for one in known.values() if one.sketch and one.digest != own]
        seeker = _Seeker(library, updates, build, rows)
        found = seeker.near(sketch, others, above, most)
        explained: tuple[tuple[PartOf, ...], float | None] = ((), None)
        if with_parents:
            same = {one.build.digest for one in found if abs(one.cosine) >= SAME}
            explained = seeker.parents(sketch, [one for one in others if one.digest not in same and not one.flags])
    return Likeness(
        of=own,
        similar=tuple(one for one in found if abs(one.cosine) >= above),
        parents=explained[0],
        unexplained=explained[1],
        turned=any((one.build.rank or 0) > rank for one in explained[0]),
        compared=len(others),
        without={_label(rows[one.digest][0]): one.flags for one in known.values() if not one.sketch},
    )


def proposed_by_sketches(
    library: InstalledBuilds, build: BuildRow, among: Sequence[BuildRow], *, above: float, most_made: int | None = None
) -> list[BuildRow]:
    """Return those of some builds that `similar_to` may find near another, or to be parts of it, without its files.

    A build without a sketch of its own is near all of them: its files decide.
    """
    known = sketches_of(library, [build, *among], most_made=most_made)
    mine = known.get(build.digest)
    if mine is None or not mine.sketch:
        return [*among]
    others = [row for row in among if row.digest != build.digest and row.digest in known and known[row.digest].sketch]
    if not others:
        return []
    packed = Sketches([known[row.digest].sketch for row in others])
    least = above - _error_at(above)
    chosen = {at for at, cosine in enumerate(packed.cosines(mine.sketch).tolist()) if abs(cosine) >= least}
    whole = [at for at, row in enumerate(others) if not known[row.digest].flags]
    parts, left = pursued(mine.sketch, packed.numbers[whole])
    if left <= _PROMISING:
        chosen |= {whole[at] for at in parts}
    return [others[at] for at in sorted(chosen)]


class _Seeker:
    """Compares one adapter, whose files are open, with installed builds."""

    def __init__(
        self,
        library: InstalledBuilds,
        updates: AdapterUpdates,
        build: Installed | None,
        rows: Mapping[str, Sequence[BuildRow]],
    ) -> None:
        self._library, self._updates, self._build, self._rows = library, updates, build, rows
        weights = build.base.fingerprint.weights if build is not None and build.base.fingerprint else None
        self._bases = library.catalog.read(lambda index: index.equivalents(weights)) if weights else None

    def near(
        self, sketch: bytes, others: Sequence[SketchRow], above: float, most: int = MOST_COMPARED
    ) -> list[Similar]:
        """Those whose exact cosine may be `above`, the greatest first."""
        if not others:
            return []
        estimates = Sketches([one.sketch for one in others]).cosines(sketch).tolist()
        proposed = sorted(zip(estimates, others, strict=True), key=lambda pair: -abs(pair[0]))[:most]
        least = above - _error_at(above)
        found = [
            self.beside(self._rows[other.digest][0], estimate) for estimate, other in proposed if abs(estimate) >= least
        ]
        return sorted(found, key=lambda one: (-abs(round(one.cosine, 4)), one.cosine < 0, one.build.added_at))

    def beside(self, row: BuildRow, estimate: float) -> Similar:
        """Return the adapter beside an installed build; `estimate` stands in where the build cannot be read."""
        notes = [*self._notes(row)]
        try:
            with _opened(self._library, row) as theirs:
                [one] = alike(self._updates, [theirs])
                if self._updates.partial or theirs.partial:
                    notes.append("of the factors alone, which are not the whole update")
        except (AdapterHubError, OSError):
            one = Alike(cosine=None, scale=None, shared=0, modules=len(self._updates.modules))
        exact = one.cosine is not None
        cosine = one.cosine if one.cosine is not None else estimate
        return Similar(
            build=row,
            cosine=round(cosine, 6),
            scale=None if one.scale is None else float(f"{one.scale:.6g}"),
            kind=kind_of(cosine) if exact else "far",
            exact=exact,
            modules_shared=one.shared,
            modules=one.modules,
            notes=(*notes, *(() if exact else ("its files cannot be read; `adapt verify` says why",))),
        )

    def _notes(self, row: BuildRow) -> Iterator[str]:
        build = self._build
        if build is None:
            return
        if row.dtype != build.manifest.dtype:
            yield row.dtype
        if row.rank != build.manifest.rank:
            yield f"rank {row.rank}"
        if self._bases and row.base_weights and row.base_weights not in self._bases:
            yield "declared for another base"

    def parents(self, sketch: bytes, others: Sequence[SketchRow]) -> tuple[tuple[PartOf, ...], float | None]:
        """Return the builds of which the update is a sum, as far as their files confirm it, and what they leave."""
        build = self._build
        declared = {one.digest for one in build.manifest.parents} if build is not None else set()
        own = build.manifest.digest if build is not None else None
        others = [one for one in others if own is None or not self._names_as_parent(one.digest, own)]
        if len(others) < 2:
            return (), None
        begin = [at for at, one in enumerate(others) if one.digest in declared]
        proposed = pursue(sketch, Sketches([one.sketch for one in others]).numbers, begin)
        with ExitStack() as stack:
            rows, opened = [], []
            for at in proposed[:MOST_PARENTS]:
                row = self._rows[others[at].digest][0]
                try:
                    opened.append(stack.enter_context(_opened(self._library, row)))
                    rows.append(row)
                except (AdapterHubError, OSError):  # a damaged one is for `verify` to tell
                    continue
            result = explain(gram([self._updates, *opened])) if opened else None
        if result is None or len(result.weights) < 2:
            return (), None
        if result.unexplained > LEFT and result.unexplained > min(MOSTLY, BETTER * result.alone):
            return (), None
        parts = [
            PartOf(build=rows[at], weight=float(f"{weight:.4g}"), declared=rows[at].digest in declared)
            for at, weight in result.weights.items()
        ]
        return tuple(sorted(parts, key=lambda one: -abs(one.weight))), float(f"{result.unexplained:.3g}")

    def _names_as_parent(self, digest: str, own: str) -> bool:
        """Return whether a build says that it was made from this one: the sum would be turned round."""
        row = self._rows[digest][0]
        if not row.parents:
            return False
        try:
            manifest = self._library.read_build(self._library.root / row.folder).manifest
        except (AdapterHubError, OSError):
            return False
        return any(parent.digest == own for parent in manifest.parents)


KnownSketches: TypeAlias = Callable[[Callable[[bytes], Iterable[int]]], Sequence[SketchRow]]
"""Gives the sketches at the places that its argument chooses among all, packed one after the other."""


def same_as(
    library: InstalledBuilds,
    build: Installed,
    sketch: SketchRow,
    known: KnownSketches,
    rows: Callable[[], Mapping[str, Sequence[BuildRow]]],
) -> list[Similar]:
    """Return the installed builds of the same update, negated ones included, among those with a sketch in `known`.

    `rows` gives the builds by digest; it is called where a sketch is near.
    """

    def near_in(packed: bytes) -> list[int]:
        estimates = Sketches(packed).cosines(sketch.sketch)
        chosen: list[int] = (abs(estimates) >= SAME - _error_at(SAME)).nonzero()[0].tolist()
        return chosen

    proposed = [one for one in known(near_in) if one.digest != build.manifest.digest]
    if not proposed:
        return []
    with updates_of(build.folder, build.manifest.digests) as updates:
        near = _Seeker(library, updates, build, rows()).near(sketch.sketch, proposed, SAME)
    return [one for one in near if one.exact and abs(one.cosine) >= SAME]


def similar_groups(
    library: InstalledBuilds, *, above: float = GROUPED_ABOVE, progress: Progress | None = None
) -> LikenessGroups:
    """Group the installed builds: each has a cosine of at least `above`, negated or not, with another of its group.

    Raises:
        UsageProblem: `above` is not from 0.5 to 1; below, everything would be one group.
    """
    if not RELATED <= above <= 1:
        raise UsageProblem(f"`above` {above}: expected a cosine from {RELATED} to 1 for groups")
    known, rows = sketches(library, progress)
    all_of = sorted((one for one in known.values() if one.sketch), key=lambda one: rows[one.digest][0].added_at)
    packed, group_of = Sketches([one.sketch for one in all_of]), list(range(len(all_of)))
    for at, one in enumerate(all_of):
        near = abs(packed.cosines(one.sketch)[at + 1 :])
        for other in (at + 1 + int(i) for i in (near >= above - _error_at(above)).nonzero()[0]):
            pair = (rows[digest][0] for digest in (one.digest, all_of[other].digest))
            if group_of[other] != group_of[at] and _cosine(library, *pair) >= above:
                old, new = group_of[other], group_of[at]
                group_of = [new if group == old else group for group in group_of]
    groups: dict[int, list[str]] = {}
    for one, group in zip(all_of, group_of, strict=True):
        groups.setdefault(group, []).append(one.digest)
    found = []
    for digests in groups.values():
        if len(digests) > 1:
            with contextlib.suppress(FileNotFoundError):  # removed since
                found.append(_group(library, rows, digests))
    return LikenessGroups(above=above, groups=tuple(found))


def _group(library: InstalledBuilds, rows: Mapping[str, Sequence[BuildRow]], digests: Sequence[str]) -> LikeGroup:
    first = rows[digests[0]][0]
    build = library.read_build(library.root / first.folder)
    with updates_of(build.folder, build.manifest.digests) as updates:
        seeker = _Seeker(library, updates, build, rows)
        return LikeGroup(members=tuple(seeker.beside(rows[digest][0], 0.0) for digest in digests))


def _cosine(library: InstalledBuilds, first: BuildRow, second: BuildRow) -> float:
    try:
        with _opened(library, first) as one, _opened(library, second) as other:
            return abs(alike(one, [other])[0].cosine or 0.0)
    except (AdapterHubError, OSError):
        return 0.0


def _opened(library: InstalledBuilds, row: BuildRow) -> AbstractContextManager[AdapterUpdates]:
    build = library.read_build(library.root / row.folder)
    return updates_of(build.folder, build.manifest.digests)


def _error_at(cosine: float) -> float:
    """Return how far below the exact cosine a sketch's may lie: five times the error that was measured there."""
    return 0.02 if cosine >= 0.99 else 0.05 if cosine >= NEAR else 0.2


def _name(adapter: Installed | Path) -> str:
    return f"`{adapter.full_name} {adapter.manifest.version}`" if isinstance(adapter, Installed) else f"`{adapter}`"


def _label(row: BuildRow) -> str:
    return f"{row.full_name} {row.version}"
