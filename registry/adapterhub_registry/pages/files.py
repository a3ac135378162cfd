"""Folders and files of a revision."""

from __future__ import annotations

from itertools import islice
from typing import Any, Final
from urllib.parse import quote, urlencode

from sqlalchemy import Row
from sqlalchemy.engine import Connection

from adapterhub.pages.values.common import Link
from adapterhub.pages.values.files import BlobPage, FileLine, RawFile, TreePage
from adapterhub_registry.access.tokens import Caller
from adapterhub_registry.api.context import Registry
from adapterhub_registry.api.hub.files import Folder, walk_flat
from adapterhub_registry.database.trees.nodes import FileEntry
from adapterhub_registry.errors import entry_not_found
from adapterhub_registry.names import known_repo_id, parse_path
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.repos import commits

TREE_ROWS: Final = 200
MAX_TEXT_BYTES: Final = 256 << 10


def repo_of(registry: Registry, connection: Connection, caller: Caller, repo: str, *, files: bool = False) -> Row[Any]:
    """A repository that the caller may see, or with `files` read; else a `Refusal`."""
    namespace, _, name = repo.partition("/")
    find = registry.repos.find_files if files else registry.repos.find
    return find(connection, caller, known_repo_id(namespace, name))


def url_of(repo: str, kind: str, revision: str, path: str = "") -> str:
    """The address of a page about a revision, as clients of the Hub write it."""
    whole = f"/{repo}/{kind}/{quote(revision, safe='')}"
    return f"{whole}/{quote(path)}" if path else whole


def file_line(repo: str, revision: str, entry: FileEntry | Folder, *, below: str = "") -> FileLine:
    """The line of a file or folder in the folder `below`."""
    name = entry.path[len(below) + 1 :] if below else entry.path
    url = url_of(repo, "tree" if isinstance(entry, Folder) else "blob", revision, entry.path)
    if isinstance(entry, Folder):
        return FileLine(path=entry.path, name=name, url=url, is_folder=True, changed_at=entry.totals.changed_at)
    size, sha256, changed_at = entry.size, entry.sha256, entry.changed_at
    return FileLine(path=entry.path, name=name, url=url, size=size, sha256=sha256, changed_at=changed_at)


def tree_page(here: Visit, repo: str, revision: str, folder: str, after: str) -> TreePage:
    """A folder of a revision, `TREE_ROWS` lines at a time."""
    registry, caller = here.registry, here.caller
    if folder:
        parse_path(folder)
    with registry.db.read() as connection:
        row = repo_of(registry, connection, caller, repo)
        commit_id = commits.find_commit(connection, row, revision)
        tree = commits.tree_of(connection, row.id, commit_id)
        if folder and next(tree.walk(folder), None) is None:
            raise entry_not_found(folder)
        found = list(islice(walk_flat(tree, folder, after), TREE_ROWS + 1))
    place, name = url_of(row.full_name, "tree", revision, folder), row.full_name
    more = len(found) > TREE_ROWS
    return TreePage(
        repo=name,
        revision=revision,
        commit=commit_id,
        folder=folder,
        trail=_trail(name, revision, folder),
        entries=tuple(file_line(name, revision, entry, below=folder) for entry in found[:TREE_ROWS]),
        next_url=f"{place}?{urlencode({'after': found[TREE_ROWS - 1].path})}" if more else None,
    )


def blob_page(here: Visit, repo: str, revision: str, path: str) -> BlobPage:
    """A file, with its text where it is short and UTF-8."""
    registry, caller = here.registry, here.caller
    name, commit_id, entry = _file(registry, caller, repo, revision, path)
    text, why_not = None, ""
    if entry.size > MAX_TEXT_BYTES:
        why_not = f"The file is longer than {MAX_TEXT_BYTES >> 10} KiB, so the page leaves out its content."
    else:
        raw = b"".join(registry.blobs.open(entry.sha256))
        text = text_of(raw)
        why_not = "" if text is not None else "The file is not text, so the page leaves out its content."
    return BlobPage(
        repo=name,
        revision=revision,
        commit=commit_id,
        path=path,
        trail=_trail(name, revision, path.rpartition("/")[0]),
        sha256=entry.sha256,
        size=entry.size,
        text=text,
        why_not=why_not,
        raw_url=url_of(name, "raw", revision, path),
    )


def raw_file(here: Visit, repo: str, revision: str, path: str) -> RawFile:
    """The bytes of a file. Text is what may stand in a commit itself; what goes by LFS is downloaded."""
    registry, caller = here.registry, here.caller
    _, _, entry = _file(registry, caller, repo, revision, path)
    content = registry.blobs.open(entry.sha256)
    return RawFile(path=path, size=entry.size, is_text=not entry.lfs, etag=entry.etag, content=content)


def text_of(raw: bytes) -> str | None:
    """The text of a file; None when it is not UTF-8 or has NUL characters."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _file(registry: Registry, caller: Caller, repo: str, revision: str, path: str) -> tuple[str, str, FileEntry]:
    parse_path(path)
    with registry.db.read() as connection:
        row = repo_of(registry, connection, caller, repo, files=True)
        commit_id = commits.find_commit(connection, row, revision)
        return row.full_name, commit_id, commits.file_at(connection, row.id, commit_id, path)


def _trail(repo: str, revision: str, folder: str) -> tuple[Link, ...]:
    parts = folder.split("/") if folder else []
    below = [(part, "/".join(parts[: at + 1])) for at, part in enumerate(parts)]
    top = Link(text=repo, url=f"/{repo}"), Link(text=revision, url=url_of(repo, "tree", revision))
    return (*top, *(Link(text=part, url=url_of(repo, "tree", revision, path)) for part, path in below))
