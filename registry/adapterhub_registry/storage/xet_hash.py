"""Computes the Xet protocol's hashes of chunks and xorbs, and checks a xorb against its hash.

Both are BLAKE3 with the protocol's keys. A xorb's hash is the root of a tree over its chunks. The hashes themselves
decide where a group of two to nine nodes ends, and a group is hashed as a text with a line for each member. The rules
come from the protocol's specification.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from blake3 import blake3

from adapterhub_registry.storage.xet_format import (
    ChunkSpan,
    MalformedXet,
    XetHash,
    XorbScanner,
    decode_chunk,
    hash_text,
)

_DATA_KEY: Final = bytes.fromhex("6697f5775b9550de3135cbaca597181c9de421109beb2b58b4d0b04b93adf229")
_NODE_KEY: Final = bytes.fromhex("017ec5c7a5472996fd946666b48a02e65ddd536f37c76dd2f86352e64a53713f")
_MEAN: Final = 4
_LONGEST: Final = 2 * _MEAN + 1


class Node(NamedTuple):
    """A hash, and the number of bytes below it."""

    hash: bytes
    size: int


def chunk_node(data: bytes) -> Node:
    """The node of one unpacked chunk."""
    return Node(blake3(data, key=_DATA_KEY).digest(), len(data))


def xorb_hash(chunks: Sequence[Node]) -> XetHash:
    """The hash of the xorb with these chunks; expects at least one."""
    nodes = list(chunks)
    while len(nodes) > 1:
        merged, start = [], 0
        while start < len(nodes):
            end = _end_of_group(nodes, start)
            merged.append(_parent(nodes[start:end]))
            start = end
        nodes = merged
    return hash_text(nodes[0].hash)


def _end_of_group(nodes: Sequence[Node], start: int) -> int:
    """The end of a group: after its ninth node, or from the third on after a node whose hash is a multiple of four."""
    end = min(start + _LONGEST, len(nodes))
    for at in range(start + 2, end):
        if int.from_bytes(nodes[at].hash[24:], "little") % _MEAN == 0:
            return at + 1
    return end


def _parent(group: Sequence[Node]) -> Node:
    text = "".join(f"{hash_text(node.hash)} : {node.size}\n" for node in group)
    return Node(blake3(text.encode(), key=_NODE_KEY).digest(), sum(node.size for node in group))


class XorbCheck:
    """Reads a xorb as it arrives and unpacks it chunk by chunk; memory grows with the number of chunks."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._scanner = XorbScanner(self._take)

    def feed(self, data: bytes) -> None:
        """Take the next bytes; raises `MalformedXet` as soon as they exceed a bound or a chunk does not unpack."""
        self._scanner.feed(data)

    def finish(self, expected: XetHash) -> None:
        """Raise `MalformedXet` when the xorb is truncated, or its chunks do not have the hash `expected`."""
        self._scanner.finish()
        found = xorb_hash(self._nodes)
        if found != expected:
            raise MalformedXet("xorb", f"its chunks have the hash {found}, its address names {expected}")

    def _take(self, packed: bytes, span: ChunkSpan) -> None:
        self._nodes.append(chunk_node(decode_chunk(packed, span)))


def is_xorb(pieces: Iterable[bytes], expected: XetHash) -> bool:
    """Whether these bytes are the xorb with that hash."""
    check = XorbCheck()
    try:
        for piece in pieces:
            check.feed(piece)
        check.finish(expected)
    except MalformedXet:
        return False
    return True
