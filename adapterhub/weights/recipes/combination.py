"""Merging adapters into a new one: compares their bases first, and records lineage and measured error.

A merge may have other merges as inputs. Those run first, in a scratch folder, and their results are inputs like any
adapter. The recorded recipe reproduces the same manifest from the same parents.
"""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from adapterhub.core.arguments import path_of
from adapterhub.core.digests import Digest, Progress, digest_of
from adapterhub.core.disk.files import digest_of_file, ensure_new, write_durably
from adapterhub.core.disk.held_file import REPAIR_HINT
from adapterhub.core.errors import (
    AdapterNotFound,
    BaseMismatch,
    CouldNotTell,
    DigestMismatch,
    NoCompatibleRelease,
    RemoteUnreachable,
    shown,
)
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.choosing import find_installed
from adapterhub.distribution.install import InstallPlan, plan_install, run_install
from adapterhub.formats.base.comparison import Judge, compare
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.formats.base.folders import component_in, is_pipeline
from adapterhub.formats.contract.reader import contract_in
from adapterhub.formats.manifest import CONFIG_FILE, CONTRACT_FILE, MANIFEST_FILE, WEIGHTS_FILE, BaseRef, Parent
from adapterhub.formats.prompts.form import PromptForm
from adapterhub.formats.release import Release
from adapterhub.library.admission import Admission
from adapterhub.library.aliasing import without_alias
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.bases.requested import requested_base
from adapterhub.library.installed import Added
from adapterhub.library.intake.clashes import Bump
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.library.transfer import Source
from adapterhub.library.upkeep.damage import ensure_manifest_unchanged
from adapterhub.trust.verify import manifest_in
from adapterhub.trust.verify.subject import safe_listing
from adapterhub.weights.catalogue import SUMS, describe
from adapterhub.weights.merge import DEFAULT_DTYPE, MergeInput, MergeProgress, MergeResult, merge
from adapterhub.weights.recipes.toml import MEASURED_PREFIX, Inner, Leaf, MergeStep, Recipe, empty_mapping, without_none

if TYPE_CHECKING:
    from adapterhub.formats.contract.contract import Contract


def is_same_adapter(combination: Combination) -> bool:
    """Return whether the result claims to be its one parent in another rank or precision."""
    first = combination.inputs[0]
    is_alone = len(combination.inputs) == 1 and first.weight == 1 and not isinstance(first, Inner)
    return is_alone and combination.method in SUMS


def carried_contract(combination: Combination, asked: PromptForm | None = None) -> tuple[Contract | None, list[str]]:
    """Return the parent's contract for the result, and why it has none where that is worth a warning.

    The rule depends only on the combination, so a recipe gives the same manifest again. `asked` is the prompt form that
    the user gives the result.

    Raises:
        DigestMismatch: the parent's contract is not the file of its manifest.
        Malformed: it breaks its format.
    """
    if not is_same_adapter(combination):
        return None, []
    [parent] = combination.leaves()
    try:
        contract = contract_in(parent.folder)
    except CouldNotTell as error:
        return None, [f"the result carries no contract: {error.message}"]
    if contract is None:
        return None, []
    _ensure_own(parent, contract)
    if asked is not None and asked != contract.prompt:
        label = shown(parent.label, 200)
        return None, [f"the result carries no contract: that of `{label}` asks as {contract.prompt.label}"]
    return contract, []


def _ensure_own(parent: Ingredient, contract: Contract) -> None:
    expected = (parent.pinned().expected or {}).get(CONTRACT_FILE)
    actual = digest_of(contract.to_bytes())
    if expected is not None and actual != expected:
        raise DigestMismatch(str(parent.folder / CONTRACT_FILE), expected=expected, actual=actual)


