"""Integers in words of 32 bits, as compressed-tensors packs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapterhub.core.errors import Malformed
from adapterhub.formats.base.quantised.formats import explained
from tests.formats.quantised.test_weight import opened, outside
from tests.formats.quantised.writers import changed, every_kind, original, stream

Copy = dict[str, torch.Tensor]


def settings(bits: int, group: int | None) -> dict[str, Any]:
    return {"config_groups": {"g": {"weights": {"num_bits": bits, "type": "int", "group_size": group}}}}


def in_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes from 0, each word with whole codes only: earlier versions."""
    each = 32 // bits
    padded = torch.nn.functional.pad(codes.long(), (0, -codes.shape[1] % each)).unflatten(-1, (-1, each))
    words = (padded << torch.arange(each) * bits).sum(-1)
    return words.to(torch.uint32).view(torch.int32)


def packed(source: torch.Tensor, bits: int, group: int, *, has_zero: bool = False, is_dense: bool = True) -> Copy:
    """Quotients, and the sum with the zero point, in the dtype of the weight."""
    height, width = source.shape
    groups, half = source.unflatten(-1, (-1, group)), 1 << (bits - 1)
    pack = (lambda codes: stream(codes.long().numpy(), bits)) if is_dense else (lambda codes: in_words(codes, bits))
    zero = torch.zeros(height, width // group, 1, dtype=torch.int8)
    scale = (groups.abs().amax(-1, keepdim=True) / (half - 0.5)).clamp(min=1e-6)
    if has_zero:
        low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
        scale = ((high - low) / (2 * half - 1)).clamp(min=1e-6)
        zero = (-half - low / scale).clamp(-half, half - 1).round().to(torch.int8)
    codes = (groups / scale + zero.to(source.dtype)).clamp(-half, half - 1).round().flatten(-2)
    found = {"x.weight_packed": pack(codes + half), "x.weight_scale": scale.squeeze(-1)}
    found["x.weight_shape"] = torch.tensor([height, width])
    if has_zero:
        found["x.weight_zero_point"] = pack((zero.squeeze(-1).int() + half).T).T.contiguous()
    return found


@every_kind
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_a_source_lies_inside_and_a_change_does_not(bits: int, kind: str, tmp_path: Path) -> None:
    source = original(kind)
    for has_zero in (False, True):
        reader, model = opened(tmp_path, packed(source, bits, 64, has_zero=has_zero), **settings(bits, 64))

        assert explained(model)["x.weight"].form == f"int{bits}-group"
        assert outside(source, reader, model) == 0
        assert outside(changed(source, 0.01 if bits > 2 else 0.1), reader, model) > source.numel() / 500


@pytest.mark.parametrize("bits", [3, 4, 5, 8])
@pytest.mark.parametrize("has_zero", [False, True])
def test_words_of_earlier_versions_have_whole_codes(bits: int, has_zero: object, tmp_path: Path) -> None:
    source = original("normal")
    reader, model = opened(
        tmp_path, packed(source, bits, 128, has_zero=bool(has_zero), is_dense=False), **settings(bits, 128)
    )

    assert outside(source, reader, model) == 0


def test_rows_that_end_inside_a_word_have_the_width_that_the_file_says(tmp_path: Path) -> None:
    source = original("normal", shape=(30, 101))
    reader, model = opened(tmp_path, packed(source, 3, 101), **settings(3, None))

    assert explained(model)["x.weight"].shape == (30, 101)
    assert outside(source, reader, model) == 0


def test_columns_may_name_their_groups(tmp_path: Path) -> None:
    source = original("normal")
    order = torch.randperm(384, generator=torch.Generator().manual_seed(0))
    copy = packed(source[:, order], 4, 128)
    back = order.argsort()
    codes = (
        np.array(copy["x.weight_packed"].numpy()).view(np.uint32)[:, :, None] >> np.arange(0, 32, 4, dtype=np.uint32)
        & 15
    )
    copy["x.weight_packed"] = stream(codes.reshape(256, -1)[:, back.numpy()].astype(np.int64), 4)
    copy["x.weight_g_idx"] = (torch.arange(384) // 128)[back].int()
    reader, model = opened(tmp_path, copy, **settings(4, 128))
    assert outside(source, reader, model) == 0

    copy["x.weight_g_idx"][5] = 3
    reader, model = opened(tmp_path, copy, **settings(4, 128))
    assert outside(source, reader, model) == 256


@pytest.mark.parametrize(
    ("name", "tensor", "match"),
    [
        ("x.weight_shape", torch.tensor([256, 380]), r"says \[256, 380\], expected \[256, 384\]"),
        ("x.weight_shape", torch.tensor([-1, 384]), "says"),
        ("x.weight_shape", torch.arange(1000), "at most 64"),
        ("x.weight_packed", torch.zeros(256, 47, dtype=torch.int32), "in no way"),
        ("x.weight_zero_point", torch.zeros(31, 6, dtype=torch.int32), r"expected I32 \[32, 6\]"),
        ("x.weight_zero_point", torch.zeros(256, 6, dtype=torch.int8), r"expected I32 \[32, 6\]"),
        ("x.weight_g_idx", torch.zeros(5, dtype=torch.int32), r"expected I32 \[384\]"),
        ("x.weight_scale", torch.zeros(255, 6), "expected"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name: str, tensor: torch.Tensor, match: str, tmp_path: Path) -> None:
    _, model = opened(tmp_path, packed(original("normal"), 4, 64, has_zero=True) | {name: tensor}, **settings(4, 64))

    with pytest.raises(Malformed, match=match):
        explained(model)


def test_settings_that_fit_in_two_ways_are_refused(tmp_path: Path) -> None:
    copy = packed(original("normal"), 4, 64)
    del copy["x.weight_shape"]
    groups = {str(bits): {"weights": {"num_bits": bits, "group_size": 256 // bits}} for bits in (4, 8)}
    _, model = opened(tmp_path, copy, config_groups=groups)

    with pytest.raises(Malformed, match="in several ways"):
        explained(model)
