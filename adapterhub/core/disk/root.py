"""The root folder of a library: its locks, its small records, and refusals in place of operating-system errors."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Final

from adapterhub.core.digests import Digest, strict_json
from adapterhub.core.disk.files import make_folder, write_durably
from adapterhub.core.disk.home import FOLDERS
from adapterhub.core.errors import AdapterHubError, DiskFull, NotAllowed, StoreLocked, shown

_RESERVE_BYTES: Final = 16 << 20
_TURNS: Final[dict[str, threading.Lock]] = {}
"""By path: the threads of this process take turns at a lock, as one that looks again and again sleeps too long."""


class Root:
    """The folder `root`. Cheap to construct; nothing is written to disk before the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def os_errors_as_refusals(self) -> Iterator[None]:
        """Turn operating-system errors in the block into refusals."""
        try:
            yield
        except OSError as error:
            raise self.explain(error) from error

    def explain(self, error: OSError) -> AdapterHubError:
        """Return the refusal for an operating-system error while writing below the root."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            import shutil

            free = shutil.disk_usage(self.root if self.root.exists() else self.root.parent).free
            return DiskFull(
                f"no room to write in `{self.root}` ({error.strerror}; {free:,} bytes free). Nothing was stored",
                hint="`adapt cache clean` frees what no installed adapter uses",
            )
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return NotAllowed(
                f"cannot write in `{self.root}`: {error.strerror}. Nothing was stored",
                hint="choose another home with `--root DIR` or ADAPTERHUB_HOME",
            )
        return NotAllowed(
            f"`{error.filename or self.root}`: {error.strerror}. Nothing was stored",
            hint="`adapt doctor` checks the store",
        )

    def write(self, path: Path, data: bytes, *, mode: int = 0o644, sync: bool = True) -> None:
        """Replace a small record of the library; see `write_durably`.

        Raises:
            NotAllowed, DiskFull: it cannot be written; the old record stays.
        """
        self.ensure_real_folders()
        with self.os_errors_as_refusals():
            write_durably(path, data, mode=mode, sync=sync)

    def ensure_real_folders(self) -> None:
        """Raise if a folder of the library is a link, which would lead writes out of the library.

        Raises:
            NotAllowed: one is a link.
        """
        for name in FOLDERS:
            place = f"{self.root}/{name}"
            if os.path.islink(place):  # noqa: PTH114 - twenty for each lock
                raise NotAllowed(
                    f"`{place}` is a link; the folders of a library are real ones. Nothing was changed",
                    hint="put the folder itself there; a library that should lie elsewhere is moved, or linked, whole",
                )

    def need_room(self, size_bytes: int) -> None:
        """Raise unless `size_bytes` and a reserve for other writes are free.

        Raises:
            DiskFull: too little is free.
        """
        import shutil

        usage = shutil.disk_usage(next(filter(Path.exists, (self.root, *self.root.absolute().parents))))
        reserve = min(_RESERVE_BYTES, usage.total // 100)
        if usage.free < size_bytes + reserve:
            raise DiskFull(
                f"no room in `{self.root}`: {size_bytes:,} bytes are needed and {reserve:,} kept in reserve, "
                f"{usage.free:,} are free. Nothing was stored",
                hint="`adapt cache clean` frees what no installed adapter uses",
            )

    @contextlib.contextmanager
    def lock(self, name: str, *, exclusive: bool, wait_s: float = 30.0) -> Iterator[None]:
        """Hold the advisory lock `name`, shared or exclusive, during the block.

        Raises:
            StoreLocked: another process held it for `wait_s` seconds; the message names it.
        """
        self.ensure_real_folders()
        path = self.root / "locks" / name
        with self.os_errors_as_refusals():
            make_folder(path.parent)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + wait_s
        turn = _TURNS.setdefault(f"{path}", threading.Lock()) if exclusive else None
        is_my_turn = turn is None or turn.acquire(timeout=wait_s)
        try:
            if not is_my_turn:
                raise self._locked(handle, name, wait_s)
            self._acquire(handle, name, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, wait_s, deadline)
            if exclusive:
                with contextlib.suppress(OSError):  # only for the message of waiting processes
                    data = json.dumps(asdict(myself())).encode()
                    os.ftruncate(handle, os.pwrite(handle, data, 0))
            yield
        finally:
            os.close(handle)
            if turn is not None and is_my_turn:
                turn.release()

    def _acquire(self, handle: int, name: str, mode: int, wait_s: float, deadline: float) -> None:
        pause = 0.005
        while True:
            try:
                fcntl.flock(handle, mode | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise self._locked(handle, name, wait_s) from None
                time.sleep(pause)
                pause = min(pause * 2, 0.2)
            except OSError as error:
                raise self.explain(error) from error
            else:
                return

    def _locked(self, handle: int, name: str, wait_s: float) -> StoreLocked:
        holder = read_holder(handle)
        return StoreLocked(
            f"another process has held the `{name}` lock of `{self.root}` for {wait_s:.0f} s"
            + (f"; the last to take it alone was {holder}" if holder else ""),
            hint=f"wait for it, or look with `fuser {self.root / 'locks' / name}` who holds it; "
            "the lock ends with its process",
        )


@contextlib.contextmanager
def alone_in(project: Path, root: Root, what: str) -> Iterator[None]:
    """Let one command at a time do `what` in a project, whatever path leads to it.

    Raises:
        StoreLocked: another command still does.
    """
    with root.lock(f"{what}-{place_key(os.path.realpath(project))}", exclusive=True):
        yield


def absolute(path: Path) -> str:
    """Return the absolute path as text, with the links that the user named; `resolve` would replace them."""
    return os.path.abspath(path)  # noqa: PTH100 - `absolute` would keep `..`


def place_key(place: str) -> str:
    """Return the name of a project's records in a library: 16 hex digits of the hash of its path."""
    return hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:16]


FOREIGN_S: Final = 24 * 3600.0
"""How long a claim from another machine counts when it is unknown whether its process still runs."""

_UNBORN: Final = "."
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_LIMIT_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process behind a lock or claim.

    `since` is a time stamp in seconds. `boot` is the same for all processes of one running kernel, in containers too;
    "" if the system has no such id.
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
    """Return this process."""
    return Holder(pid=os.getpid(), host=os.uname().nodename, boot=_boot(), since=time.time())


@dataclass(frozen=True)
class Held:
    """A claim of this process."""

    path: Path
    _handle: int
    _what: str

    def write(self, digests: Iterable[Digest]) -> None:
        """Replace the digests that are needed. The caller's lock must keep readers of claims away meanwhile."""
        facts = {**asdict(myself()), "what": self._what, "digests": sorted(digests)}
        data = json.dumps(facts).encode()
        os.pwrite(self._handle, data, 0)
        os.ftruncate(self._handle, len(data))


@contextlib.contextmanager
def claim(folder: Path, what: str, digests: Iterable[Digest] = (), *, mode: int = 0o644) -> Iterator[Held]:
    """Hold a new claim in `folder` while the block runs; `mode` sets its read permission.

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
    for path in sorted(folder.glob(f"[!{_UNBORN}]*")):
        with _opened(path) as handle:
            if handle is not None and not _is_over(handle, path):
                found.append(_parsed(handle, path))
    return found


def finished(folder: Path) -> list[Path]:
    """Claims whose process has ended."""
    found = []
    for path in sorted(folder.glob(f"[!{_UNBORN}]*")):
        with _opened(path) as handle:
            if handle is not None and _is_over(handle, path):
                found.append(path)
    return found


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


def read_holder(handle: int) -> Holder | None:
    """Return the writer of the open lock file or claim; None when that cannot be read."""
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
