"""Many processes on one library: the same and different adapters, with gc and verify in a loop."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from dataclasses import dataclass
from pathlib import Path

from tests.crash.stand import damage_in, state_of
from tests.support.command_line import Adapt, Done
from tests.support.tiny import make_adapter, make_base

SHARED = 3
NOT_FOUND = 10


@dataclass(frozen=True)
class Crowd:
    """What came of it. `lost` are adapters that should be listed and are not, or the other way round."""

    operations: int
    failed: tuple[str, ...]
    lost: tuple[str, ...]
    locked: int
    longest_s: float
    damage: tuple[str, ...]
    loops: int


def crowd(folder: Path, *, processes: int = 8, operations: int = 50, seed: int = 0) -> Crowd:
    """Run it in a new library under `folder`."""
    folder.mkdir(parents=True)
    adapt = Adapt(folder)
    make_base(folder / "base")
    adapt.ok("base", "add", "./base", "--as", "base-7b")
    for number in range(SHARED):
        make_adapter(folder / f"shared-{number}", seed=number)
        adapt.ok("add", f"./shared-{number}", "--name", f"shared-{number}", "--base", "base-7b")
        adapt.ok("push", f"shared-{number}@base-7b", "--to", "./published")
    for worker in range(processes):
        for number in range(3):
            make_adapter(folder / f"own-{worker}-{number}", seed=100 + 10 * worker + number)
    context = multiprocessing.get_context("fork")
    end = context.Event()
    loops = [
        context.Process(target=_loop, args=(folder, words, end))
        for words in (("cache", "clean", "--grace", "0"), ("verify", "--all"))
    ]
    workers = [context.Process(target=_work, args=(folder, w, operations, seed)) for w in range(processes)]
    for process in (*loops, *workers):
        process.start()
    for process in workers:
        process.join()
    end.set()
    for process in loops:
        process.join()
    logs = [json.loads(path.read_text()) for path in sorted(folder.glob("log-[0-9]*.json"))]
    loop_logs = [json.loads(path.read_text()) for path in sorted(folder.glob("log-loop-*.json"))]
    assert (len(logs), len(loop_logs)) == (processes, len(loops)), "a process died"
    entries = [entry for log in (*logs, *loop_logs) for entry in log["entries"]]
    listed = {text.split()[0] for text in state_of(folder).listed}
    wanted = {name for log in logs for name in log["there"]}
    own = {name for name in listed if name.startswith("own-")}
    return Crowd(
        operations=sum(len(log["entries"]) for log in logs),
        failed=tuple(f"{e['words']}: exit {e['code']}: {e['stderr']}" for e in entries if not e["is_fine"]),
        lost=tuple(sorted(wanted ^ own)),
        locked=sum("locked" in e["stderr"] for e in entries),
        longest_s=max(e["seconds"] for e in entries),
        damage=tuple(damage_in(folder)),
        loops=sum(len(log["entries"]) for log in loop_logs),
    )


def _work(folder: Path, worker: int, operations: int, seed: int) -> None:
    """One process: what it has under its own names is known at each moment; the shared ones come and go."""
    adapt, chance = Adapt(folder), random.Random(1000 * seed + worker)
    there: set[str] = set()
    entries = []
    for _ in range(operations):
        own, shared = f"own-{worker}-{chance.randrange(3)}", f"shared-{chance.randrange(SHARED)}"
        kind = chance.choice(("own", "own", "own", "add", "remove", "install", "list", "verify"))
        if kind == "own":
            is_there = own in there
            words = ("remove", own, "--yes") if is_there else ("add", f"./{own}", "--name", own, "--base", "base-7b")
            entries.append(_timed(adapt, words, (0,)))
            there ^= {own}
        elif kind == "add":
            entries.append(_timed(adapt, ("add", f"./{shared}", "--name", shared, "--base", "base-7b"), (0,)))
        elif kind == "remove":
            entries.append(_timed(adapt, ("remove", shared, "--yes"), (0, NOT_FOUND)))
        elif kind == "install":
            entries.append(_timed(adapt, ("install", f"{shared}@base-7b", "--from", "./published"), (0,)))
        elif kind == "list":
            entries.append(_timed(adapt, ("list",), (0,)))
        else:
            entries.append(_timed(adapt, ("verify", "--all"), (0,)))
    text = json.dumps({"entries": entries, "there": sorted(there)})
    (folder / f"log-{worker}.json").write_text(text)


def _loop(folder: Path, words: tuple[str, ...], end: object) -> None:
    adapt, entries = Adapt(folder), []
    while not end.is_set():  # type: ignore[attr-defined]  # multiprocessing's Event has no public type
        entries.append(_timed(adapt, words, (0,)))
    (folder / f"log-loop-{words[0]}.json").write_text(json.dumps({"entries": entries, "there": []}))


def _timed(adapt: Adapt, words: tuple[str, ...], fine: tuple[int, ...]) -> dict[str, object]:
    start = time.perf_counter()
    try:
        done = adapt(*words)
    except BaseException as error:  # noqa: BLE001 - told in the log of this process
        done = Done(exit_code=-1, stdout="", stderr=repr(error))
    return {
        "words": " ".join(words),
        "code": done.exit_code,
        "stderr": done.stderr if done.exit_code else "",
        "seconds": time.perf_counter() - start,
        "is_fine": done.exit_code in fine,
    }
