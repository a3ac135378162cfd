"""The tables, and the two kinds of transactions: `begin()` writes, `read()` reads.

SQLAlchemy Core on SQLite (WAL, one writer at a time) or PostgreSQL; all SQL runs on both. Times are whole milliseconds
since 1970, UTC.

A table of SQLite without numbers of its rows (`sqlite_with_rowid`) holds its key once. Older databases have them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

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
    false,
    func,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, CursorResult
from sqlalchemy.exc import DBAPIError, OperationalError

from adapterhub.core.errors import UsageProblem
from adapterhub.core.extras import extra_named
from adapterhub.core.specs import version_key, version_order
from adapterhub_registry.database import (
    account_tables,  # noqa: F401 - its tables are of the schema
    counting,
    people,  # noqa: F401 - as these are
    search_tables,
)
from adapterhub_registry.database.postgresql import postgresql_engine
from adapterhub_registry.database.prepared import PreparedPair, PreparedSql, insert_many
from adapterhub_registry.database.schema import (
    bring_up_to_date,
    metadata,
    patient,
    readable,
    sqlite_engine,
    url_of,
)
from adapterhub_registry.fuse import Fuse

facts = Table("facts", metadata, Column("name", String(64), primary_key=True), Column("value", Text, nullable=False))
"""Facts that the servers of one database share: a digest of the `secret`, and when a repository lost chunks."""

users = Table(
    "users",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(96), nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
    Column("removed_at", BigInteger),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("label", String(200), nullable=False),
    Column("role", String(8), nullable=False),  # read | write | admin
    Column("namespaces", Text, nullable=False),  # JSON array of globs over `ns/name`
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("used_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("scopes", String(40)),  # between commas; NULL: those of the role
    # JSON array of globs: the token may do there what its user may, and `namespaces` is empty. NULL: an administrator
    # granted what `namespaces` and the role say, whatever else the user may do
    Column("reach", Text),
    Column("made_by", Integer),  # the token that approved or made this one, and with which it ends
)

repos = Table(
    "repos",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("full_name", String(200), nullable=False, unique=True),  # ns/name
    Column("namespace", String(96), nullable=False),
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
    # no less than what its files and uploads take of a quota; NULL where that was never counted; see `quotas`
    Column("most_bytes", BigInteger),
    Column("pipeline_tag", String(200), index=True),
    Column("library_name", String(200)),
    Column("card", Text, nullable=False, default="{}"),  # JSON: the front matter of README.md
    Column("config", Text, nullable=False, default="{}"),  # JSON: the facts of config files in model info
    Index("repos_of_namespace", "namespace", "id"),
    # in the order of lists, with what a walk asks of each row: the row has the card of the repository, too
    Index("repos_by_modified", "modified_at", "id", "private", "namespace", "full_name"),
    Index("repos_by_created", "created_at", "id", "private", "namespace", "full_name"),
    Index("repos_by_downloads", "downloads", "id", "private", "namespace", "full_name"),
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
    Index("refs_by_commit", "repo_id", "commit_id"),
    Index("refs_by_time", "repo_id", "kind", "created_at", "name"),
    sqlite_with_rowid=False,
)

commits = Table(
    "commits",
    metadata,
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
    Column("id", String(40), primary_key=True),
    Column("parent", String(40)),
    Column("root", String(64), nullable=False),  # the top node of its tree of files
    Column("depth", Integer),  # of its history, itself included; NULL where a server of an earlier version wrote it
    Column("title", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("author", String(96), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

nodes = Table(
    "nodes",
    metadata,
    # the nodes of trees of files (see `trees.nodes`): immutable, shared by the commits of a repository
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
    Column("id", String(64), primary_key=True),  # sha256 of the unpacked body
    Column("body", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
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
    sqlite_with_rowid=False,
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
    Index("uploads_by_sha256", "sha256", "created_at"),
    sqlite_with_rowid=False,
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
    Index("reservations_by_end", "ends_at"),
)

token_use = Table(
    "token_use",
    metadata,
    # the bytes that a token uploaded, by ten minutes since 1970; of one day
    Column("token_id", Integer, primary_key=True, autoincrement=False),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("bytes", BigInteger, nullable=False),
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
    sqlite_with_rowid=False,
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
    # the same of a repository with a yanked version, in a search for these; its head where all are yanked
    Column("is_warned", Boolean, nullable=False, server_default=false()),
    Column("created_at", BigInteger, nullable=False),
    Index("adapters_by_name", "name", "version", "base_sha256"),  # of 10,000 versions for one base, it reads none
    Index("adapters_by_weights", "weights_sha256"),
)


def _key_of_row(context: Any) -> str:
    return version_key(context.get_current_parameters()["version"])


def _order_of_row(context: Any) -> bytes:
    return version_order(context.get_current_parameters()["version"])


releases = Table(
    "releases",
    metadata,
    # a version that was tagged once; stays when the tag is removed, so that it never gets other bytes
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
    Column("version", String(200), primary_key=True),
    Column("namespace", String(96), nullable=False, server_default=""),  # of the repository
    Column("version_key", String(200), nullable=False, server_default="", default=_key_of_row),  # one of equal versions
    Column("place", LargeBinary, default=_order_of_row),  # sorts as the versions do
    Column("tag", String(200), nullable=False),
    Column("commit_id", String(40), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("yanked_at", BigInteger),
    Column("yanked_by", String(96)),
    Column("yanked_reason", Text),
    Column("publisher", Text),  # JSON: what the job proved to be that released it, see `access.trusted`
    Index("releases_by_version", "version_key"),
    Index("releases_in_order", "repo_id", "place"),
    Index("releases_by_commit", "repo_id", "commit_id", "version"),  # in the order in which they are asked for
    Index("releases_by_digest", "repo_id", "digest"),
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

downloads = Table(
    "downloads",
    metadata,
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
    Column("day", Integer, primary_key=True),  # days since 1970
    Column("count", Integer, nullable=False),
    sqlite_with_rowid=False,
)

search_tables.add_indexes(adapters, releases, places, repos)
counting.follow(metadata)


def now_ms() -> int:
    """Return the current time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def inserted_id(result: CursorResult[Any]) -> int:
    """Return the number of the inserted row."""
    key = result.inserted_primary_key
    assert key is not None
    return int(key[0])


