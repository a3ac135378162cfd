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
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from adapterhub.core.disk.claims import holder_facts, read_holder
from adapterhub.core.disk.files import write_durably
from adapterhub.core.disk.home import FOLDERS
from adapterhub.core.disk.real_folder import make_folder
from adapterhub.core.errors import AdapterHubError, DiskFull, NotAllowed, StoreLocked

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
        """The refusal for an operating-system error while writing below the root."""
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

        usage = shutil.disk_usage(next(p for p in (self.root, *self.root.absolute().parents) if p.exists()))
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
                    data = json.dumps(holder_facts()).encode()
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
    """The absolute path as text, with the links that the user named; `resolve` would replace them."""
    return os.path.abspath(path)  # noqa: PTH100 - `absolute` would keep `..`


def place_key(place: str) -> str:
    """The name of a project's records in a library: 16 hex digits of the hash of its path."""
    return hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:16]
