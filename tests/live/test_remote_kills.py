"""A registry that is killed while a stream's version arrives, and a publisher that goes: the alias means a whole version."""

from __future__ import annotations

import json
import random
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from adapterhub_registry.app import create_app
from adapterhub_registry.settings import load_settings
from sqlalchemy import event
from starlette.testclient import TestClient

from adapterhub import Library
from adapterhub.core.digests import digest_of
from adapterhub.distribution.hub._push import _WholeVersion
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE
from tests.registry.running import Running, running
from tests.support.kills import CHANGE, in_child
from tests.support.tiny import make_adapter, make_base

pytestmark = pytest.mark.slow
REPO, ALIAS = "team/agent", "live"
ROUTE = f"/api/adapt/v1/adapters/{REPO}/versions"


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The requests that publish 0.0.1 and 0.0.2, each with the alias."""
    folder = tmp_path_factory.mktemp("stream")
    library, found = Library(folder / "home"), []
    library.add_base(make_base(folder / "base"), "base-7b")
    for number in (1, 2):
        source = make_adapter(folder / f"agent-{number}", seed=number)
        build = library.add(source, name="agent", version=f"0.0.{number}", base="base-7b").build
        beside = {MANIFEST_FILE: build.manifest.to_bytes(), CARD_FILE: b"# agent"}
        found.append(b"".join(_WholeVersion(build.manifest, build.folder, beside, {}, ALIAS)))
    return found


@pytest.fixture
def first(tmp_path: Path, bodies: list[bytes]) -> tuple[Path, str]:
    """The folder of a registry whose alias means 0.0.1, and a token."""
    with running(tmp_path / "first", derives=False) as server:
        server.create(REPO)
        with server.client() as client:
            client.post(ROUTE, content=bodies[0]).raise_for_status()
        assert meant(server) == "0.0.1"
        return server.root, server.token


def meant(server: Running) -> str:
    """The version that the alias means; the files of the alias are those of the version, and whole."""
    [alias] = server.get(f"/api/adapt/v1/aliases/{REPO}/{ALIAS}").json()["aliases"]
    [target] = alias["targets"]
    version: str = target["version"]
    released = [one["version"] for one in server.get(ROUTE).json()["versions"]]
    assert released == [f"0.0.{number}" for number in range(int(version[-1]), 0, -1)]  # all or none
    files = {
        revision: server.get(f"/{REPO}/resolve/{revision}/{MANIFEST_FILE}").content
        for revision in (ALIAS, f"v{version}", "main")
    }
    assert len(set(files.values())) == 1
    assert digest_of(files[ALIAS]) == target["digest"]
    for entry in json.loads(files[ALIAS])["files"]:
        answer = server.get(f"/{REPO}/resolve/{ALIAS}/{entry['path']}")
        assert digest_of(answer.content) == entry["sha256"], entry
    return version


def test_a_registry_that_is_killed_means_the_old_version_or_the_new_one(
    first: tuple[Path, str], bodies: list[bytes], tmp_path: Path, amount: Callable[[int, int], int]
) -> None:
    whole, token = first

    def publish(root: Path) -> None:
        app = create_app(load_settings(root, derives=False))
        for what in ("before_cursor_execute", "commit"):
            event.listen(app.state.registry.db.engine, what, lambda *_: sys.audit(CHANGE))
        answer = TestClient(app).post(ROUTE, content=bodies[1], headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200, answer.text
        sys.audit(CHANGE)  # it was answered

    shutil.copytree(whole, tmp_path / "count")
    count = in_child(lambda: publish(tmp_path / "count"))
    assert count is not None
    assert count > 50
    seen = []
    chosen = random.Random(1).sample(range(1, count - 2), amount(8, count - 3))
    for number in [*sorted(chosen), *range(count - 2, count + 1)]:
        root = tmp_path / f"at-{number}"
        shutil.copytree(whole, root)
        assert in_child(lambda root=root: publish(root), number) is None  # type: ignore[misc]
        with running(root, derives=False) as server:
            seen.append(meant(server))
            with server.client() as client:  # the client sends it again
                assert client.post(ROUTE, content=bodies[1]).status_code == (200 if seen[-1] == "0.0.1" else 409)
            assert meant(server) == "0.0.2"
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == ("0.0.1", "0.0.2")


def test_a_publisher_that_goes_before_its_last_byte_moves_nothing(
    first: tuple[Path, str], bodies: list[bytes], tmp_path: Path, amount: Callable[[int, int], int]
) -> None:
    body = bodies[1]
    cuts = {0, body.index(b"\n") + 1, len(body) - 1, *random.Random(2).sample(range(len(body)), amount(5, 200))}
    with running(first[0], derives=False) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        head = (
            f"POST {ROUTE} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {server.token}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode()
        for cut in sorted(cuts):
            with socket.create_connection((host, int(port))) as sent:
                sent.sendall(head + body[:cut])
            assert meant(server) == "0.0.1"
        with server.client() as client:
            client.post(ROUTE, content=body).raise_for_status()
        assert meant(server) == "0.0.2"
