"""`adapt list --format`: adapters in the notation of other programs, each a name and a plain PEFT folder."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterhub.cli.output import json_text
from adapterhub.core.errors import shown

if TYPE_CHECKING:
    from adapterhub.cli.options.params import Session
    from adapterhub.library.library import Library
    from adapterhub.library.store.rows import BuildRow

FORMATS: Final = ("vllm", "peft", "json")

_NOT_PLAIN: Final = re.compile(r"[=,\s'\"\\$`]")
_NOT_A_NAME: Final = re.compile(r"[^A-Za-z0-9_]")


def project_adapters(session: Session, folder: Path) -> list[dict[str, Any]]:
    """The adapters in the project's `adapters/`, under their names there; warns about missing ones.

    Raises:
        NotFound, Malformed: there is no lock file, or it is damaged.
        SignatureRefused, NamespaceBound: a policy forbids using a build.
    """
    from adapterhub.core.disk.home import ADAPTERS_FOLDER
    from adapterhub.projects.builds import ensure_admissible
    from adapterhub.projects.lock.lockfile import read_lock

    entries = read_lock(folder).entries.values()
    ensure_admissible(session.library, entries, folders={e.key: folder / ADAPTERS_FOLDER / e.key for e in entries})
    found, missing = [], []
    for entry in entries:
        place = folder / ADAPTERS_FOLDER / entry.key
        if not place.is_dir():
            missing += [entry.key] if entry.group is None else []
            continue
        found.append(_adapter(entry.key, place, entry.version, entry.digest, entry.rank))
    if missing:
        session.out.warn(f"missing from `{ADAPTERS_FOLDER}/`: {', '.join(missing)}")
        session.out.hint("run `adapt sync`")
    return sorted(found, key=lambda one: one["name"])


def library_adapters(session: Session, rows: Sequence[BuildRow]) -> list[dict[str, Any]]:
    """Installed builds that are not yanked; builds that share a name also get their version and rank in it.

    Raises:
        SignatureRefused, NamespaceBound: a policy forbids using a build, so other programs must not get it.
    """
    from adapterhub.library.admission.admission import Admission

    library = session.library
    rows = list(_not_yanked(session, library, rows))
    admission = Admission(library)
    restricted = [row for row in rows if admission.restricts(row.namespace or None)]
    builds = library.still_in(session.root / row.folder for row in restricted)
    admission.ensure_all_usable((build, None) for build in builds)
    count = Counter(row.full_name for row in rows)
    named = Counter(_long_name(row) for row in rows)

    def name(row: BuildRow) -> str:
        if count[row.full_name] == 1:
            return row.full_name
        return _long_name(row) if named[_long_name(row)] == 1 else f"{_long_name(row)}-{row.digest[7:19]}"

    return [_adapter(name(row), session.root / row.folder, row.version, row.digest, row.rank) for row in rows]


def _not_yanked(session: Session, library: Library, rows: Sequence[BuildRow]) -> Iterator[BuildRow]:
    """The rows that another program may get; a warning tells of the others."""
    noted = library.yanks.noted()
    for row in rows:
        builds = library.still_in([session.root / row.folder] if row.digest in noted else [])
        reason = next((library.yanked(build) for build in builds), None)
        if reason is None:
            yield row
        else:
            session.out.warn(
                f"left out `{_long_name(row)}`, which is yanked: {shown(reason or 'no reason given', 200)}"
            )


def _long_name(row: BuildRow) -> str:
    return f"{row.full_name}-{row.version}" + (f"-r{row.rank}" if row.rank else "")


def _adapter(name: str, place: str | Path, version: str, digest: str, rank: int | None) -> dict[str, Any]:
    path = os.path.abspath(place)  # noqa: PTH100 - keeps links: the name that the user gave stays
    return {"name": name, "path": path, "version": version, "digest": digest, "rank": rank}


def lines_of(adapters: Sequence[dict[str, Any]], form: str) -> Iterator[str]:
    """One line for each adapter: an argument of vLLM's `--lora-modules`, or a call of PEFT."""
    if form == "json":
        yield json_text(adapters, indent=1)
        return
    for one in adapters:
        yield _vllm(one["name"], one["path"]) if form == "vllm" else _peft(one["name"], one["path"])


def _vllm(name: str, path: str) -> str:
    """`name=path`, or JSON, which vLLM also accepts, when a character in the path would end it."""
    if _NOT_PLAIN.search(name + path):
        return json_text({"name": name, "path": path}, compact=True)
    return f"{name}={path}"


def _peft(name: str, path: str) -> str:
    """A call of PEFT; its adapter names become module names, in which a dot would mean a submodule."""
    return f"model.load_adapter({json.dumps(path)}, adapter_name={json.dumps(_NOT_A_NAME.sub('_', name))})"
