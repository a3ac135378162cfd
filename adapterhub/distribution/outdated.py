"""Compares what you have with what places offer: the newest allowed release, and the newest that fits the base."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Final

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AdapterHubError, AdapterNotFound, Incompatible, UsageProblem
from adapterhub.core.ranks import ANY_RANK, RankRange
from adapterhub.core.specs import AdapterSpec, version_of
from adapterhub.distribution.choosing import candidates_of
from adapterhub.distribution.install import InstallPlan
from adapterhub.distribution.resolve import Candidate, Objection, resolve
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.formats.contract.results import Tested
from adapterhub.formats.documented import Documented
from adapterhub.library.bases.requested import RequestedBase
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.transfer import Source
from adapterhub.library.upkeep.interrupted import Interrupted, digest_of_facts

AT_ONCE: Final = 8
_WAITING: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeRequest:
    """One adapter that you have, and what may replace it. `key` is its name in the project or in the library.

    `rank` is its rank now: among the builds of the newest release, one of the same rank is preferred. `here` are the
    digests of all builds that need not be brought.
    """

    key: Annotated[str, "its name in the project, otherwise its own name"]
    spec: Annotated[AdapterSpec, "the spec that was searched for"]
    version: Annotated[str, "the locked or installed version"]
    digest: Digest
    rank: int | None
    wanted: RequestedBase | None
    sources: Callable[[], Sequence[Source]]
    ranks: RankRange = ANY_RANK
    objection: Objection | None = None
    here: frozenset[Digest] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Offer(
    Documented,
    keys="name=request.key spec=request.spec current=request.version current_digest=request.digest"
    " allowed=allowed.version allowed_digest=allowed.digest newest=newest.version newest_digest=newest.digest"
    " place yanked problem",
):
    """The releases that one place has of a locked or installed adapter.

    `allowed` meets the requirement; `newest` is the newest that fits the base.

    `yanked` is the reason why the present build was withdrawn there; `problem` is why the place did not answer.
    """

    request: UpgradeRequest
    place: Annotated[str, "where it was found, as text"]
    allowed: Annotated[Candidate | None, "the newest version that the requirement allows; null: none"] = None
    newest: Annotated[Candidate | None, "the newest version that fits the base"] = None
    yanked: Annotated[str | None, "why the current version was withdrawn; null: it was not"] = None
    problem: Annotated[str | None, "why the place did not answer"] = None

    @property
    def has_allowed(self) -> bool:
        """Whether an upgrade would take another build from this place: a newer one, or any for one that was yanked."""
        if self.allowed is None or self.allowed.digest in {self.request.digest, *self.request.here}:
            return False
        return self.yanked is not None or self._is_newer(self.allowed)

    @property
    def has_replaced(self) -> bool:
        """Whether what an upgrade would take instead of a yanked build is here."""
        return self.yanked is not None and self.allowed is not None and self.allowed.digest in self.request.here

    @property
    def has_newer(self) -> bool:
        """Whether any newer release fits, allowed or not."""
        return self.newest is not None and self._is_newer(self.newest)

    @property
    def is_worth_telling(self) -> bool:
        """Whether there is anything to report."""
        return self.has_allowed or self.has_newer or self.yanked is not None or self.problem is not None

    def _is_newer(self, candidate: Candidate) -> bool:
        from packaging.version import Version

        is_here = candidate.digest in {self.request.digest, *self.request.here}
        return not is_here and Version(candidate.version) > Version(self.request.version)

    def kept(self) -> dict[str, Any]:
        """Return the offer as JSON, for a check that is interrupted; `restored` reads it."""
        allowed, newest = (one and asdict(one) | {"verdict": one.verdict.value} for one in (self.allowed, self.newest))
        return {"place": self.place, "yanked": self.yanked, "allowed": allowed, "newest": newest}

    @classmethod
    def restored(cls, request: UpgradeRequest, value: Mapping[str, Any]) -> Offer:
        """Return the offer that was `kept`."""

        def candidate(one: dict[str, Any] | None) -> Candidate | None:
            if one is None:
                return None
            told = {"verdict": BaseVerdict(one["verdict"]), "differences": tuple(one["differences"])}
            return Candidate(**one | told)

        allowed, newest = map(candidate, (value["allowed"], value["newest"]))
        return cls(request=request, place=value["place"], yanked=value["yanked"], allowed=allowed, newest=newest)

    def __repr__(self) -> str:
        newest = self.newest.version if self.newest else "none"
        return f"<Offer {self.request.key} {self.request.version}, newest {newest} in {self.place}>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Upgraded(
    Documented,
    keys="name=offer.request.key from=offer.request.version to=taken.version digest=taken.digest"
    " place=offer.place path=folder tests? kept?",
    title="Newer",
):
    """A newer release that was, or would be, installed beside version `from`."""

    offer: Offer
    plan: InstallPlan
    added: Added | None
    tested: Tested | None = None

    @property
    def taken(self) -> Candidate:
        """The newer release."""
        assert self.offer.allowed is not None  # an upgrade takes what is allowed
        return self.offer.allowed

    @property
    def folder(self) -> Path | None:
        """Its folder; null with --dry-run unless installed."""
        build = self.added.build if self.added else self.plan.present
        return build.folder if build else None

    @property
    def tests(self) -> tuple[Tested, ...] | None:
        """With --test: how it does by the contract of the installed one."""
        return (self.tested,) if self.tested else None

    @property
    def kept(self) -> bool | None:
        """With --test: whether it came in."""
        return self.folder is not None if self.tested else None

    def __repr__(self) -> str:
        return f"<Upgraded {self.offer.request.key} {self.offer.request.version} -> {self.taken.version}>"


def offers(
    library: Library,
    requests: Sequence[UpgradeRequest],
    progress: Callable[[int, int], None] | None = None,
    *,
    jobs: int = AT_ONCE,
    before: Interrupted | None = None,
) -> list[Offer]:
    """Return the offers of every place of every adapter, in order; `jobs` requests run at the same time.

    A place that does not answer gives an offer with a `problem`; a place without the name gives none. `before` keeps
    what places told, and gives it where it has it.
    """
    found: list[Offer] = []

    def told_of(one: UpgradeRequest) -> list[Offer]:
        of, key = f"{one.key} {one.digest}", _key_of(one)
        earlier = before and before.before(of)
        if earlier and earlier[0] == key:
            return [Offer.restored(one, value) for value in earlier[1]]
        offered = list(_of(library, one))
        if before is not None and all(offer.problem is None for offer in offered):
            with keeping:
                before.keep(of, key, [offer.kept() for offer in offered])
        return offered

    keeping = Lock()
    pool = ThreadPoolExecutor(jobs)
    try:
        for start in range(0, len(requests), _WAITING * jobs):  # each that waits costs a kilobyte
            some = requests[start : start + _WAITING * jobs]
            for done, told in enumerate(pool.map(told_of, some), start + 1):
                found += told
                if progress is not None:
                    progress(done, len(requests))
    finally:
        pool.shutdown(cancel_futures=True)  # an interruption waits for no more than is asked now
    return found


def _key_of(request: UpgradeRequest) -> str:
    """Return a digest of what decides about the answer to a request, beside the places that are asked."""
    wanted, ranks = request.wanted, (request.ranks.low, request.ranks.high)
    record = wanted.record if wanted else None
    base = wanted and (wanted.text, wanted.hub_id, wanted.digest_prefix, record and record.fingerprint.weights)
    return digest_of_facts([str(request.spec), request.version, request.rank, ranks, base, sorted(request.here)])


def _of(library: Library, request: UpgradeRequest) -> Iterable[Offer]:
    try:
        sources = request.sources()
    except AdapterHubError as error:
        yield Offer(request=request, place="", problem=error.message)
        return
    for source in sources:
        try:
            releases = source.releases(request.spec)
        except AdapterNotFound:
            continue
        except AdapterHubError as error:
            yield Offer(request=request, place=source.label, problem=error.message)
            continue
        library.saw_yanks(source.place, releases)
        if not releases:
            continue
        candidates = candidates_of(library, releases, request.wanted, source.label)
        anything = replace(request.spec, specifiers="", digest_prefix=None)
        yield Offer(
            request=request,
            place=source.label,
            allowed=_choice(request.spec, candidates, request, request.ranks, request.objection),
            newest=_choice(anything, candidates, request, ANY_RANK, None),
            yanked=next((r.yanked for r in releases if r.digest == request.digest and r.yanked is not None), None),
        )


def _choice(
    spec: AdapterSpec,
    candidates: Sequence[Candidate],
    request: UpgradeRequest,
    bounds: RankRange,
    objection: Objection | None,
) -> Candidate | None:
    """Return the build that an upgrade would take, of the present rank if the release has one; None when none fits."""
    take = partial(resolve, spec, candidates, base_given=request.wanted is not None, objection=objection)
    try:
        chosen = take(ranks=bounds).chosen
    except (Incompatible, UsageProblem, AdapterNotFound):
        return None
    if request.rank is None or chosen.rank == request.rank or bounds != ANY_RANK:
        return chosen
    same = RankRange.of(request.rank)
    try:
        other = take(ranks=same).chosen
    except (Incompatible, UsageProblem, AdapterNotFound):
        return chosen
    return other if version_of(other.version) == version_of(chosen.version) else chosen
