"""An adapter that changes nothing is found out: by its own zeros, or because the model says the same with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from adapterhub.core.errors import WithoutEffect
from adapterhub.inference.bank import AdapterBank
from adapterhub.inference.serving.refusal import refusal_of
from adapterhub.library.library import Library
from tests.support.bank_adapters import CONFIGS, hooks_of, lora, make_folders
from tests.support.tiny_models import bert, gpt2, llama, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

WEIGHTS = "adapter_model.safetensors"


def scaled(folder: Path, half: str, factor: float) -> Path:
    """The adapter with one half of each pair multiplied by `factor`."""
    tensors = load_file(folder / WEIGHTS)
    changed = {name: one * factor if f"lora_{half}" in name else one for name, one in tensors.items()}
    save_file(changed, folder / WEIGHTS, {"format": "pt"})
    return folder


@pytest.fixture
def bank(library: Library) -> Iterator[AdapterBank]:
    with AdapterBank(llama(), library=library) as made:
        yield made


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_of_any_method_that_changes_something_is_loaded(
    name: str, bank: AdapterBank, tmp_path: Path
) -> None:
    [folder] = make_folders(tmp_path, name).values()

    bank.load(folder, check_effect=True)

    assert (bank.names, bank.effect(name).changes) == ((name,), True)


@pytest.mark.parametrize("half", ["A", "B"])
def test_an_untrained_adapter_is_refused_by_its_zeros_and_the_bank_stays_as_it_was(
    half: str, bank: AdapterBank, tmp_path: Path
) -> None:
    folder = scaled(make_folders(tmp_path, "a")["a"], half, 0.0)
    hooks = hooks_of(bank.model)

    with pytest.raises(WithoutEffect, match=f"its update is zero: {half} of all 4 pairs holds zeros") as refused:
        bank.load(folder, check_effect=True)

    assert (bank.names, refused.value.exit_code, refusal_of(refused.value).status) == ((), 11, 424)
    assert [one[0] for one in hooks_of(bank.model)] == [one[0] for one in hooks]
    bank.load(folder)  # without the question it is no error


def test_an_update_below_rounding_is_told_from_one_that_is_zero(bank: AdapterBank, tmp_path: Path) -> None:
    folder = scaled(make_folders(tmp_path, "a")["a"], "B", 1e-30)

    with pytest.raises(WithoutEffect, match=r"number for number.*through 4 of the 4 modules") as refused:
        bank.load(folder, check_effect=True)

    assert "zero" not in str(refused.value)


def test_an_adapter_that_was_loaded_before_stays_when_it_is_asked_about(bank: AdapterBank, tmp_path: Path) -> None:
    folder = scaled(make_folders(tmp_path, "a")["a"], "B", 0.0)
    bank.load(folder)

    with pytest.raises(WithoutEffect):
        bank.load(folder, check_effect=True)

    assert bank.names == ("a",)


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (gpt2, lora(target_modules=["c_attn"], fan_in_fan_out=True)),
        (bert, lora(target_modules=["query", "value"], task_type=TaskType.SEQ_CLS, modules_to_save=["classifier"])),
        (llama, lora(trainable_token_indices=[3], target_modules=["q_proj"])),
        (llama, LoraConfig(r=2, target_modules=["k_proj"], alora_invocation_tokens=[5, 6], task_type="CAUSAL_LM")),
        (llama, lora(target_modules=["layers.0.self_attn.k_proj"])),
    ],
)
def test_other_models_and_adapters_that_act_on_some_tokens_are_asked_so_that_they_act(
    make: Callable[[], nn.Module], config: Any, library: Library, tmp_path: Path
) -> None:
    folder = save_adapter(tmp_path / "one", make, config, seed=3)

    with AdapterBank(make(), library=library) as bank:
        bank.load(folder, check_effect=True)
        assert bank.effect("one").changes is True


def test_a_model_that_takes_no_ids_gives_an_unknown_and_no_refusal(library: Library, tmp_path: Path) -> None:
    def vit() -> nn.Module:
        torch.manual_seed(0)
        return ViTForImageClassification(
            ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32)
        ).eval()

    config = lora(target_modules=["q_proj"])
    folder = save_adapter(tmp_path / "seen", vit, config, seed=3)

    with AdapterBank(vit(), library=library) as bank:
        bank.load(folder, check_effect=True)
        assert bank.effect("seen").changes is None
