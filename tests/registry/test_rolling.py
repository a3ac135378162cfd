"""Servers of two versions on one database: migrations only add, and the statements of an older server run as before."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from adapterhub_registry.database import schema
from adapterhub_registry.database.db import Database
from alembic import command
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection

from tests.registry import older_statements
from tests.registry.older_statements import BASELINE, contractions, driver, replay, shape
from tests.registry.running import running
from tests.registry.shared_servers import Postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Gives the URL of an empty database of each kind."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path / 'registry.db'}"
    pg: Postgres = request.getfixturevalue("pg")
    return lambda: pg.new_database().replace("postgresql://", "postgresql+psycopg://")


def older(url: str) -> list[tuple[str, str]]:
    """Let the recorded server make its tables; what it ran after that, with the outcomes."""
    known = older_statements.statements(url.partition(":")[0].partition("+")[0])
    made = next(at for at, (sql, _) in enumerate(known) if sql.startswith("INSERT INTO alembic_version")) + 1
    with driver(url) as connection:
        assert [replay(connection, sql) for sql, _ in known[:made]] == [outcome for _, outcome in known[:made]]
    return known[made:]


def stepwise(url: str) -> Iterator[list[str]]:
    """What is otherwise than at the baseline after each later migration, beside what was added."""
    engine = create_engine(url)
    with engine.begin() as connection:
        baseline = shape(connection)
        assert schema.revision_of(connection) == BASELINE
        for number, _ in schema.steps_after(BASELINE):
            settings = schema.alembic_settings()
            settings.attributes["connection"] = connection
            command.upgrade(settings, number)
            yield [f"{number}: {one}" for one in contractions(baseline, shape(connection))]
    engine.dispose()


# ------------------------------------------------------------ the rule
def test_each_migration_after_the_baseline_only_adds(new_url: Callable[[], str]) -> None:
    url = new_url()
    older(url)

    found = list(stepwise(url))

    assert len(found) == int(schema.HEAD) - int(BASELINE)
    assert [one for some in found for one in some] == []


def test_the_statements_of_the_older_server_do_on_the_present_schema_what_they_did(new_url: Callable[[], str]) -> None:
    url = new_url()
    later = older(url)
    Database(url).close()

    with driver(url) as connection:
        outcomes = [(sql, replay(connection, sql), outcome) for sql, outcome in later]

    assert [one for one in outcomes if one[1] != one[2]] == []
    kinds = Counter(sql.split(None, 1)[0].upper() for sql, outcome in later if outcome == "ok")
    assert {"SELECT", "INSERT", "UPDATE", "DELETE"} <= kinds.keys()
    assert sum(kinds.values()) > 300


def test_the_oldest_schema_that_works_is_the_baseline(new_url: Callable[[], str]) -> None:
    url = new_url()
    Database(url).close()

    with contextlib.closing(Database(url)) as database, database.read() as connection:
        assert connection.scalar(text("SELECT schema_num FROM works_with")) == schema.OLDEST == BASELINE


CONTRACTS = {
    "ALTER TABLE tokens DROP COLUMN used_at": "tokens.used_at is gone",
    "ALTER TABLE refusals RENAME COLUMN message TO about": "refusals.message is gone",
    "DROP TABLE token_use": "table token_use is gone",
    "ALTER TABLE facts RENAME TO told": "table facts is gone",
    "CREATE UNIQUE INDEX one_label ON tokens (label)": "tokens: unique ('label',) is new",
}
CONTRACTS_OF_POSTGRESQL = {
    "ALTER TABLE users ADD COLUMN mail TEXT NOT NULL": "users.mail is new, without NULL and without a default",
    "ALTER TABLE tokens ALTER COLUMN expires_at SET NOT NULL": "tokens.expires_at takes no NULL any more",
    "ALTER TABLE tokens ALTER COLUMN label TYPE VARCHAR(10)": "tokens.label was VARCHAR(200) and is VARCHAR(10)",
    "ALTER TABLE tokens ADD CHECK (id > 0)": "tokens: checks id > 0 is new",
    "ALTER TABLE records ADD FOREIGN KEY (actor) REFERENCES users (name)": "records: foreign ('actor',) is new",
}


def test_what_contracts_is_told(new_url: Callable[[], str]) -> None:
    url = new_url()
    cases = CONTRACTS | ({} if url.startswith("sqlite") else CONTRACTS_OF_POSTGRESQL)

    renamed = "refusals.about is new, without NULL and without a default"
    assert set(contracted(url, list(cases))) == {renamed, *cases.values()}


def test_a_statement_of_the_older_server_that_fails_is_found(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    later = older(url)

    with driver(url) as connection:
        connection.execute("ALTER TABLE refs RENAME COLUMN message TO about")
        changed = [sql for sql, outcome in later if replay(connection, sql) != outcome]

    assert any(sql.startswith("INSERT INTO refs") for sql in changed)


def test_what_expands_is_not_told(new_url: Callable[[], str]) -> None:
    expands = [
        "CREATE TABLE later (id INTEGER PRIMARY KEY, of VARCHAR(96) NOT NULL UNIQUE REFERENCES users (name))",
        "ALTER TABLE users ADD COLUMN mail TEXT",
        "ALTER TABLE users ADD COLUMN kind VARCHAR(8) NOT NULL DEFAULT 'user'",
        "ALTER TABLE users ADD COLUMN place INTEGER",
        "CREATE UNIQUE INDEX by_place ON users (place)",  # rows of older servers have NULL there, any number of them
        "CREATE INDEX by_kind ON users (kind)",
        "DROP INDEX by_kind",
    ]

    assert contracted(new_url(), expands) == []


def contracted(url: str, statements: list[str]) -> list[str]:
    """What a migration of these statements does to a new database beside adding."""
    Database(url).close()
    engine = create_engine(url)
    with engine.begin() as connection:
        before = shape(connection)
        for one in statements:
            connection.execute(text(one))
        found = contractions(before, shape(connection))
    engine.dispose()
    return found


# ------------------------------------------------------------ a later version beside this one
def test_a_server_goes_on_while_a_later_version_migrates_and_starts_again_after_it(
    pg: Postgres, tmp_path: Path
) -> None:
    """The later version is this program's, with one migration more: a table, and an index of another."""
    url = pg.new_database()
    (tmp_path / "older").mkdir()
    migrating, may_end = threading.Event(), threading.Event()

    def migrate(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE later (id INTEGER PRIMARY KEY)"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0999'"))
        migrating.set()
        assert may_end.wait(120)

    def start_later() -> None:
        Database(url, schema=migrate).close()

    with running(tmp_path / "older", database_url=url) as server:
        server.push("acme/before", b"b" * 5000)
        later = threading.Thread(target=start_later)
        later.start()
        assert migrating.wait(120)
        server.push("acme/during", b"d" * 5000)
        listed = server.get("/api/models?limit=10").json()
        health = server.get("/healthz").status_code
        may_end.set()
        later.join(120)
        server.push("acme/after", b"a" * 5000)

    assert ({one["id"] for one in listed}, health) == ({"acme/before", "acme/during"}, 200)
    with running(tmp_path / "older", database_url=url) as again:  # a pod of the version before restarts
        again.push("acme/again", b"g" * 5000)
        assert len(again.get("/api/models?limit=10").json()) == 4
    with contextlib.closing(Database(url, schema=schema.leave_as_it_is)) as database, database.begin() as connection:
        assert schema.revision_of(connection) == "0999"
        connection.execute(text("UPDATE works_with SET schema_num = '0999'"))
    with pytest.raises(Exception, match="schema 0999"):  # once a version contracts, the one before it no longer starts
        Database(url)


