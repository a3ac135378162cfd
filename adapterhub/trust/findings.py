"""Findings of checks, told apart by their severity: those of one report, and of several together.

This imports no check, so that Python's interface starts fast.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

from adapterhub.formats.documented import Documented

Severity = Literal["error", "warning", "unknown", "note"]
Status = Literal["ok", "failed", "unknown"]

_SEVERITIES: Final[dict[str, Severity]] = {
    "A": "warning",
    "E": "error",
    "N": "note",
    "S": "note",
    "U": "unknown",
    "W": "warning",
}
_NOTES: Final = frozenset({"A_NO_CONTRACT", "W_CONFIG_TYPE", "W_CONFIG_UNKNOWN_KEY"})


@dataclass(frozen=True, slots=True)
class Finding(Documented, keys="code severity where message expected hint"):
    """One result of a check.

    `code` begins with E, W, U, N, A (only of an audit) or S (a file that was skipped); `where` is a file, a tensor or a
    module; `expected` is empty if the message is enough; `hint` is a step that helps. Texts from files are escaped.
    """

    code: Annotated[str, "such as `E_SHAPE`"]
    where: Annotated[str, "file, tensor or setting; empty for the whole adapter"]
    message: Annotated[str, "one sentence"]
    _: KW_ONLY
    expected: Annotated[str, "what is expected; empty if that is not one thing"] = ""
    hint: Annotated[str, "what to do; may be empty"] = ""

    @property
    def severity(self) -> Severity:
        """`error`, `unknown`, `warning` or `note`."""
        return "note" if self.code in _NOTES else _SEVERITIES[self.code[0]]

    @property
    def text(self) -> str:
        """The place and the message, for lists that show the code beside it."""
        return f"{self.where}: {self.message}" if self.where else self.message

    def __str__(self) -> str:
        expected = f", expected {self.expected}" if self.expected else ""
        return f"[{self.code}] {self.text}{expected}"


class BySeverity:
    """What a value with `findings` says of them."""

    __slots__ = ()

    if TYPE_CHECKING:  # a property here would be the default of a dataclass's field

        @property
        def findings(self) -> tuple[Finding, ...]:
            """All of them."""

    def of_severity(self, severity: Severity) -> tuple[Finding, ...]:
        """Those of one severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Reasons not to store or load the adapter."""
        return self.of_severity("error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Facts that users should know."""
        return self.of_severity("warning")

    @property
    def unknowns(self) -> tuple[Finding, ...]:
        """Questions that the checks cannot decide."""
        return self.of_severity("unknown")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """Facts in order, and skipped files."""
        return self.of_severity("note")

    @property
    def status(self) -> Status:
        """`failed` with an error, otherwise `unknown` when a question stayed open, otherwise `ok`."""
        return "failed" if self.errors else "unknown" if self.unknowns else "ok"
