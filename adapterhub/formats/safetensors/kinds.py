"""Detection of files that people mistake for an adapter's weights, by their first bytes."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapterhub.core.disk.files import read_plain

LOOKED_AT = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of file, and the step that helps."""

    name: str
    hint: str
    is_pickle: bool = False
    is_archive: bool = False
    is_pointer: bool = False


_CONVERT = "convert it where you trust it: load it with PEFT on its base there and call `save_pretrained` again"
_UNPACK = "unpack it yourself, look at what is inside, and give the folder"
_PULL = "run `git lfs pull` in the repository, or download the file from its hub"
POINTER: Final = Kind(
    name="a Git LFS pointer, which stands for a file that was not downloaded", hint=_PULL, is_pointer=True
)
_POINTER_BYTES: Final = 1024
"""Git LFS takes no larger file for a pointer."""
_KINDS: Final[tuple[tuple[bytes, Kind], ...]] = (
    (b"version https://git-lfs", POINTER),
    (b"PK\x03\x04", Kind(name="a zip archive (as `torch.save` writes)", hint=_UNPACK, is_archive=True)),
    (b"PK\x05\x06", Kind(name="an empty zip archive", hint=_UNPACK, is_archive=True)),
    (b"\x1f\x8b", Kind(name="a gzip archive", hint=_UNPACK, is_archive=True)),
    (b"BZh", Kind(name="a bzip2 archive", hint=_UNPACK, is_archive=True)),
    (b"\xfd7zXZ", Kind(name="an xz archive", hint=_UNPACK, is_archive=True)),
    (b"7z\xbc\xaf\x27\x1c", Kind(name="a 7z archive", hint=_UNPACK, is_archive=True)),
    (b"\x28\xb5\x2f\xfd", Kind(name="a zstandard archive", hint=_UNPACK, is_archive=True)),
    (b"Rar!", Kind(name="a rar archive", hint=_UNPACK, is_archive=True)),
    (b"GGUF", Kind(name="a GGUF file", hint="give the PEFT folder it was made from")),
    (b"\x93NUMPY", Kind(name="a numpy array", hint="give the PEFT folder it was made from")),
    (b"\x89HDF", Kind(name="an HDF5 file", hint="give the PEFT folder it was made from")),
)


def is_pointer(path: Path) -> bool:
    """Whether the file is a plain one, and a Git LFS pointer. No larger file is opened, and no link is followed."""
    try:
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _POINTER_BYTES:
            return False
        kind = recognise(read_plain(path, _POINTER_BYTES))
    except OSError:
        return False
    return kind is not None and kind.is_pointer


def recognise(start: bytes) -> Kind | None:
    """The kind of a file that begins with `start` (`LOOKED_AT` bytes suffice); None when it is unknown."""
    for magic, kind in _KINDS:
        if start.startswith(magic):
            return kind
    if start[257:262] == b"ustar":
        return Kind(name="a tar archive", hint=_UNPACK, is_archive=True)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return Kind(name="a pickle, which can run code when it is opened", hint=_CONVERT, is_pickle=True)
    text = start.lstrip()[:15].lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return Kind(name="a web page (an error page saved as the file?)", hint="download the file again")
    return None