def test_a_server_does_not_listen_before_the_schema_is_its_own(
    pg: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterhub_registry.operations import server as serving

    url, migrating, may_end = pg.new_database(), threading.Event(), threading.Event()
    bound: list[str] = []

    def migrate(connection: Connection) -> None:
        migrating.set()
        assert may_end.wait(120)
        schema.bring_up_to_date(connection)

    bind = serving._bind
    monkeypatch.setattr("adapterhub_registry.database.db.lock_name", lambda connection, _name: migrate(connection))
    monkeypatch.setattr(serving, "_bind", lambda *given: (bound.append("bound"), bind(*given))[1])

    class Ended(Exception):
        pass

    def announce(line: str) -> None:
        if line.startswith("url"):
            raise Ended

    def start() -> None:
        settings = serving.Settings(root=tmp_path, secret=b"s" * 32, database_url=url)
        with contextlib.suppress(Ended):
            serving.serve(settings, host="127.0.0.1", port=0, announce=announce)

    mask = os.umask(0o022)  # `serve` closes what it writes to other users
    server = threading.Thread(target=start)
    try:
        server.start()
        assert migrating.wait(120)
        before = list(bound)
        may_end.set()
        server.join(120)
    finally:
        os.umask(mask)

    assert (before, bound) == ([], ["bound"])
