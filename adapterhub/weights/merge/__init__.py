"""Merging: adapter folders in, one plain PEFT folder out, module by module.

A method is one file of `methods/`, named as users type it. Listing the methods imports none of them. A method exposes

    merge(deltas, weights, *, …options) -> LowRank

`deltas` holds the update of one module in every adapter (rank 0 where an adapter lacks the module). The function sees
neither files nor names. Its docstring names the paper, the space it works in (factor, core or delta) and the
convention. Its keyword-only parameters are its options (`catalogue` reads them), except for

    generators: Sequence[torch.Generator] | None    one for each adapter, seeded from the seed of the merge, the
                                                    adapter's weights and the module, so a mask follows its adapter
    rank, max_error                                 for a method that works on whole matrices and returns a `RankCut`;
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

import hashlib
import importlib
import json
import math
import re
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread
from types import MappingProxyType
from typing import Annotated, Final, TypeVar

import torch
from torch import Tensor

from adapterhub.core.arguments import parsed
from adapterhub.core.digests import Digest
from adapterhub.core.disk.files import new_folder
from adapterhub.core.disk.held_file import keep_none
from adapterhub.core.errors import MergeRefused, UsageProblem, shown
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.safetensors.header import DTYPE_BITS, TensorSpec
from adapterhub.formats.safetensors.header import DTYPES as FORMATS
from adapterhub.weights.catalogue import Method, describe, names
from adapterhub.weights.dtypes import CHOSEN_DTYPES, FORMAT_DTYPES
from adapterhub.weights.lowrank.algebra import (
    LowRank,
    ModuleErrors,
    RankCut,
    Summands,
    cut,
    difference_norms,
    error_of_energy,
    limit_of,
    nothing,
)
from adapterhub.weights.lowrank.factors import (
    AdapterFactors,
    TensorFileWriter,
    WeightedAdapter,
    constants,
    is_finite,
    join,
)
from adapterhub.weights.lowrank.randomized import side_by_side, work_alone
from adapterhub.weights.merge.plan import MergePlan, foreign, merged_config, plan_merge, raise_for, remarks

_REUSED_BYTES: Final = 31 << 20  # glibc adapts to blocks of less than 32 MB
THREADS: Final = 2
"""Modules merged at once, on any machine."""

_Made = TypeVar("_Made")
_EXPERT: Final = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergedModule:
    """One module of the result as stored: the update of each part (see `Layout`), and the bias of B, if any.

    `norms` are those of the error and of the exact sum for each part, without the bias, which a cut leaves whole.
    `cuts` are the norms of the part that the cut lost and of the update before it.
    """

    parts: tuple[LowRank, ...]
    bias: Tensor | None
    norms: Sequence[tuple[float, float]]
    cuts: Sequence[tuple[float, float]]


@dataclass(slots=True, kw_only=True)
class MergeRun:
    """The inputs, the method and the measurements of one merge.

    `combine` is the function of the method, `options` are its options. A method that chooses its rank gets `rank` and
    `max_error`; the result of any other is cut to them. `errors` compares the result with the exact sum, `cuts` the
    update after the cut with the update before.
    """

    adapters: Sequence[WeightedAdapter]
    plan: MergePlan
    method: Method
    combine: Callable[..., LowRank]
    options: Mapping[str, object]
    rank: int | None
    max_error: float | None
    seed: object
    dtype: torch.dtype
    progress: Callable[[int, int], None]
    warnings: list[str] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)
    errors: ModuleErrors = field(default_factory=ModuleErrors)
    cuts: ModuleErrors = field(default_factory=ModuleErrors)
    refusals: list[str] = field(default_factory=list)
    digests: tuple[Digest, ...] = ()

    def write_into(self, folder: Path) -> None:
        """Merge module by module into a PEFT folder."""
        # glibc returns the buffers of a module to the system, which zeroes the pages for the next module, until a block
        # of this size has been freed. That took a third of a merge's time. Other systems ignore this line.
        torch.empty(_REUSED_BYTES, dtype=torch.uint8)
        if self.method.is_random:
            self.digests = tuple(s.factors.weights.digest for s in self.adapters)
        carried = {
            TensorSpec.planned(name, one.spec.dtype, one.spec.shape): one
            # widest numbers first, so that each tensor starts at a multiple of their size
            for name, one in sorted(self.plan.carried.items(), key=lambda i: (-DTYPE_BITS[i[1].spec.dtype], i[0]))
        }
        done = 0
        planned = [*self._largest(), *carried]
        with _one_thread(), TensorFileWriter(folder / WEIGHTS_FILE, planned) as writer, ExitStack() as opened:
            opened.callback(keep_none)  # what methods use for whole matrices
            modules = (module for unit in self.plan.units for module in unit)
            results = opened.enter_context(closing(_ahead(self._tried, modules, THREADS)))
            for unit in self.plan.units:
                merged = {}
                for module in unit:
                    made = next(results)
                    if isinstance(made, MergeRefused):
                        self.refusals += made.reasons
                    else:
                        merged[module] = made
                        self.errors.record(module, made.norms)
                        if made.cuts:
                            self.cuts.record(module, made.cuts)
                    done += 1
                    self.progress(done, len(self.plan.layouts))
                # After a refusal the loop goes on, so that the error lists every reason.
                if not self.refusals:
                    self._write(writer, merged)
            self._check_carried()
            raise_for(self.refusals)
            for spec, one in carried.items():
                writer.add_chunks(spec, one.source.factors.chunks(one.spec))
        config, warnings = merged_config([s.factors for s in self.adapters], self.plan, self.ranks)
        self.warnings += [*warnings, *self._remarks()]
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _write(self, writer: TensorFileWriter, merged: Mapping[str, MergedModule]) -> None:
        """Write the modules of one unit, at the largest of their ranks."""
        rank = max(part.rank for made in merged.values() for part in made.parts)
        for module, made in merged.items():
            layout = self.plan.layouts[module]
            for name, factor in zip(layout.names(module), join(layout, made.parts, rank), strict=True):
                writer.add(name, factor)
            for name, constant in constants(layout, module, rank).items():
                writer.add(name, constant)
            if made.bias is not None:
                writer.add(layout.bias_name(module), made.bias)
            self.ranks[module] = layout.config_rank(rank)

    def _tried(self, module: str) -> MergedModule | MergeRefused:
        try:
            return self._merged(module)
        except MergeRefused as refused:
            return refused

    def _merged(self, module: str) -> MergedModule:
        """Return the module as stored, with its errors measured; changes nothing of the run.

        Raises:
            MergeRefused: with every reason.
        """
        updates = self._updates(module)
        weights = [s.weight for s in self.adapters]
        name = f"`{shown(module)}`"
        try:
            made = [self._made(module, part, deltas, weights) for part, deltas in enumerate(updates)]
        except MergeRefused as refused:
            reasons = [f"{name}: {reason}" for reason in refused.reasons or (refused.message,)]
            raise MergeRefused(name, reasons) from None
        parts = tuple(one.folded(self.dtype) for one in made)
        exact_bias = self._bias(module)
        bias = None if exact_bias is None else exact_bias.to(self.dtype)
        norms = [difference_norms(deltas, weights, part) for deltas, part in zip(updates, parts, strict=True)]
        of_bias = []
        if exact_bias is not None and bias is not None:
            of_bias = [(float((bias.double() - exact_bias).norm()), float(exact_bias.norm()))]
        reason = self._objection(parts, bias, [*norms, *of_bias])
        if reason:
            raise MergeRefused(name, [f"{name}: {reason}"])
        cuts = [(one.lost, one.whole) for one in made if isinstance(one, RankCut)]
        return MergedModule(parts=parts, bias=bias, norms=norms, cuts=cuts)

    def _objection(self, parts: Sequence[LowRank], bias: Tensor | None, norms: Sequence[tuple[float, float]]) -> str:
        """Why a module cannot be stored, from its errors, which are not finite where a number is not; or nothing."""
        error, norm = (math.hypot(*column) for column in zip(*norms, strict=True))
        if math.isfinite(error + norm):
            is_made_up = error > 0 and norm == 0
            return f"the exact sum is zero, but the result of `{self.method.name}` is not" if is_made_up else ""
        if all(part.is_finite() for part in parts) and (bias is None or is_finite(bias)):
            return "the numbers are too large to measure the error"
        return f"the result is not finite in {FORMAT_DTYPES[self.dtype]}"

    def _bias(self, module: str) -> Tensor | None:
        """Return the weighted sum of the biases; None if the result has none."""
        if not self.plan.has_bias:
            return None
        total = torch.zeros(self.plan.layouts[module].out, dtype=torch.float64)
        for source in self.adapters:
            bias = source.factors.bias(module) if module in source.factors.modules else None
            if bias is not None:
                total += source.weight * bias
        return total

    def _made(self, module: str, part: int, deltas: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
        """Return the method's result for one part of a module, cut to the requested rank."""
        layout = self.plan.layouts[module]
        rank = None if self.rank is None else layout.part_rank(self.rank)
        extra: dict[str, object] = {}
        if self.method.is_random:
            place = module if layout.parts == 1 else f"{module}#{part}"
            extra["generators"] = [_generator(self.seed, digest, place) for digest in self.digests]
        if self.method.chooses_rank:
            extra |= {"rank": rank, "max_error": self.max_error}
        made = self.combine(deltas, weights, **self.options, **extra)
        if self.method.chooses_rank or (rank is None and self.max_error is None):
            return made
        return cut(made, rank=rank, max_error=self.max_error)

    def _updates(self, module: str) -> list[Summands]:
        """Return the updates of all adapters for each part of the module.

        Raises:
            MergeRefused: names the adapters whose numbers are not finite.
        """
        layout = self.plan.layouts[module]
        held = [source.factors if module in source.factors.modules else None for source in self.adapters]
        of_sources = [
            [nothing(layout.part_out, layout.width)] * layout.parts if factors is None else factors.parts(module)
            for factors in held
        ]
        updates = [Summands(deltas) for deltas in zip(*of_sources, strict=True)]
        are_finite = all(update.is_finite for update in updates)
        bad = []
        for source, factors, parts in zip(self.adapters, held, of_sources, strict=True):
            bias = factors and factors.modules[module].bias
            is_bad = not (are_finite or all(part.is_finite() for part in parts))
            if is_bad or (factors and bias and not factors.is_finite(bias)):
                bad.append(source.label)
        if bad:
            reasons = [f"`{shown(module)}` in `{shown(label)}` holds NaN or infinite numbers" for label in bad]
            raise MergeRefused(module, reasons)
        return updates

    def _check_carried(self) -> None:
        """Note the carried tensors that are not finite."""
        for name, one in self.plan.carried.items():
            if not one.source.factors.is_finite(one.spec):
                label = shown(one.source.label)
                self.refusals.append(f"`{shown(name)}` in `{label}` holds NaN or infinite numbers")

    def _largest(self) -> list[TensorSpec]:
        """Every factor at the largest rank that a method may give it."""
        specs = []
        dtype = FORMAT_DTYPES[self.dtype]
        for unit in self.plan.units:
            rank = max(self._largest_rank(module) for module in unit)
            for module in unit:
                layout = self.plan.layouts[module]
                pair = zip(layout.names(module), layout.shapes(rank), strict=True)
                specs += [TensorSpec.planned(name, dtype, shape) for name, shape in pair]
                beside = constants(layout, module, rank, device="meta")
                specs += [TensorSpec.planned(name, "F32", tuple(t.shape)) for name, t in beside.items()]
                if self.plan.has_bias:
                    specs.append(TensorSpec.planned(layout.bias_name(module), dtype, (layout.out,)))
        return specs

    def _largest_rank(self, module: str) -> int:
        stacked = sum(s.factors.modules[module].rank for s in self.adapters if module in s.factors.modules)
        return max(stacked, self.plan.layouts[module].full_rank)

    def _remarks(self) -> list[str]:
        """Remarks on the result besides its error."""
        notes = list(remarks(self.plan.carried))
        empty = [module for module, (_, norm) in self.errors.items() if norm == 0]
        if empty:
            notes.append(
                f"{len(empty)} of {len(self.errors)} modules cancel to zero and are kept as zero updates; the first is "
                f"`{shown(empty[0])}`"
            )
        if len({rank for module, rank in self.ranks.items() if _EXPERT.search(module)}) > 1:
            notes.append(
                "the experts have different ranks; transformers 5 keeps all experts of a layer in one parameter, and "
                "PEFT combines their pairs only if all have one rank: give them one with `--rank N`"
            )
        return notes


