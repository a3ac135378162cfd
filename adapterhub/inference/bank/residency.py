"""The adapters in memory: evicts the least recently used one first, and never a pinned one."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from adapterhub.core.disk.memory import keep
from adapterhub.core.errors import UsageProblem, shown
from adapterhub.inference.bank.engine import LoadedAdapter
from adapterhub.inference.bank.selection import Term, Whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counts since the bank was made. A hit: the named adapter was in memory. A miss: it had to be loaded.

    `resident` and `resident_bytes` are the number and the size of the adapters in memory.
    """

    hits: int
    misses: int
    loads: int
    evictions: int
    resident: int
    resident_bytes: int


class Residency:
    """Adapters in memory by name, each as the choice of it alone, within limits (None: no limit).

    Not thread-safe, except `hit`: the cache holds the lock.
    """

    def __init__(self, *, most: int | None, most_bytes: int | None) -> None:
        for name, bound in (("max_resident", most), ("max_resident_bytes", most_bytes)):
            if bound is not None and (type(bound) is not int or bound < 1):
                raise UsageProblem(f"{name} is {shown(bound)}, expected a whole number of at least 1, or None")
        self._most = most
        self._most_bytes = most_bytes
        self._adapters: dict[str, Whole] = {}
        self._pinned: set[str] = set()
        self._uses = itertools.count()
        self._bytes = self._no_hits = self._misses = self._loads = self._evictions = 0

    @property
    def stats(self) -> Stats:
        """Hits, misses, loads and evictions since the bank was made."""
        return Stats(
            hits=self._next_use() - self._no_hits + 1,
            misses=self._misses,
            loads=self._loads,
            evictions=self._evictions,
            resident=len(self._adapters),
            resident_bytes=self._bytes,
        )

    def hit(self, name: str) -> Whole | None:
        """The adapter, which becomes the most recently used; None if it is not in memory.

        For any thread at any time: each step of it is whole, and a choice that was evicted since stays usable.
        """
        alone = self._adapters.get(name)
        if alone is not None:
            alone.used = next(self._uses)
        return alone

    def get(self, name: str, *, count: bool = True) -> Whole | None:
        """As `hit`, and counts a miss; with `count=False`, neither."""
        alone = self.hit(name)
        if alone is None:
            self._misses += count
        else:
            self._no_hits += not count
        return alone

    def _next_use(self) -> int:
        """The number of a use that is no hit."""
        self._no_hits += 1
        return next(self._uses)

    def put(self, name: str, adapter: LoadedAdapter, *, keep: Collection[str] = ()) -> Whole:
        """Add an adapter, and evict others for it, but not those that are pinned or in `keep`.

        Raises:
            UsageProblem: these leave no room. Nothing was changed.
        """
        evicted = self._to_evict(name, adapter, keep)
        self.drop(name)
        for other in evicted:
            self.drop(other)
            self._evictions += 1
        self._adapters[name] = chosen = Whole((Term(adapter, 1.0),))
        chosen.used = self._next_use()
        self._bytes += adapter.size_bytes
        self._loads += 1
        return chosen

    def drop(self, name: str) -> None:
        """Remove an adapter, if it is there; the next one that is loaded takes its memory."""
        alone = self._adapters.pop(name, None)
        if alone is not None:
            self._bytes -= alone.adapter.size_bytes
            keep(alone.adapter.memory)

    def pin(self, name: str, *, is_pinned: bool) -> None:
        """Protect an adapter from eviction, or end that."""
        (self._pinned.add if is_pinned else self._pinned.discard)(name)

    def _to_evict(self, name: str, adapter: LoadedAdapter, keep: Collection[str]) -> list[str]:
        before = self._adapters.get(name)
        count = len(self._adapters) + (before is None)
        size = self._bytes + adapter.size_bytes - (before.adapter.size_bytes if before else 0)
        evicted = []
        others: Iterable[tuple[str, Whole]] = () if self._fits(count, size) else self._adapters.items()
        for other, alone in sorted(others, key=lambda item: item[1].used):  # the least recently used first
            if self._fits(count, size):
                break
            if other != name and other not in self._pinned and other not in keep:
                evicted.append(other)
                count, size = count - 1, size - alone.adapter.size_bytes
        if not self._fits(count, size):
            bounds = [f"{self._most} adapters"] if self._most is not None else []
            bounds += [f"{self._most_bytes:,} bytes"] if self._most_bytes is not None else []
            raise UsageProblem(
                f"no room for `{shown(name)}` ({adapter.size_bytes:,} bytes): the limit is {' and '.join(bounds)}, and"
                f" {count - 1} other adapters cannot be evicted because they are pinned or in the same choice",
                hint="raise max_resident or max_resident_bytes, or unload a pinned adapter",
            )
        return evicted

    def _fits(self, count: int, size_bytes: int) -> bool:
        return (self._most is None or count <= self._most) and (
            self._most_bytes is None or size_bytes <= self._most_bytes
        )
