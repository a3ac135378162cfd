"""A stand-in for vLLM that starts in a tenth of a second: its plugin interface, its routes for names, its child process.

What it stands for was read in vLLM 0.32 and is proved with the real one in `tests/inference/engines`; here it lets the default run
start, ask, kill and stop a server.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_FILES = {
    "vllm/__init__.py": "",
    "vllm/platforms.py": "class current_platform:\n    is_cpu = staticmethod(lambda: True)\n",
    "vllm/exceptions.py": """
class GracefulHTTPError(Exception):
    def __init__(self, message, http_status):
        super().__init__(message)
        self.message, self.http_status = message, http_status
""",
    "vllm/lora/__init__.py": "",
    "vllm/lora/request.py": """
from dataclasses import dataclass

@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str
    base_model_name: str | None = None
""",
    "vllm/lora/resolver.py": """
from abc import ABC

class LoRAResolver(ABC):
    pass

class LoRAResolverRegistry:
    resolvers = {}
    get_supported_resolvers = classmethod(lambda cls: cls.resolvers.keys())
    register_resolver = classmethod(lambda cls, name, resolver: cls.resolvers.update({name: resolver}))
""",
    "vllm/lora/punica_wrapper/__init__.py": "",
    "vllm/lora/punica_wrapper/punica_cpu.py": "".join(
        f"def {kind}_{what}(*rest): pass\n"
        for kind in ("bgmv", "sgmv")
        for what in ("shrink", "expand", "expand_slice")
    )
    + "class PunicaWrapperCPU:\n"
    + "".join(f"    def add_lora_{what}(*rest): pass\n" for what in ("linear", "logits", "embedding")),
    "vllm/entrypoints/__init__.py": "",
    "vllm/entrypoints/openai/__init__.py": "",
    "vllm/entrypoints/openai/api_server.py": """
import asyncio, json, os, signal, subprocess, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import entry_points
from vllm.exceptions import GracefulHTTPError
from vllm.lora.resolver import LoRAResolverRegistry

option = lambda name: sys.argv[sys.argv.index(name) + 1]
if "--fail" in sys.argv:
    sys.exit("no memory for this model")
assert os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
for point in {p.name: p for p in entry_points(group="vllm.general_plugins")}.values():
    point.load()()
core = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
known = {option("--served-model-name"): option("--model")}

def load(name):
    (resolver,) = LoRAResolverRegistry.resolvers.values()
    known[name] = asyncio.run(resolver.resolve_lora(option("--model"), name)).lora_path

for one in LoRAResolverRegistry.resolvers.values():
    one.base_model = option("--model")
for name in os.environ.get("ADAPTERHUB_SERVE_PRELOAD", "").splitlines():
    (resolver,) = LoRAResolverRegistry.resolvers.values()
    for spec in asyncio.run(resolver.aliases.targets(name)):
        load(spec)

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer(200, {})
    def do_POST(self):
        if "--api-key" in sys.argv and self.headers["Authorization"] != "Bearer " + option("--api-key"):
            return self.answer(401, {"error": "Unauthorized"})
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        (resolver,) = LoRAResolverRegistry.resolvers.values()
        if self.path == "/adapterhub/aliases":  # as the guard's middleware answers, which needs ASGI
            assert self.headers["x-control-key"] == os.environ["ADAPTERHUB_SERVE_CONTROL_KEY"]
            return self.answer(200, {"aliases": asyncio.run(resolver.aliases.refresh())})
        name = json.loads(raw)["model"]
        try:
            name = asyncio.run(resolver.aliases.exact(name))
            if name not in known:
                load(name)
        except GracefulHTTPError as error:
            self.answer(error.http_status.value, {"error": {"message": error.message}})
        else:
            self.answer(200, {"model": name, "path": known[name]})

server = ThreadingHTTPServer(("127.0.0.1", int(option("--port"))), Handler)

def stop(*_):
    core.terminate()
    raise SystemExit(0)

signal.signal(signal.SIGTERM, stop)
server.serve_forever()
""",
    "vllm-0.32.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n",
    "standin_plugin-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: standin-plugin\nVersion: 1.0\n",
    "standin_plugin-1.0.dist-info/entry_points.txt": "[vllm.general_plugins]\nadapterhub = adapterhub.vllm_plugin:register\n",
}


def make_standin(folder: Path) -> Path:
    """An interpreter that has it."""
    for name, text in _FILES.items():
        path = folder / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder / "site"}:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


@contextlib.contextmanager
def importable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let `import vllm` find the stand-in while the block runs."""
    make_standin(folder)
    monkeypatch.syspath_prepend(folder / "site")
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        del sys.modules[name]
