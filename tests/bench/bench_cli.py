"""CPU time of whole processes against the stock hub client: `adapt --help` and `adapt list` with 1,000 adapters.

    python -m tests.bench.bench_cli [--runs 7]

Peer: `hf --help` and `hf cache ls` of the installed huggingface_hub, in the same run, turn by turn. Prints medians and
the ratio of medians; the bounds are 0.25 and 0.4.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.many_builds import fill_index

ADAPTERS = 1_000


def cpu_seconds(command: list[str], environ: dict[str, str]) -> float:
    """User and system seconds of one finished run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    scripts = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        home, hub = Path(folder, "home"), Path(folder, "hub")
        hub.mkdir()
        fill_index(home, ADAPTERS)
        environ = os.environ | {"ADAPTERHUB_HOME": str(home), "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
        pairs = [
            (["adapt", "--help"], ["hf", "--help"], 0.25),
            (["adapt", "list"], ["hf", "cache", "ls"], 0.40),
        ]
        for ours, theirs, bound in pairs:
            times: tuple[list[float], list[float]] = ([], [])
            for turn in range(runs + 1):
                for command, seconds in zip((ours, theirs), times, strict=True):
                    spent = cpu_seconds([str(scripts / command[0]), *command[1:]], environ)
                    if turn:  # the first turn warms the page cache
                        seconds.append(spent)
            a, b = (statistics.median(seconds) for seconds in times)
            print(
                f"{' '.join(ours):14} {a * 1000:6.0f} ms CPU   {' '.join(theirs):12} {b * 1000:6.0f} ms CPU   "
                f"ratio {a / b:.2f} (at most {bound})"
            )


if __name__ == "__main__":
    main()
