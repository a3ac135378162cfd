"""The JSON header of a safetensors file: its terms, its limits, and a reader for untrusted files.

A tensor entry holds no nested object, so the header is read entry by entry: the limits bound memory and time, not the
input.
"""

from __future__ import annotations

import base64
import json
import math
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, NoReturn, TypeGuard

from adapterhub.core.digests import Json, parse_digest
from adapterhub.core.disk.files import read_plain
from adapterhub.core.errors import MalformedTensorFile, shown
from adapterhub.core.limits import DEFAULT_LIMITS, limits

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
_DTYPE_NAME = re.compile(r"[A-Z][A-Z0-9_]{1,15}", re.ASCII).fullmatch
_INT64_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderLimits:
    """Limits of one file. `file_bytes` None: any size. `strict_names`: names must be dotted module paths."""

    header_bytes: int = DEFAULT_LIMITS.header_bytes
    tensors: int = DEFAULT_LIMITS.tensors
    metadata_entries: int = DEFAULT_LIMITS.metadata_entries
    name_bytes: int = DEFAULT_LIMITS.name_bytes
    file_bytes: int | None = DEFAULT_LIMITS.file_bytes
    strict_names: bool = True


ADAPTER_LIMITS = HeaderLimits()
"""The built-in limits for untrusted files; `adapter_limits` returns those in force."""

BASE_LIMITS = HeaderLimits(
    header_bytes=100_000_000,
    tensors=1 << 20,
    metadata_entries=1 << 20,
    name_bytes=4096,
    file_bytes=None,
    strict_names=False,
)
"""Limits for base models, which are trusted: the header limit of the safetensors library."""


def adapter_limits() -> HeaderLimits:
    """Return the limits in force for untrusted files."""
    chosen = limits()
    return HeaderLimits(**{f.name: getattr(chosen, f.name) for f in fields(HeaderLimits) if f.name != "strict_names"})


class TensorSpec(NamedTuple):
    """One tensor of a file; its bytes are `[start, end)` counted from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @classmethod
    def planned(cls, name: str, dtype: str, shape: tuple[int, ...]) -> TensorSpec:
        """Return a tensor that is yet to be written; its `start` is 0.

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
    text: str, where: str, limits: HeaderLimits, data_start: int = 0
) -> tuple[dict[str, str], list[TensorSpec]]:
    """Metadata, and the tensors in the header's order; `data_start` is added to their offsets.

    Raises:
        MalformedTensorFile: with code E_CONTAINER, E_LIMIT or E_TENSOR_NAME; `where` names the file.
    """
    return _HeaderText(text, where, limits, data_start).parse()


class _HeaderText:
    """Reads the header's JSON one entry at a time, so that only one entry exists as a Python object."""

    def __init__(self, text: str, where: str, limits: HeaderLimits, data_start: int) -> None:
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
        """Return the next character that is not white space; empty at the end."""
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
        """Return whether the object ends here; skips the brace, or the comma before the next key."""
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
        """Return a shape that is spelt as usual, and its size in bytes; None if something is odd."""
        if _PLAIN_SHAPE(sizes) is None:
            return None
        shape = tuple(map(int, sizes.split(",")))
        size_bytes, rest = divmod(math.prod(shape) * DTYPE_BITS.get(dtype, 0), 8)
        if rest or not size_bytes:
            return None
        self.shapes[dtype, sizes] = found = shape, size_bytes
        return found

    def entry_value(self, name: str) -> dict[str, Any]:
        """Return the object that describes one tensor; it has exactly the keys of the format."""
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
    """Return the fault of a tensor's description; empty when there is none."""
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        return f"dtype is {shown(dtype, 40)}, expected one of {', '.join(DTYPE_BITS)}"
    if not _naturals(shape):
        return f"shape is {shown(shape, 40)}, expected a list of natural numbers"
    if len(shape) > MAX_DIMENSIONS:
        return f"has {len(shape)} dimensions, expected at most {MAX_DIMENSIONS}"
    if not _naturals(offsets) or len(offsets) != 2:
        return f"data_offsets is {shown(offsets, 40)}, expected two natural numbers"
    begin, stop = offsets
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    # Zeros are left out: a reader that multiplies in another order could overflow before it reaches the zero.
    if max(bits or math.prod(d for d in shape if d) * DTYPE_BITS[dtype], stop) > _INT64_MAX:
        return f"shape {shown(shape, 40)} does not fit in 64 bits"
    if bits != (stop - begin) * 8:
        return f"{dtype} of shape {shown(shape, 40)} needs {bits / 8:.16g} bytes, data_offsets give {stop - begin}"
    return ""


