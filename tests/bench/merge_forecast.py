"""Does the forecast of a merge say what the merge keeps? Rank correlations over merges of trained adapters.

    OMP_NUM_THREADS=1 python -m tests.bench.merge_forecast --budget 60    # merge and measure for an hour; again goes on
    python -m tests.bench.merge_forecast --report

Adapters of one rank and the same targets are trained as for `tests.bench.contracts`. Pairs and fours of them are merged
by every method with several weights, in an order drawn from a seed. What `adapt compare` and `adapt compare` say
before the merge stands beside what the contracts of the parents measure after it: `same` and retention, the mean and the
least over the parents. The tables are Spearman's rank correlations.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapterhub.core.errors import AdapterHubError, MergeRefused
from adapterhub.weights.catalogue import describe, names
from tests.bench.contracts.families import FAMILIES
from tests.bench.contracts.judging import Bench, Subject
from tests.bench.contracts.results import Results
from tests.bench.contracts.training import recipes
from tests.support.real_base import cache_folder

Row = dict[str, Any]
WRITERS: Final = ("small-gpt2", "small-t5", "smollm2")
FORECASTS: Final = ("cosine", "overlap", "opposite", "cancelled", "norm", "error_at_rank", "error")
OUTCOMES: Final = ("same", "least_same", "retention", "least_retention")
WEIGHTS: Final[dict[int, tuple[tuple[float, ...], ...]]] = {
    2: ((1.0, 1.0), (0.5, 0.5), (0.7, 0.3)),
    4: ((1.0,) * 4, (0.5,) * 4, (0.25,) * 4),
}
_FEWEST: Final = 8
"""Merges of which a rank correlation is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """One merge: which adapters by number, the method and the weights."""

    parents: tuple[int, ...]
    method: str
    weights: tuple[float, ...]

    @property
    def label(self) -> str:
        """The merge in one word, for its key."""
        return f"{self.method}:{'+'.join(map(str, self.parents))}:{','.join(f'{w:g}' for w in self.weights)}"


def mixes(adapters: int, seed: int) -> list[Mix]:
    """All merges of so many adapters, pairs and fours in turn, in an order drawn from the seed."""
    rng, found = random.Random(seed), []
    for size in WEIGHTS:
        groups = list(itertools.combinations(range(adapters), size))
        every = [Mix(parents=p, method=m, weights=w) for p in groups for m in names() for w in WEIGHTS[size]]
        rng.shuffle(every)
        found.append(every)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*found))
    return [mix for mix in turns if mix is not None]


# ---------------------------------------------------------------- one merge
def measured(bench: Bench, subjects: Sequence[Subject], mix: Mix) -> Row | None:
    """The forecast and the truth of one merge; None where the method does not take these adapters."""
    from adapterhub.inference.contracts.checking import check
    from adapterhub.weights.merge import MergeInput, merge

    folders = [subject.folder for subject in subjects]
    options: dict[str, Any] = {"seed": 0} if describe(mix.method).is_random else {}
    inputs = [MergeInput(folder=f, label=f.name, weight=w) for f, w in zip(folders, mix.weights, strict=True)]
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "merged"
        try:
            made = merge(inputs, out, method=mix.method, **options)
        except MergeRefused:
            return None
        found: Row = forecast_of(folders, mix.weights) | {"error": made.relative_error}
        with bench.on(out) as model:
            judged = [check(model, bench.tokenizer, subject.contract) for subject in subjects]
    for name in ("same", "retention"):
        values = [getattr(one, name) for one in judged if getattr(one, name) is not None]
        found[name] = statistics.fmean(values) if values else None
        found[f"least_{name}"] = min(values, default=None)
    return found | {"parents": len(folders), "method": mix.method, "passed": sum(j.verdict == "PASS" for j in judged)}


def forecast_of(folders: Sequence[Path], weights: Sequence[float]) -> Row:
    """What `adapt compare` says of adapters, as means over their pairs, and the forecast of their sum."""
    from adapterhub.weights.compare.similarity import compare_adapters
    from adapterhub.weights.lowrank.factors import AdapterFactors, WeightedAdapter

    with ExitStack() as stack:
        sides = [
            WeightedAdapter(label=folder.name, factors=stack.enter_context(AdapterFactors(folder)), weight=weight)
            for folder, weight in zip(folders, weights, strict=True)
        ]
        found = compare_adapters(sides)
    overlaps = [(pair.overlap_left or 0.0) + (pair.overlap_right or 0.0) for pair in found.pairs]
    row: Row = {
        "cosine": statistics.fmean(pair.cosine or 0.0 for pair in found.pairs),
        "overlap": statistics.fmean(overlaps) / 2,
        "opposite": statistics.fmean(pair.opposite.estimate.share for pair in found.pairs),
    }
    if found.forecast is not None:
        at_rank = f"--method svd --rank {max(figures.rank for figures in found.adapters)}"
        errors = [choice.relative_error for choice in found.forecast.choices if choice.options == at_rank]
        row |= {"cancelled": found.forecast.cancelled.estimate.share, "norm": found.forecast.norm}
        row["error_at_rank"] = errors[0] if errors else 0.0
    return row


