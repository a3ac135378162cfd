"""New adapters from others: several put together with a weight each, or one made smaller."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterhub.api.results import Merged, report_warnings
from adapterhub.core.arguments import path_of
from adapterhub.core.errors import BaseMismatch, SpecError, UsageProblem, shown
from adapterhub.core.specs import names_folder, parse_name
from adapterhub.distribution.choosing import find_installed
from adapterhub.formats.manifest import CONTRACT_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adapterhub.api.steps.contracts.gating import MergeTest
    from adapterhub.core.digests import Digest
    from adapterhub.core.specs import BaseSpec
    from adapterhub.library.intake.clashes import Bump
    from adapterhub.library.intake.description import Description
    from adapterhub.library.library import Library
    from adapterhub.projects.reporting import Bars
    from adapterhub.projects.session import Session
    from adapterhub.weights.compare.similarity import Comparison
    from adapterhub.weights.recipes.combination import Combination, Ingredient

DEFAULT_VERSION: Final = "1.0.0"
LARGE_LOSS: Final = 0.2
"""The relative error from which a cut to a given rank is worth a warning: twice that of rank `auto`."""

_NAME_HINT: Final = "`-o NAME` adds the result to the library, `-o ./folder` writes it to a folder"
_NUMBER: Final = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)")


def weights_from(text: str | None, adapters: Sequence[str]) -> list[float]:
    """The weights of `--weights`, one for each of `adapters`; by default equal shares that sum to 1.

    Raises:
        UsageProblem: the text is not a list of numbers, their count differs, or weights stand among the adapters.
    """
    numbers = [one for one in adapters if _NUMBER.fullmatch(one)]
    if numbers:
        names = [one for one in adapters if one not in numbers]
        weights = ",".join([*filter(None, (text or "").split(",")), *numbers])
        place = "stands where an adapter is" if len(numbers) == 1 else "stand where adapters are"
        raise UsageProblem(
            f"{', '.join(f'`{one}`' for one in numbers)} {place} expected; weights go into one option, with commas",
            hint=f"write `{' '.join(names)} --weights {weights}`",
        )
    count = len(adapters)
    if text is None:
        return [1 / count] * count
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageProblem(f"--weights `{text}`: expected numbers separated by commas, such as `0.7,0.3`") from None
    if len(values) != count:
        example = ",".join([f"{1 / count:.2g}"] * count)
        raise UsageProblem(
            f"{len(values)} weight{'s' * (len(values) != 1)} for {count} adapter{'s' * (count != 1)}",
            hint=f"separate weights with commas: `--weights {example}`",
        )
    return values


def ingredient(library: Library, text: str, weight: float, base: BaseSpec | None) -> Ingredient:
    """The adapter that `text` names: a folder if it looks like a path, else an installed adapter.

    Raises:
        AdapterNotFound, NoCompatibleRelease, SpecError: no installed adapter matches.
    """
    from adapterhub.core.specs import AdapterSpec, names_folder
    from adapterhub.distribution.finding import ensure_folder
    from adapterhub.library.upkeep.damage import ensure_manifest_unchanged
    from adapterhub.projects.session import wanted_from
    from adapterhub.weights.recipes.combination import Ingredient

    if names_folder(text):
        ensure_folder(path_of(text))
        return Ingredient(folder=path_of(text), label=text, weight=weight)
    spec = AdapterSpec.parse(text)
    build, _ = find_installed(library, spec, wanted=wanted_from(library, spec, base))
    ensure_manifest_unchanged(library, build)
    label = f"{build.full_name}=={build.manifest.version}"
    return Ingredient(folder=build.folder, label=label, weight=weight, base=build.base, digest=build.manifest.digest)


def description_from(name: str, details: Mapping[str, str | None]) -> Description:
    """The description of the new adapter from the options.

    Raises:
        SpecError: the name or version is invalid.
    """
    from adapterhub.core.specs import parse_name, parse_version
    from adapterhub.library.intake.description import Description

    return Description(
        name=parse_name(name),
        version=parse_version(details.get("version") or DEFAULT_VERSION),
        task=details.get("task"),
        description=details.get("description") or "",
        license=details.get("license"),
    )


def combine(
    library: Library,
    combination: Combination,
    target: Description | Path,
    *,
    what: str = "merge",
    expected: str | None = None,
    tuning: Mapping[str, Any] | None = None,
    bump: Bump | None = None,
    variant: bool = False,
    test: MergeTest | None = None,
    bars: Bars,
) -> Merged:
    """Run a merge into the library under a description, or into a new folder.

    `expected` is the digest of the manifest that a recipe recorded; `bump` and `variant` are as for `Library.add`.
    `test` asks the result what its parents' contracts hold.

    Raises:
        BehaviourChanged, CouldNotTell: `test` does not let the result pass; nothing was written.
        UsageProblem: `bump` or `variant` for a folder, which has no version.
        ReleaseExists: the library has another build under the name and version; nothing was merged.
    """
    from adapterhub.weights.recipes.combination import merge_into_folder, merge_into_library

    ensure_named(target, bump, variant=variant)
    with bars.steps(what, unit="modules") as progress:
        if isinstance(target, Path):
            made = merge_into_folder(combination, target, progress=progress, test=test)
            found = tuple(test.results) if test is not None else ()
            return Merged(folder=target, made=made, combination=combination, tuning=tuning or {}, tests=found)
        outcome = merge_into_library(
            library, combination, target, bump=bump, variant=variant, progress=progress, test=test
        )
    build = outcome.added.build
    return Merged(
        folder=build.folder,
        made=outcome.made,
        combination=combination,
        added=outcome.added,
        as_recorded=None if expected is None else build.manifest.digest == expected,
        tuning=tuning or {},
        tests=tuple(test.results) if test is not None else (),
    )


def ensure_named(target: Description | Path | None, bump: Bump | None, *, variant: bool) -> None:
    """Refuse `bump` and `variant` for a result that goes to a folder, or None, and has no version.

    Raises:
        UsageProblem: one is given for a folder, or both are given.
    """
    from adapterhub.library.intake.clashes import check_naming

    check_naming(bump, variant=variant)
    if (bump is not None or variant) and (target is None or isinstance(target, Path)):
        raise UsageProblem("`--bump` and `--variant` are for adapters of the library; a folder has no version")


def report_merged(session: Session, merged: Merged) -> None:
    """Report the warnings of a merge, and of the checks of its result."""
    for warning in merged.warnings:
        session.out.warn(warning)
    rank, lost = merged.combination.options.get("rank"), merged.made.result.truncation_error
    if rank is not None and lost is not None and lost > LARGE_LOSS:
        session.out.warn(
            f"the cut to rank {rank} loses much: its relative error is {lost:.2g}; "
            "rank `auto` keeps the error near 0.1, and without a rank nothing is cut"
        )
    report_warnings(session, merged.added)
    if note := contract_note(merged):
        session.out.note(note)


def contract_note(merged: Merged) -> str:
    """What became of the contracts of a merge's parents; empty where none has one, or the result was tested."""
    from adapterhub.weights.recipes.contracts import is_same_adapter

    labels = [
        f"`{shown(one.label, 200)}`" for one in merged.combination.leaves() if (one.folder / CONTRACT_FILE).is_file()
    ]
    if not labels or merged.tests:
        return ""
    if not is_same_adapter(merged.combination):
        verb = "have contracts" if len(labels) > 1 else "has a contract"
        return f"{' and '.join(labels)} {verb}, and the result carries none: `--test` asks it theirs"
    if not (merged.folder / CONTRACT_FILE).is_file():
        return ""
    return f"the result carries the contract of {labels[0]}, untested: `adapt test` asks it"


