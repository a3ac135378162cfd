from __future__ import annotations

import hashlib
import os
import random
import threading
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest

from adapterhub.core.errors import CouldNotTell, MalformedTensorFile
from adapterhub.formats.base.weight_files import BUFFER_BYTES, read_facts
from adapterhub.formats.safetensors.file import header_bytes, read_header
from adapterhub.formats.safetensors.header import TensorFacts, TensorSpec, sample_offsets
from tests.support.disk_looks import looks

SPECS = (
    TensorSpec.planned("large", "F32", (700, 1000)),  # 2.8 MB: several buffers
    TensorSpec.planned("whole", "BF16", (BUFFER_BYTES // 2,)),  # exactly one buffer
    TensorSpec.planned("small", "F16", (3, 5)),
    TensorSpec.planned("scalar", "I64", ()),
    TensorSpec.planned("flags", "BOOL", (7,)),
    TensorSpec.planned("packed", "F4", (10,)),
    TensorSpec.planned("empty", "F32", (0, 4)),
)


def write_weights(path: Path, seed: int = 0) -> bytes:
    """A settled weight file; its tensors' bytes end to end."""
    data = random.Random(seed).randbytes(sum(spec.size_bytes for spec in SPECS))
    path.write_bytes(header_bytes(SPECS) + data)
    os.utime(path, (1_600_000_000, 1_600_000_000))
    return data


def expected_facts(path: Path) -> tuple[TensorFacts, ...]:
    """The slow way: the whole file in memory."""
    raw = path.read_bytes()
    facts = []
    for spec in read_header(path).tensors:
        data = raw[spec.start : spec.end]
        bits = {"F32": 32, "BF16": 16, "F16": 16, "I64": 64, "BOOL": 8, "F4": 4}[spec.dtype]
        width, samples = max(1, bits // 8), b""
        for k in range(16 if data else 0):
            position = ((k + 1) * 0x9E3779B97F4A7C15 % 2**64) * spec.elements >> 64
            samples += data[position * bits // 8 :][:width]
        digest = hashlib.sha256(data).hexdigest()
        facts.append(TensorFacts(name=spec.name, dtype=spec.dtype, shape=spec.shape, sha256=digest, samples=samples))
    return tuple(facts)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_facts_equal_those_of_the_whole_file_in_memory(tmp_path: Path, threads: int) -> None:
    path = tmp_path / "model.safetensors"
    write_weights(path)

    facts = read_facts([path], cache_folder=None, threads=threads)

    assert facts == {path: expected_facts(path)}


def test_samples_are_spread_over_the_whole_tensor() -> None:
    spec = TensorSpec.planned("w", "F32", (1000, 1000))

    positions = sorted(offset // 4 for offset in sample_offsets(spec))

    gaps = [after - before for before, after in pairwise(positions)]
    assert len(positions) == 16
    assert positions[0] < 100_000
    assert positions[-1] > 900_000
    assert max(gaps) < 2.7 * min(gaps)  # three gap lengths, as multiples of the golden ratio have


def test_a_second_look_opens_no_weight_file(tmp_path: Path) -> None:
    path, cache = tmp_path / "model.safetensors", tmp_path / "cache"
    write_weights(path)
    with looks() as first:
        before = read_facts([path], cache_folder=cache)
        assert ("open", str(path)) in first

    with looks() as second:
        after = read_facts([path], cache_folder=cache)

        assert ("open", str(path)) not in second
        assert len(second) == 1  # the cache file
    assert before == after


def test_a_changed_file_is_read_again_even_when_its_time_was_put_back(tmp_path: Path) -> None:
    path, cache = tmp_path / "model.safetensors", tmp_path / "cache"
    write_weights(path, seed=1)
    read_facts([path], cache_folder=cache)

    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x55")
    os.utime(path, (1_600_000_000, 1_600_000_000))

    assert read_facts([path], cache_folder=cache) == {path: expected_facts(path)}


def test_a_file_written_just_now_is_not_cached(tmp_path: Path) -> None:
    path, cache = tmp_path / "model.safetensors", tmp_path / "cache"
    write_weights(path)
    os.utime(path)

    read_facts([path], cache_folder=cache)

    assert not cache.exists()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"schema":"adapterhub/tensors/1"}', b"\xff\xfe", b"null"])
def test_a_damaged_cache_is_ignored_and_written_again(tmp_path: Path, damage: bytes) -> None:
    path, cache = tmp_path / "model.safetensors", tmp_path / "cache"
    write_weights(path)
    before = read_facts([path], cache_folder=cache)
    (entry,) = cache.iterdir()
    good = entry.read_bytes()
    entry.write_bytes(damage)

    after = read_facts([path], cache_folder=cache)

    assert before == after
    assert good == entry.read_bytes()


def test_a_cache_entry_with_one_odd_tensor_is_ignored(tmp_path: Path) -> None:
    path, cache = tmp_path / "model.safetensors", tmp_path / "cache"
    write_weights(path)
    before = read_facts([path], cache_folder=cache)
    (entry,) = cache.iterdir()
    entry.write_bytes(entry.read_bytes().replace(b'"BF16"', b'"bf16"'))

    assert read_facts([path], cache_folder=cache) == before


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    path, blocked = tmp_path / "model.safetensors", tmp_path / "cache"
    write_weights(path)
    blocked.write_bytes(b"a file where the folder should be")

    assert read_facts([path], cache_folder=blocked) == {path: expected_facts(path)}


def test_links_to_one_file_share_the_cache(tmp_path: Path) -> None:
    blob, cache = tmp_path / "blob", tmp_path / "cache"
    write_weights(blob)
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(blob)
    read_facts([tmp_path / "a"], cache_folder=cache)

    with looks() as files:
        facts = read_facts([tmp_path / "b"], cache_folder=cache)

        assert ("open", str(blob)) not in files
    assert facts[tmp_path / "b"] == expected_facts(blob)


@pytest.mark.parametrize("cached", [False, True])
def test_progress_adds_up_to_the_size_of_the_files(tmp_path: Path, *, cached: bool) -> None:
    paths, cache = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "cache"
    done: list[int] = []
    for seed, path in enumerate(paths):
        write_weights(path, seed)
    if cached:
        read_facts(paths, cache_folder=cache)

    read_facts(paths, cache_folder=cache, progress=done.append)

    assert sum(done) == sum(path.stat().st_size for path in paths)


def test_a_file_that_is_written_while_it_is_read_is_refused_and_not_cached(tmp_path: Path) -> None:
    path, cache = tmp_path / "model.safetensors", tmp_path / "cache"
    write_weights(path)

    def write_meanwhile(_: int) -> None:
        with path.open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"\x55")
        os.utime(path, (1_600_000_000, 1_600_000_000))

    with pytest.raises(CouldNotTell, match="changed while it was read"):
        read_facts([path], cache_folder=cache, progress=write_meanwhile)
    assert not cache.exists()


def test_a_file_that_is_cut_short_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_weights(path)

    with pytest.raises(CouldNotTell, match="changed while it was read"):
        read_facts([path], cache_folder=None, progress=lambda _: os.truncate(path, 4096))


def test_a_file_that_is_replaced_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "model.safetensors", tmp_path / "other"
    write_weights(path)

    def replace(_: int) -> None:
        write_weights(other)
        other.replace(path)

    with pytest.raises(CouldNotTell, match="changed while it was read"):
        read_facts([path], cache_folder=None, progress=replace)


def test_a_file_that_vanishes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_weights(path)

    with pytest.raises(CouldNotTell, match="cannot be read"):
        read_facts([path], cache_folder=None, progress=lambda _: path.unlink(missing_ok=True))


def test_an_interruption_ends_all_threads_and_comes_through(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    done: list[int] = []
    write_weights(path)

    def interrupt(count: int) -> None:
        done.append(count)
        if len(done) == 2:  # after the header: in a thread
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_facts([path], cache_folder=None, threads=4, progress=interrupt)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fingerprint")]


def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")

    with pytest.raises(MalformedTensorFile):
        read_facts([path], cache_folder=None)


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    path, spec = tmp_path / "model.safetensors", TensorSpec.planned("w", "F32", (16, 1 << 20))
    path.write_bytes(header_bytes([spec]))
    os.truncate(path, path.stat().st_size + spec.size_bytes)  # 64 MiB of holes

    tracemalloc.start()
    try:
        read_facts([path], cache_folder=None, threads=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 4 * BUFFER_BYTES
