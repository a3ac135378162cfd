"""Checks that the safetensors header can be read, and what it contains besides tensors."""

from __future__ import annotations

import io
from collections.abc import Iterator
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from adapterhub.core.errors import MalformedTensorFile, shown
from adapterhub.formats.manifest import WEIGHTS_FILE
from adapterhub.formats.safetensors.file import LENGTH_BYTES, TensorFile, adapter_limits, parse_header
from adapterhub.formats.safetensors.header import LOOKED_AT
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify.report import some
from adapterhub.trust.verify.subject import FLOATS, Subject

if TYPE_CHECKING:
    from adapterhub.trust.verify.subject import Entry


def read_weights_header(entry: Entry, where: str = WEIGHTS_FILE) -> TensorFile:
    """Return the checked header of the taken weights file, which is held and marked for its tensors; `where` names it.

    Raises:
        MalformedTensorFile: with the code of the reason.
    """
    try:
        held = entry.held
        length = int.from_bytes(held.start(LENGTH_BYTES), "little")
        most = LENGTH_BYTES + min(length, adapter_limits().header_bytes) + LOOKED_AT
        begun = io.BytesIO(held.start(min(most, held.size_bytes)))
        header = parse_header(begun, path=entry.path, size_bytes=held.size_bytes, where=where)
    except OSError as error:
        raise MalformedTensorFile(where, f"cannot be read: {error.strerror}") from None
    held.mark(map(attrgetter("start"), header.tensors))
    return header


_INDICES: Final = ("I32", "I64")


def check(subject: Subject) -> Iterator[Finding]:
    """Dtypes that weights of an adapter cannot have. Methods that are never attached here may keep any."""
    method = subject.config.method
    if not method.factors:
        return
    if wrong := set(map(attrgetter("dtype"), subject.weights.tensors)) - FLOATS:
        odd = [s for s in subject.weights.tensors if s.dtype in wrong]
        odd = [s for s in odd if s.dtype not in _INDICES or s.name.rpartition(".")[2] not in method.indices]
        if not odd:
            return
        dtypes, names = ", ".join(sorted({s.dtype for s in odd})), [s.name for s in odd]
        message = f"{shown(dtypes)} in {some(names)}"
        yield Finding("E_DTYPE", WEIGHTS_FILE, message, expected="floating point numbers")
