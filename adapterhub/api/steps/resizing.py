"""The closest adapter of a lower rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.api.steps.combining import default_name, description_from, ingredient
from adapterhub.core.specs import names_folder

if TYPE_CHECKING:
    from adapterhub.core.digests import Digest
    from adapterhub.core.specs import BaseSpec
    from adapterhub.library.intake.description import Description
    from adapterhub.library.library import Library
    from adapterhub.weights.recipes.combination import Combination, Ingredient


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
        return Resizing(combination=combination, target=Path(output).expanduser(), before=before)
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
