"""A registry on loopback under a training that publishes each step: what a push and a read cost with many versions.

    python -m tests.bench.bench_steps [--versions 1 100 1000 10000] [--pushes 8] [--megabytes 1] [--files 10000] [--postgresql]

CPU milliseconds of a push in a process that is running, on both sides, the least of some; of the server alone for
reads; and the seconds of one commit of many small files. Bounds: a push at most 60 ms on both sides together, and no
growth with the versions (an exponent of at most 0.1). With `--postgresql`, the registry keeps its records there;
the CPU of PostgreSQL itself is not counted.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from adapterhub_registry.database.db import Database
from adapterhub_registry.storage.blobs import DiskBlobs

from tests.bench.bench_remote import make_adapter, registry
from tests.bench.harness import given, told
from tests.registry.many_versions import add_versions
from tests.registry.shared_servers import postgres

REPO = "acme/agent"
PAUSE_S = 0.3

_PUSHING = """
import sys, time
from adapterhub import Library
folder, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
library = Library.default()
for number in range(count):
    version = f"1.0.{first + number}"
    library.add(f"{folder}/{number}", name="agent", version=version)
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.process_time()
    library.push(f"agent=={version}", to="acme/agent")
    print(time.process_time() - start, flush=True)
    sys.stdin.readline()
"""
"""Adds and pushes versions; each push begins with a line from the benchmark, which then looks at the server's clock."""


def cpu_s(pid: int) -> float:
    """The CPU seconds of a process so far, of all its threads."""
    return time.clock_gettime((~pid << 3) | 2)  # the clock of a process; see clock_getcpuclockid(3)


@contextmanager
def pushing(folder: Path, environ: dict[str, str], first: int, count: int) -> Iterator[subprocess.Popen[str]]:
    """A client that pushes."""
    command = [sys.executable, "-c", _PUSHING, str(folder), str(first), str(count)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, env=environ, **pipes)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


def push_steps(folder: Path, pid: int, environ: dict[str, str], first: int, count: int) -> tuple[float, float]:
    """The least CPU milliseconds of the client and of the server for one push."""
    ours, theirs = [], []
    with pushing(folder, environ, first, count) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(count):
            process.stdout.readline()
            time.sleep(PAUSE_S)  # until the server has read the weights of the last push
            before = cpu_s(pid)
            process.stdin.write("\n")
            process.stdin.flush()
            ours.append(float(process.stdout.readline()) * 1000)
            theirs.append((cpu_s(pid) - before) * 1000)
            process.stdin.write("\n")
            process.stdin.flush()
    return min(ours), min(theirs)


def least_s(pid: int, work: Callable[[], object], times: int = 10) -> float:
    """The server's CPU seconds for a request, the least of some."""
    found = []
    for _ in range(times):
        before = cpu_s(pid)
        work()
        found.append(cpu_s(pid) - before)
    return min(found)


def many_versions(folder: Path, levels: list[int], pushes: int, megabytes: float, *, on_postgresql: bool) -> None:
    """Pushes to one repository, and reads of it, while its versions grow."""
    root = folder / "registry"
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(postgres()).new_database() if on_postgresql else f"sqlite:///{root}/registry.db"
        url, token, pid = stack.enter_context(registry(root, *(["--database", database] if on_postgresql else [])))
        own = {"ADAPTERHUB_REMOTE": url, "ADAPTERHUB_TOKEN": token, "HF_ENDPOINT": url, "HF_TOKEN": token}
        environ = os.environ | own | {"HF_HUB_OFFLINE": "0", "ADAPTERHUB_HOME": str(folder / "home")}
        client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"})
        api = f"/api/adapt/v1/adapters/{REPO}"
        reads = {
            "page of versions": f"{api}/versions?limit=20",
            "one version": f"{api}/versions/1.0.1",
            "alias": f"/api/adapt/v1/aliases/{REPO}/prod",
            "page of the adapter": f"/{REPO}",
            "file at a tag": f"/{REPO}/resolve/v1.0.1/adapterhub.json",
        }
        curves: dict[str, dict[int, float]] = {what: {} for what in ("push, both sides", "alias moves", *reads)}
        there = first = 0
        for level in levels:
            if first and level > there:
                add_versions(Database(database), DiskBlobs(root), REPO, range(there, level))
                there = level
            for number in range(pushes):
                shutil.rmtree(folder / "new" / str(number), ignore_errors=True)
                make_adapter(folder / "new" / str(number), megabytes, first + number)
            ours, theirs = push_steps(folder / "new", pid, environ, first, pushes)
            first += pushes
            print(f"{level:,} versions: push of {megabytes:g} MB {ours + theirs:.0f} ms CPU "
                  f"(client {ours:.0f}, server {theirs:.0f}; at most 60)")  # fmt: skip
            curves["push, both sides"][level] = (ours + theirs) / 1000
            turn = iter(range(1 << 30))

            def move(turn: Iterator[int] = turn) -> None:
                targets = {"targets": [{"version": f"1.0.{next(turn) % 2}"}]}
                client.post(f"{api}/aliases/prod", json=targets).raise_for_status()

            move()
            curves["alias moves"][level] = least_s(pid, move)
            for what, path in reads.items():
                curves[what][level] = least_s(pid, lambda path=path: client.get(path).raise_for_status())  # type: ignore[misc]
        for what, curve in curves.items():
            print(told(f"{what}, versions, CPU", curve))


def many_files(folder: Path, count: int) -> None:
    """One commit of small files, on the disk of the temporary folder."""
    with registry(folder / "registry") as (url, token, pid):
        client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=600)
        client.post("/api/repos/create", json={"organization": "acme", "name": "many"}).raise_for_status()
        lines: list[dict[str, object]] = [{"key": "header", "value": {"summary": "x"}}]
        for number in range(count):
            content = base64.b64encode(os.urandom(300)).decode()
            value = {"path": f"d{number % 100}/{number}.txt", "content": content, "encoding": "base64"}
            lines.append({"key": "file", "value": value})
        body = "\n".join(map(json.dumps, lines))
        before, start = cpu_s(pid), time.perf_counter()
        client.post("/api/models/acme/many/commit/main", content=body).raise_for_status()
        print(f"commit of {count:,} files: {time.perf_counter() - start:.1f} s, {cpu_s(pid) - before:.1f} s CPU")


def main() -> None:
    """Measure and print."""
    options = given(__doc__, versions=[1], pushes=8, megabytes=1.0, files=10_000, postgresql=False)
    levels = options.versions if options.versions != [1] else [1, 100, 1000, 10_000]
    with tempfile.TemporaryDirectory() as folder:
        many_versions(Path(folder), levels, options.pushes, options.megabytes, on_postgresql=options.postgresql)
    with tempfile.TemporaryDirectory() as folder:
        many_files(Path(folder), options.files)


if __name__ == "__main__":
    main()
