"""Every database becomes one of the present schema: an empty one, and those of unreleased schemas, with what they hold."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapterhub_registry.database import schema
from adapterhub_registry.database.db import (
    Database,
    adapter_names,
    commits,
    nodes,
    places,
    releases,
    repos,
    tokens,
    tombstones,
    uploads,
    users,
)
from adapterhub_registry.database.schema import metadata
from adapterhub_registry.database.trees import Totals, TreeFile
from adapterhub_registry.repos.commits import tree_of
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, delete, func, insert, inspect, select, text

from adapterhub.core.errors import Conflict, UsageProblem
from tests.registry import older_schemas
from tests.registry.running import running, typed
from tests.registry.shared_servers import Postgres

NOW = 1_700_000_000_000


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Gives the URL of an empty database of each kind."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path / 'registry.db'}"
    pg: Postgres = request.getfixturevalue("pg")
    return lambda: pg.new_database().replace("postgresql://", "postgresql+psycopg://")


def older(url: str, revision: str) -> None:
    """A database as an unreleased version left it: with a user, a token, a repository and an upload."""
    older_schemas.make(url, revision)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(insert(users).values(id=7, name="ann", created_at=NOW))
        row = {"sha256": "a" * 64, "user_id": 7, "label": "old", "role": "write", "namespaces": '["ann/*"]'}
        connection.execute(insert(tokens).values(row | {"created_at": NOW}))
        named = {"full_name": "ann/x", "namespace": "ann", "folded": "ann/x", "folded_namespace": "ann"}
        about = {"private": False, "created_by": "ann", "created_at": NOW, "modified_at": NOW, "head": "0" * 40}
        connection.execute(insert(repos).values(id=3, **named, **about))
        sent = text("INSERT INTO uploads (repo_id, sha256, user_name, created_at) VALUES (3, :sha256, 'ann', :at)")
        connection.execute(sent, {"sha256": "b" * 64, "at": NOW})
    engine.dispose()


def differences(database: Database) -> list[Any]:
    """What the database has otherwise than the tables of the program, besides kept numbers, and SQLite's own indexes of words."""

    def is_compared(_item: object, name: str | None, kind: str, *_: object) -> bool:
        words = "_trigram" in (name or "") or (name or "").startswith(("wording_stems", "wordings_by_stem"))
        return not words and name not in {"counts", "spaces", "spaces_by_size", "tag_sets", "works_with"}

    with database.begin() as connection:
        options = {"compare_type": True, "include_object": is_compared}
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, metadata))


def revision(database: Database) -> str | None:
    with database.read() as connection:
        return schema.revision_of(connection)


def test_an_empty_database_gets_the_newest_schema(new_database: Callable[[], str]) -> None:
    database = Database(new_database())

    assert (revision(database), differences(database)) == (schema.HEAD, [])
    database.close()


@pytest.mark.parametrize("made_by", older_schemas.REVISIONS)
def test_a_database_of_an_unreleased_schema_keeps_what_it_holds(new_database: Callable[[], str], made_by: str) -> None:
    url = new_database()
    older(url, made_by)

    database = Database(url)

    assert (revision(database), differences(database)) == (schema.HEAD, [])
    with database.read() as connection:
        assert connection.scalars(select(tokens.c.label)).all() == ["old"]
        assert connection.execute(select(uploads.c.repo_id, uploads.c.token_id)).all() == [(3, None)]
        assert connection.scalars(select(repos.c.full_name)).all() == ["ann/x"]
    database.close()


