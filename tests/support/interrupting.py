"""Commands that are interrupted in the middle of their work, wherever that is on the machine of the day."""

from __future__ import annotations

import sys

_PROGRAM = """
import os
import {module}
from adapterhub.cli import main

whole, calls = {module}.{name}, []

def interrupted(*given, **named):
    calls.append(None)
    if len(calls) == {call}:
        os.kill(os.getpid(), {number})
    return whole(*given, **named)

{module}.{name} = interrupted
main()
"""


def adapt_interrupted_at(module: str, name: str, number: int, *, call: int = 3) -> list[str]:
    """`adapt` as a process that sends itself a signal when it comes to the third `call` of `module.name`."""
    return [sys.executable, "-c", _PROGRAM.format(module=module, name=name, number=int(number), call=call)]
