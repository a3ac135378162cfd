"""Merging: adapter folders in, one plain PEFT folder out, module by module.

A method is one file of `methods/`, named as users type it. Listing the methods imports none of them. A method exposes

    merge(deltas, weights, *, …options) -> LowRank

`deltas` holds the update of one module in every adapter (rank 0 where an adapter lacks the module). The function sees
neither files nor names. Its docstring names the paper, the space it works in (factor, core or delta) and the
convention. Its keyword-only parameters are its options (`catalogue` reads them), except for

    generators: Sequence[torch.Generator] | None    one for each adapter, seeded from the seed of the merge, the
                                                    adapter's weights and the module, so a mask follows its adapter
    rank, max_error                                 for a method that works on whole matrices and returns a `Cut`;
                                                    the result of any other method is cut afterwards

A method may define `refusal(ranks) -> str | None`, called for every module before any computation, and `LINEAR = True`
if its result is the weighted sum or the closest update to it of some rank. The biases inside factors (`lora_bias`) are
then summed as well; other methods refuse them. Two modules are merged at once, by two threads.
`tests/contracts/merge_method.py` tests every method.

A method does not see the kind of a module. An embedding, a convolution or a parameter of experts arrives as one pair
for each of its parts (`layouts`), and so does the product of an AdaLoRA, LoHa or LoKr module (`products`). Everything
else in an adapter is carried over where that is exact and refused by name otherwise (`_carried`, `_refusals`). A single
adapter of weight 1 is copied, whatever its kind.

The result has scale 1 in every module (alpha equals the rank, no rsLoRA); its factors contain weights and scales. The
numbers are float32 by default, even for bfloat16 adapters: a weighted factor is a new number, and rounding it to 8 bits
loses 0.2 % of the update, so `cat` would no longer be exact. Every merge measures its relative error after rounding:
‖result - exact sum‖ / ‖exact sum‖ over all modules.
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
from typing import Annotated, Final

from adapterhub.core.arguments import parsed
from adapterhub.core.digests import Digest
from adapterhub.core.disk.new_folder import new_folder
from adapterhub.core.errors import MergeRefused, UsageProblem, shown
from adapterhub.weights.catalogue import describe, names
from adapterhub.weights.dtypes import CHOSEN_DTYPES, FORMAT_DTYPES
from adapterhub.weights.lowrank.algebra import error_of_energy, limit_of
from adapterhub.weights.lowrank.factors import AdapterFactors, WeightedAdapter
from adapterhub.weights.lowrank.randomized import side_by_side
from adapterhub.weights.merge._copy import CopyRun
from adapterhub.weights.merge._run import MergeRun
from adapterhub.weights.merge.plan import plan_merge

__all__ = ["MergeInput", "MergeProgress", "MergeResult", "merge", "method_names"]

MAX_WEIGHT = 1e6
"""Weights are near 1; a larger one is a mistake that would only fill a file with huge numbers."""

DTYPES: Final = CHOSEN_DTYPES
DEFAULT_DTYPE = "float32"

MergeProgress = Callable[[int, int], None]
"""Called with the modules done and the modules in all; a copy counts tensors."""

method_names = names


@parsed
@dataclass(frozen=True, slots=True, kw_only=True)
class MergeInput:
    """An adapter to merge: its PEFT folder, its name in messages and in the recipe, its weight (0 leaves it out).

    `expected` maps file names to the digests that the files must have; None takes those of the folder's own manifest.
    `component`: the one of a pipeline that it is for, where the others are for the pipeline; its modules get that name.
    """

    folder: Path
    label: str
    weight: float
    expected: Mapping[str, Digest] | None = None
    component: str = ""

    def open(self, stack: ExitStack) -> WeightedAdapter:
        """The adapter, its files open until `stack` closes. Raises what `AdapterFactors` raises."""
        factors = stack.enter_context(AdapterFactors(self.folder, self.expected, component=self.component))
        return WeightedAdapter(label=self.label, factors=factors, weight=self.weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """What a merge wrote, and how far it is from the exact sum.

    `relative_error` covers all modules, `worst_error` only `worst_module`. `truncation_error` is the part of the
    method's result that the cut to a rank lost, over all modules; None without a cut. `ranks` counts modules by rank.
    `is_copy` is true for a byte-for-byte copy of one adapter with weight 1. A copy has no errors, and where the file
    leaves the meaning of its pairs open, no ranks, no dtype and no worst module. `recipe` is JSON; with its inputs
    named by digest instead of label, it runs the merge again.
    """

    out_folder: Path
    relative_error: Annotated[float, "against the exact sum; for other methods, the distance from it"]
    worst_error: Annotated[float, "its relative error"]
    worst_module: Annotated[str, "the module with the largest error"]
    truncation_error: Annotated[float | None, "lost by cutting to the rank; null if nothing was cut"]
    ranks: Mapping[int, int] = field(hash=False)
    dtype: str
    is_copy: bool
    warnings: tuple[str, ...]
    recipe: dict[str, object] = field(hash=False)


@parsed
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

    One of `rank`, `max_error` (relative, of each module) and `energy` (the share of each module's squared norm to keep)
    cuts the result to a rank. `options` are those of the method, as values or as text, and `seed` for a method that
    draws masks; None stands for the default. Without any of these, a single adapter of weight 1 is copied. An input of
    weight 0 is not opened. A merge needs the memory of a few modules, and no base.

    Raises:
        UsageProblem: an unknown method, dtype or option, an option out of range, or a weight that is not usable.
        MergeRefused: the adapters cannot be merged, or the result would not be finite; every reason is listed.
        DigestMismatch: a file of an input differs from its expected digest, or changed during the merge.
        MalformedConfig, MalformedTensorFile, RefusedAdapter: an input breaks its format.
        Conflict: `out_folder` exists and is not empty.
    """
    about = describe(method)
    own = about.converted({key: value for key, value in options.items() if value is not None})
    limit = limit_of(rank=rank, max_error=max_error, energy=energy)
    if energy is not None:
        max_error = error_of_energy(energy)
    if dtype is not None and dtype not in DTYPES:
        raise UsageProblem(f"dtype `{shown(dtype)}`, expected one of {', '.join(DTYPES)}")
    module = importlib.import_module(f"adapterhub.weights.merge.methods.{method}")
    with ExitStack() as stack:
        adapters = side_by_side(lambda one: one.open(stack), _taking_part(inputs))
        is_copy = len(adapters) == 1 and not (own or limit) and _is_stored_as(adapters[0], dtype)
        seed = own.pop("seed", 0)
        step = progress or (lambda _done, _all: None)
        run: CopyRun | MergeRun
        if is_copy:
            run = CopyRun(adapter=adapters[0], progress=step)
        else:
            run = MergeRun(
                adapters=adapters,
                plan=plan_merge(adapters, module),
                method=about,
                combine=module.merge,
                options=own,
                rank=rank,
                max_error=max_error,
                seed=seed,
                dtype=DTYPES[dtype or DEFAULT_DTYPE],
                progress=step,
            )
        with new_folder(out_folder) as partial:
            run.write_into(partial)
    dtype = run.dtypes if isinstance(run, CopyRun) else dtype or DEFAULT_DTYPE
    worst_module, worst_error = run.errors.worst
    left_out = [f"`{shown(i.label)}` has weight 0 and was left out" for i in inputs if i.weight == 0]
    return MergeResult(
        out_folder=out_folder,
        relative_error=run.errors.relative,
        worst_error=worst_error,
        worst_module=worst_module,
        truncation_error=run.cuts.relative if run.cuts else None,
        ranks=MappingProxyType(dict(sorted(Counter(run.ranks.values()).items()))),
        dtype=dtype,
        is_copy=is_copy,
        warnings=(*left_out, *run.warnings),
        recipe={
            "method": method,
            "options": {**limit, **own} | ({"seed": seed} if about.is_random else {}),
            "dtype": dtype,
            "inputs": [{"label": i.label, "weight": i.weight} for i in inputs],
        },
    )


def _taking_part(inputs: Sequence[MergeInput]) -> list[MergeInput]:
    """The inputs whose weight is not 0."""
    problems = [
        f"`{shown(i.label)}` has weight {i.weight}"
        for i in inputs
        if not math.isfinite(i.weight) or abs(i.weight) > MAX_WEIGHT
    ]
    if problems:
        raise UsageProblem(f"{', '.join(problems)}; expected a finite number of at most {MAX_WEIGHT:g}")
    taking_part = [i for i in inputs if i.weight != 0]
    if not taking_part:
        raise MergeRefused("nothing to merge: every weight is 0" if inputs else "nothing to merge: no adapters given")
    return taking_part


def _is_stored_as(source: WeightedAdapter, dtype: str | None) -> bool:
    """Whether its files hold the result: at weight 1, under its own names, with every factor in `dtype` if given."""
    if source.weight != 1 or source.factors.component:
        return False
    wanted = None if dtype is None else FORMAT_DTYPES[DTYPES[dtype]]
    pairs = source.factors.modules.values()
    return wanted is None or (bool(pairs) and all({f.a.dtype, f.b.dtype} == {wanted} for f in pairs))
