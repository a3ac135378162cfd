"""`model.sig` in a folder: read without following links, with what lies beside it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from adapterhub.core.errors import SignatureRefused, shown
from adapterhub.formats.manifest import SIGNATURE_FILE
from adapterhub.formats.release import Provenance

MAX_ENTRIES: Final = 20_000


def provenance_of(folder: Path, *, follow_links: bool = False) -> Provenance:
    """The signature in a folder and what lies beside it; links count as links unless `follow_links` is set.

    Raises:
        SignatureRefused: `model.sig` is not a regular file, or is too large.
    """
    files: dict[str, str] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            is_link = entry.is_symlink() and not follow_links
            kind = "link" if is_link else "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
            files[entry.name] = kind
            if len(files) > MAX_ENTRIES:
                break  # not an adapter; the first names suffice to report unsigned files
    return Provenance(signature=read_signature(folder / SIGNATURE_FILE, follow_links=follow_links), files=files)


def read_signature(path: Path, *, follow_links: bool = False) -> bytes | None:
    """The bytes of a signature file; None where there is none.

    Raises:
        SignatureRefused: it is not a regular file, or is too large.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW))
    except FileNotFoundError:
        return None
    except OSError as error:
        what = "is a link" if error.errno == errno.ELOOP else f"cannot be read: {error.strerror}"
        raise _odd(path, what) from None
    from adapterhub.formats.signed import SIGNATURE_LIMIT_BYTES

    if not stat.S_ISREG(os.fstat(handle).st_mode):  # before `fdopen`, which has its own error for a folder
        os.close(handle)
        raise _odd(path, "is not a regular file")
    with os.fdopen(handle, "rb") as stream:
        raw = stream.read(SIGNATURE_LIMIT_BYTES + 1)
    return bounded(raw, str(path))


def bounded(raw: bytes, where: str) -> bytes:
    """The bytes, unless they are too many for a signature.

    Raises:
        SignatureRefused: more than 1 MiB.
    """
    from adapterhub.formats.signed import SIGNATURE_LIMIT_BYTES

    if len(raw) > SIGNATURE_LIMIT_BYTES:
        raise _odd(Path(where), f"holds more than {SIGNATURE_LIMIT_BYTES} bytes, which no signature does")
    return raw


def _odd(path: Path, what: str) -> SignatureRefused:
    return SignatureRefused(f"`{shown(str(path), 200)}`", f"it {what}", reason="broken")