def test_of_versions_that_were_one_all_along_the_first_stays_and_the_others_are_yanked(
    new_database: Callable[[], str],
) -> None:
    url = new_database()
    first = Database(url)
    named = {"full_name": "ann/x", "namespace": "ann", "folded": "ann/x", "folded_namespace": "ann"}
    about = {"private": False, "created_by": "ann", "created_at": NOW, "modified_at": NOW, "head": "0" * 40}
    with first.begin() as connection:
        connection.execute(insert(repos).values(id=3, **named, **about))
        older_schemas.undo_newest(connection)
        for at, version in enumerate(["1.0.0+first", "1.0.0", "1", "1.0", "1.1"]):
            row = {"repo": 3, "version": version, "digest": str(at) * 64, "at": at, "commit": str(at) * 40}
            columns = "repo_id, version, tag, commit_id, digest, created_at"
            values = "(:repo, :version, :version, :commit, :digest, :at)"
            connection.execute(text(f"INSERT INTO releases ({columns}) VALUES {values}"), row)  # noqa: S608 - own columns
        grave = "INSERT INTO tombstones (full_name, version, namespace, digest, created_at)"
        connection.execute(text(f"{grave} VALUES ('ann/gone', '2.0', 'ann', :digest, 1)"), {"digest": "9" * 64})
        connection.execute(text("UPDATE alembic_version SET version_num = '0020'"))
    first.close()

    database = Database(url)

    with database.read() as connection:
        rows = connection.execute(select(releases).order_by(releases.c.created_at)).all()
        assert connection.scalars(select(tombstones.c.version_key)).all() == ["2"]
    assert [(row.version, row.version_key, row.yanked_reason) for row in rows] == [
        ("1.0.0+first", "1+first", "reads like 1.0.0, which was released, too"),
        ("1.0.0", "1", None),
        ("1", "=1", "reads like 1.0.0, which was released, too"),
        ("1.0", "=1.0", "reads like 1.0.0, which was released, too"),
        ("1.1", "1.1", None),
    ]
    assert (revision(database), differences(database)) == (schema.HEAD, [])
    database.close()


