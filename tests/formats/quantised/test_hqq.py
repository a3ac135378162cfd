"""Weights by the arithmetic of HQQ: any zero point, then rounding in float32, and a file of shorter numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapterhub.core.errors import Malformed
from adapterhub.formats.base.quantised.formats import explained
from adapterhub.formats.base.quantised.weight import Tensors
from tests.formats.quantised.test_weight import opened, outside
from tests.formats.quantised.writers import changed, every_kind, original

Copy = dict[str, torch.Tensor]


def hqq(source: torch.Tensor, bits: int, axis: int, short: torch.dtype) -> Copy:
    """Zero points that lie off the least number, as the search leaves them."""
    groups = source.float().reshape((-1, 64) if axis == 1 else (64, -1))
    low, high = groups.amin(axis, keepdim=True), groups.amax(axis, keepdim=True)
    last = (1 << bits) - 1
    scale = torch.where((high - low).abs() <= 1e-4, 1.0, last / (high - low)).clamp(max=2e4)
    zero = -low * scale + torch.rand(low.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    codes = (groups * scale + zero).round().clamp(0, last).to(torch.int32)
    count, size = {8: (1, 8), 6: (1, 8), 4: (2, 4), 3: (10, 3), 2: (4, 2), 1: (8, 1)}[bits]
    codes = torch.nn.functional.pad(codes, (0, 0, 0, -len(codes) % count))
    packed = torch.zeros_like(codes[: len(codes) // count])
    for place, part in enumerate(codes.chunk(count)):
        packed |= part << size * (count - 1 - place)
    return {
        "x.W_q": packed if bits == 3 else packed.to(torch.uint8),
        "x.scale": (1 / scale).to(short),
        "x.zero": zero.to(short),
        "x.nbits": torch.tensor(bits, dtype=torch.int32),
        "x.group_size": torch.tensor(64, dtype=torch.int32),
        "x.shape": torch.tensor(source.shape),
    }


@every_kind
@pytest.mark.parametrize("short", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("bits", "axis"), [(8, 1), (6, 1), (4, 1), (4, 0), (3, 1), (2, 1), (1, 0)])
def test_a_source_lies_inside_and_a_change_does_not(
    bits: int, axis: int, short: torch.dtype, kind: str, tmp_path: Path
) -> None:
    source = original(kind)
    reader, model = opened(tmp_path, hqq(source, bits, axis, short))
    weight = explained(model)["x.weight"]

    assert (weight.form, weight.shape) == (f"int{bits}-group", (256, 384))
    assert outside(source, reader, model) == 0
    assert outside(changed(source, 0.1), reader, model) > source.numel() / 1000


def test_the_settings_say_what_a_file_does_not(tmp_path: Path) -> None:
    source = original("normal")
    copy = {name: tensor for name, tensor in hqq(source, 4, 0, torch.float16).items() if tensor.ndim > 1}
    _, model = opened(tmp_path, copy)
    with pytest.raises(Malformed, match=r"which config.json does not explain"):
        explained(model)

    settings = {"weight_quant_params": {"nbits": 4, "group_size": 64}}
    reader, model = opened(tmp_path, copy, quant_config={"self_attn.q_proj": settings, "other": 3})

    assert explained(model)["x.weight"].shape == (source.numel(),)
    assert outside(source, reader, model) == 0


def test_codes_along_rows_need_no_settings(tmp_path: Path) -> None:
    source = original("normal")
    copy = {name: tensor for name, tensor in hqq(source, 3, 1, torch.float16).items() if tensor.ndim > 1}
    reader, model = opened(tmp_path, copy)

    assert outside(source, reader, model) == 0


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("x.shape", torch.tensor([256, 380])),
        ("x.shape", torch.tensor([-256, -384])),
        ("x.shape", torch.arange(100)),
        ("x.nbits", torch.tensor(3, dtype=torch.int32)),
        ("x.nbits", torch.tensor(-(2**31), dtype=torch.int32)),
        ("x.group_size", torch.tensor(32, dtype=torch.int32)),
        ("x.W_q", torch.zeros(5, 64, dtype=torch.uint8)),
        ("x.W_q", torch.zeros(768, 64).half()),
        ("x.zero", torch.zeros(5, 1).half()),
        ("x.scale", torch.zeros(1536, 2).half()),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name: str, tensor: torch.Tensor, tmp_path: Path) -> None:
    _, model = opened(tmp_path, hqq(original("normal"), 4, 1, torch.float16) | {name: tensor})

    with pytest.raises(Malformed, match=r"`x\."):
        explained(model)


def test_the_reader_is_needed_for_what_only_numbers_say(tmp_path: Path) -> None:
    _, model = opened(tmp_path, hqq(original("normal"), 4, 1, torch.float16))
    blind = Tensors(where=model.where, tensors=model.tensors)

    assert explained(blind)["x.weight"].shape == (256 * 384,)
