"""The long form of the crash set; prints a Markdown table.

    python -m tests.crash [--only kills,errors,streams,…] [--commands add,gc,…] [--every 1]

"old" and "new" are what `list` shows after the fault. The last column counts trials that broke any promise: damage,
anything lost, a message that is not plain, a retry that fails, or leftovers that `gc` does not take.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.crowd import crowd
from tests.crash.disks import all_disks
from tests.crash.faults import calls_of, errors, interrupts, kills
from tests.crash.flips import flip_bits
from tests.crash.stand import ASKING, COMMANDS, Stand, Trial, make_asking_stand, make_stand
from tests.crash.stops import random_kills, stops

SLOW = {"merge": 6, **dict.fromkeys(ASKING, 12)}
"""Commands that import torch: one place in so many is tried."""
RANDOM_KILLS = 300
BIT_FLIPS = 1000
STREAM_ROUNDS = 200


def every(step: int) -> Callable[[str, int], bool]:
    """Each `step`-th place, and the first of each kind."""
    count = 0

    def keep(_call: str, number: int) -> bool:
        nonlocal count
        count += 1
        return number == 1 or count % step == 0

    return keep


def sparse(step: int) -> Callable[[str, int], bool]:
    """As `every`, but of the many small writes of SQLite one in eight."""
    inner = every(step)

    def keep(call: str, number: int) -> bool:
        return inner(call, number) and (call != "pwrite64" or number % 8 == 1)

    return keep


def of_command(stand: Stand, kinds: list[str], step: int) -> Iterator[tuple[str, list[Trial]]]:
    """The kinds of fault that go by calls, over one command."""
    counts = calls_of(stand)
    step *= SLOW.get(stand.command, 1)
    table = {
        "kills": lambda: kills(stand, counts, every(step)),
        "errors": lambda: errors(stand, counts, sparse(step)),
        "interrupts": lambda: interrupts(stand, counts, sparse(step)),
        "stops": lambda: stops(stand, counts, sparse(step)),
        "random": lambda: random_kills(stand, RANDOM_KILLS // (5 * step), seed=len(stand.command)),
    }
    for kind in kinds:
        if kind in table and not (kind == "stops" and stand.command not in {"add", "install", "merge", "sync"}):
            yield kind, list(table[kind]())


def rows(work: Path, commands: list[str], kinds: list[str], step: int) -> Iterator[tuple[str, str, list[Trial], float]]:
    """Each command and kind, with its trials and the seconds they took."""
    for command in commands:
        make = make_asking_stand if command in ASKING else make_stand
        stand = Stand(make(work / command / "stand"), command)
        start = time.perf_counter()
        for kind, trials in of_command(stand, kinds, step):
            yield command, kind, trials, time.perf_counter() - start
            start = time.perf_counter()


def main() -> int:
    """Run, print the table as it grows, and every trial that failed; 1 when one did."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--only", default="kills,errors,interrupts,stops,random,disk,flips,crowd,streams")
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--every", type=int, default=1, help="one place in so many")
    options = parser.parse_args()
    kinds = options.only.split(",")
    bad: list[Trial] = []
    print("| command | fault | trials | old after it | new after it | broken promises | s |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory(prefix="adapterhub-crash-") as folder:
        work = Path(folder)
        for command, kind, trials, took_s in rows(work, options.commands.split(","), kinds, options.every):
            bad += _row(command, kind, trials, took_s)
        start = time.perf_counter()
        if "disk" in kinds:
            trials = list(all_disks(work / "disks"))
            bad += _row("several", "small, read-only and limited disks, clock", trials, time.perf_counter() - start)
        if "flips" in kinds:
            bad += _flips(work, BIT_FLIPS // options.every)
        if "crowd" in kinds:
            bad += _crowd(work, 50 // options.every)
        if "streams" in kinds:
            bad += _streams(work, STREAM_ROUNDS // options.every)
    for trial in bad:
        print(f"FAILED {trial.fault}: exit {trial.exit_code}: {trial.problem}")
    return 1 if bad else 0


def _row(command: str, kind: str, trials: list[Trial], took_s: float) -> list[Trial]:
    """Print one row; the trials that failed."""
    failed = [trial for trial in trials if trial.problem]
    old = sum(trial.is_old for trial in trials)
    print(
        f"| {command} | {kind} | {len(trials)} | {old} | {len(trials) - old} | {len(failed)} | {took_s:.0f} |",
        flush=True,
    )
    return failed


def _flips(work: Path, number: int) -> list[Trial]:
    start = time.perf_counter()
    flips = flip_bits(make_stand(work / "flips"), number, seed=1)
    print(
        f"| verify --all | one bit flipped: {flips.found} found, {flips.harmless} changed nothing that is shown, "
        f"{flips.false_alarms} false alarms | {number} | | | {len(flips.missed) + flips.false_alarms} | "
        f"{time.perf_counter() - start:.0f} |",
        flush=True,
    )
    return [Trial(fault="bit flip", exit_code=0, is_old=True, problem=text) for text in flips.missed]


def _crowd(work: Path, operations: int) -> list[Trial]:
    start = time.perf_counter()
    seen = crowd(work / "crowd", operations=operations)
    problems = [*seen.failed, *seen.damage, *(f"lost: {name}" for name in seen.lost)]
    print(
        f"| crowd | 8 processes x {operations}, {seen.loops} times gc and verify beside them: {len(seen.lost)} lost, "
        f'{seen.locked} "locked", longest wait {seen.longest_s:.1f} s | {seen.operations} | | | {len(problems)} | '
        f"{time.perf_counter() - start:.0f} |",
        flush=True,
    )
    return [Trial(fault="crowd", exit_code=0, is_old=True, problem=text) for text in problems]


def _streams(work: Path, rounds: int) -> list[Trial]:
    """Publisher, registry, follower and bank killed at random; see `tests.live.chaos`, which shows more of a failure."""
    from tests.live import chaos

    start, problem = time.perf_counter(), ""
    (work / "streams").mkdir()
    try:
        seen = chaos.run(rounds, 0, work / "streams")
    except AssertionError as error:
        seen = problem = f"streams: {error}"
    print(f"| streams | {seen} | {rounds} | | | {int(bool(problem))} | {time.perf_counter() - start:.0f} |", flush=True)
    return [Trial(fault="kills of streams", exit_code=0, is_old=True, problem=problem)] if problem else []


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (pytest.skip.Exception, pytest.fail.Exception) as lacking:
        sys.exit(str(lacking))
