"""Reads `adapter.lora.prompt_prefix` from the first bytes of a GGUF file.

The key-value part of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. llama.cpp shows the prefix
and applies it nowhere.
"""

from __future__ import annotations

import struct
from typing import Final

PROMPT_PREFIX: Final = "adapter.lora.prompt_prefix"
LOOKED_AT_BYTES: Final = 1 << 20
"""An adapter's header is a few hundred bytes before the tensors' names."""
_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_MAX_PAIRS: Final = 4096
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING: Final = 8
_ARRAY: Final = 9


def prompt_prefix(head: bytes) -> str | None:
    """The prefix that a GGUF file states, given its first `LOOKED_AT_BYTES`; None without one or for damage."""
    if head[:4] != _MAGIC or len(head) < 24:  # noqa: PLR2004 - magic, version and two counts
        return None
    version, _tensors, pairs = struct.unpack_from("<IQQ", head, 4)
    if version not in _VERSIONS or pairs > _MAX_PAIRS:
        return None
    at = 24
    try:
        for _ in range(pairs):
            key, at = _text(head, at)
            (kind,) = struct.unpack_from("<I", head, at)
            if key == PROMPT_PREFIX.encode() and kind == _STRING:
                return _text(head, at + 4)[0].decode()
            at = _after(head, at + 4, kind)
    except (struct.error, UnicodeDecodeError, ValueError):
        return None
    return None


def _text(head: bytes, at: int) -> tuple[bytes, int]:
    (size,) = struct.unpack_from("<Q", head, at)
    end = at + 8 + size
    if end > len(head):
        raise ValueError("goes beyond what is read")
    return head[at + 8 : end], end


def _after(head: bytes, at: int, kind: int) -> int:
    """The place after a value of `kind`; arrays of arrays, which no writer makes, are damage."""
    if kind == _STRING:
        return _text(head, at)[1]
    if kind != _ARRAY:
        return at + _size(kind)
    inner, count = struct.unpack_from("<IQ", head, at)
    at += 12
    if inner != _STRING:
        return at + _size(inner) * int(count)
    for _ in range(count):
        at = _text(head, at)[1]
    return at


def _size(kind: int) -> int:
    if kind not in _SIZES:
        raise ValueError(f"has values of kind {kind}")
    return _SIZES[kind]