def compared(session: Session, ingredients: Sequence[Ingredient], dtype: str, *, bars: Bars) -> Comparison:
    """How alike the adapters are, and what their merge would be; nothing is merged.

    Raises:
        MergeRefused, Malformed: what cannot be compared.
    """
    from adapterhub.weights.compare.similarity import compare_adapters
    from adapterhub.weights.recipes.combination import common_base, in_pipeline
    from adapterhub.weights.recipes.toml.values import Step

    obstacles: tuple[str, ...] = ()
    try:
        base, warnings = common_base(ingredients)
        ingredients = list(in_pipeline(Step(inputs=tuple(ingredients)), base).leaves())
    except BaseMismatch as error:
        # Adapters of different bases can still be compared if the shapes agree, as for a base and its chat version.
        obstacles, warnings = ("; ".join(line.strip() for line in error.message.splitlines()),), []
    for warning in warnings:
        session.out.note(warning)
    with ExitStack() as stack:
        sides = [one.pinned().open(stack) for one in ingredients]
        total = len({module for side in sides for module in side.factors.modules})
        step = stack.enter_context(bars.progress("compare", total, unit="modules"))
        found = compare_adapters(sides, dtype=dtype, progress=lambda _done, _all: step(1))
    if obstacles:
        found = replace(found, obstacles=(*obstacles, *found.obstacles), forecast=None)
    return found


