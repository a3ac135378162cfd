"""The result of an audit of one adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapterhub.core.digests import Digest
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
class Audited:
    """One target and its findings; `license` is the composition of its licences, `ignored` counts hidden findings."""

    target: Target
    report: Report
    license: Mapping[str, Any] | None = None
    ignored: int = 0

    def __repr__(self) -> str:
        return f"<Audited {self.target.label}: {self.report!r}>"

    def to_json(self) -> dict[str, Any]:
        """The JSON value; every key is always present."""
        target = self.target
        return {
            "adapter": target.label,
            "name": target.name,
            "version": target.version,
            "digest": target.digest,
            "path": str(target.folder),
            "status": self.report.status,
            "license": dict(self.license) if self.license is not None else None,
            "findings": [finding.to_json() for finding in self.report.findings],
            "ignored": self.ignored,
        }
