"""A safetensors file, read and written with the standard library only.

The format (safetensors 0.8, format section of its README): eight bytes little endian, the length of the header; the
header, JSON that begins with a brace and may end in spaces; then the tensors, which fill the rest of the file without
a gap or an overlap.

The library's own reader, in Rust, is fast, but it accepts headers that this one refuses (dimensions that overflow
behind a zero, names that are paths, a hundred megabytes of spaces), and its errors are brief. So every file is checked
here first.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final, NamedTuple, NoReturn, TypeVar

from adapterhub.core.errors import MalformedTensorFile, shown
from adapterhub.formats.safetensors.header import (
    ADAPTER_LIMITS,
    BASE_LIMITS,
    LOOKED_AT,
    HeaderLimits,
    TensorSpec,
    adapter_limits,
    name_problem,
    parse_header_text,
    recognise,
)

__all__ = [
    "ADAPTER_LIMITS",
    "BASE_LIMITS",
    "HeaderLimits",
    "TensorFile",
    "TensorSpec",
    "adapter_limits",
    "header_bytes",
    "name_problem",
    "parse_header",
    "read_header",
]

LENGTH_BYTES = 8
_KEPT_CHARACTERS: Final = 1 << 18  # a header of some 1,900 tensors

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """A checked header: `tensors` in file order; together they fill `[data_start, size_bytes)` exactly."""

    path: Path
    size_bytes: int
    data_start: int
    metadata: dict[str, str]
    tensors: tuple[TensorSpec, ...]
    _made: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, make: Callable[[tuple[TensorSpec, ...]], _T]) -> _T:
        """`make(tensors)`, which files with equal headers share; nothing may change it."""
        if make not in self._made:
            self._made[make] = make(self.tensors)
        made: _T = self._made[make]
        return made

    @cached_property
    def by_name(self) -> Mapping[str, TensorSpec]:
        """The tensors by their names."""
        return MappingProxyType({spec.name: spec for spec in self.tensors})


def read_header(path: Path, *, limits: HeaderLimits | None = None) -> TensorFile:
    """Return the checked header of the safetensors file at `path`; no tensor is read.

    By default, `adapter_limits` apply.

    Raises:
        MalformedTensorFile: with code E_CONTAINER, E_LIMIT or E_TENSOR_NAME. A file that cannot be opened or is not
            a regular file counts as E_CONTAINER.
    """
    try:
        # Opening a FIFO would wait for its writer: look at what was opened before reading, without waiting.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MalformedTensorFile(str(path), f"cannot be opened: {reason}") from None
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode):
        os.close(handle)
        raise MalformedTensorFile(str(path), "is not a regular file")
    with os.fdopen(handle, "rb") as stream:
        return parse_header(stream, path=path, size_bytes=facts.st_size, limits=limits)


def parse_header(
    stream: IO[bytes], *, path: Path, size_bytes: int, where: str = "", limits: HeaderLimits | None = None
) -> TensorFile:
    """As `read_header`, from an open file of `size_bytes` at its beginning; `where` names it in errors."""
    where = where or str(path)
    limits = limits or adapter_limits()
    text = _header_text(stream, size_bytes, where, limits)
    data_start = stream.tell()
    read = _read_text if len(text) <= _KEPT_CHARACTERS else _read_text.__wrapped__
    try:
        metadata, tensors, made = read(text, limits, data_start, size_bytes)
    except MalformedTensorFile as error:
        raise MalformedTensorFile(where, error.reason, code=error.code, hint=error.hint) from None
    file = TensorFile(path=path, size_bytes=size_bytes, data_start=data_start, metadata=dict(metadata), tensors=tensors)
    object.__setattr__(file, "_made", made)
    return file


class _Read(NamedTuple):
    """A checked header: its metadata, its tensors in file order, and what was made of them."""

    metadata: dict[str, str]
    tensors: tuple[TensorSpec, ...]
    made: dict[Any, Any]


@lru_cache(maxsize=8)  # adapters for the same modules of the same rank have the same header, byte for byte
def _read_text(text: str, limits: HeaderLimits, data_start: int, size_bytes: int) -> _Read:
    metadata, placed = parse_header_text(text, "", limits, data_start)
    if not placed:
        raise MalformedTensorFile("", "holds no tensors")
    placed.sort(key=lambda s: (s.start, s.end))
    _check_tiling(placed, data_start, size_bytes)
    return _Read(metadata, tuple(placed), {})


def _header_text(stream: IO[bytes], size_bytes: int, where: str, limits: HeaderLimits) -> str:
    """Return the header's text, after the checks of sizes and of the first byte."""

    def refuse(reason: str, code: str = "E_CONTAINER", hint: str = "") -> NoReturn:
        raise MalformedTensorFile(where, reason, code=code, hint=hint)

    prefix = _read(stream, LENGTH_BYTES, where)
    if len(prefix) < LENGTH_BYTES:
        refuse(f"holds {size_bytes} bytes; a safetensors file begins with 8 bytes for the length of its header")
    length = int.from_bytes(prefix, "little")
    if length > size_bytes - LENGTH_BYTES:
        kind = recognise(prefix + _read(stream, LOOKED_AT, where))
        if kind is not None:
            refuse(f"is not safetensors but {kind.name}", hint=kind.hint)
        refuse(
            f"claims a header of {length} bytes, but the file holds {size_bytes}",
            hint="the file is cut off or not safetensors; download it again",
        )
    if limits.file_bytes is not None and size_bytes > limits.file_bytes:
        refuse(f"holds {size_bytes} bytes, expected at most {limits.file_bytes}", "E_LIMIT")
    if length > limits.header_bytes:
        refuse(f"its header holds {length} bytes, expected at most {limits.header_bytes}", "E_LIMIT")
    raw = _read(stream, length, where)
    if len(raw) < length:
        refuse(f"ends at byte {LENGTH_BYTES + len(raw)}, inside its header")
    if not raw.startswith(b"{"):
        refuse(f"its header begins with `{shown(raw[:1].decode('latin-1'))}`, expected a brace")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        refuse(f"its header is not UTF-8 at byte {error.start}")


