"""Resolves the inputs of a recipe: installed adapters by digest, missing ones by install, folders by their bytes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from adapterhub.core.arguments import path_of
from adapterhub.core.digests import Digest, Progress
from adapterhub.core.errors import (
    AdapterNotFound,
    BaseMismatch,
    DigestMismatch,
    NoCompatibleRelease,
    RemoteUnreachable,
    shown,
)
from adapterhub.core.specs import AdapterSpec, hint_for_unknown_base
from adapterhub.distribution.choosing import find_installed
from adapterhub.distribution.install import InstallPlan, plan_install, run_install
from adapterhub.formats.release import Release
from adapterhub.library.admission.admission import Admission
from adapterhub.library.aliasing import without_alias
from adapterhub.library.bases.requested import requested_base
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.library.transfer import Source
from adapterhub.library.upkeep.damage import ensure_manifest_unchanged
from adapterhub.weights.recipes.combination import Combination, Ingredient, common_base, folder_digests
from adapterhub.weights.recipes.toml.values import Inner, Leaf, Recipe, Step

SourcesFor = Callable[[AdapterSpec], Sequence[Source]]
"""The sources to search for an adapter, in order."""

Bar = Callable[[str, int], AbstractContextManager[Progress]]
"""Shows the progress of a transfer, given its title and size in bytes."""


def combination_of(
    library: Library, recipe: Recipe, folder: Path, sources_for: SourcesFor, bar: Bar
) -> tuple[Combination, tuple[str, ...]]:
    """The recipe with every input resolved, and warnings. Installs missing inputs from the sources that have them.

    An input with a digest is the build with that manifest, under any name; an input without one is the current match of
    its spec. Folders are relative to `folder`, the folder of the recipe.

    Raises:
        DigestMismatch: an input exists with other content; nothing was merged.
        AdapterNotFound: inputs are missing; lists each with the command that installs it.
        BaseMismatch: the inputs were made for another base than the recipe names.
    """
    search = _Search(library=library, folder=folder, sources_for=sources_for, bar=bar)
    combination = search.combination(recipe.step, "")
    search.check()
    if recipe.base is not None:
        _check_base(recipe.base, combination)
    return combination, tuple(search.warnings)


def _check_base(weights: Digest, combination: Combination) -> None:
    ingredients = list(combination.leaves())
    base, _ = common_base(ingredients)
    if base.fingerprint is not None and base.fingerprint.weights == weights:
        return
    actual = base.fingerprint.weights if base.fingerprint else "unknown, because an input has no base fingerprint"
    unknown = next((i.label for i in ingredients if i.base.fingerprint is None), "NAME")
    raise BaseMismatch(
        f"the recipe names the base {weights}; the base of its inputs is {actual}",
        hint=f"`adapt base pin {shlex.quote(shown(unknown))} BASE` records the base of an adapter that declares none",
    )


@dataclass(slots=True, kw_only=True)
class _Search:
    """Resolves every input and collects the problems, so that one error lists them all."""

    library: Library
    folder: Path
    sources_for: SourcesFor
    bar: Bar
    missing: list[str] = field(default_factory=list)
    changed: list[DigestMismatch] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def combination(self, step: Step, path: str) -> Combination:
        inputs: list[Ingredient | Inner[Ingredient]] = []
        for number, item in enumerate(step.inputs):
            where = f"{path}inputs[{number}]"
            if isinstance(item, Inner):
                inner = self.combination(item.step, f"{where}.merge.")
                inputs.append(Inner(weight=item.weight, step=inner))
            else:
                leaf = self.in_folder(item, where) if item.is_folder else self.in_library(item, where)
                inputs += [leaf] if leaf else []
        return Step(inputs=tuple(inputs), method=step.method, options=step.options, dtype=step.dtype, seed=step.seed)

    def check(self) -> None:
        """Raise unless every input was resolved."""
        lines = [f"  {line}" for line in self.missing]
        if self.changed:
            first, *others = self.changed
            lines = [*(f"  {other.message}" for other in others), *lines]
            first.message = "\n".join([first.message, *lines])
            first.hint = (
                "a recipe pins its inputs to their bytes; remove an input's digests to accept its current content"
            )
            raise first
        if lines:
            raise AdapterNotFound(
                "\n".join(["some inputs of the recipe are missing", *lines]),
                hint="`--from DIR` and `adapt remote add` add places to search",
            )

    def in_folder(self, leaf: Leaf, where: str) -> Ingredient | None:
        folder = self.folder / path_of(leaf.spec)
        if not folder.is_dir():
            self.missing.append(f"{where}: no folder `{shown(str(folder), 200)}`")
            return None
        digests = folder_digests(folder)
        for key, wanted in {"sha256": leaf.sha256, "config_sha256": leaf.config_sha256}.items():
            if wanted is not None and digests[key] != wanted:
                self.change(f"{where} `{shown(leaf.spec)}` ({key})", wanted, digests[key] or "no such file")
                return None
        return Ingredient(folder=folder, label=leaf.spec, weight=leaf.weight, files=digests)

    def in_library(self, leaf: Leaf, where: str) -> Ingredient | None:
        spec = AdapterSpec.parse(leaf.spec)
        if leaf.digest is None:
            build = self.as_typed(spec, where)
            label = f"{build.full_name}=={build.manifest.version}" if build else ""
        else:
            build = self.by_digest(leaf.digest) or self.fetched(spec, leaf.digest, where)
            label = leaf.spec
        if build is None:
            return None
        ensure_manifest_unchanged(self.library, build)
        return Ingredient(
            folder=build.folder, label=label, weight=leaf.weight, base=build.base, digest=build.manifest.digest
        )

    def by_digest(self, digest: Digest) -> Installed | None:
        """The installed build with that manifest.

        Raises:
            SignatureRefused, NamespaceBound: a policy forbids this build.
        """
        if not self.library.store.has_manifest(digest):
            return None
        name = self.library.store.read_manifest(digest).name
        build = next((b for b in self.library.builds_named(name) if b.manifest.digest == digest), None)
        if build is not None:
            Admission(self.library).ensure_usable(build)
        return build

    def as_typed(self, spec: AdapterSpec, where: str) -> Installed | None:
        """The build that the spec matches, installed now if necessary."""
        spec = without_alias(self.library, spec)
        wanted = requested_base(spec.base, self.library.bases, hint_for_unknown_base(spec))
        try:
            return find_installed(self.library, spec, wanted=wanted)[0]
        except (AdapterNotFound, NoCompatibleRelease):
            try:
                plan = plan_install(self.library, spec, self.sources_for(spec), wanted=wanted)
            except (AdapterNotFound, NoCompatibleRelease, RemoteUnreachable) as error:
                self.miss(spec, where, [error.message])
                return None
        return self.installed(plan)

    def fetched(self, spec: AdapterSpec, digest: Digest, where: str) -> Installed | None:
        """The build with that manifest, installed from the first source that has it."""
        others: list[Release] = []
        reasons: list[str] = []
        for source in (self.library, *self.sources_for(spec)):
            try:
                releases = source.releases(spec)
            except RemoteUnreachable as error:
                reasons.append(error.message)
                continue
            same = next((release for release in releases if release.digest == digest), None)
            if same is not None:
                exact = replace(spec, namespace=same.namespace, base=None, specifiers="", digest_prefix=digest)
                return self.installed(plan_install(self.library, exact, [source], wanted=None))
            others += [release for release in releases if spec.matches(release.manifest.version)]
        if others:
            self.change(f"{where} `{shown(str(spec))}` in {others[0].origin}", digest, others[0].digest)
        else:
            self.miss(replace(spec, base=None, digest_prefix=digest), where, reasons)
        return None

    def installed(self, plan: InstallPlan) -> Installed:
        """Carry out an install."""
        self.warnings += plan.resolution.warnings
        with self.bar(f"install {plan.release.full_name}", plan.copy_bytes) as progress:
            added = run_install(self.library, plan, progress)
        build = plan.present or (added.build if added else None)
        assert build is not None  # `run_install` returns None only for a build that is present
        return build

    def miss(self, spec: AdapterSpec, where: str, reasons: Sequence[str]) -> None:
        why = "".join(f" ({reason})" for reason in reasons)
        self.missing.append(f"{where}: `adapt install {shlex.quote(str(spec))}`{why}")

    def change(self, where: str, expected: str, actual: str) -> None:
        self.changed.append(DigestMismatch(where, expected=expected, actual=actual))
