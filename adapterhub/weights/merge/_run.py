"""A merge in progress: module by module from open adapters into a PEFT folder, with every error measured."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import torch
from torch import Tensor

from adapterhub.core.digests import Digest
from adapterhub.core.disk.memory import keep_none
from adapterhub.core.errors import MergeRefused, shown
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.safetensors.dtypes import DTYPE_BITS
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.weights.catalogue import Method
from adapterhub.weights.dtypes import FORMAT_DTYPES
from adapterhub.weights.lowrank.algebra import Cut, LowRank, Summands, cut, nothing
from adapterhub.weights.lowrank.errors import ModuleErrors, difference_norms
from adapterhub.weights.lowrank.factors import TensorFileWriter, WeightedAdapter
from adapterhub.weights.lowrank.layouts import constants, is_finite, join
from adapterhub.weights.lowrank.randomized import work_alone
from adapterhub.weights.merge._carried import remarks
from adapterhub.weights.merge._refusals import raise_for
from adapterhub.weights.merge.config import merged_config
from adapterhub.weights.merge.plan import MergePlan

_REUSED_BYTES: Final = 31 << 20  # glibc adapts to blocks of less than 32 MB
THREADS: Final = 2
"""Modules merged at once, on any machine."""

_Made = TypeVar("_Made")
_EXPERT: Final = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Merged:
    """One module of the result as stored: the update of each part (see `Layout`), and the bias of B, if any.

    `norms` are those of the error and of the exact sum for each part, `cuts` those of what the cut lost and of the
    update before it.
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

    def _write(self, writer: TensorFileWriter, merged: Mapping[str, Merged]) -> None:
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

    def _tried(self, module: str) -> Merged | MergeRefused:
        try:
            return self._merged(module)
        except MergeRefused as refused:
            return refused

    def _merged(self, module: str) -> Merged:
        """The module as stored, with its errors measured; changes nothing of the run.

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
        if exact_bias is not None and bias is not None:  # in effect one more column of the update
            norms.append((float((bias.double() - exact_bias).norm()), float(exact_bias.norm())))
        reason = self._objection(parts, bias, norms)
        if reason:
            raise MergeRefused(name, [f"{name}: {reason}"])
        cuts = [(one.lost, one.whole) for one in made if isinstance(one, Cut)]
        return Merged(parts=parts, bias=bias, norms=norms, cuts=cuts)

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
        """The weighted sum of the biases; None if the result has none."""
        if not self.plan.has_bias:
            return None
        total = torch.zeros(self.plan.layouts[module].out, dtype=torch.float64)
        for source in self.adapters:
            bias = source.factors.bias(module) if module in source.factors.modules else None
            if bias is not None:
                total += source.weight * bias
        return total

    def _made(self, module: str, part: int, deltas: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
        """The method's result for one part of a module, cut to the requested rank."""
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
        """The updates of all adapters for each part of the module.

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
    """What `make` gives for each item, in order; each thread works on one, and at most one more is made or waits."""
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch to one thread: the last digits of sums and factorisations depend on the number of threads.

    A recipe then gives the same bytes on any number of cores. Two threads of our own work on two modules, which changes
    no digit.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _generator(seed: object, digest: Digest, module: str) -> torch.Generator:
    """The random numbers of one module of one adapter, independent of the order of the inputs."""
    key = hashlib.sha256(f"{seed}\n{digest}\n{module}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
