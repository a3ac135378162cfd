"""Attacks on uploads by Xet: small uploads that unpack to much, and xorbs that are not what their address says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import lz4.frame
import obstore
import pytest
from adapterhub_registry.settings import S3Place, ServerLimits
from adapterhub_registry.storage.s3 import Bucket, S3Xorbs
from adapterhub_registry.storage.xet import (
    MAX_CHUNK_BYTES,
    MAX_XORB_BYTES,
    DiskXorbs,
    MalformedXet,
    XetHash,
    XorbPlace,
    XorbStore,
)

from tests.registry.running import Running, running
from tests.registry.shared_servers import CREDENTIALS, S3
from tests.registry.xet_wire import shard_bytes, xorb_bytes, xorb_name

ZEROS = [(bytes(MAX_CHUNK_BYTES), 1)] * (MAX_XORB_BYTES // MAX_CHUNK_BYTES)


class Space:
    """The upload space of a new repository."""

    def __init__(self, server: Running, name: str, token: str = "") -> None:
        self.server = server
        server.post("/api/repos/create", {"organization": "acme", "name": name})
        answer = server.get(f"/api/models/acme/{name}/xet-write-token/main", token=token).json()
        self._url, self._headers = answer["casUrl"], {"Authorization": f"Bearer {answer['accessToken']}"}

    def xorb(self, name: str, content: bytes) -> httpx.Response:
        return httpx.post(f"{self._url}/v1/xorbs/default/{name}", headers=self._headers, content=content, timeout=60)

    def send(self, chunks: list[tuple[bytes, int]]) -> str:
        name = xorb_name(chunks)
        self.xorb(name, xorb_bytes(chunks)).raise_for_status()
        return name

    def shard(self, sha256: str, segments: list[tuple[str, int, int, int]]) -> httpx.Response:
        shard = shard_bytes([(sha256, segments)])
        return httpx.post(f"{self._url}/v1/shards", headers=self._headers, content=shard, timeout=60)

    def repeated(self, xorb: str, chunk: bytes, times: int) -> httpx.Response:
        """The shard of a file that names the only chunk of a xorb again and again."""
        return self.shard(hashlib.sha256(chunk * times).hexdigest(), [(xorb, len(chunk), 0, 1)] * times)

    def files(self) -> dict[str, int]:
        """Everything that lies in the folder of the registry besides its database, and its size."""
        folders = (self.server.root / name for name in ("blobs", "uploads", "xorbs"))
        return {str(p): p.stat().st_size for folder in folders for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("registry")) as server:
        yield server


# ------------------------------------------------------------ small uploads that unpack to much
def test_a_xorb_of_zeros_that_is_named_48_times_is_refused_before_it_is_unpacked(server: Running) -> None:
    space = Space(server, "bomb")
    xorb = space.send(ZEROS)
    before = space.files()

    answer = space.shard("ef" * 32, [(xorb, MAX_XORB_BYTES, 0, len(ZEROS))] * 48)

    assert (answer.status_code, answer.headers["X-Error-Code"]) == (413, "TooLarge")
    assert "HF_HUB_DISABLE_XET=1" in answer.json()["error"]
    assert space.files() == before


def test_a_file_of_one_chunk_again_and_again_is_accepted(server: Running) -> None:
    space = Space(server, "repeated")
    chunk = bytes(MAX_CHUNK_BYTES)

    answer = space.repeated(space.send([(chunk, 1)]), chunk, 100)

    assert answer.status_code == 200
    assert server.registry.blobs.size(hashlib.sha256(chunk * 100).hexdigest()) == 100 * MAX_CHUNK_BYTES


def test_what_chunks_are_good_for_is_counted_over_all_shards_of_a_user(tmp_path: Path) -> None:
    with running(tmp_path, limits=ServerLimits(xet_free_bytes=1, xet_ratio=16)) as server:
        chunk = os.urandom(10_000)
        first, second = Space(server, "one"), Space(server, "two")
        xorb, sent = first.send([(chunk, 0)]), len(xorb_bytes([(chunk, 0)]))

        too_much = first.repeated(xorb, chunk, 17)
        most = first.repeated(xorb, chunk, 15)
        used = first.repeated(xorb, chunk, 2)
        second.send([(chunk, 0)])  # as many bytes again
        more = second.repeated(xorb, chunk, 14)
        stranger = Space(server, "two", server.registry.tokens.create("bob", "write", namespaces=["acme/*"]))
        other = stranger.repeated(xorb, chunk, 1)

    assert 17 * len(chunk) > 16 * sent + 1 > 15 * len(chunk)
    assert [a.status_code for a in (too_much, most, used, more, other)] == [413, 200, 413, 200, 413]


def test_a_shard_that_is_refused_over_and_over_does_not_unpack_for_free(tmp_path: Path) -> None:
    """Each attempt costs the server as much as a good one."""
    with running(tmp_path, limits=ServerLimits(xet_free_bytes=1, xet_ratio=16)) as server:
        space, chunk = Space(server, "one"), os.urandom(10_000)
        xorb = space.send([(chunk, 0)])

        answers = [space.shard("ef" * 32, [(xorb, len(chunk), 0, 1)] * 6).status_code for _ in range(4)]

    assert answers == [400, 400, 413, 413]


# ------------------------------------------------------------ xorbs that are not what their address says
CHUNK = os.urandom(MAX_CHUNK_BYTES)
BROKEN = {
    "of another hash": xorb_bytes([(CHUNK[:-1] + b"?", 0)]),
    "in another order": xorb_bytes([(CHUNK[:1000], 0), (CHUNK[2000:], 0), (CHUNK[1000:2000], 0)]),
    "that does not unpack": xorb_bytes([(CHUNK, 0)])[:4] + b"\1" + xorb_bytes([(CHUNK, 0)])[5:],
    "that unpacks to more": b"\0" + (1 << 12).to_bytes(3, "little") + b"\1" + (5).to_bytes(3, "little"),
}
BROKEN["that unpacks to more"] += lz4.frame.compress(bytes(1 << 20)).ljust(1 << 12, b"\0")


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_xorb_is_refused_and_not_kept(server: Running, case: str) -> None:
    space, before = Space(server, "broken"), None
    before = space.files()

    answer = space.xorb(xorb_name([(CHUNK, 0)]), BROKEN[case])

    assert (answer.status_code, answer.headers["X-Error-Code"]) == (400, "BadRequest")
    assert space.files() == before


def test_a_second_writer_does_not_replace_a_xorb_before_the_shard_of_the_first(server: Running) -> None:
    first = Space(server, "race")
    xorb = first.send([(CHUNK, 0)])
    bob = server.registry.tokens.create("bob", "write", namespaces=["acme/*"])
    second = Space(server, "race", bob)
    before = first.files()

    other = second.xorb(xorb, xorb_bytes([(CHUNK[::-1], 0)]))
    packed = second.xorb(xorb, xorb_bytes([(CHUNK, 1)]))  # the same chunks, packed otherwise
    after = first.files()
    answer = first.repeated(xorb, CHUNK, 1)

    assert (other.status_code, packed.status_code) == (400, 200)
    assert before == after
    assert answer.status_code == 200


Stored = tuple[XorbStore, Callable[[XorbPlace], bytes], Callable[[XorbPlace, bytes], Any]]


@pytest.fixture(params=["disk", "bucket"])
def stored(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stored:
    """A store, and ways to read and write the file or object of a xorb behind its back."""
    if request.param == "disk":

        def path(place: XorbPlace) -> Path:
            return tmp_path / str(place.epoch) / place.scope / place.hash

        return (
            DiskXorbs(tmp_path),
            lambda place: path(place).read_bytes(),
            lambda place, raw: path(place).write_bytes(raw),
        )
    s3: S3 = request.getfixturevalue("s3_server")
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    bucket = s3.new_bucket()

    def key(place: XorbPlace) -> str:
        return f"reg/xorbs/{place.epoch}/{place.scope}/{place.hash}"

    return (
        S3Xorbs(Bucket(S3Place(bucket=bucket, prefix="reg/", endpoint=s3.endpoint))),
        lambda place: obstore.get(s3.store(bucket), key(place)).bytes().to_bytes(),
        lambda place, raw: obstore.put(s3.store(bucket), key(place), raw),
    )


def test_a_stored_xorb_is_replaced_only_when_it_is_damaged(stored: Stored) -> None:
    store, read, write = stored
    chunks = [(CHUNK, 0)]
    place = XorbPlace(scope="1-2", epoch=3, hash=XetHash(xorb_name(chunks)))

    def put(raw: bytes) -> None:
        with store.writer(place) as writer:
            writer.write(raw)
            writer.keep()

    put(xorb_bytes(chunks))
    put(xorb_bytes([(CHUNK, 1)]))
    assert read(place) == xorb_bytes(chunks)
    with pytest.raises(MalformedXet, match="as in its address"):
        put(xorb_bytes([(CHUNK[::-1], 0)]))
    assert read(place) == xorb_bytes(chunks)

    write(place, xorb_bytes(chunks)[:-1] + b"?")
    put(xorb_bytes([(CHUNK, 1)]))

    assert read(place) == xorb_bytes([(CHUNK, 1)])
