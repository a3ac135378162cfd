"""The header of a GGUF file, read with the standard library only (version 2 and 3 of `docs/gguf.md` of ggml).

An adapter is untrusted and small: it has only unquantised numbers. A model may be quantised, its vocabulary is long and
is skipped, and it may lie in several files.

Four bytes `GGUF`, the version, the numbers of tensors and of entries; the entries, each a name, a type and a value; the
tensors, each with name, dimensions (the innermost first), type and place; then the data, aligned.
"""

from __future__ import annotations

import math
import os
import re
import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from adapterhub.core.disk.files import inside, read_plain
from adapterhub.core.disk.held_file import HeldFile
from adapterhub.core.errors import MalformedTensorFile, shown
from adapterhub.formats.gguf.types import TYPES
from adapterhub.formats.safetensors.header import (
    BASE_LIMITS,
    HeaderLimits,
    TensorSpec,
    adapter_limits,
    name_problem,
)

MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_SCALARS: Final = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING: Final = 8
_ARRAY: Final = 9
_PLAIN: Final = ("F32", "F16", "F64", "BF16")
"""The types that an adapter may have."""
_MOST_DIMENSIONS: Final = 4
_ALIGNMENT: Final = "general.alignment"
_LONGEST: Final = 1 << 16
"""The most bytes of a text and members of a list that are kept."""
_WINDOW_BYTES: Final = 1 << 20
_PART: Final = re.compile(r"(?P<set>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """A checked header: `values` by their keys, and the tensors in the order of their data.

    `lengths`: the members of each list; a long one, such as a vocabulary, is None in `values`.
    """

    values: Mapping[str, Any]
    tensors: tuple[TensorSpec, ...]
    data_start: int
    lengths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GgufModel:
    """A model in one file or several: `values` and `lengths` of the first, and where each tensor lies."""

    values: Mapping[str, Any]
    tensors: Mapping[str, tuple[Path, TensorSpec]]
    lengths: Mapping[str, int]

    @property
    def architecture(self) -> str:
        """llama.cpp's name for the kind of model; "" if the file gives none."""
        found = self.values.get("general.architecture")
        return found if isinstance(found, str) else ""

    def value(self, key: str) -> Any:
        """Return the value of `key` of the architecture, such as `attention.head_count`; None if there is none."""
        return self.values.get(f"{self.architecture}.{key}")


def is_gguf(path: Path) -> bool:
    """Return whether a plain file begins like GGUF; no link out of its folder is followed."""
    try:
        return read_plain(inside(path.parent, path.name), len(MAGIC)).startswith(MAGIC)
    except OSError:
        return False


def read_gguf_header(held: HeldFile, where: str) -> GgufHeader:
    """Return the header of an open file of an adapter.

    Raises:
        MalformedTensorFile: E_CONTAINER, E_LIMIT or E_TENSOR_NAME; E_UNSUPPORTED for quantised tensors.
        OSError: the file cannot be read.
    """
    chosen = adapter_limits()
    raw = held.start(min(chosen.header_bytes, held.size_bytes))
    header = _read(_Cursor(lambda at, count: raw[at : at + count], len(raw), where, chosen), held.size_bytes)
    quantised = next((spec for spec in header.tensors if spec.dtype not in _PLAIN), None)
    if quantised is not None:
        hint = "its numbers were rounded; take the file in F32, F16 or BF16, or the adapter that it was made of"
        reason = f"tensor `{shown(quantised.name)}` is quantised ({quantised.dtype})"
        raise MalformedTensorFile(where, reason, code="E_UNSUPPORTED", hint=hint)
    if not header.tensors:
        raise MalformedTensorFile(where, "holds no tensors")
    return header


def read_gguf_model(path: Path) -> GgufModel:
    """Return the headers of a model; of a split one, `path` may be any of its files.

    Raises:
        MalformedTensorFile: E_CONTAINER, E_LIMIT or E_TENSOR_NAME; or a file of the set is missing.
    """
    match = _PART.fullmatch(path.name)
    count = int(match["count"]) if match else 1
    if not 1 <= count <= _LONGEST:
        raise MalformedTensorFile(str(path), f"claims to be one of {count} files")
    paths = (
        [path.with_name(f"{match['set']}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)] if match else [path]
    )
    tensors: dict[str, tuple[Path, TensorSpec]] = {}
    first: GgufHeader | None = None
    for number, part in enumerate(paths):
        header = read_gguf_part(part)
        stated = header.values.get("split.count"), header.values.get("split.no")
        if stated not in ((None, None), (count, number)):
            reason = f"is file {stated[1]} of {stated[0]} by its header, expected {number} of {count} by its name"
            raise MalformedTensorFile(str(part), reason, hint="give the files of a split model the names that they had")
        for spec in header.tensors:
            if spec.name in tensors:
                raise MalformedTensorFile(str(part), f"holds `{shown(spec.name)}`, which another file of the model has")
            tensors[spec.name] = part, spec
        first = first or header
    assert first is not None  # there is one file at least
    if not tensors:
        raise MalformedTensorFile(str(path), "holds no tensors")
    return GgufModel(values=first.values, tensors=tensors, lengths=first.lengths)


def read_gguf_part(path: Path) -> GgufHeader:
    """Return the header of one file of a model.

    Raises:
        MalformedTensorFile: as `read_gguf_model`.
    """
    try:
        # Opening a FIFO would wait for its writer: look at what was opened before reading, without waiting.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode):
                raise MalformedTensorFile(str(path), "is not a regular file")
            end = min(BASE_LIMITS.header_bytes, facts.st_size)
            cursor = _Cursor(lambda at, count: os.pread(handle, count, at), end, str(path), BASE_LIMITS)
            return _read(cursor, facts.st_size)
        finally:
            os.close(handle)
    except OSError as error:
        raise MalformedTensorFile(str(path), f"cannot be opened: {error.strerror}") from None


def _read(cursor: _Cursor, size_bytes: int) -> GgufHeader:
    """Return the header of a file of that size."""
    chosen = cursor.limits
    if chosen.file_bytes is not None and size_bytes > chosen.file_bytes:
        cursor.refuse(f"holds {size_bytes} bytes, expected at most {chosen.file_bytes}", "E_LIMIT")
    if cursor.take(len(MAGIC)) != MAGIC:
        cursor.refuse("is no GGUF file")
    version = cursor.number("<I")
    if version not in _VERSIONS:
        cursor.refuse(f"is GGUF of version {version}, expected {' or '.join(map(str, _VERSIONS))}, little endian")
    tensors, entries = cursor.number("<Q"), cursor.number("<Q")
    if tensors > chosen.tensors or entries > chosen.metadata_entries:
        cursor.refuse(f"claims {tensors} tensors and {entries} entries of metadata", "E_LIMIT")
    values: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    for _ in range(entries):
        key = cursor.text()
        if key in values:
            cursor.refuse(f"gives `{shown(key)}` twice")
        values[key], length = cursor.value(cursor.number("<I"))
        if length is not None:
            lengths[key] = length
    alignment = values.get(_ALIGNMENT, 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1) or alignment > _LONGEST:
        cursor.refuse(f"`{_ALIGNMENT}` is {shown(alignment, 40)}, expected a power of two")
    found = [cursor.tensor() for _ in range(tensors)]
    start = -(-cursor.at // alignment) * alignment
    placed = _placed(found, start, size_bytes, cursor)
    return GgufHeader(values=values, tensors=placed, data_start=start, lengths=lengths)


def _placed(found: list[TensorSpec], start: int, size: int, cursor: _Cursor) -> tuple[TensorSpec, ...]:
    """Return the tensors with their places in the file, sorted; none overlaps another or leads out of the file."""
    placed = sorted((spec._replace(start=start + spec.start, end=start + spec.end) for spec in found), key=_start_of)
    reached = start
    for spec in placed:
        if spec.start < reached:
            cursor.refuse(f"tensor `{shown(spec.name)}` overlaps another")
        reached = spec.end
    if reached > size:
        cursor.refuse(f"is cut off: its tensors end at byte {reached}, the file at {size}")
    if len({spec.name for spec in placed}) < len(placed):
        cursor.refuse("gives the name of a tensor twice")
    return tuple(placed)


def _start_of(spec: TensorSpec) -> int:
    return spec.start


class _Cursor:
    """Reads the header from its beginning, a window at a time; every length is checked before it is used.

    `read` gives some bytes from a place of the file; `end` is where the header ends at the latest.
    """

    def __init__(self, read: Callable[[int, int], bytes], end: int, where: str, limits: HeaderLimits) -> None:
        self._read, self._end, self._where, self.limits = read, end, where, limits
        self._window, self._start, self.at = b"", 0, 0

    def refuse(self, reason: str, code: str = "E_CONTAINER", hint: str = "") -> NoReturn:
        """Raise for the file.

        Raises:
            MalformedTensorFile: always.
        """
        raise MalformedTensorFile(self._where, reason, code=code, hint=hint)

    def skip(self, count: int) -> None:
        """Leave out the next bytes."""
        if count > self._end - self.at:
            self.refuse(f"its header leads beyond byte {self._end}", hint="the file is cut off, or is not a GGUF file")
        self.at += count

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        at = self.at
        self.skip(count)
        if at + count > self._start + len(self._window):
            self._window, self._start = self._read(at, min(max(count, _WINDOW_BYTES), self._end - at)), at
            if len(self._window) < count:
                self.refuse("became shorter while it was read")
        return self._window[at - self._start : at - self._start + count]

    def number(self, kind: str) -> Any:
        """Return the next number, of a kind of `struct`."""
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def text(self) -> str:
        """Return the next text."""
        return self._decoded(self.take(self.number("<Q")))

    def _decoded(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.refuse("has a text that is not UTF-8")

    def value(self, kind: int) -> tuple[Any, int | None]:
        """Return the next value of a type of GGUF, None for a long text or list; and the length of a list."""
        if kind == _STRING:
            raw = self._short(self.number("<Q"), 1)
            return None if raw is None else self._decoded(raw), None
        if kind in _SCALARS:
            return self.number(_SCALARS[kind]), None
        if kind != _ARRAY:
            self.refuse(f"has a value of type {kind}, which GGUF does not have")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in _SCALARS:
            raw = self._short(count, struct.calcsize(_SCALARS[inner]))
            return None if raw is None else [one for (one,) in struct.iter_unpack(_SCALARS[inner], raw)], count
        if inner != _STRING or count > self._end:
            self.refuse(f"has a list of {count} values of type {inner}, expected plain values")
        self._skip_texts(count)
        return None, count

    def _short(self, count: int, width: int) -> bytes | None:
        """Return the next `count` members of `width` bytes; None if there are too many to keep."""
        if count <= _LONGEST:
            return self.take(count * width)
        self.skip(count * width)
        return None

    def _skip_texts(self, count: int) -> None:
        """Leave out as many texts: a vocabulary has hundreds of thousands."""
        window, start, at = b"", self.at, 0
        for _ in range(count):
            if at + 8 > len(window):
                self.at = start
                self.skip(at + 8)
                start, at = self.at - 8, 0
                window = self._read(start, min(_WINDOW_BYTES, self._end - start))
                if len(window) < 8:
                    self.refuse("became shorter while it was read")
            at += 8 + _LENGTH(window, at)[0]
        self.at = start
        self.skip(at)

    def tensor(self) -> TensorSpec:
        """Return the next tensor; its place is counted from the beginning of the data."""
        name = self.text()
        if problem := name_problem(name, self.limits):
            self.refuse(f"has a tensor name that {problem}", "E_TENSOR_NAME")
        count = self.number("<I")
        if not 0 < count <= _MOST_DIMENSIONS:
            self.refuse(f"tensor `{shown(name)}` has {count} dimensions")
        shape = tuple(self.number("<Q") for _ in range(count))[::-1]
        if not all(shape):
            self.refuse(f"tensor `{shown(name)}` has a size of 0")
        number, start = self.number("<I"), self.number("<Q")
        kind = TYPES.get(number)
        if kind is None:
            hint = "`pip install --upgrade adapterhub` may bring it, or take the file in another type"
            self.refuse(f"tensor `{shown(name)}` is of GGML's type {number}, which is unknown", "E_UNSUPPORTED", hint)
        if shape[-1] % kind.block:
            self.refuse(f"tensor `{shown(name)}` has rows of {shape[-1]}, expected whole blocks of {kind.block}")
        return TensorSpec(name, kind.name, shape, start, start + math.prod(shape) // kind.block * kind.size)


_LENGTH: Final = struct.Struct("<Q").unpack_from
