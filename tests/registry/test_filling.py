"""`adapt registry import`: a folder of adapters becomes repositories, as pushes would have made them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from adapterhub_registry.app import create_app, open_registry
from adapterhub_registry.database.counting import counted
from adapterhub_registry.database.db import (
    MANY_ROWS,
    adapter_names,
    adapters,
    derived,
    events,
    places,
    refs,
    releases,
    repo_tags,
    repos,
)
from adapterhub_registry.database.search_tables import texts, wordings
from adapterhub_registry.settings import S3Place, load_settings
from adapterhub_registry.upkeep import filling
from adapterhub_registry.upkeep.filling import fill
from sqlalchemy import Table, event, func, select
from sqlalchemy.engine import Connection

from adapterhub.core.errors import NotFound
from tests.registry.many_adapters import write, write_many
from tests.registry.running import Running, running, typed
from tests.registry.shared_servers import CREDENTIALS
from tests.support.forked import forked

OF_THE_MOMENT = {
    "id",
    "repo_id",
    "commit_id",
    "created_at",
    "modified_at",
    "due_at",
    "head",
    "most_bytes",
    "used_bytes",
}
"""Columns that differ between two ways in: times, and what follows from the number of commits."""


@pytest.fixture(params=["sqlite", pytest.param("scale", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    """A registry in one folder, and one with PostgreSQL and S3."""
    more: dict[str, Any] = {}
    if request.param == "scale":
        pg, s3 = request.getfixturevalue("pg"), request.getfixturevalue("s3_server")
        for name, value in CREDENTIALS.items():
            request.getfixturevalue("monkeypatch").setenv(name, value)
        more = {"database_url": pg.new_registry(), "s3": S3Place(bucket=s3.new_bucket(), endpoint=s3.endpoint)}
    (tmp_path / "registry").mkdir()
    with running(tmp_path / "registry", **more) as server:
        yield server


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Running]:
    """A registry in one folder."""
    (tmp_path / "registry").mkdir()
    with running(tmp_path / "registry") as server:
        yield server


def rows(server: Running, table: Table, *more: str) -> list[dict[str, Any]]:
    """The rows of a table without what differs with each moment, with the names of their repositories."""
    number = table.c.repo_id if "repo_id" in table.c else repos.c.id if table is repos else None
    wanted = select(table) if number is None or table is repos else select(table, repos.c.full_name).join(repos)
    with server.registry.db.read() as connection:
        found = [dict(row) for row in connection.execute(wanted).mappings()]
    kept = [{key: value for key, value in row.items() if key not in OF_THE_MOMENT | set(more)} for row in found]
    return sorted(kept, key=lambda row: json.dumps(row, default=str))


def plain_way_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every adapter come in as a push does."""
    monkeypatch.setattr(filling._Filling, "_plain", lambda *_: set())


# ------------------------------------------------------------ what comes in
def test_an_import_writes_what_pushes_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_many(tmp_path / "adapters", MANY_ROWS + 1, spaces=3)
    (folder / "team1" / "plain").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(folder / "team1" / "summarize-1" / name, folder / "team1" / "plain" / name)
    (folder / "team1" / "plain" / "README.md").write_text("---\nlicense: mit\ntags: [law]\n---\nAnswers questions.\n")
    found = []
    for way in ("together", "one by one"):
        (tmp_path / way).mkdir()
        with running(tmp_path / way, derives=False) as server:
            if way == "one by one":
                plain_way_is_closed(monkeypatch)
            done = fill(server.registry, folder)
            assert (done.added, done.problems) == (MANY_ROWS + 2, ())
            tables = (repos, repo_tags, adapters, derived, releases, adapter_names, places, texts, wordings, refs)
            held = {table.name: rows(server, table) for table in tables}
            with server.registry.db.read() as connection:
                numbers = counted(connection) | {f"public {k}": v for k, v in counted(connection, public=True).items()}
                held["counts"] = sorted((name, value) for name, value in numbers.items() if "commits" not in name)
            found.append(held)

    for name in found[0]:
        assert found[0][name] == found[1][name], name


