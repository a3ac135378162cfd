"""Runs a test tool that the user names, in a child process without a network."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapterhub.core.errors import EngineFailed, UsageProblem, shown

OFFLINE: Final[Mapping[str, str]] = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_TRUST_REMOTE_CODE": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What a child gets, so that the Hugging Face libraries in it open no connection and run no code of a data set."""

_TOKENS: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "ADAPTERHUB_TOKEN", "ADAPTERHUB_PASSWORD")
_TAIL_BYTES: Final = 4096
_LINES_SHOWN: Final = 8
_GRACE_S: Final = 5
MAX_REPORT_BYTES: Final = 256 << 20
"""Of one file that a tool writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A tool that has ended: its exit code, its last lines, and its CPU seconds; `is_over` if they were too many."""

    code: int
    tail: str
    cpu_seconds: float
    is_over: bool

    def failed(self, tool: str) -> EngineFailed:
        """The error for a tool that ended without a result."""
        return EngineFailed(f"`{tool}` ended with code {self.code} and without a result:\n{self.tail}".rstrip(": \n"))


def find_tool(names: Sequence[str], install: str, path: str) -> str:
    """The place of a tool: beside this Python first, then in the folders of `path`, as in PATH.

    Raises:
        UsageProblem: it is not installed; the hint is the command that installs it.
    """
    places = os.pathsep.join([str(Path(sys.executable).parent), path or os.defpath])
    for name in names:
        if (found := shutil.which(name, path=places)) is not None:
            return str(Path(found).absolute())
    raise UsageProblem(f"the tool `{names[0]}` is not installed", hint=f"`{install}` installs it")


def run_tool(words: Sequence[str], *, folder: Path, environ: Mapping[str, str], budget_s: float) -> Ran:
    """Run a tool in `folder` to its end, with `environ` less its tokens and with the settings that keep it offline.

    `budget_s` are CPU seconds, after which the tool is ended. The child ends with an interrupt of the parent.

    Raises:
        EngineFailed: it does not start.
    """
    own = {name: value for name, value in environ.items() if name not in _TOKENS}
    before = _children_s()
    with tempfile.TemporaryFile() as out:
        try:
            process = subprocess.Popen(  # noqa: S603 - a tool that the user names
                list(words),
                cwd=folder,
                env={**own, **OFFLINE},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise EngineFailed(f"`{shown(words[0], 200)}` does not start: {error.strerror}") from None
        try:
            _limit(process.pid, budget_s)
            code = process.wait()
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        out.seek(max(out.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
        lines = [line for line in out.read().decode(errors="replace").splitlines() if line.strip()]
    used = _children_s() - before
    is_over = code == -signal.SIGXCPU or (code == -signal.SIGKILL and used >= budget_s)
    tail = "\n".join(f"  {shown(line, 200)}" for line in lines[-_LINES_SHOWN:])
    return Ran(code=code, tail=tail, cpu_seconds=used, is_over=is_over)


def _limit(pid: int, budget_s: float) -> None:
    """Let the kernel end the process after its CPU seconds, where the kernel can (Linux)."""
    if hasattr(resource, "prlimit"):
        seconds = math.ceil(budget_s)
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_CPU, (seconds, seconds + _GRACE_S))


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
