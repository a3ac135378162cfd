"""Statements that the driver runs by itself answer and fail as those of SQLAlchemy do."""

from __future__ import annotations

from pathlib import Path

import pytest
from adapterhub_registry.access.tokens import Tokens
from adapterhub_registry.database.db import Database, tokens, users
from adapterhub_registry.database.prepared import Prepared
from sqlalchemy import bindparam, select
from sqlalchemy.exc import OperationalError

STATEMENT = (
    select(tokens.c.id, tokens.c.label, users.c.name.label("user_name"))
    .join(users, users.c.id == tokens.c.user_id)
    .where(users.c.name == bindparam("user"), tokens.c.role.in_(("read", "write")))
    .limit(1)
)


def test_prepared_statement_answers_as_the_same_statement_of_sqlalchemy(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    for user, role in (("ann", "admin"), ("ann", "read"), ("bob", "write")):
        Tokens(database).create(user, role, label=f"{user} {role}")
    prepared = Prepared(STATEMENT)
    with database.read() as connection:
        for user in ("bob", "ann", "eve"):
            expected = connection.execute(STATEMENT, {"user": user}).first()
            found = prepared.first(connection, user=user)
            assert (found and found._asdict()) == (expected and dict(expected._mapping))
    database.close()


def test_prepared_statement_fails_with_the_errors_of_sqlalchemy(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    with database.begin() as connection:
        connection.exec_driver_sql("DROP TABLE tokens")
    with pytest.raises(OperationalError, match="no such table"), database.read() as connection:
        Prepared(STATEMENT).first(connection, user="ann")
    database.close()
