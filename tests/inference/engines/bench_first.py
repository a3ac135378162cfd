"""What the question about an adapter's effect adds to its first answer, beside a server that does not ask it.

    python -m tests.inference.engines.bench_first [--adapters 8] [--tokens 1 16 64]

Both servers are vLLM with our resolver; `adapt serve`, the first, has the middleware that asks. Each adapter is new to
both, which answer in turns, as in `bench_vllm`. Beside the time on the clock, which other work of the machine disturbs,
it prints the CPU time of all processes of a server, and vLLM's own count of steps of the model, each of which takes as
long as one token of an answer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.inference.engines.__main__ import vllm_python
from tests.inference.engines.bench_vllm import CONFIG, wait_for_rest
from tests.inference.engines.served_library import make_served_library
from tests.inference.engines.servers import Server, adapt_serve, bare_vllm, cpu_seconds, group_of
from tests.inference.engines.variants import PROMPTS
from tests.support.real_base import smollm2_base

COUNTS = (1, 16, 64)
"""Tokens of the answers."""


class Spent(NamedTuple):
    """What one answer took."""

    ms: float
    cpu_ms: float
    steps: float


def answered(server: Server, name: str, count: int) -> Spent:
    """What an answer of `count` tokens takes."""
    processes, steps = group_of(server.pid), server.metric("vllm:iteration_tokens_total_count")
    cpu, began = cpu_seconds(processes), time.perf_counter()
    assert server.complete(name, PROMPTS[0], count).status == 200
    ms, cpu_ms = 1000 * (time.perf_counter() - began), 1000 * (cpu_seconds(processes) - cpu)
    return Spent(ms, cpu_ms, server.metric("vllm:iteration_tokens_total_count") - steps)


def main() -> int:
    """Print the medians of first and next answers of both, and of the ratio of the first, for each count of tokens."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--adapters", type=int, default=8, help="for each count of tokens")
    parser.add_argument("--tokens", type=int, nargs="+", default=COUNTS, help="of the answers")
    given = parser.parse_args()
    many, counts = given.adapters, given.tokens
    os.environ["ADAPTERHUB_VLLM_PYTHON"] = str(vllm_python())
    with tempfile.TemporaryDirectory(prefix="adapterhub-bench-") as folder:
        served = make_served_library(Path(folder))
        names = [f"adapter-{at}" for at in range(1 + many * len(counts))]
        for at, name in enumerate(names):
            served.add(name, CONFIG, seed=at)
        os.sync()
        slots = ["--max-rank", "16", "--slots", "8", "--cpu-slots", "64"]
        flags = ["--max-lora-rank", "16", "--max-loras", "8", "--max-cpu-loras", "64"]
        ours = {"VLLM_PLUGINS": "adapterhub", "ADAPTERHUB_HOME": str(served.home)}
        with (
            adapt_serve(served.home, served.root / "asks.log", "--base", "smol", *slots) as asks,
            bare_vllm(smollm2_base(), served.root / "bare.log", *flags, environ=ours) as silent,
        ):
            for server in (asks, silent):
                server.complete(names[0], PROMPTS[0], 1)  # opens the library, and asks the base
            for number, count in enumerate(counts):
                rows: list[list[Spent]] = [[], [], [], []]
                for at, name in enumerate(names[1 + number * many :][:many]):
                    turns = [(0, asks), (1, silent)]
                    for which, server in turns if at % 2 else turns[::-1]:
                        wait_for_rest([asks, silent])
                        for later in (0, 2):
                            rows[which + later].append(answered(server, name, count))
                for at, what in enumerate(Spent._fields):
                    told = {"tokens": count, "of": what} | {
                        key: round(statistics.median(one[at] for one in row), 1)
                        for key, row in zip(("first, asks", "first", "next, asks", "next"), rows, strict=True)
                    }
                    ratios = [one[at] / other[at] for one, other in zip(*rows[:2], strict=True)]
                    told["first, ratio"] = round(statistics.median(ratios), 2)
                    print(json.dumps(told), flush=True)  # noqa: T201 - its report
    return 0


if __name__ == "__main__":
    sys.exit(main())