_FORMS_TOLD: Final = 4
_RECORDED: Final = {"sha256": WEIGHTS_FILE, "config_sha256": CONFIG_FILE}
"""The digests that a recipe records of a folder, and their files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredient(MergeInput):
    """An input of a merge with the facts that a recipe and the lineage record of it.

    An installed adapter has its `base` and the `digest` of its manifest. `files` holds the recorded digests of the
    files of a folder.
    """

    base: BaseRef = field(default_factory=BaseRef)
    digest: Digest | None = None
    files: Mapping[str, Digest | None] = field(default_factory=empty_mapping, hash=False)

    def pinned(self) -> Ingredient:
        """Return this ingredient with `expected` filled in, from the manifest that `digest` names and from `files`.

        A folder outside the library must match its own manifest, if it has one.

        Raises:
            DigestMismatch: the folder holds another manifest.
            MalformedManifest: the manifest cannot be read.
        """
        manifest = manifest_in(self.folder)
        if self.digest is not None and (manifest is None or manifest.digest != self.digest):
            actual = manifest.digest if manifest else "no manifest"
            raise DigestMismatch(
                str(self.folder / MANIFEST_FILE), expected=self.digest, actual=actual, hint=REPAIR_HINT
            )
        recorded = without_none({name: self.files.get(key) for key, name in _RECORDED.items()})
        return replace(self, expected=(manifest.digests if manifest else {}) | recorded)


ResultTest = Callable[[Path], Mapping[str, float]]
"""Looks at the folder that a merge made before anybody sees it: raises, or returns numbers for the manifest."""

Combination: TypeAlias = MergeStep[Ingredient]
"""A merge with its inputs resolved to folders."""


Runner: TypeAlias = "Callable[[Combination, Path, Path, MergeProgress | None], Made]"
"""Makes the folder of a result, its second argument; the third is a folder for what is needed meanwhile."""


def parents_of(combination: Combination, factor: float = 1.0) -> Iterator[tuple[Ingredient, float]]:
    """Every adapter of every level, with the product of its weights on all levels."""
    for item in combination.inputs:
        if isinstance(item, Inner):
            yield from parents_of(item.step, factor * item.weight)
        else:
            yield item, factor * item.weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A completed merge: its result, and the results of the inner merges in the order in which they ran.

    `warnings` covers all merges and their bases. `recipe` is the recipe for the manifest.
    """

    result: MergeResult
    inner: tuple[MergeResult, ...]
    warnings: tuple[str, ...]
    recipe: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOutcome:
    """A completed merge and the release that it added to the library."""

    added: Added
    made: Made


def merge_into_library(
    library: Library,
    combination: Combination,
    description: Description,
    *,
    bump: Bump | None = None,
    variant: bool = False,
    progress: MergeProgress | None = None,
    test: ResultTest | None = None,
    run: Runner | None = None,
) -> MergeOutcome:
    """Merge, and add the result under the name and version in `description`, with base and lineage filled in.

    `bump` and `variant` as for `Library.add`. `test` looks at the result before it is added. `run` takes the place of
    the merge.

    The manifest depends only on the parents and the numbers, not on this library: the base has the name that the first
    parent gives it, and measured errors have three digits, because later digits differ between machines.

    Raises:
        BaseMismatch: two of the adapters were made for different bases.
        MergeRefused, ReleaseExists, and any other error of `merge` and `Library.add`; nothing is stored then.
    """
    base, warnings = common_base(list(combination.leaves()), library.bases.judged)
    if bump is None:
        ensure_room(library, combination, description, variant=variant)
    with library.store.staging() as staging:
        contract, told = carried_contract(combination, description.prompt)
        made = (run or _run)(in_pipeline(_held_to_bytes(combination), base), staging / "merged", staging, progress)
        if contract is not None:
            (made.result.out_folder / CONTRACT_FILE).write_bytes(contract.to_bytes())
        measured = test(made.result.out_folder) if test is not None else {}
        prompt, dropped = _common_form(list(combination.leaves()))
        about = replace(
            description,
            base=base if base != BaseRef() else None,  # otherwise the config names it
            parents=tuple(
                Parent(digest=i.digest, spec=i.label, weight=weight) for i, weight in parents_of(combination)
            ),
            recipe=made.recipe,
            metrics={**description.metrics, **_measured(made), **measured},
            prompt=description.prompt or prompt,
        )
        record = library.bases.by_fingerprint(base.fingerprint) if base.fingerprint else None
        record = None if record is not None and record.is_copy else record  # the result has the same bytes without it
        if record is not None and base.fingerprint is not None:
            record = replace(record, fingerprint=base.fingerprint, hints=base.hints)
        added = library.add(made.result.out_folder, about, base=record, bump=bump, variant=variant)
    told += [] if description.prompt else dropped
    return MergeOutcome(added=added, made=replace(made, warnings=(*warnings, *told, *made.warnings)))


