"""The layouts of GPTQ and AWQ: values are read as they were packed, and tensors that do not fit are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adapterhub.core.errors import Malformed
from adapterhub.formats.base.quantised.formats import explained
from tests.formats.quantised.test_weight import opened
from tests.formats.quantised.writers import Grid, as_awq, as_gemv, as_gptq, gptq, inputs_for, plain, trained

NUMBERS = trained(0, 96, 256)


def ensure_reads(tmp_path: Path, grid: Grid, tensors: dict[str, torch.Tensor], form: str, **settings: object) -> None:
    """The values are the grid's, the steps its scales, and there are no intervals."""
    reader, model = opened(tmp_path, tensors, **settings)
    weight, at = explained(model)["x.weight"], np.random.default_rng(1).permutation(96 * 256)
    ranges = weight.ranges(reader, at)

    assert (weight.shape, weight.form, weight.is_rounded) == ((96, 256), form, False)
    assert set(weight.parts) == tensors.keys()
    assert np.array_equal(ranges.value, grid.values.reshape(-1)[at])
    assert np.isnan(ranges.low).all()
    assert np.isnan(ranges.high).all()
    assert np.array_equal(weight.steps(reader, at), grid.scales[:, grid.groups].reshape(-1)[at])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("is_ordered", [False, True])
def test_gptq_is_read_as_it_was_packed(bits: int, version: str, *, is_ordered: bool, tmp_path: Path) -> None:
    grid = gptq(NUMBERS, inputs_for(0, 256), bits=bits, is_symmetric=False, is_ordered=is_ordered)

    tensors = as_gptq(grid, less=int(version == "gptq"))
    ensure_reads(tmp_path, grid, tensors, "gptq", bits=bits, checkpoint_format=version, quant_method="gptq")


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize(("packing", "less"), [("auto_round", 0), ("auto_round:auto_gptq", 1)])
def test_auto_rounds_files_are_read_as_they_were_packed(bits: int, packing: str, less: int, tmp_path: Path) -> None:
    grid = plain(NUMBERS, bits=bits)
    grid = grid._replace(scales=grid.scales * np.where(np.arange(96) % 3, 1, -1)[:, None])  # it writes negative ones
    tensors = as_gptq(grid, less=less, has_index=False)
    reader, model = opened(tmp_path, tensors, bits=bits, quant_method="auto-round", packing_format=packing)

    weight = explained(model)["x.weight"]

    assert weight.form == "auto-round"
    assert np.array_equal(weight.ranges(reader, np.arange(96 * 256)).value, grid.values.reshape(-1))
    assert (weight.steps(reader, np.arange(96 * 256)) > 0).all()


def test_awqs_layouts_are_read_as_they_were_packed(tmp_path: Path) -> None:
    grid = plain(NUMBERS, is_symmetric=False)

    ensure_reads(tmp_path, grid, as_awq(grid), "awq", quant_method="awq", bits=4, group_size=64)
    ensure_reads(tmp_path, grid, as_gemv(grid), "awq", quant_method="awq", bits=4, group_size=64, version="gemv")


def test_bits_over_planes_are_not_explained(tmp_path: Path) -> None:
    tensors = as_gptq(plain(NUMBERS, bits=3), less=0)
    _, model = opened(tmp_path, tensors, quant_method="gptq", checkpoint_format="gptq_p", bits=3)

    assert explained(model) == {}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"x.qzeros": torch.zeros(4, 5, dtype=torch.int32)}, r"`x.qzeros` is \[4, 5\], which fits no bits"),
        ({"x.qzeros": torch.zeros(3, 12, dtype=torch.int32)}, r"`x.qzeros` is \[3, 12\], which fits no bits"),
        ({"x.qzeros": torch.zeros(4, 12)}, "expected I32, I32 and a float"),
        ({"x.scales": torch.ones(4, 96, dtype=torch.int32)}, "expected I32, I32 and a float"),
        ({"x.scales": torch.ones(0, 96)}, "expected I32, I32 and a float"),
        ({"x.g_idx": torch.zeros(300, dtype=torch.int32)}, r"`x.g_idx` is I32 \[300\], expected 256 integers"),
        ({"x.g_idx": torch.zeros(256)}, r"`x.g_idx` is F32 \[256\]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changed: dict[str, torch.Tensor], said: str, tmp_path: Path) -> None:
    _, model = opened(tmp_path, as_gptq(plain(NUMBERS)) | changed, quant_method="gptq")

    with pytest.raises(Malformed, match=said):
        explained(model)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"x.qzeros": torch.zeros(4, 11, dtype=torch.int32)}, r"is I32 \[4, 11\], expected I32 \[4, 12\]"),
        ({"x.qzeros": torch.zeros(4, 12)}, r"is F32 \[4, 12\], expected I32 \[4, 12\]"),
        ({"x.scales": torch.ones(255, 96), "x.qzeros": torch.zeros(255, 12, dtype=torch.int32)}, "has 255 groups"),
    ],
)
def test_zeros_and_scales_of_awq_that_do_not_fit_are_refused(
    tensors: dict[str, torch.Tensor], said: str, tmp_path: Path
) -> None:
    _, model = opened(tmp_path, as_awq(plain(NUMBERS)) | tensors, quant_method="awq")

    with pytest.raises(Malformed, match=said):
        explained(model)


@pytest.mark.parametrize("group", [-1, 4, 1 << 30])
def test_a_column_of_no_group_has_no_number(group: int, tmp_path: Path) -> None:
    tensors = as_gptq(plain(NUMBERS))
    tensors["x.g_idx"][7] = group
    reader, model = opened(tmp_path, tensors, quant_method="gptq")

    value = explained(model)["x.weight"].ranges(reader, np.arange(96 * 256)).value.reshape(96, 256)

    assert np.isnan(value[:, 7]).all()
    assert np.isfinite(np.delete(value, 7, axis=1)).all()


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_gives_none(scale: float, tmp_path: Path) -> None:
    for tensors in (as_gptq(plain(NUMBERS)), as_awq(plain(NUMBERS))):
        tensors["x.scales"][0, 5] = scale
        reader, model = opened(tmp_path, tensors)
        weight = explained(model)["x.weight"]

        value = weight.ranges(reader, np.arange(96 * 256)).value.reshape(96, 256)

        assert np.isfinite(np.delete(value, 5, axis=0)).all()
        assert np.isnan(value[5, :64]).all()
        assert np.isnan(weight.steps(reader, np.arange(5 * 256, 5 * 256 + 64))).all()
