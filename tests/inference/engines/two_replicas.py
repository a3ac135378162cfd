"""Two vLLM replicas behind a router, one registry for both: the registry fails, then one replica is killed.

    python -m tests.inference.engines.two_replicas

Everything runs on loopback: a registry that has the adapters, two `adapt serve` with libraries of their own that are empty
but for the base, and vllm-router with `consistent_hash`. Requests carry `x-session-id: <digest of the adapter>`. While the
registry is down, and while it hangs, clients name adapters that do not exist; the base and the loaded adapters answer as
before. Then one replica is killed, and the other resolves its adapters and answers with the same tokens.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.inference.serving.front import free_port
from adapterhub.inference.serving.process import EngineProcess
from tests.inference.engines.__main__ import router_program
from tests.inference.engines.served_library import ServedLibrary, make_served_library
from tests.inference.engines.servers import Server, adapt_serve, engine_environ, kill
from tests.inference.engines.variants import PROMPTS
from tests.registry.conftest import Served, serving
from tests.registry.proxy import Proxy, proxy_of
from tests.support.real_base import smollm2_base

ADAPTERS = 8
CONFIG = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]}
NAMESPACE = "acme"


@dataclass(frozen=True)
class Report:
    """What was seen. `lives_on` lists the replicas of each adapter before the kill; times in seconds.

    `unknown_names` has the statuses of such names while the registry fails in one way, and `right` the share of
    answers by the base and the loaded adapters meanwhile that came with status 200 and the tokens of before.
    """

    lives_on: dict[str, list[int]]
    unknown_names: dict[str, list[int]]
    right: dict[str, float]
    failed_after_kill: int
    seconds_until_answered: float
    same_tokens: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "lives_on": self.lives_on, "unknown_names": self.unknown_names, "right": self.right,
            "failed_after_kill": self.failed_after_kill,
            "seconds_until_answered": round(self.seconds_until_answered, 2), "same_tokens": self.same_tokens,
        }  # fmt: skip


def adapt(home: Path, *arguments: str, **environ: str) -> str:
    command = [sys.executable, "-m", "adapterhub.cli", *arguments]
    made = engine_environ() | {"ADAPTERHUB_HOME": str(home), "HF_HUB_OFFLINE": "0"} | environ
    return subprocess.run(command, env=made, capture_output=True, text=True, check=True).stdout


def publish(served: ServedLibrary, registry: Served) -> dict[str, str]:
    """Push the adapters; the digest of each by the name that requests use."""
    digests = {}
    for number in range(ADAPTERS):
        name = f"writer-{number}"
        served.add(name, CONFIG, seed=40 + number)
        to = ["--to", f"{NAMESPACE}/{name}-smol", "--remote", registry.url, "--token", registry.token]
        adapt(served.home, "push", f"{name}@smol", *to)
        digests[f"{NAMESPACE}/{name}"] = served.library.builds_named(name)[0].manifest.digest
    return digests


@contextlib.contextmanager
def replica(folder: Path, registry_url: str) -> Iterator[Server]:
    """An `adapt serve` whose library knows the base and the registry, and no adapter."""
    home = folder / "home"
    folder.mkdir()
    adapt(home, "base", "add", str(smollm2_base()), "--as", "smol")
    adapt(home, "remote", "add", "ours", registry_url, "--namespaces", NAMESPACE)
    with adapt_serve(home, folder / "log", "--base", "smol", "--max-rank", "16", offline=False) as running:
        yield running


@contextlib.contextmanager
def router(replicas: list[Server], log: Path) -> Iterator[Server]:
    port, metrics = free_port("127.0.0.1"), free_port("127.0.0.1")
    command = [
        str(router_program()), "--host", "127.0.0.1", "--port", str(port), "--policy", "consistent_hash",
        "--worker-urls", *(one.url for one in replicas), "--prometheus-host", "127.0.0.1",
        "--prometheus-port", str(metrics),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with log.open("ab") as output, EngineProcess(command, engine_environ(), output=output) as process:
        process.wait_until_ready(f"{url}/health", within_s=120)
        yield Server(url, process.pid, log)


def ask(server: Server, name: str, digest: str) -> list[int] | None:
    """Tokens, or None where the answer is a failure of the server."""
    value = {"headers": {"x-session-id": digest}}
    answer = server.complete(name, PROMPTS[0], **value)
    return answer.tokens if answer.status == 200 else None


def while_it_fails(front: Server, known: dict[str, tuple[str, list[int] | None]]) -> tuple[list[int], float]:
    """The statuses of unknown names, and the share of right answers by `known`: each model's session and tokens."""
    with ThreadPoolExecutor(4) as threads:
        unknown = threads.map(lambda at: front.complete(f"{NAMESPACE}/nothing-{at}", PROMPTS[0]).status, range(12))
        right = [ask(front, name, session) == tokens for _ in range(3) for name, (session, tokens) in known.items()]
        return sorted(set(unknown)), sum(right) / len(right)


