"""Checks that the safetensors header can be read, and what it contains besides tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from adapterhub.core.errors import MalformedTensorFile, shown
from adapterhub.formats.manifest import WEIGHTS_FILE
from adapterhub.formats.safetensors.file import TensorFile, parse_header
from adapterhub.trust.verify.report import Finding, some
from adapterhub.trust.verify.subject import FLOATS, Subject

if TYPE_CHECKING:
    from adapterhub.trust.verify.subject import Entry


def read_weights_header(entry: Entry, where: str = WEIGHTS_FILE) -> TensorFile:
    """The checked header of the taken weights file, which is held and marked for its tensors; `where` names it.

    Raises:
        MalformedTensorFile: with the code of the reason.
    """
    try:
        held = entry.held
        header = parse_header(held.beginning(), path=entry.path, size_bytes=held.size_bytes, where=where)
    except OSError as error:
        raise MalformedTensorFile(where, f"cannot be read: {error.strerror}") from None
    held.mark(spec.start for spec in header.tensors)
    return header


def check(subject: Subject) -> Iterator[Finding]:
    """Dtypes that weights of an adapter cannot have. Some methods that are never attached here keep indices."""
    if not subject.config.method.factors:
        return
    wrong = [spec for spec in subject.weights.tensors if spec.dtype not in FLOATS]
    if wrong:
        dtypes = ", ".join(sorted({spec.dtype for spec in wrong}))
        yield Finding(
            code="E_DTYPE",
            severity="error",
            where=WEIGHTS_FILE,
            message=f"{shown(dtypes)} in {some(spec.name for spec in wrong)}",
            expected="floating point numbers",
        )
