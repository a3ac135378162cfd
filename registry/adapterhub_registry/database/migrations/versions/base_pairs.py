"""The claims of adapters about their bases, and which of these are one model in two forms."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Boolean, Column, Integer, String

revision = "0026"
down_revision = "0025"


def upgrade() -> None:
    """Add the tables; every build waits for a worker, which compares its base with the others."""
    op.create_table(
        "base_claims",
        Column("digest", String(64), primary_key=True),
        Column("base_sha256", String(64), nullable=False),
        Column("claim", String(64), nullable=False),
        Column("method", Integer, nullable=False),
    )
    op.create_index("base_claims_by_base", "base_claims", ["base_sha256", "claim"])
    op.create_index("base_claims_by_claim", "base_claims", ["claim"])
    op.create_table(
        "base_pairs",
        Column("first_claim", String(64), primary_key=True),
        Column("second_claim", String(64), primary_key=True),
        Column("first_sha256", String(64), nullable=False),
        Column("second_sha256", String(64), nullable=False),
        Column("verdict", String(40), nullable=False),
        Column("form", String(80), nullable=False),
        Column("is_copy", Boolean, nullable=False),
    )
    op.create_index("base_pairs_by_base", "base_pairs", ["first_sha256", "second_sha256"])
