"""The tables of what follows from the weights and the manifest of a build; all of it can be made again."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Integer, LargeBinary, String, Table, Text

from adapterhub_registry.database.schema import metadata

derived = Table(
    "derived",
    metadata,
    # one row for each build in `adapters`, by the digest that covers its config and weights
    Column("digest", String(64), primary_key=True),
    Column("state", String(8), nullable=False),  # waiting | made | none
    Column("attempts", Integer, nullable=False),
    Column("due_at", BigInteger, nullable=False),  # of the next attempt; a worker that makes one moves it on first
    Column("reason", Text),  # why there are no figures
    Column("norm", Float),  # of the whole update
    Column("record", LargeBinary),  # the JSON of a `DerivedRecord`, zlib
    Index("derived_due", "state", "due_at"),
)

sketches = Table(
    "sketches",
    metadata,
    # apart from `derived`, whose rows are large: a search for like updates reads all of these
    Column("digest", String(64), primary_key=True),  # of the build, as in `derived`
    Column("key_id", String(16), nullable=False),  # of the key of its signs; those of other keys cannot be compared
    Column("made_at", BigInteger, nullable=False),
    Column("sketch", LargeBinary, nullable=False),  # see `formats.derived.likeness`; never sent
    Index("sketches_by_time", "made_at"),
)

parents = Table(
    "parents",
    metadata,
    # the adapters that a build was merged from, as its manifest has them
    Column("digest", String(64), primary_key=True),  # of the build, as in `derived`
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("parent", String(64), index=True),  # the digest of the parent's manifest
    Column("spec", Text, nullable=False),
    Column("weight", Float, nullable=False),
    Column("relation", String(16)),  # see `Manifest.relation`
)