def test_what_came_in_is_served_found_and_whole(server: Running, tmp_path: Path) -> None:
    folder = write_many(tmp_path / "adapters", MANY_ROWS)
    done = fill(server.registry, folder)

    assert (done.added, done.updated, done.unchanged, done.problems) == (MANY_ROWS, 0, 0, ())
    weights = (folder / "team3" / "triage-3" / "adapter_model.safetensors").read_bytes()
    with server.client() as http:
        for revision in ("main", "v1.0.0"):
            path = f"/team3/triage-3/resolve/{revision}/adapter_model.safetensors"
            assert http.get(path, follow_redirects=True).content == weights
    listed = server.get("/api/models?search=triage-3").json()
    versions = server.get("/api/adapt/v1/adapters/team3/triage-3/versions").json()["versions"]
    assert [one["id"] for one in listed] == ["team3/triage-3"]
    assert [one["version"] for one in versions] == ["1.0.0"]
    pushed = server.push("team3/later", b"w" * 500)
    with server.client() as http:
        assert pushed.is_whole(http)


def test_a_private_import_is_hidden(alone: Running, tmp_path: Path) -> None:
    fill(alone.registry, write_many(tmp_path / "adapters", 2), private=True)

    assert alone.get("/api/models/team1/summarize-1", token=None).status_code in {401, 404}
    assert alone.get("/api/models/team1/summarize-1").json()["private"] is True


