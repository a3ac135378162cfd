"""Merging installed adapters into a new one: bases compared first, lineage and measured error recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterhub.description import Description
from adapterhub.digests import Digest
from adapterhub.errors import BaseMismatch
from adapterhub.fingerprint import BaseVerdict, compare
from adapterhub.library import Added, Library
from adapterhub.manifest import BaseRef, Parent
from adapterhub.merge import MergeInput, MergeProgress, MergeResult, merge
from adapterhub.specs import AdapterName


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredient:
    """An adapter to merge: its folder, how it was named, its weight; its base and digest when it is installed."""

    folder: Path
    label: str
    weight: float
    base: BaseRef = field(default_factory=BaseRef)
    digest: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The new release and what the merge measured; `warnings` are those of the merge and of the bases."""

    added: Added
    result: MergeResult
    warnings: tuple[str, ...]


def merge_into_library(
    library: Library,
    ingredients: Sequence[Ingredient],
    name: AdapterName,
    version: str,
    *,
    task: str | None = None,
    description: str = "",
    progress: MergeProgress | None = None,
    **options: Any,  # noqa: ANN401 - the options of `merge`
) -> Outcome:
    """Merge and add the result as `name` `version`.

    Raises:
        BaseMismatch: two of the adapters were made for different bases.
        MergeRefused, ReleaseExists, and what else `merge` and `Library.add` raise; nothing is stored then.
    """
    base, warnings = common_base(ingredients)
    inputs = [MergeInput(folder=i.folder, label=i.label, weight=i.weight) for i in ingredients]
    with library.store.staging() as staging:
        result = merge(inputs, staging / "merged", progress=progress, **options)
        about = Description(
            name=name,
            version=version,
            base=base,
            task=task,
            description=description,
            parents=tuple(Parent(digest=i.digest, spec=i.label, weight=i.weight) for i in ingredients),
            recipe={**result.recipe, "inputs": [_named(i) for i in ingredients]},
            metrics={"merge_relative_error": result.relative_error},
        )
        record = library.bases.by_fingerprint(base.fingerprint) if base.fingerprint else None
        added = library.add(result.out_folder, about, base=record)
    return Outcome(added=added, result=result, warnings=(*warnings, *result.warnings))


def common_base(ingredients: Sequence[Ingredient]) -> tuple[BaseRef, list[str]]:
    """The base that all ingredients were made for, and a warning for each whose base is not known.

    Raises:
        BaseMismatch: two of them are known to differ.
    """
    known = [i for i in ingredients if i.base.fingerprint is not None]
    warnings = [f"the base of `{i.label}` is not known by content" for i in ingredients if i.base.fingerprint is None]
    if not known:
        return next((i.base for i in ingredients if i.base.hints.hub_id), BaseRef()), warnings
    first = known[0]
    for other in known[1:]:
        comparison = compare(first.base.fingerprint, other.base.fingerprint)
        if not comparison.verdict.allows_attach:
            lines = [f"`{first.label}` and `{other.label}` were made for different bases; adding them up means nothing"]
            lines += [f"  {sentence}" for sentence in comparison.differences]
            raise BaseMismatch("\n".join(lines), hint="`adapt show NAME` shows the base of each")
        if comparison.verdict is BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION:
            warnings.append(f"`{other.label}` was made for the same base in another precision")
    return first.base, warnings


def _named(ingredient: Ingredient) -> dict[str, object]:
    """An input of a recipe: by digest where there is one, so that the merge can be run again from the same bytes."""
    named: dict[str, object] = {"spec": ingredient.label, "weight": ingredient.weight}
    return named | ({"digest": ingredient.digest} if ingredient.digest else {})