def _read(stream: IO[bytes], count: int, where: str) -> bytes:
    try:
        return stream.read(count)
    except OSError as error:
        raise MalformedTensorFile(where, f"cannot be read: {error.strerror}") from None


def _check_tiling(specs: list[TensorSpec], data_start: int, size_bytes: int) -> None:
    """Raise unless the tensors, in file order, fill the data section without gap, overlap or rest."""
    reached, before = data_start, ""
    for spec in specs:
        if spec.start != reached:
            what = "overlaps" if spec.start < reached else f"leaves {spec.start - reached} unused bytes after"
            neighbour = f"`{shown(before)}`" if before else "the header"
            raise MalformedTensorFile("", f"tensor `{shown(spec.name)}` {what} {neighbour}")
        reached, before = spec.end, spec.name
    if reached > size_bytes:
        raise MalformedTensorFile(
            "",
            f"is cut off: its tensors end at byte {reached}, the file at {size_bytes}",
            hint="download it again; the sender's `sha256sum` would have shown this",
        )
    if reached < size_bytes:
        raise MalformedTensorFile("", f"holds {size_bytes - reached} bytes after its last tensor")


def header_bytes(
    specs: Iterable[TensorSpec], metadata: Mapping[str, str] | None = None, pad_to: int | None = None
) -> bytes:
    """Length and header of a file whose tensors follow in the given order, one after another.

    Only the difference of `start` and `end` matters, so planned specs will do. The data begins at a multiple of 8, as
    the library writes it, or at byte `pad_to` for a writer that reserved room. Equal arguments give equal bytes:
    metadata is sorted by key.

    Raises:
        ValueError: a name is given twice, or the header does not fit before `pad_to`.
    """
    entries: dict[str, object] = {}
    if metadata:
        entries["__metadata__"] = dict(sorted(metadata.items()))
    reached = 0
    for spec in specs:
        if spec.name in entries or spec.name == "__metadata__":
            raise ValueError(f"tensor `{shown(spec.name)}` is given twice")
        stop = reached + spec.size_bytes
        entries[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [reached, stop]}
        reached = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    total = LENGTH_BYTES + len(text)
    goal = pad_to if pad_to is not None else -(-total // 8) * 8
    if total > goal:
        raise ValueError(f"the header needs {total} bytes, {goal} were reserved")
    return (goal - LENGTH_BYTES).to_bytes(LENGTH_BYTES, "little") + text + b" " * (goal - total)
