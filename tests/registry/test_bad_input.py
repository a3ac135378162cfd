"""What no client sends: every answer is a JSON refusal with its code, never a failure of the server."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.registry.conftest import Served

Send = Callable[..., httpx.Response]
REPO = "bad/input"


@pytest.fixture(scope="module")
def send(served: Served) -> Send:
    def send(method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {served.token}"} | options.pop("headers", {})
        return httpx.request(method, served.url + path, headers=headers, timeout=60, **options)

    send("POST", "/api/repos/create", json={"organization": "bad", "name": "input"})
    return send


def raw(served: Served, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to bytes that no library would send."""
    with socket.create_connection(served.address, timeout=60) as connection:
        connection.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            piece = connection.recv(65536)
            if not piece:
                break
            answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        while len(body) < int(headers.get("content-length", "0")):
            piece = connection.recv(65536)
            if not piece:
                break
            body += piece
    return int(lines[0].split()[1]), headers, body


def get(served: Served, path: str, *, host: str = "127.0.0.1", **headers: str) -> tuple[int, dict[str, str], bytes]:
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return raw(served, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n".encode())


def refused(answer: httpx.Response) -> None:
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.headers["x-error-code"]
    assert answer.json()["error"]


# ------------------------------------------------------------ bodies
NONSENSE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"12",
    b'"text"',
    b"\xff\xfe",
    b'{"name": NaN}',
    b'{"a": 1, "a": 2}',
    b"[" * 100_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b'{"name": "\\ud800"}',
    b'{"name": "a\\u0000b"}',
]
ENDPOINTS = [
    ("POST", "/api/repos/create"),
    ("DELETE", "/api/repos/delete"),
    ("POST", "/api/repos/move"),
    ("POST", "/api/validate-yaml"),
    ("POST", f"/api/models/{REPO}/preupload/main"),
    ("POST", f"/{REPO}.git/info/lfs/objects/batch"),
    ("POST", f"/{REPO}.git/info/lfs/verify"),
    ("POST", f"/api/models/{REPO}/tag/main"),
    ("POST", f"/api/models/{REPO}/commit/main"),
]


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
@pytest.mark.parametrize("body", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_for_json(send: Send, method: str, path: str, body: bytes) -> None:
    refused(send(method, path, content=body))


WRONG = [
    ("POST", "/api/repos/create", {"name": 1}),
    ("POST", "/api/repos/create", {"name": ["a"]}),
    ("POST", "/api/repos/create", {"name": "a", "organization": {}}),
    ("POST", "/api/repos/create", {"name": "../a"}),
    ("POST", "/api/repos/create", {"name": "a--b"}),
    ("POST", "/api/repos/create", {"name": ".."}),
    ("POST", "/api/repos/create", {"name": "a", "organization": "api"}),
    ("POST", "/api/repos/create", {"name": "a", "organization": "API"}),
    ("POST", "/api/repos/create", {"name": "a", "visibility": "secret"}),
    ("POST", "/api/repos/create", {"name": "a", "private": "yes"}),
    ("POST", "/api/repos/create", {"name": "a", "type": "space"}),
    ("POST", "/api/repos/move", {"fromRepo": REPO, "toRepo": "nowhere"}),
    ("POST", "/api/repos/move", {"fromRepo": REPO, "toRepo": "a/b/c"}),
    ("PUT", f"/api/models/{REPO}/settings", {"gated": "maybe"}),
    ("PUT", f"/api/models/{REPO}/settings", {"gated": ["auto"]}),
    ("PUT", f"/api/models/{REPO}/settings", {"gated": {}}),
    ("PUT", f"/api/models/{REPO}/settings", {"private": 1}),
    ("POST", f"/api/models/{REPO}/preupload/main", {"files": [{"path": "../x", "size": 1}]}),
    ("POST", f"/api/models/{REPO}/preupload/main", {"files": [{"path": "x", "size": -1}]}),
    ("POST", f"/api/models/{REPO}/preupload/main", {"files": [{"path": "x", "size": True}]}),
    ("POST", f"/api/models/{REPO}/preupload/main", {"files": [{"path": "x", "size": 1, "sample": "!"}]}),
    ("POST", f"/api/models/{REPO}/preupload/main", {"files": [{"path": "x", "size": 1}] * 257}),
    ("POST", f"/{REPO}.git/info/lfs/objects/batch", {"operation": "delete", "objects": []}),
    ("POST", f"/{REPO}.git/info/lfs/objects/batch", {"operation": "upload", "objects": [{"oid": "x", "size": 1}]}),
    ("POST", f"/{REPO}.git/info/lfs/objects/batch", {"operation": "upload", "objects": [{"oid": "A" * 64, "size": 1}]}),
    (
        "POST",
        f"/{REPO}.git/info/lfs/objects/batch",
        {"operation": "upload", "objects": [{"oid": "a" * 64, "size": 1 << 60}]},
    ),
    ("POST", f"/{REPO}.git/info/lfs/objects/batch", {"operation": "upload", "objects": [], "hash_algo": "md5"}),
    ("POST", f"/api/models/{REPO}/tag/main", {"tag": "a b"}),
    ("POST", f"/api/models/{REPO}/tag/main", {"tag": "a..b"}),
    ("POST", f"/api/models/{REPO}/tag/main", {"tag": "0123456789"}),
    ("POST", f"/api/models/{REPO}/tag/main", {"tag": "refs/heads/x"}),
    ("POST", f"/api/models/{REPO}/tag/main", {"tag": "x" * 300}),
    ("POST", f"/api/models/{REPO}/tag/main", {"tag": ""}),
    ("POST", f"/api/models/{REPO}/branch/dev%20x", {}),
    ("POST", f"/api/models/{REPO}/paths-info/main", {"paths": [1]}),
    ("POST", f"/api/models/{REPO}/paths-info/main", {"paths": {"a": 1}}),
]


@pytest.mark.parametrize(("method", "path", "body"), WRONG)
def test_members_of_the_wrong_kind(send: Send, method: str, path: str, body: dict[str, Any]) -> None:
    refused(send(method, path, json=body))


def lines(*items: object) -> bytes:
    return b"\n".join(json.dumps(item).encode() for item in items)


HEADER = {"key": "header", "value": {"summary": "x"}}
TEXT = base64.b64encode(b"x").decode()
COMMITS = [
    lines({"key": "file", "value": {"path": "a", "content": TEXT}}),
    lines(HEADER, {"key": "file", "value": {"path": "../a", "content": TEXT}}),
    lines(HEADER, {"key": "file", "value": {"path": "/a", "content": TEXT}}),
    lines(HEADER, {"key": "file", "value": {"path": "a//b", "content": TEXT}}),
    lines(HEADER, {"key": "file", "value": {"path": ".git/config", "content": TEXT}}),
    lines(HEADER, {"key": "file", "value": {"path": "a\\b", "content": TEXT}}),
    lines(HEADER, {"key": "file", "value": {"path": "a\nb", "content": TEXT}}),
    lines(HEADER, {"key": "file", "value": {"path": "a" * 300, "content": TEXT}}),
    lines(HEADER, {"key": "file", "value": {"path": "a", "content": "%%%"}}),
    lines(HEADER, {"key": "file", "value": {"path": "a", "content": TEXT, "encoding": "utf-8"}}),
    lines(HEADER, {"key": "file", "value": {"path": "a", "content": 5}}),
    lines(HEADER, {"key": "file", "value": []}),
    lines(HEADER, {"key": "lfsFile", "value": {"path": "a", "oid": "x"}}),
    lines(HEADER, {"key": "lfsFile", "value": {"path": "a", "oid": "a" * 64, "algo": "md5"}}),
    lines(HEADER, {"key": "execute", "value": {"path": "a"}}),
    lines({"key": "header", "value": {"summary": "x", "parentCommit": "main"}}),
    lines({"key": "header", "value": {"summary": 5}}),
    lines({"key": "header", "value": {"summary": "x", "description": ["x"]}}),
    lines(
        HEADER,
        {"key": "file", "value": {"path": "a", "content": TEXT}},
        {"key": "file", "value": {"path": "a/b", "content": TEXT}},
    ),
]


@pytest.mark.parametrize("body", COMMITS, ids=range(len(COMMITS)))
def test_commits_that_cannot_be(send: Send, body: bytes) -> None:
    before = send("GET", f"/api/models/{REPO}").json()["sha"]

    refused(send("POST", f"/api/models/{REPO}/commit/main", content=body))

    assert send("GET", f"/api/models/{REPO}").json()["sha"] == before


def test_a_body_over_the_limit_is_refused(send: Send) -> None:
    answer = send("POST", "/api/repos/create", content=b" " * 1_100_000)

    assert (answer.status_code, answer.headers["x-error-code"]) == (413, "TooLarge")


def test_a_body_over_the_limit_that_was_not_announced_is_refused(send: Send) -> None:
    answer = send("POST", "/api/repos/create", content=iter([b" " * 100_000] * 20))

    assert (answer.status_code, answer.headers["x-error-code"]) == (413, "TooLarge")


def test_a_regular_file_over_the_limit_is_refused(send: Send) -> None:
    content = base64.b64encode(bytes(11 << 20)).decode()
    body = lines(HEADER, {"key": "file", "value": {"path": "a", "content": content}})

    answer = send("POST", f"/api/models/{REPO}/commit/main", content=body)

    assert (answer.status_code, answer.headers["x-error-code"]) == (413, "TooLarge")


def test_more_files_than_a_repository_holds_are_refused(send: Send) -> None:
    files = [{"key": "file", "value": {"path": f"f/{n}", "content": TEXT}} for n in range(3001)]

    answer = send("POST", f"/api/models/{REPO}/commit/main", content=lines(HEADER, *files))

    assert (answer.status_code, answer.headers["x-error-code"]) == (413, "TooLarge")


# ------------------------------------------------------------ paths
TRICKS = [
    "/bad/input/resolve/main/../../../secret",
    "/bad/input/resolve/main/%2e%2e%2f%2e%2e%2fsecret",
    "/bad/input/resolve/main/..%2f..%2fsecret",
    "/bad/input/resolve/main/%252e%252e%252fsecret",
    "/bad/input/resolve/main/a%00b",
    "/bad/input/resolve/main/a%2500b",
    "/bad/input/resolve/main/%ff%fe",
    "/bad/input/resolve/main/a%0d%0ab",
    "/bad/input/resolve/main/.git/config",
    "/bad/input/resolve/main/a;b",
    "/bad/input/resolve/main//etc/passwd",
    "/bad/input/resolve/..%2f..%2f/a",
    "/bad/input/resolve/%00/a",
    "/bad/..%2f..%2f/resolve/main/a",
    "/../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/_lfs/object/..%2f..%2fsecret",
    "/api/models/bad/input/tree/main/..%2f..",
    "/api/models/bad/input/tree/main/%2e%2e",
    "/api/models/..%2f../input",
    "/api/models/bad/input%00",
    "/api/models/bad/input/revision/%F0%28",
    "/api/models/bad",
    "/api/datasets/bad/input",
    "/gpt2/resolve/main/config.json",
]


@pytest.mark.parametrize("path", TRICKS)
def test_paths_that_try_to_leave(served: Served, path: str) -> None:
    status, headers, body = get(served, path)

    assert 400 <= status < 500
    assert headers["x-error-code"]
    assert json.loads(body)["error"]
    assert b"root:" not in body


QUERIES = [
    "/api/models?sort=best",
    "/api/models?limit=-1",
    "/api/models?limit=x",
    "/api/models?full=perhaps",
    "/api/models?cursor=x",
    "/api/models?cursor=WzAsMV0",
    "/api/models?cursor=W1swXV0",
    "/api/models?cursor=%5B",
    "/api/models?num_parameters=many",
    "/api/models?num_parameters=min:999999999999999T",
    "/api/models?" + "&".join(["filter=x"] * 100),
    "/api/models?search=" + "+".join("abcdefghijklmnopqrstuvwxyz"),
    f"/api/models/{REPO}/commits/main?after=x",
    f"/api/models/{REPO}/tree/main?limit=0",
    f"/api/models/{REPO}/revision/no-such",
    f"/api/models/{REPO}/auth-check/everything",
]


@pytest.mark.parametrize("path", QUERIES)
def test_queries_that_cannot_be(send: Send, path: str) -> None:
    refused(send("GET", path))


@pytest.mark.parametrize("host", ["evil/path?x=", "a b", "", "a:b", "<script>", "x" * 300])
def test_a_host_that_is_no_host(served: Served, host: str) -> None:
    status, headers, _ = raw(
        served,
        f"POST /api/repos/create HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {served.token}\r\n"
        'Content-Length: 12\r\nConnection: close\r\n\r\n{"name":"x"}'.encode(),
    )

    assert (status, headers["x-error-code"]) == (400, "BadRequest")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /api/repos/create HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/repos/create HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /api/repos/create HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /api/repos/create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
    ],
)
def test_framing_that_cannot_be(served: Served, request_bytes: bytes) -> None:
    with socket.create_connection(served.address, timeout=60) as connection:
        connection.sendall(request_bytes)
        answer = connection.recv(65536)

    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")) or answer == b""
    assert httpx.get(served.url + "/api/models").status_code == 200


