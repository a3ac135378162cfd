"""The findings of the listing: names, links and kinds of files, and what was skipped."""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.trust.verify.report import Finding
from adapterhub.trust.verify.subject import Subject


def check(subject: Subject) -> Iterator[Finding]:
    """Skipped files, and problems with names and links."""
    yield from subject.listing.findings
