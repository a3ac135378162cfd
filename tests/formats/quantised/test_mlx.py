"""Weights as MLX quantises them, by the arithmetic of its kernels (`mlx/backend/cpu/quantized.cpp`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapterhub.core.errors import Malformed
from adapterhub.formats.base.quantised.formats import explained
from adapterhub.formats.base.quantised.weight import Tensors
from tests.formats.quantised.test_fp4 import codes_of, mxfp4, packed
from tests.formats.quantised.test_fp8 import groups_of_32
from tests.formats.quantised.test_weight import FileReader, opened, outside
from tests.formats.quantised.writers import changed, every_kind, original, stream

Copy = dict[str, torch.Tensor]


def affine(source: torch.Tensor, bits: int, group: int) -> Copy:
    """Scale and bias in float32 for the codes, and in the dtype of the weight for the file."""
    groups, last = source.float().unflatten(-1, (-1, group)), (1 << bits) - 1
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    is_low = low.abs() > high.abs()
    scale = ((high - low) / last).clamp(min=1e-7) * torch.where(is_low, 1, -1)
    edge = torch.where(is_low, low, high)
    steps = (edge / scale).round()
    scale = torch.where(steps == 0, scale, edge / steps)
    bias = torch.where(steps == 0, 0, edge)
    codes = ((groups - bias) / scale).round().clamp(0, last).flatten(-2)
    words = stream(codes.long().numpy(), bits).view(torch.uint32)
    return {
        "x.weight": words,
        "x.scales": scale.squeeze(-1).to(source.dtype),
        "x.biases": bias.squeeze(-1).to(source.dtype),
    }


def with_config(tmp_path: Path, copy: Copy, **settings: object) -> tuple[FileReader, Tensors]:
    reader, model = opened(tmp_path, copy)
    return reader, Tensors(where=model.where, tensors=model.tensors, config={"quantization": settings}, reader=reader)


@every_kind
@pytest.mark.parametrize(("bits", "group"), [(2, 64), (3, 64), (4, 32), (4, 128), (5, 64), (6, 64), (8, 64)])
def test_a_source_lies_inside_and_a_change_does_not(bits: int, group: int, kind: str, tmp_path: Path) -> None:
    source = original(kind)
    reader, model = with_config(tmp_path, affine(source, bits, group), bits=bits, group_size=group)

    assert explained(model)["x.weight"].form == f"int{bits}-group"
    assert outside(source, reader, model) == 0
    assert outside(changed(source, 0.02), reader, model) > source.numel() / 1000


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_sources_of_other_dtypes_lie_inside(dtype: torch.dtype, tmp_path: Path) -> None:
    source = original("normal", dtype)
    reader, model = with_config(tmp_path, affine(source, 8, 64), bits=8, group_size=64)

    assert outside(source, reader, model) == 0


def test_a_layer_may_have_bits_of_its_own(tmp_path: Path) -> None:
    source = original("normal")
    own = {"bits": 8, "group_size": 32}
    reader, model = with_config(tmp_path, affine(source, 8, 32), bits=4, group_size=64, x=own)

    assert outside(source, reader, model) == 0


@pytest.mark.parametrize("form", ["mxfp4", "nvfp4", "mxfp8"])
def test_codes_may_be_floats(form: str, tmp_path: Path) -> None:
    source = original("normal")
    if form == "mxfp8":
        codes, scales = groups_of_32(source).values()
    elif form == "mxfp4":
        codes, scales = mxfp4(source)
    else:
        source = source * 400  # MLX writes no scale of all
        groups = source.float().unflatten(-1, (-1, 16))
        scales = (groups.abs().amax(-1) / 6).to(torch.float8_e4m3fn)
        codes = packed(codes_of(groups / scales.float()[..., None]).flatten(-2))
    words = codes.view(torch.uint8).contiguous().view(torch.uint32)
    reader, model = with_config(tmp_path, {"x.weight": words, "x.scales": scales.view(torch.uint8)}, mode=form)

    assert explained(model)["x.weight"].form == form
    assert outside(source, reader, model) == 0
    assert outside(changed(source.bfloat16(), 0.02), reader, model) > 1000


@pytest.mark.parametrize("name", ["x.scales", "x.biases"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_no_source_lies_inside_what_is_no_number(name: str, number: float, tmp_path: Path) -> None:
    source = original("normal")
    copy = affine(source, 4, 64)
    copy[name][0, 0] = number
    reader, model = with_config(tmp_path, copy, bits=4)

    assert outside(source, reader, model) == 64


@pytest.mark.parametrize("bits", [None, "4", 7, 0, -4, True, 10**30, 3.5, 4.0, [4]])
def test_bits_that_mlx_does_not_have_are_refused(bits: object, tmp_path: Path) -> None:
    _, model = with_config(tmp_path, affine(original("normal"), 4, 64), bits=bits)

    with pytest.raises(Malformed, match="which are no codes of"):
        explained(model)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("x.scales", torch.zeros(256, 5)),
        ("x.scales", torch.zeros(255, 6)),
        ("x.scales", torch.zeros(256, 0)),
        ("x.biases", torch.zeros(256, 3)),
        ("x.scales", torch.zeros(256, 6, dtype=torch.int8)),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name: str, tensor: torch.Tensor, tmp_path: Path) -> None:
    _, model = with_config(tmp_path, affine(original("normal"), 4, 64) | {name: tensor}, bits=4)

    with pytest.raises(Malformed, match=f"`{name}` is"):
        explained(model)