def test_a_database_of_the_schema_before_this_one_gets_the_new_tables(new_database: Callable[[], str]) -> None:
    url = new_database()
    first = Database(url)
    with first.begin() as connection:
        older_schemas.undo_newest(connection)
        newer = (
            "wordings",
            "texts",
            "alias_moves",
            "redirects",
            "access_requests",
            "records",
            "deliveries",
            "webhooks",
            "events",
        )
        for table in ("refusals", "derived", "sketches", "parents", "results", "test_rules", "test_keys", *newer):
            connection.execute(text(f"DROP TABLE {table}"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0005'"))
    first.close()

    database = Database(url)

    assert (revision(database), differences(database)) == (schema.HEAD, [])
    database.close()


def test_the_files_of_every_commit_stay_when_they_become_trees(new_database: Callable[[], str]) -> None:
    url = new_database()
    trees = with_files(url)

    database = Database(url)

    with database.begin() as connection:
        assert set(connection.scalars(select(commits.c.id))) == set(trees)
        for commit_id, held in trees.items():
            tree = tree_of(connection, 3, commit_id)
            assert {entry.path: facts(entry) for entry in tree.walk()} == held
            assert tree.totals() == sum((entry.totals for entry in tree.walk()), Totals())
        wanted = {(row[0], path) for held in trees.values() for path, row in held.items()}
        assert {tuple(row) for row in connection.execute(select(places.c.sha256, places.c.path))} == wanted
        node_count = connection.scalar(select(func.count()).select_from(nodes)) or 0
        assert node_count < sum(len(held) for held in trees.values()) // 10
        connection.execute(delete(repos))
        left = [connection.scalar(select(func.count()).select_from(t)) for t in (nodes, places, commits)]
        assert left == [0, 0, 0]
    assert not inspect(database.engine).has_table("files")
    database.close()


def with_files(url: str) -> dict[str, dict[str, tuple[object, ...]]]:
    """A database of the last schema before trees: a history with a side branch. The files of each commit, by path."""
    older(url, "0003")
    engine = create_engine(url)
    with engine.begin() as connection:
        everything = {f"data/{n:04}": content(n) for n in range(700)} | {"a-b": content(1), "a/x": content(2)}
        history = [
            ("1" * 40, None, {}),
            ("2" * 40, "1" * 40, everything),
            ("3" * 40, "2" * 40, {"data/0007": content(-1), "a/x": None}),  # and the side branch from the same parent
            ("4" * 40, "2" * 40, {"data/0007": content(-2), "é/x": content(5)}),
            ("5" * 40, "3" * 40, {"data/0007": content(7)}),
            ("6" * 40, "5" * 40, dict.fromkeys(everything)),
        ]
        trees: dict[str, dict[str, tuple[object, ...]]] = {}
        row = "INSERT INTO commits VALUES (3, :id, :parent, :tree, 't', 'm', 'ann', :at)"
        file = "INSERT INTO files VALUES (3, :commit, :path, :sha256, :sha1, :size, :lfs, :changed)"
        for at, (commit_id, parent, changes) in enumerate(history):
            connection.execute(text(row), {"id": commit_id, "parent": parent, "tree": "0" * 64, "at": NOW + at // 2})
            held = dict(trees[parent]) if parent else {}
            for path, new in changes.items():
                held.pop(path, None)
                if new is not None:
                    held[path] = (*new, commit_id)
            trees[commit_id] = held
            names = ("sha256", "sha1", "size", "lfs", "changed")
            rows = [
                {"commit": commit_id, "path": path} | dict(zip(names, value, strict=True))
                for path, value in held.items()
            ]
            if rows:
                connection.execute(text(file), rows)
    engine.dispose()
    return trees


def content(number: int) -> tuple[object, ...]:
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return digest, digest[:40], abs(number), number % 2 == 0


def facts(entry: TreeFile) -> tuple[object, ...]:
    return entry.sha256, entry.git_sha1, entry.size, entry.lfs, entry.changed_in


def test_servers_that_start_at_once_migrate_once(new_database: Callable[[], str]) -> None:
    url, found, problems = new_database(), [], []
    older(url, "0001")

    def open_it() -> None:
        try:
            database = Database(url)
            found.append(revision(database))
            database.close()
        except Exception as error:  # noqa: BLE001 - shown by the assertion
            problems.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (problems, found) == ([], [schema.HEAD] * 4)


@pytest.mark.parametrize("works_with", ["0098", None])
def test_a_database_of_a_later_version_is_refused_and_not_touched(
    new_database: Callable[[], str], works_with: str | None
) -> None:
    url = new_database()
    Database(url).close()
    later(url, works_with)

    with pytest.raises(
        UsageProblem, match=r"schema 0099, and this version supports schemas up to .*; nothing was changed"
    ):
        Database(url)

    engine = create_engine(url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "0099"
    engine.dispose()


def test_a_database_of_a_later_version_that_works_with_this_one_is_served_and_not_touched(
    new_database: Callable[[], str],
) -> None:
    url = new_database()
    Database(url).close()
    later(url, schema.HEAD)

    database = Database(url)

    assert revision(database) == "0099"
    with database.begin() as connection:
        connection.execute(insert(users).values(name="ann", created_at=NOW))
    database.close()


def later(url: str, works_with: str | None) -> None:
    """Let a later version have made a database."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0099'"))
        connection.execute(text("DELETE FROM works_with"))
        if works_with is not None:
            connection.execute(text("INSERT INTO works_with VALUES (:number)"), {"number": works_with})
    engine.dispose()


@pytest.mark.parametrize("command", [("check",), ("gc",), ("import", "."), ("worker", "--once"), ("meaning",)])
def test_only_a_server_and_an_upgrade_change_an_earlier_schema(tmp_path: Path, command: tuple[str, ...]) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    older(url, "0004")

    done = typed(*command, "--root", tmp_path)

    assert (done.exit_code, "adapt registry upgrade" in done.stderr) == (2, True), done.stderr
    with contextlib.closing(Database(url, schema=schema.leave_as_it_is)) as database:
        assert revision(database) == "0004"
        assert "counts" not in inspect(database.engine).get_table_names()


def test_an_upgrade_shows_its_steps_and_takes_them(tmp_path: Path) -> None:
    older(f"sqlite:///{tmp_path / 'registry.db'}", "0004")
    here = ("upgrade", "--root", tmp_path)

    planned = json.loads(typed(*here, "--dry-run", "--json").stdout)
    upgraded = typed(*here)
    again = typed(*here)

    assert (planned["before"], planned["after"], planned["done"]) == ("0004", schema.HEAD, False)
    assert [step["schema"] for step in planned["steps"]] == sorted(set(schema.KNOWN) - set(schema.UNRELEASED))
    assert all(step["what"] and not step["rolling"] for step in planned["steps"])
    assert f"schema\t0004 -> {schema.HEAD}" in upgraded.stdout
    assert "0005\tstop servers of earlier versions first\t" in upgraded.stdout
    assert "adapt registry backup" in upgraded.stderr
    assert (again.stdout, again.stderr) == (f"schema\t{schema.HEAD}, which is the newest\n", "")


def test_an_upgrade_refuses_to_go_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    Database(url).close()
    later(url, None)

    done = typed("upgrade", "--root", tmp_path)

    assert (done.exit_code, "nothing was changed" in done.stderr) == (2, True)
    assert "goes back only by `adapt registry restore` of a backup" in done.stderr


def test_a_migration_that_fails_leaves_the_first_schema(
    new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_database()
    older(url, "0001")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE adapters_listed (x INTEGER)"))  # takes the name of an index to come

    with pytest.raises(Exception, match="adapters_listed"):
        Database(url)

    with engine.connect() as connection:
        assert schema.revision_of(connection) == "0001"
        assert len(connection.execute(text("SELECT * FROM uploads")).one()) == 4
        connection.rollback()
        connection.execute(text("DROP TABLE adapters_listed"))
        connection.commit()
    engine.dispose()
    Database(url).close()  # and goes through once the cause is gone


def test_a_migration_gives_up_a_table_that_stays_locked_and_goes_through_once_it_is_free(
    pg: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = pg.new_database().replace("postgresql://", "postgresql+psycopg://")
    older(url, "0001")
    monkeypatch.setattr(schema, "LOCK_S", 0.1)
    monkeypatch.setattr(schema, "RETRIES_S", (0.0,))
    engine = create_engine(url)
    with engine.connect() as other:
        other.execute(text("SELECT * FROM repos"))

        with pytest.raises(Conflict, match=r"2 times, it waited 0\.1 s for a table"):
            Database(url)
        assert schema.revision_of(other) == "0001"

        monkeypatch.setattr(time, "sleep", lambda _pause_s: other.rollback())
        with contextlib.closing(Database(url)) as database:
            assert revision(database) == schema.HEAD
    engine.dispose()


def test_tables_that_hold_their_keys_once_keep_their_rows_indexes_and_triggers(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    older(url, "0001")
    database = Database(url)
    about = {"parent": None, "root": "2" * 64, "title": "t", "message": "", "author": "ann", "created_at": NOW}
    with database.begin() as connection:
        connection.execute(insert(commits).values(repo_id=3, id="1" * 40, **about))
        connection.execute(insert(adapter_names).values(namespace="ann", name="x", repo_id=3, created_at=NOW))
        counted = connection.scalar(text("SELECT value FROM counts WHERE name = 'commits'"))
        for table in ("commits", "adapter_names", "downloads"):  # as the version before made them
            made = (
                "SELECT sql FROM sqlite_master WHERE tbl_name = :name AND sql IS NOT NULL ORDER BY type = 'table' DESC"
            )
            first, *others = connection.scalars(text(made), {"name": table}).all()
            connection.execute(text(f"CREATE TEMP TABLE held AS SELECT * FROM {table}"))  # noqa: S608 - a table of ours
            connection.execute(text(f"DROP TABLE {table}"))
            assert "WITHOUT ROWID" in first
            connection.execute(text(first.replace("WITHOUT ROWID", "")))
            connection.execute(text(f"INSERT INTO {table} SELECT * FROM held"))  # noqa: S608 - a table of ours
            connection.execute(text("DROP TABLE held"))
            for other in others:
                connection.exec_driver_sql(other)
        before = connection.scalars(text("SELECT sql FROM sqlite_master WHERE type <> 'table' ORDER BY name")).all()
        connection.execute(text("UPDATE alembic_version SET version_num = '0034'"))
    database.close()

    database = Database(url)

    with database.begin() as connection:
        kept = connection.scalars(text("SELECT sql FROM sqlite_master WHERE type <> 'table' ORDER BY name")).all()
        assert [sql for sql in kept if sql] == [sql for sql in before if sql]
        one_key = text("SELECT name FROM sqlite_master WHERE sql LIKE '%WITHOUT ROWID%' AND type = 'table'")
        assert {"commits", "adapter_names", "downloads"} <= set(connection.scalars(one_key))
        assert connection.scalars(select(adapter_names.c.name)).all() == ["x"]
        assert connection.scalars(select(commits.c.id).where(commits.c.repo_id == 3)).all() == ["1" * 40]
        connection.execute(insert(commits).values(repo_id=3, id="2" * 40, **about))
        assert connection.scalar(text("SELECT value FROM counts WHERE name = 'commits'")) == counted + 1
    assert (revision(database), differences(database)) == (schema.HEAD, [])
    database.close()


def test_a_server_starts_on_the_folder_of_the_first_version(tmp_path: Path) -> None:
    older(f"sqlite:///{tmp_path / 'registry.db'}", "0001")

    with running(tmp_path) as server:
        listed = httpx.get(f"{server.url}/api/models", params={"author": "ann"}).json()
        made = server.post("/api/repos/create", {"name": "new"})

    assert [found["id"] for found in listed] == ["ann/x"]
    assert made.status_code == 200


def test_a_url_that_is_none_is_refused_without_showing_its_password() -> None:
    with pytest.raises(UsageProblem) as caught:
        Database("postgresql:/ann:s3cret@host")

    assert "s3cret" not in str(caught.value)
