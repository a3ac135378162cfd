"""Candidates and requests as values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adapterhub.core.digests import Digest
from adapterhub.core.errors import AmbiguousSpec, SpecError, shown
from adapterhub.core.ranks import RankRange
from adapterhub.core.specs import AdapterSpec, version_of
from adapterhub.formats.base.fingerprint import BaseVerdict

if TYPE_CHECKING:
    from packaging.version import Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One build that a place offers.

    `verdict` and `differences` compare its base with the requested one, and are ignored when none is requested.
    `base_label` is its base as you would type it after `@`; "" if it declares none. `yanked` is the reason, which may
    be "", or None. `source` names the place. `published_at` is the Unix time of publication; None if unknown.
    `repository` is that of a server, which a spec may name instead of the adapter; "" without one. `strange` is the
    reason why that repository may not supply the name; "" where it may. `base` is the digest of the
    weights that it was made for; None if it declares none.
    """

    namespace: str | None
    name: str
    version: str
    digest: Digest
    verdict: BaseVerdict
    differences: tuple[str, ...]
    base_label: str
    rank: int | None
    method: str
    yanked: str | None
    size_bytes: int
    source: str
    license: str | None = None
    published_at: float | None = None
    repository: str = ""
    strange: str = ""
    base: Digest | None = None

    @property
    def full_name(self) -> str:
        """`acme/legal-qa` or `legal-qa`."""
        return self.name if self.namespace is None else f"{self.namespace}/{self.name}"


Objection = Callable[[Candidate], str | None]
"""The reason against a build that would fit otherwise, or None."""


@dataclass(frozen=True, slots=True)
class Build:
    """A candidate with its parsed version; None if the version is invalid."""

    candidate: Candidate
    version: Version | None

    @property
    def is_mismatched(self) -> bool:
        return not self.candidate.verdict.allows_attach

    @property
    def is_yanked(self) -> bool:
        return self.candidate.yanked is not None

    @property
    def is_prerelease(self) -> bool:
        return self.version is not None and self.version.is_prerelease

    @property
    def title(self) -> str:
        return f"`{self.candidate.full_name}=={shown(self.candidate.version)}`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The sides of one request."""

    spec: AdapterSpec
    ranks: RankRange
    base_given: bool
    allow_base_mismatch: bool | None
    objection: Objection | None = None
    takes_yanked: bool = False

    @property
    def allows_yanked(self) -> bool:
        is_pinned = self.spec.pinned_version is not None or self.spec.digest_prefix is not None
        return is_pinned or self.takes_yanked


def builds_named(spec: AdapterSpec, candidates: Iterable[Candidate]) -> list[Build]:
    """The builds with the name in `spec`, each digest once, newest first.

    Where no adapter has the name, it may be that of a repository.

    Raises:
        AmbiguousSpec: a bare name that exists in several namespaces, and not without one, or the name of a repository
            that holds several adapters.
    """
    there = [c for c in candidates if spec.namespace in {None, c.namespace}]
    named = [c for c in there if c.name == spec.name]
    if not named or (spec.digest_prefix is None and all(c.strange for c in named)):
        named = _in_repository(spec, there) or named
    namespaces = {c.namespace for c in named}
    if spec.namespace is None and len(namespaces) > 1:
        # Taking the newest of all would let a stranger's 99.0 stand in for the user's own adapter.
        if None not in namespaces:
            choices = [(str(replace(spec, namespace=n)), f"namespace `{n}`") for n in sorted(filter(None, namespaces))]
            raise AmbiguousSpec(f"more than one namespace has `{spec.name}`", choices)
        named = [c for c in named if c.namespace is None]
    copies: dict[Digest, list[Candidate]] = {}
    for candidate in named:
        copies.setdefault(candidate.digest, []).append(candidate)
    merged = [_merged(copies[digest]) for digest in sorted(copies)]
    builds = [Build(candidate, _version_of(candidate)) for candidate in merged]
    builds.sort(key=lambda b: b.candidate.rank or 0, reverse=True)
    unversioned = [b for b in builds if b.version is None]
    return [*sorted((b for b in builds if b.version is not None), key=version_in, reverse=True), *unversioned]


def _in_repository(spec: AdapterSpec, candidates: Sequence[Candidate]) -> list[Candidate]:
    found = [c for c in candidates if c.repository == f"{c.namespace}/{spec.name}"]
    names = {c.full_name for c in found}
    if len(names) > 1:
        choices = [(name, "an adapter in it") for name in sorted(names)]
        raise AmbiguousSpec(f"the repository `{found[0].repository}` holds {len(names)} adapters", choices)
    return found


def _merged(copies: Sequence[Candidate]) -> Candidate:
    """One candidate for copies of the same bytes; known bases, yanks and earlier dates win.

    A copy in a repository that may not supply the name says nothing, unless all are in such ones.
    """
    copies = [copy for copy in copies if not copy.strange] or copies
    if len(copies) == 1:
        return copies[0]
    best = min(copies, key=lambda c: (c.verdict is BaseVerdict.UNKNOWN, c.source, repr(c)))
    yanks = sorted(copy.yanked for copy in copies if copy.yanked is not None)
    dates = [copy.published_at for copy in copies if copy.published_at is not None]
    return replace(best, yanked=yanks[-1] if yanks else None, published_at=min(dates, default=None))


def _version_of(candidate: Candidate) -> Version | None:
    try:
        return version_of(candidate.version)
    except SpecError:
        return None


def version_in(build: Build) -> Version:
    """The version of a build that has one, as a sort key."""
    assert build.version is not None
    return build.version
