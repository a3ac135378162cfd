"""The files of a repository: folders, files and commits."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby, islice
from typing import Any, Final
from urllib.parse import quote, urlencode

from sqlalchemy import Row, select
from sqlalchemy.engine import Connection

from adapterhub.core.digests import strict_json
from adapterhub.pages.figures import changed
from adapterhub.pages.page import PageQuery
from adapterhub.pages.values import (
    BlobPage,
    ChangeView,
    CommitPage,
    FileChange,
    FileLine,
    Link,
    RawFile,
    TreePage,
    VersionLine,
)
from adapterhub_registry.access.callers import Caller
from adapterhub_registry.api.context import Registry
from adapterhub_registry.api.hub.files import TreeFolder, walk_flat
from adapterhub_registry.database.db import adapters, releases
from adapterhub_registry.database.db import commits as commits_table
from adapterhub_registry.database.trees import EMPTY, FileTree, TreeFile, key_of
from adapterhub_registry.errors import HttpRefusal, entry_not_found
from adapterhub_registry.names import known_repo_id, parse_path, split
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.repos import commits
from adapterhub_registry.repos.adapters import versions_of

TREE_ROWS: Final = 200
VERSIONS_SHOWN: Final = 50
MAX_TEXT_BYTES: Final = 256 << 10


def repo_of(registry: Registry, connection: Connection, caller: Caller, repo: str, *, files: bool = False) -> Row[Any]:
    """Return a repository that the caller may see, or with `files` read, or raise a `HttpRefusal`."""
    find = registry.repos.find_files if files else registry.repos.find
    return find(connection, caller, known_repo_id(*split(repo)))


def may_read(here: Visit, connection: Connection, repo: str) -> bool:
    """Return whether the visitor may read the files of a repository."""
    try:
        repo_of(here.registry, connection, here.caller, repo, files=True)
    except HttpRefusal:
        return False
    return True


def url_of(repo: str, kind: str, revision: str, path: str = "") -> str:
    """Return the address of a page about a revision, as clients of the Hub write it."""
    whole = f"/{repo}/{kind}/{quote(revision, safe='')}"
    return f"{whole}/{quote(path)}" if path else whole


def tabs_of(
    here: Visit,
    repo: str,
    tab: str,
    *,
    build: str | None,
    revision: str,
    versions: int | None,
    files: int | None = None,
) -> tuple[Link, ...]:
    """Return the pages about a repository, of which the reader sees `tab`.

    `build` names an adapter in an address, and is None if there is none. The numbers of `versions` and `files` are
    None if they are unknown.
    """
    found = [Link(text="Overview", url=f"/{repo}", is_here=tab == "overview")]
    if build is not None:
        found.append(Link(text="Weights", url=f"/{repo}/{quote(build, safe='')}", is_here=tab == "weights"))
    if versions != 0:
        found.append(Link(text="Versions", url=f"/{repo}?tab=versions", is_here=tab == "versions", count=versions))
    found.append(Link(text="Files", url=url_of(repo, "tree", revision), is_here=tab == "files", count=files))
    if build is not None:
        lineage = f"/lineage/{repo}?{urlencode({'version': build})}"
        found.append(Link(text="Lineage", url=lineage, is_here=tab == "lineage"))
        found.append(Link(text="Compare", url=f"/compare?{urlencode({'a': repo})}"))
    if here.viewer.is_admin:
        found.append(Link(text="Yank or delete", url=f"/admin-adapter?{urlencode({'repo': repo})}"))
    return tuple(found)


def file_line(repo: str, revision: str, entry: TreeFile | TreeFolder, *, below: str = "") -> FileLine:
    """Return the line of a file or folder in the folder `below`."""
    name = entry.path[len(below) + 1 :] if below else entry.path
    url = url_of(repo, "tree" if isinstance(entry, TreeFolder) else "blob", revision, entry.path)
    if isinstance(entry, TreeFolder):
        return FileLine(path=entry.path, name=name, url=url, is_folder=True, changed_at=entry.totals.changed_at)
    size, sha256, changed_at = entry.size, entry.sha256, entry.changed_at
    return FileLine(path=entry.path, name=name, url=url, size=size, sha256=sha256, changed_at=changed_at)


def listed_versions(
    connection: Connection, repo_id: int, url: Callable[[Row[Any]], str], *, below: str | None
) -> tuple[tuple[VersionLine, ...], str | None]:
    """Return the newest versions, or those below one, and the one below which the rest begins; `url` is of a row."""
    found = versions_of(connection, repo_id, limit=VERSIONS_SHOWN + 1, below=below or None)
    lines = tuple(version_line(one, url(one)) for one in found[:VERSIONS_SHOWN])
    return lines, lines[-1].version if len(found) > VERSIONS_SHOWN else None


def version_line(row: Row[Any], url: str) -> VersionLine:
    """One released version, a row of `versions_of`."""
    return VersionLine(
        version=row.released_as,
        url=url,
        commit=row.commit_id,
        digest=f"sha256:{row.digest}",
        released_at=row.released_at,
        yanked_at=row.yanked_at,
        yanked_by=row.yanked_by,
        yanked_reason=row.yanked_reason,
    )


def tree_page(here: Visit, asked: PageQuery) -> TreePage:
    """Return a folder of a revision, `TREE_ROWS` lines at a time."""
    registry, caller, revision = here.registry, here.caller, asked.path["revision"]
    folder = asked.path.get("path", "").strip("/")
    if folder:
        parse_path(folder)
    with registry.db.read() as connection:
        row = repo_of(registry, connection, caller, asked.repo)
        commit_id = commits.find_commit(connection, row, revision)
        tree = commits.tree_of(connection, row.id, commit_id)
        if folder and next(tree.walk(folder), None) is None:
            raise entry_not_found(folder)
        found = list(islice(walk_flat(tree, folder, asked.query.get("after", "")), TREE_ROWS + 1))
        here_is = select(adapters.c.repo_id).where(adapters.c.repo_id == row.id, adapters.c.commit_id == commit_id)
        has_build = connection.scalar(here_is.limit(1)) is not None
        has_versions = bool(versions_of(connection, row.id, limit=1))
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
        tabs=tabs_of(
            here,
            name,
            "files",
            build=revision if has_build else None,
            revision=revision,
            versions=None if has_versions else 0,
            files=tree.totals().files,
        ),
    )


def blob_page(here: Visit, asked: PageQuery) -> BlobPage:
    """Return a file, with its text where it is short and UTF-8."""
    name, commit_id, entry = file_of(here, asked)
    revision, path = asked.path["revision"], asked.path["path"]
    text, why_not = None, ""
    if entry.size > MAX_TEXT_BYTES:
        why_not = f"The file is longer than {MAX_TEXT_BYTES >> 10} KiB, so the page leaves out its content."
    else:
        text = text_of(b"".join(here.registry.blobs.open(entry.sha256)))
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


def raw_file(here: Visit, asked: PageQuery) -> RawFile:
    """Return the bytes of a file. Text is what may stand in a commit itself; what goes by LFS is downloaded."""
    _, _, entry = file_of(here, asked)
    content = here.registry.blobs.open(entry.sha256)
    return RawFile(path=entry.path, size=entry.size, is_text=not entry.lfs, etag=entry.etag, content=content)


def text_of(raw: bytes) -> str | None:
    """Return the text of a file; None when it is not UTF-8 or has NUL characters."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def file_of(here: Visit, asked: PageQuery) -> tuple[str, str, TreeFile]:
    """Return the repository, the commit and the file that an address names; raises unless the caller may read it."""
    path = parse_path(asked.path["path"])
    with here.registry.db.read() as connection:
        row = repo_of(here.registry, connection, here.caller, asked.repo, files=True)
        commit_id = commits.find_commit(connection, row, asked.path["revision"])
        return row.full_name, commit_id, commits.file_at(connection, row.id, commit_id, path)


