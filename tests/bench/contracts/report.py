"""The tables of the benchmark: the targets, families, changes, and the curve of the bounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from adapterhub.formats.contract.standards import DEFAULT_BOUNDS, Bounds
from adapterhub.inference.contracts.drift import NOISE_REACHES, ROUNDING
from tests.bench.contracts.changes import CHANGES, DAMAGES, PRECISIONS
from tests.bench.contracts.families import FAMILIES
from tests.bench.contracts.results import DRIFT, NEVER, RECORDING
from tests.bench.contracts.training import recipes

Row = dict[str, Any]
CHANGED, UNCHANGED = 0.7, 0.95
"""Shares of held-out answers that stay, up to which an adapter has changed and from which it has not."""

VERDICT_S: Final = {"classify": 0.5, "causal": 5.0, "seq2seq": 5.0}
COUNTS: Final = (4, 8, 12, 16, 20)
BOUNDS: Final = tuple(Bounds(same=same, retention=retention) for same in (0.8, 0.9, 0.95, 1.0)
                      for retention in (0.0, 0.9, 0.95, 0.98))  # fmt: skip


def report(rows: Sequence[Row], part: str = "all") -> str:
    """Markdown; `part` takes the adapters of even or odd number in their family."""
    rows = [row for row in rows if _is_of(row, part)]
    pairs = [row for row in rows if row["change"] not in (RECORDING, NEVER, DRIFT)]
    judged = [_by_todays_bound(row) for row in pairs if "verdict" in row]
    return "\n\n".join(
        "\n".join(table)
        for table in (_targets(judged, rows), _families(judged, rows), _changes(judged), _curve(judged), *_drifts(rows))
    )


def _by_todays_bound(row: Row) -> Row:
    """The row of a classifier as the default `kl` of today judges it, whatever it was when the row was measured."""
    is_over = row["verdict"] == "PASS" and (row.get("kl") or 0) > DEFAULT_BOUNDS.kl
    return {**row, "verdict": "CHANGED", "by_numbers": "CHANGED"} if is_over else row


def _is_of(row: Row, part: str) -> bool:
    if part == "all":
        return True
    names = [recipe.name for recipe in recipes(row["family"], FAMILIES[row["family"]])]
    return names.index(row["adapter"]) % 2 == (part == "odd")


def _group(row: Row) -> str:
    return CHANGES[row["change"]].group if row["change"] in CHANGES else ""


def _share(rows: Sequence[Any], holds: Callable[[Any], bool]) -> str:
    if not rows:
        return "-"
    good = sum(map(holds, rows))
    return f"{100 * good / len(rows):.1f} % ({good} of {len(rows)})"


def _numeric(rows: Iterable[Row]) -> list[Row]:
    """Pairs that the numbers judge: the prompts are the recorded ones."""
    return [row for row in rows if not _asks_otherwise(row)]


def _asks_otherwise(row: Row) -> bool:
    change = CHANGES.get(row["change"])
    return change is None or change.form is not None or change.tokenizer is not None


def _targets(judged: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    weights = _numeric(judged)
    other_prompts = [row for row in judged if _asks_otherwise(row)]
    nevers = [row for row in rows if row["change"] == NEVER and row.get("verdict")]
    labelled = [row for row in weights if "labels" in row]
    times = [
        (row["cpu_seconds"], VERDICT_S[FAMILIES[row["family"]].kind]) for row in weights if row["change"] != "bf16 base"
    ]
    lines = [
        ("changed adapters told", "at least 99 %", _share([r for r in weights if r["truth"] <= CHANGED], _is_changed)),
        ("unchanged adapters refused", "at most 1 %", _share([r for r in weights if r["truth"] >= UNCHANGED], _is_changed)),
        ("unchanged by labels alone, refused", "", _share([r for r in labelled if r["labels"] >= UNCHANGED], _is_changed)),
        ("precision changes that pass", "100 %", _share([r for r in judged if _group(r) == "precision"], _passes)),
        ("precision changes that keep 95 % of the held-out answers, pass", "100 %",
         _share([r for r in judged if _group(r) == "precision" and r["truth"] >= UNCHANGED], _passes)),
        ("the adapter as recorded passes", "100 %", _share([r for r in judged if _group(r) == "sound"], _passes)),
        ("no-op, other adapter, sign, wrong form not passed", "100 %",
         _share([r for r in judged if _group(r) == "must"], lambda r: not _passes(r))),
        ("another tokenizer is UNKNOWN", "100 %",
         _share([r for r in judged if _group(r) == "tokenizer"], lambda r: r["reason"] == "other-tokenizer")),
        ("wrong forms that changed answers, told by the numbers alone", "",
         _share([r for r in other_prompts if r["truth"] <= CHANGED], lambda r: r["by_numbers"] == "CHANGED")),
        ("`never` broken by a merge of parents that keep it, told", "100 %", _share(nevers, _is_changed)),
        ("verdicts within 5 CPU-s (encoders 0.5)", "100 %",
         f"{100 * sum(s <= most for s, most in times) / len(times):.1f} %" if times else "-"),
        ("largest contract", "at most 32 KiB", f"{max((r['bytes'] for r in judged), default=0) / 1024:.1f} KiB"),
    ]  # fmt: skip
    return ["| target | wanted | measured |", "| --- | --- | --- |", *(f"| {' | '.join(line)} |" for line in lines)]


def _is_changed(row: Row) -> bool:
    return bool(row["verdict"] == "CHANGED")


def _passes(row: Row) -> bool:
    return bool(row["verdict"] == "PASS")


def _families(judged: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    lines = ["| family | adapters | without a contract | pairs | changed told | unchanged refused | precision passes | CPU-s a verdict |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for name, family in FAMILIES.items():
        own = [row for row in judged if row["family"] == name]
        lost = [row for row in rows if row["family"] == name and row["change"] == RECORDING and row.get("problem")]
        if not own and not lost:
            continue
        weights = _numeric(own)
        median = statistics.median([row["cpu_seconds"] for row in weights]) if weights else 0
        cells = [family.label, str(len({row["adapter"] for row in own})), str(len(lost)), str(len(own)),
                 _share([r for r in weights if r["truth"] <= CHANGED], _is_changed),
                 _share([r for r in weights if r["truth"] >= UNCHANGED], _is_changed),
                 _share([r for r in own if _group(r) == "precision"], _passes), f"{median:.2f}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _changes(judged: Sequence[Row]) -> list[str]:
    lines = ["| change | pairs | held-out answers that stay, mean | PASS | CHANGED | UNKNOWN | by numbers PASS |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for name in CHANGES:
        own = [row for row in judged if row["change"] == name]
        if not own:
            continue
        counts = [sum(row["verdict"] == verdict for row in own) for verdict in ("PASS", "CHANGED", "UNKNOWN")]
        numbers = sum(row["by_numbers"] == "PASS" for row in own)
        mean = 100 * statistics.fmean(row["truth"] for row in own)
        lines.append(f"| {name} | {len(own)} | {mean:.0f} % | {' | '.join(map(str, [*counts, numbers]))} |")
    return lines


# ---------------------------------------------------------------- the curve
def _curve(judged: Sequence[Row]) -> list[str]:
    """What other bounds and fewer goldens would have said of the writers, from the kept numbers of each golden."""
    writers = [row for row in _numeric(judged) if FAMILIES[row["family"]].kind != "classify" and row["goldens"]]
    lines = ["| same, retention at least | " + " | ".join(f"{count} goldens" for count in COUNTS) + " |",
             "| --- |" + " ---: |" * len(COUNTS)]  # fmt: skip
    for bounds in BOUNDS:
        cells = []
        for count in COUNTS:
            told = [(row["truth"], _breaks(row["goldens"][:count], bounds)) for row in writers]
            caught = [broken for truth, broken in told if truth <= CHANGED]
            refused = [broken for truth, broken in told if truth >= UNCHANGED]
            cells.append(f"{_percent(caught)} / {_percent(refused)}")
        lines.append(f"| {bounds.same:g}, {bounds.retention:g} | {' | '.join(cells)} |")
    return ["Changed ones told / unchanged ones refused, in %, of models that write:", "", *lines]


def _percent(values: Sequence[bool]) -> str:
    return f"{100 * sum(values) / len(values):.1f}" if values else "-"


def _breaks(goldens: Sequence[Sequence[Any]], bounds: Bounds) -> bool:
    """The rule of `inference.contracts.judging` on kept numbers; the losses are weighed by their tokens."""
    if sum(not same for same, *_ in goldens) > bounds.may_lose(len(goldens)):
        return True
    if any(loss is None for _, loss, *_ in goldens):
        return True
    tokens = sum(count for *_, count in goldens)
    now, recorded, base = (sum((row[at] or 0.0) * row[4] for row in goldens) / tokens for at in (1, 2, 3))
    gap = base - recorded
    return bool(gap >= DEFAULT_BOUNDS.min_gap and (base - now) / gap < bounds.retention)


# ---------------------------------------------------------------- drift
AIMS: Final = (
    "alpha x 0.8",
    "alpha x 1.25",
    "first layer lost",
    "middle layer lost",
    "last layer lost",
    "noise of 20 %",
)
FACTORS: Final = (0.5, 0.75, 1, 1.5, 2, 4)


def _drifts(rows: Sequence[Row]) -> list[list[str]]:
    """What drift tells of damages by kind and size, what it says of adapters that are not damaged, and the curve."""
    found = [[row["family"], *one] for row in rows if row["change"] == DRIFT for one in row.get("measured", ())]
    damaged, kept = ([one for one in found if (one[1] in DAMAGES) == is_damage] for is_damage in (True, False))
    if not found:
        return []
    own = {name: [one for one in kept if one[2].startswith(name)] for name in PRECISIONS}
    lines = [
        "| not damaged, asked on a base in | told | largest drift | largest noise |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {_share(of, _is_told)} | {_most(of, 3)} | {_most(of, 4)} |" for name, of in own.items() if of
    ]
    told = ["| damage | " + " | ".join(f"{name}: told, median drift" for name in PRECISIONS) + " |",
            "| --- |" + " ---: |" * len(PRECISIONS)]  # fmt: skip
    for name in DAMAGES:
        cells = [[one for one in damaged if one[1:3] == [name, where]] for where in PRECISIONS]
        if any(cells):
            told.append(f"| {name} | {' | '.join(map(_told_and_median, cells))} |")
    curve = ["| told above so many times the rule | not damaged | " + " | ".join(AIMS) + " |",
             "| --- |" + " ---: |" * (len(AIMS) + 1)]  # fmt: skip
    groups = [
        kept,
        *([one for one in damaged if one[1] == name and one[2] in ("float32", "bfloat16")] for name in AIMS),
    ]
    for factor in FACTORS:
        shares = (_percent([_reach(one) > factor for one in group]) for group in groups)
        curve.append(f"| {factor:g} | {' | '.join(shares)} |")
    return [lines, told, ["Told in float32 and bfloat16, in %, by other thresholds:", "", *curve]]


def _is_told(one: Any) -> bool:
    return bool(one[5])


def _most(of: Sequence[Any], at: int) -> str:
    return f"{max(one[at] for one in of):.4f}"


def _told_and_median(of: Sequence[Any]) -> str:
    return f"{sum(map(_is_told, of))} of {len(of)}, {statistics.median(one[3] for one in of):.3f}" if of else "-"


def _reach(one: Any) -> float:
    """The drift, in times of what noise and rounding explain."""
    return float(one[3] / max(ROUNDING, NOISE_REACHES * one[4]))
