"""Uploads by Xet through the running server, by hand: what the stock client never does (`test_conformance` runs that)."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapterhub_registry.access import tokens
from adapterhub_registry.storage.xet import (
    EPOCH_S,
    GRACE_S,
    MAX_SHARD_BYTES,
    MAX_XORB_BODY_BYTES,
    DiskXorbs,
    MalformedXet,
    XorbPlace,
    epoch_at,
    is_open,
    parse_xet_hash,
)

from tests.registry.running import Running
from tests.registry.xet_wire import shard_bytes, xorb_bytes, xorb_name

DATA = b"the bytes of a file, in two chunks"
CHUNKS = [(DATA[:20], 0), (DATA[20:], 2)]
XORB = xorb_name(CHUNKS)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def repo(server: Running, request: pytest.FixtureRequest) -> str:
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:16]
    return server.create(f"acme/{name}")


def write_token(server: Running, repo: str) -> tuple[str, dict[str, str]]:
    """The casUrl, and the headers with its token."""
    answer = server.get(f"/api/models/{repo}/xet-write-token/main").json()
    return answer["casUrl"], {"Authorization": f"Bearer {answer['accessToken']}"}


def send(url: str, headers: dict[str, str], content: bytes) -> httpx.Response:
    return httpx.post(url, headers=headers, content=content)


def blobs_on_disk(server: Running) -> set[str]:
    return {path.name for path in (server.root / "blobs").rglob("*") if path.is_file()}


def test_a_token_is_short_and_given_three_times(server: Running, repo: str) -> None:
    answer = server.get(f"/api/models/{repo}/xet-write-token/feat%2Fx")

    value = answer.json()
    assert answer.headers["X-Xet-Access-Token"] == value["accessToken"]
    assert answer.headers["X-Xet-Token-Expiration"] == str(value["exp"])
    assert answer.headers["X-Xet-Cas-Url"] == value["casUrl"]
    assert value["casUrl"].startswith(f"{server.url}/_xet/")
    claims = tokens.check(value["accessToken"], server.registry.settings.secret, purpose="xet")
    assert claims["exp"] - server.now() <= 3600


@pytest.mark.parametrize("alias", ["/v1/shards", "/shards"])
def test_a_file_is_rebuilt_from_its_chunks(server: Running, repo: str, alias: str) -> None:
    cas, headers = write_token(server, repo)

    sent = send(f"{cas}/v1/xorbs/default/{XORB}", headers, xorb_bytes(CHUNKS))
    answer = send(f"{cas}{alias}", headers, shard_bytes([(SHA256, [(XORB, len(DATA), 0, 2)])]))

    assert (sent.status_code, sent.json()) == (200, {"was_inserted": True})
    assert (answer.status_code, answer.json()) == (200, {"result": 1})
    assert b"".join(server.registry.blobs.open(SHA256)) == DATA


def test_nothing_is_told_of_what_others_sent(server: Running, repo: str) -> None:
    cas, headers = write_token(server, repo)
    send(f"{cas}/v1/xorbs/default/{XORB}", headers, xorb_bytes(CHUNKS))

    answers = [
        httpx.get(f"{cas}/v1/chunks/default/{XORB}", headers=headers),
        httpx.post(f"{cas}/v1/xorb-grants/default/{XORB}", headers=headers, json={"length": 1}),
        httpx.post(f"{cas}/v2/shards", headers=headers, content=b"x"),
    ]

    assert [(a.status_code, a.headers["X-Error-Code"]) for a in answers] == [(404, "NotFound")] * 3


def test_a_xorb_of_another_repository_cannot_be_named(server: Running, repo: str) -> None:
    server.create("acme/stranger")
    cas, headers = write_token(server, "acme/stranger")
    send(f"{cas}/v1/xorbs/default/{XORB}", headers, xorb_bytes(CHUNKS))
    cas, headers = write_token(server, repo)

    answer = send(f"{cas}/v1/shards", headers, shard_bytes([(SHA256, [(XORB, len(DATA), 0, 2)])]))

    assert answer.status_code == 400
    assert "which the client did not send" in answer.json()["error"]


@pytest.mark.parametrize("token", [None, "nonsense", "é", "a.b", "x" * 10_000])
def test_an_upload_without_a_good_token_is_refused(server: Running, repo: str, token: str | None) -> None:
    cas, _ = write_token(server, repo)
    headers = {} if token is None else {"Authorization": f"Bearer {token}".encode()}

    answer = httpx.post(f"{cas}/v1/xorbs/default/{XORB}", headers=headers, content=xorb_bytes(CHUNKS))

    assert (answer.status_code, answer.headers["X-Error-Code"]) == (401, "Unauthorized")


def test_a_token_opens_one_repository_only(server: Running, repo: str) -> None:
    server.create("acme/victim")
    _, headers = write_token(server, repo)
    cas, _ = write_token(server, "acme/victim")

    answer = send(f"{cas}/v1/xorbs/default/{XORB}", headers, xorb_bytes(CHUNKS))

    assert (answer.status_code, answer.headers["X-Error-Code"]) == (403, "Forbidden")


def test_an_expired_token_and_the_users_own_are_refused(server: Running, repo: str) -> None:
    cas, headers = write_token(server, repo)
    token = headers["Authorization"].partition(" ")[2]
    claims = tokens.check(token, server.registry.settings.secret)
    old = tokens.seal(json.dumps({**claims, "exp": 1}), server.registry.settings.secret).rstrip("=")

    for wrong in (old, server.token):
        answer = send(f"{cas}/v1/shards", {"Authorization": f"Bearer {wrong}"}, b"")
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (401, "Unauthorized")


def test_who_may_not_write_gets_no_token(server: Running, repo: str) -> None:
    reader = server.registry.tokens.create("reader", "read", namespaces=["acme/*"])
    stranger = server.registry.tokens.create("stranger", "write")
    path = f"/api/models/{repo}/xet-write-token/main"

    assert server.get(path, token=reader).status_code == 403
    assert server.get(path, token=stranger).status_code == 403
    assert server.get(path, token=None).status_code == 401
    assert server.get("/api/models/acme/nothing/xet-write-token/main").headers["X-Error-Code"] == "RepoNotFound"


@pytest.mark.parametrize("epoch", ["0", "99999999", "-1", "x", "1" * 40, "%00", "%2e%2e"])
def test_a_closed_or_odd_epoch_is_refused(server: Running, repo: str, epoch: str) -> None:
    cas, headers = write_token(server, repo)
    space = cas.rpartition("/")[0]

    answer = send(f"{space}/{epoch}/v1/shards", headers, b"")

    assert 400 <= answer.status_code < 500
    assert answer.headers["X-Error-Code"]


@pytest.mark.parametrize("name", ["abc", "..%2f..%2fsecret", "AB" * 32, "%2e%2e", "%00" + "a" * 63])
def test_a_xorb_with_an_odd_name_is_refused(server: Running, repo: str, name: str) -> None:
    cas, headers = write_token(server, repo)

    answer = send(f"{cas}/v1/xorbs/default/{name}", headers, xorb_bytes(CHUNKS))

    assert 400 <= answer.status_code < 500


def test_wrong_bytes_are_refused_and_nothing_is_kept(server: Running, repo: str) -> None:
    cas, headers = write_token(server, repo)
    chunks = [(b"right length, wrong bytes", 0)]
    send(f"{cas}/v1/xorbs/default/{xorb_name(chunks)}", headers, xorb_bytes(chunks))
    before = blobs_on_disk(server)

    answer = send(f"{cas}/v1/shards", headers, shard_bytes([("ef" * 32, [(xorb_name(chunks), 25, 0, 1)])]))

    assert (answer.status_code, answer.headers["X-Error-Code"]) == (400, "DigestMismatch")
    assert before == blobs_on_disk(server)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"/v1/xorbs/default/{XORB}", b""),
        (f"/v1/xorbs/default/{XORB}", b"nonsense"),
        (f"/v1/xorbs/default/{XORB}", xorb_bytes(CHUNKS)[:-1]),
        ("/v1/shards", b""),
        ("/v1/shards", b"HFRepoMetaData\0" + bytes(100)),
        ("/v1/shards", shard_bytes([(SHA256, [(XORB, 5, 7, 8)])])),
    ],
)
def test_nonsense_is_refused_in_words(server: Running, repo: str, path: str, body: bytes) -> None:
    cas, headers = write_token(server, repo)
    send(f"{cas}/v1/xorbs/default/{XORB}", headers, xorb_bytes(CHUNKS))

    answer = send(f"{cas}{path}", headers, body)

    assert (answer.status_code, answer.headers["X-Error-Code"]) == (400, "BadRequest")
    assert answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "limit"), [(f"/v1/xorbs/default/{XORB}", MAX_XORB_BODY_BYTES), ("/v1/shards", MAX_SHARD_BYTES)]
)
def test_a_body_that_is_announced_too_large_is_413(server: Running, repo: str, path: str, limit: int) -> None:
    cas, headers = write_token(server, repo)
    address = httpx.URL(f"{cas}{path}")

    with socket.create_connection((address.host, address.port or 80), timeout=60) as connection:
        lines = [f"POST {address.path} HTTP/1.1", f"Host: {address.host}", f"Content-Length: {limit + 1}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = connection.recv(1000)

    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_xorb_without_end_is_refused_and_not_kept(server: Running, repo: str) -> None:
    cas, headers = write_token(server, repo)
    chunk = xorb_bytes([(bytes(131_072), 0)])

    def endless() -> Iterator[bytes]:
        yield from (chunk for _ in range(520))

    answer = httpx.post(f"{cas}/v1/xorbs/default/{XORB}", headers=headers, content=endless(), timeout=60)

    assert answer.status_code == 400
    assert "unpacked bytes of the xorb come to" in answer.json()["error"]
    assert not [p for p in (server.root / "xorbs").rglob(".*") if p.is_file()]


def test_a_refused_xorb_leaves_the_earlier_one(server: Running, repo: str) -> None:
    cas, headers = write_token(server, repo)
    send(f"{cas}/v1/xorbs/default/{XORB}", headers, xorb_bytes(CHUNKS))

    send(f"{cas}/v1/xorbs/default/{XORB}", headers, b"nonsense")

    answer = send(f"{cas}/v1/shards", headers, shard_bytes([(SHA256, [(XORB, len(DATA), 0, 2)])]))
    assert answer.status_code == 200


def test_a_repository_made_again_has_another_upload_space(server: Running, repo: str) -> None:
    cas, headers = write_token(server, repo)
    send(f"{cas}/v1/xorbs/default/{XORB}", headers, xorb_bytes(CHUNKS))
    server.remove(repo)
    gone = send(f"{cas}/v1/shards", headers, shard_bytes([(SHA256, [(XORB, len(DATA), 0, 2)])]))
    server.create(repo)

    again, _ = write_token(server, repo)

    assert again != cas
    assert gone.status_code == 404


def test_telemetry_is_answered_and_dropped(server: Running) -> None:
    assert httpx.post(f"{server.url}/v1/telemetry", json={"a": 1}).status_code == 200


def place(epoch: int) -> XorbPlace:
    return XorbPlace(scope="1-2", epoch=epoch, hash=parse_xet_hash(XORB))


def put(store: DiskXorbs, epoch: int) -> None:
    with store.writer(place(epoch)) as writer:
        writer.write(xorb_bytes(CHUNKS))
        writer.keep()


def test_xorbs_are_kept_one_epoch_and_a_day(tmp_path: Path) -> None:
    store, now = DiskXorbs(tmp_path), 1_000_000 * float(EPOCH_S)
    epoch = epoch_at(now)
    put(store, epoch)

    store.sweep(now + EPOCH_S + GRACE_S - 1)
    kept = store.chunks(place(epoch))
    store.sweep(now + EPOCH_S + GRACE_S)

    assert kept is not None
    assert store.chunks(place(epoch)) is None


@pytest.mark.parametrize(
    ("after_s", "expected"), [(-1, False), (0, True), (EPOCH_S + GRACE_S - 1, True), (EPOCH_S + GRACE_S, False)]
)
def test_an_epoch_is_open_as_long_as_its_xorbs_are_kept(after_s: float, expected: object) -> None:
    assert is_open(20_000, 20_000 * EPOCH_S + after_s) == expected


def test_a_xorb_that_was_swept_in_between_is_a_plain_word(tmp_path: Path) -> None:
    store = DiskXorbs(tmp_path)
    put(store, 5)
    spans: Any = store.chunks(place(5))
    store.sweep(9.0 * EPOCH_S)

    with pytest.raises(MalformedXet, match="expired"):
        list(store.read(place(5), spans))