def ensure_room(
    library: Library, combination: Combination, description: Description, *, variant: bool, tuned: bool = False
) -> None:
    """Refuse a merge before it runs if a build with its name, version and base exists that it would not give again.

    With `tuned`, the weights are not known yet.

    Raises:
        BaseMismatch: two of the adapters were made for different bases.
        ReleaseExists: names the build that exists and the next version.
    """
    base, _ = common_base(list(combination.leaves()), library.bases.judged)
    namesakes = library.namesakes(description.name, None, base.fingerprint)
    there = namesakes.with_version(description.version)
    if not there:
        return
    held = _held_to_bytes(combination)
    words = description.task, description.description
    if not any(
        (b.manifest.task, b.manifest.description) == words and _repeats(held, b.manifest.recipe, tuned=tuned)
        for b in there
    ):
        what = f"the result of {', '.join(f'`{shown(leaf.label, 200)}`' for leaf in combination.leaves())}"
        namesakes.ensure_room(description.version, what, variant=variant)


def _repeats(step: Combination, recorded: Mapping[str, Any], *, tuned: bool) -> bool:
    """Whether `step`, whose folders are held to their bytes, is what `recorded` describes; with `tuned` at any weights.

    `recorded` is the recipe of a manifest, which may be of another kind.
    """
    there = recorded.get("inputs")
    if recorded.get("method") != step.method or not isinstance(there, list) or len(there) != len(step.inputs):
        return False
    for item, other in zip(step.inputs, there, strict=True):
        named = {"merge": None} if isinstance(item, Inner) else _named(item)
        apart = {"weight", "merge"} if tuned else {"merge"}
        ours = without_none(named | {"weight": item.weight})
        if not isinstance(other, Mapping) or any(
            ours.get(key) != other.get(key) for key in (ours.keys() | other.keys()) - apart
        ):
            return False
        if isinstance(item, Inner) and not _repeats(item.step, other.get("merge") or {}, tuned=tuned):
            return False
    defaults = {option.name: option.default for option in describe(step.method).options}
    seed = {} if step.seed is None else {"seed": step.seed}
    is_copy = not recorded.get("options")
    same_options = recorded.get("options") == without_none(defaults | dict(step.options) | seed)
    return (is_copy or same_options) and recorded.get("dtype") in (step.dtype, step.dtype or DEFAULT_DTYPE)


def merge_into_folder(
    combination: Combination,
    folder: Path,
    *,
    progress: MergeProgress | None = None,
    test: ResultTest | None = None,
    run: Runner | None = None,
) -> Made:
    """Merge into the new folder `folder`, without a library. `test` looks at the result before it gets its name.

    `run` takes the place of the merge.

    Raises:
        BaseMismatch: two of the adapters were made for different bases.
        MergeRefused, Conflict, and any other error of `merge`; nothing is written then.
    """
    base, warnings = common_base(list(combination.leaves()))
    combination = in_pipeline(combination, base)
    contract, dropped = carried_contract(combination)
    is_last = test is None and contract is None  # nothing happens after the merge
    with contextlib.ExitStack() as stack:
        scratch = folder.parent
        if not is_last or any(isinstance(item, Inner) for item in combination.inputs):
            scratch.mkdir(parents=True, exist_ok=True)
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=scratch)))
        if is_last:
            made = (run or _run)(combination, folder, scratch, progress)
        else:
            ensure_new(folder)
            made = (run or _run)(combination, scratch / "result", scratch, progress)
            if contract is not None:
                write_durably(made.result.out_folder / CONTRACT_FILE, contract.to_bytes())
            if test is not None:
                test(made.result.out_folder)
            made.result.out_folder.rename(folder)
            made = replace(made, result=replace(made.result, out_folder=folder))
    form, told = _common_form(list(combination.leaves()))
    if contract is not None:
        told = []  # the contract states the form
    elif form is not None:
        told = [f"a folder holds no prompt form, and its parents state {form.label}; give it to `adapt add`"]
    return replace(made, warnings=(*warnings, *dropped, *told, *made.warnings))


