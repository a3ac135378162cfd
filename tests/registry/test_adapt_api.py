"""`/api/adapt/v1` and the derived tags, through the running server and the stock client."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapterhub_registry.api.adapt_models import Releases

from adapterhub.formats.cards.card import make_card
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, MEDIA_TYPES
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from tests.registry.running import Running

V1 = "/api/adapt/v1"
SHA = "ab" * 32


numbers = count(1)


@pytest.fixture
def namespace() -> str:
    return f"team{next(numbers)}"


@pytest.fixture
def publish(
    server: Running, namespace: str, add: Callable[..., Added], tmp_path: Path, online: None
) -> Callable[..., dict[str, bytes]]:
    """Commit a build, and tag it: `publish("legal-qa", version="1.0.0", rank=4)`; its files."""
    from huggingface_hub import CommitOperationAdd

    homes = count()

    def put(name: str, *, repo: str | None = None, tag: bool = True, **about: object) -> dict[str, bytes]:
        added = add(name, into=Library(tmp_path / f"home-{next(homes)}"), **about)
        folder, manifest = added.build.folder, added.build.manifest
        files = {n: (folder / n).read_bytes() for n in (*MEDIA_TYPES, MANIFEST_FILE) if (folder / n).exists()}
        files[CARD_FILE] = make_card(manifest).text.encode()
        full_name, api = repo or f"{namespace}/{name}", server.api
        api.create_repo(full_name, exist_ok=True)
        operations = [CommitOperationAdd(n, io.BytesIO(data)) for n, data in files.items()]
        api.create_commit(full_name, operations, commit_message="add")
        if tag:
            api.create_tag(full_name, tag=f"v{manifest.version}")
        return files

    return put


def found(server: Running, **query: Any) -> list[str]:
    answer = httpx.get(f"{server.url}{V1}/adapters", params=query)
    assert answer.status_code == 200, answer.text
    return [adapter["repo"] for adapter in answer.json()["adapters"]]


def test_adapters_are_found_by_base_rank_and_task(
    server: Running, namespace: str, publish: Callable[..., Any], base: BaseRecord
) -> None:
    publish("legal-qa", task="legal", rank=4)
    publish("maths", task="maths", rank=16)
    weights = base.fingerprint.weights[7:]

    assert [f"{namespace}/legal-qa"] == found(server, base_sha256=weights, task="legal", q=namespace)
    assert [f"{namespace}/maths"] == found(server, base_sha256=weights[:12], rank_min=8, rank_max=16, q=namespace)
    assert found(server, base_sha256="0" * 64) == []
    assert [f"{namespace}/maths", f"{namespace}/legal-qa"] == found(server, peft_type="LORA", q=namespace)


def test_the_stock_client_finds_them_by_derived_tags(
    server: Running, namespace: str, publish: Callable[..., Any], base: BaseRecord
) -> None:
    publish("legal-qa", task="legal", rank=16)
    publish("maths", rank=4)
    weights = base.fingerprint.weights[7:]

    for digest in (weights[:32], weights):
        models = server.api.list_models(author=namespace, filter=[f"base-sha256:{digest}", "lora-rank:16"])
        assert [f"{namespace}/legal-qa"] == [model.id for model in models]
    models = server.api.list_models(author=namespace, filter=["adapter-task:legal", "peft", "safetensors"])
    assert [f"{namespace}/legal-qa"] == [model.id for model in models]


def test_a_card_cannot_claim_another_rank(server: Running, namespace: str, publish: Callable[..., Any]) -> None:
    publish("legal-qa", rank=4)
    card = b"---\ntags:\n- lora-rank:64\n- law\n---\n"

    server.api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=f"{namespace}/legal-qa")

    tags = server.api.model_info(f"{namespace}/legal-qa").tags
    assert "law" in tags
    assert "lora-rank:4" in tags
    assert "lora-rank:64" not in tags


def test_model_info_carries_the_facts(server: Running, namespace: str, publish: Callable[..., Any]) -> None:
    publish("legal-qa", rank=4)

    adapt = server.get(f"/api/models/{namespace}/legal-qa").json()["adapt"]

    expected = {"rank": 4, "alpha": 8.0, "base": "test/tiny", "version": "1.0.0", "name": "legal-qa", "dtype": "F32"}
    assert expected == {name: adapt[name] for name in expected}


def test_versions_are_listed_newest_first(server: Running, namespace: str, publish: Callable[..., Any]) -> None:
    for number, version in enumerate(("1.9.0", "1.10.0")):
        publish("legal-qa", version=version, seed=number)

    said = httpx.get(f"{server.url}{V1}/adapters/{namespace}/legal-qa/versions")
    answer = said.json()

    assert said.text == Releases.model_validate_json(said.content).model_dump_json()  # as the documented type has it
    assert [release["version"] for release in answer["versions"]] == ["1.10.0", "1.9.0"]
    assert [release["yanked"] for release in answer["versions"]] == [None, None]


def test_a_yanked_version_warns_and_its_bytes_still_come(
    server: Running, namespace: str, publish: Callable[..., Any]
) -> None:
    files = publish("legal-qa")
    path = f"{V1}/adapters/{namespace}/legal-qa"

    answer = server.post(f"{path}/yank", {"version": "1.0.0", "reason": "trained on leaked labels"})

    (release,) = answer.json()["versions"]
    assert (release["yanked"]["reason"], release["yanked"]["by"]) == ("trained on leaked labels", "ann")
    assert found(server, q=namespace) == []
    got = server.get(f"/{namespace}/legal-qa/resolve/v1.0.0/{MANIFEST_FILE}")
    assert got.content == files[MANIFEST_FILE]
    assert got.headers["X-HF-Warning"] == "yanked; version 1.0.0 was yanked: trained on leaked labels"
    assert "X-HF-Warning" in server.get(f"/api/models/{namespace}/legal-qa/revision/v1.0.0").headers
    server.post(f"{path}/unyank", {"version": "1.0.0"})
    assert [f"{namespace}/legal-qa"] == found(server, q=namespace)
    assert "X-HF-Warning" not in server.get(f"/{namespace}/legal-qa/resolve/v1.0.0/{MANIFEST_FILE}").headers


def test_one_request_says_which_of_many_builds_are_yanked(
    server: Running, namespace: str, publish: Callable[..., Any]
) -> None:
    digests = [hashlib.sha256(publish(name)[MANIFEST_FILE]).hexdigest() for name in ("legal-qa", "tables")]
    server.yank(f"{namespace}/legal-qa", "leaked labels")
    query = "&".join(f"digest={one}" for one in (*digests, SHA))

    (one,) = server.get(f"{V1}/yanked?{query}").json()["releases"]
    server.api.update_repo_settings(f"{namespace}/legal-qa", private=True)

    assert (one["repo"], one["version"]) == (f"{namespace}/legal-qa", "1.0.0")
    assert (one["digest"], one["yanked"]["reason"]) == (f"sha256:{digests[0]}", "leaked labels")
    assert server.get(f"{V1}/yanked?{query}", token=None).json() == {"releases": []}
    assert server.get(f"{V1}/yanked?{'&'.join([f'digest={SHA}'] * 51)}").status_code == 422
    assert server.get(f"{V1}/yanked?digest=acme").status_code == 422


def test_yanking_needs_the_right_and_a_release(server: Running, namespace: str, publish: Callable[..., Any]) -> None:
    publish("legal-qa")
    reader = server.registry.tokens.create("reader", "read", namespaces=["*"])
    path, body = f"{V1}/adapters/{namespace}/legal-qa/yank", {"version": "1.0.0", "reason": "x"}

    assert server.post(path, body, token=None).status_code == 401
    assert server.post(path, body, token=reader).status_code == 403
    missing = server.post(path, body | {"version": "9.9"})
    assert (missing.status_code, missing.headers["X-Error-Code"]) == (404, "VersionNotFound")


def test_of_ten_pushes_of_one_version_at_once_one_wins(
    server: Running, namespace: str, publish: Callable[..., Any]
) -> None:
    for number in range(10):
        publish("legal-qa", repo=f"{namespace}/copy{number}", seed=number, tag=False)
    statuses: list[int] = []

    def release(number: int) -> None:
        path = f"/api/models/{namespace}/copy{number}/tag/main"
        statuses.append(server.post(path, {"tag": "v1.0.0"}).status_code)

    threads = [threading.Thread(target=release, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [200, *[409] * 9] == sorted(statuses)


def test_a_blob_is_found_where_the_caller_may_look(
    server: Running, namespace: str, publish: Callable[..., Any]
) -> None:
    digest = hashlib.sha256(publish("legal-qa", seed=77)["adapter_model.safetensors"]).hexdigest()
    path = f"{V1}/blobs/{digest}"

    places = server.get(path, token=None).json()["places"]
    server.api.update_repo_settings(f"{namespace}/legal-qa", private=True)

    assert [(f"{namespace}/legal-qa", "adapter_model.safetensors")] == [(p["repo"], p["path"]) for p in places]
    assert server.get(path, token=None).status_code == 404
    assert server.get(path).status_code == 200
    assert found(server, q=namespace) == []
    assert server.get(f"{V1}/adapters/{namespace}/legal-qa/versions", token=None).status_code == 404


def test_pages_follow_the_cursor(server: Running, namespace: str, publish: Callable[..., Any]) -> None:
    for number in range(5):
        publish("legal-qa", repo=f"{namespace}/x{number}", tag=False)

    seen, cursor = [], None
    while True:
        query = {"q": namespace, "limit": 2} | ({"cursor": cursor} if cursor else {})
        page = httpx.get(f"{server.url}{V1}/adapters", params=query).json()
        seen += [adapter["repo"] for adapter in page["adapters"]]
        if (cursor := page["next_cursor"]) is None:
            break

    assert [f"{namespace}/x{number}" for number in reversed(range(5))] == seen


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/adapters?cursor=x", None),
        ("GET", "/adapters?rank_min=x", None),
        ("GET", "/adapters?rank_min=-1", None),
        ("GET", "/adapters?rank_max=" + "9" * 400, None),
        ("GET", "/adapters?base_sha256=xyz", None),
        ("GET", "/adapters?q=" + "a" * 1001, None),
        ("GET", "/adapters?q=%00", None),
        ("GET", "/blobs/xyz", None),
        ("GET", "/blobs/" + "A" * 64, None),
        ("GET", "/adapters/a/..%2f../versions", None),
        ("POST", "/adapters/a/b/yank", []),
        ("POST", "/adapters/a/b/yank", {"version": 1, "reason": "x"}),
        ("POST", "/adapters/a/b/yank", {"version": "1", "reason": "x", "more": 1}),
        ("POST", "/tokens", {"user": "../x", "role": "admin"}),
        ("POST", "/tokens", {"user": "x", "role": "root"}),
        ("POST", "/tokens", {"user": "x", "role": "read", "days": 1e300}),
        ("DELETE", "/tokens/x", None),
        ("DELETE", "/tokens/0", None),
        ("DELETE", "/tokens/" + "9" * 30, None),
        ("DELETE", "/tokens/999999", None),
        ("PUT", "/info", {}),
        ("GET", "/nothing", None),
    ],
)
def test_nonsense_is_refused_in_json(server: Running, method: str, path: str, body: Any) -> None:
    answer = server.send(method, V1 + path, body)

    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]
    assert answer.headers["X-Error-Code"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"version": "\\ud800", "reason": "x"}'])
def test_a_body_that_is_no_json_is_refused_in_json(server: Running, body: bytes) -> None:
    headers = {"Authorization": f"Bearer {server.token}", "Content-Type": "application/json"}

    answer = httpx.post(f"{server.url}{V1}/adapters/a/b/yank", content=body, headers=headers)

    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]
    assert answer.headers["X-Error-Code"]


def test_tokens_are_made_listed_and_revoked(server: Running) -> None:
    made = server.post(f"{V1}/tokens", {"user": "bob", "role": "write", "namespaces": ["bob"], "days": 1})
    token = made.json()["token"]

    mine = server.get(f"{V1}/tokens", token=token).json()["tokens"]
    everybodys = server.get(f"{V1}/tokens").json()["tokens"]

    assert made.status_code == 201
    assert [(t["user"], t["role"], t["namespaces"]) for t in mine] == [("bob", "write", ["bob/*"])]
    assert {"ann", "bob"} <= {t["user"] for t in everybodys}
    assert token not in json.dumps(everybodys)
    assert server.send("DELETE", f"{V1}/tokens/{mine[0]['id']}", token=token).status_code == 200
    assert server.get(f"{V1}/tokens", token=token).status_code == 401


def test_only_an_administrator_makes_tokens(server: Running) -> None:
    writer = server.registry.tokens.create("carl", "write")
    partial = server.registry.tokens.create("dora", "admin", namespaces=["dora/*"])
    body = {"user": "eve", "role": "admin"}

    assert [server.post(f"{V1}/tokens", body, token=t).status_code for t in (None, writer, partial)] == [401, 403, 403]
    assert server.send("DELETE", f"{V1}/tokens/1", token=writer).status_code == 403


def test_info_health_and_metrics(server: Running, publish: Callable[..., Any]) -> None:
    publish("legal-qa")

    info = httpx.get(f"{server.url}{V1}/info").json()
    metrics = server.get(f"{V1}/metrics")

    assert "xet" in info["upload_modes"]
    assert httpx.get(f"{server.url}{V1}/healthz").json() == {"status": "ok"}
    assert metrics.headers["content-type"].startswith("text/plain")
    values = dict(line.split() for line in metrics.text.splitlines() if not line.startswith("#"))
    assert int(values["adapterhub_adapters"]) >= 1
    assert int(values["adapterhub_blob_bytes"]) > 0


@pytest.mark.parametrize("which", [["--exclude-method", "DELETE"], ["--include-method", "DELETE"]])
def test_schemathesis_finds_nothing(
    server: Running,
    namespace: str,
    publish: Callable[..., Any],
    tmp_path: Path,
    which: list[str],
    amount: Callable[[int, int], int],
) -> None:
    # DELETE in a run of its own: it revokes the token of the run
    digest = hashlib.sha256(publish("legal-qa", seed=5)[MANIFEST_FILE]).hexdigest()
    known = {"path.namespace": namespace, "path.name": "legal-qa", "path.sha256": digest}
    lines = [f'"{place}" = "{value}"' for place, value in known.items()]
    lines.insert(0, "[parameters]")
    # no schema tells a key, a signed result or a cursor from other text
    for place, method in (("/tests", "PUT"), ("/tests", "POST"), ("/log", "GET")):
        lines += ["[[operations]]", f'include-path-regex = "{place}"', f'include-method = "{method}"']
        lines += ["[operations.checks]", "positive_data_acceptance.enabled = false"]
    (tmp_path / "schemathesis.toml").write_text("\n".join(lines))
    token = server.registry.tokens.create("tester", "admin")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/api/adapt/v1/openapi.json"]
    options = ["--max-examples", str(amount(2, 20)), "--seed", "1", "--header", f"Authorization: Bearer {token}"]

    done = subprocess.run(
        [*command, *options, *which], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Test cases:" in done.stdout
