"""Names of wrappers and of the adapter in memory are left out, and the update is what the trainer meant."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import adapterhub
from adapterhub import Library

pytestmark = pytest.mark.slow

PREFIX = "base_model.model."
IDS = torch.arange(3, 19)[None]
RENAMES: dict[str, Callable[[str], str]] = {
    "torch.compile": lambda name: name.replace("layers.0.", "layers.0._orig_mod."),
    "compiled whole": lambda name: name.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "FSDP": lambda name: name.replace("layers.", "_fsdp_wrapped_module.layers.").replace(
        "self_attn.", "_fsdp_wrapped_module.self_attn."
    ),
    "activation checkpointing": lambda name: name.replace("self_attn.", "_checkpoint_wrapped_module.self_attn."),
    "data parallel": lambda name: f"module.{name}",
    "name in memory": lambda name: name.replace(".weight", ".default.weight"),
    "another name in memory": lambda name: name.replace(".weight", ".style-2.weight"),
    "no prefix": lambda name: name.removeprefix(PREFIX),
    "state dict": lambda name: name.removeprefix(PREFIX).replace(".weight", ".default.weight"),
    "wrapped twice": lambda name: PREFIX + name,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """A base and an adapter of PEFT, and the logits of both."""
    place = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)).eval()
    model.save_pretrained(place / "base")
    with torch.no_grad():
        plain = model(input_ids=IDS).logits.double()
        adapted = get_peft_model(
            model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        )
        truth = adapted.eval()(input_ids=IDS).logits.double()
    adapted.save_pretrained(place / "adapter")
    return place, truth, plain


@pytest.mark.parametrize("way", RENAMES)
def test_a_file_with_other_names_is_the_same_adapter(way, made, tmp_path) -> None:
    place, truth, plain = made
    tensors = load_file(place / "adapter" / "adapter_model.safetensors")
    folder = tmp_path / "adapter"
    shutil.copytree(place / "adapter", folder)
    save_file({RENAMES[way](name): tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    library = Library(tmp_path / "home")
    library.bases.add(place / "base", alias="b")

    library.add(folder, name="x", base="b")

    model = LlamaForCausalLM.from_pretrained(place / "base").eval()
    with adapterhub.attach(model, "x@b", library=library) as attached, torch.no_grad():
        logits = attached.model(input_ids=IDS).logits.double()
    assert float((logits - truth).norm() / (truth - plain).norm()) < 1e-6


def test_two_adapters_in_one_file_are_refused(made, tmp_path) -> None:
    place, *_ = made
    tensors = load_file(place / "adapter" / "adapter_model.safetensors")
    folder = tmp_path / "adapter"
    shutil.copytree(place / "adapter", folder)
    both = {
        name.replace(".weight", f".{one}.weight"): tensor.clone() for name, tensor in tensors.items() for one in "ab"
    }
    save_file(both, folder / "adapter_model.safetensors")

    report = Library(tmp_path / "home").verify(folder)
    assert "E_PAIR" in json.dumps([finding.code for one in report.values() for finding in one.errors])


def test_copies_of_the_modules_that_it_replaces_are_left_out(made, tmp_path) -> None:
    """PEFT saves `lm_head.original_module.weight` where tokens were added after loading, and ignores it on loading."""
    place, _, plain = made
    torch.manual_seed(1)
    model = LlamaForCausalLM.from_pretrained(place / "base").eval()
    settings = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    adapted = get_peft_model(model, settings).eval()
    with torch.no_grad():
        adapted.base_model.model.lm_head.modules_to_save["default"].weight.add_(0.1)
        truth = adapted(input_ids=IDS).logits.double()
    adapted.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    original = adapted.base_model.model.lm_head.original_module.weight.detach().clone()
    save_file({**tensors, f"{PREFIX}lm_head.original_module.weight": original}, path)
    library = Library(tmp_path / "home")
    library.bases.add(place / "base", alias="b")

    library.add(tmp_path / "adapter", name="x", base="b")

    again = LlamaForCausalLM.from_pretrained(place / "base").eval()
    with adapterhub.attach(again, "x@b", library=library) as attached, torch.no_grad():
        logits = attached.model(input_ids=IDS).logits.double()
    assert float((logits - truth).norm() / (truth - plain).norm()) < 1e-6
