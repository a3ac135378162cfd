"""Small models with random weights, and adapters for them as PEFT saves them. Made in milliseconds; needs torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

VOCABULARY = 64
IDS = torch.arange(24).reshape(2, 12) % VOCABULARY

_FACTORS = ("lora_", "hada_", "lokr_", "ia3_", "vera_lambda_", "modules_to_save")


def llama(seed: int = 0, **config: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    values = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": None,
    } | config  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**values)).eval()


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=32, n_layer=2, n_head=4, eos_token_id=None)
    return GPT2LMHeadModel(config).eval()


def bert(seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, num_labels=3,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


class ConvNet(nn.Module):
    """Convolutions of both sizes that PEFT tells apart, and a linear layer, on token numbers seen as a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(2, 8, 3, padding=1)
        self.narrow = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6 * 12, 5)

    def forward(self, ids: Tensor) -> Tensor:
        picture = ids.float().reshape(1, 2, 3, 4) / VOCABULARY
        return self.head(self.narrow(torch.relu(self.wide(picture))).flatten(1))


def convnet(seed: int = 0) -> ConvNet:
    torch.manual_seed(seed)
    return ConvNet().eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        out = model(IDS)
    return out if isinstance(out, Tensor) else out.logits


def randomise(model: nn.Module, seed: int) -> None:
    """Give every adapter parameter numbers that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in _FACTORS):
                centre = 1.0 if "ia3_" in name or "magnitude" in name else 0.0
                parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=generator))


def save_adapter(
    folder: Path, make_base: Callable[[], nn.Module], config: PeftConfig, *, seed: int = 1, **changed: Any
) -> Path:
    """A folder as PEFT writes it, its parameters random; `changed` are settings to write into its config."""
    model = get_peft_model(make_base(), config)
    randomise(model, seed)
    model.save_pretrained(folder)
    path = folder / "adapter_config.json"
    # `auto_mapping` would name this very file for the models that are of no library.
    values = json.loads(path.read_text()) | {"base_model_name_or_path": "test/tiny", "auto_mapping": None} | changed
    path.write_text(json.dumps(values))
    return folder


def plain_peft(make_base: Callable[[], nn.Module], folder: Path) -> nn.Module:
    return PeftModel.from_pretrained(make_base(), folder).eval()
