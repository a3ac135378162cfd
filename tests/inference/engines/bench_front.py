"""What the front of llama.cpp's server adds to a request: the same requests to it and to the engine itself, in turns.

    python -m tests.inference.engines.bench_front --requests 200 --at-once 8
    python -m tests.inference.engines.bench_front --stand-in 0.02

Needs ADAPTERHUB_LLAMA_SERVER; `python -m tests.engines` builds the program. `--stand-in` needs nothing: the engine is one
that computes nothing and begins its answers after these seconds, so that other work of the machine hides less.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from adapterhub.inference.serving.llama_cpp.engine import Address
from adapterhub.inference.serving.llama_cpp.names import Names
from adapterhub.inference.serving.llama_cpp.server import Front
from adapterhub.inference.serving.process import free_port

EVENTS = (
    b'data: {"choices": [{"index": 0, "text": "a", "finish_reason": null}], "model": "/srv/base.gguf"}\n\n'
    b'data: {"choices": [], "model": "/srv/base.gguf", "usage": {"prompt_tokens": 1, "completion_tokens": 1}}\n\n'
    b"data: [DONE]\n\n"
)
WHOLE = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{"choices": []}'
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + EVENTS


async def answered(place: Path, wait_s: float) -> None:
    """Answer each request at the socket with the same stream."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = json.loads(await reader.readexactly(int(head.partition(b"content-length:")[2].split()[0])))
        await asyncio.sleep(wait_s)
        writer.write(STREAM if body.get("stream") else WHOLE)
        writer.close()

    server = await asyncio.start_unix_server(answer, place, backlog=512)
    await server.serve_forever()


def run_stand_in(place: Path, wait_s: float) -> None:
    asyncio.run(answered(place, wait_s))


def run_front(port: int, place: Path, slots: int) -> None:
    with Front("127.0.0.1", port, [Address(socket=place)], Names("smol", []), slots=slots):
        time.sleep(3600)


@contextlib.contextmanager
def stand_in(wait_s: float, at_once: int) -> Iterator[tuple[Path, int]]:
    """The socket of an engine that computes nothing, and the port of a front before it, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        place, port = Path(folder, "engine.sock"), free_port("127.0.0.1")
        start = multiprocessing.get_context("spawn").Process
        running = [
            start(target=run_stand_in, args=(place, wait_s)),
            start(target=run_front, args=(port, place, at_once)),
        ]
        try:
            for one in running:
                one.start()
                while not place.exists():
                    time.sleep(0.05)
            while not asyncio.run(listens(port)):
                assert running[1].is_alive()
                time.sleep(0.1)
            yield place, port
        finally:
            for one in running:
                one.kill()


@contextlib.contextmanager
def real(at_once: int) -> Iterator[tuple[Path, int]]:
    """The socket of llama.cpp's server, and the port of `adapt serve` before it."""
    from tests.inference.engines.served_library import make_served_library
    from tests.inference.engines.servers import adapt_serve
    from tests.inference.engines.variants import SMALL
    from tests.support.llama_cpp import smollm2_gguf

    with tempfile.TemporaryDirectory() as folder:
        made = make_served_library(Path(folder))
        made.add("plain", SMALL)
        program = os.environ["ADAPTERHUB_LLAMA_SERVER"]
        chosen = ["--base", "smol", "--engine", "llama.cpp", "--gguf", str(smollm2_gguf()), "--llama-server", program]
        flags = "--ctx-size 4096 --threads 1"
        chosen += ["--slots", str(at_once)]
        with adapt_serve(made.home, Path(folder, "log"), "plain", *chosen, engine_args=flags) as server:
            command = Path(f"/proc/{server.pid}/cmdline").read_bytes().decode().split("\0")
            place = command[len(command) - 1 - command[::-1].index("--host") + 1]
            yield Path(place), int(server.url.rpartition(":")[2])


async def listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        (await asyncio.open_connection("127.0.0.1", port))[1].close()
        return True
    return False


async def measured(where: Path | int, count: int, at_once: int) -> tuple[list[float], float]:
    """The seconds to the first event of each answer, sorted, and the requests a second."""
    seconds = list[float]()

    async def client(numbers: Iterator[int]) -> None:
        for at in numbers:
            body = {"prompt": f"{at}", "max_tokens": 1, "temperature": 0, "stream": True}
            data = json.dumps(body | ({"lora": [], "cache_prompt": False} if isinstance(where, Path) else {})).encode()
            head = (
                "POST /v1/completions HTTP/1.1\r\nHost: engine\r\nConnection: close\r\nContent-Type: application/json"
            )
            began = time.perf_counter()
            if isinstance(where, Path):
                reader, writer = await asyncio.open_unix_connection(where)
            else:
                reader, writer = await asyncio.open_connection("127.0.0.1", where)
            writer.write(f"{head}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b"data: ")
            seconds.append(time.perf_counter() - began)
            assert b"[DONE]" in await reader.read()
            writer.close()

    began, numbers = time.perf_counter(), iter(range(count))
    await asyncio.gather(*(client(numbers) for _ in range(at_once)))
    return sorted(seconds), count / (time.perf_counter() - began)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the median and the 99th percentile of both, and the requests a second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200, help="in each turn")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--stand-in", type=float, metavar="S", help="an engine that begins its answers after S seconds")
    given = parser.parse_args(arguments)
    opened = real(given.at_once) if given.stand_in is None else stand_in(given.stand_in, given.at_once)
    with opened as (place, port):
        for where in (place, port):
            asyncio.run(measured(where, 20, given.at_once))
        rows = []
        for turn in range(given.turns):
            for name, where in (("engine", place), ("front", port)):
                seconds, a_second = asyncio.run(measured(where, given.requests, given.at_once))
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
