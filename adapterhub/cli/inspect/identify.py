"""`adapt identify`: what a file or folder is that nobody remembers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli.options.params import Session, common
from adapterhub.core.errors import NotFound, shown

if TYPE_CHECKING:
    from adapterhub.library.identify import Identity


@click.command()
@click.argument("path", metavar="FILE|FOLDER", type=click.Path(path_type=Path))
@common
def identify(session: Session, path: Path) -> None:
    """Find out what a file or folder is: which adapter, for which base, and how sure that is.

    Matched by the digests of its files, then of its tensors, against what is and was installed; then by the names and
    sizes of its modules against the registered bases and well-known families. `proven`: the bytes are the same.
    `likely`: nothing else known here fits. `possible`: others fit as well, or only a name says so.

    Exit code 10: nothing is known of it.

    \b
    Examples:
      adapt identify ./old/adapter_model.safetensors
      adapt identify ./out/legal-qa --json
    """
    from adapterhub.library.identify import identify as look

    with session.out.progress("identify", None) as progress:
        found = look(session.library, path, progress)
    for note in found.notes:
        session.out.note(note)
    if not found.matches:
        raise NotFound(
            f"nothing is known of `{shown(str(path), 200)}`: no adapter or object of the library has its bytes or "
            "tensors, and no base its modules",
            hint="`adapt base add PATH` registers a base to compare with",
        )
    session.out.result(found.to_json(), lambda: _say(session, found))
    _hint(session, found)


def _say(session: Session, found: Identity) -> None:
    rows = [(m.sure, m.what, m.name, m.how) for m in found.matches]
    session.out.table(("sure", "what", "name", "how"), rows)


def _hint(session: Session, found: Identity) -> None:
    """What to do with what was found."""
    adapter = next((m for m in found.matches if m.what == "adapter" and m.sure == "proven" and m.folder), None)
    if adapter is not None:
        session.out.hint(f"`adapt info {shlex.quote(shown(adapter.name))}` shows everything about it")
        return
    base = next((m for m in found.matches if m.what == "base" and m.sure != "possible" and m.folder), None)
    if base is not None and found.path.is_dir():
        folder = shlex.quote(str(found.path))
        session.out.hint(f"`adapt add {folder} --name NAME --base {base.name}` takes it in, and checks that it fits")
