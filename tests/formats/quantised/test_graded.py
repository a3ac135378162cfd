"""Copies by GPTQ, AWQ and AutoRound are likely those of their source, and not of a tuned or another model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from adapterhub.formats.base.fingerprint import BaseComparison, BaseVerdict
from adapterhub.formats.base.quantised.deep import compare_models
from adapterhub.formats.base.quantised.graded import Window, factors_of, figures, is_folded, judged
from adapterhub.formats.base.quantised.opening import opened
from tests.formats.quantised.writers import (
    Grid,
    Numbers,
    as_awq,
    as_gptq,
    gptq,
    inputs_for,
    plain,
    trained,
    tuned,
)
from tests.support.copies import Tensors, saved

SHAPE = (256, 256)
WEIGHTS = [f"model.layers.{n}.{m}_proj.weight" for n in range(2) for m in ("q", "up")]
NORMS = {name: name.replace("q_proj", "norm_1").replace("up_proj", "norm_2") for name in WEIGHTS}
Quantise = Callable[[str, Numbers], Tensors]


def source(seed: int = 0) -> Tensors:
    found = {name: torch.from_numpy(trained(seed + n, *SHAPE)).float() for n, name in enumerate(WEIGHTS)}
    norms = {
        name: torch.from_numpy(1 + 0.1 * trained(seed + 9 + n, 1, 256)[0]).float() for n, name in enumerate(WEIGHTS)
    }
    embedding = torch.from_numpy(trained(seed + 20, 40, 256)).float()
    return found | {NORMS[name]: norm for name, norm in norms.items()} | {"model.embed_tokens.weight": embedding}


def changed(tensors: Tensors, part: float) -> Tensors:
    """The weights moved by a change of rank 16, of a part of their norm, as an adapter does that is merged."""
    random, found = np.random.default_rng(7), dict(tensors)
    for name in WEIGHTS:
        change = torch.from_numpy(random.normal(size=(256, 16)) @ random.normal(size=(16, 256))).float()
        found[name] = tensors[name] + change * part * tensors[name].norm() / change.norm()
    return found


def named(name: str, tensors: Tensors) -> Tensors:
    return {key.replace("x.", name.removesuffix("weight")): tensor for key, tensor in tensors.items()}


def moved_by_gptq(name: str, weight: Numbers) -> Tensors:
    grid = gptq(weight, inputs_for(len(name), 256), is_ordered="up" in name)
    return named(name, as_gptq(grid, has_index="up" in name))


def rounded_up_or_down(name: str, weight: Numbers) -> Tensors:
    return named(name, as_gptq(tuned(weight, 1), has_index=False))


def rounded(name: str, weight: Numbers) -> Tensors:
    return named(name, as_gptq(plain(weight), has_index=False))


def compared(tmp_path: Path, theirs: Tensors, ours: Tensors, quantise: Quantise, **config: object) -> BaseComparison:
    """The comparison of a model in floats with a copy of `ours`."""
    copy = {name: tensor for name, tensor in ours.items() if name not in WEIGHTS}
    for name in WEIGHTS:
        copy |= quantise(name, ours[name].double().numpy())
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64} | config}
    return compare_models(opened(saved(tmp_path / "a", theirs)), opened(saved(tmp_path / "b", copy, **config)))


def test_a_copy_by_gptq_is_likely_that_of_its_source(tmp_path: Path) -> None:
    found = compared(tmp_path, source(), source(), moved_by_gptq)

    assert found.label == "LIKELY_SAME_QUANTISED (gptq)"
    assert found.differences[1:] == (
        "4 of them have a column that was rounded and not moved, as GPTQ leaves its first",
        "5 tensors in floats are equal",
    )


@pytest.mark.parametrize("part", [0.1, 0.03, 0.01])
@pytest.mark.parametrize("quantise", [moved_by_gptq, rounded])
def test_a_tuned_model_in_the_layout_of_gptq_is_another(part: float, quantise: Quantise, tmp_path: Path) -> None:
    found = compared(tmp_path, source(), changed(source(), part), quantise)

    assert found.verdict is BaseVerdict.SAME_SHAPES
    assert "neither GPTQ nor AWQ explains it" in " ".join(found.differences)


def test_rounding_in_the_layout_of_gptq_is_likely(tmp_path: Path) -> None:
    found = compared(tmp_path, source(), source(), rounded)

    assert found.label == "LIKELY_SAME_QUANTISED (gptq)"
    assert "100.00% of their numbers have the code that is nearest" in found.differences


def test_auto_round_is_told_from_a_large_change_only(tmp_path: Path) -> None:
    said = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"}
    for part, expected in ((0.0, "LIKELY_SAME_QUANTISED (auto-round)"), (0.2, "SAME_SHAPES (auto-round)")):
        (folder := tmp_path / str(part)).mkdir()
        assert compared(folder, source(), changed(source(), part), rounded_up_or_down, **said).label == expected


@pytest.mark.parametrize("other", [source(100), source() | {WEIGHTS[1]: source()[WEIGHTS[1]].flip(0)}])
def test_another_model_and_one_weight_in_another_order_are_others(other: Tensors, tmp_path: Path) -> None:
    kept = {name: tensor for name, tensor in source().items() if name not in WEIGHTS}

    assert compared(tmp_path, source(), other | kept, moved_by_gptq).verdict is BaseVerdict.SAME_SHAPES


def test_a_tensor_in_floats_that_differs_makes_another_model(tmp_path: Path) -> None:
    other = source()
    other["model.embed_tokens.weight"] = other["model.embed_tokens.weight"] * 1.001

    assert compared(tmp_path, source(), other, moved_by_gptq).verdict is BaseVerdict.SAME_SHAPES


# ---------------------------------------------------------------- columns times factors
def scaled(tensors: Tensors) -> tuple[Tensors, Quantise]:
    """The model whose norms are divided by factors, and what writes its weights with the columns times them."""
    factors = {name: np.exp(0.4 * np.random.default_rng(n).normal(size=256)) for n, name in enumerate(WEIGHTS)}
    folded = dict(tensors)
    for name in WEIGHTS:
        folded[NORMS[name]] = (tensors[NORMS[name]].double() / torch.from_numpy(factors[name])).float()

    def quantise(name: str, weight: Numbers) -> Tensors:
        return named(name, as_awq(plain(weight * factors[name], is_symmetric=False)))

    return folded, quantise


AWQ = {"quant_method": "awq", "version": "gemm"}


def test_a_copy_by_awq_is_likely_that_of_its_source(tmp_path: Path) -> None:
    found = compared(tmp_path, source(), *scaled(source()), **AWQ)

    assert found.label == "LIKELY_SAME_QUANTISED (awq)"
    assert found.differences[-1] == (
        "1 tensors in floats are equal, and 4 norms differ by the factors of columns alone"
    )


@pytest.mark.parametrize("part", [0.1, 0.03])
def test_a_tuned_model_by_awq_is_another(part: float, tmp_path: Path) -> None:
    assert compared(tmp_path, source(), *scaled(changed(source(), part)), **AWQ).verdict is BaseVerdict.SAME_SHAPES


def test_a_norm_that_differs_otherwise_makes_another_model(tmp_path: Path) -> None:
    folded, quantise = scaled(source())
    name = NORMS[WEIGHTS[0]]
    folded[name] = folded[name] * torch.linspace(0.5, 2, 256)

    found = compared(tmp_path, source(), folded, quantise, **AWQ)

    assert found.verdict is BaseVerdict.SAME_SHAPES
    assert f"1 tensors in floats differ, such as `{name}`" in found.differences


# ---------------------------------------------------------------- figures of odd windows
def seen_of(grid: Grid, weight: Numbers) -> Window:
    return Window("x.weight", weight, grid.values, grid.scales[:, grid.groups])


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_a_window_without_numbers_explains_nothing(lost: float) -> None:
    weight = trained(0, *SHAPE)
    seen = seen_of(plain(weight), weight)
    for broken in (
        seen._replace(value=seen.value * lost),
        seen._replace(value=seen.value * lost, step=seen.step * lost),
    ):
        assert not judged([figures(broken)], kept=1).is_likely


def test_scales_that_were_fitted_leave_few_numbers_off() -> None:
    weight, random = trained(0, *SHAPE), np.random.default_rng(3)
    grid = plain(weight)
    for part, expected in ((0.015, "fitted"), (0.08, "")):
        moved = grid._replace(codes=grid.codes + (random.random(SHAPE) < part))
        assert judged([figures(seen_of(moved, weight))], kept=1, form="gguf-q4_0").how == expected
        assert not judged([figures(seen_of(moved, weight))], kept=1, form="gptq").is_likely


def test_codebooks_are_judged_by_their_correlation() -> None:
    weight = trained(0, *SHAPE)
    seen = seen_of(plain(weight), weight)._replace(step=np.full(SHAPE, np.nan))

    assert judged([figures(seen)], kept=1, form="gguf-iq2_xs").how == "codebooks"
    assert not judged([figures(seen._replace(source=weight[::-1]))], kept=1, form="gguf-iq2_xs").is_likely
    assert not judged([figures(seen)], kept=1, may_be_rounded=False).is_likely


def test_zeros_everywhere_are_no_copy() -> None:
    zeros = np.zeros(SHAPE)

    assert not judged([figures(Window("x.weight", trained(0, *SHAPE), zeros, np.ones(SHAPE)))], kept=1).is_likely
    assert not judged([], kept=9).is_likely


def test_norms_of_zeros_and_of_another_width_are_folded_by_nothing() -> None:
    weight = trained(0, *SHAPE)
    seen = seen_of(plain(weight), weight)

    assert is_folded(np.ones(256), seen)
    assert not is_folded(np.full(256, 1.3), seen)
    assert not is_folded(np.ones(128), seen)
    assert (factors_of(np.array([0.0, 1.0, 2.0]), np.array([0.0, 0.0, 1.0])) == [1, 1, 2]).all()
