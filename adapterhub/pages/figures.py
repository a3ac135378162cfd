"""Turns the figures and configs of builds into the values that pages show, the same for every home."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from adapterhub.core.dates import time_text
from adapterhub.core.errors import UsageProblem, shown
from adapterhub.formats.modules import in_order, place_of, short_names
from adapterhub.pages.values import (
    Badge,
    BuildPage,
    ChangeView,
    ChoiceGroup,
    Compared,
    ComparePage,
    FormChoice,
    HeatCell,
    HeatMap,
    Link,
    OutcomeCell,
    OutcomeRow,
    OutcomeTable,
    SpectrumLine,
    StorageView,
    Verdict,
)

if TYPE_CHECKING:
    from adapterhub.formats.contract.contract import Contract
    from adapterhub.formats.derived.comparison import Comparison, StorageOption
    from adapterhub.formats.derived.record import DerivedRecord, EngineRecord
    from adapterhub.pages.page import PageQuery
    from adapterhub.pages.values import Tone

MOST_KINDS: Final = 24
MOST_WEIGHT: Final = 2.0
EVEN: Final = 0.5  # as `adapt merge` weighs two adapters
STEPS: Final = 20  # of the sliders, in a weight of 1
MOST_LAYERS: Final = 200
MOST_LOST: Final = 0.02  # of the norm of a sum, by the way to store it that is suggested
MAX_DEPTH: Final = 8
MAX_CHARACTERS: Final = 400
Module = TypeVar("Module")
_Build = TypeVar("_Build")


def heat_map(
    title: str, modules: Sequence[Module], name: Callable[[Module], str], value: Callable[[Module], float | None]
) -> HeatMap:
    """Return a number of each module by layer and kind; the first kinds and layers where there are very many."""
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


MOST_BASES: Final = 8
_VERDICTS: Final[Mapping[str, Tone]] = {"PASS": "good", "CHANGED": "bad"}
_TONES: Final = {"works": "good", "broken": "bad"}


class FoundOutcome(NamedTuple):
    """The outcome of a test: of the build at `row`, on a base by its digest; `time` is Unix time."""

    row: int
    base: str
    outcome: str
    time: float
    detail: str


def outcome_table(
    builds: Sequence[tuple[str, str, str]], found: Iterable[FoundOutcome], links: Callable[[Sequence[str]], list[Link]]
) -> OutcomeTable | None:
    """Return the latest test of each build on each base, of `builds` with name, version and address.

    None without any test.

    The bases that most were tested on come first, at most eight; `links` names them. Builds without a test are left
    out.
    """
    latest: dict[tuple[int, str], FoundOutcome] = {}
    for one in sorted(found, key=lambda one: one.time):
        latest[one.row, one.base] = one
    counts = Counter(base for _, base in latest)
    bases = sorted(counts, key=lambda base: (-counts[base], base))[:MOST_BASES]
    rows = sorted({row for row, base in latest if base in bases})

    def cell(one: FoundOutcome | None) -> OutcomeCell | None:
        if one is None:
            return None
        return OutcomeCell(outcome=one.outcome, detail=one.detail, tone=_TONES.get(one.outcome, "plain"))

    if not rows:
        return None
    return OutcomeTable(
        bases=tuple(links(bases)),
        rows=tuple(
            OutcomeRow(name=name, version=version, url=url, cells=tuple(cell(latest.get((row, b))) for b in bases))
            for row in rows
            for name, version, url in [builds[row]]
        ),
    )


def outcome_detail(drift: float | None, dtype: str, time: float, by: str) -> str:
    """Describe an outcome: the drift, the precision, the day, and the signer."""
    moved = "" if drift is None else f"drift {drift:.2f}"
    return ", ".join(filter(None, (moved, dtype, time_text(time)[:10], by)))


def _mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers)


def _means(lines: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    shares = [[value / line[0] for value in line] for line in lines]
    longest = max(map(len, shares))
    columns = ([share[at] for share in shares if len(share) > at] for at in range(longest))
    return tuple(round(_mean(column), 4) for column in columns)


def with_figures(page: BuildPage, record: DerivedRecord, **other: Any) -> BuildPage:
    """Return the page of a build with the figures of its record; `other` are fields that a home knows better."""
    kinds: dict[str, list[tuple[float, ...]]] = {}
    ranks: dict[str, list[float]] = {}
    for module in record.modules:
        if module.values:
            kind = place_of(module.name).kind
            kinds.setdefault(kind, []).append(module.values)
            ranks.setdefault(kind, []).append(module.effective_rank or 0.0)
    names = short_names(kinds)
    found = replace(
        page,
        norm=record.norm,
        others=record.others,
        heats=(
            heat_map("Norm of the update", record.modules, lambda m: m.name, lambda m: m.norm),
            heat_map("Effective rank", record.modules, lambda m: m.name, lambda m: m.effective_rank),
        ),
        spectra=tuple(
            SpectrumLine(name=names[kind], values=_means(lines), effective_rank=_mean(ranks[kind]))
            for kind, lines in list(kinds.items())[:MOST_KINDS]
        ),
        modules=tuple(sorted(record.modules, key=lambda module: in_order(module.name))),
        engines=record.engines,
        findings=record.findings,
    )
    return replace(found, **other)


def verdict_badge(verdict: str) -> Badge:
    """Return the outcome of a test, in its colour."""
    return Badge(text=verdict, tone=_VERDICTS.get(verdict, "plain"))


_ENGINES: Final = {"peft": "PEFT", "vllm": "vLLM", "sglang": "SGLang", "tgi": "TGI", "ollama": "Ollama", "mlx": "MLX"}
_NAMED_FIRST: Final = ("peft", "vllm", "llama.cpp")


def engine_name(name: str) -> str:
    """Return the name of an engine as its authors write it."""
    return _ENGINES.get(name, name)


def method_name(text: str) -> str:
    """Return methods such as `LORA, DORA` as people write them."""
    return text.upper().replace("LORA", "LoRA")


def engines_verdict(engines: Sequence[EngineRecord] | None, url: str, state: str = "made") -> Verdict:
    """Return which engines read a build as it was trained, the most used ones first."""
    if not engines:
        said = ("Not worked out yet", "Look again in a minute") if state == "waiting" else ("Not known", "")
        return Verdict(name="Engines", text=said[0], detail=said[1])
    reads = [one.engine for one in engines if one.reads]
    reads.sort(key=lambda name: (name not in _NAMED_FIRST, _NAMED_FIRST.index(name) if name in _NAMED_FIRST else 0))
    not_one = [engine_name(one.engine) for one in engines if not one.reads]
    if not reads:
        return Verdict(name="Engines", text="None reads it", tone="bad", detail="Why", url=url)
    more = f"{len(reads) - 3} more" if len(reads) > len(_NAMED_FIRST) else "What they need"
    detail = f"{not_one[0]} does not" + f", nor {len(not_one) - 1} more" * (len(not_one) > 1) if not_one else more
    return Verdict(name="Engines", text=", ".join(map(engine_name, reads[:3])), tone="good", detail=detail, url=url)


def names_of(asked: PageQuery) -> list[str]:
    """Return the builds `a` and `b` of a query, "" if the reader has yet to name one.

    `do=swap` changes their places.
    """
    return [asked.query.get(key, "").strip() for key in _turned(asked, "ab")]


def weights_of(asked: PageQuery) -> list[float]:
    """Their weights in the merge; raises as `weight_of`."""
    return [weight_of(asked.query.get(key, "")) for key in _turned(asked, ("wa", "wb"))]


def _turned(asked: PageQuery, keys: Sequence[str]) -> Sequence[str]:
    return keys[::-1] if asked.query.get("do") == "swap" else keys


def choices_of(groups: Mapping[str, Iterable[tuple[str, str]]], chosen: str) -> tuple[ChoiceGroup, ...]:
    """Return the lists of builds to compare, each build (its value and its text) in the first group that has it."""
    seen: set[str] = set()
    found = []
    for label, builds in groups.items():
        new = [(value, text) for value, text in builds if value not in seen]
        seen |= {value for value, _ in new}
        if new:
            choices = (FormChoice(value=value, text=text, chosen=value == chosen) for value, text in new)
            found.append(ChoiceGroup(label=label, choices=tuple(choices)))
    return tuple(found)


def lists_of(
    known: Sequence[_Build | None],
    groups: Callable[[_Build | None], Mapping[str, Sequence[tuple[str, str]]]],
    choice: Callable[[_Build], tuple[str, str]],
) -> Iterator[tuple[ChoiceGroup, ...]]:
    """Yield the choices for each of two builds: the `groups` that go with the other, or else with itself.

    `choice` gives the value and the text of a build; one that no group has stands in one of its own. The other one is
    not offered: a comparison with itself shows nothing.
    """
    anchors = [other or mine for mine, other in zip(known, known[::-1], strict=True)]
    first = groups(anchors[0])
    both = first, first if anchors[1] is anchors[0] else groups(anchors[1])
    for mine, other, groups_of in zip(known, known[::-1], both, strict=True):
        own = [] if mine is None else [choice(mine)]
        taken = {choice(other)[0]} - {value for value, _ in own} if other is not None else set()
        found = {label: [one for one in some if one[0] not in taken] for label, some in groups_of.items()}
        has_own = any(value == own[0][0] for some in found.values() for value, _ in some) if own else True
        yield choices_of(found if has_own else {"Chosen": own, **found}, own[0][0] if own else "")


def compare_page(
    lists: Sequence[tuple[ChoiceGroup, ...]],
    sides: Sequence[Compared],
    configs: Sequence[Mapping[str, Any]],
    found: Comparison | str,
) -> ComparePage:
    """Return the page of two builds with the result of their comparison, or why there is none."""
    first, second = sides
    page = ComparePage(
        a=first.choice,
        b=second.choice,
        lists=tuple(lists),
        sides=tuple(sides),
        same_base=first.base == second.base if first.base and second.base else None,
        config=tuple(changed(configs[0], configs[1])),
    )
    if isinstance(found, str):
        return replace(page, reason=found)
    used = [side for side in sides if side.weight]
    named = " ".join(shlex.quote(side.name) for side in used)
    merge = f"adapt merge {named} --weights={','.join(f'{side.weight:g}' for side in used)}"
    choices = found.forecast.choices if found.forecast is not None else ()
    best = suggested(choices)
    shared = [module for module in found.modules if module.pairs]
    return replace(
        page,
        found=found,
        heats=(
            heat_map("Cosine of the updates", shared, lambda m: m.module, lambda m: m.pairs[0].cosine),
            heat_map("Opposite signs", shared, lambda m: m.module, lambda m: m.pairs[0].opposite.estimate.share),
        ),
        ways=tuple(
            StorageView(
                options=one.options.removeprefix("--method "),
                ranks=f"{one.rank_min}–{one.rank_max}" if one.rank_min != one.rank_max else str(one.rank_max),  # noqa: RUF001 - a range
                error=one.relative_error,
                size=one.size_bytes,
                notes=("Exact",) * (not one.relative_error) + ("Suggested",) * (one is best),
            )
            for one in choices
        ),
        command=f"{merge} {best.options} -o merged" if best is not None else "",
    )


def suggested(choices: Sequence[StorageOption]) -> StorageOption | None:
    """Return the smallest way to store a sum that loses at most `MOST_LOST` of it; the first where none is so exact."""
    good = [one for one in choices if one.relative_error <= MOST_LOST]
    return min(good, key=lambda one: one.size_bytes) if good else next(iter(choices), None)


def weight_of(text: str) -> float:
    """Return the weight in a parameter of a page, on the steps of its slider; an empty text is an even share.

    Raises:
        UsageProblem: it is not a number within the bounds.
    """
    try:
        number = float(text) if text else EVEN
    except ValueError:
        number = math.nan
    if not abs(number) <= MOST_WEIGHT:
        raise UsageProblem(f"weight `{shown(text)}`: expected a number from -{MOST_WEIGHT:g} to {MOST_WEIGHT:g}")
    return round(number * STEPS) / STEPS


def contract_words(contract: Contract) -> tuple[str, ...]:
    """Describe the content of a contract, in a few words."""
    losses = [golden.loss for golden in contract.goldens if golden.loss is not None]
    gained = [g.base_loss - g.loss for g in contract.goldens if g.loss is not None and g.base_loss is not None]
    found = [f"{len(contract.goldens)} recorded {contract.noun}"]
    if losses:
        found.append(f"loss {math.fsum(losses) / len(losses):.3f} nats a token in the mean")
    if gained:
        found.append(f"{math.fsum(gained) / len(gained):.3f} nats a token better than the base")
    return tuple(found)


def changed(
    before: Mapping[str, Any], after: Mapping[str, Any], above: str = "", depth: int = 0
) -> Iterator[ChangeView]:
    """Yield the values in which two configs differ, by key."""
    for key in sorted(before.keys() | after.keys()):
        old, new, name = before.get(key), after.get(key), f"{above}{key}"
        if isinstance(old, dict) and isinstance(new, dict) and depth < MAX_DEPTH:
            yield from changed(old, new, f"{name}.", depth + 1)
        elif key not in before or key not in after or old != new or type(old) is not type(new):
            yield ChangeView(
                key=name[:MAX_CHARACTERS],
                before=_text(old) if key in before else None,
                after=_text(new) if key in after else None,
            )


def _text(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"
