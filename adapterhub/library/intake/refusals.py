"""The checks that a folder must pass to become a build, and the errors for those that fail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapterhub.core.errors import BaseMismatch, RefusedAdapter, shown
from adapterhub.formats.manifest import Manifest
from adapterhub.library.bases.records import BaseRecord
from adapterhub.trust.verify import Finding, Report, Subject, open_subject, verify


def checked(
    folder: Path,
    manifest: Manifest,
    base: BaseRecord | None,
    seen: Sequence[Finding],
    scanned: Subject | None = None,
) -> Report:
    """Run every check on a folder that should match `manifest`; `scanned` as for `open_subject`."""
    subject, findings = open_subject(
        folder,
        base_tensors=base.tensors if base else None,
        base_fingerprint=base.fingerprint if base and manifest.base.fingerprint else None,
        manifest=manifest,
        scanned=scanned,
    )
    found = [*seen, *findings]
    return Report.of(found) if subject is None else verify(subject, seen=found)


def ensure_no_errors(what: str, findings: Sequence[Finding]) -> None:
    """Raise `refused` if a finding is an error."""
    if any(f.severity == "error" for f in findings):
        raise refused(what, findings)


def refused(what: str, findings: Sequence[Finding]) -> RefusedAdapter | BaseMismatch:
    """The exception for the errors among `findings`."""
    errors = [f for f in findings if f.severity == "error"]
    explain = f"`adapt help {errors[0].code}` says what to do" if errors else ""
    hint = next((f.hint for f in errors if f.hint), explain)
    head = f"refused `{shown(what.strip('`'), 200)}`. Nothing was stored"
    if errors and all(f.code == "E_BASE_MISMATCH" for f in errors):
        return BaseMismatch("\n".join([f"{head}: it does not fit the base", *(f"  {f}" for f in errors)]), hint=hint)
    return RefusedAdapter(head, [(f.code, str(f).removeprefix(f"[{f.code}] ")) for f in errors], hint=hint)
