"""Indexes for each condition of a search, the words of each repository, proven verdicts, and how builds were made."""

from __future__ import annotations

from typing import Any

from alembic import op
from sqlalchemy import Column, ForeignKey, Integer, String, Text, inspect, text

from adapterhub.formats.contract.results import Attested
from adapterhub.formats.signature import Bundle, PublicKey, pre_authentication
from adapterhub_registry.database.search_tables import TEXTS, add_trigrams

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Replace the indexes, and fill the table of words from the existing rows."""
    for name in ("adapters_by_base", "adapters_by_base_model", "adapters_listed"):
        op.drop_index(name, "adapters", if_exists=True)
    for name, columns in (
        ("adapters_by_base", ["base_sha256", "created_at", "repo_id"]),
        ("adapters_by_base_model", ["base_model", "base_sha256"]),
        ("adapters_by_tensors", ["base_tensors", "base_sha256"]),
        ("adapters_by_files", ["base_files"]),
        ("adapters_by_task", ["task", "created_at", "repo_id"]),
        ("adapters_by_method", ["peft_type", "created_at", "repo_id"]),
        ("adapters_by_rank", ["rank", "created_at", "repo_id"]),
    ):
        op.create_index(name, "adapters", columns, if_not_exists=True)
    listed = _where("is_listed = 1", "is_listed")
    op.create_index("adapters_listed", "adapters", ["created_at", "repo_id"], if_not_exists=True, **listed)
    op.create_index("releases_by_created", "releases", ["created_at"], if_not_exists=True)
    yanked = "yanked_at IS NOT NULL"
    op.create_index("releases_yanked", "releases", ["yanked_at"], if_not_exists=True, **_where(yanked, yanked))
    for name, path in (("places_signed", "model.sig"), ("places_tested", "evals.jsonl")):
        is_path = f"path = '{path}'"
        op.create_index(name, "places", ["repo_id"], if_not_exists=True, **_where(is_path, is_path))
    _add_verdicts()
    _add_relations()
    op.create_table(
        "texts",
        Column("repo_id", Integer, ForeignKey("repos.id", ondelete="CASCADE"), primary_key=True),
        Column("body", Text, nullable=False),
    )
    op.execute(
        "INSERT INTO texts (repo_id, body)"
        " SELECT r.id, lower(r.full_name) || ' ' || coalesce(l.words, '') || ' ' || coalesce(h.words, '') FROM repos r"
        " LEFT JOIN adapters l ON l.repo_id = r.id AND l.is_listed"
        " LEFT JOIN adapters h ON h.repo_id = r.id AND h.is_head AND NOT h.is_listed"
        " WHERE l.repo_id IS NOT NULL OR h.repo_id IS NOT NULL"
    )
    add_trigrams(op.get_bind(), TEXTS)


def _add_verdicts() -> None:
    connection = op.get_bind()
    if "verdict" not in {column["name"] for column in inspect(connection).get_columns("results")}:
        op.add_column("results", Column("verdict", String(8)))
    op.create_index("results_by_verdict", "results", ["verdict", "repo_id"], if_not_exists=True)
    known = text("SELECT r.id, r.body, k.pem FROM results r JOIN test_keys k ON k.fingerprint = r.key")
    for number, body, pem in connection.execute(known).all():
        bundle = Bundle.parse(body)
        if PublicKey(pem=pem).verifies(bundle.signature, pre_authentication(bundle.payload)):
            proven = {"verdict": Attested.parse(bundle.payload).verdict, "id": number}
            connection.execute(text("UPDATE results SET verdict = :verdict WHERE id = :id"), proven)


def _add_relations() -> None:
    if "relation" not in {column["name"] for column in inspect(op.get_bind()).get_columns("parents")}:
        op.add_column("parents", Column("relation", String(16)))
    op.execute(
        "UPDATE derived SET state = 'waiting', attempts = 0, due_at = 0 WHERE digest IN (SELECT digest FROM parents)"
    )


def _where(in_sqlite: str, in_postgresql: str) -> dict[str, Any]:
    return {"sqlite_where": text(in_sqlite), "postgresql_where": text(in_postgresql)}
