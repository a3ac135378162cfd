"""Many blobs stored together: nothing has its name before all of it is on the disk, wherever the server is killed."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from adapterhub_registry.storage.blobs import DiskBlobs

from adapterhub.core.errors import DigestMismatch, Malformed
from tests.registry.conftest import ROOT
from tests.support.programs import needs_strace

COUNT = 40
STORE = """
import sys
from pathlib import Path
from adapterhub_registry.storage.blobs import DiskBlobs
with DiskBlobs(Path(sys.argv[1])).together() as put:
    for number in range(int(sys.argv[2])):
        put([b"%d" % number * 100], None, len(b"%d" % number * 100))
print("stored", flush=True)
"""


def contents() -> dict[str, bytes]:
    made = [b"%d" % number * 100 for number in range(COUNT)]
    return {hashlib.sha256(data).hexdigest(): data for data in made}


def stored(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "blobs").rglob("*") if path.is_file()}


def traced(root: Path, log: Path, *more: str) -> subprocess.CompletedProcess[str]:
    before = [needs_strace(), "-f", "-y", "-qq", "-s", "200", "-o", str(log), *more]
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'registry'}"}
    command = [*before, sys.executable, "-c", STORE, str(root), str(COUNT)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=paths)


def test_each_file_is_on_the_disk_before_any_has_its_name_and_each_folder_before_the_end(tmp_path: Path) -> None:
    root, log = tmp_path / "root", tmp_path / "log"

    assert traced(root, log, "-e", "trace=fsync,rename,write").stdout == "stored\n"

    lines = log.read_text().splitlines()
    # a call that another thread interrupts has two lines; it counts from the last of them
    begun: dict[str, str] = {}
    synced: dict[str, int] = {}
    named: dict[str, tuple[str, int]] = {}
    end = 0
    for at, line in enumerate(lines):
        thread, _, call = line.partition(" ")
        if (found := re.match(r" *fsync\(\d+<(.+?)>", call)) is not None:
            begun[thread] = found[1]
        if re.search(r"fsync.*= 0$", call):
            synced[begun[thread]] = at
        if (found := re.match(r' *rename\("(.+?)", "(.+?)"', call)) is not None and "/blobs/" in found[2]:
            named[found[2]] = found[1], at
        if "stored" in call and call.lstrip().startswith("write"):
            end = at
    assert len(named) == len(contents()) == COUNT
    assert max(synced[temporary] for temporary, _ in named.values()) < min(at for _, at in named.values())
    assert all(at < synced[str(Path(place).parent)] < end for place, (_, at) in named.items())
    assert stored(root) == contents()


@pytest.mark.parametrize("call", ["fsync", "rename", "fchmod", "mkdir"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_kill_leaves_whole_blobs_and_the_next_try_stores_all(tmp_path: Path, call: str, number: int) -> None:
    root, log = tmp_path / "root", tmp_path / "log"

    done = traced(root, log, "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}")

    assert done.stdout == ""
    assert stored(root).items() <= contents().items()
    assert traced(root, log, "-e", "trace=none").stdout == "stored\n"
    assert stored(root) == contents()


def test_a_disk_that_fails_to_write_names_nothing(tmp_path: Path) -> None:
    root, log = tmp_path / "root", tmp_path / "log"

    done = traced(root, log, "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1")

    assert done.returncode != 0
    assert stored(root) == {}
    assert [path for path in (root / "uploads").iterdir() if path.is_file()] == []


@pytest.mark.parametrize(
    ("wrong", "error"), [(([b"x"], "0" * 64, 1), DigestMismatch), (([b"xyz"], None, 1), Malformed)]
)
def test_a_wrong_blob_leaves_none_of_its_block(
    tmp_path: Path, wrong: tuple[list[bytes], str | None, int], error: type[Exception]
) -> None:
    blobs = DiskBlobs(tmp_path)
    kept = blobs.put([b"kept"], None, 4)

    def store() -> None:
        with blobs.together() as put:
            put([b"kept"], None, 4)
            put([b"new"], None, 3)
            put([b"new"], None, 3)  # the same again
            put(*wrong)

    with pytest.raises(error):
        store()

    assert stored(tmp_path) == {kept.sha256: b"kept"}
    assert [path for path in (tmp_path / "uploads").iterdir() if path.is_file()] == []
