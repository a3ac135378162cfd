"""GGML's types: what llama.cpp and gguf-py wrote lies inside, and a change does not."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from numpy.typing import NDArray

from adapterhub.core.errors import CouldNotTell, Malformed
from adapterhub.formats.base.quantised.ggml.blocks import CODEBOOKS, LAYOUTS
from adapterhub.formats.base.quantised.ggml.weight import ggml_weight
from adapterhub.formats.base.quantised.weight import Places, Ranges, Stored
from adapterhub.formats.gguf.types import BY_NAME, TYPES

Floats = NDArray[np.float32]
Raw = NDArray[np.uint8]

NUMBERS = {each.name: number for number, each in TYPES.items()}
FITTED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
ROWS, WIDTH = 24, 512


class Memory:
    """Tensors in memory, as a `Reader`."""

    def __init__(self, **tensors: tuple[str, tuple[int, ...], Raw]) -> None:
        self.raw = {name: raw for name, (_, _, raw) in tensors.items()}
        self.tensors: Mapping[str, Stored] = {n: Stored(dtype, shape) for n, (dtype, shape, _) in tensors.items()}

    def rows(self, name: str, starts: Places, size: int) -> Raw:
        return self.raw[name][starts[:, None] + np.arange(size)]


@cache
def llama_cpp() -> ctypes.CDLL:
    """The library of llama.cpp that quantises."""
    spec = importlib.util.find_spec("llama_cpp_py_sync")
    if spec is None or spec.origin is None:
        pytest.skip("needs llama-cpp-py-sync")
    found = ctypes.CDLL(next(map(str, Path(spec.origin).parent.glob("*ggml-base*"))))
    long, pointer = ctypes.c_int64, ctypes.c_void_p
    found.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, long, long, long, pointer]
    found.ggml_quantize_chunk.restype = found.ggml_type_size.restype = ctypes.c_size_t
    found.ggml_blck_size.restype = long
    found.ggml_type_name.restype = ctypes.c_char_p
    return found


def by_llama_cpp(source: Floats, name: str, importance: Floats | None = None) -> Raw:
    library, kind = llama_cpp(), BY_NAME[name]
    source = np.ascontiguousarray(source, dtype=np.float32)
    found = np.zeros(source.size // kind.block * kind.size, dtype=np.uint8)
    library.ggml_quantize_init(NUMBERS[name])
    weights = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)
    library.ggml_quantize_chunk(
        NUMBERS[name],
        source.ctypes.data,
        found.ctypes.data,
        0,
        *source.shape,
        None if weights is None else weights.ctypes.data,
    )
    return found


def by_gguf_py(source: Floats, name: str) -> Raw | None:
    """None where gguf-py does not write this type."""
    try:
        with np.errstate(all="ignore"):
            found: Raw = quants.quantize(source, GGMLQuantizationType[name]).reshape(-1)
    except (NotImplementedError, KeyError):
        return None
    return found


def dequantised(raw: Raw, name: str) -> Floats:
    """As gguf-py says; as llama.cpp says, of types that gguf-py cannot read."""
    if name in GGMLQuantizationType.__members__ and GGMLQuantizationType[name] in quants._type_traits:
        with np.errstate(all="ignore"):
            return np.asarray(quants.dequantize(raw.reshape(1, -1), GGMLQuantizationType[name]).reshape(-1))
    kind = BY_NAME[name]
    found = np.zeros(raw.size // kind.size * kind.block, dtype=np.float32)
    getattr(llama_cpp(), f"dequantize_row_{name.lower()}")(
        ctypes.c_void_p(raw.ctypes.data), ctypes.c_void_p(found.ctypes.data), ctypes.c_int64(found.size)
    )
    return found


def ranges_of(raw: Raw, name: str, shape: tuple[int, ...], at: Places | None = None) -> Ranges:
    weight = ggml_weight("x.weight", name, shape, "x")
    return weight.ranges(Memory(x=(name, shape, raw)), np.arange(np.prod(shape)) if at is None else at)


def outside(source: Floats, ranges: Ranges) -> int:
    numbers = source.reshape(-1).astype(np.float64)
    return int((~((numbers >= ranges.low) & (numbers <= ranges.high))).sum())


def sources() -> Iterator[tuple[str, Floats]]:
    rng = np.random.default_rng(0)

    def normal() -> Floats:
        return rng.normal(size=(ROWS, WIDTH)).astype(np.float32)

    yield "normal", normal() * np.float32(0.02)
    yield "large", normal() * 300
    yield "heavy-tailed", rng.standard_t(2, size=(ROWS, WIDTH)).astype(np.float32)
    zeros, outliers = normal(), normal()
    zeros[::2] = 0
    yield "rows of zeros", zeros
    outliers[:, 5], outliers[3, 7] = 100, -5000
    yield "outliers", outliers
    yield "negative", -np.abs(normal())
    yield "positive", np.abs(normal()) + 1
    yield "constant blocks", np.repeat(normal()[:, : WIDTH // 32], 32, axis=1)
    yield "ones", np.ones((ROWS, WIDTH), dtype=np.float32)
    yield "sparse", normal() * (rng.random((ROWS, WIDTH)) < 0.05)
    yield "ternary", np.round(np.clip(normal(), -1, 1)) * np.float32(0.0371)
    yield "groups of many scales", normal() * np.exp(3 * rng.normal(size=(ROWS, WIDTH // 16))).repeat(16, axis=1)
    for exponent in (-6, -7, -8, -40):
        yield f"1e{exponent}", normal() * np.float32(10.0**exponent)


def importances() -> Iterator[Floats]:
    rng = np.random.default_rng(1)
    yield np.exp(2 * rng.normal(size=WIDTH)).astype(np.float32)
    yield np.where(rng.random(WIDTH) < 0.02, 1e4, 1).astype(np.float32)


# ---------------------------------------------------------------- the types
def test_every_type_of_gguf_py_is_known() -> None:
    known = {each.name: (each.block, each.size) for each in TYPES.values()}

    assert {kind.value: kind.name for kind in GGMLQuantizationType}.items() <= {
        n: t.name for n, t in TYPES.items()
    }.items()
    assert {kind.name: sizes for kind, sizes in GGML_QUANT_SIZES.items()}.items() <= known.items()


def test_every_type_of_llama_cpp_is_known() -> None:
    library = llama_cpp()
    from llama_cpp_py_sync._cffi_bindings import get_lib

    sizes = {n: (library.ggml_blck_size(n), library.ggml_type_size(n)) for n in range(get_lib().GGML_TYPE_COUNT)}
    names = {n: library.ggml_type_name(n).decode() for n, (_, size) in sizes.items() if size}
    kept = {n: name.lower() for n, name in names.items() if name not in ("q8_1", "q8_K")}

    assert {n: TYPES[n].name.lower() for n in kept} == kept
    assert {n: TYPES[n][1:] for n in kept} == {n: sizes[n] for n in kept}


def test_every_quantised_type_that_files_hold_has_a_layout() -> None:
    quantised = {each.name for each in TYPES.values() if each.block > 1}

    assert quantised - {"Q8_1", "Q8_K"} == {*LAYOUTS, *CODEBOOKS}


@pytest.mark.parametrize("name", [*LAYOUTS, *CODEBOOKS])
def test_values_are_those_of_gguf_py(name: str) -> None:
    kind = BY_NAME[name]
    raw = np.random.default_rng(0).integers(0, 256, (500, kind.size), dtype=np.uint8)

    found = ranges_of(raw.reshape(-1), name, (500, kind.block)).value.reshape(500, kind.block)
    expected = dequantised(raw.reshape(-1), name).reshape(found.shape).astype(np.float64)

    has = np.isfinite(found).all(axis=1) & np.isfinite(expected).all(axis=1)
    assert has.mean() > 0.8
    sizes = np.abs(expected[has]).max(axis=1, keepdims=True)
    assert (np.abs(found - expected)[has] <= 3e-7 * sizes).all()


# ---------------------------------------------------------------- sources
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_source_lies_inside_what_the_writers_made_of_it(name: str) -> None:
    writers: list[Callable[[Floats], Raw | None]] = [
        lambda source: by_gguf_py(source, name),
        lambda source: by_llama_cpp(source, name),
    ]
    if name not in FITTED:
        writers += [lambda source, each=each: by_llama_cpp(source, name, each) for each in importances()]  # type: ignore[misc]

    for label, source in sources():
        for number, write in enumerate(writers):
            raw = write(source)
            if raw is not None:
                assert outside(source, ranges_of(raw, name, source.shape)) == 0, (label, number)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_change_of_one_percent_leaves_the_intervals(name: str) -> None:
    rng = np.random.default_rng(2)
    source = rng.normal(size=(512, WIDTH)).astype(np.float32)
    change = (rng.normal(size=(512, 16)) @ rng.normal(size=(16, WIDTH))).astype(np.float32)
    change *= 0.01 * np.linalg.norm(source) / np.linalg.norm(change)
    ranges = ranges_of(by_llama_cpp(source, name), name, source.shape)

    assert outside(source, ranges) == 0
    assert outside(source + change, ranges) > 0.0005 * source.size


@pytest.mark.parametrize("name", LAYOUTS)
def test_places_in_any_order_read_as_all_do(name: str) -> None:
    source = next(sources())[1]
    raw = by_llama_cpp(source, name)
    at = np.random.default_rng(3).integers(0, source.size, 200)
    whole = ranges_of(raw, name, source.shape)

    for places in (at, np.arange(37, 5001), np.arange(0)):
        some = ranges_of(raw, name, source.shape, places)
        assert all(np.array_equal(part, all_of[places]) for part, all_of in zip(some, whole, strict=True))


@pytest.mark.parametrize("name", FITTED)
def test_fitted_scales_are_told_from_rounded_ones(name: str) -> None:
    source = next(sources())[1]
    for importance in importances():
        ranges = ranges_of(by_llama_cpp(source, name, importance), name, source.shape, np.arange(40))

        assert np.isnan([ranges.low, ranges.high]).all()
        assert np.corrcoef(ranges.value, source.reshape(-1)[:40])[0, 1] > 0.98


@pytest.mark.parametrize("name", ["Q4_0", "Q2_K", "IQ4_NL"])
def test_steps_are_as_wide_as_the_errors_of_the_writer(name: str) -> None:
    source = next(sources())[1]
    at = np.arange(source.size)
    for importance in (None, *importances()):
        reader = Memory(x=(name, source.shape, by_llama_cpp(source, name, importance)))
        weight = ggml_weight("x.weight", name, source.shape, "x")
        errors = np.abs(weight.ranges(reader, at).value - source.reshape(-1)) / weight.steps(reader, at)

        assert 0.15 < np.median(errors) < 0.35


@pytest.mark.parametrize("name", CODEBOOKS)
def test_codebooks_give_values_and_no_intervals(name: str) -> None:
    raw = np.random.default_rng(0).integers(0, 256, 64 * BY_NAME[name].size, dtype=np.uint8)
    ranges = ranges_of(raw, name, (64, 256))

    assert not ggml_weight("x.weight", name, (64, 256), "x").is_rounded
    assert np.isnan([ranges.low, ranges.high]).all()
    assert np.isfinite(ranges.value).mean() > 0.8


# ---------------------------------------------------------------- what is wrong in a file
def _with_halves(name: str, bits: int) -> Raw:
    """Blocks with codes at random whose float16 (or float8) all have the same bits."""
    kind = BY_NAME[name]
    raw = np.random.default_rng(4).integers(0, 256, (64, kind.size), dtype=np.uint8)
    if name in ("MXFP4", "NVFP4"):
        raw[:, : 1 if name == "MXFP4" else 4] = 0xFF
        return raw.reshape(-1)
    pair = np.frombuffer(bits.to_bytes(2, "little"), dtype=np.uint8)
    at = {"TQ1_0": 52, "TQ2_0": 64, "Q2_K": 80, "Q3_K": 108, "Q6_K": 208}.get(name, 0)
    raw[:, at : at + 2] = pair
    return raw.reshape(-1)


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00], ids=["inf", "-inf", "nan"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_scales_that_are_no_numbers_explain_nothing(name: str, bits: int) -> None:
    ranges = ranges_of(_with_halves(name, bits), name, (64, BY_NAME[name].block))

    assert all(np.isnan(each).all() for each in ranges)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "MXFP4"])
def test_a_scale_of_zero_explains_tiny_numbers_only(name: str) -> None:
    kind = BY_NAME[name]
    ranges = ranges_of(np.zeros(64 * kind.size, dtype=np.uint8), name, (64, kind.block))

    assert (np.maximum(np.abs(ranges.low), np.abs(ranges.high)) < (0.006 if name == "NVFP4" else 3e-4)).all()
    assert (ranges.value == 0).all()


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(Malformed, match=r"`x` is \[4, 100\], but Q4_K needs rows of whole blocks of 256 numbers"):
        ggml_weight("x.weight", "Q4_K", (4, 100), "x")


@pytest.mark.parametrize("name", ["Q8_K", "Q9_9"])
def test_a_type_that_files_do_not_hold_is_named(name: str) -> None:
    with pytest.raises(CouldNotTell, match=f"`x` has the type {name}"):
        ggml_weight("x.weight", name, (4, 256), "x")


def test_floats_are_read_as_such() -> None:
    source = next(sources())[1]
    weight = ggml_weight("x.weight", "F32", source.shape, "x")
    ranges = weight.ranges(Memory(x=("F32", source.shape, source.view(np.uint8).reshape(-1))), np.arange(source.size))

    assert outside(source, ranges) == 0
    assert outside(source * np.float32(1.001), ranges) == source.size


def test_a_factor_is_multiplied_with_its_matrix() -> None:
    source = next(sources())[1]
    factors = np.array([0.5, 3], dtype=np.float32)
    shape = (2, ROWS // 2, WIDTH)
    whole = source.reshape(shape) * factors[:, None, None]
    reader = Memory(x=("NVFP4", shape, by_llama_cpp(source, "NVFP4")), f=("F32", (2,), factors.view(np.uint8)))

    ranges = ggml_weight("x.weight", "NVFP4", shape, "x", factor="f").ranges(reader, np.arange(source.size))
    assert outside(whole, ranges) == 0
    assert outside(source, ranges) > source.size / 2

    wrong: Any = ggml_weight("x.weight", "NVFP4", (3, 8, WIDTH), "x", factor="f")
    with pytest.raises(Malformed, match="`f` holds 2 numbers, expected 1 or 3"):
        wrong.ranges(reader, np.arange(10))
