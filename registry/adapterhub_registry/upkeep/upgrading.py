"""Brings the database of a registry to the schema of this program, and shows what changes on the way."""

from __future__ import annotations

import contextlib

from adapterhub.core.errors import NotFound
from adapterhub.formats.administration import SchemaStep, SchemaUpgrade
from adapterhub_registry.database.db import Database
from adapterhub_registry.database.schema import (
    HEAD,
    KNOWN,
    OLDEST,
    bring_up_to_date,
    leave_as_it_is,
    revision_of,
    steps_after,
)
from adapterhub_registry.settings import Settings


def plan(settings: Settings) -> SchemaUpgrade:
    """Return the migrations that an upgrade runs; nothing is changed.

    Raises:
        NotFound: the database has no tables of a registry.
        UsageProblem: a later version of this program made the database, and this one does not work on it.
    """
    with (
        contextlib.closing(Database(settings.database, schema=leave_as_it_is)) as database,
        database.read() as connection,
    ):
        before = revision_of(connection)
        if before is None:
            raise NotFound("the database has no tables of a registry", hint="the first server makes them")
        if before not in KNOWN:
            bring_up_to_date(connection)  # refuses one on which this version does not work
            return SchemaUpgrade(before=before, after=before, steps=(), done=False)
    steps = tuple(
        SchemaStep(schema=number, what=what, rolling=before >= OLDEST) for number, what in steps_after(before)
    )
    return SchemaUpgrade(before=before, after=HEAD, steps=steps, done=False)
