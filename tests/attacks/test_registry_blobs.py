"""Attacks on the LFS routes: what a small request may cost the server, and bytes that the server only believes it has."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import obstore
import pytest
from adapterhub_registry.api.hub.upload import DIRECT_BYTES, MAX_LINKS
from adapterhub_registry.app import create_app
from adapterhub_registry.settings import S3Place, ServerLimits, load_settings
from adapterhub_registry.upkeep.holdings import check_holdings

from tests.registry.conftest import MODES
from tests.registry.pushing import Push
from tests.registry.running import Running, running
from tests.registry.shared_servers import CREDENTIALS, S3

TIB = 1 << 40
MEMORY = 20_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("registry")) as server:
        server.post("/api/repos/create", {"organization": "acme", "name": "x"})
        yield server


def asked(*sizes: int) -> dict[str, Any]:
    objects = [{"oid": f"{number:064x}", "size": size} for number, size in enumerate(sizes)]
    return {"operation": "upload", "transfers": ["multipart"], "objects": objects, "hash_algo": "sha256"}


def links_in(answer: dict[str, Any]) -> list[int]:
    """The number of links to parts of each object."""
    headers = [item.get("actions", {}).get("upload", {}).get("header", {}) for item in answer["objects"]]
    return [sum(name.isdecimal() for name in header) for header in headers]


@pytest.mark.parametrize("count", [1, 15, 40, 1000])
def test_a_batch_of_giants_costs_little_memory(server: Running, count: int) -> None:
    path, body = "/acme/x.git/info/lfs/objects/batch", asked(*[TIB] * count)
    server.post(path, asked(1))  # what is loaded once

    tracemalloc.start()
    answer = server.post(path, body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < MEMORY
    if count * TIB > MAX_LINKS * DIRECT_BYTES:
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (413, "TooLarge")
        assert "fewer files" in answer.json()["error"]
    else:
        assert answer.status_code == 200
        assert sum(links_in(answer.json())) <= MAX_LINKS + count


def test_parts_of_a_large_batch_grow_and_cover_every_byte(server: Running) -> None:
    sizes = [TIB, 300 << 20, 7 * (1 << 30) + 1, 5]

    answer = server.post("/acme/x.git/info/lfs/objects/batch", asked(*sizes)).json()

    headers = [item["actions"]["upload"]["header"] for item in answer["objects"]]
    assert sum(links_in(answer)) <= MAX_LINKS + len(sizes)
    for size, header in zip(sizes[:3], headers, strict=False):
        part = int(header["chunk_size"])
        assert part >= ServerLimits().part_bytes
        assert -(-size // part) == len(header) - 1


def test_a_size_over_the_limit_is_refused_for_its_object_alone(server: Running) -> None:
    answer = server.post("/acme/x.git/info/lfs/objects/batch", asked(TIB + 1, 5))

    first, second = answer.json()["objects"]
    assert answer.status_code == 200
    assert first["error"]["code"] == 422
    assert str(TIB) in first["error"]["message"]
    assert "actions" not in first
    assert "upload" in second["actions"]


def test_no_link_is_signed_for_a_client_that_has_left(tmp_path: Path) -> None:
    """The application itself, without a network: the connection ends as soon as the body is read."""
    settings = load_settings(tmp_path)
    app = create_app(settings)
    token = app.state.registry.tokens.create("ann", "admin")

    async def call(method: str, path: str, body: dict[str, Any], *, stays: bool) -> int:
        raw, status = json.dumps(body).encode(), [0]
        messages = [{"type": "http.request", "body": raw, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            if stays:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            status[0] = message.get("status", status[0])

        headers = [(b"host", b"h"), (b"authorization", f"Bearer {token}".encode())]
        scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
        more = {"headers": headers, "scheme": "http", "client": ("127.0.0.1", 1), "http_version": "1.1"}
        await app(scope | more, receive, send)
        return status[0]

    async def attack() -> tuple[int, int]:
        await call("POST", "/api/repos/create", {"organization": "acme", "name": "x"}, stays=True)
        path = "/acme/x.git/info/lfs/objects/batch"
        return await call("POST", path, asked(TIB), stays=True), await call("POST", path, asked(TIB), stays=False)

    stayed, left = asyncio.run(attack())
    app.state.registry.db.close()

    assert (stayed, left) == (200, 400)


# ------------------------------------------------------------ bytes that the server only believes it has
CLIENT = """
import json, sys
from huggingface_hub import HfApi
for line in sys.stdin:
    url, token, repo, folder = json.loads(line)
    try:
        api = HfApi(endpoint=url, token=token)
        api.create_repo(repo, exist_ok=True)
        print(json.dumps(api.upload_folder(repo_id=repo, folder_path=folder).oid), flush=True)
    except Exception as error:
        print(json.dumps(repr(error)), flush=True)
