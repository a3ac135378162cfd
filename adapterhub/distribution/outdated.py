"""What places offer beside what one has: the newest release that is allowed, and the newest that fits at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterHubError, AdapterNotFound, Incompatible, UsageProblem
from adapterhub.core.ranks import ANY_RANK, RankRange
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.choosing import candidates_of, choose
from adapterhub.distribution.resolve import Candidate, Objection
from adapterhub.library.bases.requested import RequestedBase
from adapterhub.library.library import Library
from adapterhub.library.transfer import Source

AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One adapter that is had, and what may take its place. `key` is its name in the project or in the library.

    `rank` is the one it has: of the newest release, a build of that rank is taken where there is one.
    """

    key: str
    spec: AdapterSpec
    version: str
    digest: Digest
    rank: int | None
    wanted: RequestedBase | None
    sources: Callable[[], Sequence[Source]]
    ranks: RankRange = ANY_RANK
    objection: Objection | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one place offers. `allowed` is what the requirement would take, `newest` the newest that fits the base.

    `yanked` is the reason why the very build that is had was withdrawn there; `problem` why the place did not answer.
    """

    asked: Asked
    place: str
    allowed: Candidate | None = None
    newest: Candidate | None = None
    yanked: str | None = None
    problem: str | None = None

    @property
    def has_allowed(self) -> bool:
        """Whether an upgrade would take another, newer build from here."""
        return self.allowed is not None and self._is_newer(self.allowed)

    @property
    def has_newer(self) -> bool:
        """Whether any newer release fits, allowed or not."""
        return self.newest is not None and self._is_newer(self.newest)

    @property
    def is_worth_telling(self) -> bool:
        """Whether anything is not as it should be."""
        return self.has_allowed or self.has_newer or self.yanked is not None or self.problem is not None

    def _is_newer(self, candidate: Candidate) -> bool:
        from packaging.version import Version

        return candidate.digest != self.asked.digest and Version(candidate.version) > Version(self.asked.version)

    def to_json(self) -> dict[str, Any]:
        """Everything, with the digests of what could be taken."""
        return {
            "name": self.asked.key,
            "spec": str(self.asked.spec),
            "current": self.asked.version,
            "current_digest": self.asked.digest,
            "allowed": self.allowed.version if self.allowed else None,
            "allowed_digest": self.allowed.digest if self.allowed else None,
            "newest": self.newest.version if self.newest else None,
            "newest_digest": self.newest.digest if self.newest else None,
            "place": self.place,
            "yanked": self.yanked,
            "problem": self.problem,
        }


def offers(library: Library, asked: Sequence[Asked], progress: Callable[[int, int], None] | None = None) -> list[Offer]:
    """What every place of every adapter offers, in their order; places are asked at the same time.

    A place that does not answer is an offer with a problem; one that has nothing by the name is left out.
    """
    found: list[Offer] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done, some in enumerate(pool.map(lambda one: list(_of(library, one)), asked), 1):
            found += some
            if progress is not None:
                progress(done, len(asked))
    return found


def _of(library: Library, asked: Asked) -> Iterable[Offer]:
    try:
        sources = asked.sources()
    except AdapterHubError as error:
        yield Offer(asked=asked, place="", problem=error.message)
        return
    for source in sources:
        try:
            releases = source.releases(asked.spec)
        except AdapterNotFound:
            continue
        except AdapterHubError as error:
            yield Offer(asked=asked, place=source.label, problem=error.message)
            continue
        if not releases:
            continue
        candidates = candidates_of(library, releases, asked.wanted, source.label)
        anything = replace(asked.spec, specifiers="", digest_prefix=None)
        yield Offer(
            asked=asked,
            place=source.label,
            allowed=_choice(asked.spec, candidates, asked, asked.ranks, asked.objection),
            newest=_choice(anything, candidates, asked, ANY_RANK, None),
            yanked=next((r.yanked for r in releases if r.digest == asked.digest and r.yanked is not None), None),
        )


def _choice(
    spec: AdapterSpec,
    candidates: Sequence[Candidate],
    asked: Asked,
    bounds: RankRange,
    objection: Objection | None,
) -> Candidate | None:
    """The build that would be taken, of the rank that one has where the same release has it; None when none fits."""
    try:
        chosen = choose(spec, candidates, asked.wanted, bounds, objection=objection).chosen
    except (Incompatible, UsageProblem, AdapterNotFound):
        return None
    if asked.rank is None or chosen.rank == asked.rank or bounds != ANY_RANK:
        return chosen
    same = RankRange(rank=asked.rank)
    try:
        other = choose(spec, candidates, asked.wanted, same, objection=objection).chosen
    except (Incompatible, UsageProblem, AdapterNotFound):
        return chosen
    return other if other.version == chosen.version else chosen
