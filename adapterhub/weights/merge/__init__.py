"""Merging: adapter folders in, one plain PEFT folder out, module by module.

A method is one file of this package, named as users type it; finding it imports nothing. It exposes

    merge(deltas, weights, *, …options) -> LowRank

which sees the updates of one module, one for every adapter that takes part (rank 0 where an adapter lacks the module),
and their weights, never files or names. Its docstring names the paper, the space it works in (factor, core or delta)
and the convention. Its keyword-only arguments are its options (`merge_methods` reads them), but for

    generators: Sequence[torch.Generator] | None    one for each adapter, seeded by the merge's seed, the adapter's
                                                    weights and the module: a mask follows its adapter
    rank, max_error                                 taken by a method that works on whole matrices and returns a `Cut`;
                                                    what any other method makes is cut afterwards, if asked for

It may expose `refusal(ranks) -> str | None`, asked about every module before anything is computed, and `LINEAR = True`
if what it makes is the weighted sum, or the nearest to it of some rank: then biases inside of factors (`lora_bias`) are
added up beside it, which other methods refuse. `tests/contracts/merge_method.py` runs over every method there is.

A method never sees what kind of module an update is for. An embedding, a convolution or a parameter of experts comes as
one pair for each of its parts (`layouts`). What an adapter brings besides such pairs is carried over, where that is
exact, or refused by name (`_carried`, `_refusals`); a single adapter of weight 1 is copied, whatever it is.

What comes out has scale 1 in every module (alpha equals the rank, no rsLoRA), weights and scales are in the factors.
The numbers are float32 unless asked otherwise, even for bfloat16 adapters: a weighted factor is a new number, and
rounding it to 8 bits loses 0.2 % of the update, which would end the exactness of `cat`. The relative error against the
exact sum, ‖result - exact‖ / ‖exact‖ over all modules, is measured after rounding, whatever the method.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from adapterhub.core.digests import Digest
from adapterhub.core.disk.new_folder import new_folder
from adapterhub.core.errors import MergeRefused, UsageProblem, shown
from adapterhub.weights.catalogue import describe, names
from adapterhub.weights.dtypes import CHOSEN_DTYPES, FORMAT_DTYPES
from adapterhub.weights.lowrank.algebra import check_rank, error_of_energy
from adapterhub.weights.lowrank.factors import AdapterFactors
from adapterhub.weights.merge._copy import copy_into, dtype_of, ranks_of
from adapterhub.weights.merge._work import Work
from adapterhub.weights.merge.plan import plan
from adapterhub.weights.merge.source import MergeAdapter

__all__ = ["MergeInput", "MergeProgress", "MergeResult", "merge", "method_names"]

MAX_WEIGHT = 1e6
"""Weights of merges are near 1; anything beyond this is a mistake that would only fill a file with huge numbers."""

DTYPES: Final = CHOSEN_DTYPES
DEFAULT_DTYPE = "float32"

MergeProgress = Callable[[int, int], None]
"""Called with the number of modules done and the number of all modules; of tensors where an adapter is copied."""

method_names = names


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeInput:
    """An adapter to merge: its PEFT folder, its name in messages and in the recipe, its weight (0: left out).

    `expected` are the digests that its files must have, by name; None stands for those in the folder's own manifest.
    """

    folder: Path
    label: str
    weight: float
    expected: Mapping[str, Digest] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """What a merge wrote, and how far it is from the exact sum.

    `relative_error` is over all modules, `worst_error` that of `worst_module` alone. `truncation_error` is what cutting
    to a rank lost of what the method made, over all modules; None where nothing was cut. `ranks` counts modules by
    rank. `is_copy` tells that one adapter with weight 1 was copied byte for byte; nothing is off then, and where its
    file does not tell what its pairs are, there are no ranks, no dtype and no worst module. `recipe` is JSON: with the
    inputs named by digest instead of label, the merge can be run again from it.
    """

    out_folder: Path
    relative_error: float
    worst_error: float
    worst_module: str
    truncation_error: float | None
    ranks: Mapping[int, int]
    dtype: str
    is_copy: bool
    warnings: tuple[str, ...]
    recipe: dict[str, object]


def merge(
    inputs: Sequence[MergeInput],
    out_folder: Path,
    *,
    method: str = "cat",
    rank: int | None = None,
    max_error: float | None = None,
    energy: float | None = None,
    dtype: str | None = None,
    progress: MergeProgress | None = None,
    **options: object,
) -> MergeResult:
    """Merge adapters into the new folder `out_folder`, which appears complete or not at all.

    One of `rank`, `max_error` (relative, of each module) and `energy` (share of each module's squared norm to keep)
    cuts what the method makes to a rank. `options` are those of the method, as values or as texts, and `seed` for one
    that draws masks; None means not given. A single adapter of weight 1, with nothing of all this given, is copied as
    it is. Inputs whose weight is 0 are not opened. Memory is that of the largest module; the base
    is not needed.

    Raises:
        UsageProblem: no such method, dtype or option, an option out of range, or a weight that is no sensible number.
        MergeRefused: the adapters cannot be added up, or the result would not be finite; every reason is listed.
        DigestMismatch: an input whose files are not those expected, or change meanwhile.
        MalformedConfig, MalformedTensorFile, RefusedAdapter: an input that breaks its format.
        Conflict: `out_folder` exists and is not empty.
    """
    about = describe(method)
    own = about.converted({key: value for key, value in options.items() if value is not None})
    cut = {
        key: value
        for key, value in {"rank": rank, "max_error": max_error, "energy": energy}.items()
        if value is not None
    }
    if len(cut) > 1:
        raise UsageProblem(
            f"{' and '.join(cut)} exclude each other", hint="give one of `--rank`, `--energy`, `--max-error`"
        )
    check_rank(rank, max_error)
    if energy is not None:
        max_error = error_of_energy(energy)
    if dtype is not None and dtype not in DTYPES:
        raise UsageProblem(f"dtype `{shown(dtype)}`, expected one of {', '.join(DTYPES)}")
    module = importlib.import_module(f"adapterhub.weights.merge.methods.{method}")
    taking_part = _taking_part(inputs)
    options_given = bool(own)
    seed = own.pop("seed", 0)
    with ExitStack() as stack:
        sources = [
            MergeAdapter(
                folder=i.folder,
                label=i.label,
                weight=i.weight,
                factors=stack.enter_context(AdapterFactors(i.folder, i.expected)),
            )
            for i in taking_part
        ]
        is_copy = (
            len(sources) == 1
            and sources[0].weight == 1
            and not (options_given or cut)
            and _is_stored_as(sources[0], dtype)
        )
        step = progress or (lambda _done, _all: None)
        work = (
            None
            if is_copy
            else Work(
                sources=sources,
                plan=plan(sources, module),
                method=about,
                combine=module.merge,
                options=own,
                rank=rank,
                max_error=max_error,
                seed=seed,
                dtype=DTYPES[dtype or DEFAULT_DTYPE],
                progress=step,
            )
        )
        with new_folder(out_folder) as partial:
            if work is None:
                copy_into(sources[0], partial, step)
                measured = _Measured(ranks=ranks_of(sources[0]))
            else:
                work.write_into(partial)
                measured = _Measured(ranks=work.ranks, norms=work.norms, cuts=work.cuts, warnings=tuple(work.warnings))
        recipe: dict[str, object] = {
            "method": method,
            "options": {**cut, **own} | ({"seed": seed} if about.is_random else {}),
            "dtype": dtype_of(sources[0]) if is_copy else dtype or DEFAULT_DTYPE,
            "inputs": [{"label": i.label, "weight": i.weight} for i in inputs],
        }
        left_out = tuple(f"`{shown(i.label)}` has weight 0 and was left out" for i in inputs if i.weight == 0)
        return measured.result(out_folder, recipe, is_copy=is_copy, warnings=left_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What a merge has found out, by module; as in `Work`. A copy has no errors."""

    ranks: Mapping[str, int]
    norms: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    cuts: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def result(
        self, out_folder: Path, recipe: dict[str, object], *, is_copy: bool, warnings: tuple[str, ...]
    ) -> MergeResult:
        """The sums over all modules."""
        error, norm = _over_all(self.norms)
        lost, whole = _over_all(self.cuts)
        relative = {module: _ratio(*self.norms.get(module, (0.0, 0.0))) for module in self.ranks}
        worst = max(relative, key=lambda module: relative[module], default="")
        return MergeResult(
            out_folder=out_folder,
            relative_error=_ratio(error, norm),
            worst_error=relative.get(worst, 0.0),
            worst_module=worst,
            truncation_error=_ratio(lost, whole) if self.cuts else None,
            ranks=MappingProxyType(dict(sorted(Counter(self.ranks.values()).items()))),
            dtype=str(recipe["dtype"]),
            is_copy=is_copy,
            warnings=(*warnings, *self.warnings),
            recipe=recipe,
        )


def _over_all(pairs: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    first, second = zip(*pairs.values(), strict=True) if pairs else ((), ())
    return math.hypot(*first), math.hypot(*second)


def _taking_part(inputs: Sequence[MergeInput]) -> list[MergeInput]:
    """The inputs whose weight is not 0."""
    problems = [
        f"`{shown(i.label)}` has weight {i.weight}"
        for i in inputs
        if not math.isfinite(i.weight) or abs(i.weight) > MAX_WEIGHT
    ]
    if problems:
        raise UsageProblem(f"{', '.join(problems)}: expected finite numbers of at most {MAX_WEIGHT:g}")
    taking_part = [i for i in inputs if i.weight != 0]
    if not taking_part:
        raise MergeRefused("nothing to merge: every weight is 0" if inputs else "nothing to merge: no adapters given")
    return taking_part


def _is_stored_as(source: MergeAdapter, dtype: str | None) -> bool:
    """Whether every factor has that dtype already; always, when none is asked for."""
    wanted = None if dtype is None else FORMAT_DTYPES[DTYPES[dtype]]
    pairs = source.factors.modules.values()
    return wanted is None or (bool(pairs) and all({f.a.dtype, f.b.dtype} == {wanted} for f in pairs))


def _ratio(error: float, norm: float) -> float:
    return error / norm if error else 0.0
