"""Models, adapters and comparisons of the tests of `adapt fuse`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from adapterhub.library.library import Library
from adapterhub.weights.fuse import Fused, prepare
from tests.support.tiny_models import VOCABULARY, llama

SHIPPED = Path(__file__).resolve().parent.parent.parent / "adapterhub" / "cli" / "start" / "demo_run" / "adapters"
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
QV = ["q_proj", "v_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
Make = Callable[[], nn.Module]


def untied() -> nn.Module:
    return llama(tie_word_embeddings=False)


def tied() -> nn.Module:
    return llama(tie_word_embeddings=True)


def gpt_oss(inner: int = 48) -> nn.Module:
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=inner, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, eos_token_id=None,
        pad_token_id=0, layer_types=["full_attention"] * 2, tie_word_embeddings=False,
    )  # fmt: skip
    return GptOssForCausalLM(config).eval()


def gpt_oss_square() -> nn.Module:
    return gpt_oss(inner=32)


def mixtral() -> nn.Module:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, tie_word_embeddings=False,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


def t5() -> nn.Module:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config).eval()


def masked_bert() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=32,
    )  # fmt: skip
    return BertForMaskedLM(config).eval()


class Dimensions(nn.Module):
    """Convolutions over one and three dimensions, and one in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(2, 6, 3)
        self.space = nn.Conv3d(1, 4, (2, 3, 1), bias=False)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)

    def forward(self, ids: Tensor) -> Tensor:
        line = self.line(ids.float().reshape(1, 2, 12) / VOCABULARY)
        return self.grouped(self.space(line.reshape(1, 1, 3, 4, 5)).flatten(3))


def dimensions() -> nn.Module:
    torch.manual_seed(0)
    return Dimensions().eval()


def save_base(folder: Path, make: Make, dtype: torch.dtype | None = None, **options: Any) -> Path:
    model = make() if dtype is None else make().to(dtype)
    if isinstance(model, transformers.PreTrainedModel):
        model.save_pretrained(folder, **options)
    else:
        folder.mkdir(parents=True)
        save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def train(model: nn.Module, seed: int) -> None:
    """Random numbers for all that an adapter trains."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_own = any(part in name for part in ("lora_", "modules_to_save", "trainable_tokens"))
            if is_own or (parameter.requires_grad and name.endswith("bias")):
                noise = 0.3 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise + 1 if "magnitude" in name else noise)


def save_adapter(
    folder: Path, make: Make, *, seed: int = 1, changed: dict[str, object] | None = None, **lora: Any
) -> Path:
    model = get_peft_model(make(), LoraConfig(**{"r": 4, "lora_alpha": 6} | lora))
    train(model, seed)
    model.save_pretrained(folder)
    path = folder / "adapter_config.json"
    values = json.loads(path.read_text()) | {"base_model_name_or_path": "test/tiny", "auto_mapping": None}
    path.write_text(json.dumps(values | (changed or {})))
    return folder


def tensors_in(folder: Path) -> dict[str, Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def loaded(folder: Path, make: Make) -> nn.Module:
    model = make()
    if isinstance(model, transformers.PreTrainedModel):
        return type(model).from_pretrained(folder).eval()
    model.load_state_dict(tensors_in(folder))
    return model.eval()


def fuse(adapter: Any, out_folder: Path, **options: Any) -> Fused:
    """Add adapters to a base and write the sum into a new folder."""
    with prepare(adapter, out_folder, **options) as fusion:
        return fusion.write()


def fused_in(
    folder: Path, make: Make, *, dtype: str | None = None, base_dtype: torch.dtype | None = None, **lora: Any
) -> Fused:
    """A base of that model and an adapter with that config, fused into `folder / "out"`."""
    library = Library(folder / "home")
    library.bases.add(save_base(folder / "base", make, base_dtype), "base")
    adapter = save_adapter(folder / "adapter", make, **lora)
    return fuse(adapter, folder / "out", library=library, base="base", dtype=dtype)


def same_numbers(stored: Tensor, exact: Tensor) -> bool:
    """Whether numbers are the exact ones, rounded once, in the last bit but for what the order of a float64 sum does."""
    expected = exact.to(stored.dtype)
    if stored.element_size() == 2:
        return torch.equal(stored, expected)
    return torch.allclose(
        stored, expected, rtol=2 * torch.finfo(stored.dtype).eps, atol=1e-12
    )  # terms of some hundreds


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def large_base(folder: Path, dtype: torch.dtype, *, seed: int = 0) -> Path:
    """Matrices that are worked on in several pieces, the last of them short."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"layers.0.q_proj.weight": (700, 900), "layers.0.k_proj.weight": (901, 333), "norm.weight": (9,)}
    tensors = {n: (0.02 * torch.randn(s, generator=generator)).to(dtype) for n, s in shapes.items()}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
