"""What 100,000 builds cost a registry on SQLite: listings, searches, metrics, a history and HEAD of a file, one client.

    python -m tests.bench.bench_listings [--builds 100000 …] [--repeats 200] [--root FOLDER]

The client has the token of a reader, and that of an administrator for metrics. CPU is that of the server's process for
one request; the last number is the CPU of an empty route of FastAPI, divided by it. HEAD and the empty route take
turns, and the least of ten rounds of each counts. Several numbers of builds give the exponent of each request's growth,
in CPU. `--root` keeps the filled registries in a folder, or measures those there. SQLite has no statistics.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
from adapterhub_registry.access.tokens import Tokens
from adapterhub_registry.database.db import Database, commits, repos
from sqlalchemy import select

from tests.bench.bench_pages import ROOT, measured
from tests.bench.bench_registry_scale import BASES, TASKS, digest, fill
from tests.bench.harness import given

LINE = 2000
ROUNDS = 10
EMPTY = """
import socket, uvicorn
from fastapi import FastAPI, Response
app = FastAPI()
app.get("/empty")(lambda: Response())
listener = socket.create_server(("127.0.0.1", 0))
print("empty: http://127.0.0.1:%d" % listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listener])
"""


def requests(builds: int) -> dict[str, Callable[[], str]]:
    """The paths to ask for, by name."""
    draw = random.Random(0)

    def name(n: int) -> str:
        return f"team{n % 500}/{TASKS[(n // BASES) % len(TASKS)]}-{n}"

    def any_name() -> str:
        return name(draw.randrange(builds))

    def tag(kind: str) -> str:
        chosen = {"base": f"base_model:adapter:org/base-{draw.randrange(BASES)}", "rank": "lora-rank:8"}
        return f"filter={chosen.get(kind, f'adapter-task:{draw.choice(TASKS)}')}"

    models, adapters = "/api/models", "/api/adapt/v1/adapters"
    return {
        "newest 20": lambda: f"{models}?limit=20",
        "tag": lambda: f"{models}?limit=20&{tag('base')}",
        "tags, base and task": lambda: f"{models}?limit=20&{tag('base')}&{tag('task')}",
        "tags, base and task by downloads": lambda: f"{models}?limit=20&sort=downloads&{tag('base')}&{tag('task')}",
        "tag by downloads": lambda: f"{models}?limit=20&sort=downloads&{tag('base')}",
        "tags that never meet by downloads": lambda: (
            f"{models}?limit=20&sort=downloads&filter=lora-rank:4&{tag('rank')}"
        ),
        "tags that never meet": lambda: f"{models}?limit=20&filter=lora-rank:4&{tag('rank')}",
        "tag of one": lambda: f"{models}?limit=20&filter=adapter-name:{any_name().partition('/')[2]}",
        "tag of none": lambda: f"{models}?limit=20&filter=zebra",
        "pipeline tag": lambda: f"{models}?limit=20&pipeline_tag={draw.choice(TASKS)}",
        "author": lambda: f"{models}?limit=20&author=team{draw.randrange(500)}",
        "search, a task": lambda: f"{models}?limit=20&search={draw.choice(TASKS)}",
        "search, a name": lambda: f"{models}?limit=20&search={any_name().partition('/')[2]}",
        "search, two words": lambda: f"{models}?limit=20&search={draw.choice(TASKS)}+{draw.randrange(100, 1000)}",
        "search, none": lambda: f"{models}?limit=20&search=zebra",
        "search, two letters of few": lambda: f"{models}?limit=20&search=7{draw.choice('-_')}",
        "search, a letter of none": lambda: f"{models}?limit=20&search=j",
        "full=true, 20": lambda: f"{models}?limit=20&full=true",
        "full=true, 100": lambda: f"{models}?full=true",
        "adapters, newest": lambda: f"{adapters}?limit=20",
        "adapters, base and rank": lambda: (
            f"{adapters}?limit=20&base_sha256={digest(f'base {draw.randrange(BASES)}')}&rank_max=16"
        ),
        "adapters, words": lambda: f"{adapters}?limit=20&q={draw.choice(TASKS)}+{draw.randrange(100, 1000)}",
        "adapters, words that never meet": lambda: f"{adapters}?limit=20&q=translate-+legal-",
        "adapters, two letters of few": lambda: f"{adapters}?limit=20&q=7{draw.choice('-_')}",
        "adapters, a letter of none": lambda: f"{adapters}?limit=20&q=j",
        "metrics": lambda: "/api/adapt/v1/metrics",
        "model info": lambda: f"{models}/{any_name()}/revision/v1.0.0",
        f"50 of {LINE} commits": lambda: f"{models}/{name(0)}/commits/main",
    }


def add_line(database: Database) -> None:
    """Give the first repository a history of `LINE` commits."""
    with database.begin() as connection:
        row = connection.execute(select(repos).where(repos.c.id == 1)).one()
        head = connection.execute(select(commits).where(commits.c.repo_id == 1)).one()
        ids = [digest(f"line {n}")[:40] for n in range(LINE - 1)]
        facts = dict(head._mapping)
        line = [facts | {"id": one, "parent": before} for one, before in zip(ids, [None, *ids], strict=False)]
        connection.execute(commits.insert(), line)
        connection.execute(commits.update().where(commits.c.id == row.head).values(parent=ids[-1]))


@contextlib.contextmanager
def serving(command: list[str]) -> Iterator[tuple[str, int]]:
    """The address and the number of the process of a server that prints its address."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "registry")])
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert server.stdout is not None
    try:
        yield server.stdout.readline().partition(": ")[2].strip(), server.pid
    finally:
        server.terminate()
        server.wait(20)


