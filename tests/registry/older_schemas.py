"""Makes databases as the unreleased versions of the registry left them. Frozen: such databases look like this for ever."""

from __future__ import annotations

from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    create_engine,
    text,
)
from sqlalchemy.engine import Connection

REVISIONS = ("0001", "0002", "0003", "0004")


def make(url: str, revision: str) -> None:
    """Make the tables of `revision` in an empty database, and note the revision as that version did."""
    engine = create_engine(url)
    with engine.begin() as connection:
        op = Operations(MigrationContext.configure(connection))
        for step in (_first, _limits, _tombstones, _trees)[: REVISIONS.index(revision) + 1]:
            step(op)
        if revision == "0001":  # revisions were not written down yet
            connection.execute(text("INSERT INTO facts VALUES ('schema', '1')"))
        else:
            connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
            connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": revision})
    engine.dispose()


def undo_newest(connection: Connection) -> None:
    """Take what the revisions from 0021 on added out of a new database: and what came later."""
    connection.execute(text("DROP INDEX sketches_by_time"))
    for table in ("reservations", "adapter_names", "base_claims", "base_pairs", "publishers", "identities"):
        connection.execute(text(f"DROP TABLE {table}"))
    for index in ("releases_by_version", "releases_are_one", "tombstones_by_version"):
        connection.execute(text(f"DROP INDEX {index}"))
    for column in (
        "releases DROP COLUMN version_key",
        "releases DROP COLUMN publisher",
        "tombstones DROP COLUMN version_key",
    ):
        connection.execute(text(f"ALTER TABLE {column}"))


