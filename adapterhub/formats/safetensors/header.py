"""The JSON header of a safetensors file: its terms, its limits, and a reader for untrusted files.

A tensor entry holds no nested object, so the header is read entry by entry: the limits bound memory and time, not the
input.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, NoReturn, TypeGuard

from adapterhub.core.errors import MalformedTensorFile, shown
from adapterhub.core.limits import DEFAULT_LIMITS, limits
from adapterhub.formats.safetensors.dtypes import DTYPE_BITS

MAX_DIMENSIONS = 32
_ENTRY_CHARACTERS = 4096  # far more than 32 dimensions and two offsets of 20 digits need
_ENTRY_KEYS = frozenset({"dtype", "shape", "data_offsets"})
_SPACE = re.compile(r"[ \t\n\r]*")
# An entry as every writer spells it, under a dotted name and before another; 18 digits always fit in 64 bits.
_NUMBER = r"(?:0|[1-9]\d{0,17})"
_PLAIN_ENTRY = re.compile(
    r'"((?!__metadata__")[\w-][\w.-]*)(?<!\.)":\{"dtype":"([A-Z0-9_]{1,16})",'
    rf'"shape":\[([\d, ]{{1,640}})\],"data_offsets":\[({_NUMBER}), ?({_NUMBER})\]\}},(?=")',
    re.ASCII,
).match
_PLAIN_SHAPE = re.compile(rf"{_NUMBER}(?:, ?{_NUMBER}){{0,31}}", re.ASCII).fullmatch
_INT64_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one file. `file_bytes` None: any size. `strict_names`: names must be dotted module paths."""

    header_bytes: int = DEFAULT_LIMITS.header_bytes
    tensors: int = DEFAULT_LIMITS.tensors
    metadata_entries: int = DEFAULT_LIMITS.metadata_entries
    name_bytes: int = DEFAULT_LIMITS.name_bytes
    file_bytes: int | None = DEFAULT_LIMITS.file_bytes
    strict_names: bool = True


ADAPTER_LIMITS = Limits()
"""The built-in limits for untrusted files; `adapter_limits` returns those in force."""

BASE_LIMITS = Limits(
    header_bytes=100_000_000,
    tensors=1 << 20,
    metadata_entries=1 << 20,
    name_bytes=4096,
    file_bytes=None,
    strict_names=False,
)
"""Limits for base models, which are trusted: the header limit of the safetensors library."""


def adapter_limits() -> Limits:
    """The limits in force for untrusted files."""
    chosen = limits()
    return Limits(**{f.name: getattr(chosen, f.name) for f in fields(Limits) if f.name != "strict_names"})


