"""`adapt identify`: identify an unknown file or folder, or list a folder of files."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from adapterhub.cli.options.params import Session, common
from adapterhub.cli.output import size_text
from adapterhub.core.errors import NotFound, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adapterhub.library.identify import Identity, LoraFile, LoraFiles
    from adapterhub.library.identify.lora_files import Hashes

_COLUMNS: Final = ("file", "base", "kind", "rank", "size", "triggers", "note")
_SHOWN_TRIGGERS: Final = 3


@click.command()
@click.argument("paths", metavar="FILE|FOLDER|HASH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@common
def identify(session: Session, paths: tuple[Path, ...]) -> None:
    """Identify a file or folder: which adapter it is, for which base, and how certain that is.

    Compares the digests of its files and tensors with everything that is or was installed, then the names and sizes of
    its modules with the registered bases and well-known model families. `proven`: the bytes are the same. `likely`: it
    fits nothing else known here. `possible`: it also fits others, or only its name matches.

    For a LoRA of diffusers, kohya, ComfyUI or MLX it also prints program, family, rank, trigger words, and the hashes
    by which Civitai and kohya know it. Pass such a hash instead of a file to find the adapter that was made from it.

    Several files, or a folder of files, are listed in one table: only headers are read, and the numbers of files
    that look like copies of another.

    Exits with code 10 when nothing matches.

    \b
    Examples:
      adapt identify ./old/adapter_model.safetensors
      adapt identify ./out/legal-qa --json
      adapt identify ~/loras
    """
    found: Any = session.opened.identify(*paths)
    if hasattr(found, "duplicates"):
        session.out.result(found.to_json(), lambda: _say_files(session, found, paths))
        return
    identity: Identity = found
    for note in identity.notes:
        session.out.note(note)
    if not identity.matches and identity.lora is None:
        raise NotFound(
            f"`{shown(str(paths[0]), 200)}` matches no adapter and no object of the library by its bytes or tensors, "
            "and no base by its modules",
            hint="`adapt base add PATH` registers a base to compare with",
        )
    session.out.result(identity.to_json(), lambda: _say(session, identity))
    _hint(session, identity)


def _say(session: Session, identity: Identity) -> None:
    if identity.lora is not None:
        for line in _facts_of(identity.lora, identity.hashes):
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


# ---------------------------------------------------------------- LoRA files of other programs
def _say_files(session: Session, listed: LoraFiles, paths: Sequence[Path]) -> None:
    """List the files; the total counts duplicates and what no adapter is."""
    session.out.table(_COLUMNS, [_row(file, paths) for file in listed.files])
    refused = sum(bool(file.problem) for file in listed.files)
    counts = (
        (listed.duplicates, "duplicate" + "s" * (listed.duplicates != 1)),
        (refused, "that `adapt add` does not take"),
    )
    told = "".join(f", {count} {what}" for count, what in counts if count)
    session.out.note(f"{len(listed.files)} file{'s' * (len(listed.files) != 1)}{told}")


def _row(file: LoraFile, given: Sequence[Path]) -> tuple[str, ...]:
    if file.duplicate_of is not None:
        note = f"same numbers as {_place(file.duplicate_of, given)}"
    elif file.adapter is not None:
        note = f"installed as {shown(file.adapter)}"
    else:
        note = file.problem
    kind = f"{file.method} {file.program}".strip()
    rank = "" if file.rank is None else str(file.rank)
    triggers = ", ".join(shown(word, 40) for word in file.triggers[:_SHOWN_TRIGGERS])
    return _place(file.path, given), file.family, kind, rank, size_text(file.size_bytes), triggers, shown(note, 120)


def _place(path: Path, given: Sequence[Path]) -> str:
    """Return the path below the folder that was given, or the name of a file that was."""
    folder = next((place for place in given if place != path and path.is_relative_to(place)), path.parent)
    return shown(path.relative_to(folder).as_posix(), 80)


def _facts_of(file: LoraFile, hashes: Hashes | None) -> Iterator[str]:
    """Yield the facts of one file, a line each."""
    parts = f" on {', '.join(file.parts)}" if file.parts else ""
    size = size_text(file.size_bytes)
    yield f"{file.method} of {file.program}{parts}: {file.modules} modules, rank {file.rank}, {size}"
    if file.title:
        yield f"title     {shown(file.title, 120)}"
    if file.triggers:
        yield f"triggers  {', '.join(shown(word, 60) for word in file.triggers)}"
    for name, digest in hashes.names if hashes is not None else ():
        yield f"{name:<9} {digest}"
