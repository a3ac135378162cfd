"""The engine for LoRA: keeps the factors as views of the file; hooks on the base's own modules add them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn

from adapterhub.core.errors import UnsupportedAdapter, shown
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.inference.bank.engine import LoadedAdapter
from adapterhub.inference.bank.engines.weights import FileMemory
from adapterhub.inference.bank.updates import (
    ConvUpdate,
    EmbeddingUpdate,
    LinearUpdate,
    MagnitudeUpdate,
    Replacement,
    Update,
    copy_with,
)
from adapterhub.inference.loader.base.model import BaseModel
from adapterhub.inference.loader.fitting import Fitting
from adapterhub.inference.loader.injection import ReadyAdapter
from adapterhub.inference.loader.methods import Scale
from adapterhub.inference.loader.reading.contents import LISTED
from adapterhub.weights.dtypes import TENSOR_DTYPES

_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_READ_WITHOUT_A_CALL: Final = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Layers of torch that read the weights of the modules inside them without calling these modules."""


class NativeEngine:
    """LoRA and its variants on linear layers, GPT-2's transposed ones, convolutions and embeddings.

    `dtype` is the dtype of the factors in memory; None means that of the file, or of the base's layer if it is wider.
    """

    name = "native"

    def __init__(self, base: BaseModel, dtype: torch.dtype | None) -> None:
        from transformers.pytorch_utils import Conv1D

        self._base = base
        self._dtype = dtype
        self._transposed: type[nn.Module] = Conv1D
        self._names = Counter(id(module) for module in base.modules.values())
        self._unreachable = tuple(f"{name}." for name, m in base.modules.items() if isinstance(m, _READ_WITHOUT_A_CALL))

    def reasons_against(self, ready: ReadyAdapter) -> tuple[str, ...]:
        """Why the adapter needs PEFT's layers.

        Raises:
            UnsupportedAdapter: torch reads the weights of a layer without calling it, so no engine can add to it.
        """
        config = ready.contents.config
        if not config.is_lora:
            return (f"{config.peft_type} is not LoRA",)
        if ready.contents.parameters:
            single = sorted(ready.contents.parameters.values())
            return tuple(f"`{shown(name)}` is a parameter, not a module" for name in single[:LISTED])
        if ready.contents.biases or ready.contents.rows:
            replaced = [*ready.contents.biases, *ready.contents.rows]
            return tuple(f"`{shown(name)}` is replaced in part or is a bias" for name in replaced[:LISTED])
        unreachable = [name for name in ready.contents.factors if name.startswith(self._unreachable)]
        if unreachable:
            raise UnsupportedAdapter(
                f"`{shown(ready.contents.label)}` would have no effect on some of its modules",
                [f"torch reads the weight of `{shown(name)}` and never calls it" for name in unreachable[:LISTED]],
            )
        reasons = [
            f"`{shown(name)}` has several names in the model"
            for name in (*ready.contents.factors, *ready.contents.saved)
            if self._names[id(self._base.modules[name])] > 1
        ]
        for name in ready.contents.factors:
            reason = self._reason_against(self._base.modules[name], ready)
            if reason:
                reasons.append(f"`{shown(name)}` {reason}")
        return tuple(reasons[:LISTED])

    def load(self, ready: ReadyAdapter) -> LoadedAdapter:
        """The adapter's factors in memory.

        Raises:
            BaseMismatch: tensors do not have the shapes of the base's modules.
            RefusedAdapter: tensors are missing, or have no slot in the layers.
            DigestMismatch: the file has changed since it was checked.
        """
        contents, modules, scales = ready.contents, self._base.modules, ready.setup.scales
        fitting, config = Fitting(contents.label), contents.config
        places = {
            name: fitting.matched(name, specs, _shapes(modules[name], scales[name].rank, config))
            for name, specs in contents.factors.items()
        }
        saved = {name: fitting.matched(name, specs, self._saved(name)) for name, specs in contents.saved.items()}
        fitting.ensure_fit()
        used = [spec for specs in (*places.values(), *saved.values()) for spec in specs.values()]
        memory = FileMemory(contents.weights, used, contents.label)
        updates: dict[str, Update] = {}
        take, chosen = memory.take, self._dtype
        for name, specs in places.items():
            module = modules[name]
            layer, device = _layer(module)
            if len(specs) == 2 and device is None and isinstance(module, nn.Linear):  # noqa: PLR2004 - A and B alone
                a, b = specs["lora_A.weight"], specs["lora_B.weight"]
                view = memory.later(a, b, chosen or _kept(a.dtype, layer))
                if view is not None:
                    updates[name] = LinearUpdate.later(view, a, b, scales[name].scaling)
                    continue
            tensors = {key: take(spec, chosen or _kept(spec.dtype, layer), device) for key, spec in specs.items()}
            updates[name] = self._update(module, tensors, scales[name])
        for name, specs in saved.items():
            own = modules[name].state_dict(keep_vars=True)
            numbers = {key: take(spec, own[key].dtype, _device(own[key])) for key, spec in specs.items()}
            updates[name] = Replacement(module=copy_with(modules[name], numbers))
        return LoadedAdapter(
            label=contents.label,
            engine=self.name,
            updates=updates,
            size_bytes=memory.size_bytes,
            is_additive=ready.contents.config.adds,
            memory=memory.reference,
        )

    # ------------------------------------------------------------ modules and their shapes
    def _reason_against(self, module: nn.Module, ready: ReadyAdapter) -> str:
        config = ready.contents.config
        is_linear = isinstance(module, (nn.Linear, self._transposed))
        if not is_linear and not isinstance(module, (nn.Embedding, *_CONVOLUTIONS)):
            return f"is a {type(module).__name__}"
        if config.use_dora and (not is_linear or config.lora_bias or not _weight(module).is_floating_point()):
            return f"has DoRA on a {type(module).__name__}" + (" with a bias of B" if config.lora_bias else "")
        if isinstance(module, nn.Embedding):
            scale = getattr(module, "embed_scale", 1.0)
            if module.max_norm is not None:
                return "is an embedding that rescales its own weights on use (max_norm)"
            if config.lora_bias or (isinstance(scale, Tensor) and scale.numel() != 1):
                return "is an embedding with a bias of B, or a scale for each entry"
        if isinstance(module, _CONVOLUTIONS) and any(size != 1 for size in module.dilation):
            return "is a convolution with gaps (dilation)"
        return ""

    def _saved(self, name: str) -> dict[str, tuple[int, ...]]:
        state = self._base.modules[name].state_dict(keep_vars=True)
        return {key: tuple(tensor.shape) for key, tensor in state.items()}

    # ------------------------------------------------------------ updates
    def _update(self, module: nn.Module, tensors: Mapping[str, Tensor], scale: Scale) -> Update:
        if isinstance(module, nn.Embedding):
            own = float(getattr(module, "embed_scale", 1.0))
            a, b = tensors["lora_embedding_A"], tensors["lora_embedding_B"]
            return EmbeddingUpdate(a=a, b=b, scale=scale.scaling * own)
        a, b, bias = tensors["lora_A.weight"], tensors["lora_B.weight"], tensors.get("lora_B.bias")
        if isinstance(module, _CONVOLUTIONS):
            return ConvUpdate(
                a=a,
                b=b,
                scale=scale.scaling,
                bias=bias,
                stride=module.stride,
                padding=module.padding,
                groups=module.groups,
            )
        magnitude = tensors.get("lora_magnitude_vector.weight")
        if magnitude is None:
            return LinearUpdate(a=a, b=b, scale=scale.scaling, bias=bias)
        weight = _weight(module).detach()
        plain = weight.t() if isinstance(module, self._transposed) else weight
        # An [out, in] matrix, but of one module at a time.
        norms = torch.linalg.vector_norm(plain.to(a.dtype) + scale.scaling * (b @ a), dim=1)
        base_bias: Any = module.bias
        return MagnitudeUpdate(a=a, b=b, scale=scale.scaling, magnitude=magnitude / norms, base_bias=base_bias)


