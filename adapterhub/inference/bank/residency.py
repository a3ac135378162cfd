"""Which adapters are in memory: the least recently used goes first, pinned ones stay."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.inference.bank.engine import LoadedAdapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counts since the bank was made. A hit was in memory when it was asked for by name; a miss had to be loaded."""

    hits: int
    misses: int
    loads: int
    evictions: int
    resident: int
    resident_bytes: int


class Residency:
    """Adapters in memory by name, within bounds (None: no bound). Not safe between threads: the bank has the lock."""

    def __init__(self, *, most: int | None, most_bytes: int | None) -> None:
        for name, bound in (("max_resident", most), ("max_resident_bytes", most_bytes)):
            if bound is not None and (type(bound) is not int or bound < 1):
                raise UsageProblem(f"{name} is {shown(bound)}, expected a whole number of at least 1, or None")
        self._most = most
        self._most_bytes = most_bytes
        self._adapters: OrderedDict[str, LoadedAdapter] = OrderedDict()
        self._pinned: set[str] = set()
        self._bytes = self._hits = self._misses = self._loads = self._evictions = 0

    @property
    def stats(self) -> Stats:
        """The counts now."""
        return Stats(
            hits=self._hits,
            misses=self._misses,
            loads=self._loads,
            evictions=self._evictions,
            resident=len(self._adapters),
            resident_bytes=self._bytes,
        )

    def get(self, name: str, *, count: bool = True) -> LoadedAdapter | None:
        """The adapter, from now on the most recently used; None when it is not in memory."""
        adapter = self._adapters.get(name)
        if adapter is not None:
            self._adapters.move_to_end(name)
        self._hits += count and adapter is not None
        self._misses += count and adapter is None
        return adapter

    def put(self, name: str, adapter: LoadedAdapter, *, keep: Collection[str] = ()) -> None:
        """Take an adapter in, and let others go for it; those that are pinned or in `keep` stay.

        Raises:
            UsageProblem: there is no room beside these; nothing was changed.
        """
        leaving = self._leaving(name, adapter, keep)
        self.drop(name)
        for other in leaving:
            self.drop(other)
            self._evictions += 1
        self._adapters[name] = adapter
        self._bytes += adapter.size_bytes
        self._loads += 1

    def drop(self, name: str) -> None:
        """Forget an adapter, if it is there."""
        adapter = self._adapters.pop(name, None)
        if adapter is not None:
            self._bytes -= adapter.size_bytes

    def pin(self, name: str, *, is_pinned: bool) -> None:
        """Keep an adapter in memory from now on, or no longer."""
        (self._pinned.add if is_pinned else self._pinned.discard)(name)

    def _leaving(self, name: str, adapter: LoadedAdapter, keep: Collection[str]) -> list[str]:
        others = {other: loaded for other, loaded in self._adapters.items() if other != name}
        count, size = len(others) + 1, sum(loaded.size_bytes for loaded in others.values()) + adapter.size_bytes
        leaving = []
        for other, loaded in others.items():  # the least recently used first
            if self._fits(count, size):
                break
            if other not in self._pinned and other not in keep:
                leaving.append(other)
                count, size = count - 1, size - loaded.size_bytes
        if not self._fits(count, size):
            bounds = [f"{self._most} adapters"] if self._most is not None else []
            bounds += [f"{self._most_bytes:,} bytes"] if self._most_bytes is not None else []
            raise UsageProblem(
                f"no room for `{shown(name)}` ({adapter.size_bytes:,} bytes): the bank holds at most"
                f" {' and '.join(bounds)}, and {count - 1} adapters that are pinned or wanted at once stay",
                hint="raise max_resident or max_resident_bytes, or unload one that is pinned",
            )
        return leaving

    def _fits(self, count: int, size_bytes: int) -> bool:
        return (self._most is None or count <= self._most) and (
            self._most_bytes is None or size_bytes <= self._most_bytes
        )
