"""A part of a registry that is away or silent: clients get 503 with the time to come back, and what it costs is bounded."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapterhub_registry import fuse
from adapterhub_registry.database import postgresql
from adapterhub_registry.errors import AWAY_RETRY_S
from adapterhub_registry.fuse import Fuse
from adapterhub_registry.settings import S3Place
from adapterhub_registry.storage.blobs import KeptBlob
from adapterhub_registry.storage.s3 import Bucket, S3Blobs

from tests.registry.arrivals import arriving_before
from tests.registry.proxied import nginx
from tests.registry.running import Running, running
from tests.registry.shared_servers import CREDENTIALS, S3, Postgres, free_ports
from tests.registry.wires import Wire, wired

RECOVERY_S = 5.0
BUSY_MACHINE = 4  # how many times slower than an idle one a machine of the tests may be
REPO = "acme/outage"
CALLS = 12


@dataclass(frozen=True)
class Fleet:
    """A server of a shared registry, and the wires to its parts."""

    server: Running
    database: Wire
    bucket: Wire
    settings: dict[str, Any]


@pytest.fixture
def fleet(pg: Postgres, s3_server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with wired(pg.new_database()) as (database, url), wired(s3_server.endpoint) as (bucket, endpoint):
        place = S3Place(bucket=s3_server.new_bucket(), endpoint=endpoint)
        settings = {"database_url": url, "s3": place, "derives": False}
        with running(tmp_path / "one", **settings) as server:
            server.create(REPO)
            yield Fleet(server, database, bucket, settings)
            database.release()
            bucket.release()


def commit(client: httpx.Client, name: str) -> httpx.Response:
    content = base64.b64encode(name.encode()).decode()
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "file", "value": {"path": name, "content": content, "encoding": "base64"}},
    ]
    return client.post(f"/api/models/{REPO}/commit/main", content="\n".join(map(json.dumps, lines)))


def listing(client: httpx.Client) -> httpx.Response:
    return client.get("/api/models?limit=1")


def is_told(answer: httpx.Response) -> bool:
    """Whether a client learns from an answer that it shall come back, and when."""
    said = answer.headers.get("x-error-code"), answer.headers.get("retry-after")
    return answer.status_code == 503 and said == ("Busy", str(AWAY_RETRY_S)) and "try again" in answer.json()["error"]


def recovers(call: Callable[[], httpx.Response]) -> bool:
    """Whether a call is answered again soon after the part is back."""
    end = time.monotonic() + RECOVERY_S * BUSY_MACHINE
    while time.monotonic() < end:
        if call().is_success:
            return True
        time.sleep(0.1)
    return False


# ------------------------------------------------------------ behind the proxy
@pytest.fixture
def proxied(fleet: Fleet, tmp_path: Path) -> Iterator[httpx.Client]:
    headers, endpoint = {"Authorization": f"Bearer {fleet.server.token}"}, fleet.settings["s3"].endpoint
    with (
        running(tmp_path / "two", **fleet.settings) as other,
        nginx(tmp_path / "nginx", free_ports(3), fleet.server.url, other.url, s3=endpoint) as proxy,
        httpx.Client(base_url=proxy.url, headers=headers, verify=proxy.trust, timeout=120) as client,
    ):
        yield client


@pytest.mark.parametrize("call", [listing, lambda client: commit(client, "a.txt")], ids=["read", "write"])
def test_a_database_that_is_away_is_told_through_the_proxy_and_its_return_is_seen_at_once(
    fleet: Fleet, proxied: httpx.Client, call: Callable[[httpx.Client], httpx.Response]
) -> None:
    fleet.database.cut()

    refused = [call(proxied) for _ in range(CALLS)]
    fleet.database.mend()
    answered = [call(proxied) for _ in range(CALLS)]

    assert all(map(is_told, refused)), [answer.status_code for answer in refused]
    assert {answer.status_code for answer in answered} == {200}


def test_servers_and_a_bucket_that_the_proxy_does_not_reach_are_told_in_the_same_words(tmp_path: Path) -> None:
    *ports, one, other, bucket = (f"http://127.0.0.1:{port}" for port in free_ports(6))
    with (
        nginx(tmp_path, [int(port.rpartition(":")[2]) for port in ports], one, other, s3=bucket) as proxy,
        httpx.Client(base_url=proxy.url, verify=proxy.trust) as client,
    ):
        link = client.get(f"{proxy.s3}/b/k")
        refused = [call(client) for call in (listing, lambda client: commit(client, "a.txt"))]
        head = client.head("/api/models")

    assert all(map(is_told, [link, *refused]))
    assert (head.status_code, head.headers["retry-after"]) == (503, str(AWAY_RETRY_S))


def test_a_read_at_a_silent_server_is_answered_by_the_other_one(fleet: Fleet, tmp_path: Path) -> None:
    with (
        wired(fleet.server.url) as (silent, url),
        nginx(
            tmp_path / "nginx",
            free_ports(3),
            url,
            fleet.server.url,
            s3=url,
            edits={"proxy_read_timeout 30s": "proxy_read_timeout 1s"},
        ) as proxy,
        httpx.Client(base_url=proxy.url, verify=proxy.trust, timeout=60) as client,
    ):
        silent.hold()
        answers = [listing(client) for _ in range(4)]
        taken = silent.taken
        silent.release()

    assert {answer.status_code for answer in answers} == {200}
    assert taken > 0


# ------------------------------------------------------------ a part that is silent
def test_a_silent_database_ends_the_calls_that_wait_and_refuses_others_at_once(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fleet.server.client() as client, ThreadPoolExecutor(4) as pool:
        assert listing(client).is_success
        fleet.database.hold()
        waited = list(pool.map(lambda _: listing(client), range(4)))
        monkeypatch.setattr(fuse, "PAUSE_S", 600.0)  # nothing is tried meanwhile
        before = fleet.database.taken
        at_once = [listing(client) for _ in range(CALLS)]
        health, alive = client.get("/healthz"), client.get("/livez")
        tried = fleet.database.taken - before
        monkeypatch.setattr(fuse, "PAUSE_S", 1.0)
        fleet.database.release()

        assert all(map(is_told, waited + at_once))
        assert tried == 0
        assert (health.status_code, health.json()["database"], health.json()["blobs"]) == (503, "unreachable", "ok")
        assert alive.json() == {"status": "ok"}
        assert recovers(lambda: listing(client))
        assert recovers(lambda: commit(client, "after.txt"))


def test_a_statement_that_takes_long_is_no_silent_database(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy import text

    monkeypatch.setattr(postgresql, "SILENT_S", 0.2)
    before = fleet.database.taken
    with fleet.server.registry.db.read() as connection:
        connection.execute(text("SELECT pg_sleep(1)"))
        assert connection.scalar(text("SELECT 1")) == 1
    assert fleet.database.taken > before  # it asked


def test_a_silent_bucket_holds_up_nothing_that_does_not_need_it(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    with fleet.server.client() as client:
        fleet.bucket.hold()
        first = commit(client, "a.txt")
        monkeypatch.setattr(fuse, "PAUSE_S", 600.0)
        before = fleet.bucket.taken
        at_once = [commit(client, "a.txt") for _ in range(CALLS)]
        health, alive, listed = client.get("/healthz"), client.get("/livez"), listing(client)
        tried = fleet.bucket.taken - before
        monkeypatch.setattr(fuse, "PAUSE_S", 1.0)
        fleet.bucket.release()

        assert all(map(is_told, [first, *at_once]))
        assert tried == 0
        assert (health.status_code, health.json()["database"], health.json()["blobs"]) == (503, "ok", "unreachable")
        assert (alive.status_code, listed.status_code) == (200, 200)
        assert recovers(lambda: commit(client, "after.txt"))


def test_a_bucket_that_is_away_for_a_moment_costs_a_moment(fleet: Fleet) -> None:
    with fleet.server.client() as client:
        fleet.bucket.cut()
        refused = commit(client, "a.txt")
        fleet.bucket.mend()

        assert is_told(refused)
        assert recovers(lambda: commit(client, "a.txt"))
        assert client.get(f"/{REPO}/resolve/main/a.txt").content == b"a.txt"


def test_an_object_that_the_bucket_refuses_trips_nothing(fleet: Fleet) -> None:
    bucket = Bucket(fleet.settings["s3"])
    bucket.put("k", b"content")

    with pytest.raises(Exception, match="does not answer as expected"):
        bucket.get("k", 100, 200)  # beyond its end

    assert bucket.size("k") == 7


def test_one_thread_at_a_time_tries_a_tripped_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse, "PAUSE_S", 600.0)
    part = Fuse()

    def others() -> int:
        found: list[bool] = []
        threads = [threading.Thread(target=lambda: found.append(part.passes())) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(found)

    assert others() == 5
    part.trip()
    assert others() == 0
    monkeypatch.setattr(fuse, "PAUSE_S", 0.0)
    assert part.passes()
    monkeypatch.setattr(fuse, "PAUSE_S", 600.0)
    assert part.passes()  # it goes on, with as many calls as it needs
    assert others() == 0
    part.mend()
    assert others() == 5


# ------------------------------------------------------------ a collection beside a push
def next_second() -> float:
    """Wait for the next second, as S3 counts whole ones, and return it."""
    later = int(time.time()) + 1.0
    while time.time() < later:
        time.sleep(0.05)
    return later


@pytest.mark.parametrize("step", range(3))
def test_bytes_that_arrive_in_the_bucket_while_their_old_object_goes_come_back(
    fleet: Fleet, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = S3Blobs(Bucket(fleet.settings["s3"]))
    sha256 = store.put([b"again"], size=5).sha256
    later = next_second()

    def arrive() -> None:
        store.put([b"again"], size=5)

    with arriving_before(arrive, step, Bucket, "look", "copy", "remove", monkeypatch=monkeypatch):
        store.set_aside([KeptBlob(sha256, 5, 0)])
        store.remove([sha256], later)

    assert store.holds({sha256: 5}) == {sha256}
    assert b"".join(S3Blobs(Bucket(fleet.settings["s3"])).open(sha256)) == b"again"


def test_what_a_collection_removed_is_gone_and_leaves_the_bucket_a_day_later(
    fleet: Fleet, s3_server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = S3Blobs(Bucket(fleet.settings["s3"]))
    sha256 = store.put([b"old"], size=3).sha256

    store.set_aside([KeptBlob(sha256, 3, 0)])
    assert store.remove([sha256], next_second()) == {sha256}
    assert [kept.sha256 for kept in store.kept()] != [sha256]
    store.sweep()
    name = fleet.settings["s3"].bucket
    assert s3_server.keys(name, "leaving") == [f"leaving/{sha256}"]
    monkeypatch.setattr("adapterhub_registry.storage.s3.LEFTOVER_S", -5)
    store.sweep()
    assert s3_server.keys(name, "leaving") == []
    assert store.holds({sha256: 3}) == set()
