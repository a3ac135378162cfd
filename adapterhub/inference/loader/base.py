"""The base model in memory."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.hooks import RemovableHandle

from adapterhub.core.digests import Digest, canonical_json, digest_of
from adapterhub.core.errors import CouldNotTell, UnsupportedAdapter, UsageProblem, shown
from adapterhub.formats.diffusion.components import COMPONENTS

QuantState = Any
"""Of bitsandbytes, which has no types."""

_REPACKING: Final = "support_avx512bf16_for_cpu"
"""The attribute of a 4-bit layer by which bitsandbytes lets the first forward repack the weight for this CPU."""

_WRITES_OUT: Final = "ct_decompress_hook"
"""The attribute of a model under which compressed-tensors keeps its hook for the first forward."""

_LISTED: Final = 8


def hold_layout(modules: Iterable[nn.Module]) -> None:
    """Stop 4-bit layers from rewriting their weights, for good; changes nothing else about them.

    On CPUs with AVX512-BF16 the first forward in evaluation repacks a weight in place. `state_dict()` undoes that
    without the scales that were lost, and every later answer is wrong. Layers that repacked before are left alone: they
    work until something calls their `state_dict()`.
    """
    for module in modules:
        if vars(module).get(_REPACKING):
            setattr(module, _REPACKING, False)


def ensure_unpacked(
    label: str, modules: Mapping[str, nn.Module], *, saved: Collection[str], magnitudes: Collection[str]
) -> None:
    """Raise if the adapter would damage a quantised layer.

    `saved`: modules that it replaces whole, which reads the layer's `state_dict()` (see `hold_layout`).
    `magnitudes`: modules with DoRA, for which PEFT moves an 8-bit weight off its device and never back.

    Raises:
        UnsupportedAdapter: with every such module.
    """
    if not saved and not magnitudes:
        return
    inside = tuple(f"{name}." for name in saved)
    reasons = []
    for name, module in modules.items():
        if source_shape(module) is None:
            continue
        if name in saved or name.startswith(inside):
            reasons.append(f"`{shown(name)}` would be replaced whole")
        elif name in magnitudes and _scales_of_rows(module) is not None:
            reasons.append(f"`{shown(name)}` is in 8 bits and would get DoRA")
    if reasons:
        raise UnsupportedAdapter(
            f"`{shown(label, 200)}` cannot be used with modules that are quantised here",
            reasons[:_LISTED],
            hint="load the base without `--load-in`, or leave these modules unquantised (`llm_int8_skip_modules`)",
        )


def scales_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the scales of a quantised weight, by bitsandbytes' names in a file; nothing for other modules."""
    for key, parameter in module._parameters.items():  # `named_parameters` would look into wrappers
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            yield from _scales_of_blocks(key, state)
    scales = _scales_of_rows(module)
    if scales is not None:
        yield "SCB", scales


def source_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of the module's weight before it was quantised; None if it is not quantised."""
    weight = module._parameters.get("weight")
    state = getattr(weight, "quant_state", None)
    if state is not None and state.shape is not None:
        return tuple(state.shape)
    return tuple(weight.shape) if weight is not None and _scales_of_rows(module) is not None else None


def _scales_of_blocks(key: str, state: QuantState) -> Iterator[tuple[str, Tensor]]:
    yield f"{key}.absmax", state.absmax
    if state.code is not None:
        yield f"{key}.quant_map", state.code
    inner = getattr(state, "state2", None)
    if inner is not None:  # the scales are quantised, too
        yield f"{key}.nested_absmax", inner.absmax
        yield f"{key}.nested_quant_map", inner.code
        yield f"{key}.nested_offset", torch.as_tensor(state.offset)


