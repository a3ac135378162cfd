"""Weights in integers, a byte each or two rows a byte, by the arithmetic of their writers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub.core.errors import Malformed
from adapterhub.formats.base.quantised.formats import explained
from tests.formats.quantised.test_weight import opened, outside
from tests.formats.quantised.writers import changed, every_kind, original

Copy = dict[str, torch.Tensor]


def scales_of(groups: torch.Tensor, steps: float) -> torch.Tensor:
    """The largest of each group over some steps; not 0."""
    return (groups.abs().amax(-1, keepdim=True) / steps).clamp(min=1e-6)


def compressed_tensors(source: torch.Tensor) -> tuple[Copy, dict[str, Any]]:
    """Quotients in the dtype of the weight."""
    scale = scales_of(source, 127.5)
    codes = (source / scale).clamp(-128, 127).round().to(torch.int8)
    return {"x.weight": codes, "x.weight_scale": scale}, {}


def four_bits_in_bytes(source: torch.Tensor) -> tuple[Copy, dict[str, Any]]:
    """compressed-tensors' W4A8."""
    groups = source.unflatten(-1, (-1, 128))
    scale = scales_of(groups, 7.5)
    codes = (groups / scale).clamp(-8, 7).round().to(torch.int8).flatten(-2)
    settings = {"num_bits": 4, "type": "int", "group_size": 128}
    return {"x.weight": codes, "x.weight_scale": scale.squeeze(-1)}, {"config_groups": {"g": {"weights": settings}}}


def with_zero_points(source: torch.Tensor) -> tuple[Copy, dict[str, Any]]:
    """compressed-tensors' asymmetric: the zero point is added in the dtype of the weight before rounding."""
    low, high = source.amin(-1, keepdim=True).clamp(max=0), source.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-6)
    zero = (-128 - low / scale).clamp(-128, 127).round().to(torch.int8)
    codes = (source / scale + zero.to(source.dtype)).clamp(-128, 127).round().to(torch.int8)
    return {"x.weight": codes, "x.weight_scale": scale, "x.weight_zero_point": zero}, {}


def torchao(source: torch.Tensor) -> tuple[Copy, dict[str, Any]]:
    """IntxUnpackedToInt8Tensor: times the inverse of the scale, in the dtype of the weight; the zero point later."""
    groups = source.unflatten(-1, (-1, 32))
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 15).clamp(min=1e-6)
    zero = (-8 - (low / scale).round()).clamp(-8, 7).to(torch.int8)
    codes = ((groups * (1 / scale)).round() + zero).clamp(-8, 7).to(torch.int8).flatten(-2)
    copy = {"_weight_qdata": codes, "_weight_scale": scale[..., 0], "_weight_zero_point": zero[..., 0]}
    kind = {"default": {"_data": {"weight_dtype": {"_type": "torch.dtype", "_data": "int4"}}}}
    return {f"x.{name}": tensor for name, tensor in copy.items()}, {"quant_type": kind}


def quanto(source: torch.Tensor) -> tuple[Copy, dict[str, Any]]:
    scale = scales_of(source, 127)
    codes = (source / scale).round().clamp(-128, 127).to(torch.int8)
    return {"x.weight._data": codes, "x.weight._scale": scale}, {}


def model_optimizer(source: torch.Tensor) -> tuple[Copy, dict[str, Any]]:
    """int4: quotients in float32, and two rows a byte."""
    groups = source.float().unflatten(-1, (-1, 128))
    scale = scales_of(groups, 7)
    codes = (groups / scale).round().clamp(-8, 7).to(torch.int8).flatten(-2) & 15
    packed = (codes[::2] | codes[1::2] << 4).view(torch.uint8)
    return {"x.weight": packed, "x.weight_scale": scale.squeeze(-1)}, {}


WRITERS = {
    compressed_tensors: "int8-channel",
    four_bits_in_bytes: "int4-group",
    with_zero_points: "int8-channel",
    torchao: "int4-group",
    quanto: "int8-channel",
    model_optimizer: "int4-group",
}


