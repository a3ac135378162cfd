"""Quotas under haste: what is announced counts at once, what arrives is counted once, and what is refused is gone."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapterhub_registry.database.db import reservations
from adapterhub_registry.settings import ServerLimits
from sqlalchemy import update

from tests.registry.running import Running, running
from tests.registry.xet_wire import xorb_bytes, xorb_name

QUOTA = 1_000_000
LARGE = 900_000


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    more = {"database_url": request.getfixturevalue("pg").new_registry()} if request.param == "postgresql" else {}
    with running(tmp_path, limits=ServerLimits(namespace_bytes=QUOTA), **more) as server:
        server.post("/api/repos/create", {"organization": "acme", "name": "x"}).raise_for_status()
        yield server


def announce(server: Running, content: bytes) -> httpx.Response:
    item = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
    body = {"operation": "upload", "transfers": ["basic"], "objects": [item], "hash_algo": "sha256"}
    return server.post("/acme/x.git/info/lfs/objects/batch", body)


def link_of(answer: httpx.Response) -> str:
    return str(answer.raise_for_status().json()["objects"][0]["actions"]["upload"]["href"])


def stored(server: Running) -> int:
    """The bytes that uploads keep on the disk, wherever they are."""
    kept = [*server.root.glob("blobs/sha256/*/*/*"), *server.root.glob("uploads/**/*")]
    return sum(path.stat().st_size for path in kept if path.is_file())


def commit(server: Running, path: str, content: bytes) -> httpx.Response:
    file = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
    lines: list[dict[str, Any]] = [{"key": "header", "value": {"summary": "x"}}, {"key": "file", "value": file}]
    head = {"Authorization": f"Bearer {server.token}"}
    body = "\n".join(map(json.dumps, lines))
    return httpx.post(f"{server.url}/api/models/acme/x/commit/main", content=body, headers=head)


def test_links_are_given_for_what_fits_and_for_nothing_beyond_it(server: Running) -> None:
    contents = [os.urandom(LARGE) for _ in range(30)]

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda content: announce(server, content), contents))

    given = [(content, answer) for content, answer in zip(contents, answers, strict=True) if answer.status_code == 200]
    assert len(given) == 1
    assert {answer.json()["error"].partition(":")[0] for answer in answers if answer.status_code != 200} == {
        "quota reached"
    }
    content, answer = given[0]
    assert httpx.put(link_of(answer), content=content).status_code == 200


def test_an_upload_that_was_interrupted_is_announced_again(server: Running) -> None:
    content = os.urandom(LARGE)
    announce(server, content).raise_for_status()
    files = {"files": [{"path": "w.bin", "size": LARGE, "sample": ""}]}

    again = server.post("/api/models/acme/x/preupload/main", files)
    link = link_of(announce(server, content))

    assert again.status_code == 200
    assert httpx.put(link, content=content).status_code == 200
    assert announce(server, content).json()["objects"][0].get("actions") is None
    assert announce(server, os.urandom(LARGE)).status_code == 400


def test_what_arrives_after_its_links_ended_is_counted_then_and_gone_when_it_does_not_fit(server: Running) -> None:
    first, second = os.urandom(LARGE), os.urandom(LARGE)
    links = []
    for content in (first, second):
        links.append(link_of(announce(server, content)))
        with server.registry.db.begin() as connection:
            connection.execute(update(reservations).values(ends_at=0))

    with ThreadPoolExecutor(2) as pool:
        answers = list(
            pool.map(lambda pair: httpx.put(pair[0], content=pair[1]), zip(links, (first, second), strict=True))
        )

    assert sorted(answer.status_code for answer in answers) == [200, 400]
    assert stored(server) < QUOTA


def test_a_refused_commit_leaves_none_of_its_bytes(server: Running) -> None:
    before = stored(server)

    answers = [commit(server, f"{number}.bin", os.urandom(2 * QUOTA)) for number in range(3)]

    assert [answer.status_code for answer in answers] == [400] * 3
    assert stored(server) == before
    assert commit(server, "small.bin", b"x" * 1000).status_code == 200


def test_commits_at_the_same_time_stay_within_the_quota_together(server: Running) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda n: commit(server, f"{n}.bin", os.urandom(400_000)).status_code, range(6)))

    assert answers.count(200) == 2
    assert stored(server) < QUOTA + 100_000


def test_chunks_without_a_shard_are_bounded(server: Running) -> None:
    space = server.get("/api/models/acme/x/xet-write-token/main").json()
    head = {"Authorization": f"Bearer {space['accessToken']}"}
    statuses = []
    for _ in range(8):
        chunks = [(os.urandom(100_000), 0) for _ in range(3)]
        place = f"{space['casUrl']}/v1/xorbs/default/{xorb_name(chunks)}"
        statuses.append(httpx.post(place, content=xorb_bytes(chunks), headers=head).status_code)

    assert statuses == [200] * 4 + [400] * 4  # the last one began below the quota