def name_problem(name: str, limits: HeaderLimits = ADAPTER_LIMITS) -> str:
    """Return the fault of a tensor's name, as the end of a sentence; empty when there is none.

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
    if len(text) > 20:
        raise ValueError(f"number {shown(text, 24)} does not fit in 64 bits")
    return int(text)


def _not_natural(text: str) -> NoReturn:
    raise ValueError(f"{shown(text, 24)} is not a natural number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = dict(pairs)
    if len(seen) != len(pairs):
        raise ValueError("a key is given twice")
    return seen


LOOKED_AT = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKind:
    """A kind of file, and the step that helps."""

    name: str
    hint: str
    is_pickle: bool = False
    is_archive: bool = False
    is_pointer: bool = False


_CONVERT = "convert it where you trust it: load it with PEFT on its base there and call `save_pretrained` again"
_UNPACK = "unpack it yourself, look at what is inside, and give the folder"
_PULL = "run `git lfs pull` in the repository, or download the file from its hub"
POINTER: Final = FileKind(
    name="a Git LFS pointer, which stands for a file that was not downloaded", hint=_PULL, is_pointer=True
)
_POINTER_BYTES: Final = 1024
"""Git LFS takes no larger file for a pointer."""
_KINDS: Final[tuple[tuple[bytes, FileKind], ...]] = (
    (b"version https://git-lfs", POINTER),
    (b"PK\x03\x04", FileKind(name="a zip archive (as `torch.save` writes)", hint=_UNPACK, is_archive=True)),
    (b"PK\x05\x06", FileKind(name="an empty zip archive", hint=_UNPACK, is_archive=True)),
    (b"\x1f\x8b", FileKind(name="a gzip archive", hint=_UNPACK, is_archive=True)),
    (b"BZh", FileKind(name="a bzip2 archive", hint=_UNPACK, is_archive=True)),
    (b"\xfd7zXZ", FileKind(name="an xz archive", hint=_UNPACK, is_archive=True)),
    (b"7z\xbc\xaf\x27\x1c", FileKind(name="a 7z archive", hint=_UNPACK, is_archive=True)),
    (b"\x28\xb5\x2f\xfd", FileKind(name="a zstandard archive", hint=_UNPACK, is_archive=True)),
    (b"Rar!", FileKind(name="a rar archive", hint=_UNPACK, is_archive=True)),
    (b"GGUF", FileKind(name="a GGUF file", hint="`adapt add FILE.gguf --base BASE` reads a LoRA")),
    (b"\x93NUMPY", FileKind(name="a numpy array", hint="give the PEFT folder it was made from")),
    (b"\x89HDF", FileKind(name="an HDF5 file", hint="give the PEFT folder it was made from")),
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


def recognise(start: bytes) -> FileKind | None:
    """Return the kind of a file that begins with `start` (`LOOKED_AT` bytes suffice); None when it is unknown."""
    for magic, kind in _KINDS:
        if start.startswith(magic):
            return kind
    if start[257:262] == b"ustar":
        return FileKind(name="a tar archive", hint=_UNPACK, is_archive=True)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return FileKind(name="a pickle, which can run code when it is opened", hint=_CONVERT, is_pickle=True)
    text = start.lstrip()[:15].lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return FileKind(name="a web page (an error page saved as the file?)", hint="download the file again")
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatLayout:
    """A binary float: sign, then `exponent` bits, then `mantissa` bits; codes without sign grow with the magnitude.

    `largest` is the code of the largest finite magnitude; with `infinity`, the next code is infinity. Every other
    code above is a NaN. `nan_is_minus_zero`: the code of -0 is the only NaN instead (the FNUZ kinds).
    """

    exponent: int
    mantissa: int
    bias: int
    largest: int
    infinity: bool = True
    nan_is_minus_zero: bool = False

    @property
    def sign_bit(self) -> int:
        """The code of -0; all bits below it are those of the magnitude."""
        return 1 << (self.exponent + self.mantissa)

    @property
    def maximum(self) -> float:
        """The largest finite magnitude."""
        return self.magnitude(self.largest)

    @property
    def rounding(self) -> float:
        """The largest relative error of rounding a number in range to this layout."""
        return 2.0 ** -(self.mantissa + 1)

    def magnitude(self, code: int) -> float:
        """Return the value of a code without sign; one above `largest` it is what the next power of two would be."""
        exponent, fraction = code >> self.mantissa, code & ((1 << self.mantissa) - 1)
        if exponent:
            return math.ldexp((1 << self.mantissa) | fraction, exponent - self.bias - self.mantissa)
        return math.ldexp(fraction, 1 - self.bias - self.mantissa)

    def is_nan(self, sign: int, code: int) -> bool:
        """Return whether sign and code spell a NaN."""
        if self.nan_is_minus_zero:
            return bool(sign) and code == 0
        return code > self.largest + self.infinity


@dataclass(frozen=True, slots=True, kw_only=True)
class Dtype:
    """One dtype of the format. `torch` is torch's name for it, "" if this package never makes such a tensor."""

    bits: int
    torch: str = ""
    layout: FloatLayout | None = None
    is_integer: bool = False


