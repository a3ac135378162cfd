"""What a search reads: indexes, the words by which it finds a repository, and indexes of them.

Some hold trigrams, for parts of words, one holds stems, for the order by relevance. SQLite keeps them in tables of
FTS5; PostgreSQL has `pg_trgm` and its own text search. A database that can have neither also works: a search then reads
all words.

SQLite keeps the sets of those with a tag while it writes, by triggers. PostgreSQL joins the tags themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    TableValuedAlias,
    Text,
    bindparam,
    cast,
    column,
    event,
    exists,
    func,
    literal,
    literal_column,
    select,
    table,
    text,
    type_coerce,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from adapterhub.formats.relevance import Wording, words_of
from adapterhub_registry.database.prepared import Numbers, PreparedSql, numbers_of
from adapterhub_registry.database.schema import metadata

GRAM: Final = 3
"""The characters of a trigram."""
MAX_TRIGRAMS: Final = 60
SHORT: Final = "adapters_in_short"
"""An index of the adapters that searches list, with the columns of their filters; a statement names it for SQLite."""

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

STEMS: Final = table("wording_stems", column("rowid"), column("wording_stems"))
"""The index of stems in SQLite, by the number of the repository; the column of its own name stands for all of it."""

_PUT: Final = "INSERT INTO wording_stems (rowid, body) VALUES (new.repo_id, new.body);"
_FORGET: Final = "INSERT INTO wording_stems (wording_stems, rowid, body) VALUES ('delete', old.repo_id, old.body);"
_STEM_OPTIONS: Final = "content='wordings', content_rowid='repo_id', tokenize='porter unicode61', detail='none'"
_MADE: Final = "GENERATED ALWAYS AS (to_tsvector('english', body)) STORED"
_STEMS: Final = {
    "sqlite": (
        f"CREATE VIRTUAL TABLE IF NOT EXISTS wording_stems USING fts5(body, {_STEM_OPTIONS})",
        f"CREATE TRIGGER IF NOT EXISTS wordings_added AFTER INSERT ON wordings BEGIN {_PUT} END",
        f"CREATE TRIGGER IF NOT EXISTS wordings_removed AFTER DELETE ON wordings BEGIN {_FORGET} END",
        f"CREATE TRIGGER IF NOT EXISTS wordings_changed AFTER UPDATE ON wordings BEGIN {_FORGET} {_PUT} END",
        "INSERT INTO wording_stems (wording_stems) VALUES ('rebuild')",
    ),
    "postgresql": (  # a column, as a search would make the stems of each row that it looks at: 50 µs for one
        f"ALTER TABLE wordings ADD COLUMN IF NOT EXISTS wording_stems tsvector {_MADE}",
        "DROP INDEX IF EXISTS wordings_by_stem",
        "CREATE INDEX wordings_by_stem ON wordings USING gin (wording_stems)",
    ),
}


@dataclass(frozen=True, slots=True)
class Trigrams:
    """An index of SQLite over one text for each repository, in lower case: a column of the table `of`."""

    name: str
    of: str
    key: str
    words: str

    def holding(self, words: Sequence[str]) -> Numbers:
        """Return the repositories whose text has trigrams that cover all words, or a word of one or two characters."""
        if len(words[0]) < GRAM:
            return Numbers(_beginning(self), {"least": words[0], "last": f"{words[0]}\U0010ffff"})
        grams, last = self._grams(words)
        glance = {"grams": _all_of(last)} if 1 < len(last) <= len(grams) // 2 else None
        return Numbers(_matching(self), {"grams": _all_of(grams)}, glance)

    def newest(self, words: Sequence[str]) -> Numbers:
        """As `holding`, of words of three characters or more, the highest numbers first."""
        return Numbers(_matching(self, newest=True), {"grams": _all_of(self._grams(words)[0])})

    def _grams(self, words: Sequence[str]) -> tuple[dict[str, None], dict[str, None]]:
        """Return trigrams that cover the words, and the last ones of words."""
        # those that do not overlap, and the last: others cost as much and rarely exclude anything
        places = ((word, min(at, len(word) - GRAM)) for word in words for at in range(0, len(word), GRAM))
        grams = dict.fromkeys(word[at : at + GRAM] for word, at in places)
        return grams, dict.fromkeys(word[-GRAM:] for word in words)

    def statements(self) -> Iterator[str]:
        """Yield the statements that create and fill the index, and let it follow its table."""
        rows, name = f"{self.name}_rows", self.name
        new, old, one = (f"lower({row}.{self.words}) || '  '" for row in ("new", "old", self.of))
        add = f"INTO {name} (rowid, body) VALUES (new.{self.key}, {new});"
        forget = f"INTO {name} ({name}, rowid, body) VALUES ('delete', old.{self.key}, {old});"
        yield f"CREATE VIEW IF NOT EXISTS {rows} (id, body) AS SELECT {self.key}, {one} FROM {self.of}"
        # without positions: a search checks the words of what it finds
        options = f"content='{rows}', content_rowid='id', tokenize='trigram case_sensitive 1', detail='none'"
        yield f"CREATE VIRTUAL TABLE IF NOT EXISTS {name} USING fts5(body, {options})"
        yield f"CREATE VIRTUAL TABLE IF NOT EXISTS {name}_vocab USING fts5vocab({name}, instance)"
        changes = {"insert": [add], "delete": [forget], f"update OF {self.words}": [forget, add]}
        for change, steps in changes.items():
            body = " ".join(f"INSERT {step}" for step in steps)
            trigger = f"{name}_{change.partition(' ')[0]}"
            yield f"CREATE TRIGGER IF NOT EXISTS {trigger} AFTER {change} ON {self.of} BEGIN {body} END"
        yield f"INSERT INTO {name} ({name}) VALUES ('rebuild')"


def _all_of(grams: Iterable[str]) -> str:
    quoted = (gram.replace('"', '""') for gram in islice(grams, MAX_TRIGRAMS))
    return " AND ".join(f'"{gram}"' for gram in quoted)


@lru_cache
def _matching(index: Trigrams, *, newest: bool = False) -> PreparedSql:
    grams = table(index.name, column("rowid"), column(index.name))  # the column of its own name stands for all of it
    wanted = grams.c[index.name].op("MATCH")(bindparam("grams", type_=Text))
    found = select(grams.c.rowid.label("repo_id")).where(wanted)
    return numbers_of(found.order_by(grams.c.rowid.desc()) if newest else found)


@lru_cache
def _beginning(index: Trigrams) -> PreparedSql:
    vocabulary = table(f"{index.name}_vocab", column("term"), column("doc"))
    # each place of a text begins a trigram, as two spaces follow the text
    spans = vocabulary.c.term.between(bindparam("least"), bindparam("last"))
    return numbers_of(select(vocabulary.c.doc.label("repo_id")).where(spans).distinct())


TEXTS: Final = Trigrams("text_trigrams", "texts", "repo_id", "body")
NAMES: Final = Trigrams("name_trigrams", "repos", "id", "full_name")
_EXTENSION: Final = "CREATE EXTENSION IF NOT EXISTS pg_trgm"
_GIN: Final = {
    TEXTS: "CREATE INDEX IF NOT EXISTS texts_by_trigram ON texts USING gin (body gin_trgm_ops)",
    NAMES: "CREATE INDEX IF NOT EXISTS repos_by_trigram ON repos USING gin (lower(full_name) gin_trgm_ops)",
}


class Unindexed(FunctionElement[Any]):
    """A column for which SQLite, which knows no frequencies, must use no index; PostgreSQL knows when to."""

    inherit_cache = True

    def __init__(self, of: ColumnElement[Any]) -> None:
        super().__init__(of)
        self.type = of.type


@compiles(Unindexed)
def _plain(element: Unindexed, compiler: SQLCompiler, **options: object) -> str:
    return compiler.process(element.clauses, **options)


@compiles(Unindexed, "sqlite")
def _with_sign(element: Unindexed, compiler: SQLCompiler, **options: object) -> str:
    return f"+{compiler.process(element.clauses, **options)}"


class _Items(FunctionElement[Any]):
    """The items of a list in JSON, as rows with a column `value`."""

    inherit_cache = True


@compiles(_Items)
def _of_postgresql(element: _Items, compiler: SQLCompiler, **options: object) -> str:
    return f"json_array_elements_text(CAST({compiler.process(element.clauses, **options)} AS JSON))"


@compiles(_Items, "sqlite")
def _of_sqlite(element: _Items, compiler: SQLCompiler, **options: object) -> str:
    return f"json_each({compiler.process(element.clauses, **options)})"


def among(column: ColumnElement[Any], values: Iterable[int | str] | str) -> ColumnElement[bool]:
    """Return whether a column is one of some values, or of those in the parameter of this name, as JSON.

    They are one value, which costs less than hundreds in `in_`.
    """
    given = bindparam(values) if isinstance(values, str) else literal(json.dumps(list(values)))
    return _Among(column, select(cast(rows_of(given).c.value, column.type)).scalar_subquery())


class _Among(FunctionElement[Any]):
    """Whether a value is one of a subquery's.

    PostgreSQL gets them as an array, which it looks up in an index. It would take a subquery's for a hundred, and read
    all rows of a repository where it expects fewer of them. It has no type, as SQLite would compare a boolean with 1.
    """

    inherit_cache = True


@compiles(_Among)
def _any_of(element: _Among, compiler: SQLCompiler, **options: object) -> str:
    value, found = (compiler.process(part, **options) for part in element.clauses)
    return f"({value} = ANY (ARRAY{found}))"


@compiles(_Among, "sqlite")
def _one_of(element: _Among, compiler: SQLCompiler, **options: object) -> str:
    value, found = (compiler.process(part, **options) for part in element.clauses)
    return f"({value} IN {found})"


def rows_of(items: ColumnElement[Any]) -> TableValuedAlias:
    """Return the items of a list in JSON, as rows with the column `value`, which is text."""
    return _Items(type_coerce(items, Text())).table_valued("value")


def add_indexes(adapters: Table, releases: Table, places: Table, repos: Table) -> None:
    """Declare the indexes of these tables for searches and feeds; most have rows in the order of a page."""
    a = adapters.c
    is_listed = _rows("is_listed = 1", "is_listed")
    # what a search may show: of a repository with ten thousand versions, one or two rows
    is_shown = _rows("is_listed = 1 OR is_warned = 1", "is_listed OR is_warned")
    Index("adapters_by_base", a.base_sha256, a.created_at, a.repo_id)
    # all that the page of a base counts and draws: of 1,000 rows it reads none
    Index("adapters_of_base", a.base_sha256, a.created_at, a.repo_id, a.base_model, a.digest, **is_listed)
    Index("adapters_by_base_model", a.base_model, a.base_sha256)
    Index("adapters_of_name", a.base_model, a.created_at)
    Index("adapters_of_base_name", a.base_model, a.created_at, a.repo_id, **is_shown)
    Index("adapters_by_tensors", a.base_tensors, a.base_sha256)
    Index("adapters_by_files", a.base_files)
    # with what conditions ask of each: the row has the texts of the adapter, too
    conditions = (a.base_sha256, a.task, a.peft_type, a.rank)
    Index("adapters_listed", a.created_at, a.repo_id, *conditions, **is_listed)
    Index("adapters_shown", a.repo_id, **is_listed)
    # and with what facets count
    Index(SHORT, a.repo_id, *conditions, a.base_model, a.is_warned, **is_listed)
    Index("adapters_warned", a.created_at, a.repo_id, **_rows("is_warned = 1", "is_warned"))
    Index("adapters_warned_of", a.repo_id, **_rows("is_warned = 1", "is_warned"))
    Index("adapters_by_repo_base", a.repo_id, a.base_sha256)
    Index("adapters_at_heads", a.repo_id, **_rows("is_head = 1", "is_head"))
    Index("adapters_by_task", a.task, a.created_at, a.repo_id, **is_shown)
    Index("adapters_by_method", a.peft_type, a.created_at, a.repo_id, **is_shown)
    Index("adapters_by_rank", a.rank, a.created_at, a.repo_id, **is_shown)
    others = (a.peft_type, a.rank, a.is_listed)
    Index("adapters_by_base_and_task", a.base_sha256, a.task, a.created_at, a.repo_id, *others, **is_shown)
    Index("adapters_by_parameters", a.parameters, a.repo_id, **_rows("is_head = 1", "is_head"))
    Index("releases_by_created", releases.c.created_at)
    r, is_yanked = releases.c, _rows("yanked_at IS NOT NULL")
    Index("releases_yanked", r.yanked_at, **is_yanked)
    Index("releases_yanked_of", r.repo_id, **is_yanked)
    Index("releases_yanked_builds", r.digest, **is_yanked)
    Index("releases_of_namespace", r.namespace, r.created_at)
    Index("releases_yanked_in_namespace", r.namespace, r.yanked_at, **is_yanked)
    # with the path, or SQLite would rather go through all places of a repository
    Index("places_signed", places.c.repo_id, places.c.path, **_rows("path = 'model.sig'"))
    Index("places_tested", places.c.repo_id, places.c.path, **_rows("path = 'evals.jsonl'"))
    Index("repos_gated", repos.c.id, **_rows("gated IS NOT NULL"))


def _rows(in_sqlite: str, in_postgresql: str = "") -> dict[str, Any]:
    """Return the options of an index over some rows."""
    return {"sqlite_where": text(in_sqlite), "postgresql_where": text(in_postgresql or in_sqlite)}


def add_trigrams(connection: Connection, index: Trigrams) -> None:
    """Index the words of a table, where the database can."""
    _index(connection, (_EXTENSION, _GIN[index]) if connection.dialect.name == "postgresql" else index.statements())


def add_stems(connection: Connection) -> None:
    """Index the table `wordings`; an old SQLite cannot."""
    if connection.dialect.name == "postgresql":
        for statement in _STEMS["postgresql"]:
            connection.exec_driver_sql(statement)
    else:
        _index(connection, _STEMS["sqlite"])


def _index(connection: Connection, statements: Iterable[str]) -> None:
    try:
        with connection.begin_nested():
            for statement in statements:
                connection.exec_driver_sql(statement)
    except DBAPIError:  # an old SQLite, or a role of PostgreSQL that may not add an extension
        return


def put_text(connection: Connection, repo_id: int, body: str, wording: Wording) -> None:
    """Store the words of a repository in place of those before."""
    for holder, values in ((texts, {"body": body}), (wordings, columns_of(wording))):
        build = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        row = build(holder).values(repo_id=repo_id, **values)
        connection.execute(row.on_conflict_do_update(index_elements=["repo_id"], set_=values))


def columns_of(wording: Wording) -> dict[str, str]:
    """Return the columns of the table `wordings`."""
    return wording._asdict() | {"body": " ".join(words_of(" ".join(wording)))}


def has_trigrams(connection: Connection) -> bool:
    """Return whether SQLite has the indexes of trigrams; PostgreSQL uses its own by itself."""
    return _has(connection, f"{NAMES.name}_update")  # the last of them that is made


def _has(connection: Connection, name: str) -> bool:
    if connection.dialect.name != "sqlite":
        return False
    known = connection.info
    if name not in known:
        master = table("sqlite_master", column("name"))
        known[name] = connection.scalar(select(master.c.name).where(master.c.name == name)) is not None
    return bool(known[name])


class WordHolder(NamedTuple):
    """An index of holders of words: the column with the numbers of repositories, and a condition on its rows.

    The condition holds for the rows with a word of each of some lists, in any inflection; words are letters and digits.
    `asked` makes the lists the value of its parameter `words`, so that one statement serves all words of a question.
    """

    number: ColumnElement[int]
    condition: ColumnElement[bool]
    asked: Callable[[Sequence[Sequence[str]]], str]


def word_holder(connection: Connection) -> WordHolder:
    """Return the index of stems; a database without it finds the beginnings of words."""
    return _word_holder(connection.dialect.name, has_stems=_has(connection, STEMS.name))


@lru_cache
def _word_holder(dialect: str, *, has_stems: bool) -> WordHolder:
    words = bindparam("words", type_=Text)
    if dialect == "postgresql":
        english: ColumnElement[str] = literal_column("'english'")
        by_text_search = literal_column("wordings.wording_stems").op("@@")(func.to_tsquery(english, words))
        return WordHolder(wordings.c.repo_id, by_text_search, partial(_query, quote="'", either="|", both="&"))
    if has_stems:
        by_stem = STEMS.c.wording_stems.op("MATCH")(words)
        return WordHolder(STEMS.c.rowid, by_stem, partial(_query, quote='"', either="OR", both="AND"))
    some = func.json_each(words).table_valued("value", name="some")
    word = func.json_each(some.c.value).table_valued("value", name="word")
    begins = func.instr(literal(" ").concat(wordings.c.body), literal(" ").concat(word.c.value)) > 0
    any_of_some = exists(select(word.c.value).where(begins))
    by_beginning = ~exists(select(some.c.value).where(~any_of_some))
    return WordHolder(wordings.c.repo_id, by_beginning, json.dumps)


def _query(words: Sequence[Sequence[str]], *, quote: str, either: str, both: str) -> str:
    """Such as `("is" OR "are") AND ("film")`."""
    return f" {both} ".join("(" + f" {either} ".join(f"{quote}{word}{quote}" for word in some) + ")" for some in words)


@event.listens_for(metadata, "after_create")
def _with_indexes(_metadata: MetaData, connection: Connection, **_: object) -> None:
    for index in (TEXTS, NAMES):
        add_trigrams(connection, index)
    add_stems(connection)


# ------------------------------------------------------------ tags
BITS: Final = 63
"""A row of `tag_sets` says of so many repositories who has a tag: in all bits of an integer of SQLite but its sign."""
_sets = table("tag_sets", column("tag"), column("block"), column("bits"))


def tagged(connection: Connection, tags: Sequence[str], *, most: int) -> list[int] | None:
    """Return the numbers of the repositories with all of some tags, on SQLite; None for more than `most`."""
    if len(tags) == 1 and _MORE.tuples(connection, tag=tags[0], most=most):
        return None
    # SQLite looks up the rows of the others for each one of the first
    rarest_first = sorted(tags, key=lambda tag: int(_BLOCKS.tuples(connection, tag=tag)[0][0])) if tags[1:] else tags
    given = {f"tag_{at}": tag for at, tag in enumerate(rarest_first)}
    numbers: list[int] = []
    for block, bits in _together(len(tags)).tuples(connection, **given):
        if len(numbers) > most:
            return None
        first = block * BITS - 1
        left = bits
        while left:
            last = left & -left
            numbers.append(first + last.bit_length())
            left ^= last
    return numbers if len(numbers) <= most else None


_FREQUENT: Final = 1000
"""Of tags in at least so many blocks, any may be the first."""
_some = select(_sets.c.block).where(_sets.c.tag == bindparam("tag")).limit(_FREQUENT).subquery()
_BLOCKS: Final = PreparedSql(select(func.count(_some.c.block)))
_tags = table("repo_tags", column("repo_id"), column("tag"))
_MORE: Final = PreparedSql(
    select(_tags.c.repo_id).where(_tags.c.tag == bindparam("tag")).limit(1).offset(bindparam("most", type_=Integer))
)
"""Whether more repositories than `most` have a tag: a row, or none."""


@lru_cache(maxsize=64)
def _together(count: int) -> PreparedSql:
    """Return the blocks in which repositories have all of so many tags."""
    first, *others = (_sets.alias(f"set_{at}") for at in range(count))
    bits: ColumnElement[Any] = first.c.bits
    wanted = [first.c.tag == bindparam("tag_0")]
    for at, other in enumerate(others, 1):
        bits = bits.op("&")(other.c.bits)
        wanted += [other.c.tag == bindparam(f"tag_{at}"), other.c.block == first.c.block]
    return PreparedSql(select(first.c.block, bits.label("bits")).where(*wanted, bits != 0))


def keep_tag_sets(connection: Connection) -> None:
    """Make the sets of what SQLite holds, and let them follow the tags."""
    if connection.dialect.name == "sqlite":
        for statement in _set_statements():
            connection.exec_driver_sql(statement)


def _set_statements() -> Iterator[str]:
    keys = "tag TEXT NOT NULL, block INTEGER NOT NULL, bits INTEGER NOT NULL, PRIMARY KEY (tag, block)"
    yield f"CREATE TABLE IF NOT EXISTS tag_sets ({keys}) WITHOUT ROWID"
    yield "DELETE FROM tag_sets"
    bits = f"sum(1 << (repo_id % {BITS}))"
    yield f"INSERT INTO tag_sets SELECT tag, repo_id / {BITS}, {bits} FROM repo_tags GROUP BY 1, 2"
    mine, bit = f"tag = {{0}}.tag AND block = {{0}}.repo_id / {BITS}", f"(1 << ({{0}}.repo_id % {BITS}))"
    known = f"SELECT 1 FROM tag_sets WHERE {mine}"
    changes = {
        "insert": (
            f"INSERT INTO tag_sets SELECT {{0}}.tag, {{0}}.repo_id / {BITS}, 0 WHERE NOT EXISTS ({known})",
            f"UPDATE tag_sets SET bits = bits | {bit} WHERE {mine}",
        ),
        "delete": (
            f"UPDATE tag_sets SET bits = bits & ~{bit} WHERE {mine}",
            f"DELETE FROM tag_sets WHERE {mine} AND bits = 0",
        ),
    }
    for change, steps in changes.items():
        row = "new" if change == "insert" else "old"
        body = " ".join(f"{step.format(row)};" for step in steps)
        yield f"CREATE TRIGGER IF NOT EXISTS tag_sets_{change} AFTER {change} ON repo_tags BEGIN {body} END"


@event.listens_for(metadata, "after_create")
def _with_tag_sets(_metadata: MetaData, connection: Connection, **_: object) -> None:
    keep_tag_sets(connection)
