"""One merge under way: module by module from open adapters into a PEFT folder, everything measured."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from adapterhub.core.digests import Digest
from adapterhub.core.errors import MergeRefused, shown
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.safetensors.dtypes import DTYPE_BITS
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.weights.catalogue import Method
from adapterhub.weights.dtypes import FORMAT_DTYPES
from adapterhub.weights.lowrank.algebra import Cut, LowRank, cut, difference_norms, nothing
from adapterhub.weights.lowrank.factors import TensorFileWriter
from adapterhub.weights.lowrank.layouts import is_finite
from adapterhub.weights.merge._carried import remarks
from adapterhub.weights.merge._refusals import refuse
from adapterhub.weights.merge.config import merged_config
from adapterhub.weights.merge.plan import Plan
from adapterhub.weights.merge.source import MergeAdapter

_REUSED_BYTES: Final = 31 << 20  # glibc learns from blocks of less than 32 MB
_EXPERT: Final = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Merged:
    """One module of the result, as it is stored: the update of each part (see `Layout`), and B's bias if it has one."""

    parts: tuple[LowRank, ...]
    bias: Tensor | None


@dataclass(slots=True, kw_only=True)
class Work:
    """What one merge reads, what it does, and what it has measured so far.

    `combine` is the method's function, `options` its own options. `rank` and `max_error` go to a method that chooses
    its rank; what another one makes is cut to them. `norms` holds, by module, the Frobenius norm of what was written
    minus the exact sum and that of the exact sum; `cuts` what cutting to a rank lost and what there was.
    """

    sources: Sequence[MergeAdapter]
    plan: Plan
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
    norms: dict[str, tuple[float, float]] = field(default_factory=dict)
    cuts: dict[str, tuple[float, float]] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    digests: tuple[Digest, ...] = ()

    def write_into(self, folder: Path) -> None:
        """Merge module by module into a PEFT folder."""
        # glibc returns a module's buffers to the system, to be zeroed page by page for the next one, until it has seen
        # a block of this size freed; a third of a merge's time went there. Elsewhere this line does nothing.
        torch.empty(_REUSED_BYTES, dtype=torch.uint8)
        if self.method.is_random:
            self.digests = tuple(s.factors.weights.digest for s in self.sources)
        carried = {
            TensorSpec.planned(name, one.spec.dtype, one.spec.shape): one
            # wide numbers first, so that each tensor begins at a multiple of their size
            for name, one in sorted(self.plan.carried.items(), key=lambda i: (-DTYPE_BITS[i[1].spec.dtype], i[0]))
        }
        done = 0
        with _one_thread(), TensorFileWriter(folder / WEIGHTS_FILE, [*self._largest(), *carried]) as writer:
            for unit in self.plan.units:
                merged = {}
                for module in unit:
                    merged[module] = self._merged(module)
                    done += 1
                    self.progress(done, len(self.plan.layouts))
                # After a refusal the remaining modules are looked at as well, so that all reasons are told at once.
                if not self.refusals:
                    self._write(writer, {module: made for module, made in merged.items() if made is not None})
            self._look_at_carried()
            refuse(self.refusals)
            for spec, one in carried.items():
                writer.add_chunks(spec, one.source.factors.chunks(one.spec))
        config, warnings = merged_config([s.factors for s in self.sources], self.plan, self.ranks)
        self.warnings += [*warnings, *self._remarks()]
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _write(self, writer: TensorFileWriter, merged: Mapping[str, Merged]) -> None:
        """Write the modules of one unit, at the largest of their ranks."""
        rank = max(part.rank for made in merged.values() for part in made.parts)
        for module, made in merged.items():
            layout = self.plan.layouts[module]
            for name, factor in zip(layout.names(module), layout.join(made.parts, rank), strict=True):
                writer.add(name, factor)
            if made.bias is not None:
                writer.add(layout.bias_name(module), made.bias)
            self.ranks[module] = layout.config_rank(rank)

    def _merged(self, module: str) -> Merged | None:
        """What is stored of the module, measured; None after noting why it must not be."""
        updates = self._updates(module)
        if updates is None:
            return None
        weights = [s.weight for s in self.sources]
        name = f"`{shown(module)}`"
        try:
            made = [self._made(module, part, deltas, weights) for part, deltas in enumerate(updates)]
        except MergeRefused as refused:
            self.refusals += [f"{name}: {reason}" for reason in refused.reasons or (refused.message,)]
            return None
        parts = tuple(one.folded(self.dtype) for one in made)
        exact_bias = self._bias(module)
        bias = None if exact_bias is None else exact_bias.to(self.dtype)
        if not (all(part.is_finite() for part in parts) and (bias is None or is_finite(bias))):
            self.refusals.append(f"{name}: the result is not finite in {FORMAT_DTYPES[self.dtype]}")
            return None
        norms = [difference_norms(deltas, weights, part) for deltas, part in zip(updates, parts, strict=True)]
        if exact_bias is not None and bias is not None:  # one more column of the update, so to say
            norms.append((float((bias.double() - exact_bias).norm()), float(exact_bias.norm())))
        error, norm = (math.hypot(*column) for column in zip(*norms, strict=True))
        if not math.isfinite(error + norm):
            self.refusals.append(f"{name}: the numbers are too large to be measured")
            return None
        if error > 0 and norm == 0:
            self.refusals.append(f"{name}: the exact sum is zero, what `{self.method.name}` makes of it is not")
            return None
        self.norms[module] = error, norm
        cuts = [(one.lost, one.whole) for one in made if isinstance(one, Cut)]
        if cuts:
            lost, whole = (math.hypot(*column) for column in zip(*cuts, strict=True))
            self.cuts[module] = lost, whole
        return Merged(parts=parts, bias=bias)

    def _bias(self, module: str) -> Tensor | None:
        """The sum of what the adapters add whatever the input; None where the result has no biases."""
        if not self.plan.has_bias:
            return None
        total = torch.zeros(self.plan.layouts[module].out, dtype=torch.float64)
        for source in self.sources:
            bias = source.factors.bias(module) if module in source.factors.modules else None
            if bias is not None:
                total += source.weight * bias
        return total

    def _made(self, module: str, part: int, deltas: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
        """What the method makes of one part of a module, cut to the rank asked for."""
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

    def _updates(self, module: str) -> list[list[LowRank]] | None:
        """For each part of the module its update in every source; None after noting which are not finite."""
        layout = self.plan.layouts[module]
        of_sources: list[Sequence[LowRank]] = []
        bad = []
        for source in self.sources:
            factors = source.factors
            if module not in factors.modules:
                of_sources.append([nothing(layout.part_out, layout.width)] * layout.parts)
                continue
            of_sources.append(factors.parts(module))
            spec = factors.modules[module].bias
            if not all(part.is_finite() for part in of_sources[-1]) or (spec and not factors.is_finite(spec)):
                bad.append(source.label)
        self.refusals += [f"`{shown(module)}` in `{shown(label)}` holds NaN or infinite numbers" for label in bad]
        return None if bad else [list(deltas) for deltas in zip(*of_sources, strict=True)]

    def _look_at_carried(self) -> None:
        """Note which of the tensors that are carried over are not finite."""
        for name, one in self.plan.carried.items():
            if not one.source.factors.is_finite(one.spec):
                label = shown(one.source.label)
                self.refusals.append(f"`{shown(name)}` in `{label}` holds NaN or infinite numbers")

    def _largest(self) -> list[TensorSpec]:
        """Every factor at the largest rank that any method could give it."""
        specs = []
        dtype = FORMAT_DTYPES[self.dtype]
        for unit in self.plan.units:
            rank = max(self._largest_rank(module) for module in unit)
            for module in unit:
                layout = self.plan.layouts[module]
                pair = zip(layout.names(module), layout.shapes(rank), strict=True)
                specs += [TensorSpec.planned(name, dtype, shape) for name, shape in pair]
                if self.plan.has_bias:
                    specs.append(TensorSpec.planned(layout.bias_name(module), dtype, (layout.out,)))
        return specs

    def _largest_rank(self, module: str) -> int:
        stacked = sum(s.factors.modules[module].rank for s in self.sources if module in s.factors.modules)
        return max(stacked, self.plan.layouts[module].full_rank)

    def _remarks(self) -> list[str]:
        """What a user should know about the result besides its error."""
        found = list(remarks(self.plan.carried))
        empty = [module for module, (_, norm) in self.norms.items() if norm == 0]
        if empty:
            found.append(
                f"{len(empty)} of {len(self.norms)} modules add up to nothing and are kept as zero updates, "
                f"`{shown(empty[0])}` first"
            )
        if len({rank for module, rank in self.ranks.items() if _EXPERT.search(module)}) > 1:
            found.append(
                "the experts have different ranks; transformers 5 keeps all experts of a layer in one parameter, and "
                "PEFT turns their pairs into one only if all have the same rank: `--rank N` gives it to all"
            )
        return found


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch in this block: the last digits of a sum or a factorisation depend on how it is shared out.

    A recipe then gives the same bytes whatever the number of cores. A second thread gains next to nothing here.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _generator(seed: object, digest: Digest, module: str) -> torch.Generator:
    """Random numbers that belong to one module of one adapter, wherever it stands among the inputs."""
    key = hashlib.sha256(f"{seed}\n{digest}\n{module}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
