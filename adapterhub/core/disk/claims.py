"""Claims: small files that record what a running process needs, locked by `flock` while it runs.

    intents/<name>   an add or install in progress: the digests it will name, and its folder `tmp/<name>`
    leases/<name>    an installed build that a long-running process reads
    servers/<name>   a running registry: its address, and the token of its operator

A claim ends with its process, even after a crash, because the lock counts and not the file. `flock` may not work
between machines, so a claim from another machine counts for a day after it was made.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Final

from adapterhub.core.digests import Digest, strict_json
from adapterhub.core.disk.real_folder import make_folder
from adapterhub.core.errors import StoreLocked, shown

FOREIGN_S: Final = 24 * 3600.0
"""How long a claim from another machine counts when it is unknown whether its process still runs."""

_UNBORN: Final = "."
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_LIMIT_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process behind a lock or claim.

    `since` is a time stamp in seconds. `boot` is the same for all processes of one running kernel, in containers too;
    "" where the system has no such id.
    """

    pid: int
    host: str
    boot: str
    since: float

    @property
    def is_here(self) -> bool:
        """Whether it runs under the same kernel as this process, so that `flock` is reliable."""
        ours = myself()
        return self.boot == ours.boot if self.boot and ours.boot else self.host == ours.host

    @property
    def was_here(self) -> bool:
        """Whether it ran on this machine before the last boot, so that it has certainly ended."""
        return self.host == myself().host and not self.is_here

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.since, tz=timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        where = "" if self.is_here else f" on `{shown(self.host)}`"
        return f"process {self.pid}{where} (since {when})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The content of a claim: its holder, the digests it needs, and the purpose."""

    path: Path
    holder: Holder
    digests: frozenset[Digest]
    what: str


@cache
def _boot() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def myself() -> Holder:
    """This process."""
    return Holder(pid=os.getpid(), host=os.uname().nodename, boot=_boot(), since=time.time())


class Held:
    """A claim of this process."""

    def __init__(self, path: Path, handle: int, what: str) -> None:
        self.path = path
        self._handle = handle
        self._what = what

    def write(self, digests: Iterable[Digest]) -> None:
        """Replace the digests that are needed. The caller's lock must keep readers of claims away meanwhile."""
        facts = {**holder_facts(), "what": self._what, "digests": sorted(digests)}
        data = json.dumps(facts).encode()
        os.pwrite(self._handle, data, 0)
        os.ftruncate(self._handle, len(data))


@contextlib.contextmanager
def claim(folder: Path, what: str, digests: Iterable[Digest] = (), *, mode: int = 0o644) -> Iterator[Held]:
    """Hold a new claim in `folder` while the block runs; `mode` says who may read it.

    It appears under its name with its lock held, so no reader takes it for a claim whose process has ended.

    Raises:
        OSError: it cannot be written.
    """
    name = f"{os.getpid()}-{os.urandom(6).hex()}"
    make_folder(folder)
    unborn, path = folder / f"{_UNBORN}{name}", folder / name
    handle = os.open(unborn, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = Held(path, handle, what)
        held.write(digests)
        unborn.rename(path)
        yield held
    finally:
        for left in (unborn, path):
            with contextlib.suppress(OSError):
                left.unlink()
        os.close(handle)


def living(folder: Path) -> list[Claim]:
    """Claims whose process runs, or may run on another machine.

    Raises:
        StoreLocked: a held claim cannot be read, so what it needs is unknown.
    """
    found = []
    for path in _paths(folder):
        with _opened(path) as handle:
            if handle is not None and not _is_over(handle, path):
                found.append(_parsed(handle, path))
    return found


def finished(folder: Path) -> list[Path]:
    """Claims whose process has ended."""
    found = []
    for path in _paths(folder):
        with _opened(path) as handle:
            if handle is not None and _is_over(handle, path):
                found.append(path)
    return found


def _paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if not path.name.startswith(_UNBORN))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # ended since it was listed, or not a claim
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)


def _is_over(handle: int, path: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two readers do not take each other for the holder
    except OSError:
        return False
    holder = read_holder(handle)
    if holder is None or holder.is_here or holder.was_here:
        return True
    with contextlib.suppress(OSError):
        return time.time() - max(holder.since, path.stat().st_mtime) > FOREIGN_S
    return True


def holder_facts() -> dict[str, object]:
    """This process as the JSON of a claim or a lock file."""
    me = myself()
    return {"pid": me.pid, "host": me.host, "boot": me.boot, "since": me.since}


def read_holder(handle: int) -> Holder | None:
    """Who wrote the open lock file or claim; None when that cannot be read."""
    return _holder(_json(handle))


def _json(handle: int) -> dict[str, object]:
    try:
        value = strict_json(os.pread(handle, _LIMIT_BYTES, 0))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _holder(facts: dict[str, object]) -> Holder | None:
    pid, host, boot, since = (facts.get(key) for key in ("pid", "host", "boot", "since"))
    if isinstance(pid, int) and isinstance(host, str) and isinstance(boot, str) and isinstance(since, int | float):
        return Holder(pid=pid, host=host, boot=boot, since=float(since))
    return None


def _parsed(handle: int, path: Path) -> Claim:
    facts = _json(handle)
    holder, digests = _holder(facts), facts.get("digests")
    if holder is None or not isinstance(digests, list) or not all(isinstance(d, str) for d in digests):
        raise StoreLocked(
            f"`{path}` is held by a process, but its content cannot be read. Nothing was deleted",
            hint=f"wait for it, or find it with `fuser {path}`",
        )
    return Claim(path=path, holder=holder, digests=frozenset(digests), what=str(facts.get("what", "")))
