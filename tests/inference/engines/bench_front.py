"""What the front of llama.cpp's server adds to a request: the same requests to it and to the engine itself, in turns.

    python -m tests.inference.engines.bench_front --requests 200 --at-once 8

Needs ADAPTERHUB_LLAMA_SERVER; `python -m tests.engines` builds the program.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.inference.engines.served_library import make_served_library
from tests.inference.engines.servers import adapt_serve
from tests.inference.engines.variants import SMALL
from tests.support.llama_cpp import smollm2_gguf


def measured(client: httpx.Client, url: str, count: int, at_once: int) -> tuple[list[float], float]:
    """The seconds to the first byte of each answer, sorted, and the requests a second."""

    def one(at: int) -> float:
        body = {"prompt": f"{at}", "max_tokens": 1, "temperature": 0, "stream": True, "lora": [], "cache_prompt": False}
        if url != "http://engine":
            body = {key: value for key, value in body.items() if key not in {"lora", "cache_prompt"}}
        began = time.perf_counter()
        with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
            pieces = answer.iter_raw()
            next(pieces)
            seconds = time.perf_counter() - began
            for _ in pieces:
                pass
        return seconds

    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as threads:
        seconds = sorted(threads.map(one, range(count)))
    return seconds, count / (time.perf_counter() - began)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the median and the 99th percentile of both, and the requests a second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200, help="in each turn")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        made = make_served_library(Path(folder))
        made.add("plain", SMALL)
        program = os.environ["ADAPTERHUB_LLAMA_SERVER"]
        chosen = ["--base", "smol", "--engine", "llama.cpp", "--gguf", str(smollm2_gguf()), "--llama-server", program]
        flags = "--ctx-size 4096 --threads 1"
        chosen += ["--slots", str(given.at_once)]
        with adapt_serve(made.home, Path(folder, "log"), "plain", *chosen, engine_args=flags) as server:
            command = Path(f"/proc/{server.pid}/cmdline").read_bytes().decode().split("\0")
            socket = command[len(command) - 1 - command[::-1].index("--host") + 1]
            direct = httpx.Client(transport=httpx.HTTPTransport(uds=socket), timeout=600)
            front = httpx.Client(timeout=600, trust_env=False)
            for client, url in ((direct, "http://engine"), (front, server.url)):
                measured(client, url, 20, given.at_once)
            rows = []
            for turn in range(given.turns):
                for name, client, url in (("engine", direct, "http://engine"), ("front", front, server.url)):
                    seconds, a_second = measured(client, url, given.requests, given.at_once)
                    rows.append(
                        {
                            "turn": turn,
                            "asked": name,
                            "median_ms": round(1000 * statistics.median(seconds), 2),
                            "p99_ms": round(1000 * seconds[int(0.99 * len(seconds))], 2),
                            "requests_a_second": round(a_second, 1),
                        }
                    )
    for row in rows:
        print(json.dumps(row))  # noqa: T201 - its report


if __name__ == "__main__":
    main()
