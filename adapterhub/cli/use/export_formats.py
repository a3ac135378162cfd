"""The part of `adapt export` that writes one adapter in one format, and says so."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.cli.output import size_text
from adapterhub.core.errors import shown
from adapterhub.core.extras import require

if TYPE_CHECKING:
    from adapterhub.cli.options.params import Session
    from adapterhub.core.specs import BaseSpec
    from adapterhub.inference.export import Exported

_SHOWN_PATHS = 6
_AS_GGUF = frozenset({"gguf", "ollama"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was typed."""

    adapter: str
    form: str
    output: Path
    base: BaseSpec | None = None
    dtype: str | None = None
    ollama_base: str | None = None
    allow_base_mismatch: bool = False


def write_format(session: Session, asked: Asked) -> None:
    """Write it and report; see `adapterhub.inference.export.export` for what is raised."""
    require("export" if asked.form in _AS_GGUF else "weights", f"`--format {asked.form}`")
    from adapterhub.inference.export import export

    out = session.out
    with out.steps(f"export {asked.form}", unit="bytes" if asked.form == "merged" else "modules") as progress:
        exported = export(
            asked.adapter,
            asked.output,
            form=asked.form,
            library=session.project_library,
            base=asked.base,
            dtype=asked.dtype,
            ollama_base=asked.ollama_base,
            allow_base_mismatch=asked.allow_base_mismatch,
            progress=progress,
        )
    out.result({"format": asked.form, **exported.to_json()}, lambda: _say(session, asked, exported))


def _say(session: Session, asked: Asked, exported: Exported) -> None:
    out = session.out
    label = shown(exported.label, 200)
    out.line(f"exported {label} as {asked.form}  {asked.output}  {size_text(exported.size_bytes)}")
    if asked.output.is_dir():
        for path in exported.paths[:_SHOWN_PATHS]:
            out.line(f"  {path.relative_to(asked.output)}")
        if len(exported.paths) > _SHOWN_PATHS:
            out.line(f"  and {len(exported.paths) - _SHOWN_PATHS} more")
    if exported.flags:
        out.line(f"  flags: {shlex.join(exported.flags)}")
    for note in exported.notes:
        out.note(f"note: {note}")
