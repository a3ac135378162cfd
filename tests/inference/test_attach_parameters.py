"""Attach of adapters on bare parameters (PEFT's `target_parameters`), the experts of mixture models above all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from adapterhub.core.errors import BaseMismatch, RefusedAdapter
from adapterhub.inference.loader import attach
from adapterhub.library.library import Library
from tests.inference.test_attach_refusals import refusal_of
from tests.support.peft_bases import DECODER, fresh, logits, mixtral, save

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT and transformers warn of much that is meant here

BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
PLAIN = {"r": 2, "lora_alpha": 3, "target_modules": []}


def plain_peft(base: Callable[[], nn.Module], folder: Path) -> nn.Module:
    return PeftModel.from_pretrained(fresh(base), folder).eval()


def test_an_adapter_on_one_parameter_does_not_spoil_the_next_on_both(tmp_path: Path, library: Library) -> None:
    one = save(tmp_path / "one", mixtral, PLAIN | {"target_parameters": BOTH[:1]})
    both = save(tmp_path / "both", mixtral, PLAIN | {"target_parameters": BOTH}, seed=1)
    model = fresh(mixtral)

    with attach(model, one, library=library) as attached:
        logits(attached.model)

    with attach(model, both, library=library) as attached:
        assert torch.allclose(logits(plain_peft(mixtral, both)), logits(attached.model), rtol=0, atol=1e-6)


def test_weights_scale_the_updates_of_parameters(tmp_path: Path, library: Library) -> None:
    folder = save(tmp_path / "a", mixtral, PLAIN | {"target_parameters": BOTH})
    other = save(tmp_path / "b", mixtral, PLAIN | {"target_parameters": BOTH, "r": 3}, seed=1)
    reference = plain_peft(mixtral, folder)
    reference.load_adapter(other, "other")
    reference.base_model.set_adapter(["default", "other"])
    for layer in reference.modules():
        for adapter, weight in (("default", 0.5), ("other", -0.25)):
            if isinstance(layer, ParamWrapper):
                layer.scaling[adapter] *= weight

    attached = attach(fresh(mixtral), {folder: 0.5, other: -0.25}, library=library)

    assert torch.allclose(logits(reference), logits(attached.model), rtol=0, atol=1e-6)


# ---------------------------------------------------------------- refusals
def fresh_mixtral() -> nn.Module:
    return fresh(mixtral)


def edited(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(folder / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def test_pair_that_is_missing_is_named(tmp_path: Path, library: Library) -> None:
    folder = save(tmp_path / "a", mixtral, PLAIN | {"target_parameters": BOTH})

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        for side in "AB":
            del tensors[f"base_model.model.model.layers.1.mlp.experts.base_layer.lora_{side}.weight"]

    refusal = refusal_of(edited(folder, cut), library, fresh_mixtral)

    assert isinstance(refusal, RefusedAdapter)
    assert "`model.layers.1.mlp.experts`: the config targets its parameter `gate_up_proj`" in str(refusal)


def test_pairs_of_two_parameters_that_changed_places_do_not_fit(tmp_path: Path, library: Library) -> None:
    folder = save(tmp_path / "a", mixtral, PLAIN | {"target_parameters": BOTH})

    def swap(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if ".base_layer." in n]:
            outer = name.replace(".base_layer.", ".")
            tensors[name], tensors[outer] = tensors[outer], tensors[name]

    assert isinstance(refusal_of(edited(folder, swap), library, fresh_mixtral), BaseMismatch)


def test_experts_of_another_count_do_not_fit(tmp_path: Path, library: Library) -> None:
    def two_experts() -> nn.Module:
        return MixtralForCausalLM(MixtralConfig(num_local_experts=2, num_hidden_layers=2, **DECODER))

    folder = save(tmp_path / "a", mixtral, PLAIN | {"target_parameters": BOTH})

    assert isinstance(refusal_of(folder, library, lambda: fresh(two_experts)), BaseMismatch)
