"""Weights of 2 and 4 bits, by the arithmetic of optimum-quanto."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapterhub.core.errors import Malformed
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.formats.base.quantised.deep import compare_models
from adapterhub.formats.base.quantised.formats import explained
from adapterhub.formats.base.quantised.opening import opened as opened_model
from tests.formats.quantised.test_weight import opened, outside
from tests.formats.quantised.writers import changed, every_kind, original
from tests.support.copies import saved

Copy = dict[str, torch.Tensor]


def quanto(source: torch.Tensor, bits: int, group: int) -> Copy:
    """Each step in the dtype of the weight; the shift of 4 bits and 128 goes to the middle of the range and back."""
    groups, last = source.reshape(-1, group), (1 << bits) - 1
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale, shift = ((high - low) / last).clamp(min=1e-6), -low
    codes = ((groups + shift) / scale).round().clamp(0, last).to(torch.uint8)
    if (bits, group, source.dtype) == (4, 128, torch.bfloat16):
        shift = 8 * scale - (8 * scale - shift)
    parts = codes.chunk(8 // bits)
    packed = sum((part << bits * i for i, part in enumerate(parts)), torch.zeros_like(parts[0]))
    return {"x.weight._data._data": packed, "x.weight._scale": scale, "x.weight._shift": shift}


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("bits", "group"), [(2, 128), (4, 128), (4, 64)])
def test_a_source_lies_inside_and_a_change_does_not(
    bits: int, group: int, dtype: torch.dtype, kind: str, tmp_path: Path
) -> None:
    source = original(kind, dtype)
    reader, model = opened(tmp_path, quanto(source, bits, group))
    weight = explained(model)["x.weight"]

    assert (weight.form, weight.shape) == (f"int{bits}-group", (source.numel(),))
    assert outside(source, reader, model) == 0
    assert outside(changed(source, 0.05), reader, model) > source.numel() / 1000


@pytest.mark.parametrize(
    ("end", "tensor"),
    [
        ("_scale", torch.zeros(767, 1).bfloat16()),
        ("_scale", torch.zeros(1, 768).bfloat16()),
        ("_scale", torch.zeros(())),
        ("_shift", torch.zeros(768, 1)),
        ("_data._data", torch.tensor(0, dtype=torch.uint8)),
        ("_data._data", torch.zeros(100, 128, dtype=torch.uint8)),
    ],
)
def test_tensors_that_do_not_fit_are_refused(end: str, tensor: torch.Tensor, tmp_path: Path) -> None:
    _, model = opened(tmp_path, quanto(original("normal"), 4, 128) | {f"x.weight.{end}": tensor})

    with pytest.raises(Malformed, match=r"`x\.weight\._s"):
        explained(model)


def test_a_copy_is_told_though_it_has_no_shapes(tmp_path: Path) -> None:
    source = {"x.weight": original("normal"), "norm.weight": torch.ones(384).bfloat16()}
    copy = quanto(source["x.weight"], 4, 64) | {"norm.weight": source["norm.weight"]}
    other = {"x.weight": original("normal").reshape(128, 768)[:100].contiguous(), "norm.weight": source["norm.weight"]}
    models = [opened_model(saved(tmp_path / name, each)) for name, each in (("a", source), ("b", copy), ("c", other))]

    assert compare_models(models[0], models[1], full=True).label == "SAME_WEIGHTS_QUANTISED (int4-group)"
    assert compare_models(models[2], models[1]).verdict is BaseVerdict.DIFFERENT


def test_a_shift_that_is_no_number_explains_nothing(tmp_path: Path) -> None:
    source = original("normal")
    copy = quanto(source, 4, 128)
    copy["x.weight._shift"][0] = float("nan")
    reader, model = opened(tmp_path, copy)

    assert outside(source, reader, model) == 128