@every_kind
@pytest.mark.parametrize("writer", WRITERS)
def test_a_source_lies_inside_and_a_change_does_not(
    writer: Callable[[torch.Tensor], tuple[Copy, dict[str, Any]]], kind: str, tmp_path: Path
) -> None:
    source = original(kind)
    copy, settings = writer(source)
    reader, model = opened(tmp_path, copy, **settings)

    assert explained(model)["x.weight"].form == WRITERS[writer]
    assert outside(source, reader, model) == 0
    assert outside(changed(source), reader, model) > source.numel() / 500


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("writer", [compressed_tensors, with_zero_points, torchao])
def test_sources_of_other_dtypes_lie_inside(
    writer: Callable[[torch.Tensor], tuple[Copy, dict[str, Any]]], dtype: torch.dtype, tmp_path: Path
) -> None:
    source = original("normal", dtype)
    copy, settings = writer(source)
    reader, model = opened(tmp_path, copy, **settings)

    assert outside(source, reader, model) == 0


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -1.0])
def test_no_source_lies_inside_a_scale_that_is_no_positive_number(scale: float, tmp_path: Path) -> None:
    source = original("normal")
    copy, _ = with_zero_points(source)
    copy["x.weight_scale"][:] = scale
    reader, model = opened(tmp_path, copy)

    assert outside(source, reader, model) == source.numel()


def test_codes_and_zero_points_that_the_bits_do_not_have_are_no_numbers(tmp_path: Path) -> None:
    source = original("normal")
    copy, settings = torchao(source)
    copy["x._weight_qdata"][0, 0], copy["x._weight_zero_point"][1, 0] = 8, -9
    reader, model = opened(tmp_path, copy, **settings)

    assert outside(source, reader, model) == 1 + 32


def test_codes_of_an_unknown_number_of_bits_are_refused(tmp_path: Path) -> None:
    copy, _ = torchao(original("normal"))
    _, model = opened(tmp_path, copy)

    with pytest.raises(Malformed, match=r"no config.json says of how many"):
        explained(model)


def test_codes_of_two_numbers_of_bits_are_refused(tmp_path: Path) -> None:
    copy, _ = four_bits_in_bytes(original("normal"))
    groups = {str(bits): {"weights": {"num_bits": bits, "group_size": 128}} for bits in (4, 8)}
    _, model = opened(tmp_path, copy, config_groups=groups)

    with pytest.raises(Malformed, match=r"codes of 4 or 8 bits"):
        explained(model)


@pytest.mark.parametrize(
    "groups", [None, [], {"a": None}, {"a": {"weights": []}}, {"a": {"weights": {"num_bits": "4"}}}]
)
def test_settings_of_another_form_are_ignored(groups: object, tmp_path: Path) -> None:
    copy, _ = compressed_tensors(original("normal"))
    _, model = opened(tmp_path, copy, config_groups=groups, quant_type=groups)

    assert explained(model)["x.weight"].form == "int8-channel"


def test_zero_points_of_another_shape_are_refused(tmp_path: Path) -> None:
    copy, _ = with_zero_points(original("normal"))
    copy["x.weight_zero_point"] = copy["x.weight_zero_point"][:7].clone()
    _, model = opened(tmp_path, copy)

    with pytest.raises(Malformed, match=r"`x\.weight_zero_point` is"):
        explained(model)


@pytest.mark.parametrize("writer", [model_optimizer, compressed_tensors])
def test_columns_that_were_divided_before_are_multiplied_again(
    writer: Callable[[torch.Tensor], tuple[Copy, dict[str, Any]]], tmp_path: Path
) -> None:
    source = original("heavy tails")
    columns = torch.randn(384, generator=torch.Generator().manual_seed(2)).exp()
    copy, _ = writer((source.float() / columns).bfloat16())
    reader, model = opened(tmp_path, copy)
    assert outside(source, reader, model) > 10_000

    reader, model = opened(tmp_path, copy | {"x.pre_quant_scale": columns.bfloat16()})
    assert outside(source, reader, model) == 0
    assert outside(changed(source, 0.1), reader, model) > 1000

    reader, model = opened(tmp_path, copy | {"x.pre_quant_scale": columns.bfloat16() * 0})
    assert outside(source, reader, model) == source.numel()

    _, model = opened(tmp_path, copy | {"x.pre_quant_scale": columns[:9].clone()})
    with pytest.raises(Malformed, match="expected one float for each of 384 columns"):
        explained(model)