def _first(op: Operations) -> None:
    op.create_table("facts", Column("name", String(64), primary_key=True), Column("value", Text, nullable=False))
    op.create_table(
        "users",
        Column("id", Integer, primary_key=True),
        Column("name", String(96), nullable=False, unique=True),
        Column("created_at", BigInteger, nullable=False),
    )
    op.create_table(
        "tokens",
        Column("id", Integer, primary_key=True),
        Column("sha256", String(64), nullable=False, unique=True),
        Column("user_id", Integer, ForeignKey("users.id"), nullable=False),
        Column("label", String(200), nullable=False),
        Column("role", String(8), nullable=False),
        Column("namespaces", Text, nullable=False),
        Column("created_at", BigInteger, nullable=False),
        Column("expires_at", BigInteger),
        Column("used_at", BigInteger),
        Column("revoked_at", BigInteger),
    )
    op.create_table(
        "repos",
        Column("id", Integer, primary_key=True),
        Column("full_name", String(200), nullable=False, unique=True),
        Column("namespace", String(96), nullable=False, index=True),
        Column("folded", String(200), nullable=False, unique=True),
        Column("folded_namespace", String(96), nullable=False, index=True),
        Column("private", Boolean, nullable=False),
        Column("gated", String(8)),
        Column("created_by", String(96), nullable=False),
        Column("created_at", BigInteger, nullable=False),
        Column("modified_at", BigInteger, nullable=False),
        Column("head", String(40), nullable=False),
        Column("downloads", Integer, nullable=False, default=0),
        Column("used_bytes", BigInteger, nullable=False, default=0),
        Column("pipeline_tag", String(200), index=True),
        Column("library_name", String(200)),
        Column("card", Text, nullable=False, default="{}"),
        Column("config", Text, nullable=False, default="{}"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "refs",
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
        Column("kind", String(8), primary_key=True),
        Column("name", String(200), primary_key=True),
        Column("commit_id", String(40), nullable=False),
        Column("message", Text),
        Column("created_at", BigInteger, nullable=False),
    )
    op.create_table(
        "commits",
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
        Column("id", String(40), primary_key=True),
        Column("parent", String(40)),
        Column("tree", String(64), nullable=False),
        Column("title", Text, nullable=False),
        Column("message", Text, nullable=False),
        Column("author", String(96), nullable=False),
        Column("created_at", BigInteger, nullable=False),
    )
    op.create_table(
        "files",
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
        Column("commit_id", String(40), primary_key=True),
        Column("path", String(1024), primary_key=True),
        Column("sha256", String(64), nullable=False, index=True),
        Column("git_sha1", String(40), nullable=False),
        Column("size", BigInteger, nullable=False),
        Column("lfs", Boolean, nullable=False),
        Column("changed_in", String(40), nullable=False),
    )
    op.create_table(
        "blobs",
        Column("sha256", String(64), primary_key=True),
        Column("git_sha1", String(40), nullable=False),
        Column("size", BigInteger, nullable=False),
        Column("created_at", BigInteger, nullable=False),
    )
    op.create_table(
        "uploads",
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
        Column("sha256", String(64), primary_key=True),
        Column("user_name", String(96), nullable=False),
        Column("created_at", BigInteger, nullable=False),
    )
    op.create_table(
        "repo_tags",
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
        Column("tag", String(256), primary_key=True),
        Index("repo_tags_by_tag", "tag", "repo_id"),
    )
    op.create_table(
        "adapters",
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
        Column("commit_id", String(40), primary_key=True),
        Column("digest", String(64), nullable=False, index=True),
        Column("weights_sha256", String(64)),
        Column("name", String(200)),
        Column("version", String(200)),
        Column("base_model", String(256)),
        Column("base_sha256", String(64)),
        Column("base_tensors", String(64)),
        Column("base_files", String(64)),
        Column("task", String(200)),
        Column("peft_type", String(200)),
        Column("methods", Text, nullable=False),
        Column("rank", Integer),
        Column("alpha", Float),
        Column("target_modules", Text, nullable=False),
        Column("dtype", String(64)),
        Column("parameters", BigInteger),
        Column("description", Text),
        Column("words", Text, nullable=False),
        Column("is_head", Boolean, nullable=False),
        Column("is_listed", Boolean, nullable=False),
        Column("created_at", BigInteger, nullable=False),
        Index("adapters_by_base", "base_sha256", "rank"),
        Index("adapters_by_base_model", "base_model", "rank"),
        Index("adapters_by_name", "name", "version"),
    )
    op.create_table(
        "releases",
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
        Column("version", String(200), primary_key=True),
        Column("tag", String(200), nullable=False),
        Column("commit_id", String(40), nullable=False),
        Column("digest", String(64), nullable=False),
        Column("created_at", BigInteger, nullable=False),
        Column("yanked_at", BigInteger),
        Column("yanked_by", String(96)),
        Column("yanked_reason", Text),
        Index("releases_by_version", "version"),
    )
    op.create_table(
        "downloads",
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
        Column("day", Integer, primary_key=True),
        Column("count", Integer, nullable=False),
    )


def _limits(op: Operations) -> None:
    op.add_column("uploads", Column("token_id", Integer))
    op.create_index("uploads_by_token", "uploads", ["token_id", "created_at"])
    op.create_index("repos_by_modified", "repos", ["modified_at", "id"])
    op.create_index("repos_by_created", "repos", ["created_at", "id"])
    op.create_index("repos_by_downloads", "repos", ["downloads", "id"])
    op.create_index("adapters_listed", "adapters", ["is_listed", "created_at", "repo_id"])


def _tombstones(op: Operations) -> None:
    op.create_table(
        "tombstones",
        Column("full_name", String(200), primary_key=True),
        Column("version", String(200), primary_key=True),
        Column("namespace", String(96), nullable=False),
        Column("digest", String(64), nullable=False),
        Column("name", String(200)),
        Column("base_sha256", String(64)),
        Column("base_model", String(256)),
        Column("rank", Integer),
        Column("created_at", BigInteger, nullable=False),
        Index("tombstones_by_version", "namespace", "version"),
    )


def _trees(op: Operations) -> None:
    op.execute(text("ALTER TABLE commits RENAME COLUMN tree TO root"))
    op.create_table(
        "nodes",
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
        Column("id", String(64), primary_key=True),
        Column("body", LargeBinary, nullable=False),
    )
    op.create_table(
        "places",
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
        Column("sha256", String(64), primary_key=True),
        Column("path", String(1024), primary_key=True),
        Column("commit_id", String(40), nullable=False),
        Index("places_by_sha256", "sha256"),
        sqlite_with_rowid=False,
    )
    op.drop_table("files")
