"""`adapt registry move`: what began in one folder goes on with PostgreSQL and S3, and nobody who uses it notices."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sqlite3
from itertools import count
from pathlib import Path

import httpx
import pytest
from adapterhub_registry.access.tokens import Tokens
from adapterhub_registry.database.db import Database, repo_tags, repos, tokens, users
from adapterhub_registry.database.schema import metadata
from sqlalchemy import func, insert, select, update

from adapterhub.library.store.catalog import Installed
from tests.registry.pushing import Push
from tests.registry.running import Running, running, typed
from tests.registry.shared_servers import CREDENTIALS, S3, Postgres, Shared
from tests.support.command_line import Adapt
from tests.support.results import signed, with_contract
from tests.support.tiny import make_adapter, make_base

ADAPTER = "acme/legal-qa"
RULE = "/api/adapt/v1/namespaces/acme/tests"
LISTINGS = (
    "/api/models?full=true&limit=100",
    f"/api/models/{ADAPTER}/revision/v1.0.0?blobs=true",
    f"/api/models/{ADAPTER}/refs",
    f"/api/models/{ADAPTER}/commits/main",
    f"/api/models/{ADAPTER}/tree/main?recursive=true",
    f"/api/adapt/v1/adapters/{ADAPTER}/versions",
    f"/api/adapt/v1/adapters/{ADAPTER}/tests/1.0.1",
    RULE,
    "/api/adapt/v1/adapters?task=legal",
    "/api/models/acme/yanked/revision/v1.0.0",
)


def client(url: str, token: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60)


@pytest.fixture
def shared(pg: Postgres, s3_server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shared:
    for name, value in (CREDENTIALS | {"ADAPTERHUB_REGISTRY_S3_ENDPOINT": s3_server.endpoint}).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "shared").mkdir()
    # no replica here is the first one, whose first start says a token
    numbers = count(1)
    return Shared(tmp_path / "shared", pg.new_database(), s3_server.endpoint, s3_server.new_bucket(), _numbers=numbers)


def place(shared: Shared) -> list[str]:
    """The options that say where the shared registry lies."""
    return shared.options[:-2]


def fill(server: Running) -> None:
    """Large files and small ones, a release, a yanked one, and a repository that is gone."""
    server.push("acme/large", random.Random(1).randbytes(3_000_000))
    server.push("acme/yanked", b"y" * 5000)
    server.yank("acme/yanked", "trained on leaked labels")
    server.push("acme/gone", b"g" * 5000)
    server.remove("acme/gone")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a registry with a few adapters, whose server has ended."""
    root = tmp_path_factory.mktemp("filled") / "root"
    with running(root) as server:
        fill(server)
    return root


@pytest.fixture
def root(filled: Path, tmp_path: Path) -> Path:
    """A copy of `filled`."""
    return shutil.copytree(filled, tmp_path / "root")


def rows_of(url: str) -> dict[str, int]:
    database = Database(url)
    with database.read() as connection:
        found = {t.name: connection.scalar(select(func.count()).select_from(t)) or 0 for t in metadata.sorted_tables}
    database.close()
    return found


def with_result(home: Adapt) -> Installed:
    """The next version has a contract and a signed PASS, and is published."""
    home.ok("key", "new", "ann", "--unencrypted")
    build = with_contract(home.library, next(home.library.installed()))
    signed(home.library, build, "ann")
    home.ok("push", "legal-qa==1.0.1", "--to", ADAPTER, "--remote", "ours")
    return build


def check_gate(ann: httpx.Client, changed: bytes) -> None:
    """A later CHANGED closes the gate, which came along."""
    place, tag = f"/api/models/{ADAPTER}/tag", {"tag": "v1.0.1"}
    ann.request("DELETE", f"{place}/v1.0.1").raise_for_status()
    assert ann.put(f"/api/adapt/v1/adapters/{ADAPTER}/tests/1.0.1", content=changed).json()["sequence"] == 2
    assert ann.post(f"{place}/main", json=tag).status_code == 422
    ann.post(RULE, json={"asks": "off"}).raise_for_status()
    assert ann.post(f"{place}/main", json=tag).status_code == 200


