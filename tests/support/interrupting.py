"""Commands that are interrupted in the middle of their work, wherever that is on the machine of the day."""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.command_line import Done
from tests.support.forked import forked


def adapt_interrupted_at(
    module: str, name: str, number: int, *arguments: object, folder: Path, environ: Mapping[str, str] = os.environ
) -> Done:
    """`adapt` in a child that sends itself a signal when it comes to the third call of `module.name`."""

    def arm() -> None:
        *path, last = name.split(".")
        holder: Any = importlib.import_module(module)
        for part in path:
            holder = getattr(holder, part)
        whole, calls = getattr(holder, last), itertools.count(1)

        def interrupted(*given: Any, **named: Any) -> Any:
            if next(calls) == 3:
                os.kill(os.getpid(), number)
            return whole(*given, **named)

        setattr(holder, last, interrupted)

    with forked(*arguments, environ=environ, folder=folder, first=arm) as child:
        said, complaints = child.stdout.read().decode(), child.stderr.read().decode()
    assert child.returncode is not None
    return Done(exit_code=child.returncode, stdout=said, stderr=complaints)
