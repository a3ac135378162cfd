"""Describes a repository as the Hub API does: in listings, in model info, and by member with `expand`."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Final

from pydantic_core import from_json
from sqlalchemy import Row, func, select
from sqlalchemy.engine import Connection

from adapterhub_registry.api.context import dumped
from adapterhub_registry.database.db import Database, commits, repo_tags, repos
from adapterhub_registry.database.prepared import Listed, Prepared
from adapterhub_registry.database.search_tables import among
from adapterhub_registry.database.trees.nodes import FileEntry, Node, Outline
from adapterhub_registry.database.trees.trees import Digests, Tree
from adapterhub_registry.repos import adapters, card
from adapterhub_registry.repos.commits import tree_of
from adapterhub_registry.storage.blobs import BlobStore

ALWAYS = ("_id", "id")
FEW_AT_ONCE: Final = 20
LISTED_AT_ONCE: Final = 100
CHARACTERS_AT_ONCE: Final = 1 << 20
SIBLINGS_AT_ONCE: Final = 1000
_STATE = ("sha", "createdAt", "lastModified", "private", "gated", "disabled", "downloads", "likes", "trendingScore")
LISTED = frozenset({"modelId", "author", "tags", "pipeline_tag", "library_name", *_STATE})


@lru_cache(maxsize=4096)
def iso_time(at_ms: int) -> str:
    """A time as `2026-11-24T10:00:00.000Z`, the only form that all clients read."""
    return dt.datetime.fromtimestamp(at_ms / 1000, tz=dt.timezone.utc).isoformat(timespec="milliseconds")[:23] + "Z"


def public_number(row: Row[Any]) -> str:
    """The Hub's 24 hex digits for a repository; its own number would let clients count private ones."""
    return hashlib.sha256(f"{row.full_name} {row.created_at}".encode()).hexdigest()[:24]


def tags_of(connection: Connection, repo_ids: Iterable[int]) -> dict[int, list[str]]:
    """The sorted tags of some repositories."""
    wanted = list(repo_ids)
    found = dict(_TAGS.tuples(connection, numbers=json.dumps(wanted)))
    return {number: sorted(from_json(found.get(number, "[]"))) for number in wanted}


_TAGS: Final = Prepared(
    select(repo_tags.c.repo_id, Listed(repo_tags.c.tag))
    .where(among(repo_tags.c.repo_id, "numbers"))
    .group_by(repo_tags.c.repo_id)
)
_ROWS: Final = Prepared(select(repos).where(among(repos.c.id, "numbers")))


def row_of(connection: Connection, repo_id: int) -> Row[Any]:
    """The row of a repository that is there."""
    row: Row[Any] = _ROWS.rows(connection, numbers=json.dumps([repo_id]))[0]
    return row


def runs_of(connection: Connection, ids: Sequence[int]) -> list[list[int]]:
    """Some repositories in the runs in which `listed` reads them.

    `FEW_AT_ONCE` are one run, whatever their size. A run of more has at most `LISTED_AT_ONCE`, whose cards and
    configurations have at most `CHARACTERS_AT_ONCE` together.
    """
    if len(ids) <= FEW_AT_ONCE:
        return [list(ids)]
    sizes = dict(_SIZES.tuples(connection, numbers=json.dumps(list(ids))))
    runs: list[list[int]] = [[]]
    characters = 0
    for number in ids:
        characters += sizes[number]
        if runs[-1] and (characters > CHARACTERS_AT_ONCE or len(runs[-1]) == LISTED_AT_ONCE):
            runs.append([])
            characters = sizes[number]
        runs[-1].append(number)
    return runs