def wait_until_back(front: Server) -> None:
    """Until the replicas get answers from the registry again, and so know that it lacks a name."""
    names = (f"{NAMESPACE}/nothing-more-{number}" for number in itertools.count())
    end = time.monotonic() + 120
    while front.complete(next(names), PROMPTS[0]).status != 404:
        assert time.monotonic() < end, "the replicas do not look names up again"
        time.sleep(0.5)


@contextlib.contextmanager
def hanging(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def down(registry: Proxy) -> Iterator[None]:
    registry.fault = lambda _request: "drop"
    try:
        yield
    finally:
        registry.fault = lambda _request: None


def models_of(server: Server) -> set[str]:
    """The adapters that it has loaded, without versions."""
    return {row["id"].partition("==")[0] for row in server.get("/v1/models")["data"]}


def run(folder: Path) -> Report:
    served = make_served_library(folder)
    (folder / "registry").mkdir()
    with contextlib.ExitStack() as stack:
        registry = stack.enter_context(serving(folder / "registry"))
        digests = publish(served, registry)
        proxy = stack.enter_context(proxy_of(registry.url))
        replicas = [stack.enter_context(replica(folder / f"replica-{at}", proxy.url)) for at in (1, 2)]
        front = stack.enter_context(router(replicas, folder / "router.log"))
        before = {name: ask(front, name, digest) for name, digest in digests.items()}
        before_again = {name: ask(front, name, digest) for name, digest in digests.items()}
        has = [models_of(one) for one in replicas]
        lives_on = {name: [at for at, names in enumerate(has, 1) if name in names] for name in digests}
        known = {name: (digest, before[name]) for name, digest in digests.items()}
        known["smol"] = ("base", ask(front, "smol", "base"))
        unknown, right = dict[str, list[int]](), dict[str, float]()
        for failure, failing in {"down": down(proxy), "hanging": hanging(registry.pid)}.items():
            with failing:
                unknown[failure], right[failure] = while_it_fails(front, known)
            wait_until_back(front)
        fuller = max((0, 1), key=lambda at: len(has[at]))
        kill(replicas[fuller].pid)
        orphans = [name for name, places in lives_on.items() if fuller + 1 in places]
        start, failed, after = time.monotonic(), 0, dict[str, list[int] | None]()
        for name in orphans:
            while (tokens := ask(front, name, digests[name])) is None:
                failed += 1
                assert time.monotonic() - start < 120, f"`{name}` is not answered after the kill"
                time.sleep(0.2)
            after[name] = tokens
            if len(after) == 1:
                first = time.monotonic() - start
        same = before == before_again and all(after[name] == before[name] for name in orphans)
        return Report(lives_on, unknown, right, failed, first, same)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="adapterhub-replicas-") as folder:
        report = run(Path(folder))
    print(json.dumps(report.to_json(), indent=1))  # noqa: T201 - its report
    return 0 if report.same_tokens and set(report.right.values()) == {1.0} else 1


if __name__ == "__main__":
    sys.exit(main())
