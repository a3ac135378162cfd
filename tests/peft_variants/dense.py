"""Weighted sums of adapters, computed by PEFT into dense weights: what a merge has to equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn


def summed(
    make: Callable[[], nn.Module], folders: Sequence[Path], weights: Sequence[float], config: Mapping[str, Any]
) -> nn.Module:
    """A base with the weighted updates of the adapters in it; what they replace whole is that of the last one.

    PEFT writes no LoRA into weights that acts on some tokens only (aLoRA), on layers used twice, or on convolutions with
    groups: it runs such an adapter with a scale.
    """
    indices = config.get("trainable_token_indices")
    is_run = (
        config.get("alora_invocation_tokens")
        or config.get("layer_replication")
        or (isinstance(indices, dict) and len(indices) > 1)  # rows of a head, which may be tied to the embedding
        or (config["peft_type"] == "LORA" and _has_groups(make()))
    )
    if is_run:
        return _scaled(make, folders, weights)
    total = make()
    state = {name: tensor.double() for name, tensor in total.state_dict().items()}
    plain = {name: tensor.clone() for name, tensor in state.items()}
    for folder, weight in zip(folders, weights, strict=True):
        model = PeftModel.from_pretrained(make(), folder).eval()
        adapted = _updated(model)
        merged = model.merge_and_unload().state_dict()
        for name, tensor in merged.items():
            change = tensor.double() - plain[name]
            if name in adapted:
                state[name] += weight * change
            elif bool(change.any()):
                state[name] = tensor.double()
    total.load_state_dict({name: tensor.to(total.state_dict()[name].dtype) for name, tensor in state.items()})
    return total.eval()


def _updated(model: PeftModel) -> set[str]:
    """The tensors of the base that get a weighted update."""
    names = set()
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, BaseTunerLayer) and not isinstance(layer, TrainableTokensLayer):
            plain = name.replace(".base_layer", "")
            own = [key for key, _ in layer.get_base_layer().named_parameters() if key != "bias"]
            has_bias = getattr(layer, "lora_bias", {}).get("default")
            names |= {f"{plain}.{key}" for key in (*own, *(["bias"] if has_bias else []))}
    return names


def _has_groups(model: nn.Module) -> bool:
    """Whether the model has a convolution with groups."""
    return any(getattr(module, "groups", 1) > 1 for module in model.modules())


def _scaled(make: Callable[[], nn.Module], folders: Sequence[Path], weights: Sequence[float]) -> nn.Module:
    model = PeftModel.from_pretrained(make(), folders[0], adapter_name="0").eval()
    names = [str(number) for number in range(len(folders))]
    for name, folder in zip(names[1:], folders[1:], strict=True):
        config = PeftConfig.from_pretrained(folder)
        config.layer_replication = None  # the first adapter has repeated the layers
        config.trainable_token_indices = None  # both have the same rows, and PEFT takes them from one adapter only
        model.add_adapter(name, config)
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"), name)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                for name, weight in zip(names, weights, strict=True):
                    layer.set_scale(name, weight)
    model.base_model.set_adapter(names)
    return model.eval()
