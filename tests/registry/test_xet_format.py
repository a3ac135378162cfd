from __future__ import annotations

import hashlib
import random
import struct

import pytest
from adapterhub_registry.storage.xet import (
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_FILES,
    ChunkSpan,
    MalformedXet,
    decode_chunk,
    hash_text,
    is_xorb,
    parse_shard,
    parse_xet_hash,
    scan_xorb,
    spans_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.registry.xet_wire import Captured, capture, chunk_bytes, shard_bytes, turned, xorb_bytes

LIMIT = 1 << 30
A, B = "ab" * 32, "0123456789abcdef" * 4


def contents() -> list[bytes]:
    """One file for each scheme: noise stays as it is, text is packed, floats are grouped by four first."""
    source = random.Random(1)
    noise = source.randbytes(300_000)
    floats = b"".join(struct.pack("<f", source.gauss(0, 1e-3)) for _ in range(100_000))
    return [noise, b"the same words again and again " * 20_000, floats, source.randbytes(1_000_000) + noise]


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    folder = tmp_path_factory.mktemp("wire")
    paths = [folder / f"file-{i}" for i in range(len(contents()))]
    for path, data in zip(paths, contents(), strict=True):
        path.write_bytes(data)
    return capture(paths, folder / "home")


def unpack(xorb: bytes) -> list[bytes]:
    return [decode_chunk(xorb[c.start : c.start + c.packed_bytes], c) for c in scan_xorb([xorb])]


def rebuild(shard: bytes, xorbs: dict[str, bytes]) -> dict[str, bytes]:
    files = {}
    for file in parse_shard(shard, limit_bytes=LIMIT):
        data = b""
        for segment in file.segments():
            xorb = xorbs[segment.xorb]
            for span in spans_of(scan_xorb([xorb]), segment):
                data += decode_chunk(xorb[span.start : span.start + span.packed_bytes], span)
        assert file.size_bytes == len(data)
        files[file.sha256] = data
    return files


def test_files_sent_by_the_installed_client_are_rebuilt(wire: Captured) -> None:
    expected = {hashlib.sha256(data).hexdigest(): data for data in contents()}

    actual = {sha256: data for shard in wire.shards for sha256, data in rebuild(shard, wire.xorbs).items()}

    assert expected == actual


def test_xorbs_of_the_installed_client_have_the_hash_of_their_address(wire: Captured) -> None:
    assert [is_xorb([raw], parse_xet_hash(name)) for name, raw in wire.xorbs.items()] == [True] * len(wire.xorbs)
    assert not any(is_xorb([raw], parse_xet_hash("ab" * 32)) for raw in wire.xorbs.values())


def test_the_installed_client_uses_all_three_schemes(wire: Captured) -> None:
    schemes = {span.scheme for xorb in wire.xorbs.values() for span in scan_xorb([xorb])}

    assert {0, 1, 2} == schemes


chunks = st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.sampled_from([0, 1, 2])), min_size=1, max_size=8)


@given(chunks, st.sampled_from([b"", b"XETBLOB", b"XETBLOB\1and a footer of any kind"]))
def test_a_xorb_gives_back_its_chunks(made: list[tuple[bytes, int]], footer: bytes) -> None:
    assert [data for data, _ in made] == unpack(xorb_bytes(made, footer))