def test_a_repeated_import_reads_nothing_and_a_changed_adapter_gets_its_version(
    alone: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_many(tmp_path / "adapters", 4)
    fill(alone.registry, folder)
    time.sleep(0.01)  # a file of the moment of the commit counts as changed
    write(folder / "team2" / "translate-2", 77, version="1.1.0")
    for path in (folder / "team2").rglob("*"):
        later = time.time() + 5
        os.utime(path, (later, later))
    read: list[Path] = []
    opened = filling.open_plain
    monkeypatch.setattr(filling, "open_plain", lambda path: read.append(path) or opened(path))

    done = fill(alone.registry, folder)

    assert (done.added, done.updated, done.unchanged, done.problems) == (0, 1, 3, ())
    assert {path.parent.name for path in read} == {"translate-2"}
    versions = alone.get("/api/adapt/v1/adapters/team2/translate-2/versions").json()["versions"]
    assert [one["version"] for one in versions] == ["1.1.0", "1.0.0"]


# ------------------------------------------------------------ what does not
def test_what_cannot_come_in_is_named_and_the_others_come(alone: Running, tmp_path: Path) -> None:
    folder = write_many(tmp_path / "adapters", 3)
    (folder / "team1" / "empty").mkdir()
    write(folder / "api" / "x", 10)
    write(folder / "library" / "x", 11)  # a page begins with it
    write(folder / "team1" / "two--dashes", 12, name="x")
    write(folder / "team1" / "local", 13, version="1.0+local")

    create_app(alone.registry.settings, alone.registry)
    done = fill(alone.registry, folder)

    assert done.added == 3
    named = sorted(problem.partition(":")[0] for problem in done.problems)
    assert named == ["api/x", "library/x", "team1/empty", "team1/local", "team1/two--dashes"]


def test_a_release_never_gets_other_bytes_by_an_import(alone: Running, tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    write(folder / "acme" / "qa", 1)
    fill(alone.registry, folder)
    other = tmp_path / "others"
    write(other / "acme" / "qa-copy", 2, name="qa")  # the same name and version in another repository
    write(other / "acme" / "qa", 3)
    write(other / "acme" / "QA", 4, name="q-a")

    done = fill(alone.registry, other)

    assert (done.added, done.updated, len(done.problems)) == (0, 0, 3)
    assert "releases never change" in done.problems[0] + done.problems[1] + done.problems[2]
    with alone.registry.db.read() as connection:
        assert connection.scalar(select(func.count()).select_from(releases)) == 1


def test_two_of_one_import_that_contradict_each_other_do_not_both_come(alone: Running, tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    for number, name in enumerate(("one", "two")):
        write(folder / "acme" / name, number, name="same")
    for number, name in enumerate(("l1", "ll")):  # look alike
        write(folder / "beta" / name, number, name=f"name-{number}")

    done = fill(alone.registry, folder)

    assert (done.added, len(done.problems)) == (2, 2)


def test_a_link_out_of_the_folder_is_not_followed(alone: Running, tmp_path: Path) -> None:
    folder = write_many(tmp_path / "adapters", 1)
    (tmp_path / "secret").write_text("s3cret")
    (folder / "team0" / "legal-qa-0" / "notes.txt").symlink_to(tmp_path / "secret")
    (folder / "team0" / "linked").symlink_to(folder / "team0" / "legal-qa-0")

    done = fill(alone.registry, folder)

    assert (done.added, done.problems) == (1, ())
    assert alone.get("/team0/legal-qa-0/resolve/main/notes.txt").status_code == 404


def test_no_folder_is_refused(alone: Running, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing was imported"):
        fill(alone.registry, tmp_path / "nowhere")


# ------------------------------------------------------------ in steps
def test_an_import_that_was_cut_off_goes_on(alone: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_many(tmp_path / "adapters", 30)
    monkeypatch.setattr(filling, "TOGETHER", 7)
    taken = 0

    def cut(what: str, done: int, total: int) -> None:
        nonlocal taken
        taken += 1
        if taken == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(alone.registry, folder, progress=cut)
    done = fill(alone.registry, folder)

    assert (done.added, done.unchanged, done.problems) == (16, 14, ())
    assert json.loads(typed("check", "--root", alone.root, "--bytes", "--json").stdout)["problems"] == []


@pytest.mark.slow
def test_an_import_that_is_killed_inside_a_transaction_goes_on(tmp_path: Path) -> None:
    root, folder = tmp_path / "registry", write_many(tmp_path / "adapters", 30)
    root.mkdir()
    with running(root, derives=False):
        pass

    def die_in_the_third_transaction() -> None:
        insert_all, calls = filling.insert_new, 0

        def dying(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
            nonlocal calls
            insert_all(connection, table, rows)
            calls += table is releases
            if calls == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        filling.insert_new, filling.WRITTEN = dying, 7  # type: ignore[misc]

    command = ("registry", "import", folder, "--root", root)
    with forked(*command, environ=os.environ, first=die_in_the_third_transaction) as child:
        pass
    done = json.loads(typed("import", folder, "--root", root, "--json").stdout)

    assert child.returncode == -signal.SIGKILL
    assert (done["added"], done["unchanged"], done["problems"]) == (16, 14, [])
    assert json.loads(typed("check", "--root", root, "--bytes", "--json").stdout)["problems"] == []


def _statements_of(root: Path, folder: Path) -> int:
    registry = open_registry(load_settings(root))
    asked: list[str] = []
    event.listen(registry.db.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    fill(registry, folder)
    registry.db.close()
    return len([one for one in asked if "adapters.name = " not in one])


def test_more_adapters_of_one_step_take_no_more_statements(tmp_path: Path) -> None:
    found = []
    for count in (4, 40):
        (tmp_path / f"registry-{count}").mkdir()
        folder = write_many(tmp_path / f"adapters-{count}", count)
        found.append(_statements_of(tmp_path / f"registry-{count}", folder))

    assert found[0] == found[1]


def test_no_transaction_writes_more_than_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amount: Callable[[int, int], int]
) -> None:
    monkeypatch.setattr(filling, "WRITTEN", 10)
    count = amount(25, 200)
    registry = open_registry(load_settings(tmp_path))
    written: list[int] = [0]

    def note(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if statement.startswith("INSERT INTO repos "):
            written[-1] += len(parameters)

    event.listen(registry.db.engine, "before_cursor_execute", note)
    event.listen(registry.db.engine, "begin", lambda _: written.append(0))
    fill(registry, write_many(tmp_path / "adapters", count))
    registry.db.close()

    assert (max(written), sum(written)) == (10, count)


# ------------------------------------------------------------ the command
def test_the_command_prints_what_came_in(alone: Running, tmp_path: Path) -> None:
    folder = write_many(tmp_path / "adapters", 3)
    (folder / "team1" / "empty").mkdir()

    done = typed("import", folder, "--root", alone.root, "--json")
    again = typed("import", folder, "--root", alone.root)

    found = json.loads(done.stdout)
    assert (done.exit_code, found["added"], len(found["problems"])) == (12, 3, 1)
    assert "unchanged\t3" in again.stdout
    assert "holds no adapter_config.json" in again.stdout
    with alone.registry.db.read() as connection:
        assert connection.scalar(select(func.count()).select_from(events)) == 0


def test_the_command_creates_no_registry(tmp_path: Path) -> None:
    done = typed("import", write_many(tmp_path / "adapters", 1), "--root", tmp_path / "nowhere")

    assert (done.exit_code, "is not a registry" in done.stderr) == (10, True)
    assert not (tmp_path / "nowhere").exists()
