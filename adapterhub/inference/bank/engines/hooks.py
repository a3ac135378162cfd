"""Forward hooks on the base's own modules, which apply the choice of the current context."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.utils.hooks import RemovableHandle

from adapterhub.inference.bank.selection import Current
from adapterhub.inference.bank.updates import Args, Kwargs, Output
from adapterhub.inference.loader.base.model import BaseModel


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
        """The modules that have hooks."""
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
