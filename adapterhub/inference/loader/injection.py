"""Injects adapters into a model: PEFT's layers, filled with the adapters' tensors.

PEFT builds the layers (empty, on the `meta` device); this module assigns the numbers, slot by slot. The slots come from
the layers that PEFT built, so only an adapter's own parameters can be assigned, and each slot takes exactly one tensor
of the right shape.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from adapterhub.core.errors import RefusedAdapter, UnsupportedAdapter, shown
from adapterhub.formats.peft.methods import ADALORA_MARGIN
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.inference.loader.base.model import BaseModel
from adapterhub.inference.loader.fitting import Fitting
from adapterhub.inference.loader.methods import Setup
from adapterhub.inference.loader.reading.contents import LISTED, AdapterContents
from adapterhub.inference.loader.replacing import replace_in

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadyAdapter:
    """An adapter that was checked against the base and can be put on it; `name` is its name in PEFT."""

    name: str
    contents: AdapterContents
    setup: Setup
    weight: float


def peft_names(labels: Sequence[str]) -> list[str]:
    """A name for each adapter that PEFT and torch accept: no dot, no `lora_`, no method name of a torch container."""
    names: list[str] = []
    for label in labels:
        stem = "adapter-" + (re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:64] or "0")
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names


def inject(base: BaseModel, adapters: Sequence[ReadyAdapter]) -> PeftModel:
    """The base with all `adapters` on it and active, as a `PeftModel`. The caller restores the base if this raises.

    Raises:
        UnsupportedAdapter: PEFT has no layer for a module, or none for these adapters together.
        BaseMismatch: tensors do not have the shapes of the base's modules.
        RefusedAdapter: tensors are missing, or have no slot in the layers.
    """
    # PEFT draws random numbers for layers that are filled right after; the user's generator must not advance.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the causes of PEFT's warnings are checked here
        model = _build(base, adapters)
        for adapter in adapters:
            _Filling(base, model, adapter).run()
            replace_in(base, adapter.contents)
        model.base_model.set_adapter([adapter.name for adapter in adapters])
        model.requires_grad_(requires_grad=False)
        _follow_modes(base, model)
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise RefusedAdapter("the adapter is incomplete", [("E_PAIR", f"no tensor for `{shown(name)}`")])
    return model


def set_scales(modules: Mapping[str, Any], adapter: ReadyAdapter) -> None:
    """Set the scale of the adapter's update, times its weight, in each of its layers. Replaces an earlier weight."""
    for name, scale in adapter.setup.scales.items():
        layer = modules[name]
        divisor = float(layer.ranknum[adapter.name]) + ADALORA_MARGIN if hasattr(layer, "ranknum") else 1.0
        layer.scaling[adapter.name] = scale.scaling * divisor * adapter.weight
        alphas = layer.lora_alpha if hasattr(layer, "lora_alpha") else layer.alpha
        alphas[adapter.name] = scale.alpha


def _build(base: BaseModel, adapters: Sequence[ReadyAdapter]) -> PeftModel:
    from peft import PeftModel

    model = None
    for adapter in adapters:
        try:
            # `PeftModel`, not the class for the task: that one changes the base (its generation hook, its head).
            if model is None:
                model = PeftModel(base.model, adapter.setup.config(), adapter.name, low_cpu_mem_usage=True)
            else:
                model.add_adapter(adapter.name, adapter.setup.config(), low_cpu_mem_usage=True)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UnsupportedAdapter(
                f"PEFT cannot attach `{shown(adapter.contents.label)}` to this model", [shown(str(error), 300)]
            ) from error
    assert model is not None  # there is an adapter
    return model


