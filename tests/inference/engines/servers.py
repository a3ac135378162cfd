"""Real servers for the tests of this folder, and what one asks of them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.inference.serving.process import EngineProcess, free_port
from tests.inference.engines.variants import PROMPTS, TOKENS, prompt_ids

ROOT = Path(__file__).resolve().parent.parent.parent.parent
ENGINE_ARGS = "--max-model-len 256 --max-num-seqs 8 --dtype float32"
START_S = 900.0


def vllm_python() -> str:
    return os.environ["ADAPTERHUB_VLLM_PYTHON"]


def engine_environ() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'registry'}",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": "1",  # two threads on two busy cores wait for each other: 30 times slower
    }


@dataclass(frozen=True)
class Answer:
    status: int
    value: Any

    @property
    def message(self) -> str:
        return self.value["error"]["message"]

    @property
    def tokens(self) -> list[int]:
        assert self.status == 200, self.value
        return self.value["choices"][0]["token_ids"]


def completion_of(model: str, prompt: str, count: int) -> dict[str, Any]:
    """A request for `count` greedy tokens."""
    return {
        "model": model, "prompt": prompt_ids(prompt), "max_tokens": count, "min_tokens": count, "temperature": 0,
        "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip


def tokens_of_stream(text: str) -> list[int] | None:
    """The tokens of a streamed completion; None where its end is missing."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    if not lines or lines.pop() != "[DONE]":
        return None
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    return [token for choice in choices for token in choice.get("token_ids") or ()]


@dataclass(frozen=True)
class Server:
    """A server that answers at `url`; `pid` is the engine's, `parent` that of `adapt serve`."""

    url: str
    pid: int
    log: Path
    parent: subprocess.Popen[str] | None = None

    def post(self, path: str, value: object, timeout_s: float = 300.0, headers: dict[str, str] | None = None) -> Answer:
        try:
            with self.opened(path, value, timeout_s, headers) as answer:
                data = answer.read()
                return Answer(answer.status, json.loads(data) if data[:1] in (b"{", b"[") else data.decode())
        except urllib.error.HTTPError as error:
            data = error.read()
            return Answer(error.code, json.loads(data) if data[:1] in (b"{", b"[") else data.decode())

    def opened(
        self, path: str, value: object, timeout_s: float = 300.0, headers: dict[str, str] | None = None
    ) -> http.client.HTTPResponse:
        """The answer to a POST, of which nothing but its head is read."""
        sent = {"Content-Type": "application/json"} | (headers or {})
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(value).encode(), sent)
        answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=timeout_s)
        return answer

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=60) as answer:
            return json.load(answer)

    def metric(self, name: str) -> float:
        """A figure of vLLM's own, summed over its labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def complete(
        self, model: str, prompt: str, count: int = TOKENS, *, headers: dict[str, str] | None = None, **more: Any
    ) -> Answer:
        return self.post("/v1/completions", completion_of(model, prompt, count) | more, headers=headers)

    def tokens(self, model: str, prompts: Sequence[str] = PROMPTS) -> list[list[int]]:
        return [self.complete(model, prompt).tokens for prompt in prompts]

    def lines(self, text: str) -> list[str]:
        return [line for line in self.log.read_text(errors="replace").splitlines() if text in line]


@contextlib.contextmanager
def adapt_serve(
    home: Path,
    log: Path,
    *arguments: str,
    port: int = 0,
    engine_args: str = ENGINE_ARGS,
    sources: str = "",
    offline: bool = True,
) -> Iterator[Server]:
    """`adapt serve`, ready; ended by SIGTERM."""
    command = [
        sys.executable, "-m", "adapterhub.cli", "serve", *arguments, "--port", str(port), "--json", "--log", str(log),
        "--python", vllm_python(), "--engine-args", engine_args, "--start-timeout", str(START_S),
    ]  # fmt: skip
    environ = engine_environ() | {"ADAPTERHUB_HOME": str(home), "ADAPTERHUB_SOURCES": sources}
    if not offline:
        environ["HF_HUB_OFFLINE"] = "0"
    process = subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=home.parent
    )
    try:
        assert process.stdout is not None
        lines = []
        while not lines or lines[-1] != "}\n":
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            lines.append(line)
        document = json.loads("".join(lines))
        yield Server(document["url"], document["pid"], log, process)
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def bare_vllm(
    model: Path, log: Path, *arguments: str, lora: bool = True, environ: dict[str, str] | None = None, port: int = 0
) -> Iterator[Server]:
    """vLLM as its own documentation starts it, without our plugin unless `environ` brings it."""
    port = port or free_port("127.0.0.1")
    command = [
        vllm_python(), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "base",
        "--host", "127.0.0.1", "--port", str(port), "--enforce-eager", *ENGINE_ARGS.split(), *arguments,
        *(["--enable-lora"] if lora else []),
    ]  # fmt: skip
    made = engine_environ() | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_PLUGINS": "none"} | (environ or {})
    url = f"http://127.0.0.1:{port}"
    with log.open("ab") as output, EngineProcess(command, made, output=output) as process:
        process.wait_until_ready(f"{url}/health", within_s=START_S)
        yield Server(url, process.pid, log)


def group_of(pid: int) -> list[int]:
    """The processes of a group that live."""
    done = subprocess.run(["ps", "-e", "-o", "pid=,pgid=,stat="], capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    return [int(row[0]) for row in rows if int(row[1]) == pid and not row[2].startswith("Z")]


def cpu_seconds(processes: Sequence[int]) -> float:
    """Of the threads of the processes that live, since each started; to the nanosecond, where `stat` has ticks of 10 ms."""
    tasks = [task for pid in processes for task in Path(f"/proc/{pid}/task").iterdir()]
    spent = 0
    for task in tasks:
        with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
            spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1e9


def wait_for_end_of_group(pid: int, within_s: float = 60.0) -> list[int]:
    """Who of it still lives when the time is up."""
    end = time.monotonic() + within_s
    while group_of(pid) and time.monotonic() < end:
        time.sleep(0.1)
    return group_of(pid)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