def common_base(ingredients: Sequence[Ingredient], judge: Judge = compare) -> tuple[BaseRef, list[str]]:
    """Return the base of all ingredients, and a warning for each whose base is unknown.

    For adapters of a pipeline and of components of it, this is the pipeline; for those of a base and of quantised
    copies of it, the base. `judge` compares two.

    Raises:
        BaseMismatch: two of the known bases differ.
    """
    known = [i for i in ingredients if i.base.fingerprint is not None]
    warnings = [
        f"`{i.label}` has no base fingerprint, so its base was not compared"
        for i in ingredients
        if i.base.fingerprint is None
    ]
    if not known:
        return next((i.base for i in ingredients if i.base.hints.hub_id), BaseRef()), warnings
    first = next((i for i in known if i.base.fingerprint and i.base.fingerprint.copy is None), known[0])
    first = next((i for i in known if i.base.fingerprint and is_pipeline(i.base.fingerprint)), first)
    for other in known:
        if _component(other, first.base):
            continue
        comparison = judge(first.base.fingerprint, other.base.fingerprint)
        if not comparison.verdict.allows_attach:
            lines = [f"`{first.label}` and `{other.label}` were made for different bases; their sum has no meaning"]
            lines += [f"  {sentence}" for sentence in comparison.differences]
            raise BaseMismatch("\n".join(lines), hint=comparison.hint or "`adapt info NAME` shows the base of each")
        if comparison.verdict is BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION:
            warnings.append(f"`{other.label}` was made for the same base in another precision")
        if comparison.verdict in (BaseVerdict.SAME_WEIGHTS_QUANTISED, BaseVerdict.ACCEPTED_QUANTISED):
            warnings.append(f"`{other.label}` was made for a quantised copy of the same base ({comparison.form})")
        if comparison.verdict is BaseVerdict.SAME_WEIGHTS_RESIZED_VOCABULARY:
            warnings.append(f"`{other.label}` was made for the same base with a vocabulary of another size")
    return first.base, warnings


def in_pipeline(combination: Combination, base: BaseRef) -> Combination:
    """Return the merge, run for the pipeline `base`: names of a one-component adapter get that component in front."""
    return combination.with_leaves(lambda one: replace(one, component=_component(one, base)))


def _component(ingredient: Ingredient, base: BaseRef) -> str:
    """Return the component of the pipeline `base` that an ingredient is for; "" for the whole or another base."""
    own, whole = ingredient.base.fingerprint, base.fingerprint
    if own is None or whole is None or own.weights == whole.weights or not is_pipeline(whole):
        return ""
    return component_in(own, whole)


def _common_form(ingredients: Sequence[Ingredient]) -> tuple[PromptForm | None, list[str]]:
    """Return the prompt form that all ingredients state, and a warning where they state different ones.

    The form of the sum is not known then: each parent answers best in its own.
    """
    forms = {i.label: found.prompt if (found := manifest_in(i.folder)) else None for i in ingredients}
    first = next(iter(forms.values()))
    if all(form == first for form in forms.values()):
        return first, []
    words = [f"`{shown(label, 200)}` {form.label if form else 'states none'}" for label, form in forms.items()]
    return None, [f"the result states no prompt form, because its parents differ: {'; '.join(words[:_FORMS_TOLD])}"]


def _run(combination: Combination, out_folder: Path, scratch: Path, progress: MergeProgress | None) -> Made:
    """Run the inner merges below `scratch`, then this one into `out_folder`."""
    inputs: list[MergeInput] = []
    named: list[dict[str, object]] = []
    inner: list[MergeResult] = []
    warnings: list[str] = []
    for number, item in enumerate(combination.inputs):
        if not isinstance(item, Inner):
            inputs.append(item.pinned())
            named.append(_named(item))
            continue
        below = scratch / f"inner-{number}"
        below.mkdir()
        made = _run(item.step, below / "merged", below, progress)
        label = f"the merge of {', '.join(leaf.label for leaf in item.step.leaves())}"
        inputs.append(MergeInput(folder=made.result.out_folder, label=label, weight=item.weight))
        named.append({"weight": item.weight, "merge": dict(made.recipe)})
        inner += [*made.inner, made.result]
        warnings += [f"{shown(label)}: {warning}" for warning in made.warnings]
    options = dict(combination.options) | ({"seed": combination.seed} if combination.seed is not None else {})
    result = merge(
        inputs,
        out_folder,
        method=combination.method,
        dtype=combination.dtype,
        progress=progress,
        **options,  # type: ignore[arg-type]  # `merge` checks them
    )
    recipe: dict[str, object] = {**result.recipe, "inputs": named}
    if result.is_copy:  # only a recipe without options and dtype copies byte for byte
        recipe |= {"options": {}, "dtype": combination.dtype}
    else:  # defaults too, since another version may have others
        defaults = {option.name: option.default for option in describe(combination.method).options}
        recipe["options"] = without_none(defaults | cast("dict[str, object]", result.recipe["options"]))
    return Made(result=result, inner=tuple(inner), warnings=(*warnings, *result.warnings), recipe=without_none(recipe))