MANY_ROWS: Final = 20
"""From so many rows on, the driver inserts them itself."""


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows with new keys (`ON CONFLICT DO NOTHING`)."""
    if not rows:
        return
    build = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    columns = tuple(rows[0])
    computed = any(column.default is not None and column.key not in columns for column in table.c)
    if len(rows) < MANY_ROWS or computed:
        connection.execute(build(table).on_conflict_do_nothing(), list(rows))
    else:
        insert_many(connection, build(table).on_conflict_do_nothing(), columns, rows)


def slices(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """Slices that each fit into one SQL statement."""
    for start in range(0, len(values), 500):
        yield values[start : start + 500]


def add_bytes(connection: Connection, repo_id: int, more: int) -> None:
    """Let a repository take more of the quota of its namespace; call it whenever it gets a file or an upload."""
    connection.execute(update(repos).where(repos.c.id == repo_id).values(most_bytes=repos.c.most_bytes + more))


def lock_name(connection: Connection, name: str, *, shared: bool = False) -> None:
    """Hold a lock by this name until the transaction ends; SQLite has one writer anyway.

    Use it for rules that a unique index cannot express, such as names that look alike. Any number of transactions hold
    a `shared` lock at the same time, but none beside one that is not shared.
    """
    if connection.dialect.name == "postgresql":
        lock = func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock
        connection.execute(select(lock(func.hashtextextended(name, 0))))


LastWork = Callable[[Connection, Sequence[Any]], None]


def before_commit(connection: Connection, work: LastWork, item: object) -> None:
    """Let `work` get this and other items at the end of the transaction, so that its locks are short."""
    _last_work(connection).setdefault(work, []).append(item)


def _last_work(connection: Connection) -> dict[LastWork, list[object]]:
    found: dict[LastWork, list[object]] = connection.info.setdefault("adapterhub.last", {})
    return found


def lock_space(connection: Connection, *, shared: bool = True) -> None:
    """Keep blobs that this transaction finds until it ends: `gc`, which takes the lock exclusively, waits for it.

    Call it first in every transaction that names blobs, nodes or commits, before the transaction locks a row.
    """
    lock_name(connection, "space", shared=shared)


class Database:
    """One database. Opening it creates missing tables and migrates old ones, or does what `schema` does instead.

    Raises:
        MissingExtra: the driver for PostgreSQL is not installed.
        UsageProblem: the URL is malformed, its driver is not installed, or a newer version made the database.
        Malformed: the file is damaged or not a database.
        Conflict: the tables of an earlier version stay locked.
    """

    def __init__(
        self, url: str, *, connections: int = 20, schema: Callable[[Connection], None] = bring_up_to_date
    ) -> None:
        parsed = url_of(url)
        self.is_shared = parsed.get_backend_name() != "sqlite"
        # SQLite has one writer; waiting for this lock is fair and fast, while SQLite's busy handler sleeps
        self._writer = contextlib.nullcontext() if self.is_shared else threading.Lock()
        self._fuse = Fuse()
        try:
            with extra_named("keeping metadata in PostgreSQL"):
                self.engine: Engine = (
                    postgresql_engine(parsed, connections=connections, fuse=self._fuse)
                    if self.is_shared
                    else sqlite_engine(parsed)
                )
        except ImportError:
            hint = "for PostgreSQL: `pip install 'adapterhub[scale]'`"
            raise UsageProblem(f"no driver for {parsed.drivername} databases is installed", hint=hint) from None

        def prepare() -> None:
            with readable(None if self.is_shared else parsed.database), self.begin() as connection:
                lock_name(connection, "schema")  # several servers may start at once
                schema(connection)

        patient(prepare)

    def _connection(self) -> Connection:
        """Return a connection of the pool.

        Raises:
            OperationalError: the database does not answer; at once, when it did not a moment ago.
        """
        if not self._fuse.passes():
            raise OperationalError(None, None, TimeoutError("the database did not answer a moment ago"))
        return self.engine.connect()

    @contextlib.contextmanager
    def begin(self) -> Iterator[Connection]:
        """Provide a transaction that writes; an exception that leaves the block rolls it back."""
        with self._writer, self._connection() as connection:
            connection.execution_options(writes=True)
            with connection.begin():
                try:
                    yield connection
                    # in one order everywhere, as they take locks
                    for work, items in sorted(_last_work(connection).items(), key=lambda one: one[0].__module__):
                        work(connection, items)
                finally:
                    _last_work(connection).clear()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """Provide a transaction that only reads one snapshot of the database."""
        with self._connection() as connection:
            connection.execution_options(reads=True)
            with connection.begin():
                yield connection

    def look(self, statement: PreparedSql | PreparedPair, **given: object) -> Any:
        """Return the first row of one statement, which needs no transaction around it.

        It runs once more where the connection at hand turns out to be closed, as reading twice does no harm.
        """
        try:
            with self._connection() as connection:
                return statement.first(connection, **given)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        with self._connection() as connection:
            return statement.first(connection, **given)

    def agree(self, name: str, value: str, *, replace: bool = False) -> bool:
        """Return whether the servers of this database share `value`; the first call, or `replace`, sets it."""
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


alias_retention = Table(
    "alias_retention",
    metadata,
    # how many of the versions that an alias had stay; without a row, all
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
    Column("alias", String(96), primary_key=True),
    Column("newest", Integer, nullable=False),
    Column("grace_ms", BigInteger, nullable=False),  # since the alias left a version
    Column("actor", String(200), nullable=False),  # a user and the token
    Column("set_at", BigInteger, nullable=False),
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
    sqlite_with_rowid=False,
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
    Index("meaning_in_order", "model", "id", "commit_id"),  # all that an index of vectors is compared with
    sqlite_autoincrement=True,
)


base_claims = Table(
    "base_claims",
    metadata,
    # what the manifest of a build says of its base; without a row, it waits for a worker
    Column("digest", String(64), primary_key=True),  # of the manifest
    Column("base_sha256", String(64), nullable=False),
    Column("claim", String(64), nullable=False),  # the digest of what it says; empty if that cannot be read
    Column("method", Integer, nullable=False),
    Index("base_claims_by_base", "base_sha256", "claim"),
    Index("base_claims_by_claim", "claim"),
)

base_pairs = Table(
    "base_pairs",
    metadata,
    # two claims about one model in two forms, once in each direction
    Column("first_claim", String(64), primary_key=True),
    Column("second_claim", String(64), primary_key=True),
    Column("first_sha256", String(64), nullable=False),
    Column("second_sha256", String(64), nullable=False),
    Column("verdict", String(40), nullable=False),
    Column("form", String(80), nullable=False),  # of the quantised one, such as fp8-block
    Column("is_copy", Boolean, nullable=False),  # whether the second is quantised
    Index("base_pairs_by_base", "first_sha256", "second_sha256"),
)

adapter_names = Table(
    "adapter_names",
    metadata,
    Column("namespace", String(96), primary_key=True),
    Column("name", String(200), primary_key=True),
    Column("repo_id", ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True, index=True),
    Column("created_at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
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
    Column("owner", String(96)),  # the user whose key it is, if anyone said so
)

publishers = Table(
    "publishers",
    metadata,
    # which jobs of a CI may publish to which repository
    Column("id", Integer, primary_key=True),
    Column("repo", String(200), nullable=False, index=True),  # ns/name, which may be new
    Column("issuer", String(500), nullable=False),
    Column("claims", Text, nullable=False),  # JSON object of texts and patterns
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String(200), nullable=False),  # a user and the token
    sqlite_autoincrement=True,
)

identities = Table(
    "identities",
    metadata,
    # the token of a CI that was exchanged for one of ours
    Column("token_id", ForeignKey("tokens.id"), primary_key=True),
    Column("publisher_id", Integer, nullable=False),
    Column("proof", String(64), nullable=False, unique=True),  # so that each is exchanged once
    Column("origin", Text, nullable=False),  # JSON: the issuer and what it states
)


log_entries = Table(
    "log_entries",
    metadata,
    # the log of releases, which only grows: see `treelog`
    Column("log", BigInteger, primary_key=True, autoincrement=False),  # of all public repositories 0, else one's number
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("entry", LargeBinary, nullable=False),  # canonical JSON
    Column("kind", String(32), nullable=False),
    Column("repo_id", BigInteger, nullable=False),  # no foreign key: an entry outlives its repository
    Column("repo", String(200), nullable=False),
    Column("version_key", String(200)),
    Index("log_entries_by_release", "repo_id", "version_key", "log", "position"),
)

log_nodes = Table(
    "log_nodes",
    metadata,
    # the hashes of complete subtrees; a level and a position stand for 2^level entries
    Column("log", BigInteger, primary_key=True, autoincrement=False),
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
