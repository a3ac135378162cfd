"""Facts of every tensor in a base's weight files, read once by several threads, with a cache.

Each thread takes tensors, the largest first, and streams them with `pread` through one small buffer. (A memory map
would count as memory of the process, and would kill it with SIGBUS if the file became shorter.)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from adapterhub.core.digests import Progress
from adapterhub.core.disk.files import read_json, write_durably
from adapterhub.core.errors import CouldNotTell, shown
from adapterhub.formats.base.precision import stored_bytes
from adapterhub.formats.safetensors.facts import TensorFacts, sample_offsets
from adapterhub.formats.safetensors.file import read_header
from adapterhub.formats.safetensors.header import BASE_LIMITS, TensorSpec

BUFFER_BYTES: Final = 1 << 20
"""Read at once by each thread: a multiple of the widest number that fits a core's cache."""

MOST_THREADS: Final = 8

_SETTLED_NS: Final = 2_000_000_000
"""A file younger than this may change again without a new time stamp (the clocks of some file systems tick every 2 s),
so its facts are not cached."""

_CACHE_SCHEMA: Final = "adapterhub/tensors/1"
_CACHE_LIMIT_BYTES: Final = 512 << 20


def read_facts(
    files: Sequence[Path], *, cache_folder: Path | None, threads: int | None = None, progress: Progress | None = None
) -> dict[Path, tuple[TensorFacts, ...]]:
    """Facts of every tensor of `files`, by file and in file order.

    A file whose path, size, times and inode are in `cache_folder` is not opened. Otherwise each byte is read once, by
    `threads` threads (default: one per processor, at most 8) that hold 1 MiB each. `progress` may be called from any
    of them, never from two at once.

    Raises:
        MalformedTensorFile: a file is not safetensors.
        CouldNotTell: a file cannot be read, or changed while it was read.
    """
    facts: dict[Path, tuple[TensorFacts, ...]] = {}
    to_read: list[_WeightFile] = []
    for path in files:
        file = _WeightFile(path)
        cached = file.cached(cache_folder) if cache_folder else None
        if cached is None:
            to_read.append(file)
            continue
        facts[path] = cached
        if progress is not None:
            progress(file.size_bytes)
    for file, found in _Reading(to_read, progress).run(threads or min(MOST_THREADS, os.cpu_count() or 1)):
        facts[file.path] = found
        if cache_folder is not None:
            file.cache(cache_folder, found)
    return {path: facts[path] for path in files}


