"""What a search reads: indexes, the words by which it finds a repository, and the index of their trigrams.

SQLite keeps the index in a table of FTS5, PostgreSQL in one of `pg_trgm`. A database that can have neither works, too:
a search reads all words then.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Column, ForeignKey, Index, Table, Text, column, event, select, table, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from adapterhub_registry.database.schema import metadata

texts = Table(
    "texts",
    metadata,
    # lower case: the name of a repository, and the words of the builds that a search may show of it
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
    Column("body", Text, nullable=False),
)

TRIGRAMS: Final = table("text_trigrams", column("rowid"), column("text_trigrams"))
"""The index in SQLite, by the number of the repository; the column of its own name stands for all of it."""

_OPTIONS: Final = "content='texts', content_rowid='repo_id', tokenize='trigram case_sensitive 1', detail='none'"
_INDEX_TEXT: Final = "INSERT INTO text_trigrams (rowid, body) VALUES (new.repo_id, new.body);"
_FORGET_TEXT: Final = "INSERT INTO text_trigrams (text_trigrams, rowid, body) VALUES ('delete', old.repo_id, old.body);"
_FTS5: Final = (
    # without positions: a search checks the words of what it finds
    f"CREATE VIRTUAL TABLE IF NOT EXISTS text_trigrams USING fts5(body, {_OPTIONS})",
    f"CREATE TRIGGER IF NOT EXISTS texts_added AFTER INSERT ON texts BEGIN {_INDEX_TEXT} END",
    f"CREATE TRIGGER IF NOT EXISTS texts_removed AFTER DELETE ON texts BEGIN {_FORGET_TEXT} END",
    f"CREATE TRIGGER IF NOT EXISTS texts_changed AFTER UPDATE ON texts BEGIN {_FORGET_TEXT} {_INDEX_TEXT} END",
    "INSERT INTO text_trigrams (text_trigrams) VALUES ('rebuild')",
)
_GIN: Final = (
    "CREATE EXTENSION IF NOT EXISTS pg_trgm",
    "CREATE INDEX IF NOT EXISTS texts_by_trigram ON texts USING gin (body gin_trgm_ops)",
)


def add_indexes(adapters: Table, releases: Table, places: Table) -> None:
    """The indexes of these tables that searches and feeds use; most have rows in the order of a page."""
    a = adapters.c
    Index("adapters_by_base", a.base_sha256, a.created_at, a.repo_id)
    Index("adapters_by_base_model", a.base_model, a.base_sha256)
    Index("adapters_by_tensors", a.base_tensors, a.base_sha256)
    Index("adapters_by_files", a.base_files)
    Index("adapters_listed", a.created_at, a.repo_id, **_rows("is_listed = 1", "is_listed"))
    Index("adapters_by_task", a.task, a.created_at, a.repo_id)
    Index("adapters_by_method", a.peft_type, a.created_at, a.repo_id)
    Index("adapters_by_rank", a.rank, a.created_at, a.repo_id)
    Index("releases_by_created", releases.c.created_at)
    Index("releases_yanked", releases.c.yanked_at, **_rows("yanked_at IS NOT NULL"))
    Index("places_signed", places.c.repo_id, **_rows("path = 'model.sig'"))
    Index("places_tested", places.c.repo_id, **_rows("path = 'evals.jsonl'"))


def _rows(in_sqlite: str, in_postgresql: str = "") -> dict[str, Any]:
    """The options of an index over some rows."""
    return {"sqlite_where": text(in_sqlite), "postgresql_where": text(in_postgresql or in_sqlite)}


def add_trigrams(connection: Connection) -> None:
    """Index the table `texts`, where the database can."""
    try:
        with connection.begin_nested():
            for statement in _GIN if connection.dialect.name == "postgresql" else _FTS5:
                connection.exec_driver_sql(statement)
    except DBAPIError:  # an old SQLite, or a role of PostgreSQL that may not add an extension
        return


def put_text(connection: Connection, repo_id: int, body: str) -> None:
    """Store the words of a repository in place of those before."""
    build = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    row = build(texts).values(repo_id=repo_id, body=body)
    connection.execute(row.on_conflict_do_update(index_elements=["repo_id"], set_={"body": body}))


def has_trigrams(connection: Connection) -> bool:
    """Whether SQLite has the index; PostgreSQL uses its own by itself."""
    if connection.dialect.name != "sqlite":
        return False
    master = table("sqlite_master", column("name"))
    return connection.scalar(select(master.c.name).where(master.c.name == TRIGRAMS.name)) is not None


@event.listens_for(texts, "after_create")
def _with_trigrams(_table: Table, connection: Connection, **_: object) -> None:
    add_trigrams(connection)
