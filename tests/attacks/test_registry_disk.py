"""A registry on a disk without room: uploads end at once with 507 and leave nothing, and reading goes on."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from adapterhub_registry.database.db import Database, tokens
from sqlalchemy import update

from tests.crash.disks import in_namespace
from tests.registry.conftest import ROOT
from tests.registry.xet_wire import shard_bytes, xorb_bytes, xorb_name
from tests.support.programs import needs

DISK = 16 << 20
PUSH = """
import sys
from huggingface_hub import HfApi
HfApi(endpoint=sys.argv[1], token=sys.argv[2]).upload_folder(repo_id="acme/x", folder_path=sys.argv[3])
"""


class Small:
    """A registry on a small disk of its own, and that disk as its administrator sees it."""

    def __init__(self, url: str, token: str, disk: Path, log: Path) -> None:
        self.url, self.token, self.disk, self.log = url, token, disk, log
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60)

    def fill(self, *, but: int = 0) -> None:
        """Take all room but so many bytes."""
        with contextlib.suppress(OSError), (self.disk / "ballast").open("wb", buffering=0) as stream:
            while stream.write(bytes(4096)) == 4096:
                pass
        os.truncate(self.disk / "ballast", (self.disk / "ballast").stat().st_size - but)

    def empty(self) -> None:
        (self.disk / "ballast").unlink()

    def files(self) -> set[str]:
        """What lies on the disk besides the database."""
        folders = (self.disk / name for name in ("blobs", "uploads", "xorbs"))
        return {str(path) for folder in folders for path in folder.rglob("*") if path.is_file()}

    def space(self) -> tuple[str, dict[str, str]]:
        answer = self.http.get("/api/models/acme/x/xet-write-token/main").json()
        return answer["casUrl"], {"Authorization": f"Bearer {answer['accessToken']}"}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    folder = tmp_path_factory.mktemp("small")
    in_namespace("true", folder)  # skips where mounting is not permitted
    root, log = folder / "root", folder / "log"
    root.mkdir()
    serve = shlex.join([sys.executable, "-m", "adapterhub_registry", "--root", str(root), "--port", "0"])
    script = f"mount -t tmpfs -o size={DISK} none {shlex.quote(str(root))}\nexec {serve}"
    command = [needs("unshare"), *([] if os.geteuid() == 0 else ["--map-root-user"]), "--mount"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "registry")])}
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "sh", "-euc", script], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
    assert process.stdout is not None
    lines = [process.stdout.readline(), process.stdout.readline()]
    assert all(lines), log.read_text()
    url, token = (line.rpartition(": ")[2].strip() for line in lines)
    found = Small(url, token, Path(f"/proc/{process.pid}/root{root}"), log)
    found.http.post("/api/repos/create", json={"organization": "acme", "name": "x"}).raise_for_status()
    try:
        yield found
    finally:
        found.http.close()
        process.terminate()
        process.wait(60)
        process.stdout.close()
    assert "Traceback" not in log.read_text()


@pytest.fixture
def small(registry: Small) -> Iterator[Small]:
    yield registry
    (registry.disk / "ballast").unlink(missing_ok=True)


@pytest.mark.parametrize("size", [DISK + 1, DISK * 2 // 3])
def test_the_stock_client_is_told_at_once_that_a_file_does_not_fit(small: Small, tmp_path: Path, size: int) -> None:
    """The second file fits, but not together with the chunks from which it is made."""
    (tmp_path / "folder").mkdir()
    with (tmp_path / "folder" / "adapter_model.safetensors").open("wb") as stream:
        stream.truncate(size)
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    more = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", PUSH, small.url, small.token, str(tmp_path / "folder")]

    before = small.files()

    done = subprocess.run(command, env=mine | more, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 1
    assert "507" in done.stderr
    assert "the server has room for" in done.stderr
    assert small.files() == before


@pytest.mark.parametrize("announced", [True, False])
def test_a_xorb_without_room_is_refused_and_leaves_nothing(small: Small, *, announced: bool) -> None:
    chunks = [(secrets.token_bytes(100_000), 0) for _ in range(20)]
    address, headers = small.space()
    small.fill(but=1 << 20)
    raw, before = xorb_bytes(chunks), small.files()

    content = raw if announced else iter([raw[: len(raw) // 2], raw[len(raw) // 2 :]])
    answer = httpx.post(f"{address}/v1/xorbs/default/{xorb_name(chunks)}", headers=headers, content=content)

    assert (answer.status_code, answer.headers["X-Error-Code"]) == (507, "NoRoom")
    assert small.files() == before


def test_a_shard_without_room_is_refused_before_it_is_unpacked_and_is_taken_later(small: Small) -> None:
    chunk, times = bytes(100_000), 30
    address, headers = small.space()
    name = xorb_name([(chunk, 1)])
    httpx.post(f"{address}/v1/xorbs/default/{name}", headers=headers, content=xorb_bytes([(chunk, 1)]))
    before = small.files()
    shard = shard_bytes([(hashlib.sha256(chunk * times).hexdigest(), [(name, len(chunk), 0, 1)] * times)])

    small.fill(but=1 << 20)
    refused = httpx.post(f"{address}/v1/shards", headers=headers, content=shard)
    left = small.files()
    small.empty()
    taken = httpx.post(f"{address}/v1/shards", headers=headers, content=shard)

    assert (refused.status_code, refused.headers["X-Error-Code"], left) == (507, "NoRoom", before)
    assert taken.status_code == 200


def test_a_full_disk_is_named_and_reading_goes_on(small: Small) -> None:
    line = '{"key": "file", "value": {"path": "a.txt", "content": "aGFsbG8="}}'
    commit = f'{{"key": "header", "value": {{"summary": "s"}}}}\n{line}'
    small.http.post("/api/models/acme/x/commit/main", content=commit).raise_for_status()
    database = Database(f"sqlite:///{small.disk / 'registry.db'}")
    with database.begin() as connection:
        connection.execute(update(tokens).values(used_at=1))  # so long ago that the next request notes the time
    database.close()
    small.fill()

    writes = [
        small.http.post("/api/repos/create", json={"organization": "acme", "name": "y"}),
        small.http.post("/api/models/acme/x/commit/main", content=commit.replace("aGFsbG8=", "aGVsbG8=")),
        small.http.get("/api/models/acme/x/xet-write-token/main"),
        small.http.post("/api/models/acme/x/branch/dev", json={}),
    ]
    read = small.http.get("/acme/x/resolve/main/a.txt")
    listed = small.http.get("/api/models")
    small.empty()
    again = small.http.post("/api/repos/create", json={"organization": "acme", "name": "y"})

    assert [(answer.status_code, answer.headers["X-Error-Code"]) for answer in writes] == [(507, "NoRoom")] * 4
    assert "nothing was stored" in writes[0].json()["error"]
    assert writes[3].json()["error"] == "the server's disk is full; nothing was changed"
    assert (read.text, listed.status_code, again.status_code) == ("hallo", 200, 200)
