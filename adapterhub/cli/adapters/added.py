"""The result of `adapt add`, as a line and as a document, for every command that adds an adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapterhub.api.reporting import report_warnings
from adapterhub.cli.output import size_text

if TYPE_CHECKING:
    from adapterhub.cli.options.params import Session
    from adapterhub.library.library import Added


def say_added(session: Session, added: Added, verb: str) -> None:
    """Print the added build and the warnings of its checks."""
    report_warnings(session, added)
    session.out.result(added_document(added), lambda: session.out.line(added_line(added, verb)))


def added_line(added: Added, verb: str) -> str:
    """The added build in one line, after `verb`."""
    build, manifest = added.build, added.build.manifest
    state = verb if added.created else "already installed:"
    base, size = build.base_name or "an unknown base", size_text(manifest.size_bytes)
    return f"{state} {build.full_name} {manifest.label} for {base}  {size}  {manifest.digest}"


def added_document(added: Added) -> dict[str, Any]:
    """The JSON document of an added build."""
    build, manifest = added.build, added.build.manifest
    return {
        "name": build.full_name,
        "version": manifest.version,
        "base": build.base_name,
        "digest": manifest.digest,
        "created": added.created,
        "rank": manifest.rank,
        "size_bytes": manifest.size_bytes,
        "path": str(build.folder),
        "warnings": [f.to_json() for f in added.report.warnings],
    }
