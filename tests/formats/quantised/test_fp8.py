"""Weights in float8, by the arithmetic of their writers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapterhub.core.errors import Malformed
from adapterhub.formats.base.quantised.formats import explained
from tests.formats.quantised.test_weight import opened, outside
from tests.formats.quantised.writers import changed, every_kind, original

Copy = dict[str, torch.Tensor]
FLOAT8 = torch.float8_e4m3fn


def rows(source: torch.Tensor) -> Copy:
    """compressed-tensors: quotients in the dtype of the weight."""
    scale = (source.abs().amax(-1, keepdim=True) / 448).clamp(min=torch.finfo(source.dtype).tiny)
    return {"x.weight": (source / scale).clamp(-448, 448).to(FLOAT8), "x.weight_scale": scale}


def whole(source: torch.Tensor) -> Copy:
    """TensorRT Model Optimizer: one scale in float32, and quotients in the dtype of the weight, as PyTorch does."""
    scale = source.float().abs().max() / 448
    return {"x.weight": (source / scale).to(FLOAT8), "x.weight_scale": scale}


def groups_of_32(source: torch.Tensor) -> Copy:
    """MXFP8, as Model Optimizer rounds the exponent up."""
    groups = source.float().unflatten(-1, (-1, 32))
    exponent = torch.ceil(torch.log2((groups.abs().amax(-1, keepdim=True) / 448).clamp(min=2.0**-126)))
    codes = (groups * torch.exp2(-exponent)).clamp(-448, 448).to(FLOAT8).flatten(-2)
    return {"x.weight": codes, "x.weight_scale": (exponent + 127).squeeze(-1).to(torch.uint8)}


def tiled(source: torch.Tensor) -> Copy:
    """torchao's MXFP8 for tensor cores: scales in tiles of 128 rows by 4 groups, each as 32 by 16."""
    copy = groups_of_32(source)
    scales = copy["x.weight_scale"]
    down, across = scales.shape[0] // 128, scales.shape[1] // 4
    tiles = scales.view(down, 128, across, 4).permute(0, 2, 1, 3).reshape(-1, 4, 32, 4).transpose(1, 2)
    scales = tiles.reshape(down * 32, across * 16).contiguous()
    return {"x._weight_qdata": copy["x.weight"], "x._weight_scale": scales.view(torch.float8_e8m0fnu)}


def quanto(source: torch.Tensor) -> Copy:
    copy = rows(source)
    return {"x.weight._data": copy["x.weight"], "x.weight._scale": copy["x.weight_scale"]}


def deepseek(source: torch.Tensor) -> Copy:
    """Powers of two for blocks of 128 by 128."""
    blocks = source.float().unflatten(0, (-1, 128)).unflatten(-1, (-1, 128))
    scale = torch.exp2(torch.ceil(torch.log2((blocks.abs().amax((1, 3), keepdim=True) / 448).clamp(min=2.0**-126))))
    codes = (blocks / scale).to(FLOAT8).flatten(2).flatten(0, 1)
    return {"x.weight": codes, "x.scale": scale[:, 0, :, 0].to(torch.float8_e8m0fnu)}


WRITERS = {
    rows: "fp8-channel",
    whole: "fp8-tensor",
    groups_of_32: "mxfp8",
    tiled: "mxfp8",
    quanto: "fp8-channel",
    deepseek: "fp8-block",
}


@every_kind
@pytest.mark.parametrize("writer", WRITERS)
def test_a_source_lies_inside_and_a_change_does_not(writer: object, kind: str, tmp_path: Path) -> None:
    source = original(kind)
    assert callable(writer)
    reader, model = opened(tmp_path, writer(source))

    assert explained(model)["x.weight"].form == WRITERS[writer]
    assert outside(source, reader, model) == 0
    assert outside(changed(source), reader, model) > source.numel() / 50


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_sources_of_other_dtypes_lie_inside(dtype: torch.dtype, tmp_path: Path) -> None:
    source = original("normal", dtype)
    reader, model = opened(tmp_path, rows(source))

    assert outside(source, reader, model) == 0
    assert outside(changed(source, 0.003), reader, model) > source.numel() / 50


def test_stacked_experts_have_scales_of_their_columns(tmp_path: Path) -> None:
    source = original("normal", shape=(3, 64, 96))
    scale = source.float().abs().amax(-2, keepdim=True) / 448
    codes = (source.float() / scale).to(FLOAT8)
    reader, model = opened(tmp_path, {"experts.gate_up_proj": codes, "experts.gate_up_proj_scale": scale})

    assert outside(source, reader, model, "experts.gate_up_proj") == 0
    assert outside(changed(source), reader, model, "experts.gate_up_proj") > 1000


def test_stacked_experts_have_blocks_each(tmp_path: Path) -> None:
    source = original("normal", shape=(3, 256, 128))
    blocks = source.float().unflatten(1, (2, 128))
    scale = blocks.abs().amax((2, 3), keepdim=True) / 448
    tensors = {
        "experts.down_proj": (blocks / scale).to(FLOAT8).flatten(1, 2),
        "experts.down_proj_scale_inv": scale[..., 0],
    }
    reader, model = opened(tmp_path, tensors)

    assert explained(model)["experts.down_proj"].form == "fp8-block"
    assert outside(source, reader, model, "experts.down_proj") == 0


def test_scales_of_model_optimizer_may_have_dimensions_of_one(tmp_path: Path) -> None:
    source = original("normal")
    blocks = source.float().unflatten(0, (-1, 128)).unflatten(-1, (-1, 128))
    scale = blocks.abs().amax((1, 3), keepdim=True) / 448
    codes = (blocks / scale).to(FLOAT8).flatten(2).flatten(0, 1)
    reader, model = opened(tmp_path, {"x.weight": codes, "x.weight_scale": scale})

    assert outside(source, reader, model) == 0


def test_blocks_that_fit_in_two_sizes_are_refused(tmp_path: Path) -> None:
    copy = rows(original("normal", shape=(128, 128)))
    copy["x.weight_scale"] = torch.ones(2, 2)
    groups = {name: {"weights": {"block_structure": size}} for name, size in (("a", [64, 64]), ("b", [96, 96]))}
    _, model = opened(tmp_path, copy, config_groups=groups)

    with pytest.raises(Malformed, match="expected blocks of one size"):
        explained(model)


@pytest.mark.parametrize("block", [[0, 128], ["a", 1], [True, True], [128], "128", {"a": 1}, [10**30, 1]])
def test_settings_that_are_no_blocks_are_ignored(block: object, tmp_path: Path) -> None:
    _, model = opened(tmp_path, deepseek(original("normal")), weight_block_size=block)

    assert explained(model)["x.weight"].form == "fp8-block"


def test_a_scale_of_another_dtype_is_refused(tmp_path: Path) -> None:
    copy = rows(original("normal"))
    _, model = opened(tmp_path, copy | {"x.weight_scale": torch.ones(256, 1, dtype=torch.int32)})

    with pytest.raises(Malformed, match="is I32, expected one of BF16, F16, F32"):
        explained(model)


def test_an_exponent_of_255_is_no_number(tmp_path: Path) -> None:
    source = original("normal")
    copy = groups_of_32(source)
    copy["x.weight_scale"][:] = 255
    reader, model = opened(tmp_path, copy)

    assert outside(source, reader, model) == source.numel()
