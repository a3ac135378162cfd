"""Xet: how clients send files as chunks in xorbs, and the xorbs on disk until their files are made.

Hashes are BLAKE3 with the protocol's keys. A xorb's hash is the root of a tree over its chunks. The hashes themselves
decide where a group of two to nine nodes ends, and a group is hashed as a text with a line for each member. The rules
come from the protocol's specification.

Xorbs and shards come from untrusted clients, so the reader checks every length
before it uses it, and raises no other error than `MalformedXet`.

The layout follows xet-core's public source (Apache-2.0) and was checked against the bytes of hf-xet 1.5 to 1.8. All
numbers are little endian.

    xorb    chunks, then the end or a footer that begins with `XETBLOB` and is ignored
    chunk   u8 version 0 | u24 packed bytes | u8 scheme | u24 unpacked bytes | data
    shard   48 B header, file blocks, 32 B of 0xFF; the rest (facts about xorbs) is ignored
    block   file header, n segments, n verification entries (flag bit 31), 1 metadata entry (flag bit 30); 48 B each

A Xet client remembers for weeks, per address, which xorbs a server has. The address therefore carries an epoch: a new
epoch makes every client forget, so the xorbs of an old one can go. Only uploads of the same repository see them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final, NamedTuple, NewType, NoReturn, Protocol

import lz4.frame
from blake3 import blake3

from adapterhub.core.errors import Malformed, shown
from adapterhub_registry.names import SHA256
from adapterhub_registry.storage.blobs import BlobStore, FreedBlobs, StoredBlob, raising_disk_full

_DATA_KEY: Final = bytes.fromhex("6697f5775b9550de3135cbaca597181c9de421109beb2b58b4d0b04b93adf229")
_NODE_KEY: Final = bytes.fromhex("017ec5c7a5472996fd946666b48a02e65ddd536f37c76dd2f86352e64a53713f")
_MEAN: Final = 4
_LONGEST: Final = 2 * _MEAN + 1


class HashNode(NamedTuple):
    """A hash, and the number of bytes below it."""

    hash: bytes
    size: int


def chunk_node(data: bytes) -> HashNode:
    """Return the node of one unpacked chunk."""
    return HashNode(blake3(data, key=_DATA_KEY).digest(), len(data))


def xorb_hash(chunks: Sequence[HashNode]) -> XetHash:
    """Return the hash of the xorb with these chunks; expects at least one."""
    nodes = list(chunks)
    while len(nodes) > 1:
        merged, start = [], 0
        while start < len(nodes):
            end = _end_of_group(nodes, start)
            merged.append(_parent(nodes[start:end]))
            start = end
        nodes = merged
    return hash_text(nodes[0].hash)


def _end_of_group(nodes: Sequence[HashNode], start: int) -> int:
    """Return the end of a group: after its ninth node, or from the third on after a hash that is a multiple of four."""
    end = min(start + _LONGEST, len(nodes))
    for at in range(start + 2, end):
        if int.from_bytes(nodes[at].hash[24:], "little") % _MEAN == 0:
            return at + 1
    return end


def _parent(group: Sequence[HashNode]) -> HashNode:
    text = "".join(f"{hash_text(node.hash)} : {node.size}\n" for node in group)
    return HashNode(blake3(text.encode(), key=_NODE_KEY).digest(), sum(node.size for node in group))


class XorbCheck:
    """Reads a xorb as it arrives and unpacks it chunk by chunk; memory grows with the number of chunks."""

    def __init__(self) -> None:
        self._nodes: list[HashNode] = []
        self._scanner = XorbScanner(self._take)

    def feed(self, data: bytes) -> None:
        """Take the next bytes; raises `MalformedXet` as soon as they exceed a bound or a chunk does not unpack."""
        self._scanner.feed(data)

    def finish(self, expected: XetHash) -> None:
        """Raise `MalformedXet` when the xorb is truncated, or its chunks do not have the hash `expected`."""
        self._scanner.finish()
        found = xorb_hash(self._nodes)
        if found != expected:
            raise MalformedXet("xorb", f"its chunks have the hash {found}, expected {expected} as in its address")

    def _take(self, packed: bytes, span: ChunkSpan) -> None:
        self._nodes.append(chunk_node(decode_chunk(packed, span)))


def is_xorb(pieces: Iterable[bytes], expected: XetHash) -> bool:
    """Return whether these bytes are the xorb with that hash."""
    check = XorbCheck()
    try:
        for piece in pieces:
            check.feed(piece)
        check.finish(expected)
    except MalformedXet:
        return False
    return True


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

    def __init__(self, what: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"{what}: {reason}", hint=hint)
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
    """Return the text form of the 32 bytes of a hash: each group of eight bytes reversed, then hex."""
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
        """Yield the file's segments in order."""
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
        """Return the chunks in order, at the end of the xorb.

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
    """Return the positions of the chunks of a xorb; `pieces` are its bytes, cut anywhere.

    Raises:
        MalformedXet: the bytes exceed a bound or break the layout.
    """
    scanner = XorbScanner()
    for piece in pieces:
        scanner.feed(piece)
    return scanner.finish()


def spans_of(chunks: tuple[ChunkSpan, ...], segment: Segment) -> tuple[ChunkSpan, ...]:
    """Return the chunks that `segment` names.

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
    """Return the `span.unpacked_bytes` bytes of one chunk; uses at most twice that memory.

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
    """Return the files that a shard describes, in order; together they may unpack to `limit_bytes`.

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


