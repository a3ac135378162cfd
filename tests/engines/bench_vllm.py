"""What our resolver costs: first answers beside vLLM's own resolver, throughput beside `--lora-modules`.

    python -m tests.engines.bench_vllm

Two servers run at the same time, and each measurement of one is followed by the same of the other, so that whatever else
the machine does meets both. Medians, one thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adapterhub.serving import Counter
from tests.engines.__main__ import vllm_python
from tests.engines.servers import Server, bare_vllm
from tests.engines.shelf import Shelf, make_shelf
from tests.engines.variants import LINEAR, PROMPTS
from tests.real_base import smollm2_base

FIRST = 8
"""Adapters whose first answer is timed."""
LOADED = 8
"""Adapters that answer in the throughput runs."""
CONFIG = {"r": 16, "lora_alpha": 32, "target_modules": LINEAR}
"""19.6 MB in float32."""
SLOTS = ("--max-lora-rank", "16", "--max-loras", "8", "--max-cpu-loras", "64")
TOKENS = 24
ROUNDS = 3


def first_answers(servers: Sequence[Server], names: Sequence[str]) -> list[list[float]]:
    """Milliseconds of each adapter's first answer of one token, beyond that of its second; one list a server."""
    costs: list[list[float]] = [[] for _ in servers]
    for name in names:
        for at, server in enumerate(servers):
            times = []
            for _ in range(3):
                start = time.perf_counter()
                server.complete(name, PROMPTS[0], 1)
                times.append(time.perf_counter() - start)
            costs[at].append(1000 * (times[0] - min(times[1:])))
    return costs


def tokens_per_second(server: Server, names: Sequence[str]) -> float:
    """8 requests at once, spread over `names`."""
    start = time.perf_counter()
    with ThreadPoolExecutor(8) as threads:
        jobs = [(names[at % len(names)], PROMPTS[at % len(PROMPTS)]) for at in range(8)]
        answers = list(threads.map(lambda job: server.complete(*job, TOKENS).tokens, jobs))
    return sum(map(len, answers)) / (time.perf_counter() - start)


def counter_alone(shelf: Shelf, names: Sequence[str]) -> tuple[float, float]:
    """Milliseconds for `Counter.find` the first time and again, without a server."""
    with contextlib.closing(Counter(shelf.library, shelf.record, engine="vllm@0.32", max_rank=16)) as counter:
        counter.find(names[0])
        first, again = [], []
        for name in names[1:]:
            for times in (first, again):
                start = time.perf_counter()
                counter.find(name)
                times.append(1000 * (time.perf_counter() - start))
        return statistics.median(first), statistics.median(again)


def main() -> int:
    os.environ["ADAPTERHUB_VLLM_PYTHON"] = str(vllm_python())
    with tempfile.TemporaryDirectory(prefix="adapterhub-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        shelf = make_shelf(folder)
        names = [f"adapter-{at}" for at in range(FIRST)]
        for at, one in enumerate(names):
            shelf.add(one, CONFIG, seed=at)
        print(json.dumps({"counter alone, ms": counter_alone(shelf, names)}))
        ours = {"VLLM_PLUGINS": "adapterhub", "ADAPTERHUB_HOME": str(shelf.home)}
        theirs = {"VLLM_PLUGINS": "lora_filesystem_resolver", "VLLM_LORA_RESOLVER_CACHE_DIR": str(folder / "peft")}
        modules = [f"m{at}={shelf.folders[one]}" for at, one in enumerate(names[:LOADED])]
        plugin = stack.enter_context(bare_vllm(smollm2_base(), folder / "ours.log", *SLOTS, environ=ours))
        other = stack.enter_context(
            bare_vllm(smollm2_base(), folder / "theirs.log", *SLOTS, "--lora-modules", *modules, environ=theirs)
        )
        costs = first_answers([plugin, other], names)
        print(json.dumps({"first answer, ms": {
            who: {"median": round(statistics.median(c), 1), "all": [round(x, 1) for x in c]}
            for who, c in zip(("adapterhub", "lora_filesystem_resolver"), costs, strict=True)
        }}))  # fmt: skip
        for count in (1, 2, 8):
            rates: dict[str, list[float]] = {"adapterhub": [], "--lora-modules": []}
            for _ in range(ROUNDS):
                rates["adapterhub"].append(tokens_per_second(plugin, names[:count]))
                rates["--lora-modules"].append(tokens_per_second(other, [f"m{at}" for at in range(count)]))
            print(json.dumps({f"tokens/s, {count} adapters": {
                who: round(statistics.median(r), 1) for who, r in rates.items()
            }}), flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
