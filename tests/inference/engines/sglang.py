"""SGLang on a CPU, from packages of PyPI: real but for the kernels of its package `sglang-kernel`, which need a GPU.

PyPI has no build of SGLang for CPUs. Its Python has a path without kernels for attention, LoRA and sampling
(`torch_native`, `pytorch`). It needs two changes: an empty module in place of `sgl_kernel`, which it imports early, and
memory that is not pinned. torch and most other packages are those of the environment with vLLM.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from adapterhub.inference.serving.process import EngineProcess, free_port
from tests.inference.engines.servers import START_S, Server, vllm_python
from tests.support.real_base import cache_folder

VERSION = "0.5.23"
_PACKAGES = (f"sglang=={VERSION}", "orjson", "triton", "ipython", "traitlets", "gguf", "soundfile")
_ARGUMENTS = (
    *("--device", "cpu", "--dtype", "float32", "--context-length", "256", "--mem-fraction-static", "0.3"),
    *("--attention-backend", "torch_native", "--sampling-backend", "pytorch", "--grammar-backend", "none"),
    *("--max-total-tokens", "2048", "--max-running-requests", "4", "--log-level", "info"),
    *("--disable-overlap-schedule", "--skip-server-warmup"),
    *("--enable-lora", "--lora-backend", "torch_native", "--max-lora-rank", "16", "--lora-target-modules", "all"),
)
_EMPTY_KERNELS = """
import importlib.abc, importlib.machinery, sys, types

class Missing:
    def __init__(self, name): self._name = name
    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)
        return Missing(f"{self._name}.{name}")
    def __call__(self, *_, **__): raise RuntimeError(f"{self._name} needs a GPU")

class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "sgl_kernel" else None
    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__, module.__version__ = [], "0"
        module.__getattr__ = Missing(spec.name).__getattr__
        return module
    def exec_module(self, module): pass

sys.meta_path.append(Finder())
"""


def sglang_python() -> Path:
    """The interpreter of an environment that has SGLang; made when it is not there (1.3 GB, a minute)."""
    folder = cache_folder() / f"sglang-{VERSION}"
    python, done = folder / "bin" / "python", folder / ".complete"
    if not done.is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, *_PACKAGES], check=True)
        site = next(folder.glob("lib/python*/site-packages"))
        beside = next(Path(vllm_python()).parent.parent.glob("lib/python*/site-packages"))
        (site / "empty_kernels.py").write_text(_EMPTY_KERNELS)
        (site / "zz_beside.pth").write_text(f"{beside}\nimport empty_kernels\n")
        for path in (site / "sglang" / "srt").rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            mended = text.replace("pin_memory=True", "pin_memory=False").replace(".pin_memory()", "")
            if mended != text:
                path.write_text(mended, encoding="utf-8")
        done.touch()
    return python


@contextlib.contextmanager
def running_sglang(model: Path, log: Path, port: int = 0) -> Iterator[Server]:
    """SGLang as its own documentation starts it, with LoRA."""
    port = port or free_port("127.0.0.1")
    command = [
        *(str(sglang_python()), "-m", "sglang.launch_server", "--model-path", str(model)),
        *("--served-model-name", "base", "--host", "127.0.0.1", "--port", str(port), *_ARGUMENTS),
    ]
    environ = {**os.environ, "SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environ.pop("PYTHONPATH", None)
    with log.open("ab") as output, EngineProcess(command, environ, output=output) as process:
        process.wait_until_ready(f"http://127.0.0.1:{port}/health", within_s=START_S)
        yield Server(f"http://127.0.0.1:{port}", process.pid, log)
