"""Statements that the driver runs by itself answer and fail as those of SQLAlchemy do, alone or in transactions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from adapterhub_registry.access.tokens import Tokens
from adapterhub_registry.database import postgresql as driver
from adapterhub_registry.database.counting import Counts
from adapterhub_registry.database.db import Database, nodes, repos, tokens, users
from adapterhub_registry.database.postgresql import look_up_by_index
from adapterhub_registry.database.prepared import PreparedPair, PreparedSql, plan_for_values
from adapterhub_registry.database.search_tables import among
from sqlalchemy import bindparam, select
from sqlalchemy.exc import InternalError, OperationalError

from tests.registry.shared_servers import Postgres

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
    prepared = PreparedSql(STATEMENT)
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
        PreparedSql(STATEMENT).first(connection, user="ann")
    database.close()


TOKEN = select(tokens.c.id, tokens.c.label).where(tokens.c.label == bindparam("label"))
USER = select(users.c.id, users.c.name).where(users.c.name == bindparam("user"))


@pytest.mark.parametrize(
    ("label", "user", "expected"),
    [
        ("ann read", "ann", ("ann read", "ann")),
        ("ann read", "eve", ("ann read", None)),
        ("eve read", "ann", (None, "ann")),
        ("eve read", "eve", (None, None)),
    ],
)
def test_two_statements_in_one_find_what_each_finds(
    tmp_path: Path, label: str, user: str, expected: tuple[str | None, str | None]
) -> None:
    database = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    Tokens(database).create("ann", "read", label="ann read")

    one, other = database.look(PreparedPair(TOKEN, USER), label=label, user=user)

    assert (one and one.label, other and other.name) == expected
    database.close()


@pytest.fixture
def postgresql(pg: Postgres) -> Iterator[Database]:
    database = Database(pg.new_database(), connections=1)
    yield database
    database.close()


def close_connections(database: Database, pg: Postgres) -> None:
    """End the connections to a database at its server, and wait until they are gone."""
    import psycopg

    theirs = "FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'"
    with psycopg.connect(pg.uri, autocommit=True) as connection:
        name = [database.engine.url.database]
        connection.execute(f"SELECT pg_terminate_backend(pid, 10000) {theirs}", name)
        assert connection.execute(f"SELECT count(*) {theirs}", name).fetchone() == (0,)


def test_lone_statement_takes_a_new_connection_for_one_that_was_closed(postgresql: Database, pg: Postgres) -> None:
    Tokens(postgresql).create("ann", "read")
    for _ in range(2):
        close_connections(postgresql, pg)

        assert postgresql.look(PreparedSql(USER), user="ann").name == "ann"


@pytest.mark.parametrize("idle_s", [-1.0, 1e9])
def test_connection_that_was_idle_for_long_is_known_to_live_before_a_transaction(
    postgresql: Database, pg: Postgres, monkeypatch: pytest.MonkeyPatch, idle_s: float
) -> None:
    monkeypatch.setattr(driver, "IDLE_S", idle_s)
    close_connections(postgresql, pg)
    is_pinged = idle_s < 0

    with contextlib.nullcontext() if is_pinged else pytest.raises(OperationalError), postgresql.read() as connection:
        PreparedSql(USER).first(connection, user="ann")

    with postgresql.read() as connection:  # one failure makes all connections new
        assert PreparedSql(USER).first(connection, user="ann") is None


def test_reading_transaction_sees_one_snapshot_and_changes_nothing(postgresql: Database, pg: Postgres) -> None:
    other = Database(postgresql.engine.url.render_as_string(hide_password=False))
    with postgresql.read() as connection:
        assert PreparedSql(USER).first(connection, user="ann") is None
        Tokens(other).create("ann", "read")
        assert PreparedSql(USER).first(connection, user="ann") is None
        with pytest.raises(InternalError, match="read-only"):
            connection.execute(users.delete())
    with postgresql.read() as connection:
        assert PreparedSql(USER).first(connection, user="ann") is not None
    other.close()


NODES = select(nodes.c.body).where(nodes.c.repo_id == bindparam("repo"), among(nodes.c.id, "ids"))
ADD_NODES = """INSERT INTO nodes (repo_id, id, body)
    SELECT repo, 'node ' || n, '' FROM generate_series(1, %(repos)s::int) AS repo, generate_series(%(first)s::int, %(last)s) AS n"""


def test_a_plan_for_all_repositories_looks_up_each_row_of_the_largest(postgresql: Database) -> None:
    """Most have a few nodes, so a plan that reads all of a repository looks cheap."""
    with postgresql.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")  # no rows of repositories
        for added in ({"repos": 2000, "first": 1, "last": 4}, {"repos": 1, "first": 5, "last": 20_000}):
            connection.exec_driver_sql(ADD_NODES, added)
        connection.exec_driver_sql("ANALYZE nodes")
    look_up_by_index(postgresql.engine)
    text = str(NODES.compile(dialect=postgresql.engine.dialect)).replace("%(repo)s", "$1").replace("%(ids)s", "$2")
    with postgresql.read() as connection:
        plan = [row[0].strip() for row in connection.exec_driver_sql(f"EXPLAIN (GENERIC_PLAN) {text}")]

    assert [step for step in plan if "Index Cond" in step and "= ANY" in step] != [], plan


def prepared_in(database: Database) -> list[str]:
    """What the only connection keeps prepared, of statements about users."""
    with database.read() as connection:
        return [row[0] for row in connection.exec_driver_sql("SELECT statement FROM pg_prepared_statements")]


def test_a_repeated_statement_is_prepared_unless_it_is_planned_for_its_values(postgresql: Database) -> None:
    by_number = PreparedSql(select(repos.c.id).where(among(repos.c.id, "numbers")))
    for _ in range(3):
        with postgresql.read() as connection:
            plan_for_values(connection)
            PreparedSql(USER).first(connection, user="ann")
            by_number.rows(connection, numbers="[1]")
    assert [what for what in prepared_in(postgresql) if "users.name" in what] == []
    assert len([what for what in prepared_in(postgresql) if "repos.id" in what]) == 1

    for _ in range(2):  # no transaction ends in between
        assert postgresql.look(PreparedSql(USER), user="ann") is None
    assert len([what for what in prepared_in(postgresql) if "users.name" in what]) == 1


def test_counts_of_long_lists_are_kept_while_they_hold() -> None:
    kept = Counts()

    def count(key: str, now: int, *, total: int, more: bool = False) -> int:
        return kept.result(key, now, lambda: FoundCount(total, more)).total

    assert [count("whole", 1, total=300), count("whole", 1, total=301), count("whole", 2, total=302)] == [300, 300, 302]
    assert [count("short", 1, total=3), count("short", 1, total=4)] == [3, 4]
    # numbers that are least ones hold while the registry grows
    assert [count("least", 1, total=20, more=True), count("least", 2, total=21, more=True)] == [20, 20]


@dataclass(frozen=True)
class FoundCount:
    total: int
    more: bool
