"""Write one adapter in one format for `adapt export`, and print what was written."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.cli.options.testing import tells_tests
from adapterhub.cli.output import size_text
from adapterhub.core.errors import shown
from adapterhub.core.extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.cli.options.params import Session
    from adapterhub.core.specs import BaseSpec
    from adapterhub.formats.contract.results import Tested
    from adapterhub.inference.export import Exported

_SHOWN_PATHS = 6
_AS_GGUF = frozenset({"gguf", "ollama"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """The arguments of an export."""

    adapter: str
    form: str
    output: Path
    base: BaseSpec | None = None
    dtype: str | None = None
    ollama_base: str | None = None
    allow_base_mismatch: bool = False
    test: bool = False
    gguf: Path | None = None
    llama_server: str | None = None


def write_format(session: Session, request: ExportRequest) -> None:
    """Export and print the result; raises as `adapterhub.inference.export.export` does."""
    require("export" if request.form in _AS_GGUF else "weights", f"`--format {request.form}`")
    from adapterhub.api.steps.contracts.exporting import export_test
    from adapterhub.inference.export import export

    out = session.out
    library = session.project_library
    asked = None
    if request.test:
        asked = export_test(
            library,
            request.form,
            on=request.base,
            gguf=request.gguf,
            llama_server=request.llama_server,
            bars=out,
        )
    with out.steps(f"export {request.form}", unit="bytes" if request.form == "merged" else "modules") as progress:
        exported = export(
            request.adapter,
            request.output,
            form=request.form,
            library=library,
            base=request.base,
            dtype=request.dtype,
            ollama_base=request.ollama_base,
            allow_base_mismatch=request.allow_base_mismatch,
            test=asked,
            progress=progress,
        )
    tests = asked.results if asked is not None else []
    document = {"format": request.form, **exported.to_json()}
    document |= {"tests": [one.to_json() for one in tests]} if request.test else {}
    out.result(document, lambda: _say(session, request, exported, tests))


def _say(session: Session, request: ExportRequest, exported: Exported, tests: Sequence[Tested]) -> None:
    out = session.out
    label = shown(exported.label, 200)
    out.line(f"exported {label} as {request.form}  {request.output}  {size_text(exported.size_bytes)}")
    if request.output.is_dir():
        for path in exported.paths[:_SHOWN_PATHS]:
            out.line(f"  {path.relative_to(request.output)}")
        if len(exported.paths) > _SHOWN_PATHS:
            out.line(f"  and {len(exported.paths) - _SHOWN_PATHS} more")
    if exported.flags:
        out.line(f"  flags: {shlex.join(exported.flags)}")
    tells_tests(session, tests)
    for note in exported.notes:
        out.note(f"note: {note}")
