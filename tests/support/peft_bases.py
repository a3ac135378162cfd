"""Tiny bases for PEFT, adapters on them as PEFT saves them, and what an adapter does to its base once PEFT loads it."""

from __future__ import annotations

import importlib
import json
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

Base = Callable[[], nn.Module]


def import_build_tools() -> None:
    """Import what PEFT imports for BOFT, which `setuptools` refuses once a process has looked for pip, as a test may."""
    hack = sys.modules.get("_distutils_hack")
    if hack is not None:
        vars(hack.DISTUTILS_FINDER).pop("spec_for_distutils", None)  # what the look for pip left
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a `distutils` that was imported
        importlib.import_module("torch.utils.cpp_extension")


DECODER = {
    "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 32,
    "max_position_embeddings": 16, "tie_word_embeddings": False, "eos_token_id": None,
}  # fmt: skip


def llama(layers: int = 3, **config: object) -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**DECODER | {"num_hidden_layers": layers} | config))


def llama_with_biases() -> nn.Module:
    model = llama(2, attention_bias=True, mlp_bias=True)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            nn.init.normal_(parameter)
    return model


def tied_llama() -> nn.Module:
    return llama(2, tie_word_embeddings=True)


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_positions=16))


def bert() -> nn.Module:
    config = BertConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=32, num_labels=3
    )
    return BertForSequenceClassification(config)


EXPERTS = 3


def mixtral() -> nn.Module:
    return _float64(MixtralForCausalLM(MixtralConfig(num_local_experts=EXPERTS, num_hidden_layers=2, **DECODER)))


def qwen3_moe() -> nn.Module:
    special = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "head_dim": 8}
    return _float64(Qwen3MoeForCausalLM(Qwen3MoeConfig(num_hidden_layers=2, **special, **DECODER)))


def gpt_oss() -> nn.Module:
    """Its experts lie the other way round: [experts, in, out]."""
    special = {"num_local_experts": EXPERTS, "num_experts_per_tok": 2, "head_dim": 8}
    return _float64(GptOssForCausalLM(GptOssConfig(num_hidden_layers=2, **special, **DECODER)))


def _float64(model: nn.Module) -> nn.Module:
    """The model, with experts that run in float64 as well."""
    model.set_experts_implementation("eager")
    return model


class Pixels(nn.Module):
    """Convolutions, as no small text model has them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 5, (2, 1))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(input_ids.float()[:, None, :, None].expand(-1, -1, -1, 8))))


class AllKinds(nn.Module):
    """One of each kind of layer that PEFT puts low-rank pairs on; never run as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 12)
        self.embed = nn.Embedding(14, 8)
        self.conv1 = nn.Conv1d(4, 6, 3)
        self.conv2 = nn.Conv2d(4, 6, (3, 2))
        self.conv3 = nn.Conv3d(3, 5, (2, 1, 2))
        self.point = nn.Conv2d(6, 5, 1)
        self.grouped = nn.Conv2d(4, 6, 3, groups=2)
        self.inner = nn.ModuleDict({"linear": nn.Linear(9, 7, bias=False)})


ALL_KINDS = ["linear", "embed", "conv1", "conv2", "conv3", "point", "grouped"]


