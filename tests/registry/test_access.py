"""Who may do what over HTTP, starting and stopping the server, and many at once."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
from adapterhub_registry.database.db import repos
from sqlalchemy import select

from tests.registry.conftest import ROOT, Served
from tests.registry.running import Running, running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path / "root") as server:
        yield server


def commit(server: Running, repo: str, path: str, text: str, *, parent: str | None = None) -> httpx.Response:
    header = {"summary": path} | ({"parentCommit": parent} if parent else {})
    content = base64.b64encode(text.encode()).decode()
    body = [{"key": "header", "value": header}, {"key": "file", "value": {"path": path, "content": content}}]
    with server.client() as client:
        return client.post(f"/api/models/{repo}/commit/main", content="\n".join(map(json.dumps, body)))


def test_without_anonymous_reading_everything_needs_a_token(tmp_path: Path) -> None:
    with running(tmp_path / "root", anonymous_read=False) as server:
        repo = server.create("acme/x")
        commit(server, repo, "a.txt", "a").raise_for_status()
        paths = ["/api/models", f"/api/models/{repo}", f"/{repo}/resolve/main/a.txt", f"/api/models/{repo}/tree/main"]
        paths += [f"/api/adapt/v1/{path}" for path in ("adapters", f"adapters/{repo}/versions", "tokens", "metrics")]
        paths.append("/metrics")

        nobody = {server.get(path, token=None).status_code for path in (*paths, f"/api/adapt/v1/blobs/{'ab' * 32}")}
        somebody = {server.get(path).status_code for path in paths}
        health = server.get("/healthz", token=None).status_code

    assert (nobody, somebody, health) == ({401}, {200}, 200)


def test_the_urls_follow_the_host_that_was_asked(server: Running) -> None:
    answer = httpx.post(
        f"{server.url.replace('127.0.0.1', 'localhost')}/api/repos/create",
        json={"organization": "acme", "name": "x"},
        headers={"Authorization": f"Bearer {server.token}"},
    )

    assert answer.json()["url"].startswith("http://localhost:")


def test_a_public_url_is_told_instead(tmp_path: Path) -> None:
    with running(tmp_path / "root", public_url="https://adapters.example/hub/") as server:
        answer = server.post("/api/repos/create", {"organization": "acme", "name": "x"})

    assert answer.json()["url"] == "https://adapters.example/hub/acme/x"


def test_downloads_are_counted_by_configuration(server: Running) -> None:
    repo = server.create("acme/x")
    for name in ("adapter_config.json", "config.json", "a.txt"):
        commit(server, repo, name, "{}").raise_for_status()
    for name in ("adapter_config.json", "config.json", "a.txt"):
        httpx.get(f"{server.url}/{repo}/resolve/main/{name}", headers={"X-HF-Download-Counter": "1"})
        httpx.head(f"{server.url}/{repo}/resolve/main/{name}", headers={"X-HF-Download-Counter": "1"})
        httpx.get(f"{server.url}/{repo}/resolve/main/{name}")
    server.registry.downloads.flush()

    assert server.get(f"/api/models/{repo}").json()["downloads"] == 1


def test_downloads_of_many_repositories_are_written_together_and_those_of_removed_ones_dropped(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapterhub_registry.access.telemetry.STEP", 2)
    names = [server.create(f"acme/many-{number}") for number in range(5)]
    with server.registry.db.read() as connection:
        ids = [connection.scalars(select(repos.c.id).where(repos.c.full_name == name)).one() for name in names]
    for turn in range(2):
        for number, repo_id in enumerate(ids):
            for _ in range(number + 1):
                server.registry.downloads.count(repo_id)
        server.registry.downloads.count(99_999 + turn)
        server.registry.downloads.flush()

    found = [server.get(f"/api/models/{name}").json()["downloads"] for name in names]

    assert found == [2, 4, 6, 8, 10]


def test_of_many_commits_on_one_head_one_wins(server: Running) -> None:
    repo = server.create("acme/x")
    head = server.get(f"/api/models/{repo}").json()["sha"]

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda n: commit(server, repo, "a.txt", str(n), parent=head), range(10)))

    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 9


def test_many_commits_without_a_parent_are_all_kept(server: Running) -> None:
    repo = server.create("acme/x")

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda n: commit(server, repo, f"{n}.txt", "x"), range(20)))

    assert {answer.status_code for answer in answers} == {200}
    assert len(server.get(f"/api/models/{repo}/tree/main").json()) == 21


def test_a_removed_repository_takes_no_late_upload(server: Running) -> None:
    repo = server.create("acme/x")
    body = {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 5}]}
    batch = server.post(f"/{repo}.git/info/lfs/objects/batch", body).json()
    server.remove("acme/x")
    server.create("acme/x")

    answer = httpx.put(batch["objects"][0]["actions"]["upload"]["href"], content=b"hello")

    assert answer.status_code == 400
    assert answer.headers["x-error-code"] == "DigestMismatch"


def test_a_port_that_is_taken_is_one_plain_line(served: Served, tmp_path: Path) -> None:
    _, port = served.address
    done = subprocess.run(
        [sys.executable, "-m", "adapterhub_registry", "--root", str(tmp_path), "--port", str(port)],
        env=served.environment(tmp_path),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 14
    assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1:{port}")
    assert "Traceback" not in done.stderr


def test_a_failure_inside_is_json_and_leaves_the_connection_open(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    with httpx.Client(base_url=server.url) as client:
        monkeypatch.setattr(server.registry.repos, "sight", broken)
        answer = client.get("/api/models")
        monkeypatch.undo()
        after = client.get("/api/models")

    assert (answer.status_code, answer.headers["x-error-code"]) == (500, "InternalError")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in answer.json()["error"]
    assert after.status_code == 200
    assert "secret detail" in caplog.text


def test_uploads_at_once_are_bounded(tmp_path: Path) -> None:
    from adapterhub_registry.settings import ServerLimits

    with running(tmp_path / "root", limits=ServerLimits(uploads_at_once=1)) as server:
        repo = server.create("acme/x")
        body = b'{"key":"header","value":{"summary":"x"}}\n'
        slow = HTTPConnection(server.url.removeprefix("http://"), timeout=60)
        slow.putrequest("POST", f"/api/models/{repo}/commit/main")
        slow.putheader("Authorization", f"Bearer {server.token}")
        slow.putheader("Content-Length", str(len(body)))
        slow.putheader("Expect", "100-continue")
        slow.endheaders()
        # the server asks for the body once the upload has its place
        asked = slow.sock.recv(100)

        meanwhile = commit(server, repo, "b.txt", "b")
        slow.send(body)
        first = slow.getresponse().status
        slow.close()
        afterwards = commit(server, repo, "c.txt", "c")

    assert asked == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (meanwhile.status_code, meanwhile.headers["retry-after"]) == (429, "2")
    assert (first, afterwards.status_code) == (200, 200)
