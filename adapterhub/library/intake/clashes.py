"""One name, one meaning: a new build never joins a name, version and base that exist unless the user says so.

A spec names no rank. A second build under a version would give `legal-qa` two meanings, and the resolver would go on
choosing one of them. Builds that are installed from a remote are not new: their author gave them their versions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from adapterhub.core.errors import ReleaseExists, UsageProblem, shown
from adapterhub.core.specs import version_of
from adapterhub.formats.base.fingerprint import BaseFingerprint, compare
from adapterhub.formats.manifest import Manifest
from adapterhub.library.store.catalog import Installed

Bump = Literal["patch", "minor", "major"]
"""The part of a version that grows by one: the third, the second or the first number."""
BUMPS: Final[tuple[Bump, ...]] = get_args(Bump)


def check_naming(bump: str | None, *, variant: bool, version: str | None = None) -> None:
    """Refuse choices that exclude each other.

    Raises:
        UsageProblem: `bump` is no part of a version, or comes with `variant` or a version.
    """
    if bump is not None and bump not in BUMPS:
        raise UsageProblem(f"bump `{shown(bump)}`, expected one of {', '.join(BUMPS)}")
    if bump is not None and variant:
        raise UsageProblem("`--bump` and `--variant` exclude each other: one makes a new version, the other keeps it")
    if bump is not None and version is not None:
        raise UsageProblem("`--bump` and `--version` exclude each other: each sets the version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Namesakes:
    """The installed builds with one full name for one base, under any version; `base` is the base in words."""

    builds: tuple[Installed, ...]
    base: str

    @classmethod
    def among(cls, builds: Iterable[Installed], namespace: str | None, base: BaseFingerprint | None) -> Namesakes:
        """Those of `builds` in `namespace` whose base is `base`, in any precision; None stands for an unknown base."""
        found = tuple(b for b in builds if b.namespace == namespace and _is_same(b.base.fingerprint, base))
        return cls(builds=found, base=(found[0].base_name if found else "") or "an unknown base")

    def with_version(self, version: str) -> tuple[Installed, ...]:
        """The builds of one version, however it is written."""
        return tuple(build for build in self.builds if version_of(build.manifest.version) == version_of(version))

    def next_version(self, bump: Bump = "patch") -> str:
        """The version after the newest one; there is a build."""
        return next_version([build.manifest.version for build in self.builds], bump)

    def named(self, manifest: Manifest, bump: Bump) -> Manifest:
        """`manifest` under the next version, or under the newest one where that has this very content."""
        if not self.builds:
            return manifest
        again = replace(manifest, version=newest_of([build.manifest.version for build in self.builds]))
        is_there = any(build.manifest.digest == again.digest for build in self.builds)
        return again if is_there else replace(manifest, version=self.next_version(bump))

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
        """The exception for `what`, which would be another build beside `there`."""
        labels = " and ".join(f"`{build.full_name}` {build.manifest.label}" for build in there)
        verb = "is" if len(there) == 1 else "are"
        return ReleaseExists(
            f"{labels} {verb} installed for {self.base}; {what} would be another build of this version, and the name "
            "would have two meanings. Nothing was stored",
            hint=f"`--bump patch` makes it {self.next_version()}; `--variant` adds another rank to "
            f"{there[0].manifest.version} on purpose",
        )


def newest_of(versions: Sequence[str]) -> str:
    """The newest of these versions, at least one."""
    from packaging.version import Version

    return max(versions, key=Version)


def next_version(versions: Sequence[str], bump: Bump) -> str:
    """The first version after all of `versions` with only zeros below the part `bump`; `2.0.0` follows `2.0.0rc1`."""
    from packaging.version import Version

    newest = Version(newest_of(versions))
    parts = [*newest.release, 0, 0][:3]
    at = len(BUMPS) - 1 - BUMPS.index(bump)
    if not newest.is_prerelease or any(parts[at + 1 :]):
        parts = [*parts[:at], parts[at] + 1, *[0] * (2 - at)]
    epoch = f"{newest.epoch}!" if newest.epoch else ""
    return epoch + ".".join(map(str, parts))


def exists_otherwise(existing: Installed, manifest: Manifest, *, hint: str = "") -> ReleaseExists:
    """The exception for a release that is installed with other content."""
    old, new = existing.manifest.to_json(), manifest.to_json()
    differs = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    same = "" if old["version"] == new["version"] else f", the same version as {manifest.version},"
    return ReleaseExists(
        f"`{existing.full_name}` {existing.manifest.version}{same} exists with other content (differs in: "
        f"{', '.join(differs)}); a release never changes. Nothing was stored",
        hint=hint or "`adapt remove` takes the old one out",
    )


def _is_same(one: BaseFingerprint | None, other: BaseFingerprint | None) -> bool:
    """Whether two builds for these bases can both answer to one spec."""
    if one is None or other is None:
        return one is other
    return compare(one, other).verdict.allows_attach
