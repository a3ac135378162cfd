"""What our resolver costs: first answers beside vLLM's own resolver, throughput beside `--lora-modules`.

    python -m tests.inference.engines.bench_vllm [--only first]

Two servers run at the same time, and each measurement of one is followed by the same of the other, so that whatever else
the machine does meets both. Medians, and for first answers the least; one thread.

Both servers find what they load for the first time in the page cache, and neither has it in memory. A first request
waits until both rest: for a second after each answer, vLLM's processes look for work in a loop that takes a core each.
"Loading" is the same without a step of the model: `/tokenize` loads the adapter that it names, too.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from adapterhub.formats.manifest import WEIGHTS_FILE
from adapterhub.inference.serving import AdapterProvider
from tests.inference.engines.__main__ import vllm_python
from tests.inference.engines.served_library import ServedLibrary, make_served_library
from tests.inference.engines.servers import Server, bare_vllm, cpu_seconds, group_of
from tests.inference.engines.variants import LINEAR, PROMPTS
from tests.support.real_base import smollm2_base

FIRST = 16
"""Adapters whose first answer is timed; as many others are timed without a step."""
LOADED = 8
"""Adapters that answer in the throughput runs."""
LATER = 5
"""Answers with which a first one is compared."""
REST_S, AT_REST_S, LONGEST_REST_S = 0.1, 0.005, 10.0
"""Two servers rest that take less than the second in the first, of CPU time; none is waited for longer than the third."""
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


def wait_for_rest(servers: Sequence[Server]) -> None:
    processes = [pid for server in servers for pid in group_of(server.pid)]
    end = time.perf_counter() + LONGEST_REST_S
    while time.perf_counter() < end:
        before = cpu_seconds(processes)
        time.sleep(REST_S)
        if cpu_seconds(processes) - before < AT_REST_S:
            return


def answer(server: Server, name: str) -> None:
    assert server.complete(name, PROMPTS[0], 1).status == 200


def load(server: Server, name: str) -> None:
    assert server.post("/tokenize", {"model": name, "prompt": "a"}).status == 200


def first_answers(
    servers: Sequence[Server], names: Sequence[str], ask: Callable[[Server, str], None] = answer
) -> list[list[float]]:
    """Milliseconds of each adapter's first answer of one token, beyond the median of the next; one list a server."""
    costs: list[list[float]] = [[] for _ in servers]
    for number, name in enumerate(names):
        turns = list(zip(costs, servers, strict=True))
        for cost, server in turns if number % 2 else turns[::-1]:
            wait_for_rest(servers)
            times = []
            for _ in range(1 + LATER):
                start = time.perf_counter()
                ask(server, name)
                times.append(time.perf_counter() - start)
            cost.append(1000 * (times[0] - statistics.median(times[1:])))
    return costs


def told_of(costs: Sequence[Sequence[float]]) -> dict[str, dict[str, object]]:
    return {
        who: {
            "median": round(statistics.median(one), 1),
            "least": round(min(one), 1),
            "all": [round(x, 1) for x in one],
        }
        for who, one in zip(("adapterhub", "lora_filesystem_resolver"), costs, strict=True)
    }


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


def provider_alone(served: ServedLibrary, names: Sequence[str]) -> dict[str, float]:
    """Milliseconds for `AdapterProvider.find` the first time and again, without a server; and the floor of the first."""
    with contextlib.closing(
        AdapterProvider(served.library, served.record, engine="vllm@0.32", max_rank=16)
    ) as provider:
        provider.find(names[0])
        first, again, hashes = [], [], []
        for name in names[1:]:
            for times in (first, again):
                start = time.perf_counter()
                leased = provider.find(name)
                times.append(1000 * (time.perf_counter() - start))
            weights = (leased.folder / WEIGHTS_FILE).read_bytes()
            start = time.perf_counter()
            hashlib.sha256(weights)
            hashes.append(1000 * (time.perf_counter() - start))
    return {
        "median": round(statistics.median(first), 1),
        "least": round(min(first), 1),
        "again": round(statistics.median(again), 3),
        "floor, SHA-256 of the weights": round(min(hashes), 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=("first",), help="first answers alone, without tokens a second")
    only = parser.parse_args().only
    os.environ["ADAPTERHUB_VLLM_PYTHON"] = str(vllm_python())
    with tempfile.TemporaryDirectory(prefix="adapterhub-bench-") as folder, contextlib.ExitStack() as stack:
        served = make_served_library(Path(folder))
        every = [f"adapter-{at}" for at in range(LOADED + 1 + 2 * FIRST)]
        for at, name in enumerate(every):
            served.add(name, CONFIG, seed=at)
        os.sync()  # or the disk is at work while it is measured
        names, opening, new = every[:LOADED], every[LOADED], every[LOADED + 1 :]
        print(json.dumps({"provider alone, ms": provider_alone(served, new)}))
        modules = [f"m{at}={served.folders[one]}" for at, one in enumerate(names)]
        plugin, other = stack.enter_context(side_by_side(served, "--lora-modules", *modules))
        opened = first_answers([plugin, other], [opening])
        print(json.dumps({"the first adapter of all, ms": [round(cost, 1) for [cost] in opened]}))
        for what, ask, part in (("first answer", answer, new[:FIRST]), ("loading", load, new[FIRST:])):
            print(json.dumps({f"{what}, ms": told_of(first_answers([plugin, other], part, ask))}), flush=True)
        if only == "first":
            return 0
        asked = {f"adapters: {count}": (names[:count], [f"m{at}" for at in range(count)]) for count in (1, 2, 8)}
        asked["the base and an adapter"] = (["base", names[0]], ["base", "m0"])
        for what, (our_names, their_names) in asked.items():
            print(json.dumps({what: compare_rates((plugin, our_names), (other, their_names))}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
