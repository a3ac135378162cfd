"""An extraction in progress: weight by weight from two models into a PEFT folder, with every error measured."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch

from adapterhub.core.errors import Incompatible, alike_once, problem_list, shown
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.peft.layouts import PEFT_PREFIX
from adapterhub.formats.safetensors.dtypes import DTYPE_BITS
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.weights.dtypes import FORMAT_DTYPES
from adapterhub.weights.extract._config import extracted_config
from adapterhub.weights.extract._models import Model
from adapterhub.weights.extract._pairing import Pairing, Target, unit_of
from adapterhub.weights.extract._reading import WeightReader, error_of
from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.lowrank.errors import ModuleErrors
from adapterhub.weights.lowrank.factors import TensorFileWriter
from adapterhub.weights.lowrank.randomized import closest

ExtractProgress = Callable[[int, int], None]
"""Called with the weights done and the weights that differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut(Documented, keys="name reason elements change carried=is_carried"):
    """A tensor that differs and has no factors: why, its count of numbers, and whether it can be and is carried whole.

    `change` is ‖tuned - base‖, Frobenius; None unless both models have the tensor in one shape.
    """

    name: str
    reason: str
    elements: int
    change: Annotated[float | None, "Frobenius norm of the difference"]
    is_savable: bool
    is_carried: Annotated[bool, "whether --save-rest stored it whole"]


@dataclass(slots=True, kw_only=True)
class ExtractRun:
    """The models, the options and the measurements of one extraction.

    `savable` are the modules that can be carried whole, `kept` those that are; `limit` holds the arguments of
    `closest`. `errors` compares the stored factors with the difference, by the module of a weight. `rounded` counts
    tensors that differ only by rounding, `mixed` the weights with factors that are stored in two precisions.
    """

    base: Model
    tuned: Model
    pairing: Pairing
    kept: Mapping[str, Sequence[str]]
    savable: Mapping[str, Sequence[str]]
    limit: Mapping[str, Any]
    dtype: torch.dtype
    progress: ExtractProgress
    ranks: dict[str, int] = field(default_factory=dict)
    errors: ModuleErrors = field(default_factory=ModuleErrors)
    turned: bool = False
    rounded: int = 0
    mixed: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def write_into(self, folder: Path, reader: WeightReader) -> None:
        """Write the factors of every weight that differs, then the tensors carried whole, then the config."""
        targets = self.pairing.targets
        carried = {name: self.pairing.weights[name] for names in self.kept.values() for name in names}
        saved = {
            TensorSpec.planned(f"{PEFT_PREFIX}{name}", weight.spec.dtype, weight.spec.shape): weight
            # widest numbers first, so that each tensor starts at a multiple of their size
            for name, weight in sorted(carried.items(), key=lambda i: (-DTYPE_BITS[i[1].spec.dtype], i[0]))
        }
        with TensorFileWriter(folder / WEIGHTS_FILE, [*self._largest(), *saved]) as writer:
            for done, target in enumerate(targets, 1):
                self._write(target, reader, writer)
                self.progress(done, len(targets))
            self._measure_others(reader)
            self._check()
            for spec, weight in saved.items():
                writer.add_bytes(spec, reader.data(weight))
        config = extracted_config(self.base, self.tuned, self.ranks, self.pairing.paths, self.kept, turned=self.turned)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _write(self, target: Target, reader: WeightReader, writer: TensorFileWriter) -> None:
        """Cut and measure the difference of one weight, and write it for each module that uses it."""
        difference = reader.difference(target.base, target.tuned)
        if not difference.is_finite:
            self.refusals.append(f"`{shown(target.name)}` holds NaN or infinite numbers")
        elif difference.is_nothing:
            self.rounded += 1
        # After a refusal the loop goes on, so that the error lists every reason.
        if self.refusals or difference.is_nothing:
            return
        assert difference.matrix is not None
        stored = closest(difference.matrix, **self.limit).folded(self.dtype)
        if not stored.is_finite():
            self.refusals.append(f"`{shown(target.name)}`: its factors are not finite in {FORMAT_DTYPES[self.dtype]}")
            return
        self.mixed += target.base.spec.dtype != target.tuned.spec.dtype
        self.errors[target.sites[0].module] = error_of(stored, difference.matrix), difference.norm
        for site in target.sites:
            own = LowRank(a=stored.b.T, b=stored.a.T) if site.is_turned else stored
            pairs = zip(site.layout.names(site.module), (own.a, own.b), site.layout.shapes(own.rank), strict=True)
            for name, factor, shape in pairs:
                writer.add(name, factor.reshape(shape))
            self.ranks[site.module] = own.rank
            self.turned = self.turned or (site.is_turned and site.layout.kind == "linear")

    def _measure_others(self, reader: WeightReader) -> None:
        """Measure the tensors without factors."""
        for other in self.pairing.without_factors:
            change = None
            if other.base is not None and other.tuned is not None and other.is_comparable:
                difference = reader.difference(other.base, other.tuned, with_matrix=False)
                if difference.is_nothing:
                    self.rounded += 1
                    continue
                if not difference.is_finite:
                    self.refusals.append(f"`{shown(other.name)}` holds NaN or infinite numbers")
                change = difference.norm
            self.left_out.append(
                LeftOut(
                    name=other.name,
                    reason=other.reason,
                    elements=other.elements,
                    change=change,
                    is_savable=unit_of(other.name) in self.savable,
                    is_carried=unit_of(other.name) in self.kept,
                )
            )

    def _check(self) -> None:
        """Raise unless every number is finite and there is something to extract."""
        if self.refusals:
            raise Incompatible(
                problem_list("the difference of these weights cannot be extracted", alike_once(self.refusals))
            )
        if not self.ranks:
            names = [f"`{shown(one.name)}`: {one.reason}" for one in self.left_out]
            reason = "a LoRA cannot hold what differs" if names else "the models differ only by rounding"
            raise Incompatible(
                problem_list(f"`{shown(self.tuned.label)}` gives no adapter: {reason}", alike_once(names))
            )

    def _uneven_experts(self) -> bool:
        """Whether the experts of one layer have several ranks."""
        ranks: defaultdict[str, set[int]] = defaultdict(set)
        for module, rank in self.ranks.items():
            layer, is_expert, place = module.partition(".experts.")
            if is_expert:
                ranks[f"{layer} {place.partition('.')[2]}"].add(rank)
        return any(len(distinct) > 1 for distinct in ranks.values())

    def _largest(self) -> list[TensorSpec]:
        """Every factor at its largest possible rank."""
        dtype, specs = FORMAT_DTYPES[self.dtype], []
        for site in (site for target in self.pairing.targets for site in target.sites):
            layout = site.layout
            shapes = layout.shapes(min(layout.out, layout.width, self.limit.get("rank") or layout.out))
            names = layout.names(site.module)
            specs += [TensorSpec.planned(name, dtype, shape) for name, shape in zip(names, shapes, strict=True)]
        return specs

    def remarks(self) -> Iterator[str]:
        """Remarks on the result besides its error."""
        if self.rounded:
            yield f"{self.rounded} tensors differ only by the rounding of their precision and count as unchanged"
        if self.mixed:
            yield (
                f"{self.mixed} weights are stored in two precisions, so the rounding of the coarser one is part of "
                "their update"
            )
        if self._uneven_experts():
            yield ("the experts of a layer have several ranks, which PEFT cannot stack; give them one with `--rank N`")
