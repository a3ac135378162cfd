"""The findings of the listing: names, links and kinds of files, and what was skipped."""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.verify._report import Finding
from adapterhub.verify._subject import Subject


def check(subject: Subject) -> Iterator[Finding]:
    """What was skipped, and what is wrong with names and links."""
    yield from subject.listing.findings
