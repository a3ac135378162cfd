"""Publishing what torch, PEFT and transformers hold in memory: the file is the one that `save_pretrained` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from adapterhub import Library
from adapterhub.core.errors import UsageProblem
from adapterhub.live.stream import LiveStream

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def tiny(tmp_path: Path, base_folder: Path) -> LiveStream:
    library = Library(tmp_path / "home")
    library.add_base(base_folder, "tiny")
    return library.live("agent@tiny")


def model_of(base: Path, **config: Any) -> Any:
    torch.manual_seed(1)
    settings = LoraConfig(
        **{"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
        | config
    )
    return get_peft_model(LlamaForCausalLM.from_pretrained(base), settings)


def file_of(published: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(published.build.folder / "adapter_model.safetensors")
    return found


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True, "lora_alpha": 3},
        {"bias": "lora_only"},
        {"target_modules": "all-linear"},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 1}},
    ],
    ids=str,
)
def test_a_peft_model_is_what_it_saves(tiny, base_folder, tmp_path, config) -> None:
    model = model_of(base_folder, **config)
    published = tiny.publish(model, step=1)
    model.save_pretrained(tmp_path / "saved")

    saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    kept = file_of(published)
    assert kept.keys() == saved.keys()
    assert all(torch.equal(kept[name], saved[name]) for name in saved)
    own = json.loads((published.build.folder / "adapter_config.json").read_text())
    peft = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert {k: sorted(v) if isinstance(v, list) else v for k, v in own.items()} == {
        k: sorted(v) if isinstance(v, list) else v for k, v in peft.items()
    }
    by_add = tiny.library.add(tmp_path / "saved", name="added", base="tiny").build
    assert by_add.manifest.rank == published.build.manifest.rank
    assert tiny.library.attach(LlamaForCausalLM.from_pretrained(base_folder), "agent@live") is not None


def test_a_model_of_transformers_with_an_adapter(tiny, base_folder) -> None:
    model = LlamaForCausalLM.from_pretrained(base_folder)
    settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    inject_adapter_in_model(settings, model, "mine")  # what `model.add_adapter` does where the versions fit
    published = tiny.publish(model, step=1)
    assert set(file_of(published)) == {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight"
        for layer in (0, 1)
        for side in "AB"
    }


def test_of_several_adapters_the_active_one(tiny, base_folder) -> None:
    model = model_of(base_folder)
    model.add_adapter("reference", LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    assert tiny.publish(model, step=1).build.manifest.rank == 2
    model.set_adapter("reference")
    assert tiny.publish(model, step=2).build.manifest.rank == 4


def test_wrappers_are_looked_through(tiny, base_folder) -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

    assert tiny.publish(Wrapped(model_of(base_folder)), step=1).is_current
    assert tiny.publish(torch.compile(model_of(base_folder)), step=2).is_current


def test_a_model_without_an_adapter_is_refused(tiny, base_folder) -> None:
    with pytest.raises(UsageProblem, match="has no adapter"):
        tiny.publish(LlamaForCausalLM.from_pretrained(base_folder), step=1)
    assert tiny.target() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_state_of_any_dtype_keeps_its_bits(tmp_path, tiny, base_folder, dtype) -> None:
    model = model_of(base_folder)
    state = {name: value.to(dtype) for name, value in get_peft_model_state_dict(model).items()}
    stream = tiny.library.live("agent@tiny", config=model.peft_config["default"])
    kept = file_of(stream.publish(state, step=1))
    assert all(kept[name].dtype == dtype and torch.equal(kept[name], state[name]) for name in state)


def test_strided_shared_and_tied_tensors_are_written_as_their_numbers(tiny, base_folder) -> None:
    model = model_of(base_folder)
    state = dict(get_peft_model_state_dict(model))
    names = sorted(name for name in state if "lora_A" in name)
    state[names[0]] = state[names[0]].t().contiguous().t()  # not contiguous
    state[names[1]] = torch.stack([state[names[1]], state[names[1]]], dim=2)[..., 0]  # every second number
    state[names[3]] = state[names[2]]  # the same memory twice
    state[names[0]] = state[names[0]].expand_as(state[names[0]])
    assert not state[names[1]].is_contiguous()
    stream = tiny.library.live("agent@tiny", config=model.peft_config["default"])
    kept = file_of(stream.publish(state, step=1))
    assert all(torch.equal(kept[name], state[name]) for name in state)


def test_numbers_of_another_device_that_are_not_here_are_refused(tiny, base_folder) -> None:
    model = model_of(base_folder)
    state = {name: value.to("meta") for name, value in get_peft_model_state_dict(model).items()}
    stream = tiny.library.live("agent@tiny", config=model.peft_config["default"])
    with pytest.raises(UsageProblem, match="not a dense tensor"):
        stream.publish(state, step=1)
    sparse = {name: value.to_sparse() for name, value in get_peft_model_state_dict(model).items()}
    with pytest.raises(UsageProblem, match="not a dense tensor"):
        stream.publish(sparse, step=1)


def test_the_model_goes_on_training_unharmed(tiny, base_folder) -> None:
    model = model_of(base_folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    tiny.publish(model, step=1)
    assert model.training
    assert [name for name, value in model.named_parameters() if value.requires_grad] == trained
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.peft_config["default"].inference_mode
