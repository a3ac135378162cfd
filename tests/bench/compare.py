"""What got worse since the ratios of `ratios.json` were kept.

    OMP_NUM_THREADS=1 python -m tests.bench.compare [--only NAME …] [--keep] [--printed FILE]

Runs short forms of the benchmarks, in a few minutes, and reads one ratio or more from what each prints: our time beside
that of another program or of a floor, measured in the same run. It names those that are more than 15 % worse, and fails
nothing: run a bad one again before you believe it. `--keep` writes the new ratios into the file, for a commit, after each
command: what an interrupted run has measured is kept. `--only` picks the figures whose name or command holds a NAME, and
`--printed` appends to a FILE what the commands print, where `python -m docs.charts FILE` finds the numbers of its charts.
A new figure is a new entry of the file: its command, and a regular expression whose group is the number in what the
command prints.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal

KEPT: Final = Path(__file__).with_name("ratios.json")
WORSE: Final = 0.15
"""The part of a ratio by which it may get worse before it is named; what is left of noise on a shared machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A ratio, the command that prints it, where in its output it stands, and which side is better."""

    name: str
    ratio: float
    better: Literal["lower", "higher"]
    command: str
    found_by: str

    def read(self, printed: str) -> Figure | None:
        """The figure with the ratio that its command printed; None if it is not there."""
        found = re.search(self.found_by, printed, re.MULTILINE)
        return replace(self, ratio=float(found[1].replace(",", ""))) if found else None

    def worse_than(self, kept: Figure) -> float:
        """By which part it is worse; negative where it is better."""
        return (self.ratio / kept.ratio if self.better == "lower" else kept.ratio / self.ratio) - 1


def kept_figures() -> list[Figure]:
    """The figures of the file."""
    return [Figure(**entry) for entry in json.loads(KEPT.read_text())]


def run(command: str) -> str:
    """What it prints, with this Python."""
    done = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout


@dataclass(frozen=True, slots=True)
class Done:
    """A command that ran: what it printed, its seconds, and the kept and the new value of each of its figures.

    In place of a figure that was not printed stands the last line that was.
    """

    command: str
    printed: str
    seconds: float
    figures: list[tuple[Figure, Figure | str]]


def measured(figures: Iterable[Figure]) -> Iterator[Done]:
    """Run every command once, in the order of their first figures."""
    by_command: dict[str, list[Figure]] = {}
    for figure in figures:
        by_command.setdefault(figure.command, []).append(figure)
    for command, of_command in by_command.items():
        begun = time.monotonic()
        printed = run(command)
        last = printed.strip().rpartition("\n")[2]
        found = [(figure, figure.read(printed) or last) for figure in of_command]
        yield Done(command, printed, time.monotonic() - begun, found)


def keep(now: Iterable[Figure]) -> None:
    """Write these ratios into the file in place of those of the same names."""
    renewed = {figure.name: figure for figure in now}
    entries = [asdict(renewed.get(figure.name, figure)) for figure in kept_figures()]
    KEPT.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n")


def line(kept: Figure, now: Figure | str) -> str:
    """One figure for people."""
    if isinstance(now, str):
        return f"{kept.name:44}{kept.ratio:10.3g}         -   not printed by `{kept.command}`, which ends with: {now}"
    worse = now.worse_than(kept)
    verdict = f"WORSE by {worse:.0%}" if worse > WORSE else f"better by {-worse:.0%}" if worse < -WORSE else ""
    return f"{kept.name:44}{kept.ratio:10.3g}{now.ratio:10.3g}   {verdict}".rstrip()


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="a part of the name or the command of a figure")
    parser.add_argument("--keep", action="store_true", help="write the new ratios into ratios.json")
    parser.add_argument("--printed", type=Path, metavar="FILE", help="append what the commands print to this file")
    given = parser.parse_args()
    figures = [one for one in kept_figures() if any(n in f"{one.name} {one.command}" for n in given.only or [""])]
    print(f"{'ratio':44}{'kept':>10}{'now':>10}", flush=True)
    for done in measured(figures):
        for kept, now in done.figures:
            print(line(kept, now), flush=True)
        print(f"    {done.seconds:.0f} s: {done.command}", flush=True)
        if given.printed:
            with given.printed.open("a") as stream:
                stream.write(f"$ {done.command}\n{done.printed}\n")
        if given.keep:
            keep(now for _, now in done.figures if isinstance(now, Figure))


if __name__ == "__main__":
    main()