def measure(root: Path, builds: int, repeats: int, only: str) -> dict[str, float]:
    """Fill a registry unless it is there, serve it, measure and print; CPU ms of each request."""
    found: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        is_new = not (root / "registry.db").exists()
        root.mkdir(parents=True, exist_ok=True)
        database = Database(f"sqlite:///{root / 'registry.db'}")
        if is_new:
            fill(database, builds)
            add_line(database)
        tokens = Tokens(database)
        reader, admin = tokens.create("reader", "read", namespaces=["readers"]), tokens.create("bench", "admin")
        database.close()
        empty_url, empty_pid = stack.enter_context(serving([sys.executable, "-c", EMPTY]))
        command = [sys.executable, "-m", "adapterhub_registry", "--root", str(root), "--port", "0", "--no-worker"]
        url, pid = stack.enter_context(serving(command))

        def client(address: str, token: str = "") -> httpx.Client:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            return stack.enter_context(httpx.Client(base_url=address, headers=headers, timeout=60))

        plain, reading, administering = client(empty_url), client(url, reader), client(url, admin)
        weights = "resolve/v1.0.0/adapter_model.safetensors"
        infos = iter(requests(builds)["model info"], None)
        files = (path.partition("revision")[0][12:] + weights for path in infos)
        empties, heads = [], []
        for _ in range(ROUNDS):
            empties.append(measured(plain, empty_pid, iter(lambda: "/empty", None), 5 * repeats))
            heads.append(measured(reading, pid, files, 5 * repeats, method="HEAD"))
        empty, head = (min(rounds, key=lambda one: one[2]) for rounds in (empties, heads))
        print(f"an empty route of FastAPI: p50 {empty[0]:.1f} ms  p99 {empty[1]:.1f} ms  CPU {empty[2]:.2f} ms")
        if only in "HEAD of a file":
            _print("HEAD of a file", head, empty[2])
            found["HEAD of a file"] = head[2]
        for name, path in requests(builds).items():
            if only in name:
                asking = administering if name == "metrics" else reading
                one = measured(asking, pid, iter(path, None), repeats)
                _print(name, one, empty[2])
                found[name] = one[2]
    return found


def main() -> None:
    """Measure registries of each size, and the growth between them."""
    asked = given(__doc__, builds=[100_000], repeats=200, root=Path, only="")
    with contextlib.ExitStack() as stack:
        root = asked.root or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        curves: dict[int, dict[str, float]] = {}
        for builds in asked.builds:
            print(f"{builds:,} builds", flush=True)
            curves[builds] = measure(root / str(builds), builds, asked.repeats, asked.only)
    if len(curves) > 1:
        sizes = np.log(list(curves))
        for name in curves[asked.builds[0]]:
            spent = np.log([max(curves[builds][name], 0.01) for builds in curves])
            print(f"growth, {name}: exponent {np.polyfit(sizes, spent, 1)[0]:.2f}")


def _print(name: str, found: tuple[float, float, float], empty: float) -> None:
    p50, p99, cpu = found
    print(
        f"{name}: p50 {p50:.1f} ms  p99 {p99:.1f} ms  CPU {cpu:.2f} ms  empty route / this {empty / cpu:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
