"""One extraction under way: weight by weight from two models into a PEFT folder, everything measured."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from adapterhub.core.errors import Incompatible, shown
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.safetensors.dtypes import DTYPE_BITS
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.weights.dtypes import FORMAT_DTYPES
from adapterhub.weights.extract._config import extracted_config
from adapterhub.weights.extract._models import Model
from adapterhub.weights.extract._pairing import Pairing, Target, unit_of
from adapterhub.weights.extract._reading import WeightReader, error_of
from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.lowrank.factors import TensorFileWriter
from adapterhub.weights.lowrank.layouts import PEFT_PREFIX
from adapterhub.weights.lowrank.randomized import closest

ExtractProgress = Callable[[int, int], None]
"""Called with the number of weights done and the number of all that differ."""

MOST_LISTED: Final = 200
"""A refusal names this many tensors; a model has a few hundred, one with experts may have sixty thousand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A tensor that differs and is in no factor: what it is, its numbers, whether it can be and is carried whole.

    `change` is ‖tuned - base‖, Frobenius; None where the models have no such tensor of one shape.
    """

    name: str
    reason: str
    elements: int
    change: float | None
    is_savable: bool
    is_carried: bool


@dataclass(slots=True, kw_only=True)
class Work:
    """What one extraction reads, what it does, and what it has measured so far.

    `savable` are the modules that could be carried whole, `kept` those that are, `limit` the arguments of `closest`.
    `norms` holds, by the module of a weight, the Frobenius norms of what was written minus the difference and of the
    difference; `rounded` counts tensors that turned out to differ by nothing but rounding, `mixed` the weights that got
    factors and are stored in two precisions.
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
    norms: dict[str, tuple[float, float]] = field(default_factory=dict)
    turned: bool = False
    rounded: int = 0
    mixed: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def write_into(self, folder: Path, reader: WeightReader) -> None:
        """Every weight that differs, one after the other, then what is carried whole, then the config."""
        targets = self.pairing.targets
        carried = {name: self.pairing.weights[name] for names in self.kept.values() for name in names}
        saved = {
            TensorSpec.planned(f"{PEFT_PREFIX}{name}", weight.spec.dtype, weight.spec.shape): weight
            # wide numbers first, so that each tensor begins at a multiple of their size
            for name, weight in sorted(carried.items(), key=lambda i: (-DTYPE_BITS[i[1].spec.dtype], i[0]))
        }
        with TensorFileWriter(folder / WEIGHTS_FILE, [*self._largest(), *saved]) as writer:
            for done, target in enumerate(targets, 1):
                self._write(target, reader, writer)
                self.progress(done, len(targets))
            self._look_at_others(reader)
            self._refuse()
            for spec, weight in saved.items():
                writer.add_bytes(spec, reader.data(weight))
        config = extracted_config(self.base, self.tuned, self.ranks, self.pairing.paths, self.kept, turned=self.turned)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _write(self, target: Target, reader: WeightReader, writer: TensorFileWriter) -> None:
        """One weight: its difference, cut, measured and written for each module that uses it."""
        difference = reader.difference(target.base, target.tuned)
        if not difference.is_finite:
            self.refusals.append(f"`{shown(target.name)}` holds NaN or infinite numbers")
        elif difference.is_nothing:
            self.rounded += 1
        # After a refusal the remaining weights are looked at as well, so that all reasons are told at once.
        if self.refusals or difference.is_nothing:
            return
        assert difference.matrix is not None
        stored = closest(difference.matrix, **self.limit).folded(self.dtype)
        if not stored.is_finite():
            self.refusals.append(f"`{shown(target.name)}`: its factors are not finite in {FORMAT_DTYPES[self.dtype]}")
            return
        self.mixed += target.base.spec.dtype != target.tuned.spec.dtype
        self.norms[target.sites[0].module] = error_of(stored, difference.matrix), difference.norm
        for site in target.sites:
            own = LowRank(a=stored.b.T, b=stored.a.T) if site.is_turned else stored
            pairs = zip(site.layout.names(site.module), (own.a, own.b), site.layout.shapes(own.rank), strict=True)
            for name, factor, shape in pairs:
                writer.add(name, factor.reshape(shape))
            self.ranks[site.module] = own.rank
            self.turned = self.turned or (site.is_turned and site.layout.kind == "linear")

    def _look_at_others(self, reader: WeightReader) -> None:
        """How far the tensors without factors differ."""
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

    def _refuse(self) -> None:
        """Stop where numbers are no numbers, or nothing is left to extract."""
        if self.refusals:
            raise Incompatible(listing("these weights have no difference that could be extracted", self.refusals))
        if not self.ranks:
            names = [f"`{shown(one.name)}`: {one.reason}" for one in self.left_out]
            said = "what differs is nothing that a LoRA holds" if names else "the two models are the same, rounded"
            raise Incompatible(listing(f"`{shown(self.tuned.label)}` gives no adapter: {said}", names))

    def _uneven_experts(self) -> bool:
        """Whether the experts of one layer have several ranks."""
        ranks: defaultdict[str, set[int]] = defaultdict(set)
        for module, rank in self.ranks.items():
            layer, is_expert, place = module.partition(".experts.")
            if is_expert:
                ranks[f"{layer} {place.partition('.')[2]}"].add(rank)
        return any(len(found) > 1 for found in ranks.values())

    def _largest(self) -> list[TensorSpec]:
        """Every factor at the largest rank it could get."""
        dtype, specs = FORMAT_DTYPES[self.dtype], []
        for site in (site for target in self.pairing.targets for site in target.sites):
            layout = site.layout
            shapes = layout.shapes(min(layout.out, layout.width, self.limit.get("rank") or layout.out))
            names = layout.names(site.module)
            specs += [TensorSpec.planned(name, dtype, shape) for name, shape in zip(names, shapes, strict=True)]
        return specs

    def remarks(self) -> Iterator[str]:
        """What a user should know about the result besides its error."""
        if self.rounded:
            yield f"{self.rounded} tensors differ only by the rounding of their precision and were taken as unchanged"
        if self.mixed:
            yield (
                f"{self.mixed} weights are stored in two precisions: the rounding of the coarser one is part of what "
                "was extracted"
            )
        if self._uneven_experts():
            yield (
                "the experts of a layer have several ranks, which PEFT cannot put on top of each other; "
                "with `--rank` all have the same"
            )


def listing(head: str, lines: Sequence[str]) -> str:
    """A message: the head, and one line each, up to a limit."""
    rest = len(lines) - MOST_LISTED
    return "\n".join(
        [head, *(f"  {line}" for line in lines[:MOST_LISTED]), *([f"  and {rest} more"] if rest > 0 else [])]
    )
