"""AdaLoRA, LoHa and LoKr in merges: their updates are products, and add up as those of LoRA do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoHaConfig, LoKrConfig, LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapterhub.core.errors import MergeRefused, RefusedAdapter
from adapterhub.inference.loader import attach
from adapterhub.library.library import Library
from tests.support.peft_bases import apart, weighted
from tests.support.tiny_models import convnet, llama, logits, save_adapter
from tests.weights.merging import config_of, run_all

pytestmark = pytest.mark.filterwarnings("ignore")

WEIGHTS = [0.7, -0.3]
SOME = {"target_modules": ["q_proj", "down_proj"]}
KINDS: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "adalora": (llama, [AdaLoraConfig(init_r=r, target_r=r, total_step=1, lora_alpha=5, **SOME) for r in (3, 4)]),
    "adalora without alpha": (llama, [AdaLoraConfig(init_r=3, total_step=1, lora_alpha=0, **SOME)] * 2),
    "loha": (llama, [LoHaConfig(r=2, rank_pattern={"q_proj": 3}, **SOME), LoHaConfig(r=4, alpha=1, **SOME)]),
    "loha of a higher rank than the layer": (llama, [LoHaConfig(r=8, **SOME)] * 2),
    "lokr": (llama, [LoKrConfig(r=2, alpha_pattern={"q_proj": 3}, **SOME), LoKrConfig(r=9, **SOME)]),
    "lokr decomposed": (llama, [LoKrConfig(r=1, decompose_both=True, decompose_factor=f, **SOME) for f in (4, -1)]),
    "loha and lokr": (llama, [LoHaConfig(r=2, **SOME), LoKrConfig(r=2, **SOME)]),
    "convolutions": (
        convnet,
        [
            LoHaConfig(r=2, target_modules=["wide", "head"], use_effective_conv2d=True),
            LoKrConfig(r=2, target_modules=["wide", "narrow"], use_effective_conv2d=True),
        ],
    ),
}


def deltas(base: Callable[..., Any], folder: Path) -> dict[str, Tensor]:
    """The dense update of each module, as PEFT computes it."""
    model = PeftModel.from_pretrained(base(), folder).base_model.model
    layers = ((n, layer) for n, layer in model.named_modules() if isinstance(layer, BaseTunerLayer))
    return {name: layer.get_delta_weight("default").detach().double() for name, layer in layers}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Callable[..., Any], list[Path]]:
    base, configs = KINDS[request.param]
    return base, [save_adapter(tmp_path / f"{i}", base, config, seed=i) for i, config in enumerate(configs)]


def test_a_sum_equals_the_dense_sum_in_peft(kind: tuple[Callable[..., Any], list[Path]], tmp_path: Path) -> None:
    base, folders = kind

    result = run_all(tmp_path / "out", folders, WEIGHTS)

    wanted = weighted([deltas(base, folder) for folder in folders], WEIGHTS)
    assert apart(deltas(base, tmp_path / "out"), wanted) < 1e-5
    assert result.relative_error < 1e-6


def test_a_merge_answers_as_its_adapters_do_side_by_side(
    kind: tuple[Callable[..., Any], list[Path]], tmp_path: Path, library: Library
) -> None:
    base, folders = kind
    run_all(tmp_path / "out", folders, WEIGHTS)
    with attach(base(), tmp_path / "out", library=library) as attached:
        merged = logits(attached.model)

    if len({config_of(folder)["peft_type"] for folder in folders}) > 1:  # which only a merge can add up
        return
    with attach(base(), folders, weights=WEIGHTS, library=library) as attached:
        assert torch.allclose(logits(attached.model), merged, atol=1e-4)


def test_a_sum_of_sums_and_a_cut_to_a_rank_load_in_peft(
    kind: tuple[Callable[..., Any], list[Path]], tmp_path: Path
) -> None:
    base, folders = kind
    run_all(tmp_path / "half", folders, WEIGHTS)

    run_all(tmp_path / "twice", [tmp_path / "half", folders[0]], [2.0, 1.0])
    cut = run_all(tmp_path / "cut", folders, WEIGHTS, rank=2)

    wanted = weighted([deltas(base, folder) for folder in folders], [2 * WEIGHTS[0] + 1, 2 * WEIGHTS[1]])
    assert apart(deltas(base, tmp_path / "twice"), wanted) < 1e-5
    ranks = [torch.linalg.matrix_rank(d.flatten(1), rtol=1e-4) for d in deltas(base, tmp_path / "cut").values()]
    assert max(ranks) == 2
    assert set(cut.ranks) == {2}


def test_modules_of_different_ranks_load_in_peft(kind: tuple[Callable[..., Any], list[Path]], tmp_path: Path) -> None:
    base, folders = kind

    result = run_all(tmp_path / "out", folders, WEIGHTS, max_error=0.3)

    wanted, got = weighted([deltas(base, folder) for folder in folders], WEIGHTS), deltas(base, tmp_path / "out")
    assert all(float((got[name] - wanted[name]).norm() / wanted[name].norm()) < 0.31 for name in wanted)
    assert len(result.ranks) > 1 or result.relative_error == 0


@pytest.mark.parametrize("method", ["ties", "dare_linear_svd", "slerp"])
def test_other_methods_take_them_as_well(method: str, tmp_path: Path) -> None:
    folders = [save_adapter(tmp_path / f"{i}", llama, LoHaConfig(r=2, **SOME), seed=i) for i in (0, 1)]

    run_all(tmp_path / "out", folders, [0.7, 0.3], method=method)

    assert all(bool(delta.any()) for delta in deltas(llama, tmp_path / "out").values())


def test_types_that_have_no_format_in_common_are_refused(tmp_path: Path) -> None:
    configs = [LoraConfig(r=2, **SOME), LoHaConfig(r=2, **SOME), AdaLoraConfig(total_step=1, **SOME)]
    folders = [save_adapter(tmp_path / f"{i}", llama, config, seed=i) for i, config in enumerate(configs)]

    for pair in (folders[:2], folders[1:]):
        with pytest.raises(MergeRefused) as refused:
            run_all(tmp_path / "out", pair, WEIGHTS)

        assert any("LoHa and LoKr alone merge with each other" in reason for reason in refused.value.reasons)


@pytest.mark.parametrize(
    ("lost", "changed", "code"),
    [
        ("hada_w2_b", {}, "E_PAIR"),
        ("", {"hada_w2_b": torch.ones(3, 5)}, "E_SHAPE"),
        ("", {"hada_t1": torch.ones(2, 2, 1, 1)}, "E_PAIR"),
        ("", {"hada_w1_a": torch.ones(32, 2, dtype=torch.int32)}, "E_DTYPE"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused_by_module(
    lost: str, changed: dict[str, Tensor], code: str, tmp_path: Path
) -> None:
    folder = save_adapter(tmp_path / "a", llama, LoHaConfig(r=2, target_modules=["q_proj"]))
    path = folder / "adapter_model.safetensors"
    module = "base_model.model.model.layers.1.self_attn.q_proj"
    tensors = load_file(path) | {f"{module}.{name}": tensor for name, tensor in changed.items()}
    tensors.pop(f"{module}.{lost}", None)
    save_file(tensors, path, metadata={"format": "pt"})

    with pytest.raises(RefusedAdapter) as refused:
        run_all(tmp_path / "out", [folder], [0.5])

    ((found, text),) = refused.value.findings
    assert found == code
    assert text.startswith("`model.layers.1.self_attn.q_proj`: ")
