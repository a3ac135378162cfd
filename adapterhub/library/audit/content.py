"""Whether every byte is correct and every number usable: the checks of `verify`, on demand."""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.library.audit._subject import AuditedAdapter, Surroundings
from adapterhub.trust.findings import Finding
from adapterhub.trust.verify import verify_folder


def check(subject: AuditedAdapter, around: Surroundings) -> Iterator[Finding]:
    """Yield the errors of `verify`; its warnings concern use, not trust."""
    if not around.with_bytes:
        return
    if subject.build is not None:
        base = around.base_of(subject.base.fingerprint)
        report = around.library.verify_build(subject.build, base, around.progress)
    else:
        report = verify_folder(subject.folder, base_named=True, progress=around.progress)
    yield from report.errors