"""
WEIGHTS, NOTE = "adapter_model.safetensors", "notes.txt"
Client = Callable[[Running, str, Path], str]


@contextlib.contextmanager
def client_of(mode: str, home: Path) -> Iterator[Client]:
    """The stock client in a process that stays: it pushes a folder and gives the commit, or the error."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    more = {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **MODES[mode]}
    command, pipe = [sys.executable, "-c", CLIENT], subprocess.PIPE
    process = subprocess.Popen(command, env=mine | more, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    assert process.stdin is not None
    assert process.stdout is not None

    def push(server: Running, repo: str, folder: Path) -> str:
        process.stdin.write(json.dumps([server.url, server.token, repo, str(folder)]) + "\n")
        process.stdin.flush()
        return str(json.loads(process.stdout.readline()))

    try:
        yield push
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(60)


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Client]]:
    with (
        client_of("lfs", tmp_path_factory.mktemp("lfs")) as lfs,
        client_of("xet", tmp_path_factory.mktemp("xet")) as xet,
    ):
        yield {"lfs": lfs, "xet": xet}


@dataclass(frozen=True)
class DiskPlace:
    """The blobs of a registry in its folder, as their owner sees them."""

    server: Running

    def path(self, sha256: str) -> Path:
        return self.server.root / "blobs" / "sha256" / sha256[:2] / sha256[2:4] / sha256

    def remove(self, sha256: str) -> None:
        self.path(sha256).unlink()

    def write(self, sha256: str, content: bytes) -> None:
        self.path(sha256).chmod(0o644)
        self.path(sha256).write_bytes(content)


@dataclass(frozen=True)
class BucketPlace:
    """The same in a bucket."""

    server: Running
    store: Any

    def key(self, sha256: str) -> str:
        return f"reg/blobs/sha256/{sha256[:2]}/{sha256[2:4]}/{sha256}"

    def remove(self, sha256: str) -> None:
        obstore.delete(self.store, [self.key(sha256)])

    def write(self, sha256: str, content: bytes) -> None:
        obstore.put(self.store, self.key(sha256), content)


@pytest.fixture(scope="module")
def on_disk(server: Running) -> DiskPlace:
    return DiskPlace(server)


@pytest.fixture(scope="module")
def in_bucket(s3_server: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketPlace]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        place = S3Place(bucket=s3_server.new_bucket(), prefix="reg/", endpoint=s3_server.endpoint)
        with running(tmp_path_factory.mktemp("bucket"), s3=place) as server:
            yield BucketPlace(server, s3_server.store(place.bucket))


def fetched(server: Running, repo: str, path: str) -> bytes:
    headers = {"Authorization": f"Bearer {server.token}"}
    try:
        answer = httpx.get(f"{server.url}/{repo}/resolve/main/{path}", headers=headers, follow_redirects=True)
    except httpx.HTTPError as error:  # fewer bytes than were announced
        return repr(error).encode()
    return answer.content if answer.status_code == httpx.codes.OK else answer.reason_phrase.encode()


