"""Adapters trained after tokens were added, with the copies of embeddings that PEFT saves, on the base that has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import PhiConfig, PhiForCausalLM

import adapterhub
from adapterhub import AdapterBank, Library
from tests.support.peft_bases import DECODER, fresh, llama, logits, tied_llama

pytestmark = pytest.mark.filterwarnings("ignore")


def phi() -> nn.Module:
    model = PhiForCausalLM(PhiConfig(**DECODER | {"num_key_value_heads": 2}, num_hidden_layers=2, bos_token_id=None))
    nn.init.normal_(model.lm_head.bias)
    return model


SETTINGS: dict[str, dict[str, object]] = {
    "nothing of them trained": {},
    "both whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "the embedding whole": {"modules_to_save": ["embed_tokens"]},
    "rows": {"trainable_token_indices": [1, 33]},
    "factors on them": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
}


@pytest.mark.parametrize("make", [llama, tied_llama, phi])
@pytest.mark.parametrize("name", SETTINGS)
def test_what_peft_saves_attaches_to_the_base_with_the_tokens(make, name: str, tmp_path: Path) -> None:
    fresh(make).save_pretrained(tmp_path / "small")
    grown = type(fresh(make)).from_pretrained(tmp_path / "small")
    torch.manual_seed(5)
    grown.resize_token_embeddings(37)
    grown.save_pretrained(tmp_path / "grown")

    def base() -> nn.Module:
        return type(grown).from_pretrained(tmp_path / "grown").eval()

    grown = base()
    grown.name_or_path = grown.config._name_or_path = str(tmp_path / "small")
    model = get_peft_model(grown, LoraConfig(**{"r": 2, "target_modules": ["q_proj"]} | SETTINGS[name]))
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "small")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "a")
    written = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert any("embed_tokens" in key and len(tensor) == 37 for key, tensor in written.items())
    expected, before = logits(PeftModel.from_pretrained(base(), tmp_path / "a").eval()), logits(base())
    library = Library(tmp_path / "home")
    library.bases.add(tmp_path / "grown", alias="b")
    library.add(tmp_path / "a", name="x", base="b")

    with adapterhub.attach(again := base(), "x@b", library=library) as attached:
        assert float((logits(attached.model) - expected).abs().max()) < 1e-6
    with AdapterBank(again, library=library) as bank, bank.use(bank.load("x@b")):
        assert float((logits(again) - expected).abs().max()) < 1e-5
    assert float((expected - before).abs().max()) > 1e-3
