"""Audit installed adapters: origin, signer, files beside them, licences, and whether they may be used.

Each file is one check: `check(subject, around)` yields findings and changes nothing. Files that begin with an
underscore are not checks. Whether an adapter is intact is a question for `verify`, which an audit runs only on demand.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from adapterhub.core.errors import AdapterHubError
from adapterhub.formats.documented import Documented
from adapterhub.library.audit._subject import (
    STORE,
    Audited,
    AuditedAdapter,
    AuditTarget,
    FindSource,
    Surroundings,
    subject_of_build,
    subject_of_folder,
)
from adapterhub.library.audit.licenses import composition_of
from adapterhub.library.installed import while_installed
from adapterhub.library.library import Library
from adapterhub.trust.explaining import explanations
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify import Report, Severity, exit_code_of

__all__ = [
    "STORE",
    "Audit",
    "AuditTarget",
    "Audited",
    "AuditedAdapter",
    "FindSource",
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
        """Return the same as a SARIF 2.1.0 document, for code scanning services."""
        import adapterhub

        return to_sarif(self.adapters, root=self.root, version=adapterhub.__version__)

    def __repr__(self) -> str:
        return f"<Audit of {len(self)}: {self.counts['error']} errors, {self.counts['warning']} warnings>"


def checks() -> tuple[str, ...]:
    """Names of the checks, which are the files of this folder."""
    return tuple(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def audit(subjects: Iterable[AuditedAdapter], around: Surroundings, *, ignore: Sequence[str] = ()) -> Iterator[Audited]:
    """Run every check on each subject; findings with a code in `ignore` are left out and counted.

    A build that is removed meanwhile is passed over.
    """
    for subject in subjects:
        look = partial(_audited, subject, around, ignore)
        found = look() if subject.build is None else while_installed(subject.build, look)
        if found is not None:
            yield found


def _audited(subject: AuditedAdapter, around: Surroundings, ignore: Sequence[str]) -> Audited:
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


def _run(name: str, subject: AuditedAdapter, around: Surroundings) -> list[Finding]:
    """Return the findings of a check; a check that cannot run becomes a finding, and the others go on."""
    module = importlib.import_module(f"adapterhub.library.audit.{name}")
    try:
        return list(module.check(subject, around))
    except AdapterHubError as error:
        message = f"the check `{name}` could not run: {error.message}"
        return [Finding("U_CHECK", "", message, hint=error.hint)]


def store_report(library: Library) -> Audited | None:
    """Return findings for folders under `adapters/` with unknown content, to which no other check applies."""
    hint = "`adapt doctor --repair` mends what it can"
    findings = [
        Finding("E_MANIFEST", where, broken.reason, hint=hint)
        for broken in library.broken()
        if (where := broken.folder.relative_to(library.root).as_posix())
    ]
    target = AuditTarget(label=STORE, folder=library.root)
    return Audited(target=target, report=Report.of(findings)) if findings else None


SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LIBRARY: Final = "LIBRARY"
"""The name by which locations refer to the root of the library."""

_LEVELS: Final[dict[Severity, tuple[str, str]]] = {
    "error": ("fail", "error"),
    "warning": ("fail", "warning"),
    "unknown": ("open", "none"),
    "note": ("informational", "none"),
}
_LIKE_A_FILE: Final = 255


def to_sarif(audited: Sequence[Audited], *, root: Path, version: str) -> dict[str, Any]:
    """Return the log: one run, a rule for each code that was found, a result for each finding."""
    root = root.absolute()
    pairs = [(one.target, finding) for one in audited for finding in one.report.findings]
    codes = sorted({finding.code: finding.severity for _, finding in pairs}.items())
    index = {code: number for number, (code, _) in enumerate(codes)}
    driver = {
        "name": "adapt audit",
        "version": version,
        "rules": [_rule(code, severity) for code, severity in codes],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {LIBRARY: {"uri": f"{root.as_uri()}/"}},
        "results": [_result(target, finding, index[finding.code], root) for target, finding in pairs],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(code: str, severity: Severity) -> dict[str, Any]:
    level = _LEVELS[severity][1]
    return {
        "id": code,
        "shortDescription": {"text": explanations()[code].text},
        "defaultConfiguration": {"level": "note" if level == "none" else level},
    }


def _result(target: AuditTarget, finding: Finding, index: int, root: Path) -> dict[str, Any]:
    kind, level = _LEVELS[finding.severity]
    expected = f"; expected {finding.expected}" if finding.expected else ""
    hint = f" ({finding.hint})" if finding.hint else ""
    key = "\0".join([finding.code, target.name or target.label, target.version, finding.where])
    location = {
        "physicalLocation": {"artifactLocation": _artifact(target, finding, root)},
        "logicalLocations": [{"fullyQualifiedName": target.label, "kind": "module"}],
    }
    return {
        "ruleId": finding.code,
        "ruleIndex": index,
        "kind": kind,
        "level": level,
        "message": {"text": f"{target.label}: {finding.message}{expected}{hint}"},
        "locations": [location],
        "partialFingerprints": {"finding/v1": hashlib.sha256(key.encode()).hexdigest()},
    }


def _artifact(target: AuditTarget, finding: Finding, root: Path) -> dict[str, Any]:
    """Return the file that a finding is about, or the folder; relative to the library if it lies in it."""
    place = target.folder.absolute()
    named = place / finding.where.partition(": ")[0]
    is_file = finding.where and len(finding.where) <= _LIKE_A_FILE and named.is_file()
    path = named if is_file else place
    end = "" if is_file else "/"
    if path == root:
        return {"uri": "./", "uriBaseId": LIBRARY}
    if path.is_relative_to(root):
        relative = path.as_uri().removeprefix(f"{root.as_uri()}/")
        return {"uri": relative + end, "uriBaseId": LIBRARY}
    return {"uri": path.as_uri() + end}
