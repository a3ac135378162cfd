"""What got worse since the ratios of `ratios.json` were kept.

    OMP_NUM_THREADS=1 python -m tests.bench.compare [NAME …] [--keep]

Runs short forms of the benchmarks, in a few minutes, and reads one ratio or more from what each prints: our time beside
that of another program or of a floor, measured in the same run. It names those that are more than 15 % worse, and fails
nothing: run a bad one again before you believe it. `--keep` writes the new ratios into the file, for a commit. A NAME picks
the figures whose name holds it. A new figure is a new entry of the file: its command, and a regular expression whose
group is the number in what the command prints.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
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


def measured(figures: Iterable[Figure]) -> Iterator[tuple[Figure, Figure | str]]:
    """Each figure as kept, and as it is now or the last line where it is not printed; every command runs once."""
    by_command: dict[str, list[Figure]] = {}
    for figure in figures:
        by_command.setdefault(figure.command, []).append(figure)
    for command, of_command in by_command.items():
        printed = run(command)
        for figure in of_command:
            yield figure, figure.read(printed) or printed.strip().rpartition("\n")[2]


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
    parser.add_argument("names", nargs="*", metavar="NAME", help="a part of the names of the figures to measure; all")
    parser.add_argument("--keep", action="store_true", help="write the new ratios into ratios.json")
    given = parser.parse_args()
    figures = kept_figures()
    chosen = [figure for figure in figures if not given.names or any(name in figure.name for name in given.names)]
    print(f"{'ratio':44}{'kept':>10}{'now':>10}", flush=True)
    found: dict[str, Figure] = {}
    for kept, now in measured(chosen):
        print(line(kept, now), flush=True)
        if isinstance(now, Figure):
            found[kept.name] = now
    if given.keep:
        entries = [asdict(found.get(figure.name, figure)) for figure in figures]
        KEPT.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
