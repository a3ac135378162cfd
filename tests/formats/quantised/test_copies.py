"""A quantised folder is told to be the copy of its source, and of no other model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adapterhub.formats.base.comparison import compare
from adapterhub.formats.base.fingerprint import BaseFingerprint, BaseVerdict
from tests.support.copies import fingerprint, in_float8, model


@pytest.fixture
def source(tmp_path: Path) -> BaseFingerprint:
    return fingerprint(tmp_path / "source", model())


def test_a_copy_is_the_same_model_from_both_sides(source: BaseFingerprint, tmp_path: Path) -> None:
    copy = fingerprint(tmp_path / "copy", in_float8(model()))

    for found in (compare(source, copy), compare(copy, source)):
        assert found.verdict is BaseVerdict.SAME_WEIGHTS_QUANTISED
        assert found.verdict.allows_attach
        assert found.label == "SAME_WEIGHTS_QUANTISED (fp8-channel)"
    assert compare(source, copy).differences == (
        "4 tensors are quantised in the second; all 64 sampled values of the first lie in the intervals of their codes",
        "3 tensors are floats in both, and agree in 48 sampled values",
    )


def test_the_facts_of_a_copy_survive_writing_and_reading(source: BaseFingerprint, tmp_path: Path) -> None:
    copy = fingerprint(tmp_path / "copy", in_float8(model()))

    read = BaseFingerprint.from_json(json.loads(json.dumps(copy.to_json())))

    assert read.copy == copy.copy
    assert read.copy.structure == source.structure
    assert compare(source, read).verdict is BaseVerdict.SAME_WEIGHTS_QUANTISED
    assert "copy" not in source.to_json()  # a record of a model in floats stays as it was


def test_a_copy_of_the_source_in_float32_is_the_same_too(tmp_path: Path) -> None:
    torch.manual_seed(1)
    exact = {name: tensor.float() + torch.randn(tensor.shape) * 1e-3 for name, tensor in model().items()}
    copy = fingerprint(tmp_path / "copy", in_float8(exact))

    # the copy was made from float32, and what is known of the source is its copy in bfloat16
    rounded = fingerprint(tmp_path / "rounded", {name: tensor.bfloat16() for name, tensor in exact.items()})

    assert compare(rounded, copy).verdict is BaseVerdict.SAME_WEIGHTS_QUANTISED


@pytest.mark.parametrize("change", ["a weight", "a norm", "another seed", "two layers swapped"])
def test_another_model_of_these_shapes_is_told(change: str, source: BaseFingerprint, tmp_path: Path) -> None:
    other = model(seed=1 if change == "another seed" else 0)
    if change == "a weight":
        other["model.layers.1.up_proj.weight"] *= 1.1
    if change == "a norm":
        other["model.layers.0.norm.weight"] += 0.1
    if change == "two layers swapped":
        swapped = {
            name.replace("s.0.", "s.9.").replace("s.1.", "s.0.").replace("s.9.", "s.1."): t for name, t in other.items()
        }
        other = swapped
    copy = fingerprint(tmp_path / "copy", in_float8(other))

    found = compare(source, copy)

    assert found.verdict is BaseVerdict.SAME_SHAPES
    assert not found.verdict.allows_attach


def test_a_copy_with_another_number_of_layers_is_another_model(source: BaseFingerprint, tmp_path: Path) -> None:
    for layers in (1, 3):
        copy = fingerprint(tmp_path / f"copy{layers}", in_float8(model(layers=layers)))

        assert compare(source, copy).verdict is BaseVerdict.DIFFERENT


def test_a_scale_of_no_number_proves_nothing(source: BaseFingerprint, tmp_path: Path) -> None:
    tensors = in_float8(model())
    tensors["model.layers.0.q_proj.weight_scale"][:] = float("nan")

    found = compare(source, fingerprint(tmp_path / "copy", tensors))

    assert found.verdict is BaseVerdict.SAME_SHAPES
    assert found.differences[0].startswith("16 of 64 sampled values in 1 tensors leave the intervals of their codes")
    assert "no number in the second" in found.differences[0]


def test_a_weight_of_zeros_under_a_huge_scale_proves_nothing(source: BaseFingerprint, tmp_path: Path) -> None:
    tensors = in_float8(model())
    name = "model.layers.0.q_proj.weight"
    tensors[name] = torch.zeros(tensors[name].shape, dtype=torch.float8_e4m3fn)
    tensors[f"{name}_scale"][:] = 1e30

    found = compare(source, fingerprint(tmp_path / "copy", tensors))

    assert found.verdict is BaseVerdict.CANNOT_TELL
    assert not found.verdict.allows_attach


def test_a_format_that_nothing_explains_is_named(source: BaseFingerprint, tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in model().items() if not name.endswith("_proj.weight")}
    tensors["model.layers.0.q_proj.trellis"] = torch.zeros(6, 10, dtype=torch.int16)
    copy = fingerprint(tmp_path / "copy", tensors, quantization_config={"quant_method": "exl3"})

    found = compare(source, copy)

    assert found.verdict is BaseVerdict.CANNOT_TELL
    assert "format that is not known here: exl3" in found.differences[0]


def test_tables_of_integers_make_no_copy(tmp_path: Path) -> None:
    whole = fingerprint(tmp_path / "model", model() | {"relative_index": torch.zeros(4, 4, dtype=torch.int64)})

    assert whole.copy is None
