"""Merging: adapter folders in, one plain PEFT folder out, module by module.

A method is one file of this package, named as users type it; finding it imports nothing. It exposes

    merge(deltas, weights, *, …options) -> LowRank

which sees the updates of one module, one for every adapter that takes part (rank 0 where an adapter lacks the module),
and their weights, never files or names. Its keyword-only arguments are its options; its docstring names the paper, the
space it works in (factor, core or delta) and the convention. It may expose `refusal(ranks) -> str | None`, asked about
every module before anything is computed. `tests/contracts/merge_method.py` runs over every method there is.

What comes out has scale 1 in every module (alpha equals the rank, no rsLoRA), weights and scales are in the factors.
The numbers are float32 unless asked otherwise, even for bfloat16 adapters: a weighted factor is a new number, and
rounding it to 8 bits loses 0.2 % of the update, which would end the exactness of `cat`. The relative error against the
exact sum, ‖result - exact‖ / ‖exact‖ over all modules, is measured after rounding, whatever the method.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import pkgutil
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Final

import torch

from adapterhub.errors import Conflict, MergeRefused, UsageProblem, shown
from adapterhub.factors import FORMAT_DTYPES, TORCH_DTYPES, AdapterFactors, TensorFileWriter
from adapterhub.lowrank import LowRank, difference_norms, nothing
from adapterhub.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.merge._config import merged_config
from adapterhub.merge._refusals import Plan, Source, plan, refuse
from adapterhub.tensorfile import DTYPE_BITS, TensorSpec

__all__ = ["MergeInput", "MergeProgress", "MergeResult", "merge", "methods"]

MAX_WEIGHT = 1e6
"""Weights of merges are near 1; anything beyond this is a mistake that would only fill a file with huge numbers."""

DTYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
)
DEFAULT_DTYPE = "float32"
_REUSED_BYTES = 31 << 20  # glibc learns from blocks of less than 32 MB

MergeProgress = Callable[[int, int], None]
"""Called with the number of modules done and the number of all modules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeInput:
    """An adapter to merge: its PEFT folder, its name in messages and in the recipe, its weight (0: left out)."""

    folder: Path
    label: str
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """What a merge wrote, and how far it is from the exact sum.

    `relative_error` is over all modules, `worst_error` that of `worst_module` alone. `ranks` counts modules by rank.
    `is_copy` tells that one adapter with weight 1 was copied byte for byte. `recipe` is JSON: with the inputs named by
    digest instead of label, the merge can be run again from it.
    """

    out_folder: Path
    relative_error: float
    worst_error: float
    worst_module: str
    ranks: Mapping[int, int]
    dtype: str
    is_copy: bool
    warnings: tuple[str, ...]
    recipe: dict[str, object]