def name_of_label(label: str) -> str:
    """The bare name in `acme/legal-qa==1.0.0` or a Hub id, or the last part of a folder's path."""
    if names_folder(label):
        return path_of(label).resolve().name.lower()
    return label.partition("==")[0].rpartition("/")[2].lower()


def default_name(labels: Sequence[str], ending: str = "") -> str:
    """A name for a result made from the adapters or models `labels`: their names and `ending`, joined by `-`.

    Raises:
        UsageProblem: the joined name is invalid, or equals the name of a parent.
    """
    parts = [name_of_label(label) for label in labels]
    name = "-".join([*parts, ending] if ending else parts)
    try:
        if name in parts:
            raise UsageProblem("the result needs a name", hint=_NAME_HINT)
        return parse_name(name)
    except SpecError as error:
        raise UsageProblem(f"the result needs a name: {error.message}", hint=_NAME_HINT) from None


# ---------------------------------------------------------------- resize
@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Size of an adapter's files in bytes, and how many modules have which rank."""

    size_bytes: int
    ranks: Mapping[int, int]

    def to_json(self) -> dict[str, Any]:
        """The JSON value."""
        return {"size_bytes": self.size_bytes, "ranks": {str(r): count for r, count in sorted(self.ranks.items())}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resizing:
    """A resize that was looked at: what to run, where to, and what the adapter holds before."""

    combination: Combination
    target: Description | Path
    before: Held


def plan_resize(
    library: Library,
    adapter: str,
    output: str | None,
    cut: Mapping[str, int | float],
    *,
    dtype: str | None = None,
    base: BaseSpec | None = None,
    said: Mapping[str, str | None],
) -> Resizing:
    """Look at the adapter that is to be made smaller; `cut` is one of rank, energy and max_error.

    `said` takes the place of what the author of the adapter wrote about it.
    """
    from adapterhub.weights.recipes.toml.values import Step

    rank = cut.get("rank")
    parent = ingredient(library, adapter, 1.0, base)
    before, own_dtype = weights_in(parent.folder, parent.pinned().expected)
    combination = Step(inputs=(parent,), method="svd", options=cut, dtype=dtype or own_dtype)
    if rank is not None and rank >= max(before.ranks):
        combination = Step(inputs=(parent,), dtype=dtype)  # a copy, unless --dtype converts it
    output = output or default_name([parent.label], f"r{rank}" if rank is not None else "small")
    if names_folder(output):
        return Resizing(combination=combination, target=path_of(output), before=before)
    words = _words_of(library, parent) | {key: text for key, text in said.items() if text is not None}
    return Resizing(combination=combination, target=description_from(output, words), before=before)


def weights_in(folder: Path, expected: Mapping[str, Digest] | None) -> tuple[Held, str | None]:
    """The size and ranks of an adapter's files, and the dtype of all factors if they share a valid one."""
    from adapterhub.weights.dtypes import TORCH_DTYPES
    from adapterhub.weights.lowrank.factors import AdapterFactors
    from adapterhub.weights.merge import DTYPES

    with AdapterFactors(folder, expected) as factors:
        ranks = Counter(module.rank for module in factors.modules.values())
        dtypes = {TORCH_DTYPES[spec.dtype] for module in factors.modules.values() for spec in (module.a, module.b)}
        size = len(factors.config_bytes) + factors.header.size_bytes
    own = next((name for name, dtype in DTYPES.items() if dtypes == {dtype}), None)
    return Held(size_bytes=size, ranks=ranks), own


def _words_of(library: Library, parent: Ingredient) -> dict[str, str]:
    """The description that an installed adapter's author gave."""
    if parent.digest is None:
        return {}
    manifest = library.store.read_manifest(parent.digest)
    words = {"version": manifest.version, "task": manifest.task, "description": manifest.description}
    return {key: text for key, text in (words | {"license": manifest.license}).items() if text}
