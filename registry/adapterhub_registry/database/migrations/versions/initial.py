"""The schema of the first release.

An empty database gets it from `db.metadata` at once. This revision brings the databases of the four unreleased schemas
before it to the same tables, with everything that they hold: it does whichever steps a database still lacks.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from typing import Any

from alembic import op
from sqlalchemy import BigInteger, Column, Connection, ForeignKey, Index, Integer, LargeBinary, String, inspect, text

from adapterhub_registry.database.db import insert_new

revision = "0005"
down_revision = None

NODE_BYTES = 1900
CUT_BYTES = 600
ITEM_BYTES = 100  # about what an item takes packed, without its path
FEWEST_ITEMS = 4


def upgrade() -> None:
    """Add the tables, columns and indexes that are missing, and turn rows for files into trees."""
    found = inspect(op.get_bind())
    tables = set(found.get_table_names())
    if "token_id" not in {column["name"] for column in found.get_columns("uploads")}:
        _add_token_limits()
    if "tombstones" not in tables:
        _add_tombstones()
    if "files" in tables:
        _share_files(op.get_bind())
    if "xet_use" not in tables:
        _add_damage()


def _add_token_limits() -> None:
    op.add_column("uploads", Column("token_id", Integer))
    op.create_index("uploads_by_token", "uploads", ["token_id", "created_at"])
    op.create_index("repos_by_modified", "repos", ["modified_at", "id"])
    op.create_index("repos_by_created", "repos", ["created_at", "id"])
    op.create_index("repos_by_downloads", "repos", ["downloads", "id"])
    op.create_index("adapters_listed", "adapters", ["is_listed", "created_at", "repo_id"])
    op.execute(text("DELETE FROM facts WHERE name = 'schema'"))


def _add_tombstones() -> None:
    op.execute(
        text(
            "CREATE TABLE tombstones (full_name VARCHAR(200) NOT NULL, version VARCHAR(200) NOT NULL,"
            " namespace VARCHAR(96) NOT NULL, digest VARCHAR(64) NOT NULL, name VARCHAR(200), base_sha256 VARCHAR(64),"
            " base_model VARCHAR(256), rank INTEGER, created_at BIGINT NOT NULL, PRIMARY KEY (full_name, version))"
        )
    )
    op.create_index("tombstones_by_version", "tombstones", ["namespace", "version"])


def _add_damage() -> None:
    op.add_column("blobs", Column("damaged_at", BigInteger))
    op.execute(
        text(
            "CREATE TABLE xet_use (user_name VARCHAR(96) NOT NULL, epoch INTEGER NOT NULL, sent_bytes BIGINT NOT NULL,"
            " unpacked_bytes BIGINT NOT NULL, PRIMARY KEY (user_name, epoch))"
        )
    )


def _share_files(connection: Connection) -> None:
    """Replace the row for each file of each commit by trees that commits share. Commits keep their ids."""
    if connection.dialect.name == "postgresql":  # SQLite has one writer
        connection.execute(text("LOCK TABLE repos, commits, files IN ACCESS EXCLUSIVE MODE"))
    # an earlier server that still runs fails on the new name, so it cannot write rows where trees belong
    op.execute(text("ALTER TABLE commits RENAME COLUMN tree TO root"))
    nodes = op.create_table(
        "nodes",
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
        Column("id", String(64), primary_key=True),
        Column("body", LargeBinary, nullable=False),
    )
    places = op.create_table(
        "places",
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
        Column("sha256", String(64), primary_key=True),
        Column("path", String(1024), primary_key=True),
        Column("commit_id", String(40), nullable=False),
        Index("places_by_sha256", "sha256"),
        sqlite_with_rowid=False,
    )
    made = text("SELECT repo_id, id, created_at FROM commits ORDER BY created_at")
    made_at = {(row.repo_id, row.id): row.created_at for row in connection.execute(made)}
    files = text(
        "SELECT path, sha256, git_sha1, size, lfs, changed_in FROM files"
        " WHERE repo_id = :repo_id AND commit_id = :commit_id"
    )
    set_root = text("UPDATE commits SET root = :root WHERE repo_id = :repo_id AND id = :commit_id")
    for repo_id, commit_id in made_at:
        key = {"repo_id": repo_id, "commit_id": commit_id}
        found = connection.execute(files, key)
        rows = [[*row[:4], int(row.lfs), row.changed_in, made_at[repo_id, row.changed_in]] for row in found]
        rows.sort(key=lambda row: row[0].replace("/", "\0"))
        root, contents = _tree(rows)
        packed = [{"repo_id": repo_id, "id": node, "body": zlib.compress(raw)} for node, raw in contents.items()]
        insert_new(connection, nodes, packed)
        connection.execute(set_root, key | {"root": root})
        new = [key | {"path": row[0], "sha256": row[1]} for row in rows if row[5] == commit_id]
        insert_new(connection, places, new)
    op.drop_table("files")


# The format of nodes on the day of the release; `trees` may change, databases of that day do not.


def _tree(files: list[list[Any]]) -> tuple[str, dict[str, bytes]]:
    """Return the id of the top node over these files, and the content of each node by its id."""
    contents: dict[str, bytes] = {}
    height, items = 0, files
    while height == 0 or len(items) > 1:
        links = []
        for run in _runs(items):
            raw = json.dumps([height, run], separators=(",", ":"), ensure_ascii=False).encode()
            node = hashlib.sha256(raw).hexdigest()
            contents[node] = raw
            links.append([run[0][0], node, *_totals([item[2:] if height else _of_file(item) for item in run])])
        height, items = height + 1, links
    return (items[0][1] if items else hashlib.sha256(b"[0,[]]").hexdigest()), contents


def _runs(items: list[list[Any]]) -> Iterator[list[list[Any]]]:
    """Yield the items of each node.

    A node ends where a path decides it: commits whose files are alike then share nodes.
    """
    run: list[list[Any]] = []
    weight = 0
    for item in items:
        ends_here = weight > CUT_BYTES and zlib.crc32(run[-1][0].encode()) % 4 == 0
        item_bytes = len(item[0].encode()) + ITEM_BYTES
        if len(run) >= FEWEST_ITEMS and (ends_here or weight + item_bytes > NODE_BYTES):
            yield run
            run, weight = [], 0
        run.append(item)
        weight += item_bytes
    if run:
        yield run


def _of_file(row: list[Any]) -> list[Any]:
    """Return the terms of one file in the totals of the nodes above it."""
    path, sha256, _, size, _, changed_in, changed_at = row
    digest = hashlib.sha256(f"{path}\0{sha256}".encode()).hexdigest()[:40]
    return [1, int(path.endswith(".safetensors")), size, digest, changed_at, changed_in]


def _totals(parts: list[list[Any]]) -> list[Any]:
    files, tensors, sizes, digests, changed_at, changed_in = zip(*parts, strict=True)
    digest = sum(int(text, 16) for text in digests) % (1 << 160)
    newest = max(zip(changed_at, changed_in, strict=True))
    return [sum(files), sum(tensors), sum(sizes), f"{digest:x}", *newest]
