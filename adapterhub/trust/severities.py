"""Findings told apart by their severity: those of one report, and of several together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from adapterhub.trust.verify.report import Finding

Severity = Literal["error", "warning", "unknown", "note"]
Status = Literal["ok", "failed", "unknown"]


class BySeverity:
    """What a value with `findings` says of them. It imports no check, so that Python's interface starts fast."""

    __slots__ = ()

    if TYPE_CHECKING:  # a property here would be the default of a dataclass's field

        @property
        def findings(self) -> tuple[Finding, ...]:
            """All of them."""

    def _with(self, severity: Severity) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == severity)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Reasons not to store or load the adapter."""
        return self._with("error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Facts that users should know."""
        return self._with("warning")

    @property
    def unknowns(self) -> tuple[Finding, ...]:
        """Questions that the checks cannot decide."""
        return self._with("unknown")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """Facts in order, and skipped files."""
        return self._with("note")

    @property
    def status(self) -> Status:
        """`failed` with an error, otherwise `unknown` when a question stayed open, otherwise `ok`."""
        return "failed" if self.errors else "unknown" if self.unknowns else "ok"