def _ahead(make: Callable[[str], _Made], items: Iterable[str], threads: int) -> Generator[_Made, None, None]:
    """Yield the result of `make` per item, in order; each thread works on one, and at most one more waits."""
    if threads == 1:
        yield from map(make, items)
        return
    waiting: deque[Future[_Made]] = deque()
    with ThreadPoolExecutor(threads, "merge", initializer=work_alone) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()


_LIMITING: Final = Lock()
_LIMITED: Final[list[int]] = []
"""One for each merge that runs: the number of threads before the first of them."""


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch to one thread: the last digits of sums and factorisations depend on the number of threads.

    A recipe then gives the same bytes on any number of cores. Two threads of our own work on two modules, which changes
    no digit.
    """
    with _LIMITING:
        before = _LIMITED[0] if _LIMITED else torch.get_num_threads()
        _LIMITED.append(before)
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _LIMITING:
            _LIMITED.pop()
            torch.set_num_threads(before)
            if _LIMITED:  # what a thread sets is also the default of later threads, as those of other merges
                other = Thread(target=torch.set_num_threads, args=(1,))
                other.start()
                other.join()


def _generator(seed: object, digest: Digest, module: str) -> torch.Generator:
    """Return the random numbers of one module of one adapter, independent of the order of the inputs."""
    key = hashlib.sha256(f"{seed}\n{digest}\n{module}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))


@dataclass(slots=True, kw_only=True)
class CopyRun:
    """One copy in progress; `ranks` are those in the config, and no error is above 0."""

    adapter: WeightedAdapter
    progress: Callable[[int, int], None]
    warnings: tuple[str, ...] = ()
    ranks: dict[str, int] = field(default_factory=dict)
    errors: ModuleErrors = field(default_factory=ModuleErrors)
    cuts: ModuleErrors = field(default_factory=ModuleErrors)

    def write_into(self, folder: Path) -> None:
        """Copy both files into `folder` after checking every number.

        Raises:
            MergeRefused: not a LoRA, or some numbers are not finite; every such tensor is listed.
        """
        label, factors = shown(self.adapter.label), self.adapter.factors
        raise_for([f"`{label}` {reason}" for reason in foreign(self.adapter)])
        tensors = factors.header.tensors
        bad = []
        for done, spec in enumerate(tensors, 1):
            if not factors.is_finite(spec):
                bad.append(f"`{shown(spec.name)}` in `{label}` holds NaN or infinite numbers")
            self.progress(done, len(tensors))
        raise_for(bad)
        (folder / CONFIG_FILE).write_bytes(factors.config_bytes)
        factors.weights.copy_to(folder / WEIGHTS_FILE)
        self.ranks = {module: pair.layout.config_rank(pair.rank) for module, pair in factors.modules.items()}
        self.errors.update(dict.fromkeys(self.ranks, (0.0, 0.0)))

    @property
    def dtypes(self) -> str:
        """The dtypes of the factors, in torch's names."""
        formats = {spec.dtype for pair in self.adapter.factors.modules.values() for spec in (pair.a, pair.b)}
        return ", ".join(sorted(FORMATS[name].torch for name in formats))


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
        """Return the adapter, its files open until `stack` closes. Raises what `AdapterFactors` raises."""
        factors = stack.enter_context(AdapterFactors(self.folder, self.expected, component=self.component))
        return WeightedAdapter(label=self.label, factors=factors, weight=self.weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """The output of a merge, and how far it is from the exact sum.

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
    """Return the inputs whose weight is not 0."""
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
