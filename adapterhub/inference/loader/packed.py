"""The quantised weights of a model in memory, which the formats of files explain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from adapterhub.core.errors import Malformed
from adapterhub.formats.base.fingerprint import CopyRange
from adapterhub.formats.safetensors.header import may_be_codes
from adapterhub.inference.loader.base import BaseModel, PipelineModules, inner_tensors, is_wrapping, source_shape
from adapterhub.weights.dtypes import FORMAT_DTYPES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from adapterhub.formats.base.quantised.weight import Places, Stored


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedModules:
    """The quantised weights of a model: `ranges` by the source's names, made of the tensors `parts`.

    A weight whose codes cannot be read has no numbers in its range, only its shape.
    """

    ranges: Mapping[str, CopyRange] = field(default_factory=dict)
    parts: frozenset[str] = frozenset()


def packed_in(base: BaseModel) -> PackedModules:
    """Return the quantised weights of a model or pipeline; reads a few numbers of each."""
    tensors = dict(_tensors(base))
    if not any(_may_be_codes(tensor) or _STATE in name for name, tensor in tensors.items()):
        return PackedModules()
    fronts = [f"{name}." for name in base.model.names] if isinstance(base.model, PipelineModules) else [""]
    ranges: dict[str, CopyRange] = {}
    parts: set[str] = set()
    for front in fronts:
        own = {name[len(front) :]: tensor for name, tensor in tensors.items() if name.startswith(front)}
        found = _explained(own, base.modules[front.removesuffix(".")])
        ranges |= {front + name: one for name, one in found.ranges.items()}
        parts |= {front + name for name in found.parts}
    return _with_unread(base, tensors, PackedModules(ranges=ranges, parts=frozenset(parts)))


def _explained(tensors: Mapping[str, Tensor], model: nn.Module) -> PackedModules:
    from adapterhub.formats.base.quantised.model import model_of

    config: Any = getattr(model, "config", None)
    told = config.to_dict() if hasattr(config, "to_dict") else {}
    try:
        found = model_of("the model in memory", _InMemory(tensors), told)
        facts = found.facts() if found.quantised else None
    except Malformed:  # in an order for kernels, such as those of one GPU
        return PackedModules()
    return PackedModules(ranges=facts.ranges, parts=found.parts) if facts else PackedModules()


def _with_unread(base: BaseModel, tensors: Mapping[str, Tensor], known: PackedModules) -> PackedModules:
    """Return the same with the weights that nothing explains, such as those that were rewritten for one kind of CPU."""
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in tensors.items()
        if name.endswith(".weight") and _may_be_codes(tensor) and not tensor.is_floating_point()
    }
    shapes |= {each.name: tuple(each.tensor.shape) for each in base.tensors() if is_wrapping(each.tensor)}
    for owner, module in base.modules.items():
        if (shape := source_shape(module)) is not None:
            shapes[f"{owner}.weight" if owner else "weight"] = shape
    unread = {name: CopyRange("", shape, b"") for name, shape in shapes.items() if name not in known.parts}
    return PackedModules(ranges={**unread, **known.ranges}, parts=known.parts)


def _may_be_codes(tensor: Tensor) -> bool:
    return tensor.dtype in FORMAT_DTYPES and may_be_codes(FORMAT_DTYPES[tensor.dtype], tensor.ndim)


_STATE: Final = ".quant_state."
"""In names of bitsandbytes, which may keep 4-bit codes as floats (`bnb_4bit_quant_storage`)."""


# ---------------------------------------------------------------- tensors by the names that files have
def _tensors(base: BaseModel) -> Iterator[tuple[str, Tensor]]:
    """Every tensor; those of bitsandbytes, torchao and optimum-quanto under the names of a file."""
    for name, tensor, _ in base.tensors():
        for key, plain in inner_tensors(tensor, name):
            path = key.removeprefix(name)
            yield (key if path.startswith("._") else _in_file(name, path)), plain
        state = getattr(tensor, "quant_state", None)
        if state is not None and state.code is not None and not getattr(state, "packing_format_for_cpu", False):
            yield from ((f"{name}.{key}", value) for key, value in state.as_dict(packed=True).items())


def _in_file(name: str, path: str) -> str:
    """Return how torchao names a tensor inside of another: `q_proj._weight_qdata`."""
    module, dot, last = name.rpartition(".")
    return f"{module}{dot}_{last}{path.replace('.', '_')}" if path else name


class _InMemory:
    """Reads parts of tensors in memory as a `Reader` does those in files."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        from adapterhub.formats.base.quantised.weight import Stored

        self._tensors = tensors
        self.tensors: Mapping[str, Stored] = {
            name: Stored(FORMAT_DTYPES[t.dtype], tuple(t.shape))
            for name, t in tensors.items()
            if t.dtype in FORMAT_DTYPES
        }

    def rows(self, name: str, starts: Places, size: int) -> NDArray[np.uint8]:
        """As `Reader.rows`."""
        raw = self._tensors[name].contiguous().reshape(-1).view(torch.uint8)
        at = torch.as_tensor(starts, device=raw.device)[:, None] + torch.arange(size, device=raw.device)
        found: NDArray[np.uint8] = raw[at].cpu().numpy()
        return found
