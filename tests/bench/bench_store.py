"""What writing to the store costs: syncs by command, counted with strace, and seconds.

python -m tests.bench.bench_store [--runs 20]
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from adapterhub.core.specs import parse_name
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from tests.bench.harness import given
from tests.crash.stand import COMMANDS, environment, make_stand, run
from tests.support.programs import needs_strace
from tests.support.tiny import make_adapter

SYNCS = ("fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "msync")


def syncs_of(folder: Path, arguments: tuple[str, ...]) -> Counter[str]:
    """How often each kind of sync is called by one command."""
    log = folder / "syncs.log"
    before = (needs_strace(), "-f", "-qq", "-o", str(log), "-e", f"trace={','.join(SYNCS)}")
    done = run(folder, arguments, before=before)
    assert done.returncode == 0, done.stderr
    return Counter(re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE))


def pair_ms(folder: Path, runs: int) -> float:
    """Milliseconds to write 4 kB, sync it, rename it and sync the folder: the yardstick of this disk."""
    times = []
    for number in range(runs):
        start = time.perf_counter()
        path = folder / f"pair-{number}"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(handle, bytes(4096))
        os.fsync(handle)
        os.close(handle)
        path.rename(folder / "pair")
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def add_ms(folder: Path, runs: int) -> float:
    """Milliseconds of `Library.add` in a running process, each adapter with bytes of its own."""
    library, times = Library(folder / "home"), []
    base = library.bases.get("base-7b")
    for number in range(runs):
        out = make_adapter(folder / "many" / str(number), seed=1000 + number)
        about = Description(name=parse_name(f"many-{number}"), version="1.0.0")
        start = time.perf_counter()
        library.add(out, about, base=base)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def main() -> None:
    """Measure and print."""
    options = given(__doc__, runs=20)
    with tempfile.TemporaryDirectory() as place:
        print("| command | syncs | seconds, a process |\n| --- | ---: | ---: |")
        for name in COMMANDS:
            folder = make_stand(Path(place, name))
            make_adapter(folder / "fresh", seed=77, rank=6)  # with a config of its own: none of its objects is there
            fresh = ("add", "./fresh", "--name", "fresh", "--base", "base-7b")
            counted = syncs_of(folder, fresh if name == "add" else COMMANDS[name])
            again = make_stand(Path(place, f"{name}-timed"))
            start = time.perf_counter()
            subprocess.run(
                ["python", "-c", "pass"], cwd=again, env=environment(again), check=False
            )  # the interpreter's own start is not ours
            bare = time.perf_counter() - start
            start = time.perf_counter()
            run(again, COMMANDS[name])
            took = time.perf_counter() - start
            print(f"| {name} | {sum(counted.values())} | {took:.2f}, of which Python {bare:.2f} |")
        folder = make_stand(Path(place, "in-process"))
        add, pair = add_ms(folder, options.runs), pair_ms(folder, options.runs)
        print(f"\n`Library.add` in a running process: {add:.1f} ms; one file written with both syncs: {pair:.1f} ms")


if __name__ == "__main__":
    main()
