"""What a search reads: indexes, the words by which it finds a repository, and two indexes of these words.

One holds trigrams, for parts of words, the other stems, for the order by relevance. SQLite keeps both in tables of
FTS5; PostgreSQL has `pg_trgm` and its own text search. A database that can have neither works, too: a search reads all
words then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    Table,
    TableClause,
    Text,
    and_,
    column,
    event,
    func,
    literal,
    literal_column,
    or_,
    select,
    table,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from adapterhub.formats.relevance import Wording, words_of
from adapterhub_registry.database.schema import metadata

texts = Table(
    "texts",
    metadata,
    # lower case: the name of a repository, and the words of the builds that a search may show of it
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
    Column("body", Text, nullable=False),
)

wordings = Table(
    "wordings",
    metadata,
    # what the build that represents a repository says of itself, bounded; `body` is its words alone, in lower case
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("prompts", Text, nullable=False),  # one a line
    Column("body", Text, nullable=False),
)

TRIGRAMS: Final = table("text_trigrams", column("rowid"), column("text_trigrams"))
STEMS: Final = table("wording_stems", column("rowid"), column("wording_stems"))
"""The indexes in SQLite, by the number of the repository; the column of its own name stands for all of one."""


def _fts5(name: str, content: str, tokenizer: str) -> tuple[str, ...]:
    """What makes an index of the column `body` of `content`, and keeps it in step."""
    put = f"INSERT INTO {name} (rowid, body) VALUES (new.repo_id, new.body);"  # noqa: S608 - own names
    forget = f"INSERT INTO {name} ({name}, rowid, body) VALUES ('delete', old.repo_id, old.body);"  # noqa: S608 - own names
    options = f"content='{content}', content_rowid='repo_id', tokenize='{tokenizer}', detail='none'"
    return (
        # without positions: a search checks the words of what it finds
        f"CREATE VIRTUAL TABLE IF NOT EXISTS {name} USING fts5(body, {options})",
        f"CREATE TRIGGER IF NOT EXISTS {content}_added AFTER INSERT ON {content} BEGIN {put} END",
        f"CREATE TRIGGER IF NOT EXISTS {content}_removed AFTER DELETE ON {content} BEGIN {forget} END",
        f"CREATE TRIGGER IF NOT EXISTS {content}_changed AFTER UPDATE ON {content} BEGIN {forget} {put} END",
        f"INSERT INTO {name} ({name}) VALUES ('rebuild')",  # noqa: S608 - own names
    )


_TRIGRAMS: Final = {
    "sqlite": _fts5("text_trigrams", "texts", "trigram case_sensitive 1"),
    "postgresql": (
        "CREATE EXTENSION IF NOT EXISTS pg_trgm",
        "CREATE INDEX IF NOT EXISTS texts_by_trigram ON texts USING gin (body gin_trgm_ops)",
    ),
}
_STEMS: Final = {
    "sqlite": _fts5("wording_stems", "wordings", "porter unicode61"),
    "postgresql": ("CREATE INDEX IF NOT EXISTS wordings_by_stem ON wordings USING gin (to_tsvector('english', body))",),
}


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
    _index(connection, _TRIGRAMS)


def add_stems(connection: Connection) -> None:
    """Index the table `wordings`, where the database can."""
    _index(connection, _STEMS)


def _index(connection: Connection, statements: Mapping[str, Sequence[str]]) -> None:
    try:
        with connection.begin_nested():
            for statement in statements[connection.dialect.name]:
                connection.exec_driver_sql(statement)
    except DBAPIError:  # an old SQLite, or a role of PostgreSQL that may not add an extension
        return


def put_text(connection: Connection, repo_id: int, body: str, wording: Wording) -> None:
    """Store the words of a repository in place of those before."""
    said = wording._asdict() | {"body": " ".join(words_of(" ".join(wording)))}
    for holder, values in ((texts, {"body": body}), (wordings, said)):
        build = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        row = build(holder).values(repo_id=repo_id, **values)
        connection.execute(row.on_conflict_do_update(index_elements=["repo_id"], set_=values))


def has_index(connection: Connection, index: TableClause) -> bool:
    """Whether SQLite has the index; PostgreSQL uses its own by itself."""
    if connection.dialect.name != "sqlite":
        return False
    master = table("sqlite_master", column("name"))
    return connection.scalar(select(master.c.name).where(master.c.name == index.name)) is not None


class WordHolder(NamedTuple):
    """Where a search reads who holds words: the column with the numbers of repositories, and what makes a condition.

    The condition holds for the rows with a word of each of some lists, in any inflection; words are letters and digits.
    """

    number: ColumnElement[int]
    condition: Callable[[Sequence[Sequence[str]]], ColumnElement[bool]]


def word_holder(connection: Connection) -> WordHolder:
    """The index of stems; a database without it finds the beginnings of words."""
    if connection.dialect.name == "postgresql":
        english: ColumnElement[str] = literal_column("'english'")
        stems = func.to_tsvector(english, wordings.c.body)

        def by_text_search(words: Sequence[Sequence[str]]) -> ColumnElement[bool]:
            return stems.op("@@")(func.to_tsquery(english, _query(words, "'", "|", "&")))

        return WordHolder(wordings.c.repo_id, by_text_search)
    if has_index(connection, STEMS):
        return WordHolder(
            STEMS.c.rowid, lambda words: STEMS.c.wording_stems.op("MATCH")(_query(words, '"', "OR", "AND"))
        )
    begin = literal(" ").concat(wordings.c.body)

    def by_beginning(words: Sequence[Sequence[str]]) -> ColumnElement[bool]:
        return and_(*(or_(*(begin.contains(f" {word}", autoescape=True) for word in some)) for some in words))

    return WordHolder(wordings.c.repo_id, by_beginning)


def _query(words: Sequence[Sequence[str]], quote: str, either: str, both: str) -> str:
    """Such as `("is" OR "are") AND ("film")`."""
    return f" {both} ".join("(" + f" {either} ".join(f"{quote}{word}{quote}" for word in some) + ")" for some in words)


@event.listens_for(texts, "after_create")
def _with_trigrams(_table: Table, connection: Connection, **_: object) -> None:
    add_trigrams(connection)


@event.listens_for(wordings, "after_create")
def _with_stems(_table: Table, connection: Connection, **_: object) -> None:
    add_stems(connection)
