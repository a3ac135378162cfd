"""What the functions of a library return, with a line and a small table for notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from adapterhub.core.display import html_table

if TYPE_CHECKING:
    from adapterhub.formats.contract.results import Tested
    from adapterhub.library.library import Added
    from adapterhub.library.store.catalog import Installed
    from adapterhub.projects.session import Session
    from adapterhub.trust.verify import Report
    from adapterhub.weights.recipes.combination import Combination, Made

T = TypeVar("T")


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


# ---------------------------------------------------------------- warnings about them
def report_card(session: Session, added: Added) -> None:
    """Warn of what a hub would refuse of the card of an adapter that was just added, while its README can be mended."""
    from adapterhub.formats.cards.card import make_card, refusals_of
    from adapterhub.formats.manifest import CARD_FILE

    manifest = added.build.manifest
    for problem in refusals_of(manifest, make_card(manifest)) if added.created and manifest.card else ():
        session.out.warn(f"`push` will refuse the metadata of `{CARD_FILE}`: {problem.text}; mend it and add again")


def report_likeness(session: Session, added: Added) -> None:
    """Say which installed builds have the update of an adapter that was just added."""
    for other in added.same_as:
        session.out.note(f"this is the update of {other}; `adapt similar {added.build.full_name}` says more")


def report_warnings(session: Session, added: Added | None) -> None:
    """Report the warnings of the checks of what came in.

    A config that names no base is worth one only where the manifest does not record the base either.
    """
    is_known = added is not None and added.build.base.fingerprint is not None
    for finding in added.report.warnings if added else ():
        if not (is_known and finding.code == "W_BASE_MISSING"):
            session.out.warn(f"[{finding.code}] {finding.message}")
