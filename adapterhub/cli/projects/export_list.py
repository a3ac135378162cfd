"""`adapt export --requirements`: write the project's or the library's adapters as a plain list."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.core.disk.output_place import output_place
from adapterhub.core.errors import NotAllowed, UsageProblem

if TYPE_CHECKING:
    from adapterhub.cli.options.params import Session
    from adapterhub.projects.values import Locked


def write_list(
    session: Session, output: Path | None, *, groups: tuple[str, ...], all_groups: bool, is_library: bool
) -> None:
    """Write the locked adapters of the project, else the installed ones, one `name==version#sha256:digest` per line."""
    folder = None if is_library else session.project_folder
    if folder is None and (groups or all_groups):
        raise UsageProblem("`--group` needs a project, and there is none here", hint="run it without `--group`")
    if folder is None:
        lines = sorted(f"{b.full_name}=={b.manifest.version}#{b.manifest.digest}" for b in session.library.installed())
    else:
        lines = _locked(session, folder, None if all_groups else groups)
    text = "".join(f"{line}\n" for line in lines)
    if output is not None:
        place = output_place(output)
        try:
            place.write_text(text, encoding="utf-8")
        except OSError as error:
            raise NotAllowed(f"cannot write `{output}`: {error.strerror}") from None
    document = {"requirements": lines, "output": str(output) if output else None}
    session.out.result(document, lambda: None if output else session.out.piece(text))
    if output is not None:
        session.out.note(f"wrote {len(lines)} adapters to `{output}`")


def _locked(session: Session, folder: Path, groups: tuple[str, ...] | None) -> list[str]:
    from adapterhub.projects.lock.lockfile import read_lock
    from adapterhub.projects.sync import wanted_entries

    lock = read_lock(folder)
    if groups and (unknown := [name for name in groups if name not in {e.group for e in lock.entries.values()}]):
        raise UsageProblem(f"the lock file has no adapter in a group `{unknown[0]}`")
    entries = wanted_entries(lock, groups)
    left = [f"`{entry.key}`" for entry in entries if _is_home_made(entry)]
    if left:
        session.out.warn(f"skipped, because only their recipe is published: {', '.join(left)}")
    return sorted(_line(entry) for entry in entries if not _is_home_made(entry))


def _is_home_made(entry: Locked) -> bool:
    from adapterhub.projects.values import LockedMerge

    return isinstance(entry, LockedMerge) and entry.source.is_library


def _line(entry: Locked) -> str:
    from adapterhub.projects.builds import exact_spec

    return f"{exact_spec(entry)}#{entry.digest}"
