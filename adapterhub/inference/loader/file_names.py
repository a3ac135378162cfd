"""The names that the files of a model in memory have, or had in another release, as transformers itself knows them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from adapterhub.formats.naming.finding import NamedBase
from adapterhub.formats.naming.renames import CUT, CUT_BY_SIZE, JOIN, STACK, TURN, Operation, Rename, Renamed, Renames
from adapterhub.formats.naming.table import renames_of
from adapterhub.inference.loader.base import BaseModel, PipelineModules, model_types


def read_transform(transform: Any) -> Rename:
    """Return a `WeightTransform` of transformers, of one of `KINDS`, as a `Rename`."""
    kind = type(transform).__name__
    return Rename(
        sources=tuple(transform.source_patterns),
        targets=tuple(transform.target_patterns),
        operations=tuple(map(_operation, getattr(transform, "operations", ()))),
        scope=transform.scope_prefix,
        prefix=transform.base_model_prefix or "",
        has_guard=kind == "GroupWeightRename",
        is_prefix=kind == "PrefixChange",
        offset=getattr(transform, "offset", 0),
    )


KINDS: Final = frozenset(
    {"WeightRenaming", "WeightConverter", "PrefixChange", "GroupWeightRename", "Inkling2IndexOffsetWeightRename"}
)
"""The classes of transforms that patterns describe. The only other one pairs layers, and leaves our own names alone."""


def _operation(operation: Any) -> Operation:
    sure = not getattr(operation, "check_dims", False) and getattr(operation, "num_shards_attribute", None) is None
    dim = getattr(operation, "dim", getattr(operation, "dim0", 0))
    return Operation(type(operation).__name__, dim, getattr(operation, "dim1", 0), sure)


def renames_in(model: nn.Module) -> Renames:
    """Return the renames of a model in memory, or of each component of a pipeline.

    They are those of the installed transformers, and of its user, if the model was loaded with a `key_mapping`. Without
    transformers 5, and for other models, they follow from the model types.
    """
    if isinstance(model, PipelineModules):
        return sum((renames_in(part).at(name) for name, part in model.named_children()), Renames())
    if not is_of_transformers(model):
        return renames_of(model_types(model))
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping

    known: list[Any] = get_model_conversion_mapping(model, add_legacy=False)
    patterns = [(t.source_patterns, t.target_patterns, t.scope_prefix) for t in known]
    used: list[Any] = getattr(model, "_weight_conversions", None) or []
    own = [t for t in used if (t.source_patterns, t.target_patterns, t.scope_prefix) not in patterns]
    transforms = [t for t in (*own, *known) if type(t).__name__ in KINDS]
    back = [t.reverse_transform() for t in reversed(transforms) if not hasattr(t, "operations")]
    transforms += get_checkpoint_conversion_mapping("legacy") or []  # read, and never written
    return Renames(tuple(map(read_transform, transforms)), tuple(map(read_transform, back)))


def is_of_transformers(model: nn.Module) -> bool:
    """Return whether the model is one of transformers 5, whose names in memory are those that its renames lead to."""
    try:
        from transformers import PreTrainedModel
        from transformers.conversion_mapping import get_model_conversion_mapping  # noqa: F401 - not in transformers 4
    except ImportError:
        return False
    if isinstance(model, PipelineModules):
        return all(map(is_of_transformers, model.children()))
    return isinstance(model, PreTrainedModel)


def named(base: BaseModel, component: str = "") -> NamedBase:
    """Return a model in memory, or one component of a pipeline, by the names of its modules."""
    front = f"{component}." if component else ""
    model = base.modules[component] if component else base.model
    modules = {name[len(front) :]: module for name, module in base.modules.items() if name.startswith(front)}

    def tensors() -> dict[str, tuple[int, ...]]:
        own = (t for t in base.tensors() if t.name.startswith(front))
        return {name[len(front) :]: tuple(tensor.shape) for name, tensor, is_kept in own if is_kept}

    def experts(parameter: str) -> tuple[bool, bool]:
        module = modules.get(parameter.rpartition(".")[0])
        is_transposed = bool(getattr(module, "is_transposed", False))
        return is_transposed, not getattr(module, "is_concatenated", True)

    return NamedBase(
        modules=modules,
        tensors=tensors,
        renames=lambda: renames_in(model),
        is_in_memory=is_of_transformers(model),
        experts=experts,
    )


class FileTensor(NamedTuple):
    """A tensor of a file, from the tensors in memory that hold its numbers one after the other along `dim`."""

    pieces: tuple[Tensor, ...]
    dim: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the file."""
        first = self.pieces[0].shape
        length = sum(piece.shape[self.dim] for piece in self.pieces) if first else 0
        return tuple(length if at == self.dim else size for at, size in enumerate(first))

    def take(self, places: list[int]) -> Tensor:
        """Return the numbers at `places` of the flattened tensor; reads no others."""
        if len(self.pieces) == 1:
            return self._of(self.pieces[0], places)
        inner = prod(self.shape[self.dim + 1 :])
        ends = list(accumulate(piece.shape[self.dim] for piece in self.pieces))
        found = []
        for place in places:
            outer, at = divmod(place // inner, self.shape[self.dim])
            number = next(n for n, end in enumerate(ends) if at < end)
            length = self.pieces[number].shape[self.dim]
            row = outer * length + at - (ends[number] - length)
            found.append(self._of(self.pieces[number], [row * inner + place % inner]))
        return torch.cat(found) if found else self.pieces[0].new_empty(0)

    @staticmethod
    def _of(tensor: Tensor, places: list[int]) -> Tensor:
        at = torch.tensor(places, dtype=torch.int64, device=tensor.device)
        return tensor.detach()[torch.unravel_index(at, tensor.shape)] if tensor.ndim else tensor.detach().reshape(1)[at]


class FileTensors:
    """The tensors of a model's files, found in memory by their names there.

    `packed`: the weights that are quantised in memory, whose codes cannot be cut or stacked.
    """

    def __init__(self, base: BaseModel, component: str = "", packed: Collection[str] = ()) -> None:
        self._named = named(base, component)
        self._packed = packed
        front = f"{component}." if component else ""
        self._tensors = {t.name[len(front) :]: t.tensor for t in base.tensors() if t.name.startswith(front)}
        self._prefix = str(getattr(base.modules[component], "base_model_prefix", ""))

    @cached_property
    def _own(self) -> Mapping[str, str]:
        """The model's own name of each tensor by its name in transformers 5."""
        names = dict.fromkeys((*self._tensors, *self._packed))
        if self._named.is_in_memory:
            return {name: name for name in names}
        return {renamed.name: name for name, renamed in self._named.renames.of(names).items()}

    def places(self, names: Iterator[str] | Mapping[str, Any]) -> dict[str, str | tuple[FileTensor, ...]]:
        """Find the tensors of a file by their `names`: the name of the same tensor here, or the tensors that form it.

        Of several `FileTensor`, one is it, which depends on the program that wrote the file. Others are left out.
        """
        found: dict[str, str | tuple[FileTensor, ...]] = {}
        for name, renamed in self._named.renames.of(names).items():
            own = next((self._own[n] for n in self._variants(renamed.name) if n in self._own), None)
            if own is None:
                if name in self._tensors:
                    found[name] = name
            elif renamed.by is None:
                found[name] = own
            elif own not in self._packed and (tensors := tuple(self._made(renamed, own))):
                found[name] = tensors
        return found

    def _variants(self, name: str) -> Iterator[str]:
        """Yield a model with a head has one more part in front; a file may be of the other one."""
        yield name
        if self._prefix and name.startswith(f"{self._prefix}."):
            yield name.removeprefix(f"{self._prefix}.")
        elif self._prefix:
            yield f"{self._prefix}.{name}"

    def _made(self, renamed: Renamed, own: str) -> Iterator[FileTensor]:
        assert renamed.by is not None
        operations, targets = renamed.by.operations, renamed.by.targets
        if {operation.kind for operation in operations} <= {CUT, CUT_BY_SIZE} and len(operations) == 1:
            names = [own.replace(targets[0], target) for target in targets]
            if operations[0].is_sure and all(name in self._tensors for name in names):
                yield FileTensor(tuple(self._tensors[name] for name in names), operations[0].dim)
            return
        for turn in (False, True) if any(o.kind == TURN and not o.is_sure for o in operations) else (True,):
            tensor = self._tensors[own]
            for operation in reversed(operations):
                before = _before(tensor, operation, renamed) if turn or operation.kind != TURN else tensor
                if before is None:
                    return
                tensor = before
            yield FileTensor((tensor,))


def _before(tensor: Tensor, operation: Operation, renamed: Renamed) -> Tensor | None:
    """Return a view of the input of an operation; None if there is no such view."""
    assert renamed.by is not None
    kind, dim, parts = operation.kind, operation.dim, len(renamed.by.sources)
    if kind == STACK and renamed.expert is not None and renamed.expert < tensor.shape[dim]:
        return tensor.select(dim, renamed.expert)
    if kind == JOIN and operation.is_sure and parts > 1:
        if STACK in (o.kind for o in renamed.by.operations) and tensor.shape[dim] % parts:
            return None
        return tensor.chunk(parts, dim)[renamed.source]
    if kind == TURN:
        return tensor.transpose(operation.dim, operation.other_dim)
    return None
