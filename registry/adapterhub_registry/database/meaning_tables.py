"""The vectors of builds by which a search finds what a question means; all of them can be made again."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Index, Integer, LargeBinary, String, Table

from adapterhub_registry.database.schema import metadata

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
