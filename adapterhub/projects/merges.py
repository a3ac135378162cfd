"""Merges of a project: run when the project is locked, and rebuilt from the lock to identical bytes.

A rebuild runs outside the library and enters it only if its digest matches the lock, so that another machine's rounding
never takes the name of the locked build.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapterhub.core.digests import Digest, canonical_json, digest_of, hex_of
from adapterhub.core.disk.home import PROJECT_FILE
from adapterhub.core.errors import AdapterHubError, DigestMismatch, ReleaseExists, reworded
from adapterhub.core.specs import AdapterName, parse_version
from adapterhub.formats.release import Release
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from adapterhub.projects.builds import label_of
from adapterhub.projects.lock.lockfile import locked_step
from adapterhub.projects.sync import Bar, BuildSources, bring_locked
from adapterhub.projects.sync.bringing import Brought, Places, PolicyFor, bring
from adapterhub.projects.values import (
    Lock,
    Locked,
    LockedBase,
    LockedFile,
    LockedMerge,
    LockedSource,
    MergeRequirement,
)
from adapterhub.weights.merge import MergeProgress
from adapterhub.weights.recipes.combination import MergeOutcome, combination_of, merge_into_library
from adapterhub.weights.recipes.toml import MergeStep, Recipe, step_table

Steps = Callable[[], AbstractContextManager[MergeProgress | None]]
"""Shows the progress of a merge."""

_VERSION: Final = "1.0.0"
_SHOWN_HEX: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Merges:
    """Runs the merges of one project in `library`.

    `places` and `policy` apply to missing inputs; `warn` receives the warnings of the merges.
    """

    library: Library
    base: LockedBase | None
    places: Places
    policy: PolicyFor = lambda _entry: None
    bar: Bar | None = None
    steps: Steps = nullcontext
    warn: Callable[[str], None] = lambda _text: None

    @property
    def means(self) -> BuildSources:
        """The same as the sources of a sync, which rebuilds these merges."""
        return BuildSources(places=self.places, rebuild=self.rebuild, policy=self.policy, bar=self.bar)

    def make(self, wanted: MergeRequirement, inputs: Mapping[AdapterName, Locked]) -> LockedMerge:
        """Run a merge of the project on its locked inputs, and install the result.

        Raises:
            MergeRefused, BaseMismatch: the inputs cannot be merged.
            ReleaseExists: another result already has the version.
            DigestMismatch, AdapterNotFound, RemoteUnreachable: an input is not available.
        """
        step = locked_step(wanted.step, inputs)
        version = wanted.version or version_of(step)
        self._bring_inputs(step, inputs)
        description = Description(
            name=wanted.key,
            version=parse_version(version),
            task=wanted.task,
            description=wanted.description,
            license=wanted.license,
        )
        try:
            manifest = self._run(self.library, step, description).added.build.manifest
        except ReleaseExists as error:
            hint = f"give `{wanted.key}` another `version` in {PROJECT_FILE}; without one, each recipe has its own"
            raise reworded(error, hint=hint) from None
        fingerprint = manifest.base.fingerprint
        return LockedMerge(
            key=wanted.key,
            version=manifest.version,
            digest=manifest.digest,
            base=fingerprint.weights if fingerprint else None,
            rank=manifest.rank,
            step=step,
            task=wanted.task,
            description=wanted.description,
            license=wanted.license,
            source=LockedSource(),
            files=LockedFile.all_of(manifest),
            group=wanted.group,
        )

    def rebuild(self, entry: LockedMerge) -> Brought:
        """Run a locked merge again, or fetch its bytes if a place has them. Its inputs are in the library.

        Raises:
            DigestMismatch: the result differs from the lock and no place has the locked bytes; nothing was stored.
        """
        description = Description(
            name=entry.key,
            version=entry.version,
            task=entry.task,
            description=entry.description,
            license=entry.license,
        )
        with self.library.store.staging() as scratch:
            aside = Library(scratch / "home")
            build = self._run(aside, entry.step, description).added.build
            if build.manifest.digest == entry.digest:
                release = Release(manifest=build.manifest, namespace=None, origin="its recipe")
                copy(release, aside, self.library)
                return Brought(entry=entry, origin=release.origin, sent_bytes=0)
        return self._fetched(entry, build.manifest.digest)

    def _fetched(self, entry: LockedMerge, made: Digest) -> Brought:
        mismatch = DigestMismatch(
            f"the merge `{label_of(entry)}`, rebuilt from its recipe",
            expected=entry.digest,
            actual=made,
            hint="the inputs are as locked, so rounding differs: CPU, torch version or thread count; "
            f"`adapt lock --upgrade {entry.key}` locks the result of this machine",
        )
        try:
            return bring(self.library, entry, self.places, base=None, policy=self.policy(entry), progress=None)
        except AdapterHubError:
            raise mismatch from None

    def _bring_inputs(self, step: MergeStep, inputs: Mapping[AdapterName, Locked]) -> None:
        """Bring the inputs of the merge into the library."""
        needed = {leaf.digest for leaf in step.leaves()}
        entries = [entry for entry in inputs.values() if entry.digest in needed]
        for one in bring_locked(self.library, Lock.of(inputs.values(), self.base), entries, self.means):
            for warning in one.warnings:
                self.warn(warning)

    def _run(self, into: Library, step: MergeStep, description: Description) -> MergeOutcome:
        """Run the merge with inputs from the library; the result goes into `into`."""
        combination, warnings = combination_of(self.library, Recipe(step=step), Path(), lambda _spec: (), _no_bar)
        with self.steps() as progress:
            outcome = merge_into_library(into, combination, description, progress=progress)
        for warning in (*warnings, *outcome.made.warnings):
            self.warn(f"`{description.name}`: {warning}")
        return outcome


def version_of(step: MergeStep) -> str:
    """Return the default version of a merge, which changes with the recipe and the inputs."""
    return f"{_VERSION}+{hex_of(digest_of(canonical_json(step_table(step))))[:_SHOWN_HEX]}"


def _no_bar(_what: str, _size: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _done: None)
