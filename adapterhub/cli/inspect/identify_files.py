"""What `adapt identify` says of LoRA files of other programs: a table of many, or the facts of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from adapterhub.cli.output import size_text
from adapterhub.core.errors import shown

if TYPE_CHECKING:
    from pathlib import Path

    from adapterhub.cli.options.params import Session
    from adapterhub.library.identify import LoraFile
    from adapterhub.library.identify.lora_files import Hashes

_COLUMNS: Final = ("file", "base", "kind", "rank", "size", "triggers", "note")
_SHOWN_TRIGGERS: Final = 3


def say_files(session: Session, paths: Sequence[Path]) -> None:
    """List the files; the total counts duplicates and what no adapter is."""
    from adapterhub.library.identify import identify_files

    with session.out.progress("identify", None, unit="files") as progress:
        listed = identify_files(session.library, paths, progress)
    session.out.result(
        listed.to_json(), lambda: session.out.table(_COLUMNS, [_row(file, paths) for file in listed.files])
    )
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
    """The path below the folder that was given, or the name of a file that was."""
    folder = next((place for place in given if place != path and path.is_relative_to(place)), path.parent)
    return shown(path.relative_to(folder).as_posix(), 80)


def facts_of(file: LoraFile, hashes: Hashes | None) -> Iterator[str]:
    """The facts of one file, a line each."""
    parts = f" on {', '.join(file.parts)}" if file.parts else ""
    size = size_text(file.size_bytes)
    yield f"{file.method} of {file.program}{parts}: {file.modules} modules, rank {file.rank}, {size}"
    if file.title:
        yield f"title     {shown(file.title, 120)}"
    if file.triggers:
        yield f"triggers  {', '.join(shown(word, 60) for word in file.triggers)}"
    for name, digest in hashes.names if hashes is not None else ():
        yield f"{name:<9} {digest}"
