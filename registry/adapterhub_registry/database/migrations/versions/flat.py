"""Columns, indexes and kept numbers by which a page of a million builds costs as much as one of a thousand."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, Integer, String, inspect, text

from adapterhub_registry.database.counting import start_counting

revision = "0032"
down_revision = "0031"

_DEPTHS = """
WITH RECURSIVE line (repo_id, id, depth) AS (
    SELECT repo_id, id, 1 FROM commits WHERE parent IS NULL
    UNION ALL
    SELECT c.repo_id, c.id, line.depth + 1 FROM commits c JOIN line ON c.repo_id = line.repo_id AND c.parent = line.id
)
UPDATE commits SET depth = line.depth FROM line WHERE commits.repo_id = line.repo_id AND commits.id = line.id
"""
_WARNED = """
UPDATE adapters SET is_warned = true WHERE
EXISTS (SELECT 1 FROM releases r WHERE r.repo_id = adapters.repo_id AND r.yanked_at IS NOT NULL)
AND (is_listed OR (is_head
    AND NOT EXISTS (SELECT 1 FROM adapters o WHERE o.repo_id = adapters.repo_id AND o.is_listed)))
"""
_BYTES = """
UPDATE repos SET most_bytes = coalesce((SELECT sum(b.size) FROM blobs b WHERE b.sha256 IN (
    SELECT p.sha256 FROM places p WHERE p.repo_id = repos.id AND p.path <> '.gitattributes'
    UNION SELECT u.sha256 FROM uploads u WHERE u.repo_id = repos.id)), 0)
WHERE most_bytes IS NULL
"""
_NAMESPACE_OF_RELEASE = """
CREATE OR REPLACE FUNCTION namespace_of_release() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    NEW.namespace := (SELECT namespace FROM repos WHERE id = NEW.repo_id); RETURN NEW;
END $$
"""


def upgrade() -> None:
    """Add and fill columns, add a table and indexes, and start the kept numbers."""
    connection = op.get_bind()
    is_shared = connection.dialect.name == "postgresql"
    for of, column in (
        ("commits", Column("depth", Integer)),
        ("adapters", Column("is_warned", Boolean, nullable=False, server_default=text("false"))),
        ("releases", Column("namespace", String(96), nullable=False, server_default="")),
    ):
        if column.name not in {known["name"] for known in inspect(connection).get_columns(of)}:
            op.add_column(of, column)
    op.create_index("commits_by_parent_now", "commits", ["repo_id", "parent"], if_not_exists=True)
    op.execute(_DEPTHS)
    op.drop_index("commits_by_parent_now", "commits")
    op.execute(_WARNED)
    op.execute(_BYTES)
    op.execute("UPDATE releases SET namespace = (SELECT r.namespace FROM repos r WHERE r.id = repo_id)")
    op.create_table(
        "token_use",
        Column("token_id", Integer, primary_key=True, autoincrement=False),
        Column("slot", Integer, primary_key=True, autoincrement=False),
        Column("bytes", BigInteger, nullable=False),
        if_not_exists=True,
    )
    op.drop_index("ix_repos_namespace", "repos", if_exists=True)
    op.drop_index("repos_private", "repos", if_exists=True)
    for name, path in (("signed", "model.sig"), ("tested", "evals.jsonl")):
        op.drop_index(f"places_{name}", "places", if_exists=True)
        op.execute(f"CREATE INDEX places_{name} ON places (repo_id, path) WHERE path = '{path}'")
    warned, yanked = f"is_warned{'' if is_shared else ' = 1'}", "yanked_at IS NOT NULL"
    for statement in (
        "repos_of_namespace ON repos (namespace, id)",
        "refs_by_time ON refs (repo_id, kind, created_at, name)",
        "ix_tokens_user_id ON tokens (user_id)",
        "reservations_by_end ON reservations (ends_at)",
        "adapters_by_weights ON adapters (weights_sha256)",
        f"adapters_warned ON adapters (created_at, repo_id) WHERE {warned}",
        f"adapters_warned_of ON adapters (repo_id) WHERE {warned}",
        f"releases_yanked_of ON releases (repo_id) WHERE {yanked}",
        f"releases_yanked_builds ON releases (digest) WHERE {yanked}",
        "repos_gated ON repos (id) WHERE gated IS NOT NULL",
        "releases_of_namespace ON releases (namespace, created_at)",
        f"releases_yanked_in_namespace ON releases (namespace, yanked_at) WHERE {yanked}",
    ):
        op.execute(f"CREATE INDEX IF NOT EXISTS {statement}")
    listed, head = (f"is_{of}{'' if is_shared else ' = 1'}" for of in ("listed", "head"))
    shown = f"{listed} OR {warned}"
    for name, columns, rows in (
        ("base", "base_sha256, created_at, repo_id", ""),
        ("task", "task, created_at, repo_id", shown),
        ("method", "peft_type, created_at, repo_id", shown),
        ("rank", "rank, created_at, repo_id", shown),
        ("base_and_task", "base_sha256, task, created_at, repo_id", shown),
        ("parameters", "parameters, repo_id", head),
    ):
        op.drop_index(f"adapters_by_{name}", "adapters", if_exists=True)
        op.execute(f"CREATE INDEX adapters_by_{name} ON adapters ({columns}){f' WHERE {rows}' if rows else ''}")
    op.execute(
        "CREATE INDEX IF NOT EXISTS adapters_of_base"
        f" ON adapters (base_sha256, created_at, repo_id, base_model, digest) WHERE {listed}"
    )
    if is_shared:  # servers of the version before, which run meanwhile, write no namespace
        op.execute(_NAMESPACE_OF_RELEASE)
        op.execute("DROP TRIGGER IF EXISTS releases_namespace ON releases")
        op.execute(
            "CREATE TRIGGER releases_namespace BEFORE INSERT ON releases"
            " FOR EACH ROW WHEN (NEW.namespace = '') EXECUTE FUNCTION namespace_of_release()"
        )
    else:
        earlier = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'count!_%' ESCAPE '!'"
        for (name,) in connection.exec_driver_sql(earlier).all():
            op.execute(f"DROP TRIGGER {name}")
    start_counting(connection)
