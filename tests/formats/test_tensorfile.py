from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from adapterhub.core.errors import MalformedTensorFile
from adapterhub.formats.safetensors.file import HeaderLimits, header_bytes, read_header
from adapterhub.formats.safetensors.header import ADAPTER_LIMITS, BASE_LIMITS, DTYPE_BITS, TensorSpec, parse_header_text


def with_header(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def one(name: str = "a", dtype: str = "U8", shape: str = "[1]", offsets: str = "[0,1]", data: bytes = b"\0") -> bytes:
    entry = f'{{{json.dumps(name)}:{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}'
    return with_header(entry.encode(), data)


def refusal(path: Path, raw: bytes, limits: HeaderLimits = ADAPTER_LIMITS) -> MalformedTensorFile:
    path.write_bytes(raw)
    with pytest.raises(MalformedTensorFile) as caught:
        read_header(path, limits=limits)
    return caught.value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "adapter_model.safetensors"


def test_reads_what_mlx_writes_for_no_metadata(file: Path) -> None:
    file.write_bytes(with_header(b'{"__metadata__":null,"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"\0"))

    header = read_header(file)

    assert (header.metadata, list(header.by_name)) == ({}, ["a"])


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"name": "a.b-c.d_1"},
        {"name": "a..b"},
        {"name": "z"},
        {"name": "n" * 600},
        {"name": "__metadata__"},
        {"dtype": "X9"},
        {"dtype": "F4"},
        {"shape": "[]"},
        {"shape": "[01]"},
        {"shape": "[2]"},
        {"shape": "[0,1099511627776,1099511627776]", "offsets": "[0,0]"},
        {"shape": "[" + "9" * 30 + "]"},
        {"offsets": "[1,0]"},
        {"offsets": "[0,1,2]"},
    ],
    ids=str,
)
def test_the_quick_way_through_a_header_is_the_thorough_one(change: dict[str, str]) -> None:
    entry = one(**change, data=b"")[8:-1].decode()
    text = (
        entry
        + ',"y":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"z":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}'
    )

    def outcome(text: str, limits: HeaderLimits) -> object:
        try:
            return parse_header_text(text, "x", limits, 100)
        except MalformedTensorFile as error:
            return error.code, error.reason

    for limits in (ADAPTER_LIMITS, BASE_LIMITS, HeaderLimits(tensors=2)):
        assert outcome(text, limits) == outcome(text.replace('":{', '" :{'), limits)


def test_reads_what_the_library_writes(file: Path) -> None:
    tensors = {
        "b.weight": np.arange(6, dtype="f4").reshape(2, 3),
        "a": np.array(7, dtype="i8"),
        "c": np.zeros((0, 4), "f2"),
    }
    save_file(tensors, file, metadata={"format": "pt"})

    header = read_header(file)

    assert header.metadata == {"format": "pt"}
    assert {name: spec.shape for name, spec in header.by_name.items()} == {"b.weight": (2, 3), "a": (), "c": (0, 4)}
    spec = header.by_name["b.weight"]
    values = np.frombuffer(file.read_bytes()[spec.start : spec.end], "<f4")
    assert values.tolist() == [0, 1, 2, 3, 4, 5]
    assert header.tensors[-1].end == header.size_bytes == file.stat().st_size


def test_the_library_reads_what_is_written_here(file: Path) -> None:
    specs = [
        TensorSpec.planned("x.weight", "F16", (3, 2)),
        TensorSpec.planned("é", "F32", ()),
        TensorSpec.planned("z", "I64", (1,)),
    ]
    values = [np.arange(6, dtype="<f2"), np.array([1.5], "<f4"), np.array([-9], "<i8")]

    file.write_bytes(header_bytes(specs, {"b": "2", "a": "1"}) + b"".join(v.tobytes() for v in values))

    read = load_file(file)
    assert {name: value.tolist() for name, value in read.items()} == {
        "x.weight": [[0, 1], [2, 3], [4, 5]],
        "é": 1.5,
        "z": [-9],
    }
    assert read_header(file).metadata == {"a": "1", "b": "2"}


def test_data_begins_at_a_multiple_of_eight_or_where_room_was_reserved() -> None:
    specs = [TensorSpec.planned("name", "U8", (3,))]

    assert len(header_bytes(specs)) % 8 == 0
    assert len(header_bytes(specs, pad_to=4096)) == 4096
    with pytest.raises(ValueError, match="16 were reserved"):
        header_bytes(specs, pad_to=16)


def test_a_name_is_written_once() -> None:
    spec = TensorSpec.planned("name", "U8", (3,))

    with pytest.raises(ValueError, match="twice"):
        header_bytes([spec, spec])


def test_dtypes_are_those_of_the_library() -> None:
    def accepts(dtype: str) -> bool:
        from safetensors import SafetensorError, deserialize

        elements = 8  # whole bytes for every width
        raw = one(
            dtype=dtype, shape=f"[{elements}]", offsets=f"[0,{DTYPE_BITS[dtype]}]", data=b"\0" * DTYPE_BITS[dtype]
        )
        try:
            deserialize(raw)
        except SafetensorError:
            return False
        return True

    assert [dtype for dtype in DTYPE_BITS if not accepts(dtype)] == []