def as_lora(base: BaseRecord) -> Runner:
    """Make a LoRA of the one adapter of a combination, whatever its linear method."""

    def run(combination: Combination, out_folder: Path, _: Path, progress: MergeProgress | None) -> Made:
        from adapterhub.weights.extract.linear import convert

        [parent] = combination.leaves()
        options = cast("dict[str, float]", dict(combination.options))
        result = convert(parent.pinned(), base, out_folder, options, dtype=combination.dtype, progress=progress)
        recipe = {**result.recipe, "of": _named(parent), "base": base.fingerprint.weights}
        return Made(result=result, inner=(), warnings=result.warnings, recipe=recipe)

    return run


def _named(ingredient: Ingredient) -> dict[str, object]:
    """Return an input of a recipe, with the digests that it must have."""
    named = {"spec": ingredient.label, "weight": ingredient.weight, "digest": ingredient.digest}
    return without_none({**named, **ingredient.files})


def _held_to_bytes(combination: Combination) -> Combination:
    """Return the combination with the digests of the files of every folder; reads the files once more."""
    return combination.with_leaves(
        lambda one: one if one.digest or one.files else replace(one, files=folder_digests(one.folder))
    )


def folder_digests(folder: Path) -> dict[str, Digest | None]:
    """Return the digests that a recipe records of a folder: `sha256` (weights) and `config_sha256`.

    None without the file.
    """
    taken = safe_listing(folder).taken
    return {key: digest_of_file(taken[name].path)[0] if name in taken else None for key, name in _RECORDED.items()}


def _measured(made: Made) -> dict[str, float]:
    metrics: dict[str, float | None] = {
        "relative_error": made.result.relative_error,
        "truncation_error": made.result.truncation_error,
        "inner_relative_error": max((r.relative_error for r in made.inner), default=None),
    }
    # Later digits are noise of the factorisations and would give each machine its own manifest.
    return {f"{MEASURED_PREFIX}{key}": float(f"{n:.3g}") for key, n in metrics.items() if n is not None}


SourcesFor = Callable[[AdapterSpec], Sequence[Source]]
"""The sources to search for an adapter, in order."""

Bar = Callable[[str, int], AbstractContextManager[Progress]]
"""Shows the progress of a transfer, given its title and size in bytes."""


def combination_of(
    library: Library, recipe: Recipe, folder: Path, sources_for: SourcesFor, bar: Bar
) -> tuple[Combination, tuple[str, ...]]:
    """Return the recipe with every input resolved, and warnings.

    Installs missing inputs from the sources that have them.

    An input with a digest is the build with that manifest, under any name; an input without one is the current match of
    its spec. Folders are relative to `folder`, the folder of the recipe.

    Raises:
        DigestMismatch: an input exists with other content; nothing was merged.
        AdapterNotFound: inputs are missing; lists each with the command that installs it.
        BaseMismatch: the inputs were made for another base than the recipe names.
    """
    search = _ParentSearch(library=library, folder=folder, sources_for=sources_for, bar=bar)
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
class _ParentSearch:
    """Resolves every input and collects the problems, so that one error lists them all."""

    library: Library
    folder: Path
    sources_for: SourcesFor
    bar: Bar
    missing: list[str] = field(default_factory=list)
    changed: list[DigestMismatch] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def combination(self, step: MergeStep, path: str) -> Combination:
        inputs: list[Ingredient | Inner[Ingredient]] = []
        for number, item in enumerate(step.inputs):
            where = f"{path}inputs[{number}]"
            if isinstance(item, Inner):
                inner = self.combination(item.step, f"{where}.merge.")
                inputs.append(Inner(weight=item.weight, step=inner))
            else:
                leaf = self.in_folder(item, where) if item.is_folder else self.in_library(item, where)
                inputs += [leaf] if leaf else []
        return MergeStep(
            inputs=tuple(inputs), method=step.method, options=step.options, dtype=step.dtype, seed=step.seed
        )

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
        """Return the installed build with that manifest.

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
        """Return the build that the spec matches, installed now if necessary."""
        spec = without_alias(self.library, spec)
        wanted = requested_base(spec.base, self.library.bases, spec)
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
        """Return the build with that manifest, installed from the first source that has it."""
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