@given(chunks, st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_where_a_xorb_is_cut_on_the_way_does_not_matter(made: list[tuple[bytes, int]], sizes: list[int]) -> None:
    xorb = xorb_bytes(made, b"XETBLOB footer")
    pieces, at = [], 0
    while at < len(xorb):
        step = sizes[len(pieces) % len(sizes)]
        pieces.append(xorb[at : at + step])
        at += step

    assert scan_xorb([xorb]) == scan_xorb(pieces)


segments = st.lists(
    st.tuples(st.binary(min_size=32, max_size=32).map(bytes.hex), st.integers(0, 100), st.integers(1, 100)), max_size=5
)


@given(
    st.lists(st.tuples(st.binary(min_size=32, max_size=32).map(bytes.hex), segments), max_size=4),
    st.sampled_from([0xC0000000, 0x40000000]),
)
def test_a_shard_gives_back_its_files(made: list[tuple[str, list[tuple[str, int, int]]]], flags: int) -> None:
    files = [(sha, [(x, n * 10, first, first + n) for x, first, n in runs]) for sha, runs in made]

    found = parse_shard(shard_bytes(files, flags=flags, rest=b"facts about xorbs"), limit_bytes=LIMIT)

    assert files == [(f.sha256, [(s.xorb, s.size_bytes, s.first, s.end) for s in f.segments()]) for f in found]
    assert [sum(n for _, n, _, _ in runs) for _, runs in files] == [f.size_bytes for f in found]


@given(st.binary(min_size=32, max_size=32))
def test_the_text_of_a_hash_is_its_bytes_turned_eight_by_eight(raw: bytes) -> None:
    text = hash_text(raw)

    assert raw == turned(text)
    assert text == parse_xet_hash(text)


@pytest.mark.parametrize("text", ["", "ab", "AB" * 32, "ab" * 33, "../" + "a" * 61, "ab" * 32 + "\n", "\uff10" * 64])
def test_what_is_not_a_hash_is_refused(text: str) -> None:
    with pytest.raises(MalformedXet, match="64 lower-case hex digits"):
        parse_xet_hash(text)


def header(*, version: int = 0, packed: int = 4, scheme: int = 0, unpacked: int = 4) -> bytes:
    return bytes([version]) + packed.to_bytes(3, "little") + bytes([scheme]) + unpacked.to_bytes(3, "little") + b"data"


@pytest.mark.parametrize(
    ("xorb", "reason"),
    [
        (b"", "holds no chunks"),
        (b"XETBLOB", "holds no chunks"),
        (header(version=1), "version is 1"),
        (header(scheme=3), "scheme is 3"),
        (header(unpacked=0), "unpacked bytes are 0"),
        (header(packed=0, scheme=1), "packed bytes are 0"),
        (header(unpacked=5), "sizes are 4 and 5"),
        (header(unpacked=MAX_CHUNK_BYTES + 1, scheme=1), "unpacked bytes are 131073"),
        (header(packed=0xFFFFFF, scheme=1), "packed bytes are 16777215"),
        (header()[:-1], "truncated"),
        (header()[:5], "truncated"),
        (header() + b"XETBLO", "truncated"),
        (header() * (MAX_CHUNKS + 1), "one too many"),
        (chunk_bytes(bytes(MAX_CHUNK_BYTES), 1) * 513, "unpacked bytes of the xorb"),
    ],
)
def test_a_xorb_that_breaks_a_bound_is_refused(xorb: bytes, reason: str) -> None:
    with pytest.raises(MalformedXet, match=reason):
        scan_xorb([xorb])


def test_an_endless_footer_is_refused() -> None:
    with pytest.raises(MalformedXet, match="more than"):
        scan_xorb([xorb_bytes([(b"data", 0)], b"XETBLOB"), *[bytes(1 << 20)] * 66])


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (chunk_bytes(b"a" * 100, 1, unpacked=99), "does not unpack to the 99"),
        (chunk_bytes(b"a" * 100, 1, unpacked=101), "does not unpack to the 101"),
        (chunk_bytes(bytes(1 << 24), 1, unpacked=100), "does not unpack to the 100"),
        (header(scheme=1), "does not unpack to the 4"),
        (chunk_bytes(b"a" * 100, 1).replace(b"\x04\x22\x4d\x18", b"none"), "not an LZ4 frame"),
    ],
)
def test_a_chunk_that_unpacks_to_something_else_is_refused(chunk: bytes, reason: str) -> None:
    with pytest.raises(MalformedXet, match=reason):
        unpack(chunk)


@pytest.mark.parametrize("cut", [1, 8, 40])
def test_a_cut_or_lengthened_frame_is_refused(cut: int) -> None:
    packed = chunk_bytes(bytes(range(200)), 1)[8:]

    for wrong in (packed[:-cut], packed + bytes(cut)):
        with pytest.raises(MalformedXet):
            decode_chunk(wrong, ChunkSpan(start=8, packed_bytes=len(wrong), unpacked_bytes=200, scheme=1))


