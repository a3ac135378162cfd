"""The tables, and the two kinds of transactions: `begin()` writes, `read()` reads.

SQLAlchemy Core on SQLite (WAL, one writer at a time) or PostgreSQL; all SQL runs on both. Times are whole milliseconds
since 1970, UTC.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    event,
    func,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, CursorResult
from sqlalchemy.exc import DBAPIError

from adapterhub.core.errors import UsageProblem
from adapterhub.core.extras import extra_named
from adapterhub.core.specs import version_key
from adapterhub_registry.database import search_tables
from adapterhub_registry.database.prepared import PreparedPair, PreparedSql
from adapterhub_registry.database.schema import (
    bring_up_to_date,
    metadata,
    postgresql_engine,
    readable,
    sqlite_engine,
    url_of,
)

facts = Table("facts", metadata, Column("name", String(64), primary_key=True), Column("value", Text, nullable=False))
"""Facts that the servers of one database share: a digest of the `secret`, and when a repository lost chunks."""

users = Table(
    "users",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(96), nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("user_id", ForeignKey("users.id"), nullable=False),
    Column("label", String(200), nullable=False),
    Column("role", String(8), nullable=False),  # read | write | admin
    Column("namespaces", Text, nullable=False),  # JSON array of globs over `ns/name`
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("used_at", BigInteger),
    Column("revoked_at", BigInteger),
)

repos = Table(
    "repos",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("full_name", String(200), nullable=False, unique=True),  # ns/name
    Column("namespace", String(96), nullable=False, index=True),
    Column("folded", String(200), nullable=False, unique=True),  # equal for public names that look alike
    Column("folded_namespace", String(96), nullable=False, index=True),
    Column("private", Boolean, nullable=False),
    Column("gated", String(8)),  # None | auto | manual
    Column("created_by", String(96), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("modified_at", BigInteger, nullable=False),
    Column("head", String(40), nullable=False),  # of `main`; the columns below describe that commit
    Column("downloads", Integer, nullable=False, default=0),
    Column("used_bytes", BigInteger, nullable=False, default=0),
    Column("pipeline_tag", String(200), index=True),
    Column("library_name", String(200)),
    Column("card", Text, nullable=False, default="{}"),  # JSON: the front matter of README.md
    Column("config", Text, nullable=False, default="{}"),  # JSON: the facts of config files in model info
    Index("repos_by_modified", "modified_at", "id"),
    Index("repos_by_created", "created_at", "id"),
    Index("repos_by_downloads", "downloads", "id", "private"),  # what a walk asks of each row
    sqlite_autoincrement=True,  # never reuses a number, as signed links contain it
)

refs = Table(
    "refs",
    metadata,
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
    Column("kind", String(8), primary_key=True),  # branch | tag
    Column("name", String(200), primary_key=True),
    Column("commit_id", String(40), nullable=False),
    Column("message", Text),
    Column("created_at", BigInteger, nullable=False),
)

commits = Table(
    "commits",
    metadata,
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
    Column("id", String(40), primary_key=True),
    Column("parent", String(40)),
    Column("root", String(64), nullable=False),  # the top node of its tree of files
    Column("title", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("author", String(96), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

nodes = Table(
    "nodes",
    metadata,
    # the nodes of trees of files (see `trees.nodes`): immutable, shared by the commits of a repository
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
    Column("id", String(64), primary_key=True),  # sha256 of the unpacked body
    Column("body", LargeBinary, nullable=False),
)

places = Table(
    "places",
    metadata,
    # every path of a repository that had a blob at any commit
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("path", String(1024), primary_key=True),
    Column("commit_id", String(40), nullable=False),  # the first commit with this blob at this path
    Index("places_by_sha256", "sha256"),
    sqlite_with_rowid=False,
)

blobs = Table(
    "blobs",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("git_sha1", String(40), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("damaged_at", BigInteger),  # when a check found wrong bytes; the next upload removes the mark
)

uploads = Table(
    "uploads",
    metadata,
    # who uploaded a blob to which repository: a digest alone must not give access to its bytes
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("user_name", String(96), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("token_id", Integer),  # the token of the upload
    Index("uploads_by_token", "token_id", "created_at"),
)

reservations = Table(
    "reservations",
    metadata,
    # what a client announced for a repository and has not sent: it counts until its links end
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("token_id", Integer),
    Column("ends_at", BigInteger, nullable=False),
    Index("reservations_by_token", "token_id"),
)

xet_use = Table(
    "xet_use",
    metadata,
    # the bytes of a user's xorbs in an epoch, and of the files that their shards describe
    Column("user_name", String(96), primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("sent_bytes", BigInteger, nullable=False),
    Column("unpacked_bytes", BigInteger, nullable=False),
)

repo_tags = Table(
    "repo_tags",
    metadata,
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
    Column("tag", String(256), primary_key=True),
    Column("modified_at", BigInteger, nullable=False),  # of the repository: a tag has rows in the order of a listing
    Index("repo_tags_by_tag", "tag", "modified_at", "repo_id"),
)

adapters = Table(
    "adapters",
    metadata,
    # a row for the head of `main` and for every tagged commit with an adapter
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
    Column("commit_id", String(40), primary_key=True),
    Column("digest", String(64), nullable=False, index=True),  # of the manifest, or of the list of the adapter's files
    Column("weights_sha256", String(64)),  # of adapter_model.safetensors
    Column("name", String(200)),
    Column("version", String(200)),
    Column("base_model", String(256)),
    Column("base_sha256", String(64)),
    Column("base_tensors", String(64)),
    Column("base_files", String(64)),
    Column("task", String(200)),
    Column("peft_type", String(200)),
    Column("methods", Text, nullable=False),  # JSON array
    Column("rank", Integer),
    Column("alpha", Float),
    Column("target_modules", Text, nullable=False),  # JSON array
    Column("dtype", String(64)),
    Column("parameters", BigInteger),
    Column("description", Text),
    Column("words", Text, nullable=False),  # lower case: the text that a search matches
    Column("examples", Text),  # what one asks it, one a line
    Column("is_head", Boolean, nullable=False),
    Column("is_listed", Boolean, nullable=False),  # the row that represents its repository in searches
    Column("created_at", BigInteger, nullable=False),
    Index("adapters_by_name", "name", "version"),
)


def _key_of_row(context: Any) -> str:
    return version_key(context.get_current_parameters()["version"])


releases = Table(
    "releases",
    metadata,
    # a version that was tagged once; stays when the tag is removed, so that it never gets other bytes
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
    Column("version", String(200), primary_key=True),
    Column("version_key", String(200), nullable=False, server_default="", default=_key_of_row),  # one of equal versions
    Column("tag", String(200), nullable=False),
    Column("commit_id", String(40), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("yanked_at", BigInteger),
    Column("yanked_by", String(96)),
    Column("yanked_reason", Text),
    Index("releases_by_version", "version_key"),
    Index("releases_are_one", "repo_id", "version_key", unique=True),
)

tombstones = Table(
    "tombstones",
    metadata,
    # a released version of a repository that lost this name
    Column("full_name", String(200), primary_key=True),
    Column("version", String(200), primary_key=True),
    Column("version_key", String(200), nullable=False, server_default="", default=_key_of_row),
    Column("namespace", String(96), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("name", String(200)),
    Column("base_sha256", String(64)),
    Column("base_model", String(256)),
    Column("rank", Integer),
    Column("created_at", BigInteger, nullable=False),
    Index("tombstones_by_version", "namespace", "version_key"),
)

redirects = Table(
    "redirects",
    metadata,
    # a name that a repository had before it was renamed; another repository may take it
    Column("full_name", String(200), primary_key=True),
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
)

access_requests = Table(
    "access_requests",
    metadata,
    # who asked for the files of a gated repository
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
    Column("user_name", String(96), primary_key=True),
    Column("status", String(8), nullable=False),  # pending | accepted | rejected
    Column("fields", Text),  # JSON: what the user wrote with the request
    Column("reason", Text),  # of a rejection
    Column("created_at", BigInteger, nullable=False),
)

records = Table(
    "records",
    metadata,
    # who created and revoked tokens
    Column("id", Integer, primary_key=True),
    Column("created_at", BigInteger, nullable=False),
    Column("actor", String(200), nullable=False),  # a user and the token, or a command on the server's machine
    Column("action", String(32), nullable=False),
    Column("subject", Text, nullable=False),
)

downloads = Table(
    "downloads",
    metadata,
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
    Column("day", Integer, primary_key=True),  # days since 1970
    Column("count", Integer, nullable=False),
)

search_tables.add_indexes(adapters, releases, places, repos)


def now_ms() -> int:
    """The current time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def inserted_id(result: CursorResult[Any]) -> int:
    """The number of the inserted row."""
    key = result.inserted_primary_key
    assert key is not None
    return int(key[0])


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows with new keys (`ON CONFLICT DO NOTHING`)."""
    if not rows:
        return
    build = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(build(table).on_conflict_do_nothing(), list(rows))


def slices(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """Slices that each fit into one SQL statement."""
    for start in range(0, len(values), 500):
        yield values[start : start + 500]


def lock_name(connection: Connection, name: str, *, shared: bool = False) -> None:
    """Hold a lock by this name until the transaction ends; SQLite has one writer anyway.

    Use it for rules that a unique index cannot express, such as names that look alike. Any number of transactions hold
    a `shared` lock at the same time, but none beside one that is not shared.
    """
    if connection.dialect.name == "postgresql":
        lock = func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock
        connection.execute(select(lock(func.hashtextextended(name, 0))))


def lock_space(connection: Connection, *, shared: bool = True) -> None:
    """Keep what this transaction finds stored until it ends: `gc`, which takes the lock alone, waits for it.

    Call it first in every transaction that names blobs, nodes or commits, before the transaction locks a row.
    """
    lock_name(connection, "space", shared=shared)


class Database:
    """One database. Opening it creates missing tables and migrates old ones.

    Raises:
        MissingExtra: the driver for PostgreSQL is not installed.
        UsageProblem: the URL is malformed, its driver is not installed, or a newer version made the database.
        Malformed: the file is damaged or not a database.
    """

    def __init__(self, url: str, *, connections: int = 20) -> None:
        parsed = url_of(url)
        self.is_shared = parsed.get_backend_name() != "sqlite"
        # SQLite has one writer; waiting for this lock is fair and fast, while SQLite's busy handler sleeps
        self._writer = contextlib.nullcontext() if self.is_shared else threading.Lock()
        try:
            with extra_named("keeping metadata in PostgreSQL"):
                self.engine: Engine = (
                    postgresql_engine(parsed, connections=connections) if self.is_shared else sqlite_engine(parsed)
                )
        except ImportError:
            hint = "for PostgreSQL: `pip install 'adapterhub[scale]'`"
            raise UsageProblem(f"no driver for {parsed.drivername} databases is installed", hint=hint) from None
        with readable(None if self.is_shared else parsed.database), self.begin() as connection:
            lock_name(connection, "schema")  # several servers may start at once
            bring_up_to_date(connection)

    @contextlib.contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction that writes; an exception that leaves the block rolls it back."""
        with self._writer, self.engine.connect() as connection:
            connection.execution_options(writes=True)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads one snapshot of the database."""
        with self.engine.connect() as connection:
            connection.execution_options(reads=True)
            with connection.begin():
                yield connection

    def look(self, statement: PreparedSql | PreparedPair, **given: object) -> Any:
        """The first row of one statement, which needs no transaction around it.

        It runs once more where the connection at hand turns out to be closed, as reading twice does no harm.
        """
        try:
            with self.engine.connect() as connection:
                return statement.first(connection, **given)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        with self.engine.connect() as connection:
            return statement.first(connection, **given)

    def agree(self, name: str, value: str, *, replace: bool = False) -> bool:
        """Whether the servers of this database share `value`; the first call, or `replace`, sets it."""
        with self.begin() as connection:
            if replace:
                connection.execute(facts.delete().where(facts.c.name == name))
            insert_new(connection, facts, [{"name": name, "value": value}])
            return connection.scalar(select(facts.c.value).where(facts.c.name == name)) == value

    def close(self) -> None:
        """Close every connection; one that a thread still has is closed as it comes back, and keeps no file busy."""
        event.listen(self.engine, "checkin", lambda _connection, record: record.invalidate())
        self.engine.dispose()


alias_moves = Table(
    "alias_moves",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), nullable=False),
    Column("alias", String(96), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("actor", String(200), nullable=False),  # a user and the token
    Column("action", String(16), nullable=False),  # set | rollback | remove
    Column("targets", Text, nullable=False),  # JSON array of version, digest and weight; empty after a removal
    Index("alias_moves_by_name", "repo_id", "alias", "id"),
    sqlite_autoincrement=True,
)


derived = Table(
    "derived",
    metadata,
    # one row for each build in `adapters`, by the digest that covers its config and weights
    Column("digest", String(64), primary_key=True),
    Column("state", String(8), nullable=False),  # waiting | made | none
    Column("attempts", Integer, nullable=False),
    Column("due_at", BigInteger, nullable=False),  # of the next attempt; a worker that makes one moves it on first
    Column("reason", Text),  # why there are no figures
    Column("norm", Float),  # of the whole update
    Column("record", LargeBinary),  # the JSON of a `DerivedRecord`, zlib
    Index("derived_due", "state", "due_at"),
)

sketches = Table(
    "sketches",
    metadata,
    # apart from `derived`, whose rows are large: a search for like updates reads all of these
    Column("digest", String(64), primary_key=True),  # of the build, as in `derived`
    Column("key_id", String(16), nullable=False),  # of the key of its signs; those of other keys cannot be compared
    Column("made_at", BigInteger, nullable=False),
    Column("sketch", LargeBinary, nullable=False),  # see `formats.derived.likeness`; never sent
    Index("sketches_by_time", "made_at"),
)

parents = Table(
    "parents",
    metadata,
    # the adapters that a build was merged from, as its manifest has them
    Column("digest", String(64), primary_key=True),  # of the build, as in `derived`
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("parent", String(64), index=True),  # the digest of the parent's manifest
    Column("spec", Text, nullable=False),
    Column("weight", Float, nullable=False),
    Column("relation", String(16)),  # see `Manifest.relation`
)


events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    # the place in the order of all events; None until the first reader after the commit gives it (see `events.outbox`)
    Column("number", BigInteger, unique=True),
    Column("public_id", String(64), nullable=False, unique=True),
    Column("type", String(32), nullable=False),
    Column("repo", String(200), nullable=False),  # ns/name at the time of the event
    Column("private", Boolean, nullable=False),  # whether the repository was private at that time
    Column("data", Text, nullable=False),  # JSON object
    Column("created_at", BigInteger, nullable=False, index=True),
    Index("events_by_repo", "repo", "number"),
    sqlite_autoincrement=True,
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("scope", String(200), nullable=False, index=True),  # a namespace, or ns/name
    Column("url", String(2000), nullable=False),
    Column("secret", String(100), nullable=False),
    Column("types", Text, nullable=False),  # JSON array of event types; an empty one stands for all
    Column("owner", String(96)),  # the user whose tokens decide what it may learn; None for the server's operator
    Column("created_at", BigInteger, nullable=False),
    sqlite_autoincrement=True,  # never reuses a number: who removes a hook by its number means that hook
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("webhook_id", ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("event_id", ForeignKey("events.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("state", String(10), nullable=False),  # waiting | delivered | failed | withheld
    Column("attempts", Integer, nullable=False),
    Column("due_at", BigInteger, nullable=False),  # of the next attempt; a server that makes one moves it on first
    Column("status", Integer),  # of the last answer
    Column("problem", String(200)),  # of the last attempt
    Column("ended_at", BigInteger),
    Index("deliveries_due", "state", "due_at"),
    Index("deliveries_by_webhook", "webhook_id", "state", "due_at"),
    sqlite_autoincrement=True,
)


meaning = Table(
    "meaning",
    metadata,
    # of a build that searches show; without a row, it waits for a worker
    Column("id", Integer, primary_key=True),  # grows, so that a server reads only what is new
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), nullable=False),
    Column("commit_id", String(40), nullable=False),
    Column("model", String(16), nullable=False),  # see `formats.meaning.model`
    Column("vectors", LargeBinary, nullable=False),  # see `formats.meaning.ranking`
    Index("meaning_of_build", "repo_id", "commit_id", unique=True),
    Index("meaning_by_model", "model", "id"),
    sqlite_autoincrement=True,
)


adapter_names = Table(
    "adapter_names",
    metadata,
    Column("namespace", String(96), primary_key=True),
    Column("name", String(200), primary_key=True),
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True, index=True),
    Column("created_at", BigInteger, nullable=False),
)


refusals = Table(
    "refusals",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("created_at", BigInteger, nullable=False),  # of the last one, as repeats share a row
    Column("user_name", String(96), nullable=False),
    Column("token_id", Integer),
    Column("repo", String(200), nullable=False),  # ns/name, or empty where the request's path names none
    Column("action", String(16), nullable=False),  # commit | upload | create | …
    Column("status", Integer, nullable=False),
    Column("code", String(32), nullable=False),
    Column("message", Text, nullable=False),
    Column("count", Integer, nullable=False),
    Index("refusals_by_time", "created_at", "id"),
    Index("refusals_by_user", "user_name", "repo"),
    sqlite_autoincrement=True,
)


results = Table(
    "results",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), nullable=False),
    Column("manifest", String(64), nullable=False),
    Column("sha256", String(64), nullable=False),  # of the file
    Column("key", String(64), nullable=False),  # the fingerprint that the file names
    Column("question", String(64), nullable=False),  # of what was asked; a later answer of the key replaces this one
    Column("sent_by", String(200), nullable=False),  # a user and the token
    Column("created_at", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("verdict", String(8)),  # once the key of a namespace proved the result, for searches
    Index("results_by_verdict", "verdict", "repo_id"),
    Index("results_of_key", "repo_id", "manifest", "key", "question", unique=True),
    sqlite_autoincrement=True,
)

test_rules = Table(
    "test_rules",
    metadata,
    # what a namespace asks of a version before it is published
    Column("namespace", String(96), primary_key=True),
    Column("asks", String(8), nullable=False),  # off | contract | passed
    Column("keys_only", Boolean, nullable=False),
)

test_keys = Table(
    "test_keys",
    metadata,
    # the testers of a namespace
    Column("namespace", String(96), primary_key=True),
    Column("fingerprint", String(64), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("pem", String(2048), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
