"""Audit installed adapters: origin, signer, files beside them, licences, and whether they may be used.

Each file is one check: `check(subject, around)` yields findings and changes nothing. Files that begin with an
underscore are not checks. Whether an adapter is intact is a question for `verify`, which an audit runs only on demand.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from adapterhub.core.errors import AdapterHubError
from adapterhub.library.audit._report import STORE, Audited, Target
from adapterhub.library.audit._sarif import to_sarif
from adapterhub.library.audit._subject import FindSource, Subject, Surroundings, subject_of_build, subject_of_folder
from adapterhub.library.audit.licenses import composition_of
from adapterhub.library.installed import while_installed
from adapterhub.library.library import Library
from adapterhub.trust.verify import Finding, Report

__all__ = [
    "STORE",
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
    "to_sarif",
]


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
