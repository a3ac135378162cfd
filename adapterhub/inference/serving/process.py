"""An inference engine as a child process: starts it in its own group, waits until it answers, and ends the group.

Engines start more processes, and a killed engine may leave them behind. So `stop` ends the group: it first lets the
child end itself, and then ends all that is left.
It also chooses ports and addresses of engines on this machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import IO, TYPE_CHECKING, Final, NoReturn

from adapterhub.core.errors import Conflict, EngineFailed, UsageProblem, shown

if TYPE_CHECKING:
    from typing_extensions import Self

STOP_S: Final = 30.0
"""How long an engine may take to end by itself."""

_POLL_S: Final = 0.2
_ANSWER_S: Final = 5.0
_KILLED_S: Final = 5.0
_PR_SET_PDEATHSIG: Final = 1
_C: Final = ctypes.CDLL(None)
"""Loaded here: a process that was forked beside other threads could wait for good for the lock of the loader."""


class EngineProcess:
    """A running engine; a context manager that ends the engine and all processes that it started.

    It gets the signal `ends_by` when this process is killed; one that may be stopped then ends by SIGKILL only.
    """

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        output: IO[bytes] | int | None,
        ends_by: int = signal.SIGTERM,
    ) -> None:
        self.command = list(command)
        name = getattr(output, "name", None)
        where = f"at the end of `{name}`" if isinstance(name, str) else "above"
        self._reason = f"its last output, {where}, shows the reason"
        self._process = subprocess.Popen(  # noqa: S603 - our own words
            self.command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=functools.partial(_ends_with_parent, ends_by) if sys.platform == "linux" else None,  # noqa: PLW1509 - it needs no lock that another thread may hold
        )
        self._is_stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id, which is also the id of its group."""
        return self._process.pid

    def wait_until_ready(
        self, ready: str | Callable[[], bool], *, within_s: float, while_waiting: Callable[[], None] = lambda: None
    ) -> None:
        """Return when a GET of the URL `ready` answers 200, or the function `ready` returns True.

        Raises:
            EngineFailed: the engine ended, or did not answer within `within_s` seconds.
        """
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            code = self._process.poll()
            if code is not None:
                raise EngineFailed(f"the engine {_ended(code)} before it was ready", hint=self._reason)
            if _answers(ready) if isinstance(ready, str) else ready():
                return
            while_waiting()
            time.sleep(_POLL_S)
        raise EngineFailed(
            f"the engine did not answer within {within_s:g} s and was stopped",
            hint="a large model may need longer: `--start-timeout SECONDS`",
        )

    def ensure_runs(self) -> None:
        """Raise unless the engine runs, or was stopped.

        Raises:
            EngineFailed: it ended by itself.
        """
        code = self._process.poll()
        if code is not None and not self._is_stopped:
            raise EngineFailed(f"the engine {_ended(code)} by itself", hint=self._reason)

    def stop(self, within_s: float = STOP_S) -> None:
        """End the engine and all processes that it started; kill those that still run after `within_s`."""
        self._is_stopped = True
        try:
            if self._process.poll() is None:
                self._process.terminate()
                self._signal_group(signal.SIGCONT)  # it may be stopped, and would not end
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(within_s)
            self._signal_group(signal.SIGTERM)
            self._wait_for_group()
        finally:  # also after a second interrupt by an impatient user
            self._signal_group(signal.SIGKILL)
            self._process.wait()
        self._wait_for_group()

    def _wait_for_group(self) -> None:
        end = time.monotonic() + _KILLED_S
        while self._group_lives() and time.monotonic() < end:
            time.sleep(_POLL_S / 4)

    def _group_lives(self) -> bool:
        self._process.poll()  # reap the child, which counts as alive until then
        return self._signal_group(0)

    def _signal_group(self, number: int) -> bool:
        """Signal the group; whether it has a process left. Its id is not reused as long as it has one."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


def wait_for(engines: Sequence[EngineProcess]) -> NoReturn:
    """Block until an interrupt. Another thread may replace engines of the list.

    Raises:
        EngineFailed: an engine ended by itself.
    """
    # Not `Popen.wait()`: a signal that comes just before a call that blocks for good would wait with it.
    while True:
        for engine in engines:
            engine.ensure_runs()
        time.sleep(_POLL_S)


def _ends_with_parent(number: int) -> None:
    # If this process is killed, the kernel sends the engine the signal. Otherwise it would keep its port and memory.
    # It does so when the thread ends that started the engine, too: such a thread has to live as long as the engine.
    _C.prctl(_PR_SET_PDEATHSIG, number)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_S) as answer:  # noqa: S310 - our own URL on loopback
            return bool(answer.status == HTTPStatus.OK)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def _ended(code: int) -> str:
    if code < 0:
        return f"was ended by signal {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


_kept: Final[list[socket.socket]] = []
"""Sockets that hold the free ports: the system gives none of these to a program that asks for any, and the engine that
names its port may listen there."""


def free_port(host: str, port: int = 0) -> int:
    """`port` if it is free; any free port for 0, which on Linux no other program gets until this process ends.

    Check early: an engine that cannot listen fails late, and until then the other server on the port answers.

    Raises:
        Conflict: the port is taken.
        UsageProblem: this machine has no such address.
    """
    probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_kept := port == 0 and sys.platform == "linux":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # engines set one of the two, or both
        probe.bind((host, port))
    except OSError as error:
        probe.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(f"port {port} of `{host}` is taken", hint="`--port 0` takes a free one") from None
        raise UsageProblem(
            f"cannot listen on `{shown(host)}`, port {port}: {error.strerror}", hint="choose another port with `--port`"
        ) from None
    found: int = probe.getsockname()[1]
    if is_kept:
        _kept.append(probe)
    else:
        probe.close()
    return found


def reachable(host: str) -> str:
    """Return the address at which this machine reaches a server that listens on `host`."""
    if host in {"", "0.0.0.0"}:  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host
