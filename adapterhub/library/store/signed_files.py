"""Signed files on one manifest: results, statements, attestations, in a library or beside a published build."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from adapterhub.core.digests import Digest, digest_of, hex_of
from adapterhub.core.disk.files import not_written, read_plain, write_durably
from adapterhub.core.errors import NotAllowed
from adapterhub.library.store.blobs import Store

_MOST_READ: Final = 1000


class SignedFiles:
    """The files of one kind on one manifest, each with the digest of its bytes as its name."""

    def __init__(self, folder: Path, manifest: Digest, store: Store | None = None, *, limit_bytes: int) -> None:
        """`folder` is that of the kind; `store` is that of the library, None in a published directory."""
        self._folder, self._limit_bytes = folder / hex_of(manifest), limit_bytes
        self._manifest, self._store = manifest, store

    def read(self) -> list[bytes]:
        """Return the files, by name, unverified; what is not a regular file or too large is left out."""
        found = []
        for path in sorted(self._folder.glob("*.json"))[:_MOST_READ] if not self._folder.is_symlink() else ():
            with contextlib.suppress(OSError):
                raw = b"" if path.is_symlink() else read_plain(path, self._limit_bytes)
                found += [raw] if 0 < len(raw) <= self._limit_bytes else []
        return found

    def add(self, raw: bytes) -> Path:
        """Write a file; the same one twice is one file.

        Raises:
            NotAllowed, DiskFull: it cannot be written.
        """
        path = self._folder / f"{hex_of(digest_of(raw))}.json"
        if self._store is not None:
            self._store.write(path, raw)
            return path
        for folder in (self._folder, self._folder.parent):
            if folder.is_symlink():
                raise NotAllowed(
                    f"`{folder}` is a link; results are written into real folders. Nothing was written",
                    hint="replace the link with the folder",
                )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_durably(path, raw)
        except OSError as error:
            raise not_written(error, path) from error
        return path
