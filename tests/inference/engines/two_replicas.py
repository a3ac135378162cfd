"""Two vLLM replicas behind a router, one registry for both: each adapter on one replica, and one replica killed.

    python -m tests.inference.engines.two_replicas

Everything runs on loopback: a registry that has the adapters, two `adapt serve` with libraries of their own that are empty
but for the base, and vllm-router with `consistent_hash`. Requests carry `x-session-id: <digest of the adapter>`. Then one
replica is killed, and the other resolves its adapters and answers with the same tokens.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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
from tests.support.real_base import smollm2_base

ADAPTERS = 8
CONFIG = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]}
NAMESPACE = "acme"


@dataclass(frozen=True)
class Report:
    """What was seen. `lives_on` lists the replicas of each adapter before the kill; times in seconds."""

    lives_on: dict[str, list[int]]
    failed_after_kill: int
    seconds_until_answered: float
    same_tokens: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "lives_on": self.lives_on, "failed_after_kill": self.failed_after_kill,
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
def replica(folder: Path, registry: Served) -> Iterator[Server]:
    """An `adapt serve` whose library knows the base and the registry, and no adapter."""
    home = folder / "home"
    folder.mkdir()
    adapt(home, "base", "add", str(smollm2_base()), "--as", "smol")
    adapt(home, "remote", "add", "ours", registry.url, "--namespaces", NAMESPACE)
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


def models_of(server: Server) -> set[str]:
    return {row["id"] for row in server.get("/v1/models")["data"]}


def run(folder: Path) -> Report:
    served = make_served_library(folder)
    (folder / "registry").mkdir()
    with contextlib.ExitStack() as stack:
        registry = stack.enter_context(serving(folder / "registry"))
        digests = publish(served, registry)
        replicas = [stack.enter_context(replica(folder / f"replica-{at}", registry)) for at in (1, 2)]
        front = stack.enter_context(router(replicas, folder / "router.log"))
        before = {name: ask(front, name, digest) for name, digest in digests.items()}
        before_again = {name: ask(front, name, digest) for name, digest in digests.items()}
        has = [models_of(one) for one in replicas]
        lives_on = {name: [at for at, names in enumerate(has, 1) if name in names] for name in digests}
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
        return Report(lives_on, failed, first, same)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="adapterhub-replicas-") as folder:
        report = run(Path(folder))
    print(json.dumps(report.to_json(), indent=1))  # noqa: T201 - its report
    return 0 if report.same_tokens else 1


if __name__ == "__main__":
    sys.exit(main())
