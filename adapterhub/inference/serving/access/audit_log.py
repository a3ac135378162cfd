"""The audit log: one JSON line for each request, written by a thread that no request waits for."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.errors import NotAllowed, shown

if TYPE_CHECKING:
    from typing_extensions import Self

STDERR: Final = "-"
"""The name that means standard error, where the engine's own log goes."""

MOST_WAITING: Final = 10_000
"""How many lines may wait for the disk; later ones are dropped and counted."""

_AT_ONCE: Final = 1000
_END_S: Final = 5.0
_WRITES_EVERY_S: Final = 0.1
_STDERR_HANDLE: Final = 2
_SAID_EVERY_S: Final = 60.0
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)
_log = logging.getLogger("vllm.adapterhub")


class AuditLog:
    """Appends lines to the file at `path`, or to standard error, while a block runs; then writes what still waits.

    The log makes a file that was renamed or deleted again, so any tool may rotate it. When the disk is full, or the
    log cannot keep up, lines are lost and requests go on; the next line that is written says how many.

    Raises:
        NotAllowed: the file cannot be opened, or is no regular file.
    """

    def __init__(self, path: str, *, most_waiting: int = MOST_WAITING) -> None:
        self._path = None if path == STDERR else Path(path).absolute()
        self._most = most_waiting
        self._waiting: deque[Mapping[str, Any]] = deque()
        self._dropped = 0
        self._said_at = -_SAID_EVERY_S
        self._ends = threading.Event()
        self._is_torn = False
        """Whether the file ends in half a line."""
        self._handle = -1
        self._close(self._opened())  # reports a bad place before anything starts
        self._thread = threading.Thread(target=self._run, name="adapterhub-audit", daemon=True)

    def __enter__(self) -> Self:
        self._handle = self._opened()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join(_END_S)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a line. Never blocks and never raises."""
        if len(self._waiting) < self._most:
            self._waiting.append(record)
        else:
            self._dropped += 1

    # ------------------------------------------------------------ the thread
    def _run(self) -> None:
        # It looks by itself from time to time: to wake it for each line would cost a request more than the line.
        while not self._ends.wait(_WRITES_EVERY_S):
            self._write_waiting()
        self._write_waiting()

    def _write_waiting(self) -> None:
        while self._waiting:
            records = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
            dropped, self._dropped = self._dropped, 0
            if dropped:
                records.insert(0, {"time": stamp(time.time()), "dropped": dropped})
            try:
                self._append("".join(json.dumps(record) + "\n" for record in records).encode())
            except OSError as error:
                self._dropped += dropped + len(records) - bool(dropped)
                self._say(f"the audit log loses lines: {error.strerror}")

    def _append(self, data: bytes) -> None:
        self._reopen_if_moved()
        left = memoryview(b"\n" + data if self._is_torn else data)
        while left:
            written = os.write(self._handle, left)
            self._is_torn = left[written - 1] != ord("\n")
            left = left[written:]

    def _reopen_if_moved(self) -> None:
        if self._path is None:
            return
        here = os.fstat(self._handle)
        try:
            there = self._path.stat()
            if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
                return
        except FileNotFoundError:
            pass
        try:
            opened = self._opened()
        except NotAllowed as error:
            raise OSError(0, error.message) from None
        self._close(self._handle)
        self._handle, self._is_torn = opened, False

    def _opened(self) -> int:
        if self._path is None:
            return _STDERR_HANDLE
        name = shown(str(self._path), 200)
        try:
            handle = os.open(self._path, _FLAGS, 0o600)
        except OSError as error:
            raise NotAllowed(f"cannot write the audit log `{name}`: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            hint = "`--audit-log -` writes to standard error"
            raise NotAllowed(f"the audit log `{name}` is no regular file", hint=hint)
        return handle

    @staticmethod
    def _close(handle: int) -> None:
        if handle != _STDERR_HANDLE:
            os.close(handle)

    def _say(self, words: str) -> None:
        if time.monotonic() - self._said_at >= _SAID_EVERY_S:
            self._said_at = time.monotonic()
            with contextlib.suppress(Exception):
                _log.error(words)


def stamp(seconds: float) -> str:
    """A Unix time in UTC, to the millisecond: `2026-05-01T12:00:00.123Z`."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"
