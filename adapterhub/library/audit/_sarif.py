"""An audit as SARIF 2.1.0 (OASIS, errata 01): the format that code scanning services read.

An undecided finding has the kind `open`, and a note the kind `informational`; both have the level `none`,
as section 3.27.10 wants it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from adapterhub.library.audit._report import Audited, Target
from adapterhub.trust.explaining import explanations
from adapterhub.trust.verify import Finding, Severity

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
    """The log: one run, a rule for each code that was found, a result for each finding."""
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


def _result(target: Target, finding: Finding, index: int, root: Path) -> dict[str, Any]:
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


def _artifact(target: Target, finding: Finding, root: Path) -> dict[str, Any]:
    """The file that a finding is about, else the folder; relative to the library where it lies in it."""
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
