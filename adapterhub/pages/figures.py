"""From the figures of weights to what the pages draw, the same for every home."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.formats.modules import in_order, place_of, short_names
from adapterhub.pages.values import (
    Compared,
    ComparePage,
    EngineLine,
    Forecasted,
    HeatCell,
    HeatMap,
    ModuleLine,
    SpectrumLine,
    StorageLine,
)

if TYPE_CHECKING:
    from adapterhub.formats.contract.contract import Contract
    from adapterhub.formats.derived.comparison import Comparison, ModuleComparison
    from adapterhub.formats.derived.record import DerivedRecord, EngineRecord

MOST_KINDS: Final = 24
MOST_LISTED: Final = 200
MOST_WEIGHT: Final = 2.0
EVEN: Final = 0.5  # as `adapt merge` weighs two adapters
STEPS: Final = 20  # of the sliders, in a weight of 1
MOST_LAYERS: Final = 200
Module = TypeVar("Module")


def heat_map(
    title: str, modules: Sequence[Module], name: Callable[[Module], str], value: Callable[[Module], float | None]
) -> HeatMap:
    """A number of each module by layer and kind; the first kinds and layers where there are very many."""
    places = [place_of(name(module)) for module in modules]
    kinds = list(dict.fromkeys(place.kind for place in places))[:MOST_KINDS]
    layers = sorted({p.layer for p in places}, key=lambda n: math.inf if n is None else n)[:MOST_LAYERS]
    found: dict[tuple[int | None, str], list[float]] = {}
    for module, place in zip(modules, places, strict=True):
        number = value(module)
        if number is not None:
            found.setdefault((place.layer, place.kind), []).append(number)
    cells = {place: math.fsum(numbers) / len(numbers) for place, numbers in found.items()}
    largest = max(map(abs, cells.values()), default=0.0) or 1.0
    names = short_names(kinds)
    labels = {layer: "-" if layer is None else str(layer) for layer in layers}

    def cell(layer: int | None, kind: str) -> HeatCell:
        number = cells.get((layer, kind))
        where = f"{names[kind]} of layer {layer}" if layer is not None else names[kind]
        if number is None:
            return HeatCell(name=where, value=None, text="none", shade=0.0)
        return HeatCell(name=where, value=number, text=f"{number:.3g}", shade=round(number / largest, 3))

    rows = tuple((labels[layer], tuple(cell(layer, kind) for kind in kinds)) for layer in layers)
    return HeatMap(title=title, largest=largest, columns=tuple(names[kind] for kind in kinds), rows=rows)


def heats_of(record: DerivedRecord) -> tuple[HeatMap, ...]:
    """The maps of one build: norm and effective rank."""
    return (
        heat_map("Norm of the update", record.modules, lambda m: m.name, lambda m: m.norm),
        heat_map("Effective rank", record.modules, lambda m: m.name, lambda m: m.effective_rank),
    )


def cosines_of(modules: Sequence[ModuleComparison]) -> tuple[HeatMap, ...]:
    """The maps of two builds: cosine, and the share of numbers with opposite signs."""
    shared = [module for module in modules if module.pairs]
    return (
        heat_map("Cosine of the updates", shared, lambda m: m.module, lambda m: m.pairs[0].cosine),
        heat_map("Opposite signs", shared, lambda m: m.module, lambda m: m.pairs[0].opposite.estimate.share),
    )


def spectra_of(record: DerivedRecord) -> tuple[SpectrumLine, ...]:
    """The mean spectrum of each kind of module."""
    kinds: dict[str, list[tuple[float, ...]]] = {}
    for module in record.modules:
        if module.values:
            kinds.setdefault(place_of(module.name).kind, []).append(module.values)
    names = short_names(kinds)
    return tuple(
        SpectrumLine(name=names[kind], values=_means(lines)) for kind, lines in list(kinds.items())[:MOST_KINDS]
    )


def _means(lines: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    shares = [[value / line[0] for value in line] for line in lines]
    longest = max(map(len, shares))
    columns = ([share[at] for share in shares if len(share) > at] for at in range(longest))
    return tuple(round(math.fsum(column) / len(column), 4) for column in columns)


def lines_of(record: DerivedRecord) -> tuple[ModuleLine, ...]:
    """A line for each module."""
    return tuple(
        ModuleLine(
            name=module.name,
            shape=f"{module.out} x {module.width}" + (f", {module.parts} parts" if module.parts > 1 else ""),
            rank=module.rank,
            scale=module.scale,
            norm=module.norm,
            effective_rank=module.effective_rank,
            reason=module.reason,
        )
        for module in sorted(record.modules, key=lambda module: in_order(module.name))
    )


def engine_lines(engines: Iterable[EngineRecord]) -> tuple[EngineLine, ...]:
    """A line for each engine."""
    return tuple(EngineLine(name=e.engine, reads=e.reads, reasons=e.reasons, notes=e.notes) for e in engines)


def compared(page: ComparePage, found: Comparison) -> ComparePage:
    """The page with what a comparison found."""
    pair = found.pairs[0]
    opposite = pair.opposite.estimate
    is_shared = any(module.pairs for module in found.modules)
    return replace(
        page,
        cosine=pair.cosine,
        opposite=opposite.share if is_shared else None,
        opposite_error=opposite.standard_error,
        heats=cosines_of(found.modules),
        alone=tuple(found.partial)[:MOST_LISTED],
        unlike=tuple(f"{module}: {text}" for module, text in found.unlike.items())[:MOST_LISTED],
        obstacles=found.obstacles,
        forecast=_forecast(found),
    )


def _forecast(found: Comparison) -> Forecasted | None:
    if found.forecast is None:
        return None
    cancelled = found.forecast.cancelled.estimate
    return Forecasted(
        norm=found.forecast.norm,
        cancelled=cancelled.share,
        cancelled_error=cancelled.standard_error,
        choices=tuple(
            StorageLine(
                options=one.options,
                rank=str(one.rank_max) if one.rank_min == one.rank_max else f"{one.rank_min}-{one.rank_max}",
                error=one.relative_error,
                size=one.size_bytes,
                command="",
            )
            for one in found.forecast.choices
        ),
    )


def with_commands(forecast: Forecasted | None, sides: Sequence[Compared]) -> Forecasted | None:
    """The forecast with the command that makes each of its choices."""
    if forecast is None:
        return None
    used = [side for side in sides if side.weight]
    named = " ".join(shlex.quote(side.name) for side in used)
    merge = f"adapt merge {named} --weights={','.join(f'{side.weight:g}' for side in used)}"
    choices = [replace(one, command=f"{merge} {one.options} --output merged") for one in forecast.choices]
    return replace(forecast, choices=tuple(choices))


def weight_of(text: str) -> float:
    """The weight in a parameter of a page, on the steps of its slider; an empty text is an even share.

    Raises:
        UsageProblem: it is no number within the bounds.
    """
    try:
        number = float(text) if text else EVEN
    except ValueError:
        number = math.nan
    if not abs(number) <= MOST_WEIGHT:
        expected = f"expected a number from -{MOST_WEIGHT:g} to {MOST_WEIGHT:g}"
        raise UsageProblem(f"weight `{shown(text)}`: {expected}")
    return round(number * STEPS) / STEPS


def contract_words(contract: Contract) -> tuple[str, ...]:
    """What a contract records, in a few words."""
    losses = [golden.loss for golden in contract.goldens if golden.loss is not None]
    gained = [g.base_loss - g.loss for g in contract.goldens if g.loss is not None and g.base_loss is not None]
    found = [f"{len(contract.goldens)} recorded {contract.noun}"]
    if losses:
        found.append(f"loss {math.fsum(losses) / len(losses):.3f} nats a token in the mean")
    if gained:
        found.append(f"{math.fsum(gained) / len(gained):.3f} nats a token better than the base")
    return tuple(found)
