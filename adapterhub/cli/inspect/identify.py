"""`adapt identify`: identify an unknown file or folder, or list a folder of files."""

from __future__ import annotations

import shlex
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli.options.params import Session, common
from adapterhub.core.errors import NotFound, shown

if TYPE_CHECKING:
    from adapterhub.library.identify import Identity


@click.command()
@click.argument("paths", metavar="FILE|FOLDER|HASH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@common
def identify(session: Session, paths: tuple[Path, ...]) -> None:
    """Identify a file or folder: which adapter it is, for which base, and how certain that is.

    Compares the digests of its files and tensors with everything that is or was installed, then the names and sizes of
    its modules with the registered bases and well-known model families. `proven`: the bytes are the same. `likely`: it
    fits nothing else known here. `possible`: it fits others, too, or only its name matches.

    For a LoRA of diffusers, kohya, ComfyUI or MLX it also says program, family, rank, words that trigger it, and the
    hashes by which Civitai and kohya know it. Such a hash, given instead of a file, finds the adapter made of it.

    Several files, or a folder of files, are listed in one table: only headers are read, and the numbers of those alone
    that look like copies of another.

    Exits with code 10 when nothing matches.

    \b
    Examples:
      adapt identify ./old/adapter_model.safetensors
      adapt identify ./out/legal-qa --json
      adapt identify ~/loras
    """
    if len(paths) > 1 or _holds_several(paths[0]):
        from adapterhub.cli.inspect.identify_files import say_files

        say_files(session, paths)
        return
    from adapterhub.library.identify import identify as look

    path = paths[0]
    with session.out.progress("identify", None) as progress:
        identity = look(session.library, path, progress)
    for note in identity.notes:
        session.out.note(note)
    if not identity.matches and identity.lora is None:
        raise NotFound(
            f"`{shown(str(path), 200)}` matches no adapter and no object of the library by its bytes or tensors, "
            "and no base by its modules",
            hint="`adapt base add PATH` registers a base to compare with",
        )
    session.out.result(identity.to_json(), lambda: _say(session, identity))
    _hint(session, identity)


def _holds_several(path: Path) -> bool:
    """Whether a folder is one of many files, and not that of one adapter."""
    is_adapter = any((path / name).exists() for name in ("adapter_config.json", "adapter_model.safetensors"))
    return path.is_dir() and not is_adapter and len(list(islice(path.rglob("*.safetensors"), 2))) > 1


def _say(session: Session, identity: Identity) -> None:
    if identity.lora is not None:
        from adapterhub.cli.inspect.identify_files import facts_of

        for line in facts_of(identity.lora, identity.hashes):
            session.out.line(line)
    if not identity.matches:
        return
    rows = [(m.sure, m.what, m.name, m.how) for m in identity.matches]
    session.out.table(("sure", "what", "name", "how"), rows)


def _hint(session: Session, identity: Identity) -> None:
    """Suggest the next command."""
    adapter = next((m for m in identity.matches if m.what == "adapter" and m.sure == "proven" and m.folder), None)
    if adapter is not None:
        session.out.hint(f"`adapt info {shlex.quote(shown(adapter.name))}` shows its details")
        return
    base = next((m for m in identity.matches if m.what == "base" and m.sure != "possible" and m.folder), None)
    if base is not None and (identity.path.is_dir() or identity.lora is not None):
        folder = shlex.quote(str(identity.path))
        session.out.hint(f"`adapt add {folder} --name NAME --base {base.name}` checks that it fits and adds it")
