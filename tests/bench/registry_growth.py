"""What each route and page of a registry costs, over numbers of builds: CPU of the servers, time at the client, and how it grows.

A part of `bench_registry_scale`. The filled databases stay in `~/.cache/adapterhub-tests/scale`, for the next run. CPU is
that of the server's processes, and of PostgreSQL's, for one request of one client, while nothing else asks. Times are
taken once more while pushes arrive.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import psutil
from adapterhub_registry.app import open_registry
from adapterhub_registry.settings import load_settings

from tests.bench.registry_filling import Shape, fill, store_small_files
from tests.registry.asked_at_size import Asked, requests, tokens_in
from tests.registry.pushing import Push
from tests.registry.shared_servers import ROOT, kept_postgres

KEPT: Final = Path.home() / ".cache/adapterhub-tests/scale"
PUSHES_A_SECOND: Final = 5
READY: Final = "filled"
CALM_S: Final = 0.02


@dataclass
class Cost:
    """One request: milliseconds of CPU, and those on the wall, quiet and while pushes arrive."""

    cpu_ms: float = 0.0
    quiet_ms: list[float] = field(default_factory=list)
    busy_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Running:
    """The servers of one filled registry, all their processes, and tokens."""

    urls: Sequence[str]
    processes: Sequence[psutil.Process]
    tokens: dict[str, str]
    first: int = 2
    """So many requests of a kind are not counted. PostgreSQL plans a statement for its values five times."""
    _spent: dict[int, float] = field(default_factory=dict)

    def cpu_s(self) -> float:
        """The CPU of all of them so far, of the processes and threads that have ended, too."""
        for one in self.processes:
            for process in (one, *one.children(recursive=True)):
                self._spent.update(_cpu_of_threads(process))
        return sum(self._spent.values())

    def calm(self) -> Running:
        """Wait for what a start does beside the first requests."""
        before = float("-inf")
        while self.cpu_s() - before > CALM_S:
            before = self.cpu_s()
            time.sleep(1)
        return self

    def headers(self, one: Asked) -> dict[str, str]:
        """The token of the one who asks."""
        return {"Authorization": f"Bearer {self.tokens[one.who]}"} if one.who != "anyone" else {}


def code_of(checkout: Path) -> dict[str, str]:
    """The environment of a process that runs the code of a checkout."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(checkout), str(checkout / "registry")])}


def _cpu_of_threads(process: psutil.Process) -> Iterator[tuple[int, float]]:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                yield int(task.name), int((task / "schedstat").read_text().split()[0]) / 1e9


@contextlib.contextmanager
def filled(kind: str, builds: int) -> Iterator[Running]:
    """A registry of so many builds on SQLite with one server, or on PostgreSQL with two; it is filled where it is not."""
    root = KEPT / f"{kind}-{builds}"
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(kept_postgres(root / "pg")) if kind == "postgres" else None
        files = root / "files" if url else root
        registry = open_registry(load_settings(files, database_url=url))
        if not (root / READY).exists():
            began = time.perf_counter()
            fill(registry.db, Shape(builds), store_small_files(registry.blobs))
            (root / READY).touch()
            print(f"{builds:,} builds on {kind} written in {time.perf_counter() - began:.0f} s", flush=True)
        tokens = tokens_in(registry) | {"pusher": registry.tokens.create("pusher", "write")}
        registry.db.close()
        servers = [stack.enter_context(serving(files, url)) for _ in range(2 if url else 1)]
        every = [psutil.Process(pid) for _, pid in servers]
        if url:
            every.append(psutil.Process(int((root / "pg/postmaster.pid").read_text().split()[0])))
        yield Running([address for address, _ in servers], every, tokens, first=12 if url else 2).calm()


@contextlib.contextmanager
def serving(root: Path, database: str | None = None, checkout: Path = ROOT) -> Iterator[tuple[str, int]]:
    """The address and process of a server with the code of a checkout."""
    command = [sys.executable, "-m", "adapterhub_registry", "--root", str(root), "--port", "0", "--no-worker"]
    command += ["--database", database] if database else []
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=code_of(checkout), cwd=checkout)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().rpartition(": ")[2].strip(), server.pid
    finally:
        server.terminate()
        server.wait(60)


