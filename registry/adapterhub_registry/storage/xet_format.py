"""Reads the two formats in which a Xet client sends files: xorbs (chunks back to back) and shards (how files are cut).

Nothing here touches a disk or a network. Both formats come from untrusted clients, so the reader checks every length
before it uses it, and raises no other error than `MalformedXet`.

The layout follows xet-core's public source (Apache-2.0) and was checked against the bytes of hf-xet 1.5 to 1.8. All
numbers are little endian.

    xorb    chunks, then the end or a footer that begins with `XETBLOB` and is ignored
    chunk   u8 version 0 | u24 packed bytes | u8 scheme | u24 unpacked bytes | data
    shard   48 B header, file blocks, 32 B of 0xFF; the rest (facts about xorbs) is ignored
    block   file header, n segments, n verification entries (flag bit 31), 1 metadata entry (flag bit 30); 48 B each
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NewType, NoReturn

import lz4.frame

from adapterhub.core.errors import Malformed, shown
from adapterhub_registry.names import SHA256

XetHash = NewType("XetHash", str)
"""64 lower-case hex digits in the text form of the Xet protocol, which reverses each group of eight bytes."""

MAX_CHUNK_BYTES: Final = 128 << 10
MAX_CHUNKS: Final = 8192
MAX_XORB_BYTES: Final = 64 << 20
"""The most unpacked bytes that the chunks of one xorb may hold."""
MAX_XORB_BODY_BYTES: Final = MAX_XORB_BYTES + (1 << 20)
"""The largest xorb on the wire: its chunks, their headers and a footer."""
MAX_SHARD_BYTES: Final = 64 << 20
MAX_FILES: Final = 20_000
"""The most files of one shard: by default, a commit may name as many."""

SCHEME_NONE, SCHEME_LZ4, SCHEME_GROUPED_LZ4 = 0, 1, 2
MAX_PACKED_BYTES: Final = 2 * MAX_CHUNK_BYTES  # an LZ4 frame of noise is a little larger than the noise

_CHUNK_HEADER_BYTES = 8
_FOOTER_TAG = b"XETBLOB"
_SHARD_TAG = b"HFRepoMetaData\x00"
_SHARD_VERSION = 2
_ENTRY_BYTES = 48
_HASH_BYTES = 32
_BOOKEND = b"\xff" * _HASH_BYTES
_HAS_VERIFICATION, _HAS_METADATA = 1 << 31, 1 << 30
_SEGMENT = struct.Struct("<32s4I")
_FILE_HEADER = struct.Struct("<32s2I8x")


class MalformedXet(Malformed):
    """A xorb or shard breaks its format or exceeds a bound; `what` is `xorb`, `shard` or `hash`."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what}: {reason}")
        self.what = what
        self.reason = reason


def parse_xet_hash(text: str) -> XetHash:
    """Parse the text form of a hash.

    Raises:
        MalformedXet: unless `text` is 64 lower-case hex digits.
    """
    if not SHA256.fullmatch(text):
        raise MalformedXet("hash", f"expected 64 lower-case hex digits, got {shown(text)}")
    return XetHash(text)


def hash_text(raw: bytes) -> XetHash:
    """The text form of the 32 bytes of a hash: each group of eight bytes reversed, then hex."""
    return XetHash(b"".join(raw[at : at + 8][::-1] for at in range(0, _HASH_BYTES, 8)).hex())


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSpan:
    """The position of one chunk in its xorb: its packed data is `[start, start + packed_bytes)`."""

    start: int
    packed_bytes: int
    unpacked_bytes: int
    scheme: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of chunks `[first, end)` of one xorb, `size_bytes` when unpacked; a file is a sequence of segments."""

    xorb: XetHash
    size_bytes: int
    first: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """One file that a shard describes. Segments stay packed (48 bytes each) until `segments` yields them."""

    sha256: str
    size_bytes: int
    _packed: memoryview

    def segments(self) -> Iterator[Segment]:
        """The file's segments in order."""
        for raw, _flags, size, first, end in _SEGMENT.iter_unpack(self._packed):
            yield Segment(xorb=hash_text(raw), size_bytes=size, first=first, end=end)


