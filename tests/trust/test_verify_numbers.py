"""The numbers of weights: not finite, zero, in every dtype, across chunks, and in little memory."""

from __future__ import annotations

import json
import math
import os
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.core.digests import digest_of
from adapterhub.core.disk.held_file import PIECE_BYTES, HeldFile
from adapterhub.formats.manifest import (
    CONFIG_FILE,
    WEIGHTS_FILE,
)
from adapterhub.formats.safetensors.file import header_bytes, read_header
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.trust.verify import open_subject, verify, verify_folder
from adapterhub.trust.verify import subject as _scan
from adapterhub.trust.verify.subject import TensorNumbers
from tests.trust.verifying import (
    ATTENTION,
    HID,
    RANK,
    Make,
    P,
    attention,
    codes,
)

# ------------------------------------------------------------ numbers
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
QUIET = {"F64": 1 << 51, "F32": 1 << 22, "F16": 1 << 9, "BF16": 1 << 6, "F8_E4M3": 0, "F8_E5M2": 1}
INFINITY = {"F64": 0x7FF << 52, "F32": 0x7F80_0000, "F16": 0x7C00, "BF16": 0x7F80, "F8_E4M3": 0x7F, "F8_E5M2": 0x7C}


LOOKS = {"numpy": _scan.look_with_numpy, "bytes": _scan.look_at_bytes}


