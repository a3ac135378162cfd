"""Faults of the operating system, by strace: a signal or an error at the n-th call of one kind."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.crash.stand import Stand, Trial, run
from tests.support.programs import needs_strace

CALLS = (
    "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat2", "link", "unlink", "unlinkat", "rmdir", "mkdir", "ftruncate", "fchmod",
)  # fmt: skip
"""The calls by which a library changes anything on the disk."""

ERRORS = (
    ("ENOSPC", ("write", "pwrite64", "rename", "link", "mkdir")),
    ("EIO", ("fsync", "fdatasync", "pwrite64", "rename")),
    ("EINTR", ("write", "pwrite64", "fsync", "flock")),
)
REFUSED = (0, 14, 15, 16)
"""Exit codes after an error of the system: done all the same (it hit nothing that counts), or refused in words."""


def calls_of(stand: Stand) -> dict[str, int]:
    """How often each kind of call is made in a run that nothing disturbs (by the busiest thread)."""
    folder = stand.copy()
    log = folder / "calls.log"
    wanted = ",".join((*CALLS, "flock"))
    done = run(folder, stand.arguments, before=(needs_strace(), "-f", "-qq", "-o", str(log), "-e", f"trace={wanted}"))
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(\d+) +(\w+)\(", log.read_text(), re.MULTILINE)
    counts: dict[str, int] = {}
    for (_, name), number in Counter(found).items():
        counts[name] = max(number, counts.get(name, 0))
    return counts


def injected(call: str, number: int, what: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """How to run a command so that `what` (`signal=…` or `error=…`) happens at its `number`-th `call`."""

    def hurt(folder: Path, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        inject = f"inject={call}:{what}:when={number}"
        before = (needs_strace(), "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)
        return run(folder, arguments, before=before)

    return hurt


def kills(stand: Stand, counts: dict[str, int], keep: Callable[[str, int], bool]) -> Iterator[Trial]:
    """SIGKILL at every call that `keep` wants."""
    for call in CALLS:
        for number in range(1, counts.get(call, 0) + 1):
            if keep(call, number):
                yield stand.trial(
                    f"{stand.command}: killed at {call} {number}", injected(call, number, "signal=SIGKILL")
                )


def errors(stand: Stand, counts: dict[str, int], keep: Callable[[str, int], bool]) -> Iterator[Trial]:
    """A failed call at every place that `keep` wants."""
    for error, calls in ERRORS:
        for call in calls:
            for number in range(1, counts.get(call, 0) + 1):
                if keep(call, number):
                    fault = f"{stand.command}: {error} at {call} {number}"
                    yield stand.trial(fault, injected(call, number, f"error={error}"), codes=REFUSED)


def interrupts(stand: Stand, counts: dict[str, int], keep: Callable[[str, int], bool]) -> Iterator[Trial]:
    """SIGTERM and Ctrl-C: the right exit code, and nothing left behind."""
    for signal, code in (("SIGTERM", 143), ("SIGINT", 130)):
        for call in ("fsync", "rename", "link", "mkdir", "pwrite64"):
            for number in range(1, counts.get(call, 0) + 1):
                if keep(call, number):
                    fault = f"{stand.command}: {signal} at {call} {number}"
                    yield stand.trial(fault, injected(call, number, f"signal={signal}"), codes=(code, 0), is_tidy=True)
