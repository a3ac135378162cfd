"""One merge under way: module by module from open adapters into a PEFT folder, everything measured."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from adapterhub.digests import Digest, digest_of_file
from adapterhub.errors import shown
from adapterhub.factors import FORMAT_DTYPES, TORCH_DTYPES, TensorFileWriter
from adapterhub.lowrank import Cut, LowRank, cut, difference_norms, nothing
from adapterhub.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.merge._config import merged_config
from adapterhub.merge._refusals import Plan, Source, refuse
from adapterhub.merge_methods import Method
from adapterhub.tensorfile import DTYPE_BITS, TensorSpec

_REUSED_BYTES: Final = 31 << 20  # glibc learns from blocks of less than 32 MB


@dataclass(slots=True, kw_only=True)
class Work:
    """What one merge reads, what it does, and what it has measured so far.

    `combine` is the method's function, `options` its own options. `rank` and `max_error` go to a method that chooses
    its rank; what another one makes is cut to them. `norms` holds, by module, the Frobenius norm of what was written
    minus the exact sum and that of the exact sum; `cuts` what cutting to a rank lost and what there was.
    """

    sources: Sequence[Source]
    plan: Plan
    method: Method
    combine: Callable[..., LowRank]
    options: Mapping[str, object]
    rank: int | None
    max_error: float | None
    seed: object
    dtype: torch.dtype
    progress: Callable[[int, int], None]
    warnings: list[str]
    ranks: dict[str, int] = field(default_factory=dict)
    norms: dict[str, tuple[float, float]] = field(default_factory=dict)
    cuts: dict[str, tuple[float, float]] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    digests: tuple[Digest, ...] = ()

    def copy_into(self, folder: Path) -> None:
        """Copy the only source byte for byte, after reading every number."""
        source = self.sources[0]
        for done, (module, factors) in enumerate(source.factors.modules.items(), 1):
            self._updates(module)
            self.ranks[module] = factors.rank
            self.norms[module] = 0.0, 0.0
            self.progress(done, len(source.factors.modules))
        self._look_at_saved()
        refuse(self.refusals)
        (folder / CONFIG_FILE).write_bytes(source.factors.config_bytes)
        shutil.copyfile(source.factors.header.path, folder / WEIGHTS_FILE)

    def write_into(self, folder: Path) -> None:
        """Merge module by module into a PEFT folder."""
        # glibc returns a module's buffers to the system, to be zeroed page by page for the next one, until it has seen
        # a block of this size freed; a third of a merge's time went there. Elsewhere this line does nothing.
        torch.empty(_REUSED_BYTES, dtype=torch.uint8)
        if self.method.is_random:
            self.digests = tuple(digest_of_file(s.folder / WEIGHTS_FILE)[0] for s in self.sources)
        saved = {
            TensorSpec.planned(name, one.spec.dtype, one.spec.shape): one
            # wide numbers first, so that each tensor begins at a multiple of their size
            for name, one in sorted(self.plan.saved.items(), key=lambda i: (-DTYPE_BITS[i[1].spec.dtype], i[0]))
        }
        planned = [*self._largest(), *saved]
        with TensorFileWriter(folder / WEIGHTS_FILE, planned) as writer:
            for done, module in enumerate(self.plan.layouts, 1):
                merged = self._merged(module)
                # After a refusal the remaining modules are looked at as well, so that all reasons are told at once.
                if merged is not None and not self.refusals:
                    layout = self.plan.layouts[module]
                    pair = zip(layout.names(module), (merged.a, merged.b), layout.shapes(merged.rank), strict=True)
                    for name, factor, shape in pair:
                        writer.add(name, factor.reshape(shape))
                self.progress(done, len(self.plan.layouts))
            self._look_at_saved()
            refuse(self.refusals)
            for spec, one in saved.items():
                writer.add_bytes(spec, one.source.factors.data(one.spec))
        config, warnings = merged_config(
            [s.factors for s in self.sources], self.ranks, (s.module for s in self.plan.saved.values())
        )
        self.warnings += [*warnings, *self._remarks()]
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _merged(self, module: str) -> LowRank | None:
        """The module's merged update as it is stored, measured; None after noting why it must not be."""
        deltas = self._updates(module)
        if deltas is None:
            return None
        weights = [s.weight for s in self.sources]
        made = self._made(module, deltas, weights)
        merged = made.folded(self.dtype)
        name = f"`{shown(module)}`"
        if not merged.is_finite():
            self.refusals.append(f"{name}: the result is not finite in {FORMAT_DTYPES[self.dtype]}")
            return None
        error, norm = difference_norms(deltas, weights, merged)
        if not math.isfinite(error + norm):
            self.refusals.append(f"{name}: the numbers are too large to be measured")
            return None
        if error > 0 and norm == 0:
            self.refusals.append(f"{name}: the exact sum is zero, what `{self.method.name}` makes of it is not")
            return None
        self.ranks[module] = merged.rank
        self.norms[module] = error, norm
        if isinstance(made, Cut):
            self.cuts[module] = made.lost, made.whole
        return merged

    def _made(self, module: str, deltas: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
        """What the method makes of one module, cut to the rank asked for."""
        extra: dict[str, object] = {}
        if self.method.is_random:
            extra["generators"] = [_generator(self.seed, digest, module) for digest in self.digests]
        if self.method.chooses_rank:
            extra |= {"rank": self.rank, "max_error": self.max_error}
        made = self.combine(deltas, weights, **self.options, **extra)
        if self.method.chooses_rank or (self.rank is None and self.max_error is None):
            return made
        return cut(made, rank=self.rank, max_error=self.max_error)

    def _updates(self, module: str) -> list[LowRank] | None:
        """The module's update in every source; None after noting which of them are not finite."""
        layout = self.plan.layouts[module]
        deltas = [
            s.factors.read(module) if module in s.factors.modules else nothing(layout.out, layout.width)
            for s in self.sources
        ]
        bad = [s.label for s, delta in zip(self.sources, deltas, strict=True) if not delta.is_finite()]
        self.refusals += [f"`{shown(module)}` in `{shown(label)}` holds NaN or infinite numbers" for label in bad]
        return None if bad else deltas

    def _look_at_saved(self) -> None:
        """Note which of the tensors that are carried over are not finite."""
        for name, one in self.plan.saved.items():
            if one.spec.dtype in TORCH_DTYPES and one.spec.elements:
                ends = one.source.factors.tensor(one.spec).aminmax()
                if not all(math.isfinite(float(end)) for end in ends):
                    label = shown(one.source.label)
                    self.refusals.append(f"`{shown(name)}` in `{label}` holds NaN or infinite numbers")

    def _largest(self) -> list[TensorSpec]:
        """Every factor at the largest rank that any method could give it."""
        specs = []
        for module, layout in self.plan.layouts.items():
            stacked = sum(s.factors.modules[module].rank for s in self.sources if module in s.factors.modules)
            shapes = layout.shapes(max(stacked, min(layout.out, layout.width)))
            names = layout.names(module)
            dtype = FORMAT_DTYPES[self.dtype]
            specs += [TensorSpec.planned(name, dtype, shape) for name, shape in zip(names, shapes, strict=True)]
        return specs

    def _remarks(self) -> list[str]:
        """What a user should know about the result besides its error."""
        remarks = []
        empty = [module for module, (_, norm) in self.norms.items() if norm == 0]
        if empty:
            remarks.append(
                f"{len(empty)} of {len(self.norms)} modules add up to nothing and are kept as zero updates, "
                f"`{shown(empty[0])}` first"
            )
        for label in dict.fromkeys(s.source.label for s in self.plan.saved.values()):
            modules = {s.module for s in self.plan.saved.values() if s.source.label == label}
            named = ", ".join(f"`{shown(m)}`" for m in sorted(modules))
            remarks.append(f"{named} of modules_to_save is carried over from `{shown(label)}` as it is, without weight")
        return remarks


def _generator(seed: object, digest: Digest, module: str) -> torch.Generator:
    """Random numbers that belong to one module of one adapter, wherever it stands among the inputs."""
    key = hashlib.sha256(f"{seed}\n{digest}\n{module}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
