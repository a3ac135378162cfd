"""The fleet of docs/how-to/serve-in-production.md on loopback: a registry, two `adapt serve`, and vllm-router before them.

The router starts with the options that the page shows. The replicas' libraries know the base and the registry, and no
adapter. A proxy stands before the registry, so that a test can make it slow.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from adapterhub.inference.serving.process import EngineProcess, free_port
from tests.inference.engines.__main__ import router_program
from tests.inference.engines.served_library import ServedLibrary, make_served_library
from tests.inference.engines.servers import ROOT, Server, adapt_serve, engine_environ
from tests.registry.proxy import Proxy, proxy_of
from tests.support.real_base import smollm2_base

PAGE = ROOT / "docs" / "how-to" / "serve-in-production.md"
CONFIG = {"r": 8, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj", "down_proj"]}
NAMESPACE = "acme"


def adapt(home: Path, *arguments: str, token: str = "") -> None:
    command = [sys.executable, "-m", "adapterhub.cli", *arguments]
    environ = engine_environ() | {"ADAPTERHUB_HOME": str(home), "HF_HUB_OFFLINE": "0", "ADAPTERHUB_TOKEN": token}
    subprocess.run(command, env=environ, capture_output=True, text=True, check=True)


@dataclass
class Registry:
    """A registry that keeps its port and its files when it is stopped and started again."""

    folder: Path
    port: int = field(default_factory=lambda: free_port("127.0.0.1"))
    token: str = ""
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "adapterhub_registry", "--root", str(self.folder), "--port", str(self.port)]
        self.process = subprocess.Popen(command, env=engine_environ(), stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline(), "the registry did not start"
        self.token = self.token or self.process.stdout.readline().rpartition(": ")[2].strip()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.communicate(timeout=30)
            self.process = None

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)


@dataclass
class Replica:
    """An `adapt serve` that keeps its port and its library when it is started again."""

    folder: Path
    remote: str
    port: int = field(default_factory=lambda: free_port("127.0.0.1"))
    server: Server | None = None
    running: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set_up(self) -> None:
        self.folder.mkdir()
        adapt(self.home, "base", "add", str(smollm2_base()), "--as", "smol")
        adapt(self.home, "remote", "add", "ours", self.remote, "--namespaces", NAMESPACE)

    def start(self) -> Server:
        options = ["--base", "smol", "--max-rank", "16", "--drain", "120"]
        serve = adapt_serve(self.home, self.folder / "log", *options, port=self.port, offline=False)
        self.server = self.running.enter_context(serve)
        return self.server

    def answered(self) -> float:
        """How many requests vLLM has answered since it started; 0 while it does not listen."""
        try:
            return self.server.metric("vllm:request_success_total") if self.server else 0
        except OSError:
            return 0

    def adapters(self) -> set[str]:
        """Those that vLLM has, without versions."""
        assert self.server is not None
        return {row["id"].partition("==")[0] for row in self.server.get("/v1/models")["data"]}


@dataclass(frozen=True)
class Fleet:
    """`digests` are those of the adapters, by the names that requests use."""

    served: ServedLibrary
    registry: Registry
    proxy: Proxy
    replicas: list[Replica]
    digests: dict[str, str]

    def folder_of(self, name: str) -> Path:
        """What PEFT saved."""
        return self.served.folders[name.removeprefix(f"{NAMESPACE}/")]

    @contextlib.contextmanager
    def running(self) -> Iterator[Server]:
        """The router, before replicas that start at the same time."""
        with contextlib.ExitStack() as stack:
            for one in self.replicas:
                stack.enter_context(one.running)
            with ThreadPoolExecutor(len(self.replicas)) as threads:
                list(threads.map(Replica.start, self.replicas))
            yield stack.enter_context(router([one.url for one in self.replicas], self.served.root / "router.log"))


def router_options() -> list[str]:
    """Those of the documented command, without its addresses."""
    found = re.search(
        r"^vllm-router --host \S+ --port \S+ ((?:.*\\\n)*.*)--worker-urls", PAGE.read_text(), re.MULTILINE
    )
    assert found, f"{PAGE} shows no command of the router"
    return shlex.split(found[1].replace("\\\n", " "))


@contextlib.contextmanager
def router(urls: list[str], log: Path) -> Iterator[Server]:
    port, metrics = free_port("127.0.0.1"), free_port("127.0.0.1")
    command = [
        str(router_program()), "--host", "127.0.0.1", "--port", str(port), *router_options(),
        "--worker-urls", *urls, "--prometheus-port", str(metrics),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with log.open("ab") as output, EngineProcess(command, engine_environ(), output=output) as process:
        process.wait_until_ready(f"{url}/health", within_s=120)
        yield Server(url, process.pid, log)


def publish(served: ServedLibrary, registry: Registry, count: int) -> dict[str, str]:
    """Push adapters; the digest of each by the name that requests use."""
    digests = {}
    for number in range(count):
        name = f"writer-{number}"
        served.add(name, CONFIG, seed=40 + number)
        to = ["--to", f"{NAMESPACE}/{name}-smol", "--remote", registry.url]
        adapt(served.home, "push", f"{name}@smol", *to, token=registry.token)
        digests[f"{NAMESPACE}/{name}"] = served.library.builds_named(name)[0].manifest.digest
    return digests


@contextlib.contextmanager
def fleet(folder: Path, adapters: int) -> Iterator[Fleet]:
    """A registry with adapters, and two replicas that are set up."""
    served, registry = make_served_library(folder), Registry(folder / "registry")
    with contextlib.ExitStack() as stack:
        stack.callback(registry.stop)
        registry.start()
        digests = publish(served, registry, adapters)
        proxy = stack.enter_context(proxy_of(registry.url))
        replicas = [Replica(folder / f"replica-{at}", proxy.url) for at in (1, 2)]
        for one in replicas:
            one.set_up()
        yield Fleet(served, registry, proxy, replicas, digests)