def _trail(repo: str, revision: str, folder: str) -> tuple[Link, ...]:
    parts = folder.split("/") if folder else []
    below = [(part, "/".join(parts[: at + 1])) for at, part in enumerate(parts)]
    top = Link(text=repo, url=f"/{repo}"), Link(text=revision, url=url_of(repo, "tree", revision))
    return (*top, *(Link(text=part, url=url_of(repo, "tree", revision, path)) for part, path in below))


MAX_FILES: Final = 100
MAX_VALUES: Final = 200
MAX_CONFIG_BYTES: Final = 256 << 10


def commit_page(here: Visit, asked: PageQuery) -> CommitPage:
    """Return a commit against `before`, or against its parent.

    The values of configs need the right to read the files.
    """
    registry, caller = here.registry, here.caller
    with registry.db.read() as connection:
        row = repo_of(registry, connection, caller, asked.repo)
        commit_id = commits.find_commit(connection, row, asked.path["revision"])
        wanted = select(commits_table).where(commits_table.c.repo_id == row.id, commits_table.c.id == commit_id)
        made = connection.execute(wanted).one()
        before = asked.query.get("before")
        since = commits.find_commit(connection, row, before) if before else made.parent
        old = commits.tree_of(connection, row.id, since) if since else FileTree(connection, row.id, EMPTY)
        new = commits.tree_of(connection, row.id, commit_id)
        pairs = list(_differing(old, new))
        named = select(releases.c.version).where(releases.c.repo_id == row.id, releases.c.commit_id == commit_id)
        versions = tuple(sorted(connection.scalars(named)))
        reads = may_read(here, connection, asked.repo)
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
    """Yield the files that differ, by path."""
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
    """Return the JSON object of a file; an empty one when there is none, or it is unreadable or long."""
    if entry is None or entry.lfs or entry.size > MAX_CONFIG_BYTES:
        return {}
    try:
        value = strict_json(b"".join(registry.blobs.open(entry.sha256)), limit_bytes=MAX_CONFIG_BYTES)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
