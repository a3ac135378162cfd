"""Codes and scales as intervals: every source lies inside, and a change leaves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from adapterhub.core.errors import CouldNotTell, Malformed
from adapterhub.formats.base.fingerprint import interval
from adapterhub.formats.base.quantised.files import FileReader
from adapterhub.formats.base.quantised.formats import explained
from adapterhub.formats.base.quantised.weight import Tensors, rounded_to
from adapterhub.formats.safetensors.file import read_header
from adapterhub.formats.safetensors.header import BASE_LIMITS


def opened(tmp_path: Path, tensors: dict[str, torch.Tensor], **settings: object) -> tuple[FileReader, Tensors]:
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    header = read_header(path, limits=BASE_LIMITS)
    reader = FileReader({spec.name: (path, spec) for spec in header.tensors})
    return reader, Tensors(where=str(path), tensors=reader.tensors, quantisation=settings, reader=reader)


def outside(source: torch.Tensor, reader: FileReader, model: Tensors, name: str = "x.weight") -> int:
    """How many numbers of the source lie outside the interval of their code."""
    ranges = explained(model)[name].ranges(reader, np.arange(source.numel()))
    numbers = source.double().reshape(-1).numpy()
    return int((~((numbers >= ranges.low) & (numbers <= ranges.high))).sum())


def in_float8(source: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of blocks, as DeepSeek's and transformers' writers make them."""
    height, width = source.shape
    padded = torch.nn.functional.pad(source.float(), (0, -width % columns, 0, -height % rows))
    blocks = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    scales = blocks.abs().amax((1, 3), keepdim=True).clamp(min=1e-12) / 448
    codes = (blocks / scales).reshape(padded.shape)[:height, :width].to(torch.float8_e4m3fn)
    return codes.contiguous(), scales[:, 0, :, 0].contiguous()


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F16", "BF16", "F32"])
def test_arrays_are_rounded_as_single_numbers_are(dtype: str) -> None:
    width = {"F8_E4M3": 1, "F8_E5M2": 1, "F32": 4}.get(dtype, 2)
    raw = np.random.default_rng(0).integers(0, 256, (600, width), dtype=np.uint8)

    ranges = rounded_to(dtype, np.ascontiguousarray(raw).view(f"<u{width}").reshape(-1))

    expected = [interval(dtype, row.tobytes()) for row in raw]
    assert np.array_equal(np.stack([ranges.low, ranges.high], 1), np.array(expected), equal_nan=True)


@pytest.mark.parametrize(("rows", "columns", "form"), [(128, 128, "block"), (1, 300, "channel"), (200, 300, "tensor")])
def test_a_source_lies_inside_float8_and_a_small_change_does_not(
    rows: int, columns: int, form: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    source = torch.randn(200, 300).bfloat16()
    codes, scales = in_float8(source, rows, columns)
    reader, model = opened(tmp_path, {"x.weight": codes, "x.weight_scale_inv": scales})

    assert explained(model)["x.weight"].form == f"fp8-{form}"
    assert outside(source, reader, model) == 0
    assert outside(source.float() * 1.003, reader, model) > 100


def test_a_scale_of_another_shape_is_refused(tmp_path: Path) -> None:
    codes, _ = in_float8(torch.randn(200, 300), 128, 128)
    _, model = opened(tmp_path, {"x.weight": codes, "x.weight_scale_inv": torch.ones(3, 2)})

    with pytest.raises(Malformed, match=r"`x.weight_scale_inv` is \[3, 2\], expected \[2, 3\]"):
        explained(model)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -1.0])
def test_no_source_lies_inside_a_scale_that_is_no_positive_number(scale: float, tmp_path: Path) -> None:
    codes, _ = in_float8(torch.randn(4, 4), 4, 4)
    reader, model = opened(tmp_path, {"x.weight": codes, "x.weight_scale": torch.tensor([scale])})

    assert outside(torch.randn(4, 4), reader, model) == 16


def test_a_file_that_became_shorter_is_told(tmp_path: Path) -> None:
    codes, scales = in_float8(torch.randn(64, 64), 64, 64)
    reader, model = opened(tmp_path, {"x.weight": codes, "x.weight_scale": scales})
    weight = explained(model)["x.weight"]
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)

    with pytest.raises(CouldNotTell, match="changed while it was read"):
        weight.ranges(reader, np.arange(64 * 64))
