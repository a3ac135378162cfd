"""The tables of people who sign in at an issuer, of programs that wait for approval, and of lines about namespaces."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table, Text

from adapterhub_registry.database.schema import metadata

accounts: Final = Table(
    "accounts",
    metadata,
    # the person of an issuer who is a user here; an issuer may give the name of one to another, but never a subject
    Column("id", Integer, primary_key=True),
    Column("issuer", String(500), nullable=False),
    Column("subject", String(255), nullable=False),
    Column("user_id", ForeignKey("users.id"), nullable=False, unique=True),
    Column("groups", Text, nullable=False),  # JSON array: what the issuer stated at the last sign-in
    Column("created_at", BigInteger, nullable=False),
    Column("signed_in_at", BigInteger),
    Index("accounts_by_subject", "issuer", "subject", unique=True),
)

device_requests: Final = Table(
    "device_requests",
    metadata,
    # a program that asked for a token, until it took one, was refused, or waited too long
    Column("id", Integer, primary_key=True),
    Column("device_sha256", String(64), nullable=False, unique=True),
    Column("user_code", String(16), nullable=False, unique=True),
    Column("client", String(200), nullable=False),  # what the program calls itself
    Column("address", String(64), nullable=False, index=True),
    Column("scopes", String(40), nullable=False),  # between commas: the most that it asks for
    Column("days", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
    Column("polled_at", BigInteger),
    Column("wait_s", Integer, nullable=False),  # the least time between two polls
    Column("state", String(8), nullable=False),  # waiting | approved | refused
    Column("approved_by", ForeignKey("tokens.id")),  # the token of the session
    sqlite_autoincrement=True,
)

abouts: Final = Table(
    "abouts",
    metadata,
    # one line of plain text about a namespace, by its administrators
    Column("namespace", String(96), primary_key=True),
    Column("about", String(200), nullable=False),
)
