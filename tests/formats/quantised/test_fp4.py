"""Weights in float4, by the arithmetic of their writers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapterhub.core.errors import Malformed
from adapterhub.formats.base.quantised.formats import explained
from tests.formats.quantised.test_weight import opened, outside
from tests.formats.quantised.writers import changed, every_kind, original

Copy = dict[str, torch.Tensor]
VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def codes_of(quotients: torch.Tensor) -> torch.Tensor:
    """The nearest of the values, half the way to the even code; then the sign."""
    borders = (VALUES[1:] + VALUES[:-1]) / 2
    size = quotients.abs().contiguous()
    found = torch.bucketize(size, borders)
    found = found + ((found % 2 == 1) & (size == borders[found.clamp(max=6)])).int()
    return (found + 8 * (quotients < 0)).to(torch.uint8)


def packed(codes: torch.Tensor) -> torch.Tensor:
    return codes[..., ::2] | codes[..., 1::2] << 4


def nvfp4(source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales of 16, and the scale of all, which divides."""
    groups = source.float().unflatten(-1, (-1, 16))
    whole = 448 * 6 / source.float().abs().max()
    scales = (whole * groups.abs().amax(-1) / 6).clamp(0.125, 448).to(torch.float8_e4m3fn)
    codes = codes_of(groups / (scales.float() / whole)[..., None])
    return packed(codes.flatten(-2)), scales, whole.reshape(1)


def compressed_tensors(source: torch.Tensor) -> Copy:
    codes, scales, whole = nvfp4(source)
    return {"x.weight_packed": codes, "x.weight_scale": scales, "x.weight_global_scale": whole}


def model_optimizer(source: torch.Tensor) -> Copy:
    codes, scales, whole = nvfp4(source)
    return {"x.weight": codes, "x.weight_scale": scales, "x.weight_scale_2": 1 / whole}


def mxfp4(source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    groups = source.float().unflatten(-1, (-1, 32))
    exponent = torch.floor(torch.log2(groups.abs().amax(-1).clamp(min=2.0**-100))) - 2
    codes = codes_of(groups * torch.exp2(-exponent)[..., None])
    return packed(codes.flatten(-2)), (exponent + 127).to(torch.uint8)


def quark(source: torch.Tensor) -> Copy:
    codes, scales = mxfp4(source)
    return {"x.weight": codes, "x.weight_scale": scales}


def deepseek(source: torch.Tensor) -> Copy:
    codes, scales = mxfp4(source)
    return {"x.weight": codes.view(torch.int8), "x.scale": scales.view(torch.float8_e8m0fnu)}


WRITERS = [compressed_tensors, model_optimizer, quark, deepseek]


@every_kind
@pytest.mark.parametrize("writer", WRITERS)
def test_a_source_lies_inside_and_a_change_does_not(
    writer: Callable[[torch.Tensor], Copy], kind: str, tmp_path: Path
) -> None:
    source = original(kind)
    reader, model = opened(tmp_path, writer(source))

    assert explained(model)["x.weight"].form == ("mxfp4" if writer in (quark, deepseek) else "nvfp4")
    assert outside(source, reader, model) == 0
    assert outside(changed(source), reader, model) > source.numel() / 500


def test_experts_of_gpt_oss_lie_across_their_source(tmp_path: Path) -> None:
    source = original("normal", shape=(3, 96, 64))  # experts, in, out
    codes, scales = mxfp4(source.transpose(-1, -2))
    tensors = {
        "mlp.experts.gate_up_proj_blocks": codes.unflatten(-1, (-1, 16)),
        "mlp.experts.gate_up_proj_scales": scales,
    }
    reader, model = opened(tmp_path, tensors)
    weight = explained(model)["mlp.experts.gate_up_proj"]

    assert (weight.shape, weight.form) == ((3, 96, 64), "mxfp4")
    assert outside(source, reader, model, weight.name) == 0
    assert outside(source.transpose(-1, -2).reshape(3, 96, 64), reader, model, weight.name) > 10_000


@pytest.mark.parametrize("change", [float("nan"), float("inf"), 0.0, -1.0])
def test_no_source_lies_inside_a_scale_of_all_that_is_no_positive_number(change: float, tmp_path: Path) -> None:
    source = original("normal")
    copy = compressed_tensors(source) | {"x.weight_global_scale": torch.tensor([change])}
    reader, model = opened(tmp_path, copy)

    assert outside(source, reader, model) == source.numel()


@pytest.mark.parametrize(
    ("name", "shape"), [("x.weight_scale", (256, 23)), ("x.weight_packed", (256, 190)), ("x.weight_global_scale", (2,))]
)
def test_tensors_of_another_shape_are_refused(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    copy = compressed_tensors(original("normal"))
    copy[name] = copy[name].new_zeros(shape) if name != "x.weight_scale" else copy[name][:, : shape[1]].contiguous()
    _, model = opened(tmp_path, copy)

    with pytest.raises(Malformed, match="expected"):
        explained(model)