def measure(running: Running, shape: Shape, repeats: int, only: str = "") -> dict[str, Cost]:
    """What each request costs."""
    every = [one for one in requests(shape) if only in one.name]
    costs = {one.name: Cost() for one in every}
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=url, timeout=60)) for url in running.urls]
        for one in every:
            _ask(running, clients, one, running.first)  # statements are prepared, and pages of the disk read
            before = running.cpu_s()
            costs[one.name].quiet_ms = _ask(running, clients, one, repeats)
            costs[one.name].cpu_ms = (running.cpu_s() - before) * 1000 / repeats
        with _pushing(running):
            for one in every:
                costs[one.name].busy_ms = _ask(running, clients, one, repeats)
    return costs


def _ask(running: Running, clients: Sequence[httpx.Client], one: Asked, times: int) -> list[float]:
    headers = running.headers(one)
    spent = []
    for at in range(times):
        path, client = one.path(), clients[at % len(clients)]
        began = time.perf_counter()
        answer = client.request(one.method, path, headers=headers)
        spent.append((time.perf_counter() - began) * 1000)
        assert answer.status_code in {200, 302, 404}, f"{path}: {answer.status_code} {answer.text[:200]}"
    return spent


@contextlib.contextmanager
def _pushing(running: Running) -> Iterator[None]:
    """Push and release five small adapters a second while the block runs."""
    stopped, numbers = threading.Event(), itertools.count(time.time_ns())
    late: list[float] = []

    def push(client: httpx.Client) -> None:
        number = next(numbers)
        Push(repo=f"pusher/p-{number}", weights=random.randbytes(1000)).run(client)

    def run() -> None:
        headers = {"Authorization": f"Bearer {running.tokens['pusher']}"}
        with httpx.Client(base_url=running.urls[-1], timeout=60, headers=headers) as client:
            due = time.perf_counter()
            while not stopped.is_set():
                push(client)
                due += 1 / PUSHES_A_SECOND
                late.append(max(time.perf_counter() - due, 0.0))
                stopped.wait(max(due - time.perf_counter(), 0))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        print(f"{len(late)} pushes; the last was {late[-1] if late else 0:.1f} s late", flush=True)


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """The slope of a line through the logarithms."""
    xs, ys = [math.log(one) for one in sizes], [math.log(max(one, 0.01)) for one in costs]
    return statistics.linear_regression(xs, ys).slope if len(xs) > 1 else 0.0


def p99(times: Sequence[float]) -> float:
    ordered = sorted(times)
    return ordered[min(math.ceil(len(ordered) * 0.99), len(ordered)) - 1]


def growth(kinds: Sequence[str], sizes: Sequence[int], repeats: int, only: str = "") -> None:
    """Measure and print a table for each kind of database."""
    for kind in kinds:
        found: dict[int, dict[str, Cost]] = {}
        for size in sizes:
            with filled(kind, size) as running:
                found[size] = measure(running, Shape(size), repeats, only)
            (KEPT / f"{kind}-{size}.json").write_text(
                json.dumps({name: [c.cpu_ms, p99(c.quiet_ms), p99(c.busy_ms)] for name, c in found[size].items()})
            )
        last = found[sizes[-1]]
        print(
            f"{kind}: request, CPU ms at {', '.join(f'{one:,}' for one in sizes)}, exponent, p50, p99, p99 with pushes"
        )
        for name, cost in sorted(last.items(), key=lambda item: -item[1].cpu_ms):
            cpu = [found[size][name].cpu_ms for size in sizes]
            print(
                f"{name:48} {' '.join(f'{one:7.2f}' for one in cpu)} {exponent(sizes, cpu):6.2f} "
                f"{statistics.median(cost.quiet_ms):7.1f} {p99(cost.quiet_ms):7.1f} {p99(cost.busy_ms):7.1f}"
            )
