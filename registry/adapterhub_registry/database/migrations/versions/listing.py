"""Tags in the order of a listing, indexes for names, short words, sizes and a base with a task."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, inspect

from adapterhub_registry.database.search_tables import NAMES, TEXTS, add_trigrams

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Add the column and the indexes, and name the pipeline tag of each repository among its tags."""
    connection = op.get_bind()
    if "modified_at" not in {column["name"] for column in inspect(connection).get_columns("repo_tags")}:
        op.add_column("repo_tags", Column("modified_at", BigInteger, nullable=False, server_default="0"))
    if connection.dialect.name == "postgresql":  # servers of the version before, which run meanwhile, write no time
        op.execute(
            "CREATE OR REPLACE FUNCTION time_of_tag() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " NEW.modified_at := (SELECT modified_at FROM repos WHERE id = NEW.repo_id); RETURN NEW; END $$"
        )
        op.execute("DROP TRIGGER IF EXISTS repo_tags_time ON repo_tags")
        op.execute(
            "CREATE TRIGGER repo_tags_time BEFORE INSERT ON repo_tags"
            " FOR EACH ROW WHEN (NEW.modified_at = 0) EXECUTE FUNCTION time_of_tag()"
        )
    op.execute("UPDATE repo_tags SET modified_at = (SELECT modified_at FROM repos WHERE id = repo_id)")
    op.execute(
        "INSERT INTO repo_tags (repo_id, tag, modified_at) SELECT id, pipeline_tag, modified_at FROM repos"
        " WHERE pipeline_tag IS NOT NULL"
        " AND NOT EXISTS (SELECT 1 FROM repo_tags WHERE repo_id = id AND tag = pipeline_tag)"
    )
    op.drop_index("repo_tags_by_tag", "repo_tags", if_exists=True)
    op.create_index("repo_tags_by_tag", "repo_tags", ["tag", "modified_at", "repo_id"])
    together = ["base_sha256", "task", "created_at", "repo_id"]
    op.create_index("adapters_by_base_and_task", "adapters", together, if_not_exists=True)
    op.create_index("adapters_by_parameters", "adapters", ["parameters", "repo_id"], if_not_exists=True)
    if connection.dialect.name == "sqlite":  # the earlier index of words has no place for short ones
        earlier = ("texts_added", "texts_removed", "texts_changed")
        for name in (*earlier, "text_trigrams_insert", "text_trigrams_delete", "text_trigrams_update"):
            op.execute(f"DROP TRIGGER IF EXISTS {name}")
        for name in ("text_trigrams_vocab", "text_trigrams"):
            op.execute(f"DROP TABLE IF EXISTS {name}")
    for index in (TEXTS, NAMES):
        add_trigrams(connection, index)
