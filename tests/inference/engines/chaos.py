"""A fleet under load while its registry and its replicas fail, one after the other.

    python -m tests.inference.engines.chaos

Clients ask the router, all the time, for the base and for adapters that the fleet has loaded, one request in four as a
stream. Other clients name adapters that do not exist. Meanwhile the registry is stopped, started again, made to hang and
made slow; then one replica is killed and started again, and the other is drained and started again. A phase lasts until
`LEAST` requests for the base or a loaded adapter have an answer and what the phase waits for has happened.

An answer is right when its tokens are the greedy ones that PEFT gives, and a stream only when it came to its end. `right`
counts requests whose first try was: neither a status of 400 or more, nor a cut connection, nor other tokens. So a
request that runs on a replica when that is killed counts as failed unless the router repeats it elsewhere. `repeated`
counts the requests that were right at a second try, which a client makes after a 5xx and after a cut connection. The
requests for names that do not exist are counted apart.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.inference.engines.fleet import NAMESPACE, Fleet, Replica, fleet
from tests.inference.engines.servers import (
    Server,
    completion_of,
    group_of,
    kill,
    tokens_of_stream,
    wait_for_end_of_group,
)
from tests.inference.engines.variants import PROMPTS, peft_tokens

ADAPTERS = 8
CLIENTS = 4
STRANGERS = 2
"""Clients that name adapters that do not exist."""
LEAST = 100
TOKENS = 4
LONG = 100
"""Tokens of the answer that runs while a replica drains."""
SLOW_S = 2.0
"""How long the slow registry takes for each answer."""
PAUSE_S = 0.2
"""Of a client before it repeats a request, and of a stranger between two requests."""
PHASE_S = 400.0
TARGET = 0.999


@dataclass(frozen=True)
class Job:
    model: str
    session: str
    prompt: str
    stream: bool
    tokens: list[int]


@dataclass(frozen=True)
class Outcome:
    """What the first try of a request came to; `status` is 0 where no whole answer came. `repeated`: a second was right."""

    phase: str
    status: int
    is_right: bool
    repeated: bool
    seconds: float

    @property
    def is_wrong(self) -> bool:
        return self.status == 200 and not self.is_right


def attempt(front: Server, job: Job) -> tuple[int, bool]:
    """Send it once: the status, 0 where no whole answer came, and whether the tokens are the expected ones."""
    headers = {"x-session-id": job.session}
    more = {"stream": True} if job.stream else {}
    try:
        answer = front.complete(job.model, job.prompt, TOKENS, headers=headers, **more)
    except (OSError, http.client.HTTPException):
        return 0, False
    if answer.status != 200:
        return answer.status, False
    if not job.stream:
        return 200, answer.tokens == job.tokens
    tokens = tokens_of_stream(answer.value)
    return (0, False) if tokens is None else (200, tokens == job.tokens)


@dataclass
class Load:
    """Clients that ask without a break, each request in the phase in which it began."""

    front: Server
    jobs: list[Job]
    phase: str = ""
    outcomes: list[Outcome] = field(default_factory=list)
    strangers: list[tuple[str, int]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def client(self, number: int) -> None:
        draw = random.Random(number)
        while not self.ended.is_set():
            job, phase, start = draw.choice(self.jobs), self.phase, time.monotonic()
            status, is_right = attempt(self.front, job)
            seconds, repeated = time.monotonic() - start, False
            if status == 0 or status >= 500:
                self.ended.wait(PAUSE_S)
                repeated = attempt(self.front, job) == (200, True)
            self.outcomes.append(Outcome(phase, status, is_right, repeated, seconds))

    def stranger(self, number: int) -> None:
        for at in itertools.count():
            if self.ended.is_set():
                return
            phase, name = self.phase, f"{NAMESPACE}/nothing-{number}-{at}"
            try:
                status = self.front.complete(name, PROMPTS[0], 1).status
            except (OSError, http.client.HTTPException):
                status = 0
            self.strangers.append((phase, status))
            self.ended.wait(PAUSE_S)

    def statuses(self, phase: str) -> Counter[int]:
        """Of the names that do not exist."""
        return Counter(status for of, status in self.strangers if of == phase)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with ThreadPoolExecutor(CLIENTS + STRANGERS) as threads:
            try:
                started = [threads.submit(self.client, number) for number in range(CLIENTS)]
                started += [threads.submit(self.stranger, number) for number in range(STRANGERS)]
                yield
            finally:
                self.ended.set()
        for one in started:
            one.result()


@dataclass
class Report:
    """`checks` says of each thing beside the requests whether it was so."""

    load: Load
    phases: list[str]
    checks: dict[str, bool]

    @property
    def wrong(self) -> int:
        return sum(one.is_wrong for one in self.load.outcomes)

    @property
    def right_share(self) -> float:
        """Of all requests, at their first try."""
        return sum(one.is_right for one in self.load.outcomes) / len(self.load.outcomes)

    @property
    def failed_twice(self) -> int:
        return sum(not (one.is_right or one.repeated) for one in self.load.outcomes)

    @property
    def is_good(self) -> bool:
        return self.right_share >= TARGET and not self.wrong and not self.failed_twice and all(self.checks.values())

    def lines(self) -> list[str]:
        """A table, one row a phase."""
        head = [
            "phase",
            "requests",
            "right",
            "wrong",
            "refused",
            "failed",
            "repeated",
            "p50 s",
            "p99 s",
            "unknown names",
        ]
        rows = [head, *(row_of(self.load, phase) for phase in self.phases), row_of(self.load, "")]
        widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return [*lines, f"right at the first try: {100 * self.right_share:.3f} %", *map(str, self.checks.items())]


def row_of(load: Load, phase: str) -> list[str]:
    """The figures of a phase; of all for ""."""
    some = [one for one in load.outcomes if phase in ("", one.phase)]
    refused = Counter(one.status for one in some if one.status >= 400)
    times = [one.seconds for one in some]
    p50, p99 = (statistics.quantiles(times, n=100)[at] for at in (49, 98))
    unknown = load.statuses(phase) if phase else Counter(status for _, status in load.strangers)
    return [
        phase or "all", str(len(some)), str(sum(one.is_right for one in some)),
        str(sum(one.is_wrong for one in some)), _counts(refused), str(sum(one.status == 0 for one in some)),
        str(sum(one.repeated for one in some)), f"{p50:.2f}", f"{p99:.2f}", _counts(unknown),
    ]  # fmt: skip


def _counts(found: Counter[int]) -> str:
    return ", ".join(f"{code or 'cut'}: {count}" for code, count in sorted(found.items())) or "0"


class Run:
    """The phases, in order."""

    def __init__(self, fleet: Fleet, load: Load) -> None:
        self.fleet = fleet
        self.load = load
        self.phases: list[str] = []
        self.checks: dict[str, bool] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Callable[..., None]]:
        """Name the requests that begin from now on; gives what waits for `LEAST` of them and for a condition."""
        self.load.phase = name
        self.phases.append(name)
        begun = time.monotonic()

        def wait(until: Callable[[], bool] = lambda: True) -> None:
            while sum(one.phase == name for one in self.load.outcomes) < LEAST or not until():
                assert time.monotonic() < begun + PHASE_S, f"{name}: what it waits for does not happen"
                time.sleep(0.1)

        yield wait
        row = "  ".join(row_of(self.load, name))
        print(f"{row}  ({time.monotonic() - begun:.0f} s)", file=sys.stderr, flush=True)  # noqa: T201 - its progress

    def registry_fails(self) -> None:
        registry, proxy = self.fleet.registry, self.fleet.proxy
        with self.phase("registry down") as wait:
            registry.stop()
            wait(lambda: self.load.statuses("registry down")[424] > 0)
        with self.phase("registry restarted") as wait:
            registry.start()
            wait(lambda: self.load.statuses("registry restarted")[404] > 0)
        with self.phase("registry hangs") as wait, registry.hanging():
            wait(lambda: self.load.statuses("registry hangs")[424] > 0)
        with self.phase("registry slow") as wait:
            proxy.fault = lambda _request: time.sleep(SLOW_S)
            wait(lambda: self.load.statuses("registry slow")[404] > 0)
            proxy.fault = lambda _request: None
        seen = {status for phase in self.phases for status in self.load.statuses(phase)}
        self.checks["names that do not exist got 404 or 424 alone"] = seen <= {404, 424}

    def replica_is_killed(self, replica: Replica) -> None:
        served = replica.server
        assert served is not None
        assert served.parent is not None
        with self.phase("replica killed") as wait:
            kill(served.pid)
            wait()
        code = served.parent.wait(60)
        said = served.parent.stderr.read() if served.parent.stderr else ""
        self.checks["a killed engine ends `adapt serve` with 18 and its reason"] = (
            code == 18 and "ended by signal SIGKILL" in said
        )
        self.checks["a killed engine leaves no process"] = group_of(served.pid) == []
        self.back("killed replica is back", replica)

    def replica_is_drained(self, replica: Replica) -> None:
        served = replica.server
        assert served is not None
        assert served.parent is not None
        long = completion_of("smol", PROMPTS[0], LONG)
        whole = served.post("/v1/completions", long).tokens
        with self.phase("replica drained") as wait, served.opened("/v1/completions", long | {"stream": True}) as answer:
            start = answer.readline()
            served.parent.terminate()
            is_whole = tokens_of_stream((start + answer.read()).decode()) == whole
            wait(lambda: served.parent is not None and served.parent.poll() is not None)
        self.checks["the long answer of a drained replica is whole"] = is_whole
        self.checks["a drained replica ends with 0 and leaves no process"] = (
            served.parent.returncode == 0 and group_of(served.pid) == []
        )
        self.back("drained replica is back", replica)

    def back(self, name: str, replica: Replica) -> None:
        """Start it again, and wait until the router sends it requests."""
        with self.phase(f"{name.removesuffix(' is back')} starts") as wait, ThreadPoolExecutor(1) as threads:
            started: Future[Server] = threads.submit(replica.start)
            wait(started.done)
            started.result()
        with self.phase(name) as wait:
            wait(lambda: replica.answered() > LEAST / 10)


def jobs_of(fleet: Fleet) -> list[Job]:
    """For the base, whose sessions reach both replicas, as often as for all adapters."""
    base = peft_tokens(None, PROMPTS, TOKENS)
    asked = [("smol", f"base-{number}", base) for number in range(ADAPTERS)]
    asked += [(name, key, peft_tokens(fleet.folder_of(name), PROMPTS, TOKENS)) for name, key in fleet.digests.items()]
    assert len({str(tokens) for _, _, tokens in asked}) == ADAPTERS + 1, "two adapters give the same tokens"
    return [
        Job(model, session, prompt, at % 4 == 0, expected)
        for model, session, tokens in asked
        for prompt, expected in zip(PROMPTS, tokens, strict=True)
        for at in range(4)
    ]


def run(folder: Path) -> Report:
    with fleet(folder, ADAPTERS) as made:
        jobs = jobs_of(made)
        with made.running() as front:
            return _run(made, Load(front, jobs))


def _run(made: Fleet, load: Load) -> Report:
    for job in {job.session: job for job in load.jobs}.values():  # all adapters are loaded before anything fails
        answered = attempt(load.front, job)
        assert answered == (200, True), (answered, job)
    places = [one.adapters() & set(made.digests) for one in made.replicas]
    killed, drained = sorted(made.replicas, key=lambda one: -len(places[made.replicas.index(one)]))
    chaos = Run(made, load)
    chaos.checks["each adapter is on one replica"] = not (places[0] & places[1]) and (
        places[0] | places[1] == set(made.digests)
    )
    with load.running():
        with chaos.phase("nothing fails") as wait:
            wait()
        chaos.registry_fails()
        chaos.replica_is_killed(killed)
        chaos.replica_is_drained(drained)
    chaos.checks["a killed `adapt serve` leaves no process and no lease"] = _leaves_nothing(killed)
    return Report(load, chaos.phases, chaos.checks)


def _leaves_nothing(replica: Replica) -> bool:
    """Whether its engine ends and gives its leases back when `adapt serve` is killed."""
    assert replica.server is not None
    assert replica.server.parent is not None
    kill(replica.server.parent.pid)
    lives = wait_for_end_of_group(replica.server.pid)
    leases = [lease.name.partition("-")[0] for lease in (replica.home / "leases").iterdir()]
    return not lives and str(replica.server.pid) not in leases


def main() -> int:
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="adapterhub-chaos-") as folder:
        report = run(Path(folder))
    lines: list[Any] = [*report.lines(), f"{time.monotonic() - start:.0f} s"]
    print(*lines, sep="\n")  # noqa: T201 - its report
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