_SIZES: Final = Prepared(
    select(repos.c.id, func.length(repos.c.card) + func.length(repos.c.config)).where(among(repos.c.id, "numbers"))
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a listing says of each repository: `ALWAYS`, `members`, and of its files what is known in `outlines`."""

    blobs: BlobStore
    sees: Callable[[Row[Any]], bool]
    reads: Callable[[Connection, Row[Any]], bool]
    members: AbstractSet[str]
    outlines: Mapping[tuple[int, str], Outline]


Told = tuple[dict[str, Any], int, str | None]
"""The facts of a repository, its number, and the root of its files where they are read later."""


def told(connection: Connection, ids: Sequence[int], wanted: Wanted) -> list[Told]:
    """Some repositories at their heads, without those that were removed, or that the caller no longer `sees`."""
    rows = {row.id: row for row in _ROWS.rows(connection, numbers=json.dumps(ids)) if wanted.sees(row)}
    tags = tags_of(connection, rows) if "tags" in wanted.members else {}
    found: list[Told] = []
    for row in (rows[number] for number in ids if number in rows):
        info = _chosen(connection, wanted, row, tags.get(row.id, []))
        outline = wanted.outlines.get((row.id, row.head))
        root = None
        if outline is not None and outline.paths is not None:
            info["siblings"] = [{"rfilename": path} for path in outline.paths]
        elif "siblings" in wanted.members:
            root = tree_of(connection, row.id, row.head).root
        found.append((info, row.id, root))
    return found


def listed(database: Database, first: list[Told], runs: Sequence[Sequence[int]], wanted: Wanted) -> Iterator[bytes]:
    """JSON of the repositories in `first` and in the runs behind it, each of which it reads when its turn comes."""
    before, found = b"[", first
    for some in (*runs, None):
        for info, number, root in found:
            yield before
            yield from described(database, info, number, root, with_blobs=False)
            before = b","
        if some is not None:
            with database.read() as connection:
                found = told(connection, some, wanted)
    yield b"[]" if before == b"[" else b"]"


def _chosen(connection: Connection, wanted: Wanted, row: Row[Any], tags: list[str]) -> dict[str, Any]:
    info = at_head(row, tags)
    if wanted.members & {"cardData", "config"}:
        info |= documents_of(row)
        if not wanted.reads(connection, row):
            info["cardData"] = card.open_part(info["cardData"])
    if wanted.members & {"safetensors", "baseModels", "adapt"}:
        info |= at_commit(connection, wanted.blobs, row, row.head)
    for name in info.keys() - wanted.members:
        if name not in ALWAYS:
            del info[name]
    return info


def described(
    database: Database,
    info: Mapping[str, Any],
    repo_id: int,
    root: str | None,
    *,
    with_blobs: bool,
    top: Node | None = None,
) -> Iterator[bytes]:
    """JSON of one repository; with the tree's `root`, it includes the files as `siblings`, read page by page.

    With the `top` node of a tree that has no other, it includes them, too, and reads nothing.
    """
    if top is not None and not top.height:
        yield dumped({**info, "siblings": [_sibling(entry, with_blobs=with_blobs) for entry in top.items]})
        return
    if root is None:
        yield dumped(info)
        return
    yield dumped(info)[:-1] + b',"siblings":['
    after, before = "", b""
    while True:
        with database.read() as connection:
            page = list(islice(Tree(connection, repo_id, root).walk(after=after), SIBLINGS_AT_ONCE))
        if page:
            yield before + b",".join(dumped(_sibling(entry, with_blobs=with_blobs)) for entry in page)
            after, before = page[-1].path, b","
        if len(page) < SIBLINGS_AT_ONCE:
            yield b"]}"
            return


def at_head(row: Row[Any], tags: list[str]) -> dict[str, Any]:
    """The facts in the row of a repository."""
    return {
        "_id": public_number(row),
        "id": row.full_name,
        "modelId": row.full_name,
        "author": row.namespace,
        "sha": row.head,
        "createdAt": iso_time(row.created_at),
        "lastModified": iso_time(row.modified_at),
        "private": bool(row.private),
        "gated": row.gated or False,
        "disabled": False,
        "downloads": row.downloads,
        "likes": 0,
        "trendingScore": 0,
        "tags": tags,
        "pipeline_tag": row.pipeline_tag,
        "library_name": row.library_name,
        "usedStorage": row.used_bytes,
        "spaces": [],
    }


def documents_of(row: Row[Any]) -> dict[str, Any]:
    """The card and the configuration in the row of a repository."""
    return {"cardData": _document(row.card), "config": _document(row.config)}


def _document(text: str) -> Any:  # noqa: ANN401 - any JSON
    return {} if text == "{}" else json.loads(text)


def at_commit(connection: Connection, blobs: BlobStore, row: Row[Any], commit_id: str) -> dict[str, Any]:
    """The facts that the files of one commit add; for an older commit than the head also its card and date."""
    info: dict[str, Any] = {"sha": commit_id}
    adapt = adapters.adapt_object(connection, row.id, commit_id)
    if adapt is not None:
        info["adapt"] = adapt
        if adapt["parameters"]:
            info["safetensors"] = {"parameters": {adapt["dtype"]: adapt["parameters"]}, "total": adapt["parameters"]}
        if adapt["base"]:
            info["baseModels"] = {"relation": "adapter", "models": [{"_id": "", "id": adapt["base"]}]}
    if commit_id != row.head:
        info |= _of_older(connection, blobs, row, commit_id, Digests(tree_of(connection, row.id, commit_id)))
    return info


def _of_older(
    connection: Connection, blobs: BlobStore, row: Row[Any], commit_id: str, digests: Mapping[str, str]
) -> dict[str, Any]:
    wanted = select(commits.c.created_at).where(commits.c.repo_id == row.id, commits.c.id == commit_id)
    made_at = connection.scalars(wanted).one()
    return {
        "lastModified": iso_time(made_at),
        "cardData": card.read_card(blobs, digests),
        "config": card.read_config(blobs, digests),
    }


def _sibling(entry: FileEntry, *, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": entry.path}
    found: dict[str, Any] = {"rfilename": entry.path, "size": entry.size, "blobId": entry.oid}
    if entry.lfs:
        found["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": len(entry.pointer)}
    return found
