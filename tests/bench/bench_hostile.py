"""What hostile requests cost a registry: the longest wait for its health meanwhile, and its peak memory over idle.

    python -m tests.bench.bench_hostile [--at-once 40]

Each case has a server of its own, started as users start it. Health is asked ten times a second by another process's
connection. Needs Linux, which tells the peak memory of a process.
"""

from __future__ import annotations

import base64
import json
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from tests.attacks.test_registry_trees import Memory
from tests.bench.harness import given
from tests.registry.conftest import Served, serving
from tests.registry.pushing import CONFIG

JSON_BYTES = 4 << 20
FILE_BYTES = 9_900_000
HEALTH = "/api/adapt/v1/healthz"
CREATED = "/api/repos/create"


def many_values(size_bytes: int) -> bytes:
    """A JSON list of empty objects."""
    return b"[" + b",".join([b"{}"] * (size_bytes // 3 - 1)) + b"]"


def line_of(path: str, content: bytes) -> bytes:
    """A commit of one file."""
    file = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
    lines = {"key": "header", "value": {"summary": "\U0001f600"}}, {"key": "file", "value": file}
    return b"\n".join(json.dumps(line, ensure_ascii=False).encode() for line in lines)


@contextmanager
def asking_health(url: str) -> Iterator[list[float]]:
    """How long the server took to say how it is, asked all the time."""
    waits, is_over = list[float](), threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=600) as client:
            while not is_over.wait(0.1):
                start = time.perf_counter()
                client.get(url + HEALTH).raise_for_status()
                waits.append(time.perf_counter() - start)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield waits
    finally:
        is_over.set()
        thread.join()


@contextmanager
def silent_receiver() -> Iterator[int]:
    """The port of a receiver that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:
        yield server.getsockname()[1]


def send(server: Served, path: str, body: bytes, *, token: bool, at_once: int) -> list[int]:
    """The statuses of as many equal requests at the same time."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {server.token}"} if token else {})

    def one(_: int) -> int:
        try:
            return httpx.post(server.url + path, content=body, headers=headers, timeout=600).status_code
        except httpx.WriteError:  # refused, and the connection closed, before the body was sent
            return 0

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, range(at_once)))


def cases(at_once: int) -> dict[str, Callable[[Served], list[int]]]:
    """The attacks by their names; each returns the statuses of its requests."""
    values, commit = many_values(JSON_BYTES), "/api/models/acme/x/commit/main"
    hostile_line = b'{"key":"file","value":' + many_values(FILE_BYTES * 4 // 3) + b"}"
    manifest = b'{"schema":"adapterhub/1","files":' + many_values(FILE_BYTES) + b"}"

    def tests_of_webhooks(server: Served) -> list[int]:
        with silent_receiver() as port:
            head = {"Authorization": f"Bearer {server.token}"}
            asked = {"scope": "acme", "url": f"http://127.0.0.1:{port}/", "types": []}
            made = httpx.post(f"{server.url}/api/adapt/v1/webhooks", json=asked, headers=head).raise_for_status().json()
            path = f"/api/adapt/v1/webhooks/{made['webhook']['id']}/test"
            return send(server, path, b"", token=True, at_once=2 * at_once)

    return {
        f"{at_once} x 4 MiB of {{}}, no token": lambda s: send(s, CREATED, values, token=False, at_once=at_once),
        f"{at_once} x 4 MiB of {{}}, a token": lambda s: send(s, CREATED, values, token=True, at_once=at_once),
        "a commit line of 13 MB, a file": lambda s: send(
            s, commit, line_of("big.bin", bytes(FILE_BYTES)), token=True, at_once=1
        ),
        "a commit line of 13 MB of {}": lambda s: send(s, commit, hostile_line, token=True, at_once=1),
        "a manifest of 9.9 MB of {}": lambda s: send(
            s, commit, line_of("adapterhub.json", manifest), token=True, at_once=1
        ),
        f"{2 * at_once} tests of a silent webhook": tests_of_webhooks,
    }


def measured(attack: Callable[[Served], list[int]]) -> str:
    """One line: the longest wait for health, the peak memory over idle, and how the attacker was answered."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(serving(folder, (), "--webhook-network", "127.0.0.0/8"))
        head = {"Authorization": f"Bearer {server.token}"}
        httpx.post(f"{server.url}{CREATED}", json={"organization": "acme", "name": "x"}, headers=head)
        config = line_of("adapter_config.json", json.dumps(CONFIG).encode())  # so that a manifest is read
        httpx.post(f"{server.url}/api/models/acme/x/commit/main", content=config, headers=head).raise_for_status()
        memory, statuses = Memory(server.pid), list[int]()
        with asking_health(server.url) as waits:
            peak = memory.peak_of(lambda: statuses.extend(attack(server)))
    said = ", ".join(f"{statuses.count(one)} x {one}" for one in sorted(set(statuses)))
    return f"{max(waits, default=0):10.2f} s {peak / 1e6:14.0f} MB  {said}"


def main() -> None:
    """Print a table."""
    at_once = given(__doc__, at_once=40).at_once
    print(f"{'':38} {'health after':>12} {'memory over idle':>17}  answers")
    for name, attack in cases(at_once).items():
        print(f"{name:38} {measured(attack)}", flush=True)


if __name__ == "__main__":
    main()
