"""What HEAD of a file costs beside an empty route of FastAPI, by one server or several, on SQLite or PostgreSQL.

    python -m tests.bench.bench_head [--builds 10000] [--servers 2] [--postgresql] [--repeats 1000]

Each server has a client of its own, which sends one request after the other; all clients send at once. Several servers
share PostgreSQL; on SQLite a second server is refused. As many servers answer the empty route, in turns, and the least
of the rounds counts. CPU is that of the servers; a second figure adds PostgreSQL's own.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from adapterhub_registry.access.tokens import Tokens
from adapterhub_registry.database.db import Database
from sqlalchemy import func, select

from tests.bench.bench_listings import EMPTY, requests, serving
from tests.bench.bench_pages import cpu_s
from tests.bench.bench_registry_scale import fill
from tests.registry.shared_servers import postgres

ROUNDS = 6


def rate(clients: list[httpx.Client], method: str, paths: list[str]) -> float:
    """Requests a second that all clients together send."""

    def send(client: httpx.Client, mine: list[str]) -> None:
        for path in mine:
            client.request(method, path).raise_for_status()

    start = time.perf_counter()
    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(send, clients, [paths] * len(clients)))
    return len(clients) * len(paths) / (time.perf_counter() - start)


def first_of(backend: int) -> int:
    """The number of PostgreSQL's first process, by that of a process that serves a connection."""
    return int(Path(f"/proc/{backend}/stat").read_text().rpartition(")")[2].split()[1])


def backends_s(first: int | None) -> float:
    """The CPU seconds of PostgreSQL's processes, by the number of the first."""
    return (
        0.0
        if first is None
        else sum(map(cpu_s, map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())))
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--builds", type=int, default=10_000)
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--postgresql", action="store_true")
    parser.add_argument("--repeats", type=int, default=1000)
    given = parser.parse_args()
    if given.servers > 1 and not given.postgresql:
        parser.error("several servers share PostgreSQL: add --postgresql")
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url, number = f"sqlite:///{root / 'registry.db'}", None
        if given.postgresql:
            url = stack.enter_context(postgres()).new_database()
        database = Database(url)
        fill(database, given.builds)
        token = Tokens(database).create("reader", "read", namespaces=["readers"])
        if given.postgresql:
            with database.read() as connection:
                number = first_of(connection.scalar(select(func.pg_backend_pid())) or 0)
        database.close()
        command = [sys.executable, "-m", "adapterhub_registry", "--root", str(root), "--database", url]
        command += ["--port", "0", "--no-worker"]

        def started(line: list[str], **headers: str) -> tuple[list[httpx.Client], list[int]]:
            servers = [stack.enter_context(serving(line)) for _ in range(given.servers)]
            clients = [stack.enter_context(httpx.Client(base_url=at, headers=headers)) for at, _ in servers]
            return clients, [pid for _, pid in servers]

        info = iter(requests(given.builds)["model info"], None)
        files = (path.partition("/revision")[0][11:] + "/resolve/v1.0.0/adapter_model.safetensors" for path in info)
        kinds = {
            "an empty route": (*started([sys.executable, "-c", EMPTY]), "GET", itertools.repeat("/empty")),
            "HEAD of a file": (*started(command, Authorization=f"Bearer {token}"), "HEAD", files),
        }
        least = dict.fromkeys(kinds, (float("inf"), float("inf"), 0.0))
        for _ in range(ROUNDS):
            for name, (clients, pids, method, paths) in kinds.items():
                before, beside = sum(map(cpu_s, pids)), backends_s(number)
                speed = rate(clients, method, list(itertools.islice(paths, given.repeats)))
                count = given.repeats * given.servers / 1000
                used, others = (sum(map(cpu_s, pids)) - before) / count, (backends_s(number) - beside) / count
                least[name] = min(least[name], (used, others, speed))
    kept_in = "PostgreSQL" if given.postgresql else "SQLite"
    for name, (used, others, speed) in least.items():
        print(
            f"{name}, {given.servers} x server, {kept_in}: {used:.2f} ms CPU, {others:.2f} of PostgreSQL, {speed:.0f}/s"
        )
    (empty, _, _), (head, others, _) = least.values()
    print(
        f"ratio of CPU: {empty / head:.2f}, with PostgreSQL's {empty / (head + others):.2f}; {os.cpu_count()} cores for all"
    )


if __name__ == "__main__":
    main()