class Attention(nn.Module):
    """A layer made of layers: PEFT puts a pair on its input projection and one on its output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = torch.sin(input_ids[..., None] * torch.arange(1, 9)).to(self.attn.in_proj_weight.dtype)
        return self.attn(hidden, hidden, hidden)[0]


def fresh(base: Base) -> nn.Module:
    torch.manual_seed(0)
    return base().eval()


_TRAINED = ("lora_", "modules_to_save", "trainable_tokens_delta")


def save(folder: Path, base: Base, options: Mapping[str, object], *, seed: int = 0, **saving: object) -> Path:
    """An adapter with random numbers in all that it trains, as PEFT saves it."""
    model = get_peft_model(fresh(base), LoraConfig(**{"lora_alpha": 6, **options}))
    generator = torch.Generator().manual_seed(100 + seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            trains_bias = options.get("bias", "none") != "none" and name.endswith(".bias") and parameter.requires_grad
            if "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))
            elif trains_bias or any(part in name for part in _TRAINED):
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder, **saving)
    return folder


def save_several(root: Path, base: Base, adapters: Sequence[Mapping[str, object]], **saving: object) -> list[Path]:
    return [save(root / f"adapter{i}", base, options, seed=i, **saving) for i, options in enumerate(adapters)]


def attached(base: Base, folder: Path, name: str = "one") -> PeftModel:
    """The adapter on a fresh base, in float64; fails on any key that PEFT misses or does not know."""
    config = LoraConfig.from_pretrained(folder)
    model = get_peft_model(fresh(base), config, adapter_name=name)
    result = model.load_adapter(folder, name)
    assert list(result.missing_keys) == []
    assert list(result.unexpected_keys) == []
    return model.double().eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        out = model(input_ids=torch.arange(12).reshape(2, 6) + 1)
    return (out if isinstance(out, Tensor) else out.logits).double()


def effects(model: PeftModel, name: str = "one") -> dict[str, Tensor]:
    """What the adapter adds at every layer: to the output for one input, or to the parameter where it is on one.

    Layers run here as PEFT runs them, so this holds for a bias of B and for groups as well.
    """
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for module, layer in model.base_model.model.named_modules():
            if not isinstance(layer, LoraLayer) or name not in layer.scaling:
                continue
            base = layer.get_base_layer()
            if isinstance(layer, ParamWrapper) or isinstance(base, nn.MultiheadAttention):
                found[module] = layer.get_delta_weight(name)
            else:
                found[module] = layer(_given(layer)) - base(_given(layer))
    return found


def _given(layer: LoraLayer) -> Tensor:
    """An input for a layer, the same one every time."""
    generator, base = torch.Generator().manual_seed(5), layer.get_base_layer()
    if isinstance(base, nn.Embedding):
        return torch.arange(base.num_embeddings)
    if isinstance(base, nn.modules.conv._ConvNd):
        sizes = [5] * (base.weight.ndim - 2)
        return torch.randn(2, base.in_channels, *sizes, generator=generator).double()
    return torch.randn(7, layer.in_features, generator=generator).double()


def weighted(all_effects: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The sum of several adapters' effects; a layer that one of them lacks counts as zero."""
    total: dict[str, Tensor] = {}
    for found, weight in zip(all_effects, weights, strict=True):
        for module, effect in found.items():
            total[module] = total.get(module, torch.zeros_like(effect)) + weight * effect
    return total


def apart(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """The largest relative difference over all layers."""
    assert left.keys() == right.keys()
    return max(float((left[m] - right[m]).norm() / right[m].norm()) for m in right)


def effects_said(model: PeftModel, folder: Path) -> dict[str, Tensor]:
    """What `effects` must find for the adapter in `folder`, from the numbers in its files and the layers of the base.

    Read in the plain and slow way, with nothing of the package under test; of `model` only the layers' kinds count.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = {n: t.double() for n, t in load_file(folder / "adapter_model.safetensors").items()}
    found: dict[str, Tensor] = {}
    for module, layer in model.base_model.model.named_modules():
        pair = [tensors.get(f"base_model.model.{module}.lora_{side}.weight") for side in "AB"]
        if pair[0] is None:
            pair = [tensors.get(f"base_model.model.{module}.lora_embedding_{side}") for side in "AB"]
        if pair[0] is None:
            continue
        a, b = pair
        key = module.partition(".base_layer")[0]
        key += f".{layer.parameter_name}" if isinstance(layer, ParamWrapper) else ""
        rank = _by_pattern(config, "rank_pattern", key, config["r"])
        scale = _by_pattern(config, "alpha_pattern", key, config["lora_alpha"])
        scale /= rank**0.5 if config.get("use_rslora") else rank
        base = layer.get_base_layer()
        if isinstance(layer, ParamWrapper):
            updates = [b[:, e :: layer.num_experts] @ a[e * rank : (e + 1) * rank] for e in range(layer.num_experts)]
            update = scale * torch.stack(updates)
            if layer.num_experts == 1:
                update = update[0]
            found[module] = update if layer._did_swap_in_out_features or update.ndim == 2 else update.mT
        elif isinstance(base, nn.Embedding):
            found[module] = scale * (b @ a).T
        elif isinstance(base, nn.modules.conv._ConvNd):
            groups = zip(a.flatten(1).chunk(base.groups), b.flatten(1).chunk(base.groups), strict=True)
            kernel = torch.cat([right @ left for left, right in groups]).reshape(b.shape[0], *a.shape[1:])
            convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[base.weight.ndim - 3]
            found[module] = scale * convolve(_given(layer), kernel, padding=base.padding, stride=base.stride)
        else:
            found[module] = scale * _given(layer) @ (b @ a).T
        bias = tensors.get(f"base_model.model.{module}.lora_B.bias")
        if bias is not None:
            found[module] += scale * bias.reshape(-1, *[1] * (found[module].ndim - 2))
    return found


def _by_pattern(config: Mapping[str, object], kind: str, module: str, default: float) -> float:
    patterns = config.get(kind) or {}
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)
