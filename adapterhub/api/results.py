"""What the functions of a library return, with a line and a small table for notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from adapterhub.core.display import html_table

if TYPE_CHECKING:
    from adapterhub.library.library import Added
    from adapterhub.projects.session import Session
    from adapterhub.trust.verify import Report

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