@pytest.mark.parametrize(
    ("raw", "code", "said"),
    [
        (b"", "E_CONTAINER", "0 bytes"),
        (b"\0" * 7, "E_CONTAINER", "7 bytes"),
        (
            with_header(b"{}", length=9_000_000_000),
            "E_CONTAINER",
            "claims a header of 9000000000 bytes, but the file holds 10",
        ),
        (with_header(b"{}"), "E_CONTAINER", "no tensors"),
        (with_header(b"[1]"), "E_CONTAINER", "expected a brace"),
        (with_header(b' {"a":1}'), "E_CONTAINER", "expected a brace"),
        (with_header(b'{"a\xff":1}'), "E_CONTAINER", "UTF-8 at byte 3"),
        (with_header(b'{"a":' + b"[" * 100_000), "E_CONTAINER", "not described by an object"),
        (with_header(b'{"__metadata__":{"a":{"b":"c"}}}'), "E_CONTAINER", "text only"),
        (with_header(b'{"__metadata__":{"a":"b","a":"c"}}'), "E_CONTAINER", "twice"),
        (with_header(b'{"__metadata__":{},"__metadata__":{}}'), "E_CONTAINER", "twice"),
        (with_header(b'{"__metadata__":{"a":"\\ud800"}}'), "E_CONTAINER", "UTF-16"),
        (one()[:-1], "E_CONTAINER", "cut off"),
        (one() + b"x", "E_CONTAINER", "1 bytes after its last tensor"),
        (one(dtype="X9"), "E_CONTAINER", "dtype is X9"),
        (one(shape="[-1]"), "E_CONTAINER", "negative"),
        (one(shape="[1.0]"), "E_CONTAINER", "not a natural number"),
        (one(shape="[true]"), "E_CONTAINER", "natural numbers"),
        (one(shape="[1e0]"), "E_CONTAINER", "not a natural number"),
        (one(shape="1"), "E_CONTAINER", "natural numbers"),
        (one(shape="[" + "1," * 32 + "1]"), "E_CONTAINER", "33 dimensions"),
        (one(shape="[" + "9" * 5000 + "]"), "E_CONTAINER", "characters"),
        (one(shape="[" + "9" * 30 + "]"), "E_CONTAINER", "64 bits"),
        (one(shape="[0,1099511627776,1099511627776]", offsets="[0,0]", data=b""), "E_CONTAINER", "64 bits"),
        (one(offsets="[1,0]"), "E_CONTAINER", "give -1"),
        (one(offsets="[0,1,2]"), "E_CONTAINER", "two natural numbers"),
        (one(dtype="F4"), "E_CONTAINER", "needs 0.5 bytes"),
        (
            with_header(b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"\0"),
            "E_CONTAINER",
            "twice",
        ),
        (with_header(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}}', b"\0"), "E_CONTAINER", "`x`"),
        (
            with_header(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},}', b"\0"),
            "E_CONTAINER",
            "string was expected",
        ),
        (
            with_header(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}{}', b"\0"),
            "E_CONTAINER",
            "after the closing brace",
        ),
        (one(name="x\0y"), "E_TENSOR_NAME", "NUL"),
        (one(name=""), "E_TENSOR_NAME", "empty"),
        (one(name="../../x"), "E_TENSOR_NAME", "path separator"),
        (one(name="..\\x"), "E_TENSOR_NAME", "path separator"),
        (one(name="/etc/passwd"), "E_TENSOR_NAME", "path separator"),
        (one(name="a..b"), "E_TENSOR_NAME", "empty part"),
        (one(name="a\u202eb"), "E_TENSOR_NAME", "invisible"),
        (one(name="a\x1b[31m"), "E_TENSOR_NAME", "control"),
        (one(name="n" * 513), "E_TENSOR_NAME", "512 bytes"),
        (one(name="\ud800"), "E_TENSOR_NAME", "UTF-16"),
        (b"\x80\x02cos\nsystem\n.", "E_CONTAINER", "a pickle"),
        (b"PK\x03\x04" + b"\0" * 60, "E_CONTAINER", "zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "E_CONTAINER", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>502 Bad Gateway</html>", "E_CONTAINER", "web page"),
    ],
)
def test_refuses_a_malformed_file_and_says_why(file: Path, raw: bytes, code: str, said: str) -> None:
    error = refusal(file, raw)

    assert (error.code, said in error.reason) == (code, True), error.reason
    assert error.message.isprintable()


def test_gaps_and_overlaps_name_both_tensors(file: Path) -> None:
    def two(second: str) -> bytes:
        first = '"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'
        return with_header(f'{{{first},"b":{{"dtype":"U8","shape":[2],"data_offsets":{second}}}}}'.encode(), b"\0" * 8)

    assert "tensor `b` overlaps `a`" in refusal(file, two("[2,4]")).reason
    assert "tensor `b` leaves 2 unused bytes after `a`" in refusal(file, two("[6,8]")).reason


