"""The feed of events: others follow what changes, from where they stopped, and learn of nothing private."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from adapterhub_registry import outbox
from adapterhub_registry.access.callers import Caller
from adapterhub_registry.database.db import Database, events, now_ms
from sqlalchemy import select, true, update

from tests.registry.running import Running, running
from tests.registry.shared_servers import Postgres

FEED = "/api/adapt/v1/events"
ANN = Caller(user="ann", role="admin", namespaces=("*",))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("registry")) as server:
        server.push("acme/open", b"w")
        yield server


def feed(server: Running, query: str = "", *, token: str | None = None) -> dict[str, Any]:
    answer = server.get(f"{FEED}?{query}", token=token)
    assert answer.status_code == 200, answer.text
    return answer.json()


def reasons(page: dict[str, Any]) -> list[str]:
    return [event["data"].get("reason", "") for event in page["events"]]


def test_a_follower_gets_each_event_once_from_where_it_stopped(server: Running) -> None:
    start = feed(server)["next"]
    for reason in "abcde":
        server.yank("acme/open", reason)

    got: list[str] = []
    since = start
    while (page := feed(server, f"since={since}&limit=2"))["events"]:
        got += reasons(page)
        since = page["next"]

    assert got == list("abcde")
    assert (page["next"], page["missed"]) == (since, False)


def test_without_a_start_the_feed_begins_now_and_from_zero_with_all(server: Running) -> None:
    server.yank("acme/open", "before")

    begin, everything = feed(server), feed(server, "since=0&limit=500")

    assert begin["events"] == []
    assert everything["events"][0]["type"] == "version.published"
    assert everything["next"] == begin["next"] == everything["events"][-1]["number"]


def test_a_waiting_follower_hears_at_once(server: Running) -> None:
    since = feed(server)["next"]
    found: list[dict[str, Any]] = []
    follower = threading.Thread(target=lambda: found.append(feed(server, f"since={since}&wait=30")))
    follower.start()
    while server.registry.watch._asked_at < 0:
        time.sleep(0.01)
    server.yank("acme/open", "now")
    follower.join(25)

    assert [reasons(page) for page in found] == [["now"]]


def test_a_server_that_stops_waits_for_no_follower(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        follower = threading.Thread(target=lambda: feed(server, "since=0&wait=30"))
        follower.start()
        while server.registry.watch._asked_at < 0:
            time.sleep(0.01)
        began = time.monotonic()
    follower.join(25)

    assert not follower.is_alive()
    assert time.monotonic() - began < 25


def test_a_start_before_what_the_feed_keeps_is_said(server: Running) -> None:
    server.yank("acme/open", "old")
    since = feed(server)["next"]
    with server.registry.db.begin() as connection:
        connection.execute(update(events).where(events.c.number == since).values(created_at=now_ms() - 31 * 86_400_000))
    outbox.prune(server.registry.db)

    long_ago = int((time.time() - 31 * 86_400) * 1_000_000)

    assert "old" not in reasons(feed(server, "since=0&limit=500"))
    assert feed(server, f"since={long_ago}")["missed"]
    assert not feed(server, f"since={since}")["missed"]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    if request.param == "postgresql":
        pg: Postgres = request.getfixturevalue("pg")
        url = pg.new_registry()
    database = Database(url)
    yield database
    database.close()


class Repo:
    full_name, private = "acme/x", False


def test_a_change_that_fails_leaves_no_event(database: Database) -> None:
    def change() -> None:
        with database.begin() as connection:
            outbox.record(connection, Repo, "alias.retention")  # type: ignore[arg-type]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        change()

    assert read(database, 0).events == []


def test_an_event_that_commits_late_comes_after_those_that_were_read(
    request: pytest.FixtureRequest, pg: Postgres
) -> None:
    """The later transaction commits first: who has read it still gets the earlier one."""
    database = Database(pg.new_registry())
    late = database.engine.connect()
    transaction = late.begin()
    outbox.record(late, Repo, "alias.retention", reason="first to begin")  # type: ignore[arg-type]
    with database.begin() as connection:
        outbox.record(connection, Repo, "alias.retention", reason="first to commit")  # type: ignore[arg-type]
    first = read(database, 0)
    transaction.commit()
    late.close()

    second = read(database, first.next)

    assert [event["data"]["reason"] for event in (*first.events, *second.events)] == [
        "first to commit",
        "first to begin",
    ]
    database.close()


def test_numbers_grow_though_the_clock_goes_back(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    for at_ns in (5_000_000_000_000_000_000, 1_000_000_000_000_000_000):
        monkeypatch.setattr(outbox, "_now_us", lambda at_ns=at_ns: at_ns // 1000)
        with database.begin() as connection:
            outbox.record(connection, Repo, "alias.retention")  # type: ignore[arg-type]
        with database.begin() as connection:
            outbox.number_events(connection)

    with database.read() as connection:
        numbers = connection.scalars(select(events.c.number).order_by(events.c.id)).all()

    assert numbers == [5_000_000_000_000_000, 5_000_000_000_000_001]


def read(database: Database, since: int) -> outbox.EventPart:
    return outbox.read_page(database, ANN, true(), since=since, limit=100)


WRONG: list[tuple[str, Callable[[int], bool]]] = [
    ("since=-1", lambda status: status == 422),
    ("since=x", lambda status: status == 422),
    ("wait=31&since=0", lambda status: status == 422),
    ("limit=0", lambda status: status == 422),
    (f"since={2**53}", lambda status: status == 422),
]


def test_a_wrong_question_is_refused(server: Running) -> None:
    for query, is_right in WRONG:
        assert is_right(server.get(f"{FEED}?{query}").status_code), query