def _scales_of_rows(module: nn.Module) -> Tensor | None:
    """Return the scales of an 8-bit weight, which the first forward moves from the weight to the layer's state."""
    weight = module._parameters.get("weight")
    if weight is None or weight.dtype != torch.int8:
        return None
    found = getattr(weight, "SCB", None)
    return found if found is not None else getattr(getattr(module, "state", None), "SCB", None)


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
        self._record_parameters()
        self._replaced: dict[tuple[int, str], tuple[nn.Module, nn.Parameter]] = {}
        self._marks = {name: name in vars(model) for name in _PEFT_MARKS}
        self.handles: list[RemovableHandle] = []
        """Hooks of an attachment, which `restore` removes."""
        self._tensor_parallelism = getattr(getattr(model, "config", None), "pretraining_tp", None)
        self._hooks = {id(module): set(module._forward_hooks) for module in self.modules.values()}
        absent = [parameter for parameter, _ in self._gradients if parameter.is_meta]
        if absent:
            raise CouldNotTell(
                f"{len(absent)} parameters of the model are not in memory (device `meta`)",
                hint="load the model without offloading to disk",
            )

    def _record_parameters(self) -> None:
        self._parameters = {name: tuple(module._parameters) for name, module in self.modules.items()}
        self._gradients = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]

    def holds_codes(self, modules: Collection[str]) -> bool:
        """Return whether one of these modules keeps its weight as codes."""
        held = (tensor for name in modules if name in self.modules for tensor in _held_by(self.modules[name]))
        return any(
            tensor.ndim > 1 and (tensor.element_size() == 1 or not tensor.is_floating_point()) for tensor in held
        )

    def write_out(self) -> bool:
        """Let compressed-tensors turn its codes into floats now, as it does in the first forward.

        PEFT has no layers for these codes, and the base would change under adapters. Returns whether there
        were any.
        """
        handle = vars(self.model).get(_WRITES_OUT)
        hook = self.model._forward_pre_hooks.get(getattr(handle, "id", -1))
        if hook is None:
            return False
        hook(self.model, ())
        self._record_parameters()
        return True

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
            for key, plain in inner_tensors(tensor, name):
                place = (plain.data_ptr(), tuple(plain.shape))
                if place not in seen or not plain.numel():
                    seen[place] = _sha256_of(plain)
                listed.append([key, str(plain.dtype), list(plain.shape), seen[place]])
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
        while self.handles:
            self.handles.pop().remove()
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


def _held_by(module: nn.Module) -> Iterator[Tensor]:
    return (tensor for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None)


def is_wrapping(tensor: Tensor) -> bool:
    """Return whether a tensor stands for codes and scales that it holds, as those of torchao and optimum-quanto do."""
    return bool(is_traceable_wrapper_subclass(tensor))


def inner_tensors(tensor: Tensor, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that one of torchao or optimum-quanto stands for, as these name them.

    Any other tensor itself.
    """
    if not is_wrapping(tensor):
        yield name, tensor.detach()
        return
    wrapper: Any = tensor
    for key in wrapper.__tensor_flatten__()[0]:
        yield from inner_tensors(getattr(tensor, key), f"{name}.{key}")


def _sha256_of(tensor: Tensor) -> str:
    import torch

    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(plain.numpy().data).hexdigest()


def model_types(model: nn.Module) -> dict[str, str]:
    """Return the model type that transformers gives each part of the model, by the name of the module that has it."""
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        kind = getattr(getattr(module, "config", None), "model_type", None)
        if isinstance(kind, str) and kind:
            found[name] = kind
    return found


class PipelineModules(nn.Module):
    """The components of a pipeline that adapters are made for, as children; it is never called itself.

    Wrapping a module inside a component changes the pipeline, which goes on to call its own components. Any object with
    a mapping `components` counts as a pipeline.

    Raises:
        UsageProblem: the pipeline has none of these components in memory.
    """

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        object.__setattr__(self, "pipeline", pipeline)  # no child: it may be a module itself
        for name in COMPONENTS:
            component = pipeline.components.get(name)
            if isinstance(component, nn.Module):
                self.add_module(name, component)
        if not self._modules:
            raise UsageProblem(
                "the pipeline has no model in memory that adapters are made for",
                hint=f"expected one of {', '.join(COMPONENTS)} among its `components`",
            )
        self.training = next(self.children()).training

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its components, in the order of `COMPONENTS`."""
        return tuple(self._modules)


def as_model(model: Any) -> Any:
    """Return a pipeline as one model; anything else unchanged."""
    if not isinstance(model, nn.Module) and isinstance(getattr(model, "components", None), Mapping):
        return PipelineModules(model)
    return model


def as_given(model: nn.Module) -> nn.Module:
    """Return the inverse of `as_model`: a pipeline stands for the model that it was given as."""
    given: nn.Module = vars(model)["pipeline"] if isinstance(model, PipelineModules) else model
    return given
