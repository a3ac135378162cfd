"""Members and teams of namespaces, invitations, tokens with scopes, and a log of changes that one can search."""

from __future__ import annotations

from typing import Any

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, String, Text, inspect

revision = "0036"
down_revision = "0035"


def _when() -> list[Column[Any]]:
    return [Column("created_at", BigInteger, nullable=False), Column("created_by", String(200), nullable=False)]


def upgrade() -> None:
    """Add the tables and the columns."""
    found = inspect(op.get_bind())
    for table, column in (
        ("users", Column("removed_at", BigInteger)),
        ("tokens", Column("scopes", String(40))),
        ("tokens", Column("reach", Text)),
        ("test_keys", Column("owner", String(96))),
        ("records", Column("position", BigInteger)),
        ("records", Column("seal", String(64))),
        ("records", Column("user_name", String(96))),
        ("records", Column("address", String(45))),
        ("records", Column("namespace", String(96), nullable=False, server_default="")),
        ("records", Column("repo", String(200), nullable=False, server_default="")),
    ):
        if column.name not in {one["name"] for one in found.get_columns(table)}:
            op.add_column(table, column)
    op.create_index("records_in_order", "records", ["position"], unique=True, if_not_exists=True)
    for name in ("user_name", "namespace", "repo", "action", "address", "created_at"):
        told = {"user_name": "user", "created_at": "time"}.get(name, name)
        op.create_index(f"records_by_{told}", "records", [name, "position"], if_not_exists=True)
    if "members" in found.get_table_names():
        return
    op.create_table(
        "members",
        Column("namespace", String(96), primary_key=True),
        Column("team", String(96), primary_key=True),
        Column("user_id", Integer, ForeignKey("users.id"), primary_key=True, index=True),
        Column("source", String(40), primary_key=True),
        Column("role", String(12)),
        *_when(),
        Column("expires_at", BigInteger),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "teams",
        Column("namespace", String(96), primary_key=True),
        Column("name", String(96), primary_key=True),
        Column("role", String(12), nullable=False),
        Column("repos", Text, nullable=False),
        *_when(),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "invitations",
        Column("id", Integer, primary_key=True),
        Column("sha256", String(64), nullable=False, unique=True),
        Column("namespace", String(96), nullable=False, index=True),
        Column("team", String(96), nullable=False),
        Column("role", String(12)),
        Column("user_name", String(96)),
        Column("member_until", BigInteger),
        *_when(),
        Column("expires_at", BigInteger, nullable=False),
        Column("used_at", BigInteger),
        Column("used_by", String(96)),
        sqlite_autoincrement=True,
    )
