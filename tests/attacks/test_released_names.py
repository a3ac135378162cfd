"""The name of a released version never answers with other bytes, whichever way a ref of that name is made."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from adapterhub_registry.names import RepoId

from tests.registry.pushing import Push
from tests.registry.running import Running, running
from tests.registry.shared_servers import Postgres

GOOD, BAD = b"g" * 5000, b"b" * 5000
REPO = "acme/x"
TAG = "v1.0.0"


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    yield from server_on(request, tmp_path)


def server_on(request: pytest.FixtureRequest, folder: Path) -> Iterator[Running]:
    """Run a registry on the database that the parameter of a fixture names."""
    url = None if request.param == "sqlite" else request.getfixturevalue("pg").new_registry()
    with running(folder, database_url=url) as server:
        yield server


@pytest.fixture
def ann(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.token}"}, timeout=60) as client:
        yield client


def create(client: httpx.Client, repo: str) -> None:
    namespace, _, name = repo.partition("/")
    client.post("/api/repos/create", json={"organization": namespace, "name": name}).raise_for_status()


def branch(client: httpx.Client, name: str, *, repo: str = REPO) -> httpx.Response:
    quoted = httpx.URL("http://x").copy_with(path=f"/{name}").raw_path.decode()[1:].replace("/", "%2F")
    return client.post(f"/api/models/{repo}/branch/{quoted}", json={})


def tag(client: httpx.Client, name: str, *, repo: str = REPO, at: str = "main") -> httpx.Response:
    return client.post(f"/api/models/{repo}/tag/{at}", json={"tag": name})


def put(client: httpx.Client, path: str, content: bytes, *, at: str = "main", **query: str) -> httpx.Response:
    value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "file", "value": value}]
    body = "\n".join(json.dumps(line) for line in lines)
    return client.post(f"/api/models/{REPO}/commit/{at}", content=body, params=query)


def weights_at(client: httpx.Client, revision: str, *, repo: str = REPO) -> bytes | None:
    """The bytes that a download of the weights gets; None when the revision does not exist."""
    answer = client.get(f"/{repo}/resolve/{revision}/adapter_model.safetensors")
    if answer.status_code == httpx.codes.NOT_FOUND:
        return None
    return answer.raise_for_status().content


def release(client: httpx.Client, *, untag: bool = True) -> None:
    """Release version 1.0.0 with the good bytes; with `untag`, remove its tag again."""
    Push(repo=REPO, weights=GOOD).run(client)
    if untag:
        client.delete(f"/api/models/{REPO}/tag/{TAG}").raise_for_status()


def test_no_branch_takes_the_name_of_a_released_version(ann: httpx.Client) -> None:
    release(ann)

    refused = [branch(ann, name) for name in (TAG, "V1.0.0", "v01.0.0", "v1.0.\uff10", "v1", "v1.0.0.0")]

    assert {answer.status_code for answer in refused} == {409}
    assert all("released" in answer.json()["error"] for answer in refused)
    assert weights_at(ann, TAG) is None


def test_no_spelling_of_a_ref_reaches_a_released_name(ann: httpx.Client) -> None:
    release(ann)

    for name in (f"refs/heads/{TAG}", f"refs/tags/{TAG}", f"heads/{TAG}", f"tags/{TAG}"):
        assert branch(ann, name).status_code in {400, 409}, name
    assert {weights_at(ann, revision) for revision in (TAG, f"refs%2Fheads%2F{TAG}", f"refs%2Ftags%2F{TAG}")} == {None}


@pytest.mark.parametrize("untag", [True, False])
def test_a_commit_neither_makes_nor_moves_a_released_name(ann: httpx.Client, *, untag: bool) -> None:
    release(ann, untag=untag)

    places = (TAG, f"refs%2Fheads%2F{TAG}", f"refs%2Ftags%2F{TAG}")
    made = {put(ann, "adapter_model.safetensors", BAD, at=at).status_code for at in places}
    proposed = put(ann, "adapter_model.safetensors", BAD, at="main", create_pr="1")

    assert (made, proposed.status_code) == ({404}, 501)
    assert weights_at(ann, TAG) == (None if untag else GOOD)


def test_no_tag_looks_like_a_released_version(ann: httpx.Client) -> None:
    release(ann)
    put(ann, "adapter_model.safetensors", BAD)

    assert [tag(ann, name).status_code for name in ("V1.0.0", "\uff561.0.0")] == [409, 409]


def test_a_released_version_is_tagged_again_on_its_own_bytes_only(ann: httpx.Client) -> None:
    release(ann)
    put(ann, "adapter_model.safetensors", BAD)

    other = tag(ann, TAG)
    ann.post(f"/api/models/{REPO}/commit/main", content=deletion("adapter_config.json")).raise_for_status()
    without_adapter = tag(ann, TAG)
    put(ann, "adapter_model.safetensors", GOOD)
    Push(repo=REPO, weights=GOOD).commit(ann)
    own = tag(ann, TAG)

    assert (other.status_code, without_adapter.status_code, own.status_code) == (409, 409, 200)
    assert weights_at(ann, TAG) == GOOD


def deletion(path: str) -> str:
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "deletedFile", "value": {"path": path}}]
    return "\n".join(json.dumps(line) for line in lines)


def test_a_repository_made_again_keeps_released_names_closed(ann: httpx.Client) -> None:
    release(ann)
    ann.request("DELETE", "/api/repos/delete", json={"organization": "acme", "name": "x"}).raise_for_status()
    create(ann, REPO)
    put(ann, "adapter_model.safetensors", BAD)

    assert (branch(ann, TAG).status_code, tag(ann, TAG).status_code) == (409, 409)
    assert branch(ann, "v2.0.0").status_code == 200


@pytest.mark.parametrize("kind", ["branch", "tag"])
def test_no_repository_moves_its_refs_onto_a_released_name(ann: httpx.Client, kind: str) -> None:
    release(ann)
    ann.request("DELETE", "/api/repos/delete", json={"organization": "acme", "name": "x"}).raise_for_status()
    create(ann, "acme/other")
    (branch if kind == "branch" else tag)(ann, TAG, repo="acme/other").raise_for_status()

    refused = ann.post("/api/repos/move", json={"fromRepo": "acme/other", "toRepo": REPO})

    assert refused.status_code == 409
    assert TAG in refused.json()["error"]
    assert ann.get("/api/models/acme/other").status_code == 200


def test_a_renamed_repository_keeps_its_released_names_closed(ann: httpx.Client) -> None:
    release(ann)
    ann.post("/api/repos/move", json={"fromRepo": REPO, "toRepo": "acme/yonder"}).raise_for_status()
    create(ann, REPO)

    assert branch(ann, TAG, repo="acme/yonder").status_code == 409
    assert branch(ann, TAG).status_code == 409


def test_a_branch_of_another_name_stays_possible(ann: httpx.Client) -> None:
    release(ann, untag=False)

    made = [branch(ann, name).status_code for name in ("v1.0.1", "dev", "release/v1.0.0", "v1.1", "v10.0")]

    assert made == [200, 200, 200, 200, 200]


def test_a_branch_and_a_release_of_one_name_made_at_once_are_one(pg: Postgres, tmp_path: Path) -> None:
    with running(tmp_path, database_url=pg.new_registry()) as server:
        headers = {"Authorization": f"Bearer {server.token}"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=60) as ann:
            create(ann, REPO)
            Push(repo=REPO, weights=GOOD).commit(ann)
            registry, answers = server.registry, []
            caller = registry.tokens.authenticate(server.token)
            assert caller is not None

            with registry.db.begin() as tagging:
                registry.repos.create_tag(tagging, caller, RepoId(REPO), TAG, at="main", message=None)
                other = threading.Thread(target=lambda: answers.append(branch(ann, TAG).status_code))
                other.start()
                while other.is_alive() and not waiting(server):
                    pass
            other.join()

            assert answers == [409]
            assert weights_at(ann, TAG) == GOOD


def waiting(server: Running) -> int:
    """How many transactions wait for another."""
    count = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with server.registry.db.engine.connect() as connection:
        return int(connection.exec_driver_sql(count).scalar_one())