@pytest.fixture(params=LOOKS)
def _look(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are looked at in both ways, of which the size of the file and what is installed decide."""
    for name in ("look_with_numpy", "look_at_bytes"):
        monkeypatch.setattr(_scan, name, LOOKS[request.param])


def scanned(tmp_path: Path, parts: list[tuple[str, str, int, bytes]]) -> Mapping[str, TensorNumbers]:
    """What the numbers of tensors (name, dtype, elements, bytes) are, in a file of them."""
    specs = [TensorSpec.planned(name, dtype, (count,)) for name, dtype, count, _ in parts]
    path = tmp_path / "x.safetensors"
    path.write_bytes(header_bytes(specs) + b"".join(raw for *_, raw in parts))
    held = HeldFile(path)
    header = read_header(path)
    numbers = _scan.scan_weights(held, header)
    assert held.digest == digest_of(path.read_bytes())
    return numbers


@pytest.mark.usefixtures("_look")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [0, 1])
def test_nan_and_infinity_are_found_at_their_place_in_every_dtype(tmp_path: Path, dtype: str, sign: int) -> None:
    width = DTYPES[dtype]
    for code in {INFINITY[dtype], INFINITY[dtype] | QUIET[dtype]}:
        odd = (code | sign << (8 * width - 1)).to_bytes(width, "little")
        raw = bytes(width * 6) + odd + bytes(width * 2)

        numbers = scanned(tmp_path, [("pad", "U8", 3, b"abc"), ("x", dtype, 9, raw), ("y", dtype, 2, bytes(width * 2))])

        assert (numbers["x"].odd, numbers["y"].odd) == (6, None)


@pytest.mark.usefixtures("_look")
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_finite_number_is_no_infinity(tmp_path: Path, dtype: str) -> None:
    width = DTYPES[dtype]
    largest = (INFINITY[dtype] - 1).to_bytes(width, "little")

    numbers = scanned(tmp_path, [("x", dtype, 2, bytes(width) + largest)])

    expected = {"F64": 1.797e308, "F32": 3.403e38, "F16": 65504, "BF16": 3.39e38, "F8_E4M3": 448, "F8_E5M2": 57344}
    assert numbers["x"].odd is None
    assert math.isclose(numbers["x"].largest, expected[dtype], rel_tol=1e-3)


@pytest.mark.usefixtures("_look")
def test_numbers_across_chunks_are_read_whole(tmp_path: Path) -> None:
    count = PIECE_BYTES  # four chunks of F32, begun at an odd offset
    values = np.zeros(count, "<f4")
    places = (0, PIECE_BYTES // 4 - 1, PIECE_BYTES // 4, count - 1)
    for place in places:
        values[:] = 1.0
        values[place] = -np.inf

        numbers = scanned(tmp_path, [("pad", "U8", 5, b"abcde"), ("x", "F32", count, values.tobytes())])

        assert numbers["x"].odd == place


@pytest.mark.usefixtures("_look")
def test_numbers_of_files_with_equal_headers_are_their_own(tmp_path: Path) -> None:
    for value, odd in ((1.0, None), (math.nan, 1), (2.0, None)):
        raw = np.array([0, value], "<f4").tobytes()

        assert scanned(tmp_path, [("x", "F32", 2, raw)])["x"].odd == odd


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_bytes_tell_of_numbers_what_numpy_tells(dtype: str, data: st.DataObject) -> None:
    kind = _scan._KINDS[dtype]
    code = st.integers(0, kind.mask) | st.integers(0, 255).map(lambda low: kind.largest + 128 - low & kind.mask)
    sign = kind.mask + 1
    codes = data.draw(st.lists(st.tuples(code | st.just(0), st.sampled_from([0, sign])), min_size=1, max_size=40))
    raw = memoryview(b"".join((size | sign).to_bytes(kind.width, "little") for size, sign in codes))

    starts = sorted({0, kind.width * data.draw(st.integers(0, len(codes) - 1))})  # one tensor or two
    f32 = _scan._KINDS["F32"].layout.maximum

    def told(way: str) -> list[tuple[int, int | None]]:
        most, odd = LOOKS[way](raw, kind, starts)
        return [(largest, odd.get(i)) for i, largest in enumerate(most)]

    for exact, bound in zip(told("numpy"), told("bytes"), strict=True):
        assert bound[1] == exact[1]
        assert exact[0] <= bound[0]
        first = 8 * (kind.width - 1)
        assert bound[0] >> first == exact[0] >> first
        if not exact[0] or exact[1] is not None or kind.layout.magnitude(exact[0]) > f32 or kind.width == 1:
            assert bound == exact
        else:
            assert kind.layout.magnitude(bound[0]) <= f32


@pytest.mark.usefixtures("_look")
def test_not_finite_numbers_name_tensor_and_element(make: Make) -> None:
    tensors = attention()
    name = f"{P}{ATTENTION.format(1, 'v_proj')}.lora_B.weight"
    tensors[name][3, 1] = np.nan

    report = verify_folder(make(tensors))

    assert codes(report) == ["E_NONFINITE"]
    assert f"`{name}` holds NaN or infinity, first at element 7" in report.errors[0].message


@pytest.mark.usefixtures("_look")
def test_an_update_of_zeros_is_warned_of(make: Make) -> None:
    nothing = {name: value * ("lora_A" in name) for name, value in attention().items()}

    assert codes(verify_folder(make(nothing))) == ["W_NOOP"]


@pytest.mark.usefixtures("_look")
def test_an_overflow_is_measured_and_not_guessed(make: Make) -> None:
    a, b = np.zeros((RANK, HID), "f2"), np.zeros((HID, RANK), "f2")
    a[0, 0], b[0, 1] = 300, 300  # their product never meets: the bound is exceeded, the update is zero
    names = [f"{P}{ATTENTION.format(0, 'q_proj')}.lora_{half}.weight" for half in "AB"]

    apart = verify_folder(make(dict(zip(names, (a, b), strict=True)), target_modules=["q_proj"]))
    b[0, 0] = 300
    together = verify_folder(make(dict(zip(names, (a, b), strict=True)), target_modules=["q_proj"]))

    assert (codes(apart), codes(together)) == ([], ["W_OVERFLOW"])
    assert "reaches 1.8e+05" in together.warnings[0].message


def test_a_large_adapter_is_verified_in_little_memory(tmp_path: Path) -> None:
    rank, width, layers = 64, 4096, 48  # 100 MB
    specs = [
        TensorSpec.planned(f"{P}layers.{i}.q.lora_{h}.weight", "F32", (rank, width) if h == "A" else (width, rank))
        for i in range(layers)
        for h in "AB"
    ]
    data = np.random.default_rng(0).normal(0, 0.01, rank * width).astype("<f4").tobytes()
    with (tmp_path / WEIGHTS_FILE).open("wb") as stream:
        stream.write(header_bytes(specs))
        for _ in specs:
            stream.write(data)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 64,
        "target_modules": ["q"],
        "base_model_name_or_path": "a/b",
    }
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    tracemalloc.start()

    report = verify_folder(tmp_path)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert codes(report) == []
    assert peak < 16 << 20


def test_a_file_that_changes_under_the_checks_is_a_finding(make: Make) -> None:
    folder = make()
    subject, _ = open_subject(folder)
    os.truncate(folder / WEIGHTS_FILE, (folder / WEIGHTS_FILE).stat().st_size - 8)

    assert subject is not None
    assert "E_CONTAINER" in codes(verify(subject))
