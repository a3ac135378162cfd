"""Audit installed adapters: origin, signer, files beside them, licences, and whether they may be used.

Each file is one check: `check(subject, around)` yields findings and changes nothing. Files that begin with an
underscore are not checks. Whether an adapter is intact is a question for `verify`, which an audit runs only on demand.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from adapterhub.core.errors import AdapterHubError
from adapterhub.formats.documented import Documented
from adapterhub.library.audit._report import STORE, Audited, Target
from adapterhub.library.audit._sarif import to_sarif
from adapterhub.library.audit._subject import FindSource, Subject, Surroundings, subject_of_build, subject_of_folder
from adapterhub.library.audit.licenses import composition_of
from adapterhub.library.installed import while_installed
from adapterhub.library.library import Library
from adapterhub.trust.verify import Finding, Report, exit_code_of

__all__ = [
    "STORE",
    "Audit",
    "Audited",
    "FindSource",
    "Subject",
    "Surroundings",
    "Target",
    "audit",
    "checks",
    "store_report",
    "subject_of_build",
    "subject_of_folder",
]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Audit(Documented, keys="schema exit_code counts ignored adapters"):
    """The audit of all adapters."""

    adapters: tuple[Audited, ...]
    strict: bool
    """Whether warnings and unknowns count for the exit code."""
    root: Path

    def __iter__(self) -> Iterator[Audited]:
        return iter(self.adapters)

    def __len__(self) -> int:
        return len(self.adapters)

    def __getitem__(self, at: int) -> Audited:
        return self.adapters[at]

    @property
    def schema(self) -> str:
        """`adapterhub/audit/1`."""
        return "adapterhub/audit/1"

    @property
    def exit_code(self) -> int:
        """Exit code of the command."""
        findings = (finding for one in self.adapters for finding in one.report.findings)
        return exit_code_of(findings, {"error", "warning", "unknown"} if self.strict else {"error"})

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of findings by severity."""
        every = [finding.severity for one in self.adapters for finding in one.report.findings]
        return {severity: every.count(severity) for severity in ("error", "warning", "unknown", "note")}

    @property
    def ignored(self) -> int:
        """Number of findings left out by --ignore."""
        return sum(one.ignored for one in self.adapters)

    def to_sarif(self) -> dict[str, Any]:
        """The same as a SARIF 2.1.0 document, for code scanning services."""
        import adapterhub

        return to_sarif(self.adapters, root=self.root, version=adapterhub.__version__)

    def __repr__(self) -> str:
        return f"<Audit of {len(self)}: {self.counts['error']} errors, {self.counts['warning']} warnings>"


def checks() -> tuple[str, ...]:
    """Names of the checks, which are the files of this folder."""
    return tuple(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def audit(subjects: Iterable[Subject], around: Surroundings, *, ignore: Sequence[str] = ()) -> Iterator[Audited]:
    """Run every check on each subject; findings with a code in `ignore` are left out and counted.

    A build that is removed meanwhile is passed over.
    """
    for subject in subjects:
        look = partial(_audited, subject, around, ignore)
        found = look() if subject.build is None else while_installed(subject.build, look)
        if found is not None:
            yield found


def _audited(subject: Subject, around: Surroundings, ignore: Sequence[str]) -> Audited:
    findings = [*subject.seen]
    for name in checks():
        findings += _run(name, subject, around)
    kept = [finding for finding in findings if finding.code not in ignore]
    return Audited(
        target=subject.target,
        report=Report.of(kept),
        license=composition_of(subject, around) if subject.manifest else None,
        ignored=len(findings) - len(kept),
    )


def _run(name: str, subject: Subject, around: Surroundings) -> list[Finding]:
    """The findings of a check; a check that cannot run becomes a finding, and the others go on."""
    module = importlib.import_module(f"adapterhub.library.audit.{name}")
    try:
        return list(module.check(subject, around))
    except AdapterHubError as error:
        message = f"the check `{name}` could not run: {error.message}"
        return [Finding(code="U_CHECK", severity="unknown", where="", message=message, hint=error.hint)]


def store_report(library: Library) -> Audited | None:
    """Findings for folders under `adapters/` whose content is unknown, so that no other check applies."""
    hint = "`adapt doctor --repair` mends what it can"
    findings = [
        Finding(code="E_MANIFEST", severity="error", where=where, message=broken.reason, hint=hint)
        for broken in library.broken()
        if (where := broken.folder.relative_to(library.root).as_posix())
    ]
    target = Target(label=STORE, folder=library.root)
    return Audited(target=target, report=Report.of(findings)) if findings else None
