"""What the functions of a library return, with a line and a small table for notebooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from adapterhub.core.display import html_table
from adapterhub.core.errors import NotFound

if TYPE_CHECKING:
    from adapterhub.formats.contract.results import Tested
    from adapterhub.library.library import Added
    from adapterhub.library.store.catalog import Installed
    from adapterhub.trust.verify import Report
    from adapterhub.weights.recipes.combination import Combination, Made

T = TypeVar("T")


class Listing(Sequence[T], Generic[T]):
    """A sequence that shows itself as a table; each item is read when it is taken.

    A loop passes over an item that was removed since; to take that one raises `AdapterNotFound`.
    """

    def __init__(
        self, what: str, columns: Sequence[str], rows: Sequence[tuple[Any, Sequence[object]]], read: Callable[[Any], T]
    ) -> None:
        """`rows` pairs a key with the cells of its row; `read` makes the item of a key."""
        self._what, self._columns, self._rows, self._read = what, columns, rows, read

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Listing[T]: ...
    def __getitem__(self, at: int | slice) -> T | Listing[T]:
        if isinstance(at, slice):
            return Listing(self._what, self._columns, self._rows[at], self._read)
        return self._read(self._rows[at][0])

    def __iter__(self) -> Iterator[T]:
        for key, _ in self._rows:
            try:
                item = self._read(key)
            except NotFound:
                continue
            yield item

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        names = ", ".join(str(cells[0]) for _, cells in self._rows[:3])
        more = f", {names}{', …' if len(self) > 3 else ''}" if names else ""  # noqa: PLR2004 - a line
        return f"<{len(self)} {self._what}{'s' * (len(self) != 1)}{more.replace(', ', ': ', 1)}>"

    def _repr_html_(self) -> str:
        return html_table(self._columns, (cells for _, cells in self._rows))


class Reports(Mapping[str, "Report"]):
    """The reports of several adapters, by their labels."""

    def __init__(self, reports: Mapping[str, Report]) -> None:
        self._reports = dict(reports)

    def __getitem__(self, label: str) -> Report:
        return self._reports[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self._reports)

    def __len__(self) -> int:
        return len(self._reports)

    @property
    def status(self) -> str:
        """`failed` if one report is, else `unknown` if one is, else `ok`."""
        every = {report.status for report in self._reports.values()}
        return next((status for status in ("failed", "unknown") if status in every), "ok")

    def __repr__(self) -> str:
        return f"<Reports {self.status}: {len(self)} adapter{'s' * (len(self) != 1)}>"

    def _repr_html_(self) -> str:
        rows = [
            (label, report.status, f.code, f.where, f.message)
            for label, report in self._reports.items()
            for f in report.findings or (None,)
            if f is not None
        ]
        well = [(label, r.status, None, None, None) for label, r in self._reports.items() if not r.findings]
        return html_table(("adapter", "status", "code", "where", "finding"), [*rows, *well])


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Merged:
    """A merge or a smaller adapter: what was made, how far it is from the exact sum, and what it was made of.

    `adapter` is None where the result is a plain folder. `as_recorded` compares with the digest of a recipe; None
    where the recipe records none. `tuning` holds what a search of weights measured, `tests` what the result kept of
    its parents' contracts, where that was tested.
    """

    folder: Path
    made: Made
    combination: Combination
    added: Added | None = None
    as_recorded: bool | None = None
    tuning: Mapping[str, Any] = field(default_factory=dict, hash=False)
    tests: Sequence[Tested] = ()

    @property
    def adapter(self) -> Installed | None:
        """The installed result."""
        return self.added.build if self.added else None

    @property
    def error(self) -> float:
        """The measured relative error against the exact weighted sum, over all modules."""
        return self.made.result.relative_error

    @property
    def parents(self) -> tuple[tuple[str, float], ...]:
        """Each adapter that went in, with its weight."""
        return tuple((one.label, one.weight) for one in self.combination.leaves())

    @property
    def ranks(self) -> Mapping[int, int]:
        """How many modules have which rank."""
        return self.made.result.ranks

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the merge warns of."""
        return self.made.warnings

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe that the manifest records."""
        return self.made.recipe

    def _name(self) -> str:
        build = self.adapter
        return f"{build.full_name} {build.manifest.version}" if build else str(self.folder)

    def __repr__(self) -> str:
        total = " + ".join(f"{weight:g} x {label}" for label, weight in self.parents)
        return f"<Merged {self._name()} = {total} by {self.combination.method}, error {self.error:.2g}>"

    def _repr_html_(self) -> str:
        rows: list[tuple[str, object]] = [("result", self._name()), ("method", self.combination.method)]
        rows += [(f"{weight:g} x", label) for label, weight in self.parents]
        ranks = ", ".join(f"{rank} in {count}" for rank, count in sorted(self.ranks.items()))
        rows += [("ranks", ranks), ("relative error", f"{self.error:.2g}"), ("folder", self.folder)]
        return html_table((), rows)
