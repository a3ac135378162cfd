"""Blobs in a bucket: what clients send there by themselves is checked before it counts, and never in place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import obstore
import pytest
from adapterhub_registry.settings import S3Place
from adapterhub_registry.storage import s3
from adapterhub_registry.storage.blobs import StoreUnreachable, UploadId
from adapterhub_registry.storage.s3 import Bucket, S3Blobs, S3Xorbs
from adapterhub_registry.storage.xet import EPOCH_S, GRACE_S, XorbPlace, parse_xet_hash

from adapterhub.core.errors import BlobNotFound, DigestMismatch, Malformed
from tests.registry.running import Running, running
from tests.registry.shared_servers import CREDENTIALS, S3
from tests.registry.xet_wire import xorb_bytes, xorb_name

BIG = 300_000  # beyond what is kept in memory and written at once
UPLOAD, GIVEN_UP = UploadId("an-upload-of-somebody", "owner-01"), UploadId("an-upload-given-up", "owner-01")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def place(s3_server: S3) -> Iterator[S3Place]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield S3Place(bucket=s3_server.new_bucket(), prefix="reg/", endpoint=s3_server.endpoint)


@pytest.fixture
def blobs(place: S3Place) -> S3Blobs:
    return S3Blobs(Bucket(place))


@pytest.fixture
def keys(place: S3Place, s3_server: S3) -> Callable[[], set[str]]:
    """The keys in the bucket, without what the blobs of other tests are."""
    before = set(s3_server.keys(place.bucket))
    return lambda: {key.removeprefix("reg/") for key in set(s3_server.keys(place.bucket)) - before}


def halves(data: bytes) -> Iterator[bytes]:
    yield data[: len(data) // 2]
    yield data[len(data) // 2 :]


@pytest.mark.parametrize("length", [0, 1, 1000, BIG])
@pytest.mark.parametrize("announced", [True, False])
def test_what_is_put_can_be_read_by_another_server(
    place: S3Place, blobs: S3Blobs, length: int, *, announced: bool
) -> None:
    data = os.urandom(length)

    stored = blobs.put(halves(data), sha256(data), length if announced else None)

    other = S3Blobs(Bucket(place))
    git = hashlib.sha1(b"blob %d\0" % length + data, usedforsecurity=False).hexdigest()
    assert stored == (sha256(data), git, length)
    assert other.holds({stored.sha256: length}) == {stored.sha256}
    assert other.size(stored.sha256) == length
    assert b"".join(other.open(stored.sha256)) == data
    assert b"".join(other.open(stored.sha256, length // 3, length // 2)) == data[length // 3 : length // 2]
    assert b"".join(blobs.open(stored.sha256, 0, length)) == data
    assert httpx.get(str(other.download_link(stored.sha256))).content == data


@pytest.mark.parametrize("length", [1000, BIG])
@pytest.mark.parametrize("wrong", ["digest", "more", "fewer", "broken"])
def test_what_is_not_as_announced_leaves_nothing(
    blobs: S3Blobs, keys: Callable[[], set[str]], length: int, wrong: str
) -> None:
    data = os.urandom(length)

    def chunks() -> Iterator[bytes]:
        yield from halves(data)
        if wrong == "broken":
            raise OSError("the client went away")

    size = {"more": length - 1, "fewer": length + 1}.get(wrong, length)
    with pytest.raises((DigestMismatch, Malformed, OSError)):
        blobs.put(chunks(), sha256(b"other") if wrong == "digest" else sha256(data), size)

    assert keys() == set()


def test_what_is_missing_is_said_before_the_first_byte(blobs: S3Blobs) -> None:
    missing = sha256(b"never stored")

    assert not blobs.holds({missing: 5})
    for read in (blobs.size, blobs.open, lambda name: blobs.open(name, 5, 9)):
        with pytest.raises(BlobNotFound):
            read(missing)


# ------------------------------------------------------------ by a link
def test_what_came_by_a_link_is_checked_and_moved(blobs: S3Blobs, keys: Callable[[], set[str]]) -> None:
    data = os.urandom(BIG)
    httpx.put(str(blobs.upload_link(UPLOAD)), content=data).raise_for_status()

    stored = blobs.take(UPLOAD.object, sha256(data), BIG)

    assert stored is not None
    assert stored.sha256 == sha256(data)
    assert keys() == {f"blobs/sha256/{stored.sha256[:2]}/{stored.sha256[2:4]}/{stored.sha256}"}
    assert blobs.take(UPLOAD.object, sha256(data), BIG) is None


@pytest.mark.parametrize("sent", [b"x" * BIG, b"x" * (BIG - 1), b"x" * (BIG + 1)])
def test_other_bytes_than_announced_are_dropped(blobs: S3Blobs, keys: Callable[[], set[str]], sent: bytes) -> None:
    httpx.put(str(blobs.upload_link(UPLOAD)), content=sent).raise_for_status()

    with pytest.raises((DigestMismatch, Malformed)):
        blobs.take(UPLOAD.object, sha256(b"y" * BIG), BIG)

    assert keys() == set()


def test_a_link_that_is_used_again_during_the_check_changes_nothing(
    blobs: S3Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = os.urandom(BIG), os.urandom(BIG)
    link = str(blobs.upload_link(UPLOAD))
    httpx.put(link, content=good).raise_for_status()
    publish = s3.S3Blobs._publish

    def late(self: S3Blobs, *given: object) -> None:  # the bytes were hashed, and are about to get their name
        httpx.put(link, content=bad).raise_for_status()
        publish(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(s3.S3Blobs, "_publish", late)
    blobs.take(UPLOAD.object, sha256(good), BIG)
    httpx.put(link, content=bad).raise_for_status()

    assert b"".join(blobs.open(sha256(good))) == good


def test_parts_make_one_blob_and_are_kept_while_one_is_wrong(blobs: S3Blobs, keys: Callable[[], set[str]]) -> None:
    data = os.urandom(BIG)
    pieces = [data[:100_000], data[100_000:200_000], data[200_000:]]

    def send(number: int, piece: bytes) -> tuple[int, str]:
        answer = httpx.put(str(blobs.upload_link(UPLOAD, number)), content=piece)
        return number, answer.raise_for_status().headers["etag"].strip('"')

    parts = [send(1, pieces[0]), send(2, b"z" * 100_000), send(3, pieces[2])]
    with pytest.raises(DigestMismatch):
        blobs.complete(UPLOAD, parts, sha256(data), BIG)
    with pytest.raises(Malformed):
        blobs.complete(UPLOAD, [*parts[:2], (3, "0" * 32)], sha256(data), BIG)
    parts[1] = send(2, pieces[1])
    stored = blobs.complete(UPLOAD, parts, sha256(data), BIG)

    assert stored.sha256 == sha256(data)
    assert blobs.complete(UPLOAD, parts, sha256(data), BIG) == stored  # the answer was lost
    assert len(keys()) == 1


def test_links_are_good_for_their_key_and_way_only(blobs: S3Blobs) -> None:
    data = os.urandom(100)
    stored = blobs.put([data], size=100)
    down, up = str(blobs.download_link(stored.sha256)), str(blobs.upload_link(UPLOAD))

    assert httpx.put(down, content=b"other").status_code == 403
    assert httpx.get(up).status_code == 403
    assert httpx.put(up.replace(UPLOAD.object, "of-somebody-else"), content=b"x").status_code == 403
    assert httpx.get(down.partition("?")[0]).status_code == 403


def test_what_was_given_up_is_swept_after_a_day(
    blobs: S3Blobs, keys: Callable[[], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    httpx.put(str(blobs.upload_link(GIVEN_UP)), content=b"x").raise_for_status()
    stored = blobs.put([os.urandom(BIG)], size=BIG)

    blobs.sweep()
    assert f"staging/{GIVEN_UP.object}/{GIVEN_UP.owner}" in keys()
    monkeypatch.setattr(s3, "LEFTOVER_S", -5)
    blobs.sweep()

    assert f"staging/{GIVEN_UP.object}/{GIVEN_UP.owner}" not in keys()
    assert blobs.holds({stored.sha256: stored.size})


def test_xorbs_come_back_chunk_by_chunk_and_go_with_their_epoch(place: S3Place) -> None:
    store, now = S3Xorbs(Bucket(place)), 1_000_000 * float(EPOCH_S)
    chunks = [os.urandom(30_000) for _ in range(5)]
    name = parse_xet_hash(xorb_name([(chunk, 0) for chunk in chunks]))
    at = XorbPlace(scope="1-2", epoch=1_000_000, hash=name)
    with store.writer(at) as writer:
        writer.write(xorb_bytes([(chunk, 0) for chunk in chunks]))
        writer.keep()

    spans = store.chunks(at)

    assert spans is not None
    assert b"".join(store.read(at, spans)) == b"".join(chunks)
    assert b"".join(store.read(at, (spans[3], spans[0], spans[1]))) == chunks[3] + chunks[0] + chunks[1]
    store.sweep(now + EPOCH_S + GRACE_S - 1)
    assert store.chunks(at) is not None
    S3Xorbs(Bucket(place)).sweep(now + EPOCH_S + GRACE_S)
    assert store.chunks(at) is None


# ------------------------------------------------------------ a server on it
@pytest.fixture
def server(place: S3Place, tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, s3=place) as found:
        yield found


def test_a_server_gives_links_to_large_files_and_small_ones_itself(server: Running) -> None:
    server.create("acme/links")
    data = os.urandom(BIG)
    item = {"oid": sha256(data), "size": BIG}
    body = {"operation": "upload", "transfers": ["basic"], "objects": [item], "hash_algo": "sha256"}
    action = server.post("/acme/links.git/info/lfs/objects/batch", body).json()["objects"][0]["actions"]
    httpx.put(action["upload"]["href"], content=data).raise_for_status()
    lines = (
        '{"key":"header","value":{"summary":"x"}}\n{"key":"file","value":{"path":"a.txt","content":"aGk=","encoding":"base64"}}\n'
        f'{{"key":"lfsFile","value":{{"path":"w.bin","algo":"sha256","oid":"{item["oid"]}","size":{BIG}}}}}'
    )
    # no word of `verify`: the commit checks what it names
    with server.client() as client:
        client.post("/api/models/acme/links/commit/main", content=lines).raise_for_status()

    large, small = server.get("/acme/links/resolve/main/w.bin"), server.get("/acme/links/resolve/main/a.txt")

    assert (large.status_code, large.headers["cache-control"], large.content) == (302, "no-store", b"")
    assert large.headers["x-linked-size"] == str(BIG)
    assert httpx.get(large.headers["location"]).content == data
    assert httpx.get(large.headers["location"], headers={"Range": "bytes=5-9"}).content == data[5:10]
    assert (small.status_code, small.content) == (200, b"hi")
    # the bucket has other ETags, and dates: a condition is answered here, or a client would take it along to the bucket
    place, tag = f"{server.url}/acme/links/resolve/main/w.bin", large.headers["etag"]
    asked = [
        ({"Range": "bytes=5-9", "If-Range": tag}, 206, data[5:10]),
        ({"Range": "bytes=5-9", "If-Range": '"another"'}, 200, data),
        ({"If-Match": tag}, 200, data),
        ({"If-None-Match": tag}, 304, b""),
        ({"If-Modified-Since": "Fri, 31 Dec 9999 23:59:59 GMT"}, 200, data),
    ]
    for conditions, status, content in asked:
        answer = httpx.get(place, headers=conditions)
        assert (answer.status_code, answer.content) == (status, content), conditions
    assert httpx.get(place, headers={"If-Match": '"another"'}).status_code == 412
    assert server.send("HEAD", "/acme/links/resolve/main/w.bin").status_code == 200


def test_a_bucket_that_is_away_is_told_and_nothing_else_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("adapterhub_registry.storage.s3.MOST_RETRIES", 0)
    nowhere = S3Place(bucket="b", endpoint="http://127.0.0.1:9")

    with running(tmp_path, s3=nowhere) as server:
        health = server.get("/healthz")
        commit = httpx.post(
            f"{server.url}/api/models/acme/x/commit/main",
            content='{"key":"file","value":{"path":"a","content":"aGk="}}',
            headers={"Authorization": f"Bearer {server.token}"},
        )
        made = server.post("/api/repos/create", {"organization": "acme", "name": "x"})  # writes .gitattributes
        listed = server.get("/api/models")

    assert (health.status_code, health.json()["blobs"], health.json()["database"]) == (503, "unreachable", "ok")
    assert commit.status_code == 404
    assert made.status_code == 503
    assert (listed.status_code, listed.json()) == (200, [])
    with pytest.raises(StoreUnreachable, match="does not answer"):
        S3Blobs(Bucket(nowhere)).check()


def test_the_bucket_of_the_tests_is_a_real_one(s3_server: S3, place: S3Place) -> None:
    with pytest.raises(FileNotFoundError):
        obstore.head(s3_server.store(place.bucket), "no/such/key")