def methods() -> tuple[str, ...]:
    """The names of all merge methods, sorted; none is imported."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def merge(
    inputs: Sequence[MergeInput],
    out_folder: Path,
    *,
    method: str = "cat",
    rank: int | None = None,
    max_error: float | None = None,
    dtype: str | None = None,
    progress: MergeProgress | None = None,
    **options: object,
) -> MergeResult:
    """Merge adapters into the new folder `out_folder`, which appears complete or not at all.

    `rank`, `max_error` and `options` are passed to the method, which must know them; None means not given. A single
    adapter of weight 1, with no option given, is copied as it is. Inputs whose weight is 0 are not opened. Memory is
    that of the largest module; the base is not needed.

    Raises:
        UsageProblem: no such method, dtype or option, an option out of range, or a weight that is no sensible number.
        MergeRefused: the adapters cannot be added up, or the result would not be finite; every reason is listed.
        MalformedConfig, MalformedTensorFile, RefusedAdapter: an input that breaks its format.
        Conflict: `out_folder` exists and is not empty.
    """
    module = _method(method)
    given = {
        key: value for key, value in {"rank": rank, "max_error": max_error, **options}.items() if value is not None
    }
    _check_options(method, module, given)
    if dtype is not None and dtype not in DTYPES:
        raise UsageProblem(f"dtype `{shown(dtype)}`, expected one of {', '.join(DTYPES)}")
    taking_part = _taking_part(inputs)
    with ExitStack() as stack:
        sources = [
            Source(
                folder=i.folder, label=i.label, weight=i.weight, factors=stack.enter_context(AdapterFactors(i.folder))
            )
            for i in taking_part
        ]
        work = _Work(
            sources=sources,
            plan=plan(sources, getattr(module, "refusal", None)),
            combine=module.merge,
            method=method,
            options=given,
            dtype=DTYPES[dtype or DEFAULT_DTYPE],
            progress=progress or (lambda _done, _all: None),
            warnings=[f"`{shown(i.label)}` has weight 0 and was left out" for i in inputs if i.weight == 0],
        )
        is_copy = len(sources) == 1 and sources[0].weight == 1 and not given and _is_stored_as(sources[0], dtype)
        partial = _new_folder(out_folder)
        try:
            if is_copy:
                work.copy_into(partial)
            else:
                work.write_into(partial)
            if out_folder.is_dir():
                out_folder.rmdir()  # empty, as was checked; not every system renames onto an empty folder
            partial.rename(out_folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return work.result(out_folder, inputs, is_copy=is_copy)


@dataclass(slots=True, kw_only=True)
class _Work:
    """One merge under way: what it reads, what it does, and what it has measured so far."""

    sources: Sequence[Source]
    plan: Plan
    combine: Callable[..., LowRank]
    method: str
    options: Mapping[str, object]
    dtype: torch.dtype
    progress: MergeProgress
    warnings: list[str]
    ranks: dict[str, int] = field(default_factory=dict)
    norms: dict[str, tuple[float, float]] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)

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

    def result(self, out_folder: Path, inputs: Sequence[MergeInput], *, is_copy: bool) -> MergeResult:
        """What was measured."""
        error = math.hypot(*(e for e, _ in self.norms.values()))
        norm = math.hypot(*(n for _, n in self.norms.values()))
        relative = {module: _ratio(e, n) for module, (e, n) in self.norms.items()}
        worst = max(relative, key=lambda module: relative[module])
        dtype = str(self.dtype).removeprefix("torch.")
        if is_copy:
            dtypes = {TORCH_DTYPES[s.dtype] for f in self.sources[0].factors.modules.values() for s in (f.a, f.b)}
            dtype = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))
        recipe: dict[str, object] = {
            "method": self.method,
            "options": dict(self.options),
            "dtype": dtype,
            "inputs": [{"label": i.label, "weight": i.weight} for i in inputs],
        }
        return MergeResult(
            out_folder=out_folder,
            relative_error=_ratio(error, norm),
            worst_error=relative[worst],
            worst_module=worst,
            ranks=MappingProxyType(dict(sorted(Counter(self.ranks.values()).items()))),
            dtype=dtype,
            is_copy=is_copy,
            warnings=tuple(self.warnings),
            recipe=recipe,
        )

    def _merged(self, module: str) -> LowRank | None:
        """The module's merged update as it is stored, measured; None after noting why it must not be."""
        deltas = self._updates(module)
        if deltas is None:
            return None
        weights = [s.weight for s in self.sources]
        merged = self.combine(deltas, weights, **self.options).folded(self.dtype)
        name = f"`{shown(module)}`"
        if not merged.is_finite():
            self.refusals.append(f"{name}: the result is not finite in {FORMAT_DTYPES[self.dtype]}")
            return None
        error, norm = difference_norms(deltas, weights, merged)
        if not math.isfinite(error + norm):
            self.refusals.append(f"{name}: the numbers are too large to be measured")
            return None
        if error > 0 and norm == 0:
            self.refusals.append(f"{name}: the exact sum is zero, what `{self.method}` makes of it is not")
            return None
        self.ranks[module] = merged.rank
        self.norms[module] = error, norm
        return merged

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


def _method(name: str) -> ModuleType:
    if name not in methods():
        raise UsageProblem(f"no merge method `{shown(name)}`; there are: {', '.join(methods())}")
    return importlib.import_module(f"{__name__}.{name}")


def _check_options(method: str, module: ModuleType, given: Mapping[str, object]) -> None:
    parameters = inspect.signature(module.merge).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    unknown = [key for key in given if key not in known]
    if unknown:
        takes = f"takes {', '.join(known)}" if known else "takes no options"
        hint = "`--method svd` chooses a rank" if set(unknown) <= {"rank", "max_error"} else ""
        raise UsageProblem(f"method `{method}` {takes}, not {', '.join(map(shown, unknown))}", hint=hint)


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


def _is_stored_as(source: Source, dtype: str | None) -> bool:
    """Whether every factor has that dtype already; always, when none is asked for."""
    wanted = None if dtype is None else FORMAT_DTYPES[DTYPES[dtype]]
    return wanted is None or all({f.a.dtype, f.b.dtype} == {wanted} for f in source.factors.modules.values())


def _new_folder(out_folder: Path) -> Path:
    """A new folder beside `out_folder`, to be renamed to it."""
    if out_folder.exists() and not (out_folder.is_dir() and not any(out_folder.iterdir())):
        raise Conflict(f"`{shown(str(out_folder), 200)}` exists; a merge does not write into what is there")
    partial = out_folder.with_name(f".{out_folder.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    return partial


def _ratio(error: float, norm: float) -> float:
    return error / norm if error else 0.0