@pytest.mark.parametrize(
    ("shard", "reason"),
    [
        (b"", "header of a shard"),
        (b"HFRepoMetaData\0", "header of a shard"),
        (b"x" * 96, "header of a shard"),
        (shard_bytes([], version=1), "version is 1"),
        (shard_bytes([])[:-48], "truncated"),
        (shard_bytes([(A, [(B, 5, 0, 1)])])[:-100], "truncated"),
        (shard_bytes([(A, [(B, 5, 0, 1)])], flags=0x80000000), "has no sha256"),
        (shard_bytes([(A, [(B, 5, 0, 1)])], flags=0x40000001), "flags are 0x40000001"),
        (shard_bytes([(A, [(B, 5, 1, 1)])]), r"chunks \[1, 1\)"),
        (shard_bytes([(A, [(B, 5, 2, 1)])]), r"chunks \[2, 1\)"),
        (shard_bytes([(A, [(B, 5, 0, MAX_CHUNKS + 1)])]), r"chunks \[0, 8193\)"),
        (shard_bytes([(A, [(B, 0, 0, 1)])]), "announces 0 bytes"),
        (shard_bytes([(A, [(B, MAX_CHUNK_BYTES + 1, 0, 1)])]), "announces 131073 bytes"),
        (shard_bytes([(A, [(B, (64 << 20) + 1, 0, MAX_CHUNKS)])]), "announces 67108865 bytes"),
        (shard_bytes([(A, [(B, 64 << 20, 0, MAX_CHUNKS)] * 17)]), "unpack to more than"),
        (bytes((64 << 20) + 1), "expected at most"),
        (shard_bytes([(A, [])] * (MAX_FILES + 1)), "more than 20000 files"),
    ],
)
def test_a_shard_that_breaks_a_bound_is_refused(shard: bytes, reason: str) -> None:
    with pytest.raises(MalformedXet, match=reason):
        parse_shard(shard, limit_bytes=LIMIT)


def test_a_count_of_segments_that_is_not_there_costs_nothing() -> None:
    shard = bytearray(shard_bytes([(A, [(B, 5, 0, 1)])]))
    shard[48 + 36 : 48 + 40] = b"\xff" * 4

    with pytest.raises(MalformedXet, match="truncated"):
        parse_shard(bytes(shard), limit_bytes=LIMIT)


@pytest.mark.parametrize(("size", "end", "reason"), [(7, 2, "chunks hold 8"), (8, 3, "has 2")])
def test_a_segment_that_its_xorb_does_not_hold_is_refused(size: int, end: int, reason: str) -> None:
    (file,) = parse_shard(shard_bytes([(A, [(B, size, 0, end)])]), limit_bytes=LIMIT)

    with pytest.raises(MalformedXet, match=reason):
        spans_of(scan_xorb([header() * 2]), next(file.segments()))


def changed(data: bytes, edits: list[tuple[float, int]], cut: float) -> bytes:
    out = bytearray(data)
    for place, value in edits:
        out[int(place * len(out))] = value
    return bytes(out[: int(cut * len(out))])


share = st.floats(0, 1, exclude_max=True)
edits = st.lists(st.tuples(share, st.integers(0, 255)), max_size=6)


@settings(max_examples=400)
@given(chunks, edits, share | st.just(1.0))
def test_a_damaged_xorb_is_read_or_refused(
    made: list[tuple[bytes, int]], edits: list[tuple[float, int]], cut: float
) -> None:
    try:
        unpack(changed(xorb_bytes(made, b"XETBLOB footer"), edits, cut))
    except MalformedXet as error:
        assert error.message  # noqa: PT017 - either way is right; any other error is not


@settings(max_examples=400)
@given(edits, share | st.just(1.0))
def test_a_damaged_shard_is_read_or_refused(edits: list[tuple[float, int]], cut: float) -> None:
    shard = shard_bytes([(A, [(B, 5, 0, 1), (A, 100, 3, 9)]), (B, [(B, 64 << 20, 0, 8192)])], rest=b"facts")
    try:
        for file in parse_shard(changed(shard, edits, cut), limit_bytes=LIMIT):
            list(file.segments())
    except MalformedXet as error:
        assert error.message  # noqa: PT017 - as above


@given(st.binary(max_size=400))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(MalformedXet):
        parse_shard(noise, limit_bytes=LIMIT)
