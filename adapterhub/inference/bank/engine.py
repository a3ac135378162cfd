"""The engine protocol of the bank: an engine loads a checked adapter for use on the bank's model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from adapterhub.inference.bank.updates import Replacement, Update
from adapterhub.inference.loader.injection import ReadyAdapter


def no_memory() -> None:
    """The reference of an adapter that does not use the memory of its file."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedAdapter:
    """An adapter in memory. It stays usable for its holder, even if the bank unloads it meanwhile.

    `updates`: by module of the base. `is_additive`: it can have a weight and be added to others. `no_rows`: why it
    cannot be chosen for some rows of a batch only; "" if it can. `memory`: a weak reference to that of its file.
    """

    label: str
    engine: str
    updates: Mapping[str, Update]
    size_bytes: int
    is_additive: bool
    no_rows: str = ""
    memory: Callable[[], object] = no_memory

    @property
    def replaced(self) -> frozenset[str]:
        """The modules that it replaces whole."""
        return frozenset(name for name, update in self.updates.items() if isinstance(update, Replacement))


class Engine(Protocol):
    """Loads adapters for use on the model."""

    name: str

    def load(self, ready: ReadyAdapter) -> LoadedAdapter:
        """The adapter in memory; does not change the model."""
        ...