def _follow_modes(base: BaseModel, model: PeftModel) -> None:
    """Put each of PEFT's wrappers into the mode, training or evaluation, of the module that it wraps."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model.training = model.base_model.training = base.model.training
    for name, module in base.model.named_modules():
        original = base.modules.get(name)
        if original is None or original is module:
            continue
        if isinstance(module, BaseTunerLayer):
            module.train(original.training)
        else:
            module.training = original.training  # a copy keeps the modes inside it


class _Slot(NamedTuple):
    """A place for one tensor, a parameter or buffer of `holder`, with the shape, device and dtype that it takes."""

    holder: nn.Module
    key: str
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype


class _Filling:
    """Assigns one adapter's tensors to the layers that PEFT built for it."""

    def __init__(self, base: BaseModel, model: PeftModel, adapter: ReadyAdapter) -> None:
        self.base = base
        self.model = model
        self.adapter = adapter
        self.contents = adapter.contents
        self.tuner: nn.Module = model.base_model
        self.modules = dict(base.model.named_modules(remove_duplicate=False))
        self.fitting = Fitting(adapter.contents.label)

    def run(self) -> None:
        """Check everything, then assign."""
        self._ensure_same_layers()
        work = [*self._factors(), *self._saved(), *self._shared()]
        self.fitting.ensure_fit()
        for slot, spec in work:
            _assign(slot, self.contents.read(spec))
        set_scales(self.modules, self.adapter)

    def _ensure_same_layers(self) -> None:
        """Raise unless PEFT, which matches names by their end, wrapped exactly the modules that the file names."""
        from peft.utils import ModulesToSaveWrapper

        wrapped = {name for name, layer in self._layers() if _own_slots(layer, self.adapter.name)}
        saved = {
            name
            for name, module in self.modules.items()
            if isinstance(module, ModulesToSaveWrapper) and self.adapter.name in module.modules_to_save
        }
        odd = (wrapped ^ set(self.contents.factors)) | (saved ^ set(self.contents.saved))
        if odd:
            raise UnsupportedAdapter(
                f"PEFT wraps other modules than those of `{shown(self.contents.label)}`",
                [f"`{shown(name)}`" for name in sorted(odd)[:LISTED]],
            )

    def _layers(self) -> Iterator[tuple[str, BaseTunerLayer]]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return ((name, module) for name, module in self.modules.items() if isinstance(module, BaseTunerLayer))

    def _factors(self) -> Iterator[tuple[_Slot, TensorSpec]]:
        for name, specs in self.contents.factors.items():
            layer: Any = self.modules[name]
            parameter = self.contents.parameters.get(name)
            holder = name if parameter is None else parameter.rpartition(".")[0]
            assert layer.get_base_layer() is self.base.modules[holder]  # the module of the base itself, not a copy
            # PEFT names a pair on a parameter by the depth of its wrapper, which must be the expected one.
            assert parameter is None or layer.parameter_name == parameter.rpartition(".")[2]
            self._resize(layer, name)
            yield from self._matched(name, specs, _own_slots(layer, self.adapter.name))

    def _saved(self) -> Iterator[tuple[_Slot, TensorSpec]]:
        for name, specs in self.contents.saved.items():
            wrapper: Any = self.modules[name]
            copy: nn.Module = wrapper.modules_to_save[self.adapter.name]
            slots = {}
            for key, tensor in copy.state_dict(keep_vars=True).items():
                path, _, last = key.rpartition(".")
                slots[key] = _slot(copy.get_submodule(path), last, tensor)
            yield from self._matched(name, specs, slots)

    def _shared(self) -> Iterator[tuple[_Slot, TensorSpec]]:
        holders = {name: getattr(self.tuner, name) for name in self.contents.shared}
        slots = {name: _slot(holder, self.adapter.name, holder[self.adapter.name]) for name, holder in holders.items()}
        yield from self._matched("", self.contents.shared, slots)

    def _resize(self, layer: BaseTunerLayer, name: str) -> None:
        """Give a layer the rank of its tensors, where PEFT's config has one rank for all layers (AdaLoRA)."""
        rank, adapter = self.adapter.setup.ranks.get(name), self.adapter.name
        if rank is None:
            return
        place = next(layer.get_base_layer().parameters()).device
        for container, axis in ((layer.lora_A, 0), (layer.lora_E, 0), (layer.lora_B, 1)):
            shape = list(container[adapter].shape)
            shape[axis] = rank
            container[adapter] = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)
        layer.ranknum[adapter] = nn.Parameter(torch.tensor([float(rank)], device=place), requires_grad=False)
        layer.r[adapter] = rank

    def _matched(
        self, module: str, specs: Mapping[str, TensorSpec], slots: Mapping[str, _Slot]
    ) -> Iterator[tuple[_Slot, TensorSpec]]:
        """Every slot with its tensor; `fitting` notes those that do not match."""
        shapes = {key: slot.shape for key, slot in slots.items()}
        for key, spec in self.fitting.matched(module, specs, shapes).items():
            yield slots[key], spec


def _own_slots(layer: BaseTunerLayer, name: str) -> dict[str, _Slot]:
    """The parameters of adapter `name` on one layer, by their names in PEFT's files."""
    slots: dict[str, _Slot] = {}
    base = next(layer.get_base_layer().parameters())
    for attribute in dict.fromkeys((*layer.adapter_layer_names, "lora_magnitude_vector")):
        container = getattr(layer, attribute, None)
        if container is None or name not in container:
            continue
        item = container[name]
        if isinstance(item, nn.Module):
            for key, parameter in item.named_parameters():
                path, _, last = key.rpartition(".")
                slots[f"{attribute}.{key}"] = _slot(item.get_submodule(path), last, parameter, base)
        else:
            slots[attribute] = _slot(container, name, item, base)
    return slots


def _slot(holder: nn.Module, key: str, now: Tensor, base: Tensor | None = None) -> _Slot:
    """The slot of the tensor `now`. With `base`, an empty slot takes the base's device, and float32 as in PEFT."""
    device, dtype = now.device, now.dtype
    if base is not None:
        device, dtype = base.device, torch.float64 if base.dtype == torch.float64 else torch.float32
    return _Slot(holder=holder, key=key, shape=tuple(now.shape), device=device, dtype=dtype)


def _assign(slot: _Slot, tensor: Tensor) -> None:
    """Put `tensor` into the slot; the tensor that was there is replaced, never written to."""
    kept = tensor.to(device=slot.device, dtype=slot.dtype)
    if isinstance(slot.holder, nn.ParameterDict):
        slot.holder[slot.key] = nn.Parameter(kept, requires_grad=False)
    elif slot.key in slot.holder._parameters:  # noqa: SLF001 - no public way to ask
        setattr(slot.holder, slot.key, nn.Parameter(kept, requires_grad=False))
    else:
        slot.holder._buffers[slot.key] = kept  # noqa: SLF001 - keeps whether the buffer is saved
