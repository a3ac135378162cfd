"""Intents and leases: what a running process needs is never taken, and a dead one holds up nobody."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapterhub.core.disk.root import FOREIGN_S, claim, finished, living
from adapterhub.core.errors import StoreLocked
from adapterhub.library.library import Library
from tests.support.command_line import Adapt

ELSEWHERE = {"pid": 7, "host": "another-host", "boot": "another-boot", "what": "add x", "digests": []}


def leave(folder, **facts):
    """A claim as a killed process leaves it: the file, without the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "7-abc"
    path.write_text(json.dumps({**ELSEWHERE, "since": time.time(), **facts}))
    return path


def dead_here():
    return {"host": os.uname().nodename, "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip()}


def test_a_claim_counts_while_its_process_lives_and_leaves_nothing(tmp_path):
    with claim(tmp_path / "intents", "add x", ["sha256:1"]) as held:
        inside = living(tmp_path / "intents")

        assert [(c.path, c.what, c.digests, c.holder.pid) for c in inside] == [
            (held.path, "add x", {"sha256:1"}, os.getpid())
        ]
        assert finished(tmp_path / "intents") == []

    assert list((tmp_path / "intents").iterdir()) == []


def test_the_claim_of_a_killed_process_is_over_at_once(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from adapterhub.core.disk.root import claim\n"
        f"with claim(Path({str(tmp_path)!r}), 'add x', ['sha256:1']): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        alive = living(tmp_path)
        process.send_signal(signal.SIGKILL)

    assert [c.holder.pid for c in alive] == [process.pid]
    assert (living(tmp_path), len(finished(tmp_path))) == ([], 1)


@pytest.mark.parametrize(
    ("facts", "counts"),
    [
        ({}, True),
        ({"since": 0.0}, True),  # the file's own age counts, too
        (dead_here(), False),
        ({"host": os.uname().nodename}, False),  # this machine before it was started anew
    ],
)
def test_a_claim_that_nobody_holds_counts_for_a_day_if_it_is_of_another_machine(tmp_path, facts, counts):
    leave(tmp_path, **facts)

    assert (len(living(tmp_path)), len(finished(tmp_path))) == ((1, 0) if counts else (0, 1))


def test_after_a_day_the_claim_of_another_machine_is_over(tmp_path):
    path = leave(tmp_path, since=time.time() - FOREIGN_S - 10)
    os.utime(path, (0, time.time() - FOREIGN_S - 10))

    assert living(tmp_path) == []


def test_gc_tells_of_another_machines_claim_and_keeps_what_it_needs(tmp_path):
    adapt = Adapt(tmp_path)
    blob = tmp_path / "home" / "blobs" / "sha256" / "aa" / ("a" * 64)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"x")
    path = leave(tmp_path / "home" / "intents", digests=["sha256:" + "a" * 64])

    done = adapt("cache", "clean", "--grace", "0")

    assert (done.exit_code, blob.exists()) == (0, True)
    assert "on `another-host`" in done.stderr
    assert str(path) in done.stderr


def test_gc_keeps_what_a_running_add_will_name_at_any_age(library):
    with library.store.intent("add x") as intent:
        staged = intent.folder / "file"
        staged.write_bytes(b"hello")
        digest = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
        intent.need([digest])
        library.store.adopt(staged, digest)
        swept = Library(library.root).gc(grace_s=0)

        assert (swept.gone, [c.what for c in swept.claims]) == ((), ["add x"])
        assert library.store.has_blob(digest)
        assert intent.folder.is_dir()

    assert [p.name for p, _ in library.gc(grace_s=0).gone] == [digest[7:]]


def test_what_a_killed_writer_left_goes_with_the_next_one_at_any_age(library):
    left = leave(library.root / "intents", **dead_here())
    folder = library.root / "tmp" / left.name
    folder.mkdir(parents=True)
    (folder / "half").write_bytes(b"x" * 1000)

    with library.store.staging():
        pass

    assert (left.exists(), folder.exists()) == (False, False)


def test_a_held_claim_that_cannot_be_read_stops_gc(library):
    path = leave(library.root / "intents", **dead_here())
    path.write_bytes(b"{ not json")
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        with pytest.raises(StoreLocked, match="Nothing was deleted"):
            library.gc(grace_s=0)


def test_a_lock_left_by_a_dead_process_is_no_obstacle_and_a_held_one_says_by_whom(library):
    locks = library.root / "locks"
    locks.mkdir(parents=True)
    (locks / "store").write_text(json.dumps({**ELSEWHERE, "since": 0.0}))

    library.gc()
    (locks / "store").write_text(json.dumps({**ELSEWHERE, "since": 0.0}))
    with (locks / "store").open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)

        with pytest.raises(StoreLocked, match="process 7 on `another-host`"):
            library.gc(wait_s=0.05)


def test_threads_take_turns_at_a_lock_and_each_waits_its_time(library):
    inside, most, held = [], [], threading.Event()

    def work(number: int) -> None:
        with library.store.lock("publish", exclusive=True):
            inside.append(number)
            most.append(len(inside))
            held.wait(0.001)
            inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    with library.store.lock("publish", exclusive=True), ThreadPoolExecutor(1) as pool:
        late = pool.submit(lambda: library.store.lock("publish", exclusive=True, wait_s=0.05).__enter__())
        with pytest.raises(StoreLocked, match=f"the last to take it alone was .*{os.getpid()}"):
            late.result()

    assert set(most) == {1}
    assert len(most) == 40


def test_a_leased_build_is_not_removed_and_its_objects_stay(library, add):
    build = add("legal-qa").build

    with library.lease(build) as folder:
        with pytest.raises(StoreLocked, match=rf"legal-qa.*in use by process {os.getpid()}"):
            Library(library.root).remove([build])
        swept = Library(library.root).gc(grace_s=0)
        is_whole = library.verify_build(build).errors == ()

    assert (folder, is_whole, [c.what for c in swept.claims]) == (
        build.folder,
        True,
        [build.folder.relative_to(library.root).as_posix()],
    )
    library.remove([build])
    assert library.builds_named("legal-qa") == []


def test_a_lease_keeps_the_bytes_even_when_somebody_deletes_the_folder(library, add):
    import shutil

    build = add("legal-qa").build

    with library.lease(build):
        shutil.rmtree(build.folder)
        library.gc(grace_s=0)

        assert all(library.store.has_blob(e.sha256) for e in build.manifest.files)

    library.gc(grace_s=0)
    assert not any(library.store.has_blob(e.sha256) for e in build.manifest.files)


def test_a_lease_ends_with_its_process(library, add, tmp_path):
    add("legal-qa")
    code = (
        "import time; from pathlib import Path; from adapterhub.library.library import Library\n"
        f"library = Library(Path({str(library.root)!r}))\n"
        "with library.lease(library.builds_named('legal-qa')[0]): print('leased', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as server:
        server.stdout.readline()
        refused = Adapt(tmp_path).fails(15, "remove", "legal-qa", "--yes")
        server.send_signal(signal.SIGKILL)

    assert f"in use by process {server.pid}" in refused
    Adapt(tmp_path).ok("remove", "legal-qa", "--yes")


def test_another_version_of_a_leased_build_can_be_removed(library, add):
    kept, other = add("legal-qa", version="1.0.0").build, add("legal-qa", version="2.0.0").build

    with library.lease(kept):
        library.remove([other])

    assert [b.manifest.version for b in library.builds_named("legal-qa")] == ["1.0.0"]