class _WeightFile:
    """One weight file, and its state when it was first seen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.real_path = Path(os.path.realpath(path))
        self.looked_at_ns = time.time_ns()
        self.identity = self.identity_now()
        self.size_bytes = self.identity["size_bytes"]

    def identity_now(self) -> dict[str, int]:
        """Facts that change when the file does. The change time also shows a write that reset the modification time."""
        try:
            found = self.real_path.stat()
        except OSError as error:
            raise CouldNotTell(f"`{self.path}` cannot be read: {error.strerror}") from None
        return {
            "size_bytes": found.st_size,
            "mtime_ns": found.st_mtime_ns,
            "ctime_ns": found.st_ctime_ns,
            "inode": found.st_ino,
        }

    def cached(self, folder: Path) -> tuple[TensorFacts, ...] | None:
        """Cached facts of the unchanged file; None when the cache has none or is damaged."""
        try:
            value = read_json(self._cache_path(folder), _CACHE_LIMIT_BYTES)
            known = {key: value[key] for key in ("schema", "path", *self.identity)}
            if known != {"schema": _CACHE_SCHEMA, "path": str(self.real_path), **self.identity}:
                return None
            return tuple(TensorFacts.from_json(item) for item in value["tensors"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def cache(self, folder: Path, facts: tuple[TensorFacts, ...]) -> None:
        """Cache `facts`, unless the file is too young to distinguish it from its next version."""
        if self.looked_at_ns - self.identity["mtime_ns"] < _SETTLED_NS:
            return
        known = {"schema": _CACHE_SCHEMA, "path": str(self.real_path), **self.identity}
        data = json.dumps({**known, "tensors": [fact.to_json() for fact in facts]}, separators=(",", ":"))
        # A cache that cannot be written (full disk, read-only home) costs time, never the result.
        with contextlib.suppress(OSError):
            write_durably(self._cache_path(folder), data.encode(), sync=False)

    def _cache_path(self, folder: Path) -> Path:
        name = hashlib.sha256(os.fsencode(self.real_path)).hexdigest()
        return folder / f"{name}.json"


class _Reading:
    """One pass over the files that are not cached."""

    def __init__(self, files: Sequence[_WeightFile], progress: Progress | None) -> None:
        self.files = files
        self.progress = progress
        self.one_at_a_time = threading.Lock()
        self.stop = threading.Event()
        self.found: dict[tuple[int, int], TensorFacts] = {}

    def run(self, threads: int) -> list[tuple[_WeightFile, tuple[TensorFacts, ...]]]:
        """Facts by file, in file order; the first error of any thread ends all of them."""
        from concurrent.futures import ThreadPoolExecutor  # a cached look saves this import of 4 ms

        headers = [read_header(file.path, limits=BASE_LIMITS) for file in self.files]
        if self.progress is not None:
            self.progress(sum(header.data_start for header in headers))
        places = [(i, k, spec) for i, header in enumerate(headers) for k, spec in enumerate(header.tensors)]
        # The largest first: no thread is left alone with an embedding when the others are done.
        queue = deque(sorted(places, key=lambda place: -place[2].size_bytes))
        with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="fingerprint") as pool:
            workers = [pool.submit(self._work, queue) for _ in range(min(threads, len(queue)))]
            try:
                for worker in workers:
                    worker.result()
            finally:
                self.stop.set()  # Ctrl-C here must not wait for 14 GB
        for file in self.files:
            if file.identity_now() != file.identity:
                raise _changed(file)
        return [
            (file, tuple(self.found[i, k] for k in range(len(header.tensors))))
            for i, (file, header) in enumerate(zip(self.files, headers, strict=True))
        ]

    def _work(self, queue: deque[tuple[int, int, TensorSpec]]) -> None:
        buffer = memoryview(bytearray(BUFFER_BYTES))
        try:
            while not self.stop.is_set():
                try:
                    index, k, spec = queue.popleft()
                except IndexError:
                    return
                self.found[index, k] = self._read(self.files[index], spec, buffer)
        except BaseException:
            self.stop.set()
            raise

    def _read(self, file: _WeightFile, spec: TensorSpec, buffer: memoryview) -> TensorFacts:
        # A handle of its own for each tensor: the kernel's read-ahead keeps one position a handle.
        try:
            handle = os.open(file.real_path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CouldNotTell(f"`{file.path}` cannot be read: {error.strerror}") from None
        try:
            return self._stream(file, handle, spec, buffer)
        except OSError as error:
            raise CouldNotTell(f"`{file.path}` cannot be read: {error.strerror}") from None
        finally:
            os.close(handle)

    def _stream(self, file: _WeightFile, handle: int, spec: TensorSpec, buffer: memoryview) -> TensorFacts:
        hasher, width = hashlib.sha256(), stored_bytes(spec.dtype)
        offsets = sample_offsets(spec)
        wanted = sorted(set(offsets), reverse=True)
        numbers: dict[int, bytes] = {}
        done = 0
        while done < spec.size_bytes and not self.stop.is_set():
            goal = min(BUFFER_BYTES, spec.size_bytes - done)
            filled = 0
            while filled < goal:  # whole buffers, so that no number is cut in two
                count = os.preadv(handle, [buffer[filled:goal]], spec.start + done + filled)
                if not count:
                    raise _changed(file)
                filled += count
            hasher.update(buffer[:goal])
            while wanted and wanted[-1] < done + goal:
                offset = wanted.pop()
                numbers[offset] = bytes(buffer[offset - done : offset - done + width])
            done += goal
            if self.progress is not None:
                with self.one_at_a_time:
                    self.progress(goal)
        return TensorFacts(
            name=spec.name,
            dtype=spec.dtype,
            shape=spec.shape,
            sha256=hasher.hexdigest(),
            samples=b"".join(numbers.get(offset, b"") for offset in offsets),
        )


def _changed(file: _WeightFile) -> CouldNotTell:
    return CouldNotTell(
        f"`{shown(str(file.path), 200)}` changed while it was read", hint="wait until it is written and try again"
    )
