"""A publisher that is killed, at each change of a name and at random moments; and a power cut before a version is durable."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub import Library
from adapterhub.core.errors import DigestMismatch
from adapterhub.live.stream import LiveStream
from tests.live.test_publish import sound, versions
from tests.support.kills import in_child
from tests.support.programs import needs_strace


def current(library: Library) -> tuple[str, str] | None:
    target = library.live("agent@base-7b").target()
    return None if target is None else (target.version, target.digest)


def check(library: Library, config: object, state: Callable[[int], object], before: object) -> None:
    """The old version or a later one is current and whole, and the next publish works."""
    now = current(library)
    assert now is not None
    assert before is None or int(now[0].rpartition(".")[2]) >= int(before[0].rpartition(".")[2])  # type: ignore[index]
    stream = library.live("agent@base-7b", config=config, keep=3)
    build = stream.current()
    assert build is not None
    assert not library.verify_build(build).errors
    assert sound(library)
    after = stream.publish(state(77), step=77)
    assert current(library) == (after.version, after.digest)
    assert int(after.version.rpartition(".")[2]) > int(now[0].rpartition(".")[2])
    assert len(versions(library)) <= 3
    library.gc(grace_s=0)
    assert sound(library)


@pytest.mark.parametrize("sync", [True, False])
def test_a_kill_before_any_change_of_a_name_leaves_a_whole_version(home, config, state, tmp_path, amount, sync) -> None:
    stream = home.live("agent@base-7b", config=config, keep=3)
    for step in range(4):
        stream.publish(state(step), step=step)
    old = current(home)
    shutil.copytree(home.root, tmp_path / "whole", copy_function=os.link)

    def publish(root: Path) -> None:
        one = Library(root).live("agent@base-7b", config=config, keep=3)
        one.publish(state(9), step=9, sync=sync)
        one.close()

    shutil.copytree(tmp_path / "whole", tmp_path / "count")
    count = in_child(lambda: publish(tmp_path / "count"))
    assert count is not None
    assert count > 8
    for number in random.Random(0).sample(range(1, count + 1), amount(6, count)):
        root = tmp_path / f"at-{number}"
        copy_of(home.root, root)
        assert in_child(lambda root=root: publish(root), number) is None
        library = Library(root)
        assert current(library) is not None
        check(library, config, state, old)


def copy_of(root: Path, target: Path) -> None:
    """A copy of a library whose files share no bytes with it, but each other's as before."""
    subprocess.run(["cp", "-a", str(root), str(target)], check=True)


def test_a_kill_at_any_moment_leaves_a_whole_version(home, config, state, amount) -> None:
    stream = home.live("agent@base-7b", config=config, keep=3)
    stream.publish(state(0), step=0)
    chance = random.Random(5)
    seen = current(home)
    for number in range(amount(50, 500)):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                one = Library(home.root).live("agent@base-7b", config=config, keep=3)
                os.write(writing, b".")
                for step in itertools.count(1):
                    one.publish(state(1000 * number + step), step=step, sync=number % 2 == 0)
                    os.write(writing, b"!")  # told to its caller
            finally:
                os._exit(1)
        os.close(writing)
        os.read(reading, 1)
        time.sleep(chance.uniform(0, 0.08))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with os.fdopen(reading, "rb") as said:
            told = len(said.read())
        now = current(home)
        assert now is not None
        assert seen is not None
        assert number_of(now) >= number_of(seen) + told  # nothing that was told is lost
        build = home.live("agent@base-7b").current()
        assert build is not None
        assert not home.verify_build(build).errors
        seen = now
    check(home, config, state, seen)


def number_of(target: tuple[str, str]) -> int:
    return int(target[0].rpartition(".")[2])


