"""The files of a repository: folders, files and commits."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from itertools import groupby, islice
from typing import Any, Final
from urllib.parse import quote, urlencode

from sqlalchemy import Row, select
from sqlalchemy.engine import Connection

from adapterhub.core.digests import strict_json
from adapterhub.pages.changes import changed
from adapterhub.pages.values import BlobPage, ChangeView, CommitPage, FileChange, FileLine, Link, RawFile, TreePage
from adapterhub_registry.access.tokens import Caller
from adapterhub_registry.api.context import Registry
from adapterhub_registry.api.hub.files import TreeFolder, walk_flat
from adapterhub_registry.database.db import commits as commits_table
from adapterhub_registry.database.db import releases
from adapterhub_registry.database.trees import EMPTY, FileTree, TreeFile, key_of
from adapterhub_registry.errors import HttpRefusal, entry_not_found
from adapterhub_registry.names import known_repo_id, parse_path
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.repos import commits

TREE_ROWS: Final = 200
MAX_TEXT_BYTES: Final = 256 << 10


def repo_of(registry: Registry, connection: Connection, caller: Caller, repo: str, *, files: bool = False) -> Row[Any]:
    """A repository that the caller may see, or with `files` read; else a `HttpRefusal`."""
    namespace, _, name = repo.partition("/")
    find = registry.repos.find_files if files else registry.repos.find
    return find(connection, caller, known_repo_id(namespace, name))


def url_of(repo: str, kind: str, revision: str, path: str = "") -> str:
    """The address of a page about a revision, as clients of the Hub write it."""
    whole = f"/{repo}/{kind}/{quote(revision, safe='')}"
    return f"{whole}/{quote(path)}" if path else whole


def file_line(repo: str, revision: str, entry: TreeFile | TreeFolder, *, below: str = "") -> FileLine:
    """The line of a file or folder in the folder `below`."""
    name = entry.path[len(below) + 1 :] if below else entry.path
    url = url_of(repo, "tree" if isinstance(entry, TreeFolder) else "blob", revision, entry.path)
    if isinstance(entry, TreeFolder):
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


def _file(registry: Registry, caller: Caller, repo: str, revision: str, path: str) -> tuple[str, str, TreeFile]:
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


MAX_FILES: Final = 100
MAX_VALUES: Final = 200
MAX_CONFIG_BYTES: Final = 256 << 10


def commit_page(here: Visit, repo: str, revision: str, before: str | None) -> CommitPage:
    """A commit against `before`, or against its parent. The values of configs need the right to read the files."""
    registry, caller = here.registry, here.caller
    with registry.db.read() as connection:
        row = repo_of(registry, connection, caller, repo)
        commit_id = commits.find_commit(connection, row, revision)
        wanted = select(commits_table).where(commits_table.c.repo_id == row.id, commits_table.c.id == commit_id)
        made = connection.execute(wanted).one()
        since = commits.find_commit(connection, row, before) if before else made.parent
        old = commits.tree_of(connection, row.id, since) if since else FileTree(connection, row.id, EMPTY)
        new = commits.tree_of(connection, row.id, commit_id)
        pairs = list(_differing(old, new))
        named = select(releases.c.version).where(releases.c.repo_id == row.id, releases.c.commit_id == commit_id)
        versions = tuple(sorted(connection.scalars(named)))
        try:
            repo_of(registry, connection, caller, repo, files=True)
            reads = True
        except HttpRefusal:
            reads = False
    name = row.full_name
    return CommitPage(
        repo=name,
        id=commit_id,
        title=made.title,
        message=made.message,
        author=made.author,
        at=made.created_at,
        tree_url=url_of(name, "tree", commit_id),
        parent=made.parent,
        parent_url=url_of(name, "commit", made.parent) if made.parent else None,
        before=since,
        files=tuple(_file_change(registry, name, commit_id, *pair, reads=reads) for pair in pairs[:MAX_FILES]),
        more_files=max(len(pairs) - MAX_FILES, 0),
        versions=versions,
    )


def _differing(old: FileTree, new: FileTree) -> Iterator[tuple[TreeFile | None, TreeFile | None]]:
    """The files that differ, by path."""
    both = heapq.merge(_keyed(old, 0), _keyed(new, 1), key=lambda item: item[:2])
    for _, same in groupby(both, key=lambda item: item[0]):
        pair = {side: entry for _, side, entry in same}
        before, after = pair.get(0), pair.get(1)
        if before is None or after is None or before.sha256 != after.sha256:
            yield before, after


def _keyed(tree: FileTree, side: int) -> Iterator[tuple[str, int, TreeFile]]:
    return ((key_of(entry.path), side, entry) for entry in tree.walk())


def _file_change(
    registry: Registry, repo: str, commit_id: str, before: TreeFile | None, after: TreeFile | None, *, reads: bool
) -> FileChange:
    path = (after or before).path  # type: ignore[union-attr]  # one of them is there
    kind = "Added" if before is None else "Removed" if after is None else "Changed"
    changes: tuple[ChangeView, ...] = ()
    if reads and path.endswith(".json") and before is not None:
        changes = tuple(changed(config_of(registry, before), config_of(registry, after)))[:MAX_VALUES]
    return FileChange(
        path=path,
        kind=kind,
        url=url_of(repo, "blob", commit_id, path) if after is not None else None,
        before_sha256=before.sha256 if before is not None else None,
        after_sha256=after.sha256 if after is not None else None,
        changes=changes,
    )


def config_of(registry: Registry, entry: TreeFile | None) -> Mapping[str, Any]:
    """The JSON object of a file; an empty one when there is none, or it is unreadable or long."""
    if entry is None or entry.lfs or entry.size > MAX_CONFIG_BYTES:
        return {}
    try:
        value = strict_json(b"".join(registry.blobs.open(entry.sha256)), limit_bytes=MAX_CONFIG_BYTES)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
