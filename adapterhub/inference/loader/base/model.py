"""The base before anything is attached: finds its modules by name, hashes it, and restores it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from torch import Tensor, nn

from adapterhub.core.digests import Digest, canonical_json, digest_of
from adapterhub.core.errors import CouldNotTell, UsageProblem, shown
from adapterhub.inference.loader.base.quantised import hold_layout, scales_of

_PEFT_MARKS: Final = ("peft_config",)
"""Attributes that PEFT leaves behind on the outermost module."""


class NamedTensor(NamedTuple):
    """A parameter or buffer of the base; `is_kept`: a weight file of the base would hold it."""

    name: str
    tensor: Tensor
    is_kept: bool


class BaseModel:
    """A model and a record of its modules, which tells later wrappers apart from them.

    Holds references and copies nothing. `modules` maps every name of a module to the module. Layers of bitsandbytes
    keep the layout of their quantised weights from now on (see `hold_layout`).

    Raises:
        UsageProblem: the argument is not a model, or has an adapter already.
        CouldNotTell: some of its parameters are not in memory.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise UsageProblem(
                f"{shown(model)} is not a model in memory, expected a torch module",
                hint="load it first: AutoModelForCausalLM.from_pretrained(…)",
            )
        self.model = model
        self.modules = dict(model.named_modules(remove_duplicate=False))
        _ensure_bare(model, self.modules)
        hold_layout(self.modules.values())
        self._children = {name: dict(module._modules) for name, module in self.modules.items()}
        self._parameters = {name: tuple(module._parameters) for name, module in self.modules.items()}
        self._gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._replaced: dict[tuple[int, str], tuple[nn.Module, nn.Parameter]] = {}
        self._marks = {name: name in vars(model) for name in _PEFT_MARKS}
        self._tensor_parallelism = getattr(getattr(model, "config", None), "pretraining_tp", None)
        self._hooks = {id(module): set(module._forward_hooks) for module in self.modules.values()}
        absent = [parameter for parameter, _ in self._gradients if parameter.is_meta]
        if absent:
            raise CouldNotTell(
                f"{len(absent)} parameters of the model are not in memory (device `meta`)",
                hint="load the model without offloading to disk",
            )

    @property
    def embeddings(self) -> frozenset[str]:
        """The names of the input and output embeddings."""
        found = set()
        for getter in ("get_input_embeddings", "get_output_embeddings"):
            try:
                found.add(id(getattr(self.model, getter)()))
            except (AttributeError, NotImplementedError):  # a plain module, or a model without one
                continue
        return frozenset(name for name, module in self.modules.items() if id(module) in found)

    def tensors(self) -> Iterator[NamedTensor]:
        """Every parameter and buffer of the recorded modules; a tied one comes under each of its names.

        The scales of quantised weights count as buffers that no weight file of the base holds.
        """
        for name, module in self.modules.items():
            prefix = f"{name}." if name else ""
            for key, parameter in module._parameters.items():  # `named_parameters` would look into wrappers
                if parameter is not None:
                    own = self._replaced.get((id(module), key))
                    yield NamedTensor(prefix + key, own[1] if own else parameter, is_kept=True)
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    is_kept = key not in module._non_persistent_buffers_set
                    yield NamedTensor(prefix + key, buffer, is_kept=is_kept)
            for key, scales in scales_of(module):
                yield NamedTensor(prefix + key, scales, is_kept=False)

    def digest(self) -> Digest:
        """Digest over name, dtype, shape and bytes of every parameter and buffer; reads them all.

        Ignores wrappers, so it is the same before, during and after an attach.
        """
        seen: dict[tuple[int, tuple[int, ...]], str] = {}
        listed = []
        for name, tensor, _ in self.tensors():
            place = (tensor.data_ptr(), tuple(tensor.shape))
            if place not in seen or not tensor.numel():
                seen[place] = _sha256_of(tensor)
            listed.append([name, str(tensor.dtype), list(tensor.shape), seen[place]])
        return digest_of(canonical_json(sorted(listed, key=lambda item: str(item[0]))))

    def replace(self, name: str, key: str, tensor: Tensor) -> None:
        """Let the module `name` use `tensor` as parameter `key` until `restore`; the parameter itself is kept."""
        module = self.modules[name]
        before = module._parameters[key]
        assert before is not None  # the caller has compared the shapes
        self._replaced.setdefault((id(module), key), (module, before))
        module._parameters[key] = nn.Parameter(tensor, requires_grad=False)

    @contextlib.contextmanager
    def own_parameters(self) -> Iterator[None]:
        """Within, every module has its own parameters in place of those that adapters brought."""
        brought = {place: module._parameters[place[1]] for place, (module, _) in self._replaced.items()}
        for (_, key), (module, own) in self._replaced.items():
            module._parameters[key] = own
        try:
            yield
        finally:
            for (number, key), (module, _) in self._replaced.items():
                module._parameters[key] = brought[number, key]

    def added_hooks(self) -> list[tuple[nn.Module, int]]:
        """Forward hooks that the modules did not have when they were recorded."""
        return [
            (module, key)
            for module in self.modules.values()
            for key in module._forward_hooks
            if key not in self._hooks[id(module)]
        ]

    def restore(self, hooks: list[tuple[nn.Module, int]]) -> None:
        """Put every wrapped module and replaced parameter back, restore flags and attributes, and remove `hooks`."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import AuxiliaryTrainingWrapper

        self._restore_parameters()
        for name, children in self._children.items():
            places = self.modules[name]._modules  # assignment through the module would re-register
            for key, child in children.items():
                # Undo wrappers only: a module that the user put there meanwhile stays.
                if places.get(key) is not child and isinstance(
                    places.get(key), BaseTunerLayer | AuxiliaryTrainingWrapper
                ):
                    places[key] = child
        for parameter, needs_gradient in self._gradients:
            if parameter.requires_grad != needs_gradient:
                parameter.requires_grad_(needs_gradient)
        for module, key in hooks:
            module._forward_hooks.pop(key, None)  # PEFT keeps no handle
        for mark, was_there in self._marks.items():
            if not was_there:
                vars(self.model).pop(mark, None)
        if self._tensor_parallelism is not None:
            self.model.config.pretraining_tp = self._tensor_parallelism  # type: ignore[union-attr] # has it, see above

    def _restore_parameters(self) -> None:
        for (_, key), (module, parameter) in self._replaced.items():
            module._parameters[key] = parameter
        self._replaced.clear()
        for name, order in self._parameters.items():
            held = self.modules[name]._parameters  # torch takes a parametrised one out and adds it at the end
            if tuple(held) != order and held.keys() == set(order):
                in_order = {key: held[key] for key in order}
                held.clear()
                held.update(in_order)


def base_digest(model: nn.Module) -> Digest:
    """Digest over every parameter and buffer of a model without adapter; see `Attached.base_digest`."""
    return BaseModel(model).digest()


def _ensure_bare(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = next((name for name, module in modules.items() if isinstance(module, BaseTunerLayer)), None)
    if adapted is None and not isinstance(model, PeftModel) and "peft_config" not in vars(model):
        return
    raise UsageProblem(
        "the model has an adapter already" + (f", for one on `{adapted}`" if adapted else ""),
        hint="detach it first, or attach several at once: attach(model, {'a': 0.7, 'b': 0.3})",
    )


def _sha256_of(tensor: Tensor) -> str:
    import torch

    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(plain.numpy().data).hexdigest()


def model_types(base: BaseModel) -> dict[str, str]:
    """The model type that transformers gives each part of the model, by the name of the module that has it."""
    found = {}
    for name, module in base.modules.items():
        kind = getattr(getattr(module, "config", None), "model_type", None)
        if isinstance(kind, str) and kind:
            found[name] = kind
    return found
