"""Outages of a registry's parts behind its proxy, measured; prints a Markdown table.

    python -m tests.registry.outages [--only NAME] [--short 5] [--long 30]

Two servers behind the shipped nginx.conf, PostgreSQL and S3, all real. Four clients call without a pause: a listing
(the database alone), a file (the database, at times S3), a commit of a new small file (both), and `/healthz`. A part is away when its
connections are refused; it is silent when its processes are stopped (SIGSTOP).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import secrets
import signal
import ssl
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg

from tests.registry.proxied import nginx
from tests.registry.shared_servers import Replica, Shared, free_ports, postgres, s3
from tests.registry.wires import Wire, wired

PATIENCE_S = 200.0
REPO = "acme/outage"


@dataclass(frozen=True)
class Answer:
    """One call: when it began, how long it took, its status (0: none came), and what the answer said."""

    began: float
    took: float
    status: int
    after: str
    is_ours: bool


@dataclass
class Caller:
    """A client that makes one kind of call, again and again."""

    name: str
    call: Callable[[httpx.Client], httpx.Response]
    client: httpx.Client
    answers: list[Answer] = field(default_factory=list)
    ends: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.ends.is_set():
            began = time.monotonic()
            try:
                got = self.call(self.client)
                ours = got.headers.get("content-type", "").startswith("application/json") and (
                    "error" in got.json() or "status" in got.json() if got.status_code >= 500 else True
                )
                answer = (got.status_code, got.headers.get("retry-after", ""), ours)
            except (httpx.TransportError, ValueError):
                answer = (0, "", False)
            self.answers.append(Answer(began, time.monotonic() - began, *answer))
            time.sleep(0.1)


class World:
    """A registry of two servers with its parts, and its clients."""

    def __init__(self, shared: Shared, url: str, trust: ssl.SSLContext) -> None:
        self.shared = shared
        self.made: dict[str, bytes] = {}
        headers = {"Authorization": f"Bearer {shared.token}"}

        def client() -> httpx.Client:
            return httpx.Client(base_url=url, headers=headers, verify=trust, timeout=PATIENCE_S)

        self.client = client()
        calls = {"listing": self.listing, "file": self.file, "commit": self.commit, "health": self.health}
        self.callers = [Caller(name, call, client()) for name, call in calls.items()]

    def listing(self, client: httpx.Client) -> httpx.Response:
        return client.get("/api/models?limit=1")

    def health(self, client: httpx.Client) -> httpx.Response:
        return client.get("/healthz")

    def file(self, client: httpx.Client) -> httpx.Response:
        return client.get(f"/{REPO}/resolve/main/README.md")

    def commit(self, client: httpx.Client) -> httpx.Response:
        name, content = f"f{secrets.token_hex(8)}", secrets.token_bytes(64)
        lines = [
            {"key": "header", "value": {"summary": "x"}},
            {
                "key": "file",
                "value": {"path": name, "content": base64.b64encode(content).decode(), "encoding": "base64"},
            },
        ]
        answer = client.post(f"/api/models/{REPO}/commit/main", content="\n".join(map(json.dumps, lines)))
        if answer.is_success:
            self.made[name] = content
        return answer

    def lost(self) -> int:
        """How many files of acknowledged commits are not there with their bytes."""
        return sum(
            self.client.get(f"/{REPO}/resolve/main/{name}").content != content for name, content in self.made.items()
        )


@contextlib.contextmanager
def world(folder: Path) -> Iterator[tuple[World, dict[str, Any]]]:
    with contextlib.ExitStack() as stack:
        pg, store = stack.enter_context(postgres()), stack.enter_context(s3())
        database, bucket = pg.new_database(), store.new_bucket()
        pg_wire, pg_url = stack.enter_context(wired(database))
        s3_wire, s3_url = stack.enter_context(wired(store.endpoint))
        shared = Shared(folder, pg_url, s3_url, bucket)
        *ports, one, other = free_ports(5)
        options = ("--log-requests", "--public-url", f"https://localhost:{ports[1]}")
        replicas = [stack.enter_context(shared.replica(*options, "--port", str(port))) for port in (one, other)]
        addresses = [f"http://127.0.0.1:{port}" for port in (one, other)]
        proxied = nginx(folder / "nginx", ports, *addresses, s3=s3_url)
        proxy = stack.enter_context(proxied)
        made = World(shared, proxy.url, proxy.trust)
        made.client.post("/api/repos/create", json={"organization": "acme", "name": "outage"}).raise_for_status()
        lines = '{"key":"header","value":{"summary":"x"}}\n{"key":"file","value":{"path":"README.md","content":"e30="}}'
        made.client.post(f"/api/models/{REPO}/commit/main", content=lines).raise_for_status()
        with psycopg.connect(database) as connection:
            backend = connection.execute("SELECT pg_backend_pid()").fetchone()[0]
            postmaster = psutil.Process(backend).parent()
        weed = next(one for one in psutil.Process().children(recursive=True) if one.name() == "weed")
        yield made, {"pg": pg_wire, "s3": s3_wire, "postmaster": postmaster, "weed": weed, "replicas": replicas}


def tell(process: psutil.Process, number: int) -> None:
    """Send a signal to a process and all below it."""
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(number)


@dataclass(frozen=True)
class Outage:
    name: str
    begin: Callable[[], None]
    end: Callable[[], None]
    lasts_s: float


def outages(parts: dict[str, Any], short: float, long: float) -> Iterator[Outage]:
    wires: dict[str, Wire] = {"database": parts["pg"], "S3": parts["s3"]}
    for name, wire in wires.items():
        for lasts in (short, long):
            yield Outage(f"{name} away {lasts:g} s", wire.cut, wire.mend, lasts)
    for name, process in (("database", parts["postmaster"]), ("S3", parts["weed"])):
        for lasts in (short, long):
            stop, go = (lambda p=process, n=n: tell(p, n) for n in (signal.SIGSTOP, signal.SIGCONT))
            yield Outage(f"{name} silent {lasts:g} s", stop, go, lasts)
    one: Replica = parts["replicas"][0]
    server = psutil.Process(one.process.pid)
    stop, go = (lambda n=n: tell(server, n) for n in (signal.SIGSTOP, signal.SIGCONT))
    yield Outage(f"one server silent {long:g} s", stop, go, long)
    yield Outage("one server killed", one.process.kill, lambda: None, short)


def measure(made: World, outage: Outage) -> list[str]:
    """The rows of an outage, one for each caller."""
    for caller in made.callers:
        caller.answers.clear()
        caller.ends.clear()
    threads = [threading.Thread(target=caller.run) for caller in made.callers]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    away = time.monotonic()
    outage.begin()
    time.sleep(outage.lasts_s)
    outage.end()
    back = time.monotonic()
    deadline = back + PATIENCE_S
    while time.monotonic() < deadline and not all(
        sum(one.began > back and one.status == 200 for one in caller.answers) >= 3 for caller in made.callers
    ):
        time.sleep(0.1)
    time.sleep(3)
    for caller in made.callers:
        caller.ends.set()
    for thread in threads:
        thread.join()
    return [_row(outage, caller, away, back) for caller in made.callers]


def _row(outage: Outage, caller: Caller, away: float, back: float) -> str:
    found = [one for one in caller.answers if one.began + one.took > away]
    bad = [one for one in found if one.status != 200]
    first = min((one.began + one.took - away for one in bad), default=None)
    good = min(
        (one.began + one.took - back for one in found if one.status == 200 and one.began + one.took > back),
        default=None,
    )
    settled = max((one.began + one.took - back for one in bad if one.began + one.took > back), default=0.0)
    kinds = Counter(
        f"{one.status or 'none'}{' R' + one.after if one.after else ''}{'' if one.is_ours else ' foreign'}"
        for one in bad
    )
    said = ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "all good"
    longest = max((one.took for one in found), default=0.0)
    cells = [
        "-" if first is None else f"{first:.1f}",
        said,
        "-" if good is None else f"{good:.1f}",
        f"{settled:.1f}",
        f"{longest:.1f}",
    ]
    return f"| {outage.name} | {caller.name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--short", type=float, default=5.0)
    parser.add_argument("--long", type=float, default=30.0)
    given = parser.parse_args()
    print(
        "| outage | call | first refusal, s | refusals | first good answer after the return, s | last refusal after it, s | longest call, s |"
    )
    print("| --- | --- | ---: | --- | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory(prefix="adapterhub-outages-") as folder, world(Path(folder)) as (made, parts):
        for outage in outages(parts, given.short, given.long):
            if given.only in outage.name:
                print("\n".join(measure(made, outage)), flush=True)
        lost = made.lost()
        print(f"\n{len(made.made)} commits were acknowledged, {lost} of them lost.")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
