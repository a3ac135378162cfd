"""Targets that name a parameter without its module (`gate_up_proj`), as PEFT 0.21 writes them for mixtures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
)

import adapterhub
from adapterhub import AdapterBank, Library
from adapterhub.formats.peft.config import AdapterConfig
from tests.support.peft_bases import DECODER, fresh, logits, mixtral, qwen3_moe

pytestmark = pytest.mark.filterwarnings("ignore")

_DENSE_FIRST = {"num_hidden_layers": 2, "n_routed_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_DENSE_FIRST |= {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}


def olmoe() -> nn.Module:
    return OlmoeForCausalLM(OlmoeConfig(num_hidden_layers=2, num_experts=3, num_experts_per_tok=2, **DECODER))


def glm4_moe() -> nn.Module:
    return Glm4MoeForCausalLM(Glm4MoeConfig(head_dim=8, **_DENSE_FIRST, **DECODER))


def deepseek_v3() -> nn.Module:
    sizes = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**sizes, **_DENSE_FIRST, **DECODER))


BARE = {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"]}
CASES = {
    "qwen3_moe": (qwen3_moe, BARE),
    "olmoe": (olmoe, BARE),
    "glm4_moe": (glm4_moe, BARE),
    "deepseek_v3": (deepseek_v3, BARE | {"target_modules": ["q_a_proj"]}),
    "mixtral, as PEFT converts w1 to w3 and the router": (
        mixtral,
        {"target_modules": ["q_proj", "w1", "w2", "w3", "gate"]},
    ),
    "one of two": (mixtral, {"target_modules": [], "target_parameters": ["down_proj"]}),
    "beside a full name": (
        mixtral,
        {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "down_proj"]},
    ),
}


def saved(folder: Path, make: Callable[[], nn.Module], settings: dict[str, object], seed: int = 0) -> Path:
    config = LoraConfig(r=2, lora_alpha=6, task_type="CAUSAL_LM", **settings)
    model = get_peft_model(fresh(make), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def by_peft(make: Callable[[], nn.Module], folder: Path) -> Tensor:
    return logits(PeftModel.from_pretrained(fresh(make), folder).eval())


@pytest.mark.parametrize("case", CASES)
def test_attach_bank_and_verify_take_what_peft_writes(case: str, tmp_path: Path) -> None:
    make, settings = CASES[case]
    folder = saved(tmp_path / "a", make, settings)
    config = AdapterConfig.parse((folder / "adapter_config.json").read_bytes(), "")
    assert config.has_bare_parameters
    library, model = Library(tmp_path / "home"), fresh(make)
    model.save_pretrained(tmp_path / "base")
    library.bases.add(tmp_path / "base", alias="b")
    build = library.add(folder, name="x", base="b")
    expected = by_peft(make, folder)
    effect = float((expected - logits(model)).norm())

    with adapterhub.attach(model, "x@b", library=library) as attached:
        found = logits(attached.model)
    with AdapterBank(model, library=library) as bank, bank.use(bank.load("x@b")):
        banked = logits(model)

    assert [str(f) for f in library.verify("x@b").findings if f.severity == "error"] == [], build
    assert effect > 0.1
    assert float((found - expected).norm()) < 1e-6 * effect
    assert float((banked - expected).norm()) < 1e-6 * effect


@pytest.mark.parametrize("case", [c for c in CASES if c != "beside a full name"])
def test_a_merge_is_the_sum_and_a_comparison_names_the_same_parameters(case: str, tmp_path: Path) -> None:
    make, settings = CASES[case]
    first, second = (saved(tmp_path / str(seed), make, settings, seed) for seed in (1, 2))
    library = Library(tmp_path / "home")
    model = PeftModel.from_pretrained(fresh(make), first).eval()
    model.load_adapter(second, "second")
    for layer in model.modules():
        for name, weight in (("default", 0.7), ("second", -0.3)):
            if isinstance(layer, LoraLayer):
                layer.scaling[name] *= weight
    model.base_model.set_adapter(["default", "second"])
    expected = logits(model)

    library.merge([first, second], weights=[0.7, -0.3], output=tmp_path / "out")
    same = library.compare(first, first).pairs[0].cosine

    assert float((by_peft(make, tmp_path / "out") - expected).abs().max()) < 1e-5
    with adapterhub.attach(fresh(make), tmp_path / "out", library=library) as attached:
        assert float((logits(attached.model) - expected).abs().max()) < 1e-5
    assert same == pytest.approx(1)


def test_a_pair_on_a_module_that_is_a_target_is_on_its_weight() -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    read = AdapterConfig.parse(json.dumps(config | {"target_parameters": ["down_proj"]}).encode(), "")

    assert read.parameters_of("model.layers.0.self_attn.q_proj") == ()
    assert read.parameters_of("model.layers.0.mlp.experts") == ("model.layers.0.mlp.experts.down_proj",)