def _shapes(module: nn.Module, rank: int, config: AdapterConfig) -> Mapping[str, tuple[int, ...]]:
    """The shapes that the module's factors must have, by PEFT's names for them."""
    if isinstance(module, nn.Embedding):
        return {
            "lora_embedding_A": (rank, module.num_embeddings),
            "lora_embedding_B": (module.embedding_dim, rank),
        }
    if not isinstance(module, _CONVOLUTIONS):
        into, out = _features(module)
        return _pair_and_vectors((rank, into), (out, rank), has_bias=config.lora_bias, has_magnitude=config.use_dora)
    ones = (1,) * len(module.kernel_size)
    a, b = (rank, module.in_channels, *module.kernel_size), (module.out_channels, rank // module.groups, *ones)
    return _pair_and_vectors(a, b, has_bias=config.lora_bias, has_magnitude=config.use_dora)


@lru_cache(maxsize=256)
def _pair_and_vectors(
    a: tuple[int, ...], b: tuple[int, ...], *, has_bias: bool, has_magnitude: bool
) -> Mapping[str, tuple[int, ...]]:
    shapes = {"lora_A.weight": a, "lora_B.weight": b}
    if has_bias:
        shapes["lora_B.bias"] = b[:1]
    if has_magnitude:
        shapes["lora_magnitude_vector.weight"] = b[:1]
    return MappingProxyType(shapes)


@cache
def _kept(stored: str, layer: torch.dtype) -> torch.dtype:
    """The dtype of factors in memory, from their own in the file and that of the layer."""
    own = TENSOR_DTYPES.get(stored, layer)
    return torch.promote_types(own, layer) if own.is_floating_point and own.itemsize > 1 else layer


def _layer(module: nn.Module) -> tuple[torch.dtype, torch.device | None]:
    """The dtype of a layer's numbers, or the one in which it unpacks them, and its device; None is the CPU."""
    weight = _weight(module)
    if weight.is_floating_point():
        return weight.dtype, _device(weight)
    return getattr(module, "compute_dtype", None) or torch.float32, _device(weight)


def _device(tensor: Tensor) -> torch.device | None:
    return None if tensor.is_cpu else tensor.device


def _weight(module: nn.Module) -> Tensor:
    weight: object = module._parameters.get("weight")  # noqa: SLF001 - a third of the time of the attribute
    if weight is None:
        weight = module.weight
    assert isinstance(weight, Tensor)  # every supported kind of layer has one
    return weight


def _features(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer, with a transposed or a quantised weight, too."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    into, out = _weight(module).shape
    return into, out
