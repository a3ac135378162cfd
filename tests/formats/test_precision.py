from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from adapterhub.formats.base.fingerprint import interval, may_be_same, number_text

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
}
WIDTH = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E5M2FNUZ": 1, "F8_E4M3FNUZ": 1}

any_float32 = st.floats(width=32)


def stored(value: float, dtype: str) -> bytes:
    """The bytes of a float32 `value` rounded to `dtype` by torch."""
    rounded = torch.tensor([value], dtype=torch.float32).to(TORCH[dtype])
    return rounded.view(torch.uint8).numpy().tobytes()


def decoded(raw: bytes, dtype: str) -> float:
    """The value of stored bytes, by torch."""
    return torch.frombuffer(bytearray(raw), dtype=TORCH[dtype]).to(torch.float64).item()


def gap(raw: bytes, dtype: str) -> Fraction:
    """The larger distance from a finite number to its neighbours."""
    code = int.from_bytes(raw, "little")
    here = Fraction(decoded(raw, dtype))
    around = [(code + step).to_bytes(WIDTH[dtype], "little") for step in (-1, 1) if 0 <= code + step < 1 << 16]
    values = [decoded(other, dtype) for other in around]
    return max(abs(Fraction(value) - here) for value in values if math.isfinite(value))


@given(value=any_float32)
@example(value=65519.9)  # the last number below float16's overflow
@example(value=65520.0)
@example(value=3.3895313892515355e38)  # bfloat16's largest
@example(value=-0.0)
@example(value=2.0**-25)  # half of float16's smallest: a tie with zero
@example(value=1 + 2**-8)  # a tie in bfloat16
def test_rounding_a_float32_always_overlaps(value: float) -> None:
    copies = {dtype: stored(value, dtype) for dtype in ("F32", "BF16", "F16")}

    assert all(may_be_same(a, copies[a], b, copies[b]) for a in copies for b in copies)


@given(value=st.floats(width=32, min_value=-200, max_value=200), dtype=st.sampled_from(sorted(WIDTH)))
def test_rounding_to_any_float_kind_overlaps(value: float, dtype: str) -> None:
    assert may_be_same("F32", stored(value, "F32"), dtype, stored(value, dtype))


@given(
    code=st.integers(0, 0xFFFF), dtype=st.sampled_from(["BF16", "F16"]), steps=st.floats(1.001, 50), up=st.booleans()
)
@example(code=0x0001, dtype="F16", steps=1.001, up=True)
@example(code=0x8000, dtype="F16", steps=1.001, up=False)
def test_a_change_of_more_than_one_unit_never_overlaps(code: int, dtype: str, steps: float, *, up: bool) -> None:
    raw = code.to_bytes(2, "little")
    here = decoded(raw, dtype)
    assume(math.isfinite(here))
    other = here + float(gap(raw, dtype)) * (steps if up else -steps)
    assume(abs(other) < 3e38)
    changed = stored(other, "F32")
    assume(abs(Fraction(decoded(changed, "F32")) - Fraction(here)) > gap(raw, dtype))

    assert not may_be_same(dtype, raw, "F32", changed)
    assert not may_be_same("F32", changed, dtype, raw)


@given(value=st.floats(-60000, 60000), exponent=st.integers(-20, 0), steps=st.floats(1.1, 50), up=st.booleans())
def test_bf16_and_f16_further_apart_than_the_coarser_unit_never_overlap(
    value: float, exponent: int, steps: float, *, up: bool
) -> None:
    brain = stored(math.ldexp(value, exponent), "BF16")
    # float16's unit is the coarser one below 2**-17
    unit = max(gap(brain, "BF16"), Fraction(1, 1 << 24))
    half = stored(decoded(brain, "BF16") + float(unit) * (steps if up else -steps), "F16")
    assume(math.isfinite(decoded(half, "F16")))
    apart = abs(Fraction(decoded(half, "F16")) - Fraction(decoded(brain, "BF16")))
    assume(apart > max(gap(brain, "BF16"), gap(half, "F16")))

    assert not may_be_same("BF16", brain, "F16", half)


@pytest.mark.parametrize("dtype", sorted(WIDTH))
def test_every_interval_contains_its_number(dtype: str) -> None:
    codes = range(256) if WIDTH[dtype] == 1 else range(0, 1 << 16, 7)
    for code in codes:
        raw = bytes(max(0, WIDTH[dtype] - 2)) + code.to_bytes(min(2, WIDTH[dtype]), "little")
        found, value = interval(dtype, raw), decoded(raw, dtype)

        assert found is not None
        assert math.isnan(found[0]) if math.isnan(value) else found[0] <= value <= found[1], (dtype, code)


def test_float16_infinity_begins_where_rounding_overflows() -> None:
    assert interval("F16", stored(math.inf, "F16")) == (65520.0, math.inf)
    assert may_be_same("BF16", stored(1e6, "BF16"), "F16", stored(1e6, "F16"))
    assert not may_be_same("BF16", stored(60000.0, "BF16"), "F16", stored(math.inf, "F16"))
    assert not may_be_same("BF16", stored(-1e6, "BF16"), "F16", stored(math.inf, "F16"))


def test_nan_is_only_nan() -> None:
    assert may_be_same("F16", stored(math.nan, "F16"), "BF16", stored(math.nan, "BF16"))
    assert not may_be_same("F16", stored(math.nan, "F16"), "BF16", stored(0.0, "BF16"))


def test_one_dtype_needs_equal_bytes() -> None:
    assert may_be_same("BF16", b"\x80\x3f", "BF16", b"\x80\x3f")
    assert not may_be_same("BF16", b"\x80\x3f", "BF16", b"\x81\x3f")


def test_integers_compare_exactly_and_never_with_floats() -> None:
    assert may_be_same("I64", (-3).to_bytes(8, "little", signed=True), "I32", (-3).to_bytes(4, "little", signed=True))
    assert not may_be_same("I64", (3).to_bytes(8, "little"), "I32", (4).to_bytes(4, "little"))
    assert not may_be_same("I32", (1).to_bytes(4, "little"), "F32", stored(1.0, "F32"))
    assert not may_be_same("F8_E8M0", b"\x7f", "F32", stored(1.0, "F32"))


@pytest.mark.parametrize(
    ("dtype", "raw", "text"),
    [
        ("F32", stored(-0.5, "F32"), "-0.5"),
        ("F64", stored(0.25, "F64"), "0.25"),
        ("BF16", stored(math.inf, "BF16"), "inf"),
        ("F16", stored(math.nan, "F16"), "nan"),
        ("I8", b"\xff", "-1"),
        ("C64", b"\x01\0\0\0\0\0\0\x02", "0x0200000000000001"),
    ],
)
def test_numbers_are_shown_plainly(dtype: str, raw: bytes, text: str) -> None:
    assert number_text(dtype, raw) == text
