"""What our resolver costs: first answers beside vLLM's own resolver, throughput beside `--lora-modules`.

    python -m tests.inference.engines.bench_vllm [--only first]

Two servers run at the same time, and each measurement of one is followed by the same of the other, so that whatever else
the machine does meets both. Medians, and for first answers the least; one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from adapterhub.inference.serving import AdapterProvider
from tests.inference.engines.__main__ import vllm_python
from tests.inference.engines.served_library import ServedLibrary, make_served_library
from tests.inference.engines.servers import Server, bare_vllm, cpu_seconds, group_of
from tests.inference.engines.variants import LINEAR, PROMPTS
from tests.support.real_base import smollm2_base

FIRST = 16
"""Adapters whose first answer is timed."""
LOADED = 8
"""Adapters that answer in the throughput runs."""
CONFIG = {"r": 16, "lora_alpha": 32, "target_modules": LINEAR}
"""19.6 MB in float32."""
SLOTS = ("--max-lora-rank", "16", "--max-loras", "8", "--max-cpu-loras", "64")
TOKENS = 24
ROUNDS = 6


@contextlib.contextmanager
def side_by_side(served: ServedLibrary, *more: str) -> Iterator[tuple[Server, Server]]:
    """vLLM with our plugin, and vLLM with its own resolver on what PEFT saved, to which `more` goes."""
    ours = {"VLLM_PLUGINS": "adapterhub", "ADAPTERHUB_HOME": str(served.home)}
    theirs = {"VLLM_PLUGINS": "lora_filesystem_resolver", "VLLM_LORA_RESOLVER_CACHE_DIR": str(served.root / "peft")}
    with (
        bare_vllm(smollm2_base(), served.root / "ours.log", *SLOTS, environ=ours) as plugin,
        bare_vllm(smollm2_base(), served.root / "theirs.log", *SLOTS, *more, environ=theirs) as other,
    ):
        yield plugin, other


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


@dataclass(frozen=True)
class Rate:
    tokens_a_second: float
    cpu_ms_a_token: float
    """Of all processes of the engine; other work on the machine disturbs it least."""


def rate_of(server: Server, names: Sequence[str]) -> Rate:
    """8 requests at once, spread over `names`."""
    processes = group_of(server.pid)
    start, cpu = time.perf_counter(), cpu_seconds(processes)
    with ThreadPoolExecutor(8) as threads:
        jobs = [(names[at % len(names)], PROMPTS[at % len(PROMPTS)]) for at in range(8)]
        answers = list(threads.map(lambda job: server.complete(*job, TOKENS).tokens, jobs))
    count = sum(map(len, answers))
    return Rate(count / (time.perf_counter() - start), 1000 * (cpu_seconds(processes) - cpu) / count)


def compare_rates(ours: tuple[Server, Sequence[str]], theirs: tuple[Server, Sequence[str]]) -> dict[str, float]:
    """Medians of both, and of the ratios of ours to theirs in each round; who goes first alternates."""
    rounds: list[tuple[Rate, Rate]] = []
    for number in range(ROUNDS + 1):
        if number % 2:
            one = rate_of(*ours)
            rounds.append((one, rate_of(*theirs)))
        else:
            other = rate_of(*theirs)
            rounds.append((rate_of(*ours), other))
    rounds = rounds[1:]  # adapters move into their slots
    median = statistics.median
    return {
        "tokens/s, adapterhub": round(median(our.tokens_a_second for our, _ in rounds), 1),
        "tokens/s, --lora-modules": round(median(their.tokens_a_second for _, their in rounds), 1),
        "ratio": round(median(our.tokens_a_second / their.tokens_a_second for our, their in rounds), 2),
        "CPU ms a token, adapterhub": round(median(our.cpu_ms_a_token for our, _ in rounds), 1),
        "CPU ms a token, --lora-modules": round(median(their.cpu_ms_a_token for _, their in rounds), 1),
        "ratio of CPU": round(median(our.cpu_ms_a_token / their.cpu_ms_a_token for our, their in rounds), 2),
    }


def provider_alone(served: ServedLibrary, names: Sequence[str]) -> tuple[float, float]:
    """Milliseconds for `AdapterProvider.find` the first time and again, without a server."""
    with contextlib.closing(
        AdapterProvider(served.library, served.record, engine="vllm@0.32", max_rank=16)
    ) as provider:
        provider.find(names[0])
        first, again = [], []
        for name in names[1:]:
            for times in (first, again):
                start = time.perf_counter()
                provider.find(name)
                times.append(1000 * (time.perf_counter() - start))
        return statistics.median(first), statistics.median(again)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=("first",), help="first answers alone, without tokens a second")
    only = parser.parse_args().only
    os.environ["ADAPTERHUB_VLLM_PYTHON"] = str(vllm_python())
    with tempfile.TemporaryDirectory(prefix="adapterhub-bench-") as name, contextlib.ExitStack() as stack:
        served = make_served_library(Path(name))
        names = [f"adapter-{at}" for at in range(FIRST)]
        for at, one in enumerate(names):
            served.add(one, CONFIG, seed=at)
        print(json.dumps({"provider alone, ms": provider_alone(served, names)}))
        modules = [f"m{at}={served.folders[one]}" for at, one in enumerate(names[:LOADED])]
        plugin, other = stack.enter_context(side_by_side(served, "--lora-modules", *modules))
        costs = first_answers([plugin, other], names)  # which also loads them, for the rates
        print(json.dumps({"first answer, ms": {
            who: {"median": round(statistics.median(c), 1), "least": round(min(c), 1), "all": [round(x, 1) for x in c]}
            for who, c in zip(("adapterhub", "lora_filesystem_resolver"), costs, strict=True)
        }}), flush=True)  # fmt: skip
        if only == "first":
            return 0
        served = {f"adapters: {count}": (names[:count], [f"m{at}" for at in range(count)]) for count in (1, 2, 8)}
        served["the base and an adapter"] = (["base", names[0]], ["base", "m0"])
        for what, (our_names, their_names) in served.items():
            print(json.dumps({what: compare_rates((plugin, our_names), (other, their_names))}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
