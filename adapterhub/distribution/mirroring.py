"""Finds the builds that a mirror of many repositories lacks, using only the listings of two servers."""

from __future__ import annotations

import contextlib
import fnmatch
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adapterhub.core.errors import AdapterNotFound, SpecError, shown
from adapterhub.core.specs import AdapterSpec, parse_namespace, version_key

if TYPE_CHECKING:
    from adapterhub.core.digests import Digest
    from adapterhub.distribution.hub import Hub, Published, PublishedVersion


_PATTERN: Final = re.compile(r"[A-Za-z0-9_.*?\[\]!-]{1,96}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryPattern:
    """The repositories of a namespace whose names match a pattern with `*`, `?` and `[…]`: `acme/*`."""

    namespace: str
    pattern: str

    @classmethod
    def parse(cls, text: str) -> RepositoryPattern:
        """Return the pattern that `text` spells.

        Raises:
            SpecError: the namespace is missing or is not a name.
        """
        namespace, slash, pattern = text.partition("/")
        if not slash or not _PATTERN.fullmatch(pattern):
            raise SpecError(text, "expected a namespace and a pattern, such as `acme/*`")
        return cls(namespace=parse_namespace(namespace), pattern=pattern)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pattern}"


def parse_repositories(text: str) -> AdapterSpec | RepositoryPattern:
    """Return the pattern that `text` spells if it holds `*`, `?` or `[`, otherwise the adapter spec.

    Raises:
        SpecError: it is neither.
    """
    return RepositoryPattern.parse(text) if set(text) & set("*?[") else AdapterSpec.parse(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A release, the spec that means it, the repository `to` that it belongs to, and whether it is there already."""

    release: Published
    spec: AdapterSpec
    to: str
    digest: Digest | None
    is_there: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorPlan:
    """What the target lacks, and `yanked`, `(repository, repository on the target)`, where it lacks a yank."""

    releases: tuple[Planned, ...]
    yanked: tuple[tuple[str, str], ...]


def plan_mirror(pattern: RepositoryPattern, source: Hub, target: Hub, namespace: str | None) -> MirrorPlan:
    """Every release of `pattern` on `source` that is not yanked, and whether `target` has it.

    A version with another digest on the target counts as missing: the copy compares the manifests, and refuses it
    unless they are the same.
    """
    place = namespace or pattern.namespace
    there = {(one.repo, version_key(one.version)): one for one in target.published(place)}
    planned, yanked = [], {}
    for one in source.published(pattern.namespace):
        name = one.repo.partition("/")[2]
        if not fnmatch.fnmatchcase(name, pattern.pattern):
            continue
        to = f"{place}/{name}"
        copy = there.get((to, version_key(one.version)))
        if one.yanked:
            if copy is not None and not copy.yanked:
                yanked[one.repo] = to
            continue
        known = copy.digest if copy is not None else None
        planned.append(
            Planned(
                release=one,
                spec=AdapterSpec.parse(f"{pattern.namespace}/{(one.name or name).lower()}=={one.version}"),
                to=to,
                digest=one.digest or known,
                is_there=copy is not None and (known is None or one.digest in (None, known)),
            )
        )
    return MirrorPlan(releases=tuple(planned), yanked=tuple(yanked.items()))


def yank_copies(source: Hub, repo: str, target: Hub, to: str, tell: Callable[[str], None], *, dry_run: bool) -> None:
    """Yank the copies on `target` of versions that are yanked on `source`; `tell` gets a sentence with each reason.

    A copy whose owner withdrew a yank for the same reason stays.
    """
    yanked = [one for one in source.versions(repo) if one.yanked is not None]
    there: dict[str, PublishedVersion] = {}
    if yanked:
        with contextlib.suppress(AdapterNotFound):  # a preview, before the first copy
            there = {version_key(one.version): one for one in target.versions(to) if one.version is not None}
    taken_back: Mapping[str, str] | None = None
    for one in yanked:
        if one.version is None or one.yanked is None:
            continue
        copy = there.get(version_key(one.version))
        if copy is None or copy.yanked is not None:
            continue
        if None not in (one.digest, copy.digest) and one.digest != copy.digest:
            continue
        taken_back = target.withdrawal.taken_back(to) if taken_back is None else taken_back
        if taken_back.get(version_key(one.version)) == one.yanked:
            tell(f"did not yank {to} {one.version} on {target.endpoint}: its owner took the same yank back there")
            continue
        if not dry_run:
            target.withdrawal.yank(to, one.version, one.yanked)
        done = "would yank" if dry_run else "yanked"
        tell(f"{done} {to} {one.version} on {target.endpoint}, as on {source.endpoint}: {shown(one.yanked, 200)}")