def test_limits_are_kept_before_anything_large_is_read(file: Path) -> None:
    few = HeaderLimits(tensors=1, header_bytes=200, file_bytes=10_000)
    two = header_bytes([TensorSpec.planned("a", "U8", (0,)), TensorSpec.planned("b", "U8", (0,))])

    assert refusal(file, two, few).code == "E_LIMIT"
    assert refusal(file, with_header(b"{" + b" " * 300), few).code == "E_LIMIT"
    assert refusal(file, one(data=b"\0" * 20_000), few).code == "E_LIMIT"


def test_files_with_equal_headers_share_what_was_read_and_each_is_checked_by_itself(tmp_path: Path) -> None:
    raw, first, other = one(data=b"\1"), tmp_path / "first", tmp_path / "other"
    first.write_bytes(raw)
    before = read_header(first)
    before.metadata["format"] = "changed"

    other.write_bytes(raw[:-1] + b"\2")
    after = read_header(other)

    assert after.tensors is before.tensors
    assert after.once(list) is before.once(list)
    assert (after.path, after.metadata) == (other, {})
    assert "cut off" in str(refusal(other, raw[:-1]))
    assert str(refusal(other, raw + b"\3")).startswith(str(other))
    assert refusal(other, raw, HeaderLimits(name_bytes=0)).code == "E_TENSOR_NAME"


def test_a_base_may_have_names_that_an_adapter_may_not(file: Path) -> None:
    file.write_bytes(one(name="encoder/layer 0/kernel"))

    assert read_header(file, limits=BASE_LIMITS).tensors[0].name == "encoder/layer 0/kernel"


def test_a_pointer_to_the_weights_says_how_to_get_them(file: Path) -> None:
    error = refusal(file, b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 7\n")

    assert "git lfs pull" in error.hint


def test_a_pipe_is_refused_without_waiting_for_its_writer(file: Path) -> None:
    os.mkfifo(file)

    with pytest.raises(MalformedTensorFile, match="not a regular file"):
        read_header(file.parent)
    with pytest.raises(MalformedTensorFile, match="not a regular file"):
        read_header(file)


def test_a_missing_file_is_refused_in_the_same_way(file: Path) -> None:
    with pytest.raises(MalformedTensorFile, match="cannot be opened"):
        read_header(file)


names = st.from_regex(r"[a-z]{1,8}(\.[a-z0-9_]{1,8}){0,3}", fullmatch=True)
dtypes, shapes = st.sampled_from(["F32", "BF16", "U8", "F64"]), st.lists(st.integers(0, 4), max_size=3).map(tuple)
specs = st.lists(
    st.builds(TensorSpec.planned, names, dtypes, shapes), min_size=1, max_size=8, unique_by=lambda spec: spec.name
)


@given(specs, st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3))
def test_reading_is_the_inverse_of_writing(
    tmp_path_factory: pytest.TempPathFactory, planned: list[TensorSpec], metadata: dict[str, str]
) -> None:
    file = tmp_path_factory.mktemp("round") / "x.safetensors"
    file.write_bytes(header_bytes(planned, metadata) + b"\0" * sum(s.size_bytes for s in planned))

    header = read_header(file)

    assert header.metadata == metadata
    assert sorted((s.name, s.dtype, s.shape, s.size_bytes) for s in header.tensors) == sorted(
        (s.name, s.dtype, s.shape, s.size_bytes) for s in planned
    )


@pytest.mark.slow
def test_damage_never_gives_anything_but_the_one_refusal(tmp_path: Path, amount: Callable[[int, int], int]) -> None:
    """Flips, cuts, swaps and insertions of a real file; what is accepted the library accepts too."""
    from safetensors import deserialize

    chance = random.Random(20251124)
    planned = [TensorSpec.planned(f"m.{i}.lora_{h}.weight", "F16", (2, 3)) for i in range(3) for h in "AB"]
    good = header_bytes(planned, {"format": "pt"}) + bytes(range(72))
    words = [
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"-",
        b"1e9",
        b"null",
        b"\\u0000",
        b"\xff",
        b"0",
        b" ",
        b'"a":',
        b"9" * 30,
    ]
    file, accepted = tmp_path / "x.safetensors", 0
    for _ in range(amount(4_000, 20_000)):
        raw = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(raw))
            kind = chance.randrange(5)
            if kind == 0:
                raw[at] ^= 1 << chance.randrange(8)
            elif kind == 1:
                del raw[at : at + chance.randint(1, 9)]
            elif kind == 2:
                raw[at:at] = chance.choice(words)
            elif kind == 3:
                raw[at : at + 1] = chance.choice(words)
            else:
                end = chance.randrange(at, len(raw))
                raw[at:end] = raw[at:end][::-1]
            raw = raw or bytearray(b"\0")
        if chance.random() < 0.5:  # keep the length true, so that the header itself is reached
            raw[:8] = struct.pack("<Q", max(0, min(len(raw) - 8 - 72, len(raw))))
        file.write_bytes(raw)
        try:
            read_header(file)
        except MalformedTensorFile:
            continue
        accepted += 1
        deserialize(bytes(raw))

    assert accepted > 0