# ---------------------------------------------------------------- the report
def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's rank correlation; None where one side is constant."""
    first, second = (_ranks([pair[at] for pair in pairs]) for at in (0, 1))
    try:
        return statistics.correlation(first, second)
    except statistics.StatisticsError:
        return None


def _ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value; equal values share the mean of theirs."""
    order = sorted(range(len(values)), key=lambda at: values[at])
    found = [0.0] * len(values)
    for _, group in itertools.groupby(enumerate(order), key=lambda pair: values[pair[1]]):
        members = list(group)
        for _, at in members:
            found[at] = statistics.fmean(rank for rank, _ in members)
    return found


def report(rows: Sequence[Row]) -> str:
    """Markdown: the correlations of every forecast with every outcome, over all merges and over parts of them."""
    rows = [row for row in rows if row.get("same") is not None]
    parts: list[tuple[str, str, object]] = [("all", "", None)]
    parts += [(f"{size} parents", "parents", size) for size in WEIGHTS]
    parts += [(f"of {name}", "family", name) for name in WRITERS]
    parts += [(f"`{method}`", "method", method) for method in names()]
    head = f"| merges | n | forecast | {' | '.join(OUTCOMES)} |"
    lines = [head, "| --- | ---: | --- |" + " ---: |" * len(OUTCOMES)]
    for label, key, value in parts:
        own = [row for row in rows if not key or row[key] == value]
        for forecast in FORECASTS if len(own) >= _FEWEST else ():
            cells = []
            for outcome in OUTCOMES:
                pairs = [(r[forecast], r[outcome]) for r in own if None not in (r.get(forecast), r.get(outcome))]
                found = spearman(pairs) if len(pairs) >= _FEWEST else None
                cells.append("-" if found is None else f"{found:+.2f}")
            lines.append(f"| {label} | {len(own)} | {forecast} | {' | '.join(cells)} |")
    return "\n".join(lines)


def asked(text: str | None, *, merges: int) -> argparse.Namespace:
    """Read what the user typed for a measurement of merges that `text` describes, `merges` of each family by default."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=cache_folder() / "contracts", help="where all is kept [%(default)s]"
    )
    parser.add_argument("--families", nargs="+", choices=WRITERS, default=list(WRITERS), metavar="NAME")
    parser.add_argument("--adapters", type=int, default=6, metavar="N", help="the first N of each family [%(default)s]")
    parser.add_argument("--merges", type=int, default=merges, metavar="N", help="of each family [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="draws the order of the merges [%(default)s]")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="stop after so many minutes [default: none]")
    parser.add_argument("--report", action="store_true", help="print the table and measure nothing")
    return parser.parse_args()


def main() -> None:
    arguments = asked(__doc__, merges=100)
    results = Results(arguments.work / "merges.jsonl")
    end = time.monotonic() + 60 * arguments.budget if arguments.budget else None
    if not arguments.report:
        warnings.filterwarnings("ignore")
        logging.getLogger("transformers").setLevel(logging.ERROR)
        for name in arguments.families:
            chosen = mixes(arguments.adapters, arguments.seed)[: arguments.merges]
            if not judge_family(name, arguments.work.resolve(), chosen, results, end):
                print("the time is over; the same command goes on", flush=True)
                break
    print(report(results.rows()))


def judge_family(name: str, work: Path, chosen: Sequence[Mix], results: Results, end: float | None) -> bool:
    """Measure the merges of a family that are missing; False if the time is over."""
    family, done = FAMILIES[name], results.keys()
    every = recipes(name, family, alike=True)
    keys = {mix: (name, mix.label, "+".join(every[at].key for at in mix.parents), "merge") for mix in chosen}
    missing = [mix for mix in chosen if keys[mix] not in done]
    bench, subjects = Bench(name, family, work, alike=True) if missing else None, {}
    for mix in missing:
        assert bench is not None  # something is missing
        if end is not None and time.monotonic() > end:
            return False
        begun = time.process_time()
        try:
            for at in mix.parents:
                if at not in subjects:
                    subjects[at] = bench.subject(at)
            found = measured(bench, [subjects[at] for at in mix.parents], mix)
        except AdapterHubError as error:  # no contract can be recorded for a parent
            found = {"problem": error.message}
        seconds = round(time.process_time() - begun, 2)
        results.append(keys[mix], **(found or {"does_not_apply": True}), seconds=seconds)
        same = found.get("same") if found else None
        print(f"{name}: {mix.label}  {'-' if same is None else f'same {same:.2f}'}  {seconds} CPU-s", flush=True)
    return True


if __name__ == "__main__":
    main()
