"""Digests in OCI notation (`sha256:<64 hex>`), copying with a hash, and strict JSON."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable
from itertools import islice
from typing import IO, Any, Final, NewType

from adapterhub.core.errors import shown

Digest = NewType("Digest", str)
"""`sha256:` and 64 lower-case hex digits; only `parse_digest` and the hashing functions make one."""

Json = Any
"""A parsed JSON or TOML value, whose type its reader checks."""

Progress = Callable[[int], None]
"""Called with the number of bytes done since the last call."""

CHUNK_BYTES = 1 << 20
_FIRST_BYTES: Final = 1 << 16  # a buffer of a chunk takes longer to make than a small file to read
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def parse_digest(text: object) -> Digest:
    """Return the digest that `text` spells.

    Raises:
        ValueError: unless `text` is `sha256:` and 64 lower-case hex digits.
    """
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise ValueError(f"expected sha256:<64 lower-case hex digits>, got {shown(text)}")
    return Digest(text)


def hex_of(digest: Digest) -> str:
    """Return the 64 hex digits."""
    return digest[7:]


def digest_of(data: bytes | memoryview) -> Digest:
    """Digest of bytes in memory."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def digest_of_hash(hasher: Any) -> Digest:
    """Return the digest of all bytes that a `hashlib.sha256()` object has hashed so far."""
    return Digest("sha256:" + hasher.hexdigest())


def copy_hashed(
    source: IO[bytes], sink: IO[bytes] | None, progress: Progress | None = None, limit_bytes: int | None = None
) -> tuple[Digest, int]:
    """Copy `source` to `sink` (or only read it) and return the digest and size of the bytes.

    Raises:
        ValueError: `source` holds more than `limit_bytes`.
    """
    hasher, size, buffer = hashlib.sha256(), 0, bytearray(_FIRST_BYTES)
    view = memoryview(buffer)
    readinto = getattr(source, "readinto", None)
    while True:
        if readinto is not None:
            count = readinto(buffer)
            chunk: memoryview = view[:count]
        else:
            chunk = memoryview(source.read(CHUNK_BYTES))
            count = len(chunk)
        if not count:
            return digest_of_hash(hasher), size
        size += count
        if limit_bytes is not None and size > limit_bytes:
            raise ValueError(f"more than the announced {limit_bytes} bytes")
        hasher.update(chunk)
        if sink is not None:
            sink.write(chunk)
        if progress is not None:
            progress(count)
        if len(buffer) <= size and len(buffer) < CHUNK_BYTES:
            buffer = bytearray(CHUNK_BYTES)
            view = memoryview(buffer)


_EXACT: Final = 2**53 - 1
_ASTRAL: Final = re.compile(rb"[\xf0-\xff]")


def canonical_json(value: Json) -> bytes:
    """Return the one byte string for a JSON value: RFC 8785 (JSON Canonicalization Scheme)."""
    import json

    with contextlib.suppress(ValueError):  # a tenth of the time, where both write the same
        text = json.dumps(_plain(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        raw = text.encode("utf-8")
        if text.isascii() or not _ASTRAL.search(
            raw
        ):  # keys are ordered by UTF-16, `sort_keys` orders them by character
            return raw
    import rfc8785  # 10 ms of import

    return rfc8785.dumps(value)


def _plain(value: Json) -> Json:
    """Return the value, with whole floats as integers.

    Raises:
        ValueError: it holds something that `json` may write in another way than RFC 8785.
    """
    root = [value]
    todo: list[Any] = [root]  # copies, whose items are still those of the value
    while todo:
        holder = todo.pop()
        for place, item in holder.items() if type(holder) is dict else enumerate(holder):
            kind = type(item)
            if type(holder) is dict and type(place) is not str:
                raise ValueError
            if kind in (dict, list, tuple):
                holder[place] = dict(item) if kind is dict else list(item)
                todo.append(holder[place])
            elif kind in (int, float):
                if (kind is float and not item.is_integer()) or not -_EXACT <= item <= _EXACT:
                    raise ValueError
                holder[place] = int(item)
            elif kind not in (str, bool) and item is not None:
                raise ValueError
    return root[0]


def strict_json(raw: bytes, *, limit_bytes: int = 1 << 20, finite: bool = True, most_values: int | None = None) -> Json:
    """Parse untrusted JSON: UTF-8, no duplicate keys, no NaN or infinity; bounded size, depth and number of values.

    Three bytes can make a value of a hundred, so values have a bound of their own, by default one for 32 bytes of
    `limit_bytes` and at least `LEAST_VALUES`. It is counted before anything is parsed.
    `finite=False` accepts `NaN` and `Infinity`, which Python writes and some model configs contain.

    Raises:
        ValueError: the first problem. Callers re-raise it as the error class of their format.
    """
    import json

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for name, value in pairs:
            if name in seen:
                raise ValueError(f"key `{shown(name)}` is given twice")
            seen[name] = value
        return seen

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    def in_range(text: str) -> float:
        number = float(text)
        if number in (float("inf"), float("-inf")):
            raise ValueError(f"number {shown(text)} is out of range")
        return number

    check_bounds(raw, limit_bytes=limit_bytes, most_values=most_values)
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=no_duplicates,
            parse_constant=no_constant if finite else None,
            parse_float=in_range if finite else None,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if raw.count(b"[") + raw.count(b"{") >= MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    return value


MAX_DEPTH = 64
LEAST_VALUES: Final = 100_000
_BEFORE_VALUES: Final = (b",", b"[", b"{")
_MARKS: Final = re.compile(rb'"[^"]*"?|[,\[{]')


def check_bounds(raw: bytes, *, limit_bytes: int, most_values: int | None = None) -> None:
    """Check the bounds of JSON that is not parsed yet, as `strict_json` does.

    Commas and brackets outside of strings count the values.

    Raises:
        ValueError: too many bytes or values.
    """
    if len(raw) > limit_bytes:
        raise ValueError(f"{len(raw)} bytes, at most {limit_bytes} are read")
    most = most_values or max(LEAST_VALUES, limit_bytes >> 5)
    if sum(map(raw.count, _BEFORE_VALUES)) <= most:
        return
    plain = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = (mark for mark in _MARKS.finditer(plain) if mark.end() - mark.start() == 1)
    if next(islice(marks, most, None), None) is not None:
        raise ValueError(f"more than {most} values")


def _depth(value: object) -> int:
    """Nesting depth of a parsed JSON value, level by level; a depth beyond the limit is not counted further."""
    depth, level = 1, [value]
    while depth <= MAX_DEPTH:
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [child for children in inner for child in children]
        if not level:
            break
        depth += 1
    return depth
