"""Every database becomes one of the present schema: an empty one, and those of unreleased schemas, with what they hold."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapterhub_registry.database import schema
from adapterhub_registry.database.db import (
    Database,
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

from adapterhub.core.errors import UsageProblem
from tests.registry import older_schemas
from tests.registry.running import running
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
    """What the database has otherwise than the tables of the program, besides SQLite's own counts and indexes of words."""

    def is_compared(_item: object, name: str | None, kind: str, *_: object) -> bool:
        words = "_trigram" in (name or "") or (name or "").startswith(("wording_stems", "wordings_by_stem"))
        return not words and name not in {"counts", "tag_sets"}

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


def test_a_database_of_a_later_version_is_refused_and_not_touched(new_database: Callable[[], str]) -> None:
    url = new_database()
    Database(url).close()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0099'"))

    with pytest.raises(UsageProblem, match=r"schema 0099, this version knows schemas up to .*; nothing was changed"):
        Database(url)

    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "0099"
    engine.dispose()


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