# ------------------------------------------------------------ the whole way
def test_a_moved_registry_answers_as_before_and_takes_new_pushes(shared: Shared, tmp_path: Path, online: None) -> None:
    make_base(tmp_path / "base")
    make_adapter(tmp_path / "legal-qa", rank=4)
    home, far = Adapt(tmp_path), Adapt(tmp_path, "far")
    for adapt in (home, far):
        adapt.ok("base", "add", "./base", "--as", "base-7b")
    home.ok("add", "./legal-qa", "--name", "legal-qa", "--base", "base-7b", "--task", "legal")
    with running(tmp_path / "root") as server:
        home.ok("remote", "add", "ours", server.url)
        home.ok("remote", "login", "ours", "--token", server.token)
        home.ok("push", "legal-qa@base-7b", "--to", ADAPTER, "--remote", "ours")
        tested = with_result(home)
        fill(server)
        key = {"name": "ann", "pem": (home.library.root / "keys" / "ann.pub").read_text()}
        server.post(RULE, {"asks": "passed", "trust": [key]}).raise_for_status()
        revoked = server.registry.tokens.create("ben", "read")
        server.registry.tokens.revoke(2)
        with client(server.url, server.token) as ann:
            before = {path: ann.get(path).raise_for_status().text.replace(server.url, "") for path in LISTINGS}
        server.registry.tokens.flush()
        listed = server.registry.tokens.records()

    moved = typed("move", "--root", tmp_path / "root", *place(shared))

    assert moved.exit_code == 0, moved.stderr
    checked = typed("check", "--bytes", "--json", "--root", tmp_path / "new", *place(shared))
    assert json.loads(checked.stdout)["problems"] == []
    assert json.loads(checked.stdout)["blobs"] == int(moved.stdout.splitlines()[0].split()[1]) > 0
    database = Database(shared.database)
    assert Tokens(database).records() == listed
    with shared.replica() as replica, client(replica.url, server.token) as ann:
        after = {path: ann.get(path).raise_for_status().text.replace(replica.url, "") for path in LISTINGS}
        assert after == before
        check_gate(ann, signed(home.library, tested, "ann", "CHANGED").read_bytes())
        assert ann.get("/api/whoami-v2", headers={"Authorization": f"Bearer {revoked}"}).status_code == 401

        # by digest, from another home
        digest = ann.get(f"/api/adapt/v1/adapters/{ADAPTER}/versions").json()["versions"][0]["digest"]
        far.ok("remote", "add", "ours", replica.url)
        far.ok("install", f"{ADAPTER}#{digest}", "--base", "base-7b", "--remote", "ours")
        assert far.json("list")[0]["digest"] == digest

        # numbers go on: of repositories above those that are gone, of users and tokens above the last
        Push(repo="acme/after", weights=random.Random(2).randbytes(3_000_000)).run(ann)
        made = ann.post("/api/adapt/v1/tokens", json={"user": "new", "role": "write"}).raise_for_status().json()
        with client(replica.url, made["token"]) as new:
            Push(repo="new/one", weights=b"n" * 5000).run(new)
    with database.read() as connection:
        numbers = {row.full_name: row.id for row in connection.execute(select(repos.c.full_name, repos.c.id))}
        names = set(connection.scalars(select(users.c.name)))
    database.close()
    assert numbers["acme/after"] > 4, "the number of the repository that was deleted came again"
    assert names == {"ann", "ben", "new"}, "the first start made a token, as if there were none"
    assert typed("check", "--bytes", "--root", tmp_path / "new", *place(shared)).exit_code == 0


# ------------------------------------------------------------ refusals, each of which leaves the target empty
def test_a_folder_whose_server_runs_is_refused(shared: Shared, tmp_path: Path) -> None:
    with running(tmp_path / "root") as server:
        fill(server)

        refused = typed("move", "--root", tmp_path / "root", *place(shared))
        still = server.get("/api/models/acme/large").status_code

    assert (refused.exit_code, still) == (15, 200)
    assert "stop its server" in refused.stderr
    assert set(rows_of(shared.database).values()) == {0}


