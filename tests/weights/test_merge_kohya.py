"""Merges of kohya's files of several components, against the formulas of kohya's own merge scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.support import foreign_files
from tests.support.command_line import Adapt

RATIOS = (0.7, -0.3)
Arrays = Mapping[str, np.ndarray]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Arrays, Arrays]:
    """Two files on a UNet and a text encoder, added as `first` and `second`; their alphas differ."""
    adapt = Adapt(tmp_path)
    found = []
    for seed, name in enumerate(("first", "second")):
        tensors, _ = foreign_files.kohya(tmp_path / f"{name}.safetensors", every=40, seed=seed)
        tensors = {key: np.array((1 + seed) * t) if key.endswith(".alpha") else t for key, t in tensors.items()}
        save_file(tensors, tmp_path / f"{name}.safetensors")
        adapt.ok("add", f"./{name}.safetensors")
        found.append(tensors)
    return found[0], found[1]


def product(up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """What the scripts add to a weight, convolutions included: `conv2d` of one with the other."""
    a, b = torch.from_numpy(down.astype("f8")), torch.from_numpy(up.astype("f8"))
    if a.ndim == 2:
        return (b @ a).numpy()
    return torch.nn.functional.conv2d(a.permute(1, 0, 2, 3), b).permute(1, 0, 2, 3).flatten(1).numpy()


def modules_of(file: Arrays) -> list[str]:
    return [name.removesuffix(".lora_up.weight") for name in file if name.endswith(".lora_up.weight")]


def added_to_a_model(files: tuple[Arrays, Arrays], module: str) -> np.ndarray:
    """`merge_to_sd_model` of `sdxl_merge_lora.py`: W + ratio * up down * alpha / dim, for each file."""
    total: np.ndarray = np.zeros(())
    for file, ratio in zip(files, RATIOS, strict=True):
        down = file[f"{module}.lora_down.weight"]
        scale = float(file[f"{module}.alpha"]) / len(down)
        total = total + ratio * product(file[f"{module}.lora_up.weight"], down) * scale
    return total


def merged_as_files(files: tuple[Arrays, Arrays], module: str) -> np.ndarray:
    """`merge_lora_models`: sums of factors, each times its ratio, at the alpha of the first file."""
    base = float(files[0][f"{module}.alpha"])
    ups, downs = [], []
    for file, ratio in zip(files, RATIOS, strict=True):
        scale = math.sqrt(float(file[f"{module}.alpha"]) / base) * ratio
        ups.append(file[f"{module}.lora_up.weight"].astype("f8") * abs(scale))
        downs.append(file[f"{module}.lora_down.weight"].astype("f8") * scale)
    return product(np.sum(ups, 0), np.sum(downs, 0)) * base / len(downs[0])


@pytest.mark.parametrize(
    ("method", "weights", "formula"),
    [
        ("cat", RATIOS, added_to_a_model),
        ("linear", [math.copysign(ratio**2, ratio) for ratio in RATIOS], merged_as_files),
    ],
)
def test_a_merge_equals_the_formula_of_kohyas_script(
    tmp_path: Path, files: tuple[Arrays, Arrays], method: str, weights: list[float], formula: object
) -> None:
    adapt = Adapt(tmp_path)
    numbers = ",".join(str(weight) for weight in weights)
    adapt.ok("merge", "first", "second", f"--weights={numbers}", "--method", method, "-o", "both")
    adapt.ok("export", "both", "--format", "kohya", "-o", "both.safetensors")

    written = load_file(tmp_path / "both.safetensors")
    assert sorted(modules_of(written)) == sorted(modules_of(files[0]))
    assert {name.partition("_text_model")[0] for name in modules_of(written)} > {"lora_te"}
    for module in modules_of(written):
        up, down = written[f"{module}.lora_up.weight"], written[f"{module}.lora_down.weight"]
        ours = product(up, down) * float(written[f"{module}.alpha"]) / len(down)
        expected = formula(files, module)  # type: ignore[operator]
        assert np.abs(ours - expected).max() <= 1e-6 * np.abs(expected).max(), module