# ---------------------------------------------------------------- power cuts
def cut_power(root: Path, chance: random.Random) -> list[Path]:
    """What a disk may hold after a power cut: of files that were not made durable, none, a part or all of the bytes.

    The mode of an object says whether it is durable. The alias that was not durable is there or not, of another boot.
    """
    lost = []
    for path in sorted(root.rglob("*")):
        if path.suffix == ".unsynced":
            value = json.loads(path.read_bytes())
            value["boot"] = "another boot"
            path.write_bytes(json.dumps(value).encode()[: chance.choice([0, 20, 10_000])])
        elif is_object(root, path) and path.stat().st_mode & stat.S_IWUSR and chance.random() < 0.8:
            os.truncate(path, chance.choice([0, path.stat().st_size // 2]))
            lost.append(path)
    return lost


def is_object(root: Path, path: Path) -> bool:
    return path.is_file() and path.relative_to(root).parts[0] in ("blobs", "manifests")


def test_a_power_cut_brings_the_version_before_back_whole(home, config, state, tmp_path, amount) -> None:
    stream = home.live("agent@base-7b", config=config, keep=3)
    for step in range(3):
        stream.publish(state(step), step=step)
    old = current(home)
    chance = random.Random(1)
    lost = 0
    for number in range(amount(8, 60)):
        root = tmp_path / f"cut-{number}"
        copy_of(home.root, root)
        pid = os.fork()
        if pid == 0:
            try:
                one = Library(root).live("agent@base-7b", config=config, keep=3)
                one._later = lambda _published: None  # type: ignore[method-assign]  # the thread does not come to it
                for step in range(1 + number % 4):
                    one.publish(state(10 + step), step=step, sync=False)
            finally:
                os._exit(1)
        os.waitpid(pid, 0)
        library = Library(root)
        assert number_of(current(library)) == number_of(old) + 1 + number % 4  # readable before it is durable
        lost += len(cut_power(root, chance))
        assert current(library) == old
        build = library.live("agent@base-7b").current()
        assert not library.verify_build(build).errors
        after = library.live("agent@base-7b", config=config, keep=3).publish(state(50), step=50)
        assert after.is_current
        assert sound(library)
    assert lost


def test_a_durable_version_has_its_bytes_on_the_disk_before_the_alias(home, config, state, tmp_path) -> None:
    """The calls of a publisher in their order: each file of a version is synced before the alias that names it."""
    home.live("agent@base-7b", config=config).publish(state(0), step=0)
    (tmp_path / "config.json").write_text(json.dumps(config))
    program = (
        "import json, sys\n"
        "from safetensors.numpy import load_file\n"
        "from adapterhub import Library\n"
        "root, config, folder, sync = sys.argv[1:]\n"
        "stream = Library(root).live('agent@base-7b', config=json.load(open(config)))\n"
        "state = {k: v + len(sync) for k, v in load_file(folder + '/adapter_model.safetensors').items()}\n"
        "stream.publish(state, step=1, sync=sync == 'True')\n"
        "stream.close()\n"
    )
    for sync in (True, False):
        trace = tmp_path / f"trace-{sync}"
        calls = "fsync,rename,renameat,renameat2,chmod,fchmod"
        subprocess.run(
            [needs_strace(), "-f", "-qq", "-y", "-s", "400", "-o", trace, "-e", f"trace={calls}", sys.executable, "-c", program,
             home.root, tmp_path / "config.json", tmp_path / "agent", str(sync)],
            check=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        )  # fmt: skip
        lines = trace.read_text().splitlines()
        [moved] = [n for n, line in enumerate(lines) if "rename" in line and re.search(r'agent@live\.json"[,)]', line)]
        digest = home.alias("agent@live").main.digest.removeprefix("sha256:")
        manifest = (home.root / "manifests" / "sha256" / f"{digest}.json").read_text()
        weights = next(e["sha256"] for e in json.loads(manifest)["files"] if e["path"] == "adapter_model.safetensors")
        for name in (digest, weights.removeprefix("sha256:")):
            named = next(n for n, line in enumerate(lines) if "rename" in line and name in line and "= 0" in line)
            source = re.search(r'"([^"]*)", ', lines[named])
            assert source is not None
            synced = [n for n, line in enumerate(lines) if "fsync" in line and (source[1] in line or name in line)]
            assert synced, lines
            assert min(synced) < moved
            assert (min(synced) < named) == sync  # without `sync` it is readable first
        [alias_synced] = [n for n, line in enumerate(lines) if "fsync" in line and ".agent@live.json" in line]
        assert alias_synced < moved


def test_what_another_add_shares_with_it_becomes_durable_with_the_add(home, config, state, folder) -> None:
    """The config of both is one object; the one that is told to be durable must not rest on one that is not."""
    stream = home.live("agent@base-7b", config=config)
    stream.publish(state(0), step=0)
    stream._later = lambda _published: None  # type: ignore[method-assign,assignment,return-value]
    published = stream.publish({name: value * 2 for name, value in state(1).items()}, step=1, sync=False)
    weights = home.store.blob_path(published.build.manifest.digests["adapter_model.safetensors"])
    assert weights.stat().st_mode & stat.S_IWUSR
    home.add(published.build.folder, name="again", base="base-7b")
    assert not weights.stat().st_mode & stat.S_IWUSR


def test_an_alias_is_not_set_to_what_a_power_cut_left_half(home, config, state) -> None:
    stream: LiveStream = home.live("agent@base-7b", config=config)
    stream.publish(state(0), step=0)
    stream._later = lambda _published: None  # type: ignore[method-assign,assignment,return-value]
    whole = stream.publish(state(1), step=1, sync=False)
    half = stream.publish(state(2), step=2, sync=False)
    os.truncate(home.store.blob_path(half.build.manifest.digests["adapter_model.safetensors"]), 100)
    with pytest.raises(DigestMismatch):
        home.set_alias("best", half.spec)
    home.set_alias("best", whole.spec)
    assert not home.store.manifest_path(whole.digest).stat().st_mode & stat.S_IWUSR


def test_a_move_by_hand_takes_the_place_of_one_that_is_not_durable(home, config, state) -> None:
    stream = home.live("agent@base-7b", config=config)
    first = stream.publish(state(0), step=0)
    stream.publish(state(1), step=1)
    second = stream.publish(state(2), step=2, sync=False)
    home.set_alias("live", first.spec)
    second.wait(10)
    stream.close()
    assert second.is_durable
    assert home.alias("agent@live").text() == "0.0.1"
    assert [move.targets[0].version for move in home.alias_history("agent@live")] == [
        "0.0.1",
        "0.0.2",
        "0.0.3",
        "0.0.1",
    ]
    assert not list((home.root / "aliases").glob("*.unsynced"))