class XorbScanner:
    """Reads a xorb as it arrives and keeps only the positions of its chunks; memory grows with their number.

    `on_chunk` gets the packed bytes of each chunk as soon as they are complete.
    """

    def __init__(self, on_chunk: Callable[[bytes, ChunkSpan], None] | None = None) -> None:
        self._on_chunk = on_chunk
        self._packed = bytearray()  # of the chunk that is arriving, for `on_chunk`
        self._spans: list[ChunkSpan] = []
        self._pending = bytearray()
        self._at = 0  # bytes of the xorb so far
        self._skip = 0  # bytes of packed data still to come
        self._unpacked = 0
        self._in_footer = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            MalformedXet: as soon as the bytes exceed a bound or break the layout.
        """
        if self._at + len(data) > MAX_XORB_BODY_BYTES:
            _reject_xorb(f"holds more than {MAX_XORB_BODY_BYTES} bytes")
        view, read = memoryview(data), 0
        while read < len(view) and not self._in_footer:
            step = min(self._skip, len(view) - read)
            if step:
                self._pass(view[read : read + step])
            else:
                step = min(_CHUNK_HEADER_BYTES - len(self._pending), len(view) - read)
                self._pending += view[read : read + step]
            read += step
            if len(self._pending) == _CHUNK_HEADER_BYTES:
                self._header(bytes(self._pending), self._at + read)
                self._pending.clear()
        self._at += len(data)

    def finish(self) -> tuple[ChunkSpan, ...]:
        """The chunks in order, at the end of the xorb.

        Raises:
            MalformedXet: the xorb is truncated or empty.
        """
        # The footer's tag is shorter than a chunk header, so a xorb that ends right after it is complete.
        if self._skip or (self._pending and not self._pending.startswith(_FOOTER_TAG)):
            _reject_xorb(f"is truncated in or before chunk {len(self._spans) - bool(self._skip)}")
        if not self._spans:
            _reject_xorb("holds no chunks")
        return tuple(self._spans)

    def _pass(self, data: memoryview) -> None:
        self._skip -= len(data)
        if self._on_chunk is not None:
            self._packed += data
            if not self._skip:
                self._on_chunk(bytes(self._packed), self._spans[-1])
                self._packed.clear()

    def _header(self, raw: bytes, start: int) -> None:
        if raw.startswith(_FOOTER_TAG):
            self._in_footer = True
            return
        number = len(self._spans)
        version, scheme = raw[0], raw[4]
        packed, unpacked = int.from_bytes(raw[1:4], "little"), int.from_bytes(raw[5:8], "little")
        self._unpacked += unpacked
        problem = ""
        if version:
            problem = f"version is {version}, expected 0"
        elif scheme > SCHEME_GROUPED_LZ4:
            problem = f"scheme is {scheme}, expected 0, 1 or 2"
        elif not 0 < unpacked <= MAX_CHUNK_BYTES:
            problem = f"unpacked bytes are {unpacked}, expected 1 to {MAX_CHUNK_BYTES}"
        elif not 0 < packed <= MAX_PACKED_BYTES:
            problem = f"packed bytes are {packed}, expected 1 to {MAX_PACKED_BYTES}"
        elif scheme == SCHEME_NONE and packed != unpacked:
            problem = f"is stored without compression, but its sizes are {packed} and {unpacked}"
        elif number >= MAX_CHUNKS:
            problem = f"is one too many, expected at most {MAX_CHUNKS} chunks"
        elif self._unpacked > MAX_XORB_BYTES:
            problem = f"unpacked bytes of the xorb come to {self._unpacked}, expected at most {MAX_XORB_BYTES}"
        if problem:
            _reject_xorb(f"chunk {number}: {problem}")
        self._spans.append(ChunkSpan(start=start, packed_bytes=packed, unpacked_bytes=unpacked, scheme=scheme))
        self._skip = packed


def scan_xorb(pieces: Iterable[bytes]) -> tuple[ChunkSpan, ...]:
    """The positions of the chunks of a xorb; `pieces` are its bytes, cut anywhere.

    Raises:
        MalformedXet: the bytes exceed a bound or break the layout.
    """
    scanner = XorbScanner()
    for piece in pieces:
        scanner.feed(piece)
    return scanner.finish()


def spans_of(chunks: tuple[ChunkSpan, ...], segment: Segment) -> tuple[ChunkSpan, ...]:
    """The chunks that `segment` names.

    Raises:
        MalformedXet: the xorb has fewer chunks, or they unpack to a size other than the segment's.
    """
    if segment.end > len(chunks):
        _reject_shard(f"a segment names chunks up to {segment.end}, its xorb {segment.xorb} has {len(chunks)}")
    spans = chunks[segment.first : segment.end]
    held = sum(span.unpacked_bytes for span in spans)
    if held != segment.size_bytes:
        _reject_shard(f"a segment announces {segment.size_bytes} bytes, its chunks hold {held}")
    return spans


def decode_chunk(packed: bytes, span: ChunkSpan) -> bytes:
    """The `span.unpacked_bytes` bytes of one chunk; uses at most twice that memory.

    Raises:
        MalformedXet: the data does not unpack to exactly that size.
    """
    if len(packed) != span.packed_bytes:
        _reject_xorb(f"a chunk holds {len(packed)} bytes, its header announces {span.packed_bytes}")
    if span.scheme == SCHEME_NONE:
        return packed
    decoder = lz4.frame.LZ4FrameDecompressor()
    try:
        data = decoder.decompress(packed, max_length=span.unpacked_bytes + 1)
    except (RuntimeError, ValueError) as error:
        _reject_xorb(f"a chunk is not an LZ4 frame: {shown(str(error))}")
    if len(data) != span.unpacked_bytes or not decoder.eof or decoder.unused_data:
        _reject_xorb(f"a chunk does not unpack to the {span.unpacked_bytes} bytes that its header announces")
    return _ungrouped(data) if span.scheme == SCHEME_GROUPED_LZ4 else bytes(data)


def _ungrouped(data: bytes) -> bytes:
    """Undo the grouping by four: `data` holds the bytes at positions 0 mod 4, then 1, 2 and 3 mod 4."""
    out, at = bytearray(len(data)), 0
    for lane in range(4):
        size = len(range(lane, len(data), 4))
        out[lane::4] = data[at : at + size]
        at += size
    return bytes(out)


def parse_shard(raw: bytes, *, limit_bytes: int) -> tuple[ShardFile, ...]:
    """The files that a shard describes, in order; together they may unpack to `limit_bytes`.

    Raises:
        MalformedXet: the bytes exceed a bound or break the layout, or a file has no sha256.
    """
    if len(raw) > MAX_SHARD_BYTES:
        _reject_shard(f"holds {len(raw)} bytes, expected at most {MAX_SHARD_BYTES}")
    if not raw.startswith(_SHARD_TAG) or len(raw) < _ENTRY_BYTES:
        _reject_shard("does not begin with the header of a shard")
    version = int.from_bytes(raw[32:40], "little")
    if version != _SHARD_VERSION:
        _reject_shard(f"version is {version}, expected {_SHARD_VERSION}")
    entries = _Entries(memoryview(raw))
    files: list[ShardFile] = []
    total = 0
    while (header := entries.take(1))[:_HASH_BYTES] != _BOOKEND:
        if len(files) == MAX_FILES:
            _reject_shard(f"describes more than {MAX_FILES} files")
        found = _read_file(header, entries, len(files))
        total += found.size_bytes
        if total > limit_bytes:
            _reject_shard(f"its files unpack to more than {limit_bytes} bytes")
        files.append(found)
    return tuple(files)


class _Entries:
    """The 48-byte entries of a shard, in runs."""

    def __init__(self, raw: memoryview) -> None:
        self.raw, self.at = raw, _ENTRY_BYTES

    def take(self, count: int) -> memoryview:
        end = self.at + count * _ENTRY_BYTES
        if end > len(self.raw):
            _reject_shard(f"is truncated: {count} entries are due at byte {self.at}, it ends at {len(self.raw)}")
        run = self.raw[self.at : end]
        self.at = end
        return run


def _read_file(header: memoryview, entries: _Entries, number: int) -> ShardFile:
    _, flags, count = _FILE_HEADER.unpack(header)
    if flags & ~(_HAS_VERIFICATION | _HAS_METADATA):
        _reject_shard(f"file {number}: flags are {flags:#x}, expected bits 30 and 31 only")
    if not flags & _HAS_METADATA:
        _reject_shard(f"file {number}: has no sha256")
    packed = entries.take(count)
    if flags & _HAS_VERIFICATION:
        entries.take(count)
    sha256 = str(hash_text(entries.take(1)[:_HASH_BYTES].tobytes()))  # written in the same order as a Xet hash
    size = 0
    for _, _, unpacked, first, end in _SEGMENT.iter_unpack(packed):
        if not first < end <= MAX_CHUNKS:
            _reject_shard(f"file {number}: a segment names chunks [{first}, {end}), expected 0 to {MAX_CHUNKS}")
        if not 0 < unpacked <= min((end - first) * MAX_CHUNK_BYTES, MAX_XORB_BYTES):
            _reject_shard(f"file {number}: a segment of {end - first} chunks announces {unpacked} bytes")
        size += unpacked
    return ShardFile(sha256=sha256, size_bytes=size, _packed=packed)


def _reject_xorb(reason: str) -> NoReturn:
    raise MalformedXet("xorb", reason)


def _reject_shard(reason: str) -> NoReturn:
    raise MalformedXet("shard", reason)
