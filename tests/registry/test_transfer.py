"""Bytes that go wrong on the way: cut connections, wrong contents, ranges, links that are not one's own."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapterhub_registry.access import tokens

from tests.registry.conftest import Served

CUT_AT = 25_000_000
SIZE = 60_000_000
PART = 5_242_880

Send = Callable[..., httpx.Response]


@pytest.fixture
def send(served: Served) -> Send:
    def send(method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {served.token}"} | options.pop("headers", {})
        url = path if path.startswith("http") else served.url + path
        return httpx.request(method, url, headers=headers, timeout=60, **options)

    return send


@pytest.fixture
def repo(send: Send, request: pytest.FixtureRequest) -> str:
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:40]
    send("POST", "/api/repos/create", json={"organization": "transfer", "name": name}).raise_for_status()
    return f"transfer/{name}"


def batch(send: Send, repo: str, data: bytes, *, transfers: tuple[str, ...] = ("basic", "multipart")) -> dict[str, Any]:
    item = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}
    body = {"operation": "upload", "transfers": list(transfers), "objects": [item], "hash_algo": "sha256"}
    answer = send("POST", f"/{repo}.git/info/lfs/objects/batch", json=body)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()["objects"][0]
    return found


def commit(send: Send, repo: str, *lines: tuple[str, dict[str, Any]]) -> httpx.Response:
    items = [("header", {"summary": "by hand"}), *lines]
    body = "\n".join(json.dumps({"key": key, "value": value}) for key, value in items)
    return send("POST", f"/api/models/{repo}/commit/main", content=body)


def named(data: bytes, path: str = "w.bin") -> tuple[str, dict[str, Any]]:
    return ("lfsFile", {"path": path, "algo": "sha256", "oid": hashlib.sha256(data).hexdigest(), "size": len(data)})


def stored(served: Served, data: bytes) -> bool:
    digest = hashlib.sha256(data).hexdigest()
    return (served.root / "blobs" / "sha256" / digest[:2] / digest[2:4] / digest).exists()


def put(send: Send, repo: str, data: bytes) -> None:
    send("PUT", batch(send, repo, data)["actions"]["upload"]["href"], content=data).raise_for_status()
    commit(send, repo, named(data)).raise_for_status()


# ------------------------------------------------------------ wrong bytes
def test_wrong_bytes_of_the_right_length_are_refused_and_not_kept(served: Served, send: Send, repo: str) -> None:
    good, wrong = b"a" * 1000, b"b" * 1000
    href = batch(send, repo, good)["actions"]["upload"]["href"]

    answer = send("PUT", href, content=wrong)

    assert answer.status_code == 400
    assert answer.headers["x-error-code"] == "DigestMismatch"
    assert not stored(served, wrong)
    assert not stored(served, good)
    assert commit(send, repo, named(good)).status_code == 400
    assert not [path for path in (served.root / "uploads").iterdir() if path.is_file()]


@pytest.mark.parametrize("length", [0, 999, 1001, 5000])
def test_another_length_than_announced_is_refused(served: Served, send: Send, repo: str, length: int) -> None:
    good = os.urandom(1000)
    href = batch(send, repo, good)["actions"]["upload"]["href"]

    answer = send("PUT", href, content=(good * 5)[:length])

    assert answer.status_code == 400
    assert not stored(served, good)


def test_an_upload_that_is_cut_off_leaves_nothing_and_can_be_run_again(served: Served, send: Send, repo: str) -> None:
    data = os.urandom(3_000_000)
    href = batch(send, repo, data)["actions"]["upload"]["href"]
    with socket.create_connection(served.address) as raw:
        head = f"PUT {href.removeprefix(served.url)} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        raw.sendall(head.encode() + data[:2_000_000])

    assert not stored(served, data)
    assert send("PUT", href, content=data).status_code == 200
    assert commit(send, repo, named(data)).status_code == 200


def test_parts_make_one_file(served: Served, send: Send, repo: str) -> None:
    data = os.urandom(2 * PART + 100)
    action = batch(send, repo, data)["actions"]["upload"]
    etags = [
        send("PUT", action["header"][str(n)], content=data[(n - 1) * PART : n * PART]).headers["etag"]
        for n in (1, 2, 3)
    ]

    parts = [{"partNumber": n, "etag": etag} for n, etag in enumerate(etags, 1)]
    done = send("POST", action["href"], json={"oid": hashlib.sha256(data).hexdigest(), "parts": parts})
    again = send("POST", action["href"], json={"oid": hashlib.sha256(data).hexdigest(), "parts": parts})

    assert action["header"]["chunk_size"] == str(PART)
    assert (done.status_code, again.status_code) == (200, 200)
    assert stored(served, data)
    assert commit(send, repo, named(data)).status_code == 200


def test_parts_that_are_missing_or_out_of_order_are_refused(served: Served, send: Send, repo: str) -> None:
    data = os.urandom(2 * PART + 100)
    action = batch(send, repo, data)["actions"]["upload"]
    etags = {
        n: send("PUT", action["header"][str(n)], content=data[(n - 1) * PART : n * PART]).headers["etag"]
        for n in (1, 2, 3)
    }

    for kept in ([1, 2], [2, 1, 3], []):  # `test_parts` has the others
        parts = [{"partNumber": n, "etag": etags[n]} for n in kept]
        answer = send("POST", action["href"], json={"oid": hashlib.sha256(data).hexdigest(), "parts": parts})

        assert (kept, answer.status_code) == (kept, 400)
        assert not stored(served, data)


# ------------------------------------------------------------ rights to bytes
def test_a_link_holds_for_its_object_and_purpose_only(served: Served, send: Send, repo: str) -> None:
    data = b"link" * 100
    token = batch(send, repo, data)["actions"]["upload"]["href"].rpartition("/")[2]
    claims = tokens.check(token, (served.root / "secret").read_bytes(), purpose="lfs-object")
    forged = tokens.sign({**claims, "oid": "0" * 64}, os.urandom(32), 60)
    read = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()
    sealed = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    sealed[len(sealed) // 2] ^= 1
    changed = base64.urlsafe_b64encode(sealed).decode().rstrip("=")
    mine = (f"object/{forged}", f"object/{read}", f"object/{changed}", f"object/{token[:-2]}", "object/x")

    answers = [httpx.put(f"{served.url}/_lfs/{place}", content=data) for place in (*mine, f"part/{token}")]

    assert [answer.status_code for answer in answers] == [403] * 6
    assert not stored(served, data)


def test_knowing_a_digest_gives_no_access_to_private_bytes(served: Served, send: Send, repo: str) -> None:
    secret = os.urandom(500)
    put(send, repo, secret)
    send("PUT", f"/api/models/{repo}/settings", json={"visibility": "private"}).raise_for_status()
    token = send("POST", "/api/adapt/v1/tokens", json={"user": "eve", "role": "write"}).json()["token"]
    as_eve = {"Authorization": f"Bearer {token}"}
    mine = "eve/" + repo.partition("/")[2][-60:]
    created = {"name": mine.partition("/")[2]}
    send("POST", "/api/repos/create", json=created, headers=as_eve).raise_for_status()

    def eve(method: str, path: str, **options: Any) -> httpx.Response:
        return send(method, path, headers=as_eve, **options)

    assert "actions" in batch(eve, mine, secret), "the server must ask for the bytes"
    assert commit(eve, mine, named(secret)).status_code == 400


def test_an_lfs_file_that_was_not_uploaded_cannot_be_committed(send: Send, repo: str) -> None:
    answer = commit(send, repo, named(b"never sent"))

    assert answer.status_code == 400
    assert answer.headers["x-error-code"] == "BadRequest"


# ------------------------------------------------------------ downloads
RANGES = [
    ("bytes=0-9", 206, slice(0, 10)),
    ("bytes=990-", 206, slice(990, 1000)),
    ("bytes=-5", 206, slice(995, 1000)),
    ("bytes=-5000", 206, slice(0, 1000)),
    ("bytes=500-5000", 206, slice(500, 1000)),
    ("bytes=9-0", 200, slice(0, 1000)),
    ("bytes=0-1,5-6", 200, slice(0, 1000)),
    ("bytes=-", 200, slice(0, 1000)),
    ("lines=0-1", 200, slice(0, 1000)),
    ("bytes=" + ",".join("0-1" for _ in range(1000)), 200, slice(0, 1000)),
]


@pytest.mark.parametrize(("header", "status", "part"), RANGES)
def test_ranges(send: Send, repo: str, header: str, status: int, part: slice) -> None:
    data = random.Random(header).randbytes(1000)
    put(send, repo, data)

    answer = send("GET", f"/{repo}/resolve/main/w.bin", headers={"Range": header})

    assert (answer.status_code, answer.content) == (status, data[part])
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {part.start}-{part.stop - 1}/1000"


@pytest.mark.parametrize("header", ["bytes=1000-", "bytes=5000-6000", "bytes=-0"])
def test_ranges_outside_the_file(send: Send, repo: str, header: str) -> None:
    put(send, repo, os.urandom(1000))

    answer = send("GET", f"/{repo}/resolve/main/w.bin", headers={"Range": header})

    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */1000")


def test_head_tells_everything_without_a_redirect(send: Send, repo: str) -> None:
    data = os.urandom(1000)
    put(send, repo, data)

    answer = send("HEAD", f"/{repo}/resolve/main/w.bin", headers={"Accept-Encoding": "gzip"})

    digest = f'"{hashlib.sha256(data).hexdigest()}"'
    told = {name: answer.headers.get(name) for name in ("etag", "x-linked-etag", "x-linked-size", "content-length")}
    assert answer.status_code == 200
    assert told == {"etag": digest, "x-linked-etag": digest, "x-linked-size": "1000", "content-length": "1000"}
    assert len(answer.headers["x-repo-commit"]) == 40
    assert not {"x-xet-hash", "content-encoding", "location"} & set(answer.headers)


class CuttingProxy:
    """Passes connections on, and cuts the first that carried `CUT_AT` bytes to the client."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cuts = 0
        self.ranges: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            threading.Thread(target=self._pass_on, args=(near, far), daemon=True).start()
            threading.Thread(target=self._pass_back, args=(far, near), daemon=True).start()

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        try:
            while data := near.recv(1 << 16):
                lines = data.decode("latin-1").lower().split("\r\n")
                self.ranges += [line.partition(": ")[2] for line in lines if line.startswith("range: ")]
                far.sendall(data)
            far.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def _pass_back(self, far: socket.socket, near: socket.socket) -> None:
        passed = 0
        try:
            while data := far.recv(1 << 16):
                near.sendall(data)
                passed += len(data)
                if passed > CUT_AT and not self.cuts:
                    self.cuts += 1
                    break
        except OSError:
            pass
        for end in (near, far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # the other thread still reads from it: closing alone would not tell
            end.close()


def test_a_download_that_is_cut_goes_on_where_it_was(served: Served, send: Send, repo: str, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(SIZE)
    action = batch(send, repo, data, transfers=("basic",))["actions"]["upload"]
    send("PUT", action["href"], content=data).raise_for_status()
    commit(send, repo, named(data)).raise_for_status()
    proxy = CuttingProxy(served.address)
    code = f"from huggingface_hub import hf_hub_download; print(hf_hub_download({repo!r}, 'w.bin'))"
    environment = served.environment(tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{proxy.port}")

    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    proxy.close()

    assert done.returncode == 0, done.stderr
    assert (proxy.cuts, [text for text in proxy.ranges if text != "bytes=0-"]) == (1, ["bytes=20971520-"])
    assert hashlib.sha256(Path(done.stdout.strip()).read_bytes()).digest() == hashlib.sha256(data).digest()
