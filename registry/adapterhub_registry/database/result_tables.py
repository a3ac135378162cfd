"""The tables of signed results of tests: the results on builds, and what a namespace asks of them."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Integer, LargeBinary, String, Table

from adapterhub_registry.database.schema import metadata

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
