"""What do searches for the weights of a merge find, with how many trials? By drift, and by loss on the recorded answers.

    OMP_NUM_THREADS=1 python -m tests.bench.merge_weights --budget 30     # search for half an hour; again goes on
    python -m tests.bench.merge_weights --report

The parents are the pairs and fours of the merges of `tests.bench.merge_forecast`, with its adapters. For each group,
`adapt merge --tune contracts` searches by drift and, as for contracts without log-odds, by loss; equal shares stand
beside. Each result is measured on the whole contracts of the parents, and on 64 held-out prompts of each.
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench.contracts.families import FAMILIES
from tests.bench.contracts.judging import Bench, Subject
from tests.bench.contracts.results import Results
from tests.bench.contracts.training import recipes
from tests.bench.merge_forecast import WRITERS, asked, mixes

Row = dict[str, Any]
LOSS_TRIALS: Final = (60, 15)
"""Budgets of the search by loss: the default, and about what the search by drift takes."""

FIGURES: Final = ("trials", "drift", "retention", "least_retention", "held_out_loss", "held_out_same", "cpu_seconds")


def groups(adapters: int, seed: int, merges: int) -> list[tuple[int, ...]]:
    """The groups of parents of the first merges of the forecast benchmark, each once, in their order."""
    return list(dict.fromkeys(mix.parents for mix in mixes(adapters, seed)[:merges]))


def searched(bench: Bench, subjects: Sequence[Subject]) -> Row:
    """The figures of each search, by its name."""
    from adapterhub.inference.contracts.answers import examples_of
    from adapterhub.inference.contracts.weighing import tune_by_drift
    from adapterhub.inference.tuning import equal_weights, tune

    contracts = {subject.recipe.name: subject.contract for subject in subjects}
    folders = [subject.folder for subject in subjects]
    model, tokenizer, library = bench.model, bench.tokenizer, bench.work / "library"
    found: Row = {"equal shares": _figures(bench, subjects, equal_weights(len(subjects)), 0, 0.0)}
    for trials in LOSS_TRIALS if bench.family.kind == "causal" else ():
        begun = time.process_time()
        examples = [one for name, each in contracts.items() for one in examples_of(name, each, model, tokenizer)]
        made = tune(model, tokenizer, folders, examples, budget=trials, library=library)
        spent = time.process_time() - begun
        found[f"loss, {trials} trials"] = _figures(bench, subjects, made.weights, made.evaluations, spent)
    begun = time.process_time()
    made = tune_by_drift(model, tokenizer, folders, contracts, library=library)
    spent = time.process_time() - begun
    found["drift"] = _figures(bench, subjects, made.weights, made.evaluations, spent)
    return found


def _figures(
    bench: Bench, subjects: Sequence[Subject], weights: Sequence[float], trials: int, cpu_seconds: float
) -> Row:
    """What a merge with these weights keeps of its parents."""
    from adapterhub import attach
    from adapterhub.formats.prompts.form import prompt_tokens
    from adapterhub.inference.contracts.answers import AnswerRow, Score, asked_again, scores
    from adapterhub.inference.contracts.drift import drift

    kept: list[float] = []
    drifts: list[float] = []
    held: list[tuple[Score, AnswerRow]] = []
    folders = [subject.folder for subject in subjects]
    with attach(bench.model, folders, weights=list(weights), library=bench.work / "library") as attached:
        for one in subjects:
            goldens = one.contract.distinct
            rows = asked_again(one.recipe.name, one.contract, goldens, bench.model, bench.tokenizer)
            now = scores(attached.model, rows, _silent)
            tokens = sum(len(row.answer) for row in rows)
            loss = sum(score.loss * len(row.answer) for score, row in zip(now, rows, strict=True)) / tokens
            of_base, own = (
                sum((getattr(g, key) or 0.0) * len(g.tokens) for g in goldens) / tokens for key in ("base_loss", "loss")
            )
            kept.append((of_base - loss) / (of_base - own))
            moved = drift(goldens, {g.id: score.odds for g, score in zip(goldens, now, strict=True)}, {})
            drifts.append(moved.value if moved else float("nan"))
            prompts = prompt_tokens(one.contract.prompt, [asked for asked, _ in one.held], bench.tokenizer)
            pairs = [
                AnswerRow(prompt=p, answer=[int(t) for t in a]) for p, (_, a) in zip(prompts, one.held, strict=True)
            ]
            held += zip(scores(attached.model, pairs, _silent), pairs, strict=True)
    tokens = sum(len(row.answer) for _, row in held)
    return {
        "weights": list(weights),
        "trials": trials,
        "drift": statistics.fmean(one**2 for one in drifts) ** 0.5,
        "retention": statistics.fmean(kept),
        "least_retention": min(kept),
        "held_out_loss": sum(score.loss * len(row.answer) for score, row in held) / tokens,
        "held_out_same": statistics.fmean(float(score.same) for score, _ in held),
        "cpu_seconds": round(cpu_seconds, 2),
    }


def _silent(_done: int) -> None:
    """A tick that says nothing."""


def report(rows: Sequence[Row]) -> str:
    """Markdown: the means of every figure, by model, number of parents and search."""
    lines = [
        f"| model, parents | groups | search | {' | '.join(name.replace('_', ' ') for name in FIGURES)} |",
        "| --- | ---: | --- |" + " ---: |" * len(FIGURES),
    ]
    for family in WRITERS:
        for count in (2, 4):
            own = [row["searches"] for row in rows if row["family"] == family and row.get("parents") == count]
            for search in own[0] if own else ():
                cells = [f"{statistics.fmean(row[search][figure] for row in own):.3g}" for figure in FIGURES]
                lines.append(f"| {family}, {count} | {len(own)} | {search} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    arguments = asked(__doc__, merges=101)
    results = Results(arguments.work / "merge-weights.jsonl")
    end = time.monotonic() + 60 * arguments.budget if arguments.budget else None
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    for name in [] if arguments.report else arguments.families:
        chosen = groups(arguments.adapters, arguments.seed, arguments.merges)
        if not search_family(name, arguments.work.resolve(), chosen, results, end):
            print("the time is over; the same command goes on", flush=True)
            break
    print(report([row for row in results.rows() if "searches" in row]))


def search_family(
    name: str, work: Path, chosen: Sequence[tuple[int, ...]], results: Results, end: float | None
) -> bool:
    """Search for the groups of a family that are missing; False if the time is over."""
    family, done = FAMILIES[name], results.keys()
    every = recipes(name, family, alike=True)
    keys = {group: (name, "+".join(every[at].name for at in group), "+".join(every[at].key for at in group), "weights")
            for group in chosen}  # fmt: skip
    missing = [group for group in chosen if keys[group] not in done]
    bench = Bench(name, family, work, alike=True) if missing else None
    for group in missing:
        assert bench is not None  # something is missing
        if end is not None and time.monotonic() > end:
            return False
        found = searched(bench, [bench.subject(at) for at in group])
        results.append(keys[group], parents=len(group), searches=found)
        said = ", ".join(f"{key}: {one['trials']} trials, drift {one['drift']:.3f}" for key, one in found.items())
        print(f"{name}: {keys[group][1]}  {said}", flush=True)
    return True


if __name__ == "__main__":
    main()
