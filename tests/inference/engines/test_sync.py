"""`adapt serve --sync` beside a real vLLM and a real SGLang: loads, moves, removals, a yank, a restart, no effect."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.numpy import load_file, save_file

from adapterhub.core.specs import parse_name
from adapterhub.inference.serving.process import free_port
from adapterhub.library.aliasing import point
from adapterhub.library.intake.description import Description
from tests.inference.engines.fleet import NAMESPACE, Registry, adapt, publish
from tests.inference.engines.served_library import ServedLibrary, make_served_library
from tests.inference.engines.servers import Server, bare_vllm, engine_environ
from tests.inference.engines.sglang import running_sglang
from tests.inference.engines.variants import LINEAR, PROMPTS, write_variant
from tests.support.real_base import smollm2_base

pytestmark = pytest.mark.engine
YANKED = f"{NAMESPACE}/writer-0"
CONFIG = {"r": 8, "lora_alpha": 64, "target_modules": LINEAR}
LONG = 64


@dataclass
class World:
    """An engine that may be stopped and started again at one address, and the file that its sidecar follows."""

    kind: str
    served: ServedLibrary
    registry: Registry
    folder: Path
    port: int

    @property
    def mounted(self) -> Path:
        return self.folder / "config" / "adapters.yaml"

    def engine(self) -> contextlib.AbstractContextManager[Server]:
        log = self.folder / "engine.log"
        if self.kind == "sglang":
            return running_sglang(smollm2_base(), log, self.port)
        options = ["--max-lora-rank", "16", "--max-loras", "2", "--max-cpu-loras", "8"]
        return bare_vllm(smollm2_base(), log, *options, port=self.port)

    def say(self, wanted: dict[str, str], unwanted: tuple[str, ...] = ()) -> None:
        """Swap the file as a kubelet does: a new folder, and `..data` renamed onto the old link."""
        config = self.mounted.parent
        config.mkdir(exist_ok=True)
        made = config / f"..{time.monotonic_ns()}"
        made.mkdir()
        models = [{"id": name, "source": source} for name, source in wanted.items()]
        told: dict[str, Any] = {"host": "127.0.0.1", "port": self.port, "defaultBaseModel": "smol"}
        told |= {"ensureExist": {"models": models}, "ensureNotExist": {"models": [{"id": one} for one in unwanted]}}
        (made / self.mounted.name).write_text(json.dumps({"vLLMLoRAConfig": told}))
        (config / "..new").symlink_to(made.name)
        (config / "..new").rename(config / "..data")
        if not self.mounted.is_symlink():
            self.mounted.symlink_to(f"..data/{self.mounted.name}")

    @contextlib.contextmanager
    def sidecar(self) -> Iterator[dict[str, Any]]:
        """The command, after its first look at the engine; its JSON document."""
        command = [
            *(sys.executable, "-m", "adapterhub.cli", "serve", "--engine", self.kind, "--sync", str(self.mounted)),
            *(
                "--follow",
                "--alias-ttl",
                "0.5",
                "--port",
                "0",
                "--audit-log",
                str(self.folder / "audit.jsonl"),
                "--json",
            ),
        ]
        environ = engine_environ() | {"ADAPTERHUB_HOME": str(self.served.home), "HF_HUB_OFFLINE": "0"}
        with (self.folder / "sidecar.log").open("ab") as log:
            process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            lines = [""]
            while lines[-1] != "}\n":
                lines.append(process.stdout.readline())
                assert lines[-1], (self.folder / "sidecar.log").read_text()
            yield json.loads("".join(lines))
        finally:
            process.terminate()
            assert process.wait(60) == 0
            process.stdout.close()

    def named(self, name: str) -> str:
        return name if self.kind == "vllm" or name == "base" else f"base:{name}"

    def text(self, server: Server, name: str, count: int = 12) -> str | None:
        """The greedy words of the engine; None where it refuses."""
        body = {
            "model": self.named(name),
            "prompt": PROMPTS[0],
            "max_tokens": count,
            "temperature": 0,
            "ignore_eos": True,
        }
        answer = server.post("/v1/completions", body)
        return answer.value["choices"][0]["text"] if answer.status == 200 else None

    def changes(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]


def until(is_so: Callable[[], object], within_s: float = 300) -> float:
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < within_s
        time.sleep(0.02)
    return time.monotonic() - began


@pytest.fixture(scope="module", params=["vllm", "sglang"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp(request.param)
    served, registry = make_served_library(folder), Registry(folder / "registry")
    for version, seed in (("1.0.0", 1), ("2.0.0", 2)):
        peft = write_variant(folder / "peft" / f"legal-{version}", CONFIG, seed=seed)
        served.library.add(peft, Description(name=parse_name("legal-qa"), version=version), base=served.record)
    zero = write_variant(folder / "peft" / "zero", CONFIG, seed=3)
    weights = load_file(zero / "adapter_model.safetensors")
    save_file({name: one * ("lora_B" not in name) for name, one in weights.items()}, zero / "adapter_model.safetensors")
    served.library.add(zero, Description(name=parse_name("zero"), version="1.0.0"), base=served.record)
    registry.start()
    try:
        publish(served, registry, 1)
        adapt(served.home, "remote", "add", "ours", registry.url, "--namespaces", NAMESPACE)
        yield World(request.param, served, registry, folder, free_port("127.0.0.1"))
    finally:
        registry.stop()
        shutil.rmtree(folder, ignore_errors=True)


def listed(server: Server) -> set[str]:
    return {row["id"] for row in server.get("/v1/models")["data"]} - {"base"}


def test_a_running_engine_follows_its_file(world: World, tell: Callable[[str, str], None]) -> None:
    builds = world.served.library.builds_named("legal-qa")
    point(world.served.library, "prod", [(builds[0], 1.0)])
    wanted = {"legal": "legal-qa@prod", "first": "legal-qa==1.0.0", "writer": YANKED, "silent": "zero"}
    world.say(wanted)
    with contextlib.ExitStack() as engine, contextlib.ExitStack() as sidecar:
        server = engine.enter_context(world.engine())
        document = sidecar.enter_context(world.sidecar())
        # ---- load, and a refusal beside it
        assert {one["model"] for one in document["adapters"]} == {"legal", "first", "writer"} == listed(server)
        old, base = world.text(server, "legal"), world.text(server, "base")
        assert old == world.text(server, "first") != base
        (refused,) = [one for one in world.changes() if one["action"] == "refuse"]
        assert refused["name"] == "silent"
        assert "has no effect on the base" in refused["reason"]
        loads = [one["duration_s"] for one in world.changes() if one["action"] == "load"]
        tell(f"{world.kind}: seconds to check, try and load an adapter", f"{sorted(loads)[1]:.2f}")

        # ---- the alias moves while clients ask; the answer that runs ends as it began
        whole = world.text(server, "legal", LONG)
        ended: list[str | None] = []
        running = threading.Thread(target=lambda: ended.append(world.text(server, "legal", LONG)))
        running.start()
        answers: list[tuple[float, str | None]] = []
        point(world.served.library, "prod", [(builds[1], 1.0)])
        began = time.monotonic()
        until(lambda: answers.append((time.monotonic(), world.text(server, "legal"))) or _has_moved(answers, old))
        moved_s = time.monotonic() - began
        running.join()
        new = answers[-1][1]
        assert {answer for _, answer in answers} <= {old, new, None}
        assert ended == [whole]
        tell(f"{world.kind}: an alias moved", f"{moved_s:.1f} s, {_refused_in(answers)}")
        assert world.text(server, "first") == old
        world.say(wanted | {"second": "legal-qa==2.0.0"})
        until(lambda: "second" in listed(server))
        assert world.text(server, "second") == new != base

        # ---- a yank
        until(lambda: "following the events of" in (world.folder / "sidecar.log").read_text())
        _yank(world.registry)
        tell(
            f"{world.kind}: seconds from a yank to the unloading",
            f"{until(lambda: 'writer' not in listed(server)):.2f}",
        )
        assert world.text(server, "writer") is None

        # ---- an entry leaves the file, another is in `ensureNotExist`
        world.say({"legal": "legal-qa@prod"}, unwanted=("second",))
        until(lambda: listed(server) == {"legal"})
        assert world.text(server, "first") is None  # SGLang reads a folder again that is there

        # ---- the engine is killed, and starts again without adapters
        engine.close()
        server = engine.enter_context(world.engine())
        tell(f"{world.kind}: seconds from a start to the adapters", f"{until(lambda: listed(server) == {'legal'}):.2f}")
        assert world.text(server, "legal") == new

        # ---- the sidecar starts again beside an engine that has an adapter of the run before
        sidecar.close()
        assert world.text(server, "legal") == new
        document = sidecar.enter_context(world.sidecar())
        assert [one["model"] for one in document["adapters"]] == ["legal"]
        assert world.text(server, "legal") == new
    assert "Traceback" not in (world.folder / "sidecar.log").read_text()


def _refused_in(answers: list[tuple[float, str | None]]) -> str:
    failed = [at for at, answer in answers if answer is None]
    return f"{len(failed)} of {len(answers)} refused within {max(failed, default=0) - min(failed, default=0):.2f} s"


def _has_moved(answers: list[tuple[float, str | None]], old: str | None) -> bool:
    return answers[-1][1] not in {old, None}


def _yank(registry: Registry) -> None:
    url = f"{registry.url}/api/adapt/v1/adapters/{YANKED}-smol/yank"
    headers = {"Authorization": f"Bearer {registry.token}"}
    httpx.post(url, json={"version": "1.0.0", "reason": "leaks"}, headers=headers, timeout=60).raise_for_status()