_MAKE_AGAIN: Final = "upload the file again with a current `hf_xet`"


def _reject_xorb(reason: str) -> NoReturn:
    raise MalformedXet("xorb", reason, hint=_MAKE_AGAIN)


def _reject_shard(reason: str) -> NoReturn:
    raise MalformedXet("shard", reason, hint=_MAKE_AGAIN)


EPOCH_S: Final = 24 * 3600
GRACE_S: Final = 24 * 3600
"""How long an epoch's xorbs stay after its end: the longest time that an upload may take."""
_PIECE_BYTES: Final = 1 << 20


def epoch_at(now_s: float) -> int:
    """Return the epoch of new uploads at this time (seconds since 1970)."""
    return int(now_s // EPOCH_S)


def is_open(epoch: int, now_s: float) -> bool:
    """Return whether uploads may still use this epoch: its xorbs stay for the epoch and `GRACE_S`."""
    return epoch <= epoch_at(now_s) and now_s < (epoch + 1) * EPOCH_S + GRACE_S


WantedXorbs = Callable[[str], bool]
"""Whether uploads may still use the xorbs of a scope."""


def everything(_scope: str) -> bool:
    """Every scope is wanted."""
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class XorbPlace:
    """A xorb in an upload space; the server makes `scope`, one for each repository."""

    scope: str
    epoch: int
    hash: XetHash

    @property
    def path(self) -> str:
        """The relative path where a store keeps the xorb."""
        return f"{self.epoch}/{self.scope}/{self.hash}"


class XorbWriter(Protocol):
    """Receives one xorb."""

    def write(self, data: bytes) -> None:
        """Take the next bytes; raises `MalformedXet` as soon as they exceed a bound."""

    def keep(self) -> None:
        """Publish the xorb under its hash, unless an undamaged copy is stored already.

        Raises:
            MalformedXet: the bytes are not the xorb of that hash.
        """


class XorbStore(Protocol):
    """Keeps xorbs until the shard that names them arrives."""

    def writer(self, place: XorbPlace) -> AbstractContextManager[XorbWriter]:
        """Return a writer for one xorb. Leaving the `with` block without `keep` drops the xorb."""

    def chunks(self, place: XorbPlace) -> tuple[ChunkSpan, ...] | None:
        """Return the position of each chunk of a xorb; None without such a xorb."""

    def read(self, place: XorbPlace, spans: tuple[ChunkSpan, ...]) -> Iterator[bytes]:
        """Return the unpacked bytes of some chunks, one chunk at a time; raises `MalformedXet` for a damaged chunk."""

    def sweep(self, now_s: float, *, wanted: WantedXorbs = everything, dry_run: bool = False) -> FreedBlobs:
        """Remove the xorbs of closed epochs, and of scopes that are not `wanted`; `dry_run` only counts them."""


class DiskXorbs:
    """Xorbs as files `<root>/<epoch>/<scope>/<hash>`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextlib.contextmanager
    def writer(self, place: XorbPlace) -> Iterator[XorbWriter]:
        """Provide a writer for one xorb."""
        path = self._path(place)
        with raising_disk_full():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".", dir=path.parent)
        try:
            # unbuffered: closing must not write, as the disk may be full
            with os.fdopen(handle, "wb", buffering=0) as stream:
                yield _DiskWriter(stream, Path(name), path, place.hash)
        finally:
            Path(name).unlink(missing_ok=True)

    def chunks(self, place: XorbPlace) -> tuple[ChunkSpan, ...] | None:
        """Return the position of each chunk of a xorb; None without such a xorb."""
        try:
            with self._path(place).open("rb") as stream:
                return scan_xorb(iter(lambda: stream.read(_PIECE_BYTES), b""))
        except FileNotFoundError:
            return None

    def read(self, place: XorbPlace, spans: tuple[ChunkSpan, ...]) -> Iterator[bytes]:
        """Yield the unpacked bytes of some chunks, one chunk at a time; raises `MalformedXet` for a damaged chunk."""
        try:
            opened = self._path(place).open("rb")
        except FileNotFoundError:
            raise MalformedXet("shard", f"names xorb {place.hash}, which has expired; start the upload again") from None
        with opened as stream:
            for span in spans:
                stream.seek(span.start)
                yield decode_chunk(stream.read(span.packed_bytes), span)

    def sweep(self, now_s: float, *, wanted: WantedXorbs = everything, dry_run: bool = False) -> FreedBlobs:
        """Remove the xorbs of closed epochs, and of scopes that are not `wanted`; `dry_run` only counts them."""
        count = size = 0
        for folder in self._root.glob("*/*"):
            epoch = folder.parent.name
            if not epoch.isdecimal() or (is_open(int(epoch), now_s) and wanted(folder.name)):
                continue
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):  # another server may sweep at the same time
                    count, size = count + 1, size + path.stat().st_size
            if not dry_run:
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # other scopes are in use
                    folder.parent.rmdir()
        return FreedBlobs(count, size)

    def _path(self, place: XorbPlace) -> Path:
        return self._root / place.path


class _DiskWriter:
    def __init__(self, stream: FileIO, temporary: Path, path: Path, expected: XetHash) -> None:
        self._stream, self._temporary, self._path, self._expected = stream, temporary, path, expected
        self._check = XorbCheck()

    def write(self, data: bytes) -> None:
        self._check.feed(data)
        with raising_disk_full():
            left = memoryview(data)
            while left:
                left = left[self._stream.write(left) or 0 :]

    def keep(self) -> None:
        self._check.finish(self._expected)
        if self._is_stored():
            return
        with raising_disk_full():
            # once it knows that the server has the xorb, the client never sends it again
            os.fsync(self._stream.fileno())
            self._temporary.replace(self._path)

    def _is_stored(self) -> bool:
        try:
            with self._path.open("rb") as stream:
                return is_xorb(iter(lambda: stream.read(_PIECE_BYTES), b""), self._expected)
        except OSError:
            return False


_TABLES_KEPT: Final = 16  # files name few xorbs at a time; a table of 8,192 chunks takes a megabyte


class Ingest:
    """Rebuilds files for one upload space, `scope` at `epoch`; it never reads xorbs of another space."""

    def __init__(self, *, xorbs: XorbStore, blobs: BlobStore, scope: str, epoch: int) -> None:
        self._xorbs, self._blobs = xorbs, blobs
        self._scope, self._epoch = scope, epoch
        self._tables: OrderedDict[XetHash, tuple[ChunkSpan, ...]] = OrderedDict()

    def store(self, files: Iterable[ShardFile], *, on_stored: Callable[[StoredBlob], None]) -> None:
        """Store the files in order, and call `on_stored` after each.

        Raises:
            MalformedXet: a file names a xorb or chunk that the client did not send, or that does not unpack.
            DigestMismatch: a file's bytes do not match its sha256.
        """
        for file in files:
            on_stored(self._blobs.put(self._pieces(file), file.sha256, file.size_bytes))

    def _pieces(self, file: ShardFile) -> Iterator[bytes]:
        for segment in file.segments():
            spans = spans_of(self._table(segment), segment)
            yield from self._xorbs.read(self._place(segment), spans)

    def _place(self, segment: Segment) -> XorbPlace:
        return XorbPlace(scope=self._scope, epoch=self._epoch, hash=segment.xorb)

    def _table(self, segment: Segment) -> tuple[ChunkSpan, ...]:
        chunks = self._tables.get(segment.xorb)
        if chunks is None:
            chunks = self._xorbs.chunks(self._place(segment))
            if chunks is None:
                raise MalformedXet(
                    "shard", f"names xorb {segment.xorb}, which the client did not send; start the upload again"
                )
            self._tables[segment.xorb] = chunks
            if len(self._tables) > _TABLES_KEPT:
                self._tables.popitem(last=False)
        else:
            self._tables.move_to_end(segment.xorb)
        return chunks
