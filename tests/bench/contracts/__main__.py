"""The benchmark of behaviour contracts: does `adapt test` tell changed adapters from unchanged ones?

    OMP_NUM_THREADS=1 python -m tests.bench.contracts --budget 60     # judge for an hour, then stop; again goes on
    python -m tests.bench.contracts --report [--part even|odd]        # the tables, from what was judged so far

Seven families with ten adapters each are trained from seeded recipes, each adapter gets a contract of 20 goldens, and
each of forty changes is judged once: the verdict beside 64 held-out prompts. Damages of known kind and size are told by
drift, and what damages nothing is not. A run goes on where the last one stopped,
because bases, adapters, contracts and results are kept in the folder `--work`, outside of the repository. Bases come
from PyPI; `small-gpt2` and `small-t5` are trained here.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path
from typing import Any

from adapterhub.core.errors import AdapterHubError
from tests.bench.contracts.changes import CHANGES
from tests.bench.contracts.families import FAMILIES
from tests.bench.contracts.report import report
from tests.bench.contracts.results import DRIFT, NEVER, RECORDING, Results
from tests.support.real_base import cache_folder

MEASURED = [DRIFT, *CHANGES, NEVER]


class Ended(Exception):
    """The budget is spent."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=cache_folder() / "contracts", help="where all is kept [%(default)s]"
    )
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="NAME")
    parser.add_argument(
        "--adapters", type=int, default=10, metavar="N", help="the first N of each family [%(default)s]"
    )
    parser.add_argument("--changes", nargs="+", choices=MEASURED, default=MEASURED, metavar="NAME")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="stop after so many minutes [default: none]")
    parser.add_argument("--report", action="store_true", help="print the tables and judge nothing")
    parser.add_argument("--part", choices=("all", "even", "odd"), default="all", help="adapters that the report counts")
    arguments = parser.parse_args()
    results = Results(arguments.work / "results.jsonl")
    if not arguments.report:
        end = time.monotonic() + 60 * arguments.budget if arguments.budget else None
        warnings.filterwarnings("ignore")
        logging.getLogger("transformers").setLevel(logging.ERROR)
        try:
            for name in arguments.families:
                judge_family(name, arguments.work.resolve(), arguments.adapters, arguments.changes, results, end)
        except Ended:
            print("the time is over; the same command goes on", flush=True)
    print(report(results.rows(), arguments.part))


def judge_family(name: str, work: Path, count: int, changes: list[str], results: Results, end: float | None) -> None:
    """Judge what is missing of a family.

    Raises:
        Ended: the time is over.
    """
    from tests.bench.contracts.drifting import measured
    from tests.bench.contracts.judging import Bench
    from tests.bench.contracts.training import recipes

    family, done = FAMILIES[name], results.keys()
    chosen = recipes(name, family)[:count]
    wanted = {recipe.name: [c for c in changes if (name, recipe.name, recipe.key, c) not in done] for recipe in chosen}
    if not any(wanted.values()):
        return
    bench = Bench(name, family, work)
    for at, recipe in enumerate(chosen):
        if not wanted[recipe.name]:
            continue
        key = (name, recipe.name, recipe.key)
        begun = time.process_time()
        _, seconds = bench.adapter(at)
        problem = ""
        try:
            bench.contract(at)
        except AdapterHubError as error:
            problem = error.message
        if (*key, RECORDING) not in done:
            spent = round(time.process_time() - begun - seconds, 2)
            results.append((*key, RECORDING), problem=problem, training_seconds=round(seconds, 2), cpu_seconds=spent)
            print(f"{name}/{recipe.name}: trained in {seconds:.1f} CPU-s, recorded in {spent} {problem}", flush=True)
        for change in [] if problem else wanted[recipe.name]:
            if end is not None and time.monotonic() > end:
                raise Ended
            begun = time.process_time()
            found: dict[str, Any] | None
            if change == DRIFT:
                found = None if family.kind == "classify" else {"measured": measured(bench, at)}
            else:
                found = bench.broken_never(at) if change == NEVER else bench.judged(bench.subject(at), CHANGES[change])
            spent = round(time.process_time() - begun, 2)
            results.append((*key, change), **(found or {"does_not_apply": True}), seconds=spent)
            said = f"{found['verdict']:8} held out {found['truth']:.2f}" if found and "verdict" in found else ""
            said = said or ("measured" if found else "does not apply")
            print(f"{name}/{recipe.name}: {change:28} {said}  {spent:.1f} CPU-s", flush=True)


if __name__ == "__main__":
    main()
