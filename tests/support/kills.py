"""Runs an action in a child that is killed before one of its changes of a name: no process has to start, nothing is imported."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

CHANGE = "adapterhub.tests.change"
"""What an action gives to `sys.audit` before changes that the interpreter does not see, such as those of a database."""
CALLS = {"os.rename", "os.link", "os.mkdir", "os.remove", CHANGE}


def in_child(action: Callable[[], object], stops_at: int = 0) -> int | None:
    """Run `action` in a child, killed before its `stops_at`-th change of a name; how many it made, None if it was killed.

    An action that fails counts as killed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, _arguments: object) -> None:
            nonlocal count
            if event in CALLS:
                count += 1
                if count == stops_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        sys.dont_write_bytecode = True  # of a module that is imported late: no change that the action makes
        try:
            sys.addaudithook(hook)
            action()
            os.write(writing, str(count).encode())
            code = 0
        finally:
            os._exit(code)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as said:
        return int(text) if (text := said.read()) else None
