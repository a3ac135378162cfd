"""Which tensors make a pair, and what rank and scale a config gives it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapterhub.core.errors import RefusedAdapter
from adapterhub.weights.lowrank.factors import AdapterFactors
from tests.support.adapter_folders import PREFIX

EXPERTS = "layers.0.mlp.experts"


def write(folder: Path, shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], **config: object) -> Path:
    """A folder whose modules have A and B of the given shapes."""
    folder.mkdir()
    tensors = {}
    for module, (a, b) in shapes.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = torch.ones(a)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = torch.ones(b)
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"], "base_model_name_or_path": "x"}
    (folder / "adapter_config.json").write_text(json.dumps(values | config))
    return folder


def test_groups_of_a_convolution_are_told_by_the_rank(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"conv": ((4, 6, 3, 3), (8, 2, 1, 1))})

    with AdapterFactors(folder) as adapter:
        factors, parts = adapter.modules["conv"], adapter.parts("conv")

    assert (factors.layout.kind, factors.layout.parts, factors.rank) == ("conv", 2, 2)
    assert [part.shape for part in parts] == [(4, 54), (4, 54)]


@pytest.mark.parametrize(
    "shapes",
    [
        ((4, 6, 3, 3), (8, 3, 1, 1)),  # 4 is no multiple of 3
        ((4, 6, 3, 3), (7, 2, 1, 1)),  # 7 outputs in two groups
        ((8, 6, 3, 3), (8, 2, 1, 1)),  # rank 8, where the config says 4
        ((4, 6), (8, 2)),  # a matrix has no groups
    ],
)
def test_what_is_no_grouped_convolution_is_refused(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], tmp_path: Path
) -> None:
    with pytest.raises(RefusedAdapter, match=r"\[E_RANK\] `conv`: .* expected rank 4"):
        AdapterFactors(write(tmp_path / "a", {"conv": shapes}))


def nested(*ranks: int, experts: int = 6) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Pairs on one module, the outermost first."""
    return {
        EXPERTS + ".base_layer" * depth: ((rank * experts, 3 + depth), (5 + depth, rank * experts))
        for depth, rank in enumerate(ranks)
    }


TWO = {"target_modules": [], "target_parameters": ["experts.down", "mlp.experts.up"], "peft_version": "0.21.2"}


def settings_of(folder: Path) -> list[tuple[int, float, int]]:
    with AdapterFactors(folder) as adapter:
        assert adapter.unclear == {}
        return [(f.rank, f.scale, f.layout.parts) for f in adapter.modules.values()]


def test_parameters_of_one_setting_need_no_telling_apart(tmp_path: Path) -> None:
    assert settings_of(write(tmp_path / "a", nested(4, 4), **TWO)) == [(4, 2.0, 6), (4, 2.0, 6)]


def test_patterns_are_matched_against_the_name_of_the_parameter(tmp_path: Path) -> None:
    patterns = {"rank_pattern": {"experts.(up|down)": 2}, "alpha_pattern": {".*mlp.experts.*": 6}}

    assert settings_of(write(tmp_path / "a", nested(2, 2), **TWO, **patterns)) == [(2, 3.0, 6), (2, 3.0, 6)]


@pytest.mark.parametrize("ranks", [(4, 2), (2, 4)])
def test_the_number_of_experts_tells_which_pair_has_which_rank(ranks: tuple[int, int], tmp_path: Path) -> None:
    folder = write(tmp_path / "a", nested(*ranks), **TWO, rank_pattern={"up": 2}, alpha_pattern={"up": 1})

    assert settings_of(folder) == [(rank, 2.0 if rank == 4 else 0.5, 6) for rank in ranks]


@pytest.mark.parametrize(
    ("ranks", "patterns"),
    [
        ((4, 4), {"alpha_pattern": {"up": 1}}),  # which of the two has the other alpha?
        ((4, 4), {"rank_pattern": {"up": 2}}),  # 6 experts of rank 4, or 12 of rank 2?
        ((4,), {"rank_pattern": {"up": 2}}),  # one of the two has no pair
    ],
)
def test_pairs_that_nothing_tells_apart_are_unclear(
    ranks: tuple[int, ...], patterns: dict[str, object], tmp_path: Path
) -> None:
    with AdapterFactors(write(tmp_path / "a", nested(*ranks), **TWO, **patterns)) as adapter:
        assert dict(adapter.modules) == {}
        assert list(adapter.unclear) == list(nested(*ranks))
        assert all("down, up" in reason for reason in adapter.unclear.values())


def test_the_names_of_parameters_are_given_in_full(tmp_path: Path) -> None:
    with AdapterFactors(write(tmp_path / "a", nested(4, 4) | {"q": ((4, 3), (5, 4))}, **TWO)) as adapter:
        assert adapter.modules["q"].parameters == ()
        assert adapter.modules[EXPERTS].parameters == (f"{EXPERTS}.down", f"{EXPERTS}.up")
        assert adapter.modules[EXPERTS].layout.kind == "experts"


@pytest.mark.parametrize(("a", "b"), [((24, 3), (5, 12)), ((25, 3), (5, 25)), ((24, 3, 1), (5, 24, 1))])
def test_pairs_of_experts_that_do_not_fit_are_refused(a: tuple[int, ...], b: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(RefusedAdapter, match="E_RANK"):
        AdapterFactors(write(tmp_path / "a", {EXPERTS: (a, b)}, **TWO))


def test_a_layer_made_of_layers_has_the_rank_of_the_outer_one(tmp_path: Path) -> None:
    shapes = {"attn": ((2, 8), (24, 2)), "attn.base_layer.out_proj": ((2, 8), (8, 2))}

    assert settings_of(write(tmp_path / "a", shapes, rank_pattern={"attn": 2})) == [(2, 4.0, 1), (2, 4.0, 1)]


def test_blocks_on_the_diagonal_are_unclear_and_not_wrong(tmp_path: Path) -> None:
    shapes = {"q": ((4, 8), (8, 2)), "v": ((4, 4), (8, 4))}

    with AdapterFactors(write(tmp_path / "a", shapes, use_bdlora={"nblocks": 2})) as adapter:
        assert dict(adapter.unclear) == {"q": "has block-diagonal factors (BD-LoRA)"}
    with pytest.raises(RefusedAdapter):
        AdapterFactors(write(tmp_path / "b", shapes))
