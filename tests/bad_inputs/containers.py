"""S: weights files that are no safetensors file, or one with a header that lies."""

from __future__ import annotations

from collections.abc import Callable

from tests.bad_inputs.cases import case
from tests.support.hostile_kinds import PICKLE, container, framed, good, pairs


def entry(shape: str, start: int, end: int, dtype: str = "U8") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}'


def one(shape: str, end: int, dtype: str = "F32") -> bytes:
    """A file with one tensor, of `end` bytes of zeros."""
    return framed(f'{{"a":{entry(shape, 0, end, dtype)}}}'.encode(), bytes(end))


def two(first: str, second: str, size: int) -> bytes:
    return framed(f'{{"a":{first},"b":{second}}}'.encode(), bytes(size))


def renamed(change: Callable[[str], str]) -> bytes:
    """A good file but for the name of its first tensor."""
    (name, *rest), *others = pairs()
    return container([(change(name), *rest), *others])  # type: ignore[list-item]


def empty_tensors(number: int) -> bytes:
    return framed(("{" + ",".join(f'"t{i}":{entry("[0]", 0, 0)}' for i in range(number)) + "}").encode())


BROKEN: list[tuple[str, str, Callable[[], bytes]]] = [
    ("S01", "an empty file", lambda: b""),
    ("S02", "seven bytes, shorter than the length field", lambda: bytes(7)),
    ("S03", "the header ends beyond the end of the file", lambda: framed(b"{}", length=10**6)),
    ("S04", "a header of 2**63 bytes", lambda: framed(b"{}", length=2**63)),
    ("S05", "a header just longer than the 100 MB that the safetensors library takes", lambda: framed(b"{}", length=100_000_001)),
    ("S06", "the last 100 bytes are missing", lambda: container(pairs())[:-100]),
    ("S07", "bytes behind the last tensor", lambda: container(pairs()) + b"EXTRA" * 10),
    ("S08", "a header that is not UTF-8", lambda: framed(b'{"a\xff":' + entry("[1]", 0, 1).encode() + b"}", bytes(1))),
    ("S09", "a header nested 100,000 deep", lambda: framed(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")),
    ("S10", "a gap between two tensors", lambda: two(entry("[1]", 0, 1), entry("[1]", 4, 5), 5)),
    ("S11", "two tensors that overlap", lambda: two(entry("[4]", 0, 4), entry("[4]", 2, 6), 6)),
    ("S12", "a shape that needs more bytes than the tensor has", lambda: one("[8]", 4)),
    ("S13", "a shape whose product overflows 64 bits", lambda: one("[8589934592,8589934592]", 4)),
    ("S14", "an unknown dtype", lambda: one("[1]", 1, "X9")),
    ("S15", "a negative dimension", lambda: one("[-1]", 1, "U8")),
    ("S16", "no tensors", lambda: framed(b"{}")),
    ("S17", "a number in the metadata", lambda: container(pairs(), metadata='{"format":1}')),
    ("S18", "a pickle under the name of a safetensors file", lambda: PICKLE),
    ("S19", "the HTML page of an error", lambda: b"<!DOCTYPE html><html><title>502 Bad Gateway</title></html>"),
    ("S20", "a list as the header", lambda: framed(b"[1,2]")),
    ("S21", "spaces before the header's first brace", lambda: container(pairs(), before="   ")),
    ("S22", "a key of the metadata given twice", lambda: container(pairs(), metadata='{"format":"pt","format":"np"}')),
    ("S23", "dimensions that overflow behind a zero", lambda: one("[0,1099511627776,1099511627776]", 0)),
]  # fmt: skip
for _name, _why, _raw in BROKEN:
    _verdicts = ("refuse", "warn") if _name == "S22" else ("refuse",)
    case(_name, _verdicts, "E_CONTAINER", f"weights: {_why}")(lambda f, raw=_raw: good(f, raw()))  # type: ignore[misc]

case("S24", "refuse", "E_LIMIT", "70,000 empty tensors, more than are allowed")(
    lambda f: good(f, empty_tensors(70_000))
)
case("S25", "refuse", "E_TENSOR_NAME", "a tensor name with NUL")(lambda f: good(f, renamed(lambda n: "x\0" + n)))
case("S26", "refuse", "E_TENSOR_NAME", "a tensor name that is a path out of the folder")(
    lambda f: good(f, renamed(lambda n: "../../" + n))
)
case("S27", "refuse", "E_LIMIT", "40 MB of spaces in the header")(
    lambda f: good(f, container(pairs(), after=" " * 40_000_000))
)
case("S28", "refuse", "E_LIMIT", "a million empty tensors in a header of 57 MB")(
    lambda f: good(f, empty_tensors(1_000_000))
)
