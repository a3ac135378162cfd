"""The sample pictures of an adapter: files of its repository, sent as what their first bytes say that they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, Final

from sqlalchemy import ColumnElement, select
from sqlalchemy.engine import Connection

from adapterhub.pages.page import PageQuery
from adapterhub.pages.values import Picture, RawFile
from adapterhub_registry.database.db import commits, nodes, repos
from adapterhub_registry.database.prepared import PreparedSql
from adapterhub_registry.database.search_tables import among
from adapterhub_registry.database.trees import FileTree, TreeFile
from adapterhub_registry.errors import entry_not_found
from adapterhub_registry.pages.files import file_of, url_of
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.repos.repos import MAIN

MOST_BYTES: Final = 4 << 20
MOST_THUMBNAIL_BYTES: Final = 1 << 20
MOST_SHOWN: Final = 8
_ENDINGS: Final = frozenset({".png", ".jpg", ".jpeg", ".webp"})
_KINDS: Final = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))
_RIFF, _WEBP = b"RIFF", b"WEBP"


def pictures_of(repo: str, revision: str, front: Mapping[str, Any], entries: Sequence[TreeFile]) -> Iterator[Picture]:
    """Yield the pictures among some files, at most eight.

    `front` is the card's metadata, which may contain the prompt of each.
    """
    said = _said(front)
    found = [one for one in entries if _may_be(one, MOST_BYTES)]
    for one in sorted(found, key=lambda one: one.path not in said)[:MOST_SHOWN]:
        url = url_of(repo, "picture", revision, one.path)
        yield Picture(url=url, name=PurePosixPath(one.path).stem, caption=said.get(one.path, ""))


def thumbnails(here: Visit, connection: Connection, numbers: Sequence[int]) -> dict[int, str]:
    """Return the address of a sample picture for each of some repositories whose card shows one.

    Those whose files the visitor may not read have none here.
    """
    shown = _shown(here.registry.repos.readable(here.caller)).rows(connection, numbers=json.dumps(numbers))
    found = {
        row.id: _thumbnail_of(row.full_name, json.loads(row.card), FileTree(connection, row.id, row.root, top=row.body))
        for row in shown
    }
    return {number: url for number, url in found.items() if url}


@lru_cache(maxsize=64)
def _shown(readable: ColumnElement[bool]) -> PreparedSql:
    wanted = (
        select(repos.c.id, repos.c.full_name, repos.c.card, commits.c.root, nodes.c.body)
        .join_from(repos, commits, (commits.c.repo_id == repos.c.id) & (commits.c.id == repos.c.head))
        .join(nodes, (nodes.c.repo_id == commits.c.repo_id) & (nodes.c.id == commits.c.root))
        .where(among(repos.c.id, "numbers"))
    )
    return PreparedSql(wanted.where(repos.c.card.contains('"widget"'), readable))


def _thumbnail_of(repo: str, front: Mapping[str, Any], tree: FileTree) -> str:
    """Return the address of the first picture that a card shows, and that the files have; "" without one."""
    found = (tree.find(path) for path in list(_said(front))[:MOST_SHOWN])
    first = next((one for one in found if one is not None and _may_be(one, MOST_THUMBNAIL_BYTES)), None)
    return url_of(repo, "picture", MAIN, first.path) if first is not None else ""


def _said(front: Mapping[str, Any]) -> dict[str, str]:
    """Return the pictures that a card shows: their paths, and how each was made."""
    said = {}
    widgets = front.get("widget")
    for one in widgets if isinstance(widgets, list) else ():
        output = one.get("output") if isinstance(one, dict) else None
        if isinstance(output, dict) and isinstance(output.get("url"), str) and isinstance(one.get("text"), str):
            said[output["url"].removeprefix("./")] = one["text"][:200]
    return said


def _may_be(file: TreeFile, most_bytes: int) -> bool:
    return PurePosixPath(file.path).suffix.lower() in _ENDINGS and file.size <= most_bytes


def picture(here: Visit, asked: PageQuery) -> RawFile:
    """Return a picture of a repository.

    Raises:
        HttpRefusal: 404 for a file that is not a picture, or that is too large.
    """
    _, _, entry = file_of(here, asked)
    content = here.registry.blobs.open(entry.sha256)
    first = next(content, b"") if entry.size <= MOST_BYTES else b""
    kind = _kind_of(first)
    if kind is None:
        raise entry_not_found(entry.path)
    rest = (piece for pieces in ([first], content) for piece in pieces)
    return RawFile(path=entry.path, size=entry.size, is_text=False, etag=entry.etag, content=rest, media_type=kind)


def _kind_of(first: bytes) -> str | None:
    if first.startswith(_RIFF) and first[8:12] == _WEBP:
        return "image/webp"
    return next((kind for begin, kind in _KINDS if first.startswith(begin)), None)