def _integer(bits: int, torch: str = "") -> Dtype:
    return Dtype(bits=bits, torch=torch, is_integer=True)


_F8_E5M2: Final = FloatLayout(exponent=5, mantissa=2, bias=15, largest=0x7B)
_F8_E4M3: Final = FloatLayout(exponent=4, mantissa=3, bias=7, largest=0x7E, infinity=False)
_E5M2FNUZ: Final = FloatLayout(exponent=5, mantissa=2, bias=16, largest=0x7F, infinity=False, nan_is_minus_zero=True)
_E4M3FNUZ: Final = FloatLayout(exponent=4, mantissa=3, bias=8, largest=0x7F, infinity=False, nan_is_minus_zero=True)
_F16: Final = FloatLayout(exponent=5, mantissa=10, bias=15, largest=0x7BFF)
_BF16: Final = FloatLayout(exponent=8, mantissa=7, bias=127, largest=0x7F7F)
F32: Final = FloatLayout(exponent=8, mantissa=23, bias=127, largest=0x7F7F_FFFF)
_F64: Final = FloatLayout(exponent=11, mantissa=52, bias=1023, largest=0x7FEF_FFFF_FFFF_FFFF)

DTYPES: Final[Mapping[str, Dtype]] = MappingProxyType(
    {
        "BOOL": _integer(8, "bool"),
        "F4": Dtype(bits=4),
        "F6_E2M3": Dtype(bits=6),
        "F6_E3M2": Dtype(bits=6),
        "U8": _integer(8, "uint8"),
        "I8": _integer(8, "int8"),
        "F8_E5M2": Dtype(bits=8, torch="float8_e5m2", layout=_F8_E5M2),
        "F8_E4M3": Dtype(bits=8, torch="float8_e4m3fn", layout=_F8_E4M3),
        "F8_E8M0": Dtype(bits=8),
        "F8_E4M3FNUZ": Dtype(bits=8, layout=_E4M3FNUZ),
        "F8_E5M2FNUZ": Dtype(bits=8, layout=_E5M2FNUZ),
        "I16": _integer(16, "int16"),
        "U16": _integer(16),
        "F16": Dtype(bits=16, torch="float16", layout=_F16),
        "BF16": Dtype(bits=16, torch="bfloat16", layout=_BF16),
        "I32": _integer(32, "int32"),
        "U32": _integer(32),
        "F32": Dtype(bits=32, torch="float32", layout=F32),
        "C64": Dtype(bits=64),
        "F64": Dtype(bits=64, torch="float64", layout=_F64),
        "I64": _integer(64, "int64"),
        "U64": _integer(64),
    }
)
"""Every dtype of the format, by the name that headers have for it."""