def test_a_connection_that_comes_back_after_the_end_keeps_the_file_free(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    pool = database.engine.pool  # other threads may hold on to it

    with database.read() as connection:
        connection.execute(select(users.c.id)).all()
        database.close()

    with contextlib.closing(sqlite3.connect(tmp_path / "registry.db", timeout=0, isolation_level=None)) as alone:
        alone.execute("PRAGMA locking_mode=EXCLUSIVE")
        alone.execute("BEGIN EXCLUSIVE")  # raises where another connection is open
    assert pool is not database.engine.pool


def test_a_database_that_holds_something_is_refused_and_kept(root: Path, shared: Shared) -> None:
    with shared.replica():  # its start makes a token
        pass
    before = rows_of(shared.database)

    refused = typed("move", "--root", root, *place(shared))

    assert refused.exit_code == 15
    assert "users, tokens" in refused.stderr
    assert rows_of(shared.database) == before


def test_damaged_files_are_all_named_and_a_mended_folder_moves(root: Path, shared: Shared, s3_server: S3) -> None:
    sizes = {path.stat().st_size: path for path in (root / "blobs").rglob("*") if path.is_file()}
    large, small = sizes[3_000_000], sizes[5000]
    whole = small.read_bytes()
    large.rename(root / "aside")
    small.chmod(0o644)
    small.write_bytes(b"x" * 5000)

    refused = typed("move", "--root", root, *place(shared))

    assert refused.exit_code == 12
    assert large.name in refused.stderr
    assert small.name in refused.stderr
    assert set(rows_of(shared.database).values()) == {0}
    keys = s3_server.keys(shared.bucket)
    assert not [key for key in keys if "blobs/" not in key or key.endswith((large.name, small.name))]

    (root / "aside").rename(large)
    small.write_bytes(whole)
    assert typed("move", "--root", root, *place(shared)).exit_code == 0
    assert set(keys) < set(s3_server.keys(shared.bucket))


def test_a_row_that_the_database_does_not_take_leaves_it_empty(root: Path, shared: Shared) -> None:
    database = Database(f"sqlite:///{root / 'registry.db'}")
    with database.begin() as connection:  # SQLite does not count characters
        connection.execute(update(tokens).values(label="x" * 300))
    database.close()

    refused = typed("move", "--root", root, *place(shared))

    assert refused.exit_code == 16
    assert "table tokens" in refused.stderr
    assert set(rows_of(shared.database).values()) == {0}


@pytest.mark.parametrize("case", ["text", "noise", "nothing", "another program's", "cut off"])
def test_what_is_no_database_of_a_registry_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    source, target = tmp_path / "root" / "registry.db", f"sqlite:///{tmp_path / 'target.db'}"
    source.parent.mkdir()
    if case == "another program's":
        with contextlib.closing(sqlite3.connect(source)) as other:
            other.execute("CREATE TABLE songs (name TEXT)")
    elif case == "cut off":
        Database(f"sqlite:///{source}").close()
        source.write_bytes(source.read_bytes()[:5000])
    else:
        source.write_bytes(
            {"text": b"a letter\n" * 1000, "noise": random.Random(1).randbytes(9000), "nothing": b""}[case]
        )
    before = source.read_bytes()

    done = typed("move", "--root", source.parent, "--database", target)

    problem, *hints = done.stderr.strip().splitlines()
    assert done.exit_code == 16
    assert "registry.db" in problem
    assert "no row was written" in problem
    assert "bug" not in done.stderr
    assert all(line.startswith("hint: ") for line in hints)
    assert source.read_bytes() == before
    assert not any(rows_of(target).values())


@pytest.mark.parametrize("command", [("check",), ("gc",), ("serve", "--port", "0")])
def test_every_command_says_that_a_file_is_no_database(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "registry.db").write_bytes(b"a letter\n" * 1000)

    done = typed(*command, "--root", tmp_path)

    assert (done.exit_code, "bug" in done.stderr) == (16, False)
    assert "registry.db" in done.stderr


def test_many_rows_come_in_steps(root: Path, shared: Shared) -> None:
    database = Database(f"sqlite:///{root / 'registry.db'}")
    with database.begin() as connection:
        number = connection.scalar(select(repos.c.id).limit(1))
        connection.execute(
            insert(repo_tags), [{"repo_id": number, "tag": f"more-{n}", "modified_at": n} for n in range(2500)]
        )
    database.close()

    moved = typed("move", "--json", "--root", root, *place(shared))

    assert rows_of(shared.database) == rows_of(f"sqlite:///{root / 'registry.db'}")
    assert json.loads(moved.stdout)["rows"] == sum(rows_of(shared.database).values()) > 2500


def test_a_database_or_bucket_that_is_away_is_told(root: Path, shared: Shared) -> None:
    away = typed("move", "--root", root, "--database", "postgresql://ann:hidden-word@127.0.0.1:9/x")

    assert away.exit_code == 13
    assert "the database does not answer" in away.stderr
    assert "hidden-word" not in away.stderr