@pytest.mark.parametrize("fault", ["missing", "shorter", "damaged"])
@pytest.mark.parametrize("way", ["lfs", "xet", "regular"])
@pytest.mark.parametrize("place", ["on_disk", "in_bucket"])
def test_a_push_of_the_same_bytes_heals_what_was_lost(
    request: pytest.FixtureRequest, clients: dict[str, Client], tmp_path: Path, place: str, way: str, fault: str
) -> None:
    store = request.getfixturevalue(place)
    server, push = store.server, clients["xet" if way == "xet" else "lfs"]
    repo, name = f"acme/{place}-{way}-{fault}", NOTE if way == "regular" else WEIGHTS
    content = (f"{repo} ".encode() * 3000)[:70_000]  # beyond what a server keeps in memory
    (tmp_path / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    made = push(server, repo, tmp_path)
    assert fetched(server, repo, name) == content

    if fault == "missing":
        store.remove(digest)
    else:
        store.write(digest, content[:-1] if fault == "shorter" else b"X" + content[1:])
    if fault == "damaged":  # of the right size: only a check that reads it can tell
        assert any(
            digest in line
            for line in check_holdings(server.registry.db, server.registry.blobs, read_bytes=True).problems
        )
    assert fetched(server, repo, name) != content
    again = push(server, repo, tmp_path)

    assert fetched(server, repo, name) == content
    assert again == made, "the same bytes are the same commit"


def test_a_client_that_believes_its_chunks_are_here_sends_them_again_after_one_refusal(
    server: Running, on_disk: DiskPlace, clients: dict[str, Client], tmp_path: Path
) -> None:
    """After a restore, for instance, which brings no chunks back: the client remembers for weeks that it sent them."""
    content = b"chunks that are lost " * 5000
    (tmp_path / WEIGHTS).write_bytes(content)
    made = clients["xet"](server, "acme/chunks", tmp_path)
    on_disk.remove(hashlib.sha256(content).hexdigest())
    shutil.rmtree(server.root / "xorbs")

    refused, again = (clients["xet"](server, "acme/chunks", tmp_path) for _ in range(2))

    assert "400" in refused
    assert again == made
    assert fetched(server, "acme/chunks", WEIGHTS) == content


@pytest.mark.parametrize("mode", ["lfs", "xet"])
def test_lost_bytes_come_back_to_a_namespace_that_is_full(
    clients: dict[str, Client], tmp_path: Path, mode: str
) -> None:
    content = os.urandom(60_000)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / WEIGHTS).write_bytes(content)
    with running(tmp_path / "root", limits=ServerLimits(namespace_bytes=70_000)) as server:
        made = clients[mode](server, "acme/full", tmp_path / "folder")
        DiskPlace(server).remove(hashlib.sha256(content).hexdigest())

        again = clients[mode](server, "acme/full", tmp_path / "folder")

        assert again == made
        assert fetched(server, "acme/full", WEIGHTS) == content


def test_a_small_file_that_is_lost_from_the_bucket_is_not_believed_to_be_kept_in_memory(
    in_bucket: BucketPlace, clients: dict[str, Client], tmp_path: Path
) -> None:
    server, content = in_bucket.server, b"small enough to be kept in the memory of the server"
    (tmp_path / NOTE).write_bytes(content)
    clients["lfs"](server, "acme/kept", tmp_path)
    digest = hashlib.sha256(content).hexdigest()
    in_bucket.remove(digest)

    clients["lfs"](server, "acme/kept", tmp_path)

    assert obstore.get(in_bucket.store, in_bucket.key(digest)).bytes().to_bytes() == content


def test_a_commit_does_not_name_bytes_that_are_gone(server: Running, on_disk: DiskPlace) -> None:
    """Without asking for links again, as a client does that believes its first answer."""
    push = Push(repo="acme/gone", weights=b"w" * 5000)
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.token}"}) as client:
        client.post("/api/repos/create", json={"organization": "acme", "name": "gone"})
        push.send(client)
        on_disk.remove(push.oid)
        verified = client.post(f"/{push.repo}.git/info/lfs/verify", json={"oid": push.oid, "size": 5000})
        named = client.post(f"/api/models/{push.repo}/commit/main", content=push._lines())

    assert (verified.status_code, named.status_code) == (404, 400)
    assert "is missing or has another size" in named.json()["error"]


def test_what_is_stored_and_right_is_not_written_again(server: Running, on_disk: DiskPlace) -> None:
    content = b"right from the beginning"
    stored = server.registry.blobs.put([content], size=len(content))
    before = on_disk.path(stored.sha256).stat()

    server.registry.blobs.put([content], size=len(content))

    after = on_disk.path(stored.sha256).stat()
    assert before.st_ino == after.st_ino
    assert before.st_mtime_ns <= after.st_mtime_ns  # `gc` sees that the bytes came again


def test_a_mark_goes_when_the_bytes_are_right_again(server: Running, on_disk: DiskPlace) -> None:
    push, holdings = Push(repo="acme/restored", weights=b"r" * 5000), server.registry
    asked = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": push.oid, "size": 5000}]}

    def is_wanted() -> bool:
        answer = server.post(f"/{push.repo}.git/info/lfs/objects/batch", asked).json()
        return "actions" in answer["objects"][0]

    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.token}"}) as client:
        push.run(client)
    wanted = [is_wanted()]
    for content in (b"x" * 5000, b"r" * 5000):  # damaged, and restored from a backup
        on_disk.write(push.oid, content)
        check_holdings(holdings.db, holdings.blobs, read_bytes=True)
        wanted.append(is_wanted())

    assert wanted == [False, True, False]