def may_be_codes(dtype: str, dimensions: int) -> bool:
    """Whether a tensor may hold codes of a quantised weight: they have 8 bits or fewer, or are packed into integers."""
    return dimensions > 1 and (DTYPES[dtype].bits <= _BITS_OF_CODES or DTYPES[dtype].is_integer)


_BITS_OF_CODES: Final = 8

DTYPE_BITS: Final[Mapping[str, int]] = MappingProxyType({name: dtype.bits for name, dtype in DTYPES.items()})
"""Bits of one element, for every dtype of the format."""

FACTOR_DTYPES: Final = ("F64", "F32", "F16", "BF16")
"""What a low-rank factor is written in."""

READ_DTYPES: Final = (*FACTOR_DTYPES, "F8_E4M3", "F8_E5M2")
"""What a low-rank factor may be stored in; numbers of 8 bits are widened to float32, which loses nothing."""

CHOICES: Final[Mapping[str, str]] = MappingProxyType({DTYPES[name].torch: name for name in ("F32", "BF16", "F16")})
"""What users may ask for with `--dtype`, and the format's name for it."""


SAMPLES: Final = 16
"""Numbers kept of each tensor."""

_GOLDEN: Final = 0x9E37_79B9_7F4A_7C15  # 2**64 divided by the golden ratio: multiples of it fill the circle evenly


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFacts:
    """One tensor of a base. `sha256` is the hex digest of its bytes; `samples` its sampled numbers, end to end."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    samples: bytes

    def to_json(self) -> list[Any]:
        """`[name, dtype, shape, sha256, samples in base64]`."""
        samples = base64.b64encode(self.samples).decode("ascii")
        return [self.name, self.dtype, list(self.shape), self.sha256, samples]

    @classmethod
    def from_json(cls, value: Json, path: str = "tensor") -> TensorFacts:
        """Read the value that `to_json` makes, strictly.

        Raises:
            ValueError: with the path of the first wrong value.
        """
        match value:
            case [str() as name, dtype, shape, sha256, str() as samples]:
                pass
            case _:
                raise ValueError(f"{path}: expected [name, dtype, shape, sha256, samples], got {shown(value)}")
        if not isinstance(dtype, str) or not _DTYPE_NAME(dtype):
            raise ValueError(f"{path}: dtype {shown(dtype)} is not one of safetensors, nor of GGUF")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{path}: expected the shape as a list of natural numbers, got {shown(shape)}")
        try:
            digest = parse_digest(f"sha256:{sha256}")
            raw = base64.b64decode(samples, validate=True)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return cls(name=name, dtype=dtype, shape=tuple(shape), sha256=digest[7:], samples=raw)


def sample_offsets(spec: TensorSpec) -> tuple[int, ...]:
    """Return the offsets of the `SAMPLES` numbers in the tensor's bytes; empty for an empty tensor.

    Number k is element `((k + 1) * 0x9E3779B97F4A7C15 mod 2**64) * elements >> 64` of the flattened tensor: they spread
    evenly for every shape, and so do the first few of them. For dtypes below 8 bits it is the byte around it.
    """
    bits, elements = DTYPE_BITS[spec.dtype], spec.elements
    if not elements:
        return ()
    positions = (((k + 1) * _GOLDEN % (1 << 64)) * elements >> 64 for k in range(SAMPLES))
    return tuple(position * bits // 8 for position in positions)
