"""The engines of the bank: native hooks, and PEFT's layers."""

from __future__ import annotations

import math
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache, lru_cache
from mmap import mmap
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapterhub.core.disk.held_file import HeldFile
from adapterhub.core.errors import RefusedAdapter, UnsupportedAdapter, UsageProblem, shown
from adapterhub.distribution.finding import FoundAdapter
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.inference.bank.tracing import doors
from adapterhub.inference.bank.updates import (
    Args,
    ConvUpdate,
    Current,
    EmbeddingUpdate,
    Kwargs,
    LinearUpdate,
    LoadedAdapter,
    MagnitudeUpdate,
    Output,
    Replacement,
    Selection,
    Update,
    Using,
    View,
    copy_with,
    no_memory,
)
from adapterhub.inference.loader.attachment import Attached
from adapterhub.inference.loader.base import BaseModel
from adapterhub.inference.loader.injection import Fitting, ReadyAdapter, Scale
from adapterhub.inference.loader.reading import LISTED
from adapterhub.library.store.catalog import AdapterLike
from adapterhub.weights.dtypes import TENSOR_DTYPES

if TYPE_CHECKING:
    from typing_extensions import Self


_MUCH_UNUSED = 0.1


@lru_cache(maxsize=256)
def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


class FileMemory:
    """The bytes of a checked file, read into memory once and hashed there; takes the tensors `used` out of it.

    A memory map would cost nothing until it is used. But it shows later writes to the file, and kills the process when
    the file is truncated. `reference` leads to that memory as long as something uses it. `size_bytes` adds up what the
    tensors that were taken keep alive. `label` names the adapter in errors.

    Raises:
        DigestMismatch, OSError: the file has changed since it was checked.
    """

    def __init__(self, weights: HeldFile, used: Iterable[TensorSpec], label: str) -> None:
        memory = weights.load()
        self.reference = weakref.ref(memory.obj) if isinstance(memory.obj, mmap) else no_memory
        self.size_bytes = 0
        self._label = label
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8)
        self._views: dict[str, tuple[View, torch.dtype, int]] = {}
        # views alone would keep much unused memory alive
        self._copies = sum([spec.end - spec.start for spec in used]) < (1 - _MUCH_UNUSED) * len(memory)

    def later(self, a: TensorSpec, b: TensorSpec, dtype: torch.dtype) -> View | None:
        """Make either tensor as `take` does on the CPU, where both are views of the file; None if one is not.

        Raises:
            RefusedAdapter: as `take`; what this returns does not raise.
        """
        for spec in (a, b):
            view, own, size = self._views.get(spec.dtype) or self._whole(spec)
            if self._copies or own is not dtype or spec.start % size:
                return None
        self.size_bytes += a.end - a.start + b.end - b.start
        return view  # both are of one dtype

    def take(self, spec: TensorSpec, dtype: torch.dtype, device: torch.device | None) -> Tensor:
        """One tensor in that dtype, on that device (None is the CPU); without a copy if it lies like that in the file.

        Raises:
            RefusedAdapter: torch does not have the dtype of the file.
        """
        _, stored, shape, start, end = spec
        view, own, size = self._views.get(stored) or self._whole(spec)
        read = view(spec) if start % size == 0 else self._bytes[start:end].clone().view(own).reshape(shape)
        if device is not None or own is not dtype:
            read = read.to(device=device, dtype=dtype)
        elif self._copies:
            read = read.clone()
        self.size_bytes += (end - start) // size * dtype.itemsize
        return read

    def _whole(self, spec: TensorSpec) -> tuple[View, torch.dtype, int]:
        """Give tensors in the dtype of this one out of all bytes; that dtype, and its size in bytes."""
        dtype = TENSOR_DTYPES.get(spec.dtype)
        if dtype is None:
            found = ("E_DTYPE", f"`{shown(spec.name)}` is stored as {shown(spec.dtype)}")
            raise RefusedAdapter(f"`{shown(self._label)}` cannot be read", [found])
        size = dtype.itemsize
        part = self._bytes[: len(self._bytes) // size * size].view(dtype).as_strided

        def view(spec: TensorSpec) -> Tensor:
            shape = spec.shape
            return part(shape, _strides(shape), spec.start // size)  # a tenth of the time of slices

        self._views[spec.dtype] = found_view = view, dtype, size
        return found_view


class Hooks:
    """The hooks of one bank. A module gets one when an adapter first needs it, and keeps it until the bank ends."""

    def __init__(self, base: BaseModel, current: Current) -> None:
        self._modules = base.modules
        self._current = current
        self._hooked: set[str] = set()
        self._handles: list[RemovableHandle] = []

    def reach(self, names: Iterable[str]) -> None:
        """Add hooks to these modules, so that choices can change their outputs."""
        for name in names:
            if name not in self._hooked:
                self._hooked.add(name)
                self._handles.append(_hook(self._modules[name], name, self._current))

    def names(self) -> frozenset[str]:
        """Return the modules that have hooks."""
        return frozenset(self._hooked)

    def take(self, handles: Iterable[RemovableHandle]) -> None:
        """Take over hooks that others made, to remove them with these."""
        self._handles += handles

    def remove(self) -> None:
        """Remove all hooks from the model."""
        while self._handles:
            self._handles.pop().remove()
        self._hooked.clear()


def _hook(module: nn.Module, name: str, current: Current) -> RemovableHandle:
    # A plain function: `deepcopy` of the model copies it by reference.
    def add(_: nn.Module, args: Args, kwargs: Kwargs, output: Output) -> Output:
        selection = current.get()
        return None if selection is None else selection.apply(name, args, kwargs, output)

    return module.register_forward_hook(add, with_kwargs=True)


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
        """Return why the adapter needs PEFT's layers.

        Raises:
            UnsupportedAdapter: torch reads the weights of a layer without calling it, so no engine can add to it.
        """
        config = ready.contents.config
        if not config.is_lora:
            return (f"{config.peft_type} is not LoRA",)
        if config.alora_invocation_tokens is not None:
            return ("it acts from its invocation tokens on (aLoRA)",)
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
        """Return the adapter's factors in memory.

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
            if len(specs) == 2 and device is None and isinstance(module, nn.Linear):
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
    """Return the shapes that the module's factors must have, by PEFT's names for them."""
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
    """Return the dtype of factors in memory, from their own in the file and that of the layer."""
    own = TENSOR_DTYPES.get(stored, layer)
    return torch.promote_types(own, layer) if own.is_floating_point and own.itemsize > 1 else layer


def _layer(module: nn.Module) -> tuple[torch.dtype, torch.device | None]:
    """Return the dtype of a layer's numbers, or the one in which it unpacks them, and its device; None is the CPU."""
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
    """Return inputs and outputs of a linear layer, which may have a transposed or a quantised weight."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    into, out = _weight(module).shape
    return into, out


class Alone:
    """The choice of an adapter that PEFT puts on the model, whose layers change the outputs themselves."""

    def __init__(self, label: str) -> None:
        self.labels = (label,)
        self.is_on = False

    def apply(self, _name: str, _args: Args, _kwargs: Kwargs, output: Output, /) -> Output:
        """Return the output, unchanged."""
        return output


class Turnstile:
    """A lock that many forward passes share, or that one choice holds exclusively."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._passing: Counter[int] = Counter()
        self._alone: Selection | None = None
        self._holder = 0  # the thread that closed it

    def enter(self, selection: Selection | None) -> None:
        """Begin a forward pass of `selection`; waits while another choice has exclusive use of the model.

        Raises:
            UsageProblem: another task of this thread has it, or `selection` needs it and does not have it.
        """
        if isinstance(selection, Alone) and not selection.is_on:
            raise UsageProblem(
                f"`{shown(selection.labels[0])}` runs on PEFT's layers, which are not on the model outside its block",
                hint="with bank.use(…): model(…)",
            )
        with self._changed:
            if self._alone is not selection:
                self._wait_for(lambda: self._alone is None or self._alone is selection)
            self._passing[threading.get_ident()] += 1

    def leave(self) -> None:
        """End a forward pass."""
        with self._changed:
            me = threading.get_ident()
            self._passing[me] -= 1
            if self._passing[me] <= 0:
                del self._passing[me]
                if self._alone is None:
                    self._changed.notify_all()

    def close(self, selection: Selection) -> None:
        """Give `selection` exclusive use of the model, after all running passes of other threads.

        Raises:
            UsageProblem: another task of this thread has it, and could never end while this one waits.
        """
        with self._changed:
            me = threading.get_ident()
            self._wait_for(lambda: self._alone is None and self._passing.keys() <= {me})
            self._alone, self._holder = selection, me

    def open(self) -> None:
        """End the exclusive use."""
        with self._changed:
            self._alone = None
            self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Exclusive use of the model for the block."""
        self.close(Alone(""))
        try:
            yield
        finally:
            self.open()

    def _wait_for(self, is_my_turn: Callable[[], bool]) -> None:
        if self._alone is not None and self._holder == threading.get_ident() and not is_my_turn():
            raise UsageProblem(
                "an adapter that PEFT put on the model is in use in another task of this thread",
                hint="end its `with` block before the next `await`, or run it in its own thread",
            )
        self._changed.wait_for(is_my_turn)


class PeftEngine:
    """Runs every adapter that `attach` supports. Keeps none in memory: each block reads its adapter again.

    `put_on` attaches an adapter to `model`. Every load of the bank holds the lock `loading`.
    """

    name = "peft"

    def __init__(self, model: nn.Module, current: Current, put_on: Callable[[AdapterLike], Attached]) -> None:
        self.loading = threading.RLock()
        self._model = model
        self.current = current
        self._put_on = put_on
        self._turnstile = Turnstile()
        self._running: UsingPeft | None = None

    def load(self, ready: ReadyAdapter) -> LoadedAdapter:
        """Return an adapter without tensors, which marks that it was loaded."""
        return LoadedAdapter(
            label=ready.contents.label,
            engine=self.name,
            updates={},
            size_bytes=0,
            is_additive=False,
            no_rows="PEFT's layers are on the whole model",
        )

    def alone(self) -> AbstractContextManager[None]:
        """Exclusive use of the model for the block.

        Raises:
            UsageProblem: this context, or another task of this thread, uses an adapter on PEFT's layers.
        """
        ensure_outside_use(self.current.get())
        return self._turnstile.alone()

    def try_on(self, found: FoundAdapter) -> None:
        """Attach the adapter and detach it again; raises as `attach`."""
        self._attach(found).detach()

    def use(self, found: FoundAdapter) -> UsingPeft:
        """Return the adapter for the whole model, for the duration of a `with` block."""
        return UsingPeft(self, found)

    def begin(self, using: UsingPeft, selection: Alone, found: FoundAdapter) -> Attached:
        """Attach the adapter as soon as the model is free."""
        self._turnstile.close(selection)
        try:
            attached = self._attach(found)
        except BaseException:
            self._turnstile.open()
            raise
        self._running, selection.is_on = using, True
        return attached

    def end(self, attached: Attached, selection: Alone) -> None:
        """Detach the adapter, and let others use the model."""
        self._running, selection.is_on = None, False
        try:
            attached.detach()
        finally:
            self._turnstile.open()

    def close(self) -> None:
        """Detach the adapter that is on the model, if any."""
        running = self._running
        if running is not None:
            running.end()

    def guard(self) -> list[RemovableHandle]:
        """Hooks that take every call of the model, and of the encoder that `generate` calls, through the turnstile."""
        current, turnstile = self.current, self._turnstile

        def enter(_module: nn.Module, _args: Args) -> None:
            turnstile.enter(current.get())

        def leave(_module: nn.Module, _args: Args, _output: Output) -> None:
            turnstile.leave()

        handles: list[RemovableHandle] = []
        for door in doors(self._model):
            handles.append(door.register_forward_pre_hook(enter))
            handles.append(door.register_forward_hook(leave, always_call=True))
        return handles

    def _attach(self, found: FoundAdapter) -> Attached:
        with self.loading:  # a hook that a load adds meanwhile would be mistaken for PEFT's
            return self._put_on(found.build or found.folder)


class UsingPeft(Using):
    """As `Using`, but the choice holds only inside a `with` block."""

    def __init__(self, engine: PeftEngine, found: FoundAdapter) -> None:
        self._engine = engine
        self._found = found
        self._attached: Attached | None = None
        self._alone = Alone(found.label)
        super().__init__(engine.current, self._alone, engine.current.get())

    def __enter__(self) -> Self:
        try:
            self._attached = self._engine.begin(self, self._alone, self._found)
        except BaseException as error:
            super().__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.end()
        finally:
            super().__exit__(kind, error, trace)

    def end(self) -> None:
        """Detach the adapter; does nothing the second time."""
        attached, self._attached = self._attached, None
        if attached is not None:
            self._engine.end(attached, self._alone)


def ensure_outside_use(selection: Selection | None) -> None:
    """Raise if this context has an adapter on PEFT's layers: no other choice is possible until it ends.

    Raises:
        UsageProblem: this context has exclusive use of the model.
    """
    if isinstance(selection, Alone) and selection.is_on:
        raise UsageProblem(
            "an adapter that PEFT put on the model is in use here, and affects every choice",
            hint="end its `with` block first",
        )