class TensorSpec(NamedTuple):
    """One tensor of a file; its bytes are `[start, end)` counted from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @classmethod
    def planned(cls, name: str, dtype: str, shape: tuple[int, ...]) -> TensorSpec:
        """A tensor that is yet to be written; its `start` is 0.

        Raises:
            ValueError: the format has no such dtype, or the tensor does not fill whole bytes.
        """
        if dtype not in DTYPE_BITS:
            raise ValueError(f"dtype {shown(dtype)} is not one of safetensors")
        bits = math.prod(shape) * DTYPE_BITS[dtype]
        if bits % 8:
            raise ValueError(f"{shown(name)}: {bits} bits do not fill whole bytes")
        return cls(name=name, dtype=dtype, shape=shape, start=0, end=bits // 8)

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return self.end - self.start

    @property
    def elements(self) -> int:
        """The count of its numbers; 1 for a scalar."""
        return math.prod(self.shape)


def parse_header_text(
    text: str, where: str, limits: Limits, data_start: int = 0
) -> tuple[dict[str, str], list[TensorSpec]]:
    """Metadata, and the tensors in the header's order; `data_start` is added to their offsets.

    Raises:
        MalformedTensorFile: with code E_CONTAINER, E_LIMIT or E_TENSOR_NAME; `where` names the file.
    """
    return _HeaderText(text, where, limits, data_start).parse()


class _HeaderText:
    """Reads the header's JSON one entry at a time, so that only one entry exists as a Python object."""

    def __init__(self, text: str, where: str, limits: Limits, data_start: int) -> None:
        self.text, self.where, self.limits, self.data_start = text, where, limits, data_start
        self.at = 0
        self.shapes: dict[tuple[str, str], tuple[tuple[int, ...], int]] = {}
        self.strings = json.JSONDecoder()
        self.entries = json.JSONDecoder(
            object_pairs_hook=_no_duplicates, parse_int=_natural, parse_float=_not_natural, parse_constant=_not_natural
        )

    def parse(self) -> tuple[dict[str, str], list[TensorSpec]]:
        """Metadata, and the tensors in the header's order."""
        metadata: dict[str, str] | None = None
        specs: list[TensorSpec] = []
        names: set[str] = set()
        self.expect("{")
        while not self.closes(first=not names and metadata is None):
            self.plain_entries(specs, names)
            name = self.string()
            self.expect(":")
            if name == "__metadata__":
                if metadata is not None:
                    self.refuse("`__metadata__` is given twice")
                metadata = self.metadata()
                continue
            if len(specs) >= self.limits.tensors:
                self.refuse(f"holds more than {self.limits.tensors} tensors", "E_LIMIT")
            self.check_name(name)
            if name in names:
                self.refuse(f"tensor `{shown(name)}` is given twice")
            names.add(name)
            specs.append(self.entry(name))
        if self.text[self.at :].strip(" "):
            self.refuse(f"its header goes on after the closing brace, at character {self.at}")
        return metadata or {}, specs

    def refuse(self, reason: str, code: str = "E_CONTAINER") -> NoReturn:
        raise MalformedTensorFile(self.where, reason, code=code)

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        at = self.at
        found = self.text[at : at + 1]
        if found and found in " \t\n\r":  # rare in what machines write; megabytes of it must cost nothing
            space = _SPACE.match(self.text, at)
            assert space is not None  # nothing matches, too
            self.at = space.end()
            found = self.text[self.at : self.at + 1]
        return found

    def expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            got = f"`{shown(found)}`" if found else "its end"
            self.refuse(
                f"its header is not the JSON of the format at character {self.at}: `{character}` expected, {got}"
            )
        self.at += 1

    def closes(self, *, first: bool) -> bool:
        """Whether the object ends here; skips the brace, or the comma before the next key."""
        if self.peek() == "}":
            self.at += 1
            return True
        if not first:
            self.expect(",")
        return False

    def string(self) -> str:
        if self.peek() != '"':
            self.refuse(f"its header is not the JSON of the format at character {self.at}: a string was expected")
        try:
            value, self.at = self.strings.raw_decode(self.text, self.at)
        except ValueError:
            self.refuse(f"its header holds a broken string at character {self.at}")
        assert isinstance(value, str)
        return value

    def metadata(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.peek() == "n" and self.text.startswith("null", self.at):  # MLX writes it for none
            self.at += len("null")
            return found
        self.expect("{")
        while not self.closes(first=not found):
            key = self.string()
            self.expect(":")
            if self.peek() != '"':
                self.refuse(f"metadata `{shown(key)}` is not text; the format allows text only")
            value = self.string()
            if key in found:
                self.refuse(f"metadata `{shown(key)}` is given twice")
            if _has_surrogate(key) or _has_surrogate(value):
                self.refuse(f"metadata `{shown(key)}` holds half of a UTF-16 pair, which is not text")
            if len(found) >= self.limits.metadata_entries:
                self.refuse(f"holds more than {self.limits.metadata_entries} entries of metadata", "E_LIMIT")
            found[key] = value
        return found

    def entry(self, name: str) -> TensorSpec:
        value = self.entry_value(name)
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        problem = _entry_problem(dtype, shape, offsets)
        if problem:
            self.refuse(f"tensor `{shown(name)}`: {problem}")
        start, end = (self.data_start + offset for offset in offsets)
        return TensorSpec(name=name, dtype=dtype, shape=tuple(shape), start=start, end=end)

    def plain_entries(self, specs: list[TensorSpec], names: set[str]) -> None:
        """Take the next entries that are spelt as usual and sound; the first that is not goes through all checks."""
        text, data_start, longest = self.text, self.data_start, self.limits.name_bytes
        for _ in range(self.limits.tensors - len(specs)):
            plain = _PLAIN_ENTRY(text, self.at)
            if plain is None:
                return
            name, dtype, sizes, begin, stop = plain.groups()
            found = self.shapes.get((dtype, sizes)) or self.plain_shape(dtype, sizes)
            start, end = int(begin), int(stop)
            if found is None or found[1] != end - start or name in names or len(name) > longest or ".." in name:
                return
            names.add(name)
            specs.append(TensorSpec(name, dtype, found[0], data_start + start, data_start + end))
            self.at = plain.end()

    def plain_shape(self, dtype: str, sizes: str) -> tuple[tuple[int, ...], int] | None:
        """A shape that is spelt as usual, and its size in bytes; None where something is odd."""
        if _PLAIN_SHAPE(sizes) is None:
            return None
        shape = tuple(map(int, sizes.split(",")))
        size_bytes, rest = divmod(math.prod(shape) * DTYPE_BITS.get(dtype, 0), 8)
        if rest or not size_bytes:
            return None
        self.shapes[dtype, sizes] = found = shape, size_bytes
        return found

    def entry_value(self, name: str) -> dict[str, Any]:
        """The object that describes one tensor; it has exactly the keys of the format."""
        if self.peek() != "{":
            self.refuse(f"tensor `{shown(name)}` is not described by an object")
        end = self.text.find("}", self.at, self.at + _ENTRY_CHARACTERS)
        problem = f"described by more than {_ENTRY_CHARACTERS} characters, or the header is cut off" if end < 0 else ""
        value: dict[str, Any] = {}
        try:
            value = self.entries.decode(self.text[self.at : end + 1]) if not problem else {}
        except RecursionError:
            problem = "nested too deeply"
        except json.JSONDecodeError as error:
            problem = f"not JSON: {error.msg}"
        except ValueError as error:
            problem = str(error)
        self.at = end + 1
        if not problem and set(value) != _ENTRY_KEYS:
            odd = ", ".join(f"`{shown(k, 40)}`" for k in sorted(set(value) ^ _ENTRY_KEYS)[:4])
            problem = f"exactly dtype, shape and data_offsets are expected; missing or too many: {odd}"
        if problem:
            self.refuse(f"tensor `{shown(name)}`: {problem}")
        return value

    def check_name(self, name: str) -> None:
        problem = name_problem(name, self.limits)
        if problem:
            self.refuse(f"tensor name `{shown(name)}` {problem}", "E_TENSOR_NAME")


def _entry_problem(dtype: object, shape: object, offsets: object) -> str:
    """What is wrong with a tensor's description; empty when nothing is."""
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        return f"dtype is {shown(dtype, 40)}, expected one of {', '.join(DTYPE_BITS)}"
    if not _naturals(shape):
        return f"shape is {shown(shape, 40)}, expected a list of natural numbers"
    if len(shape) > MAX_DIMENSIONS:
        return f"has {len(shape)} dimensions, expected at most {MAX_DIMENSIONS}"
    if not _naturals(offsets) or len(offsets) != 2:  # noqa: PLR2004 - begin and end
        return f"data_offsets is {shown(offsets, 40)}, expected two natural numbers"
    begin, stop = offsets
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    # Zeros are left out: a reader that multiplies in another order could overflow before it reaches the zero.
    if max(bits or math.prod(d for d in shape if d) * DTYPE_BITS[dtype], stop) > _INT64_MAX:
        return f"shape {shown(shape, 40)} does not fit in 64 bits"
    if bits != (stop - begin) * 8:
        return f"{dtype} of shape {shown(shape, 40)} needs {bits / 8:.16g} bytes, data_offsets give {stop - begin}"
    return ""


def name_problem(name: str, limits: Limits = ADAPTER_LIMITS) -> str:
    """What is wrong with a tensor's name, as the end of a sentence; empty when nothing is.

    The names of an adapter are module paths: dot-separated, printable and free of path separators, so that no tool that
    writes one file per tensor is led out of its folder.
    """
    if not name:
        return "is empty"
    if _has_surrogate(name):
        return "holds half of a UTF-16 pair, which is not text"
    if len(name.encode()) > limits.name_bytes:
        return f"is longer than {limits.name_bytes} bytes"
    if "\0" in name:
        return "holds a NUL character"
    return _strict_name_problem(name) if limits.strict_names else ""


def _strict_name_problem(name: str) -> str:
    if not name.isprintable():
        return "holds a control or invisible character"
    if "/" in name or "\\" in name:
        return "holds a path separator, expected a dotted module path"
    if "" in name.split(".") or name != name.strip():
        return "has an empty part, expected a dotted module path"
    return ""


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)


def _naturals(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and set(map(type, value)) <= {int}


def _natural(text: str) -> int:
    if text.startswith("-"):
        raise ValueError(f"number {shown(text, 24)} is negative")
    if len(text) > 20:  # noqa: PLR2004 - digits of 2**64
        raise ValueError(f"number {shown(text, 24)} does not fit in 64 bits")
    return int(text)


def _not_natural(text: str) -> NoReturn:
    raise ValueError(f"{shown(text, 24)} is not a natural number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = dict(pairs)
    if len(seen) != len(pairs):
        raise ValueError("a key is given twice")
    return seen
