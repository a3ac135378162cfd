"""`adapt serve` as a process of its own, which ends with the block."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.command_line import Adapt

ROOT = Path(__file__).resolve().parent.parent.parent
Serving = tuple[Any, "subprocess.Popen[str]"]


@contextlib.contextmanager
def serve_command(adapt: Adapt, *arguments: str, **environ: str) -> Iterator[Serving]:
    """The document that it prints when it is ready, and the process."""
    words = ("serve", *arguments, "--port", "0", "--json", "--root", str(adapt.library.root))
    made = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'registry'}"} | environ
    command = [sys.executable, "-m", "adapterhub.cli", *words]
    process = subprocess.Popen(command, env=made, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        lines = [""]
        while lines[-1] != "}\n":
            lines.append(process.stdout.readline())
            assert lines[-1], process.communicate()[1]
        yield json.loads("".join(lines)), process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)
