"""The result of `adapt add`, as a line and as a document, for every command that adds an adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.api.opened import report_card, report_likeness, report_warnings
from adapterhub.cli.output import size_text

if TYPE_CHECKING:
    from adapterhub.cli.options.params import Session
    from adapterhub.library.library import Added


def say_added(session: Session, added: Added, verb: str) -> None:
    """Print the added build and the warnings of its checks."""
    report_warnings(session, added)
    report_card(session, added)
    report_likeness(session, added)
    session.out.result(added.to_json(), lambda: session.out.line(added_line(added, verb)))


def added_line(added: Added, verb: str) -> str:
    """The added build in one line, after `verb`."""
    build, manifest = added.build, added.build.manifest
    state = verb if added.created else "already installed:"
    base, size = build.base_name or "an unknown base", size_text(manifest.size_bytes)
    return f"{state} {build.full_name} {manifest.label} for {base}  {size}  {manifest.digest}"
