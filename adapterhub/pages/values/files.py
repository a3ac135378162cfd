"""Commits, folders and files of one repository."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from adapterhub.pages.values.common import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLine:
    """A file or folder of a commit; a folder has no sha256. Size in bytes."""

    path: str
    name: str
    url: str
    is_folder: bool = False
    size: int = 0
    sha256: str | None = None
    changed_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TreePage:
    """The files and folders in one folder of a revision; `trail` leads from the repository down to it."""

    repo: str
    revision: str
    commit: str
    folder: str
    trail: tuple[Link, ...]
    entries: tuple[FileLine, ...]
    next_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobPage:
    """One file. `text` is None where the file is not text, or is too large; `why_not` says which. Size in bytes."""

    repo: str
    revision: str
    commit: str
    path: str
    trail: tuple[Link, ...]
    sha256: str
    size: int
    text: str | None
    why_not: str
    raw_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFile:
    """The bytes of a file as pieces, and its size in bytes."""

    path: str
    size: int
    is_text: bool
    etag: str
    content: Iterator[bytes] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One value of a config before and after, as JSON; None where it is absent. `key` is its path, as `a.b`."""

    key: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """A file that a commit added, changed or removed, and for a config the values that differ."""

    path: str
    kind: str
    url: str | None
    before_sha256: str | None
    after_sha256: str | None
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitPage:
    """One commit, and what differs from `before`: its parent, or the commit that the reader chose."""

    repo: str
    id: str
    title: str
    message: str
    author: str
    at: int
    tree_url: str
    parent: str | None
    parent_url: str | None
    before: str | None
    files: tuple[FileChange, ...]
    more_files: int
    versions: tuple[str, ...] = ()
