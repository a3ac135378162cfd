"""The parts under the routes: blobs, signed links, tokens, names, settings, and the database under several writers."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from adapterhub_registry.api.edge import routed_path
from adapterhub_registry.database.db import Database, facts
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.names import known_repo_id, parse_path, parse_ref_name, parse_repo_id
from adapterhub_registry.repos.adapter_facts import read_config
from adapterhub_registry.settings import load_settings
from adapterhub_registry.storage.blobs import LEFTOVER_S, DiskBlobs, UploadId
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, insert, select, update

from adapterhub.core.errors import (
    BlobNotFound,
    Conflict,
    DigestMismatch,
    Malformed,
    UsageProblem,
)
from adapterhub.core.specs import fold

HELLO = hashlib.sha256(b"hello").hexdigest()
UPLOAD = UploadId("upload-1", "owner-01")


# ------------------------------------------------------------ blobs
@pytest.fixture
def blobs(tmp_path: Path) -> DiskBlobs:
    return DiskBlobs(tmp_path)


def test_a_blob_is_named_as_sha256_and_as_git_name_it(blobs: DiskBlobs) -> None:
    for size in (5, None):
        stored = blobs.put([b"hel", b"lo"], size=size)

        assert stored == (HELLO, hashlib.sha1(b"blob 5\0hello").hexdigest(), 5)  # noqa: S324 - git's name
    assert b"".join(blobs.open(HELLO, 1, 4)) == b"ell"


def test_a_blob_that_is_not_here(blobs: DiskBlobs) -> None:
    for call in (blobs.size, blobs.open):
        with pytest.raises(BlobNotFound):
            call("0" * 64)


@pytest.mark.parametrize("name", ["", "x", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_a_name_that_is_no_digest_never_becomes_a_path(blobs: DiskBlobs, name: str) -> None:
    for call in (blobs.size, blobs.open, lambda name: blobs.holds({name: 5})):
        with pytest.raises(Malformed):
            call(name)


@pytest.mark.parametrize("chunks", [[b"hellO"], [b"hell"], [b"hello", b"!"], []])
def test_bytes_that_differ_from_what_was_announced_leave_nothing(
    blobs: DiskBlobs, tmp_path: Path, chunks: list[bytes]
) -> None:
    with pytest.raises((DigestMismatch, Malformed)):
        blobs.put(chunks, HELLO, 5)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def cut(data: bytes) -> Iterator[bytes]:
    yield data
    raise OSError("cut")


def test_a_source_that_fails_leaves_nothing(blobs: DiskBlobs, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cut"):
        blobs.put(cut(b"hel"), HELLO, 5)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def send(blobs: DiskBlobs, number: int, data: bytes) -> tuple[int, str]:
    return number, blobs.put_part(UPLOAD, number, [data], len(data), 5)


def test_parts_are_kept_until_they_make_the_whole(blobs: DiskBlobs) -> None:
    one, wrong = send(blobs, 1, b"hel"), send(blobs, 2, b"xx")
    with pytest.raises(DigestMismatch):
        blobs.complete(UPLOAD, [one, wrong], HELLO, 5)

    two = send(blobs, 2, b"lo")

    assert blobs.complete(UPLOAD, [one, two], HELLO, 5).size == 5
    assert b"".join(blobs.open(HELLO)) == b"hello"


def test_parts_that_came_in_order_become_the_blob_without_another_file(blobs: DiskBlobs, tmp_path: Path) -> None:
    parts = [send(blobs, 1, b"h"), send(blobs, 2, b"el"), send(blobs, 3, b"lo")]
    (run,) = (path for path in tmp_path.rglob("run-*"))
    number = run.stat().st_ino

    assert blobs.complete(UPLOAD, parts, HELLO, 5) == blobs.put([b"hello"], size=5)
    (blob,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert (blob.stat().st_ino, blob.name, stat.S_IMODE(blob.stat().st_mode)) == (number, HELLO, 0o444)
    assert blobs.complete(UPLOAD, parts, HELLO, 5).size == 5  # the answer was lost


@pytest.mark.parametrize("order", [(2, 1, 3), (3, 2, 1), (1, 3, 2), (1, 2, 1, 2, 3), (1, 2, 2, 3, 3), (1, 3, 1, 2, 3)])
def test_parts_in_any_order_and_repeated_make_the_whole(blobs: DiskBlobs, order: tuple[int, ...]) -> None:
    bytes_of = {1: b"h", 2: b"el", 3: b"lo"}
    etags = dict(send(blobs, number, bytes_of[number]) for number in order)

    assert blobs.complete(UPLOAD, sorted(etags.items()), HELLO, 5).size == 5
    assert b"".join(blobs.open(HELLO)) == b"hello"


def test_another_server_of_the_folder_joins_the_parts_of_a_run(blobs: DiskBlobs, tmp_path: Path) -> None:
    parts = [send(blobs, 1, b"he"), send(DiskBlobs(tmp_path), 2, b"l"), send(blobs, 3, b"lo")]

    assert DiskBlobs(tmp_path).complete(UPLOAD, parts, HELLO, 5).size == 5
    assert b"".join(blobs.open(HELLO)) == b"hello"
    with pytest.raises(Malformed, match="not received"):
        blobs.complete(UPLOAD, parts, "0" * 64, 5)


@pytest.mark.parametrize("chunks", [[b"l"], [b"lo", b"!"]])
def test_a_part_that_fails_leaves_no_byte_in_the_blob(blobs: DiskBlobs, chunks: list[bytes]) -> None:
    one = send(blobs, 1, b"hel")
    with pytest.raises(Malformed):
        blobs.put_part(UPLOAD, 2, chunks, 2, 5)
    with pytest.raises(OSError, match="cut"):
        blobs.put_part(UPLOAD, 2, cut(b"xx"), 2, 5)

    blobs.complete(UPLOAD, [one, send(blobs, 2, b"lo")], HELLO, 5)

    assert b"".join(blobs.open(HELLO)) == b"hello"


def test_a_part_that_comes_while_another_is_on_its_way_has_a_file_of_its_own(blobs: DiskBlobs) -> None:
    one, held = send(blobs, 1, b"hel"), {}

    def slowly() -> Iterator[bytes]:
        yield b"l"
        held.update([send(blobs, 2, b"lo")])
        yield b"o"

    late = blobs.put_part(UPLOAD, 2, slowly(), 2, 5)

    assert late != held[2]
    assert blobs.complete(UPLOAD, [one, *held.items()], HELLO, 5).size == 5
    assert b"".join(blobs.open(HELLO)) == b"hello"


def test_the_uploads_of_one_object_keep_a_bounded_number_of_parts(blobs: DiskBlobs, tmp_path: Path) -> None:
    def begin(number: int) -> str:
        return blobs.put_part(UploadId(UPLOAD.object, f"owner-{number:02}"), 1, [b"hel"], 3, 5)

    for number in range(8):
        begin(number)
    with pytest.raises(Conflict, match="8 uploads of this file are under way"):
        begin(8)
    for folder in list((tmp_path / "uploads" / "parts").iterdir())[:2]:
        os.utime(folder, (0, 0))  # their links ended
    begin(8)

    assert len(list((tmp_path / "uploads" / "parts").iterdir())) == 7


def test_only_old_leftovers_are_swept(tmp_path: Path) -> None:
    DiskBlobs(tmp_path)
    old, new = tmp_path / "uploads" / "old", tmp_path / "uploads" / "new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - LEFTOVER_S - 10,) * 2)

    DiskBlobs(tmp_path)

    assert (old.exists(), new.exists()) == (False, True)


# ------------------------------------------------------------ names
@pytest.mark.parametrize("name", ["a/b", "A.b_c-d/e1", "x" * 96 + "/" + "y" * 96])
def test_repository_ids(name: str) -> None:
    assert parse_repo_id(*name.split("/")) == name


@pytest.mark.parametrize("name", ["a/", "/b", "a/b--c", "a/b..c", "a/..", "a/b.git", "API/b", "_lfs/b", "a/é", "a/b c"])
def test_repository_ids_that_cannot_be(name: str) -> None:
    namespace, _, rest = name.partition("/")
    with pytest.raises(HttpRefusal) as new:
        parse_repo_id(namespace, rest)
    with pytest.raises(HttpRefusal) as old:
        known_repo_id(namespace, rest)

    assert (new.value.status, old.value.status, old.value.code) == (400, 404, "RepoNotFound")


def test_look_alikes_fold_to_the_same() -> None:
    assert len({fold(name) for name in ("Legal-QA-10", "legal_qa.lo", "legalqaIO", "LEGALQA1O")}) == 1
    assert fold("legal-qa") != fold("legal-qb")
    assert fold("---")


@given(st.text(max_size=40))
def test_a_path_that_is_accepted_stays_inside(text: str) -> None:
    try:
        path = parse_path(text)
    except HttpRefusal:
        return

    root = Path("/root")
    assert os.path.normpath(root / path).startswith("/root/")
    assert os.path.normpath(path) == path


@given(st.text(max_size=40))
def test_a_ref_name_that_is_accepted_could_be_one_in_git(text: str) -> None:
    try:
        name = parse_ref_name(text)
    except HttpRefusal:
        return

    assert name.isprintable()
    assert not set(name) & set(" ~^:?*[\\")
    assert ".." not in name


@given(st.lists(st.text(min_size=1, max_size=10), min_size=1, max_size=4))
def test_a_routed_path_gives_every_segment_back(segments: list[str]) -> None:
    from urllib.parse import quote, unquote

    raw = "/".join(["", *(quote(segment, safe="") for segment in segments)])
    try:
        path = routed_path({"raw_path": raw.encode(), "path": ""})
    except HttpRefusal:
        assert any(ord(char) < 32 or ord(char) == 127 for segment in segments for char in segment)
        return

    assert [unquote(part) for part in path.split("/")[1:]] == segments


# ------------------------------------------------------------ cards
@pytest.mark.parametrize(("names", "shown"), [(["LlamaForCausalLM"], True), (["a", 1], False), ("a", False)])
def test_model_info_shows_architectures_only_when_they_are_strings(
    blobs: DiskBlobs, names: object, *, shown: bool
) -> None:
    stored = blobs.put([json.dumps({"architectures": names}).encode()])

    config = read_config(blobs, {"config.json": stored.sha256})

    assert config == ({"architectures": names} if shown else {})


@given(st.text(max_size=200))
def test_any_card_is_read_as_json_or_refused(text: str) -> None:
    from adapterhub.formats.cards.metadata import UnreadableCard, read_metadata

    try:
        card = read_metadata(f"---\n{text}\n---\n").values
    except UnreadableCard:
        return

    assert json.loads(json.dumps(card)) == card


# ------------------------------------------------------------ settings
def test_the_secret_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    first = load_settings(tmp_path / "root")
    again = load_settings(tmp_path / "root")

    assert first.secret == again.secret
    assert stat.S_IMODE((tmp_path / "root" / "secret").stat().st_mode) == 0o600
    assert first.secret.hex() not in repr(first)
    assert repr(first.secret) not in repr(first)


def test_a_secret_that_was_cut_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"short")

    with pytest.raises(UsageProblem, match="32 bytes"):
        load_settings(tmp_path)


# ------------------------------------------------------------ database
@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    yield database
    database.close()


def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    def half() -> None:
        with database.begin() as connection:
            connection.execute(insert(facts).values(name="half", value="x"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()

    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(facts).where(facts.c.name == "half")) == 0


def test_writers_wait_for_each_other(database: Database, tmp_path: Path) -> None:
    with database.begin() as connection:
        connection.execute(insert(facts).values(name="count", value="0"))
    other = Database(f"sqlite:///{tmp_path / 'registry.db'}")  # as another process would open it

    def work(mine: Database) -> None:
        for _ in range(25):
            with mine.begin() as connection:
                value = connection.scalar(select(facts.c.value).where(facts.c.name == "count"))
                connection.execute(update(facts).where(facts.c.name == "count").values(value=str(int(value or 0) + 1)))

    threads = [threading.Thread(target=work, args=(each,)) for each in (database, other) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()

    with database.read() as connection:
        assert connection.scalar(select(facts.c.value).where(facts.c.name == "count")) == "200"
