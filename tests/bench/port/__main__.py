"""The benchmark of ports: does `adapt port` keep what an adapter does, and does it say so before?

    OMP_NUM_THREADS=1 python -m tests.bench.port --budget 30     # measure for half an hour, then stop; again goes on
    python -m tests.bench.port --report                          # the tables, from what was measured so far

Adapters, contracts and bases are those of `python -m tests.bench.contracts`, and are made if they are not there; the new
bases are made from them. Results are kept in the folder `--work`, outside of the repository.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

from adapterhub.core.errors import AdapterHubError
from tests.bench.contracts.families import FAMILIES
from tests.bench.port.pairs import PAIRS, Pair
from tests.bench.port.report import report
from tests.support.real_base import cache_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=cache_folder() / "port", help="where all is kept [%(default)s]")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="NAME")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="stop after so many minutes [default: none]")
    parser.add_argument("--report", action="store_true", help="print the tables and measure nothing")
    arguments = parser.parse_args()
    path = arguments.work / "results.jsonl"
    if not arguments.report:
        end = time.monotonic() + 60 * arguments.budget if arguments.budget else None
        warnings.filterwarnings("ignore")
        logging.getLogger("transformers").setLevel(logging.ERROR)
        measure([pair for pair in PAIRS if pair.family in arguments.families], arguments.work, path, end)
    print(report(rows(path)))


def rows(path: Path) -> list[dict[str, Any]]:
    """All results, the newest of a cell alone; a half line of a run that was ended is passed over."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found[row["pair"], row["adapter"], row["method"]] = row
    return list(found.values())


def measure(pairs: list[Pair], work: Path, path: Path, end: float | None) -> None:
    """Measure what is missing."""
    from tests.bench.contracts.judging import Bench
    from tests.bench.port.measuring import PairBench, methods, single_thread

    single_thread()
    path.parent.mkdir(parents=True, exist_ok=True)
    benches: dict[str, Bench] = {}
    for pair in pairs:
        done = {(row["adapter"], row["method"]) for row in rows(path) if row["pair"] == pair.label}
        if pair.family not in benches:
            benches.clear()  # one family in memory
            benches[pair.family] = Bench(pair.family, FAMILIES[pair.family], cache_folder() / "contracts")
        bench = benches[pair.family]
        here = None
        for at, recipe in enumerate(bench.recipes[: pair.adapters]):
            wanted = [one for one in methods() if (recipe.name, one) not in done]
            if not wanted or (recipe.name, "-") in done:
                continue
            if end is not None and time.monotonic() > end:
                print("the time is over; the same command goes on", flush=True)
                return
            here = here or PairBench(pair, bench, work)
            try:
                bench.contract(at)
            except AdapterHubError as error:  # no contract can be recorded of it
                found = iter([{"method": "-", "verdict": "NONE", "reason": error.message.splitlines()[0]}])
            else:
                found = here.measured(at, wanted)
            with path.open("a") as file:
                for row in found:
                    file.write(json.dumps({"pair": pair.label, "adapter": recipe.name, **row}) + "\n")
                    file.flush()
                    print(pair.label, recipe.name, row, flush=True)


if __name__ == "__main__":
    main()
