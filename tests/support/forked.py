"""`adapt` in a child of this process, to be watched and stopped like any other process; nothing is imported anew."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.support.warm_adapt import run_main


@dataclass
class Child:
    """`returncode` is there behind the block: the exit code, or minus the signal that ended it."""

    pid: int
    stdout: IO[bytes]
    stderr: IO[bytes]
    returncode: int | None = None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


@contextlib.contextmanager
def forked(
    *arguments: object,
    environ: Mapping[str, str],
    folder: Path | None = None,
    stdout: int | None = None,
    first: Callable[[], None] = lambda: None,
) -> Iterator[Child]:
    """`adapt` with these arguments in `folder`; the child calls `first` before it begins.

    `stdout` is a descriptor to write to instead of the child's `stdout`.
    """
    (said, saying), (complaints, complaining) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(saying if stdout is None else stdout, 1)
            os.dup2(complaining, 2)
            for end in (said, saying, complaints, complaining):
                os.close(end)
            first()
            code = run_main([str(word) for word in arguments], str(folder or Path.cwd()), dict(environ))
        except BaseException:  # noqa: BLE001 - the end of this process, whatever it is
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(saying)
    os.close(complaining)
    with os.fdopen(said, "rb", buffering=0) as out, os.fdopen(complaints, "rb", buffering=0) as errors:
        child = Child(pid, out, errors)
        yield child
        child.returncode = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
