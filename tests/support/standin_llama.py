"""A stand-in for llama.cpp's server: it answers with what it was sent, and applies no adapter where the real one does not.

With `--drops`, it ignores the adapter of that number or of that file, whose name is given without its end; with `--breaks`, it
does not start with such a file.
`python standin_llama.py --host 127.0.0.1 --port 8080` runs it. `started` runs it for tests, and `served` a front before it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapterhub.inference.serving.llama_cpp.engine import Address

READS_LORA = ("/v1/completions", "/v1/chat/completions", "/completion")
HELD = "held until "


def word(option: str) -> str:
    """The value of an option; "" without it."""
    return sys.argv[sys.argv.index(option) + 1] if option in sys.argv else ""


class Handler(BaseHTTPRequestHandler):
    """Answers each request with what it was sent."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self._send("text/plain", b"llamacpp:requests 7\n")
        else:
            self._send("application/json", json.dumps({"path": self.path, "model_path": "/srv/base.gguf"}).encode())

    def do_POST(self) -> None:
        if (key := os.environ.get("LLAMA_API_KEY")) and self.headers.get("Authorization") != f"Bearer {key}":
            self.send_response(401)
            self.end_headers()
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        dropped, files = word("--drops"), [Path(b).stem for a, b in pairwise(sys.argv) if a == "--lora"]
        loras = body.get("lora", []) if self.path in READS_LORA else []
        kept = [one for one in loras if dropped not in {str(one["id"]), *files[one["id"] : one["id"] + 1]}]
        scales = [one["scale"] for one in kept]
        by = [files[one["id"]] for one in kept if one["scale"] and files]
        text, apart = f"scales {scales}", -1 - sum(scales)
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        if body.get("stream"):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for at in range(3):
                self._event({"at": at, "by": by, "model": "/srv/base.gguf", "choices": [{"index": 0, "text": text}]})
            if (body.get("stream_options") or {}).get("include_usage"):
                self._event({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")
            return
        if str(body.get("prompt", "")).startswith(HELD):
            held = Path(body["prompt"].removeprefix(HELD))
            held.with_suffix(".begun").touch()
            while not held.exists():
                time.sleep(0.01)
        told = {
            "argv": sys.argv[1:], "by": by, "pid": os.getpid(), "path": self.path, **body, "model": "/srv/base.gguf", "usage": usage,
            "choices": [{"index": 0, "text": text, "logprobs": {"token_logprobs": [apart]}}], "content": text, "headers": dict(self.headers.items()),
        }  # fmt: skip
        self._send("application/json", json.dumps(told).encode())

    def _event(self, value: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()

    def _send(self, kind: str, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def started(words: Sequence[str] = ()) -> Iterator[Address]:
    """Run the stand-in in a process of its own."""
    from adapterhub.inference.serving.llama_cpp.engine import Address, environ_of
    from adapterhub.inference.serving.process import EngineProcess, free_port

    where = Address(port=free_port("127.0.0.1"), key="the engine's key")
    command = [sys.executable, __file__, *where.words, *words]
    with EngineProcess(command, environ_of(os.environ, where), output=None) as process:
        process.wait_until_ready(where.answers, within_s=120)
        yield where


def program(folder: Path) -> Path:
    """Write a program that runs the stand-in, for `--llama-server`."""
    file = folder / "llama-server"
    file.write_text(f"#!{sys.executable}\n" + Path(__file__).read_text())
    file.chmod(0o755)
    return file


if __name__ == "__main__" and "--help" not in sys.argv:
    if word("--breaks") and any(Path(one).stem == word("--breaks") for one in sys.argv[1:] if one.endswith(".gguf")):
        sys.exit("not enough memory")
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
