"""A stand-in for a vLLM or an SGLang that somebody else started: the routes that `adapt serve --sync` uses, on loopback.

What it stands for was read in vLLM 0.32 and SGLang 0.5.23, and is proved with both in `tests/inference/engines/test_sync.py`.
Its answers depend on the weights that it read when an adapter was loaded.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

WORDS = ("a", "b", "c", "d", "e")


def effect_of(folder: Path) -> float:
    """A number that an adapter adds to each answer; 0 where its update is."""
    weights = load_file(folder / "adapter_model.safetensors")
    return float(
        sum(np.abs(weights[n.replace("lora_A", "lora_B")] @ weights[n]).sum() for n in weights if "lora_A" in n)
    )


class StandinEngine:
    """Tests set what it does: `is_away`, `refuses` by name, `ignores` adapters, its `version`, `model` and `key`."""

    def __init__(self, kind: str, model: str = "somewhere/base") -> None:
        self.kind, self.model, self.key = kind, model, ""
        self.version = "0.32.0" if kind == "vllm" else "0.5.23"
        self.adapters: dict[str, tuple[str, float]] = {}
        self.asked: list[str] = []
        self.refuses: dict[str, str] = {}
        self.is_away = self.ignores = False
        self.statuses: dict[str, int] = {}
        """Of routes that answer with a bare status."""
        self.elsewhere = ""
        """Where every request is sent, if anywhere."""
        self.had: dict[str, str] = {}
        """What SGLang remembers of names that were unloaded, and reads again when a request names one."""
        self.url = ""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def roots(self) -> dict[str, str]:
        return {name: root for name, (root, _) in self.adapters.items()}

    def restart(self) -> None:
        self.adapters.clear()
        self.had.clear()

    # ------------------------------------------------------------ the routes
    def answer(self, method: str, path: str, body: dict[str, Any], authorization: str) -> tuple[int, Any]:
        prefix = "/v1" if self.kind == "vllm" else ""
        if self.is_away:
            return 503, {}
        if self.elsewhere or path in self.statuses:
            return (302, {}) if self.elsewhere else (self.statuses[path], {"detail": "Not Found"})
        if self.key and authorization != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        if (method, path) == ("GET", "/version" if self.kind == "vllm" else "/server_info"):
            return 200, {"version": self.version} | ({} if self.kind == "vllm" else {"model_path": self.model})
        if (method, path) == ("GET", "/v1/models"):
            base = {"id": "base", "root": self.model if self.kind == "vllm" else "base", "parent": None}
            cards = [{"id": name, "root": root, "parent": "base"} for name, root in self.roots.items()]
            return 200, {"data": [base, *cards]}
        if (method, path) == ("POST", "/v1/completions"):
            return self.complete(body["model"])
        if path in {f"{prefix}/load_lora_adapter", f"{prefix}/unload_lora_adapter"}:
            return self.change(path.rpartition("/")[2].partition("_")[0], body)
        return 404, {"detail": "Not Found"}

    def change(self, verb: str, body: dict[str, Any]) -> tuple[int, Any]:
        name = body["lora_name"]
        self.asked.append(f"{verb} {name}")
        if name in self.refuses and verb == "load":
            return self.refused(400, self.refuses[name])
        if (name in self.adapters) == (verb == "load"):
            return self.refused(
                400 if verb == "load" else 404, f"the adapter {name} is {'' if verb == 'load' else 'not '}here"
            )
        if verb == "load":
            try:
                self.adapters[name] = body["lora_path"], effect_of(Path(body["lora_path"]))
            except OSError as error:
                return self.refused(400, f"cannot read {error.filename}")
        else:
            self.had[name] = self.adapters.pop(name)[0]
        return 200, "Success"

    def refused(self, status: int, words: str) -> tuple[int, Any]:
        if self.kind == "vllm":
            return status, {"error": {"message": words, "type": "x", "code": status}}
        return 400, {"success": False, "error_message": words}

    def complete(self, model: str) -> tuple[int, Any]:
        name = model.removeprefix("base:") if self.kind == "sglang" else model
        if name not in self.adapters and self.kind == "sglang" and name in self.had:
            status, answer = self.change("load", {"lora_name": name, "lora_path": self.had[name]})
            if status != 200:
                return status, answer
        if name not in self.adapters and name != "base":
            return self.refused(404, f"the model {model} does not exist")
        moved = 0.0 if name == "base" or self.ignores else self.adapters[name][1]
        tops = [{word: -1.0 - at - moved for at, word in enumerate(WORDS)}]
        return 200, {"choices": [{"text": "a", "logprobs": {"top_logprobs": tops}}]}


@contextlib.contextmanager
def running(kind: str, model: str = "somewhere/base") -> Iterator[StandinEngine]:
    """One that answers while the block runs."""
    engine = StandinEngine(kind, model)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"] or 0))
            status, value = engine.answer(
                self.command, self.path, json.loads(raw or b"{}"), self.headers["Authorization"] or ""
            )
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if engine.elsewhere:
                self.send_header("Location", engine.elsewhere + self.path)
            self.end_headers()
            self.wfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        engine.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield engine
        server.shutdown()
