"""What it costs to move llama.cpp to another version: the time to the first answer, the answers beside it, the memory.

    python -m tests.inference.engines.bench_swap --moves 10

Needs ADAPTERHUB_LLAMA_SERVER; `python -m tests.engines` builds the program. SmolLM2-135M in float32, two versions of an
adapter of rank 8 on all linear layers, one thread an engine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from adapterhub.core.specs import parse_name
from adapterhub.library.aliasing import point
from adapterhub.library.intake.description import Description
from adapterhub.library.store.catalog import Installed
from tests.inference.engines.served_library import ServedLibrary, make_served_library
from tests.inference.engines.servers import Server, adapt_serve, cpu_seconds
from tests.inference.engines.variants import SERVED, prompt_ids, write_variant
from tests.support.llama_cpp import smollm2_gguf

PROD = "moving@prod"
TOKENS = 16


@contextmanager
def serving(root: Path) -> Iterator[tuple[Server, ServedLibrary, list[Installed]]]:
    served = make_served_library(root)
    for number in range(2):
        folder = write_variant(root / "peft" / f"moving-{number}", SERVED["plain"], seed=31 + number)
        served.library.add(folder, Description(name=parse_name("moving"), version=f"1.{number}"), base=served.record)
    builds = sorted(served.library.builds_named("moving"), key=lambda build: build.manifest.version)
    point(served.library, "prod", [(builds[0], 1.0)])
    words = ["--engine", "llama.cpp", "--gguf", str(smollm2_gguf()), "--alias-ttl", "3600", "--base", "smol"]
    words += ["--llama-server", os.environ["ADAPTERHUB_LLAMA_SERVER"]]
    flags = "--ctx-size 1024 --threads 1"
    with adapt_serve(served.home, root / "log", PROD, *words, engine_args=flags) as server:
        yield server, served, builds


def engines_of(server: Server) -> list[int]:
    """The processes of the engines that run."""
    assert server.parent is not None
    children = Path(f"/proc/{server.parent.pid}/task").glob("*/children")
    return [int(pid) for each in children for pid in each.read_text().split()]


def ask(server: Server, count: int) -> str:
    value = {"model": PROD, "prompt": prompt_ids("The parties agree that"), "n_predict": count, "temperature": 0,
             "ignore_eos": True, "cache_prompt": False}  # fmt: skip
    with server.opened("/completion", value) as answer:
        answer.read()
        return answer.headers["x-adapter-digest"]


def moved(server: Server, served: ServedLibrary, build: Installed) -> tuple[float, float]:
    """Seconds until an answer is of the build, and CPU seconds of the server and of the engine that started."""
    assert server.parent is not None
    serve, before = server.parent.pid, engines_of(server)
    began, spent = time.monotonic(), cpu_seconds([serve])
    point(served.library, "prod", [(build, 1.0)])
    server.parent.send_signal(1)
    while ask(server, 1) != build.manifest.digest:
        time.sleep(0.02)
    new = [pid for pid in engines_of(server) if pid not in before]
    return time.monotonic() - began, cpu_seconds([serve]) - spent + cpu_seconds(new)


def timed(server: Server) -> float:
    """Seconds of an answer."""
    began = time.monotonic()
    ask(server, TOKENS)
    return time.monotonic() - began


def memory_of(pids: Sequence[int]) -> tuple[float, float]:
    """What some processes have in memory together, and what of it is in no file, in MB."""
    found = {"Rss:": 0, "Anonymous:": 0}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(" ")
            if name in found:
                found[name] += int(rest.split()[0])
    return found["Rss:"] / 1000, found["Anonymous:"] / 1000


def settle(server: Server) -> None:
    """Wait until one engine is left."""
    while len(engines_of(server)) != 1:
        time.sleep(0.1)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Move, ask beside it, and hold two generations; print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--moves", type=int, default=10)
    moves = parser.parse_args().moves
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (server, served, builds):
        alone = []
        for number in range(1, moves + 1):
            alone.append(moved(server, served, builds[number % 2]))
            settle(server)
        wall, cpu = (statistics.median(one) for one in zip(*alone, strict=True))
        say(f"first answer by the new version: {wall:.2f} s after the move, {cpu:.2f} s of CPU (medians of {moves})")

        before = [timed(server) for _ in range(2 * moves)]
        over = threading.Event()
        beside: list[float] = []

        def client() -> None:
            while not over.is_set():
                beside.append(timed(server))

        thread = threading.Thread(target=client)
        thread.start()
        for number in range(moves + 1, 2 * moves + 1):
            moved(server, served, builds[number % 2])
        over.set()
        thread.join()
        after = [timed(server) for _ in range(2 * moves)]
        a, b = statistics.median(beside), statistics.median(before + after)
        say(
            f"answers of {TOKENS} tokens: {a:.2f} s while one swap follows the other ({len(beside)}), {b:.2f} s without swaps"
        )

        one = memory_of(engines_of(server))
        held = threading.Thread(target=ask, args=(server, 600))
        held.start()
        time.sleep(1)
        moved(server, served, builds[(2 * moves + 1) % 2])
        two = memory_of(engines_of(server))
        say(
            f"memory of one generation: RSS {one[0]:.0f} MB, {one[1]:.0f} of it in no file; of two: {two[0]:.0f} MB, {two[1]:.0f}"
        )
        held.join()


if __name__ == "__main__":
    main()
