"""One name, one meaning: a new build never joins a name, version and base that exist without the user's consent.

A spec names no rank. A second build under a version would give `legal-qa` two meanings, and the resolver would go on
choosing one of them. Builds that are installed from a remote are not new: their author gave them their versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from adapterhub.core.errors import ReleaseExists, UsageProblem, shown
from adapterhub.core.specs import version_of
from adapterhub.formats.base.comparison import compare
from adapterhub.formats.base.fingerprint import BaseFingerprint, BaseVerdict
from adapterhub.formats.manifest import Manifest
from adapterhub.library.store.catalog import Installed

Bump = Literal["patch", "minor", "major"]
"""The part of a version that grows by one: the third, the second or the first number."""
BUMPS: Final[tuple[Bump, ...]] = get_args(Bump)


def check_naming(bump: str | None, *, variant: bool, version: str | None = None) -> None:
    """Refuse choices that exclude each other.

    Raises:
        UsageProblem: `bump` is not a part of a version, or comes with `variant` or a version.
    """
    if bump is not None and bump not in BUMPS:
        raise UsageProblem(f"bump `{shown(bump)}`, expected one of {', '.join(BUMPS)}")
    if bump is not None and variant:
        raise UsageProblem("`--bump` and `--variant` exclude each other: one makes a new version, the other keeps it")
    if bump is not None and version is not None:
        raise UsageProblem("`--bump` and `--version` exclude each other: each sets the version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Namesakes:
    """The installed builds with one full name for one base, in any precision, under any version.

    `look` gives those builds of the name that have a version, or the newest where it is None; others may be among them.
    As `base`, None stands for an unknown one.
    """

    look: Callable[[str | None], Iterable[Installed]]
    namespace: str | None
    base: BaseFingerprint | None

    def _found(self, version: str | None) -> tuple[Installed, ...]:
        return tuple(
            build
            for build in self.look(version)
            if build.namespace == self.namespace and _is_same(build.base.fingerprint, self.base)
        )

    def with_version(self, version: str) -> tuple[Installed, ...]:
        """Return the builds of one version, however it is written."""
        wanted = version_of(version)
        return tuple(build for build in self._found(version) if version_of(build.manifest.version) == wanted)

    def newest(self) -> str | None:
        """Return the newest version; None without a build."""
        found = [build.manifest.version for build in self._found(None)]
        return newest_of(found) if found else None

    def next_version(self, bump: Bump = "patch") -> str:
        """Return the version after the newest one; there is a build."""
        newest = self.newest()
        assert newest is not None
        return next_version([newest], bump)

    def named(self, manifest: Manifest, bump: Bump) -> Manifest:
        """`manifest` under the next version, or under the newest one where that has this very content."""
        newest = self.newest()
        if newest is None:
            return manifest
        again = replace(manifest, version=newest)
        is_there = any(build.manifest.digest == again.digest for build in self.with_version(newest))
        return again if is_there else replace(manifest, version=next_version([newest], bump))

    def ensure_room(self, version: str, what: str, *, rank: int | None = None, variant: bool = False) -> None:
        """Refuse a build of `version` that cannot be one of those that exist; `what` names it in messages.

        `rank` is its rank where that is known. With `variant`, another rank has room beside them.

        Raises:
            ReleaseExists: there is no room; names both, and the next free version.
        """
        there = self.with_version(version)
        if not there or any(rank is not None and build.manifest.rank == rank for build in there):
            return  # it may be the same build again, which only its bytes tell
        if variant:
            return
        raise self.taken(there, what)

    def ensure_is_new(self, manifest: Manifest, what: str, *, variant: bool) -> None:
        """Refuse `manifest` unless it is installed already, or has room beside those of its version.

        Raises:
            ReleaseExists: there is no room.
        """
        there = self.with_version(manifest.version)
        if any(build.manifest.digest == manifest.digest for build in there):
            return
        twin = next((build for build in there if build.manifest.rank == manifest.rank), None)
        if twin is not None:
            hint = f"`--bump patch` makes it {self.next_version()}; `adapt remove` takes the old one out"
            raise exists_otherwise(twin, manifest, hint=hint)
        self.ensure_room(manifest.version, what, rank=manifest.rank, variant=variant)

    def taken(self, there: Sequence[Installed], what: str) -> ReleaseExists:
        """Return the exception for `what`, which would be another build beside `there`."""
        labels = " and ".join(f"`{build.full_name}` {build.manifest.label}" for build in there)
        verb, base = "is" if len(there) == 1 else "are", there[0].base_name or "an unknown base"
        return ReleaseExists(
            f"{labels} {verb} installed for {base}; {what} would be another build of this version, and the name would "
            "have two meanings. Nothing was stored",
            hint=f"`--bump patch` makes it {self.next_version()}; `--variant` adds another rank to "
            f"{there[0].manifest.version} on purpose",
        )


def newest_of(versions: Sequence[str]) -> str:
    """Return the newest of these versions, at least one."""
    from packaging.version import Version

    return max(versions, key=Version)


def next_version(versions: Sequence[str], bump: Bump) -> str:
    """Return the first version after all of `versions` with only zeros below the part `bump`.

    `2.0.0` follows `2.0.0rc1`.
    """
    from packaging.version import Version

    newest = Version(newest_of(versions))
    parts = [*newest.release, 0, 0][:3]
    at = len(BUMPS) - 1 - BUMPS.index(bump)
    if not newest.is_prerelease or any(parts[at + 1 :]):
        parts = [*parts[:at], parts[at] + 1, *[0] * (2 - at)]
    epoch = f"{newest.epoch}!" if newest.epoch else ""
    return epoch + ".".join(map(str, parts))


def exists_otherwise(existing: Installed, manifest: Manifest, *, hint: str = "") -> ReleaseExists:
    """Return the exception for a release that is installed with other content."""
    old, new = existing.manifest.to_json(), manifest.to_json()
    differs = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    same = "" if old["version"] == new["version"] else f", the same version as {manifest.version},"
    return ReleaseExists(
        f"`{existing.full_name}` {existing.manifest.version}{same} exists with other content (differs in: "
        f"{', '.join(differs)}); a release never changes. Nothing was stored",
        hint=hint or "`adapt remove` takes the old one out",
    )


def _is_same(one: BaseFingerprint | None, other: BaseFingerprint | None) -> bool:
    """Return whether two builds for these bases can both answer to one spec.

    A base and its quantised copy are two: an adapter trained on one of them is another build.
    """
    if one is None or other is None:
        return one is other
    found = compare(one, other)
    return found.verdict.allows_attach and found.verdict is not BaseVerdict.SAME_WEIGHTS_QUANTISED
