"""The tables of people: who belongs to a namespace and with what role, and the log of what everyone changed."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table, Text

from adapterhub_registry.database.schema import metadata

members: Final = Table(
    "members",
    metadata,
    # a person in a namespace, or in one of its teams; `*` is the namespace of all
    Column("namespace", String(96), primary_key=True),
    Column("team", String(96), primary_key=True),  # empty: of the namespace itself
    Column("user_id", ForeignKey("users.id"), primary_key=True, index=True),
    Column("source", String(40), primary_key=True),  # empty: someone added the person here; else the issuer's name
    Column("role", String(12)),  # read | write | release | administer; NULL in a team, which has a role
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String(200), nullable=False),
    Column("expires_at", BigInteger),
    sqlite_with_rowid=False,
)

teams: Final = Table(
    "teams",
    metadata,
    Column("namespace", String(96), primary_key=True),
    Column("name", String(96), primary_key=True),
    Column("role", String(12), nullable=False),
    Column("repos", Text, nullable=False),  # patterns of names in the namespace, between commas; `*` for all
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String(200), nullable=False),
    sqlite_with_rowid=False,
)

invitations: Final = Table(
    "invitations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sha256", String(64), nullable=False, unique=True),  # of the code
    Column("namespace", String(96), nullable=False, index=True),
    Column("team", String(96), nullable=False),
    Column("role", String(12)),
    Column("user_name", String(96)),  # the only one who may accept it; NULL: anyone who has the code
    Column("member_until", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String(200), nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("used_at", BigInteger),
    Column("used_by", String(96)),
    sqlite_autoincrement=True,
)

records: Final = Table(
    "records",
    metadata,
    # who changed what; rows are only added, and removed at the front when they are older than the server keeps them
    Column("id", Integer, primary_key=True),
    Column("position", BigInteger),  # the order in which changes became visible; NULL where an earlier version wrote it
    Column("seal", String(64)),  # sha256 of the seal before and this entry
    Column("created_at", BigInteger, nullable=False),
    Column("actor", String(200), nullable=False),  # a user and the token, or a command on the server's machine
    Column("user_name", String(96)),
    Column("address", String(45)),
    Column("action", String(32), nullable=False),
    Column("namespace", String(96), nullable=False, server_default=""),
    Column("repo", String(200), nullable=False, server_default=""),  # ns/name, a namespace, or empty
    Column("subject", Text, nullable=False),
    Index("records_in_order", "position", unique=True),
    Index("records_by_user", "user_name", "position"),
    Index("records_by_namespace", "namespace", "position"),
    Index("records_by_repo", "repo", "position"),
    Index("records_by_action", "action", "position"),
    Index("records_by_address", "address", "position"),
    Index("records_by_time", "created_at", "position"),
)
