"""The safetensors header: that it can be read, and what it carries besides tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from adapterhub.errors import MalformedTensorFile, shown
from adapterhub.manifest import WEIGHTS_FILE
from adapterhub.tensorfile import TensorFile, parse_header
from adapterhub.verify._report import Finding, some
from adapterhub.verify._scan import FLOATS
from adapterhub.verify._subject import Subject

if TYPE_CHECKING:
    from adapterhub.verify.files import Entry


def read_weights_header(entry: Entry) -> TensorFile:
    """The checked header of the taken weights file.

    Raises:
        MalformedTensorFile: with the code of the reason.
    """
    try:
        with entry.open() as stream:
            return parse_header(stream, path=entry.path, size_bytes=entry.size_bytes, where=WEIGHTS_FILE)
    except OSError as error:
        raise MalformedTensorFile(WEIGHTS_FILE, f"cannot be read: {error.strerror}") from None


def check(subject: Subject) -> Iterator[Finding]:
    """Dtypes that weights of an adapter cannot have."""
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