@pytest.mark.parametrize(
    "header",
    ["Bearer", "Basic YTpi", "Bearer " + "x" * 5000, "Bearer adp_", "Bearer \u00ff", "nonsense"],
)
def test_credentials_that_cannot_be(served: Served, header: str) -> None:
    answer = httpx.get(served.url + "/api/models", headers={"Authorization": header.encode("latin-1")})

    assert (answer.status_code, answer.headers["x-error-code"]) == (401, "Unauthorized")


def test_a_yaml_bomb_is_refused(send: Send) -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )

    answer = send("POST", "/api/validate-yaml", json={"content": f"---\n{bomb}---\n", "repoType": "model"})

    assert answer.status_code == 400
    assert "aliases" in answer.json()["errors"][0]["message"]


CARDS = [
    "tags: .inf",
    "x: .nan",
    "- a list",
    "just text",
    "[" * 5000,
    "x: !!python/object/apply:os.system [id]",
    "a: 1\n\tb: 2",
]


@pytest.mark.parametrize("card", CARDS)
def test_a_strange_card_is_committed_and_read_as_empty(send: Send, card: str) -> None:
    content = base64.b64encode(f"---\n{card}\n---\n".encode()).decode()
    body = lines(HEADER, {"key": "file", "value": {"path": "README.md", "content": content}})

    told = send("POST", "/api/validate-yaml", json={"content": f"---\n{card}\n---\n", "repoType": "model"})
    done = send("POST", f"/api/models/{REPO}/commit/main", content=body)

    assert (told.status_code, done.status_code) == (400, 200)
    assert send("GET", f"/api/models/{REPO}").json()["cardData"] == {}


def test_a_request_is_numbered(send: Send) -> None:
    first, second = (send("GET", "/api/models").headers["x-request-id"] for _ in range(2))

    assert first != second
