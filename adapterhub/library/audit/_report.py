"""The result of an audit of one adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from adapterhub.core.digests import Digest
from adapterhub.formats.documented import Documented
from adapterhub.library.audit._composition import Composition
from adapterhub.trust.verify import Report

STORE: Final = "the store"
"""The label of findings that are about no adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The audited thing. `label` is a full name and version, a folder as typed, or `the store`."""

    label: str
    folder: Path
    name: str = ""
    version: str = ""
    digest: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Audited(
    Documented,
    keys="adapter=target.label name=target.name version=target.version digest=target.digest path=target.folder"
    " status=report.status license findings=report.findings ignored",
):
    """The audit of one adapter. `license` is the composition of its licences, `ignored` counts hidden findings."""

    target: Target
    report: Report
    license: Annotated[Composition | None, "null if it could not be read"] = None
    ignored: Annotated[int, "number of findings left out by --ignore"] = 0

    def __repr__(self) -> str:
        return f"<Audited {self.target.label}: {self.report!r}>"
