"""Putting adapters on a model with PEFT's layers, and their tensors into those layers.

PEFT builds the layers (empty, on the `meta` device); the numbers are assigned here, slot by slot. The slots are read
off the layers that PEFT made, so nothing but an adapter's own parameters can be assigned, and every slot must be filled
by exactly one tensor of the right shape.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adapterhub.core.errors import RefusedAdapter, UnsupportedAdapter, shown
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.inference.loader.base.model import BaseModel
from adapterhub.inference.loader.fitting import Fitting
from adapterhub.inference.loader.methods import Setup
from adapterhub.inference.loader.reading.contents import LISTED, AdapterContents


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ready:
    """An adapter that was checked against the base; `name` is what PEFT knows it by."""

    name: str
    contents: AdapterContents
    setup: Setup
    weight: float


def peft_names(labels: Sequence[str]) -> list[str]:
    """A name for each adapter that PEFT and torch accept: no dot, no `lora_`, no method of a torch container."""
    names: list[str] = []
    for label in labels:
        stem = "adapter-" + (re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:64] or "0")
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names


def inject(base: BaseModel, adapters: Sequence[Ready]) -> Any:  # noqa: ANN401 - a PeftModel, which has no types
    """The base with all `adapters` on it and active, as a `PeftModel`. The caller undoes it when this raises.

    Raises:
        UnsupportedAdapter: PEFT has no layer for a module, or none for these adapters together.
        BaseMismatch: tensors that do not have the shape of the base's modules.
        RefusedAdapter: tensors that are missing, or have no place in the layers.
    """
    # PEFT draws random numbers for layers that are filled right after; the user's generator stays where it was.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT warns of is checked here
        model = _build(base, adapters)
        for adapter in adapters:
            _Filling(base, model, adapter).run()
        model.base_model.set_adapter([adapter.name for adapter in adapters])
        model.requires_grad_(requires_grad=False)
        _follow_modes(base, model)
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise RefusedAdapter("the adapter is incomplete", [("E_PAIR", f"nothing fills `{shown(name)}`")])
    return model


def set_scales(modules: Mapping[str, Any], adapter: Ready) -> None:
    """Multiply the adapter's update by its weight, in each of its layers, found by name; may be done again."""
    for name, scale in adapter.setup.scales.items():
        layer = modules[name]
        layer.scaling[adapter.name] = scale.scaling * adapter.weight
        alphas = layer.lora_alpha if hasattr(layer, "lora_alpha") else layer.alpha
        alphas[adapter.name] = scale.alpha


def _build(base: BaseModel, adapters: Sequence[Ready]) -> Any:  # noqa: ANN401 - a PeftModel
    from peft import PeftModel

    model = None
    for adapter in adapters:
        try:
            # `PeftModel` and not its class for the task, which would change the base (its generation hook, its head).
            if model is None:
                model = PeftModel(base.model, adapter.setup.config, adapter.name, low_cpu_mem_usage=True)
            else:
                model.add_adapter(adapter.name, adapter.setup.config, low_cpu_mem_usage=True)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UnsupportedAdapter(
                f"PEFT cannot put `{shown(adapter.contents.label)}` on this model", [shown(str(error), 300)]
            ) from error
    assert model is not None  # there is an adapter
    return model


def _follow_modes(base: BaseModel, model: Any) -> None:  # noqa: ANN401 - a PeftModel
    """Put what PEFT made into the mode, training or evaluation, of what it wraps."""
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
    """A place for one tensor, a parameter or buffer of `holder`; shape, device and dtype that it takes."""

    holder: nn.Module
    key: str
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype


class _Filling:
    """Brings one adapter's tensors into the layers that PEFT made for it."""

    def __init__(self, base: BaseModel, model: Any, adapter: Ready) -> None:  # noqa: ANN401 - a PeftModel
        self.base = base
        self.model = model
        self.adapter = adapter
        self.contents = adapter.contents
        self.tuner: nn.Module = model.base_model
        self.modules = dict(base.model.named_modules(remove_duplicate=False))
        self.fitting = Fitting(adapter.contents.label)

    def run(self) -> None:
        """Check everything, then assign."""
        self._refuse_other_layers()
        work = [*self._factors(), *self._saved(), *self._shared()]
        self.fitting.ensure_fit()
        for slot, spec in work:
            _assign(slot, self.contents.read(spec))
        set_scales(self.modules, self.adapter)

    def _refuse_other_layers(self) -> None:
        """PEFT matches names by their end; make sure that it wrapped what the file names and nothing else."""
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
                f"PEFT takes other modules than `{shown(self.contents.label)}` is for",
                [f"`{shown(name)}`" for name in sorted(odd)[:LISTED]],
            )

    def _layers(self) -> Iterator[tuple[str, Any]]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return ((name, module) for name, module in self.modules.items() if isinstance(module, BaseTunerLayer))

    def _factors(self) -> Iterator[tuple[_Slot, TensorSpec]]:
        for name, specs in self.contents.factors.items():
            layer: Any = self.modules[name]
            parameter = self.contents.parameters.get(name)
            holder = name if parameter is None else parameter.rpartition(".")[0]
            assert layer.get_base_layer() is self.base.modules[holder]  # the very module of the base, not a copy
            # PEFT names a pair on a parameter by how deep its wrapper lies, which must be the one we take it for
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

    def _resize(self, layer: Any, name: str) -> None:  # noqa: ANN401 - a layer of PEFT
        """Give a layer the rank that its tensors have, where PEFT's config has one rank for all (AdaLoRA)."""
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
        """Every slot with its tensor; what does not match is noted."""
        shapes = {key: slot.shape for key, slot in slots.items()}
        for key, spec in self.fitting.matched(module, specs, shapes).items():
            yield slots[key], spec


def _own_slots(layer: Any, name: str) -> dict[str, _Slot]:  # noqa: ANN401 - a layer of PEFT
    """The parameters of adapter `name` on one layer, by what PEFT calls them in a file."""
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
    """The slot of the tensor `now`. An empty one takes the device of its base weight, and float32 as PEFT has it."""
    device, dtype = now.device, now.dtype
    if base is not None:
        device, dtype = base.device, torch.float64 if base.dtype == torch.float64 else torch.float32
    return _Slot(holder=holder, key=key, shape=tuple(now.shape), device=device, dtype=dtype)


def _assign(slot: _Slot, tensor: Tensor) -> None:
    """Put `tensor` in the slot's place; what was there before is left as it is, never written to."""
    kept = tensor.to(device=slot.device, dtype=slot.dtype)
    if isinstance(slot.holder, nn.ParameterDict):
        slot.holder[slot.key] = nn.Parameter(kept, requires_grad=False)
    elif slot.key in slot.holder._parameters:  # noqa: SLF001 - no public way to ask
        setattr(slot.holder, slot.key, nn.Parameter(kept, requires_grad=False))
    else:
        slot.holder._buffers[slot.key] = kept  # noqa: SLF001 - keeps whether the buffer is saved
