"""The weight files in a base's folder: those that transformers or diffusers would load, safetensors only."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from adapterhub.core.digests import Digest, Progress, parse_digest
from adapterhub.core.disk.files import (
    NO_LINK,
    LeadsOut,
    digest_of_file,
    ensure_there,
    inside,
    not_read,
    read_json,
    write_durably,
)
from adapterhub.core.errors import BaseNotFound, CouldNotTell, Malformed, shown
from adapterhub.formats.base.fingerprint import stored_bytes
from adapterhub.formats.diffusion.components import TensorView
from adapterhub.formats.gguf.file import GgufHeader, read_gguf_model, read_gguf_part
from adapterhub.formats.safetensors.file import TensorFile, read_header
from adapterhub.formats.safetensors.header import (
    BASE_LIMITS,
    DTYPES,
    POINTER,
    TensorFacts,
    TensorSpec,
    is_pointer,
    sample_offsets,
)

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
)
"""Names under which tokenizers are saved beside a model."""

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILES: Final = (SINGLE_FILE, "diffusion_pytorch_model.safetensors")
"""The names under which transformers and diffusers save a whole model; each has an index of the same name."""

_SHARD: Final = re.compile(r"(?P<set>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors", re.ASCII)
INDEX_LIMIT_BYTES: Final = 256 << 20  # the index of the largest public model (DeepSeek-V3, 91,991 tensors) is 9 MB
_LISTED = 8


def weight_files(place: Path) -> tuple[Path, ...]:
    """Return the weight files of the model in the folder `place`, sorted by name; links are not resolved.

    As in transformers and diffusers, the first match wins: `model.safetensors`, the files that its index names, the
        same two for `diffusion_pytorch_model.safetensors`, the files of the only index of a variant (`.fp16.`), or
        every `*.safetensors` whose name does not begin with `adapter`. `place` may also be one file of another name.

    Raises:
        BaseNotFound: there is no such folder or file.
        Malformed: no weights in safetensors, a missing file of the index, a link out of the folder, or a pipeline of
            several models.
        CouldNotTell: the folder cannot be read.
    """
    try:
        found = _weight_files(place)
        for path in found:
            inside(path.parent, path.name)
    except LeadsOut as error:
        hint = f"{NO_LINK}, or give the folder that it leads to"
        raise Malformed(f"`{shown(str(error.filename), 200)}` {error.strerror}", hint=hint) from None
    except OSError as error:
        raise not_read(error, shown(str(place), 200), CouldNotTell) from None
    return found


def _weight_files(folder: Path) -> tuple[Path, ...]:
    if folder.suffix == ".safetensors" and folder.name not in SINGLE_FILES and folder.is_file():
        return _one_file(folder)
    if folder.suffix == ".gguf" and folder.is_file():
        return gguf_files(folder)
    if not folder.is_dir():
        _refuse_what_is_no_folder(folder)
    if (folder / "model_index.json").is_file():
        raise Malformed(
            f"`{folder}` is a pipeline of several models (it has a `model_index.json`), expected one model",
            hint="give the folder of one model in it, such as `transformer` or `unet`",
        )
    index = index_of(folder)
    if index is not None:
        return _files_of_index(folder, index)
    single = next((folder / name for name in SINGLE_FILES if (folder / name).is_file()), None)
    if single is not None:
        return (single,)
    found = sorted(folder.glob("*.safetensors"))
    weights = tuple(path for path in found if not path.name.startswith("adapter"))
    broken = [path.name for path in weights if not path.is_file()]
    if broken:
        _refuse_missing(folder, broken, "it has links to files that are not there")
    _check_shards(folder, weights)
    return weights or _only_gguf(folder) or _refuse_without_weights(folder, has_adapter=bool(found))


def gguf_files(path: Path) -> tuple[Path, ...]:
    """Return the files of the GGUF model of which `path` is one.

    Raises:
        MalformedTensorFile: one breaks the format, or is missing.
        Malformed: the file holds an adapter, or something other than a model.
    """
    model = read_gguf_model(path)
    kind = model.values.get("general.type", "model")
    if kind != "model" or model.architecture == "clip":
        what = "an adapter" if kind == "adapter" else shown(model.architecture or kind)
        raise Malformed(
            f"`{shown(str(path), 200)}` holds {what}, expected a model", hint="give the file of the model itself"
        )
    return tuple(sorted({file for file, _ in model.tensors.values()}))


def _only_gguf(folder: Path) -> tuple[Path, ...]:
    """Return the files of the only GGUF model in a folder; () for none.

    Raises:
        Malformed: there are several.
    """
    found = sorted(path for path in folder.glob("*.gguf") if not path.name.startswith(("mmproj", "imatrix")))
    if not found:
        return ()
    files = gguf_files(found[0])
    if others := [path.name for path in found if path not in files]:
        listed = ", ".join(f"`{shown(name)}`" for name in (found[0].name, *others)[:_LISTED])
        raise Malformed(f"`{folder}` holds {len(others) + 1} models in GGUF: {listed}", hint="give one of the files")
    return files


def index_of(folder: Path) -> Path | None:
    """Return the index that names the weight files in `folder`.

    None if one file holds them all, or no index is there.

    Raises:
        Malformed: there are only indexes of variants, and several of them.
    """
    for name in SINGLE_FILES:
        if (folder / name).is_file():
            return None
        if (folder / f"{name}.index.json").is_file():
            return folder / f"{name}.index.json"
    variants = sorted(path for name in SINGLE_FILES for path in folder.glob(f"{name}.index.*.json"))
    if len(variants) > 1:
        listed = ", ".join(f"`{shown(path.name)}`" for path in variants[:_LISTED])
        raise Malformed(
            f"`{folder}` holds {len(variants)} variants of a model, expected one: {listed}",
            hint="keep the files of one variant there, or download the plain ones",
        )
    return variants[0] if variants else None


def indexed_tensors(path: Path) -> dict[str, str]:
    """Return the file of each tensor, by name, from the index `path`.

    Raises:
        Malformed: the file is not an index, or names a file outside its folder.
    """
    try:
        value = read_json(path, INDEX_LIMIT_BYTES)
    except (ValueError, OSError) as error:
        raise Malformed(f"{path}: {error}", hint="download the file again") from None
    places = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise Malformed(f"{path}: expected an object `weight_map` that gives the file of each tensor")
    for name in dict.fromkeys(places.values()):
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name or not name.endswith(".safetensors"):
            raise Malformed(
                f"{path}: `{shown(name)}` is not the name of a safetensors file beside it",
                hint="download the file again, with every file of the model in one folder",
            )
    return places


def _files_of_index(folder: Path, index: Path) -> tuple[Path, ...]:
    names = sorted(set(indexed_tensors(index).values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        _refuse_missing(
            folder, missing, f"{len(missing)} of {len(names)} files that `{index.name}` names are not there"
        )
    return tuple(folder / name for name in names)


def _one_file(path: Path) -> tuple[Path, ...]:
    """Return a file that is a whole model; a shard of one is refused."""
    shard = _SHARD.fullmatch(path.name)
    if shard is not None and int(shard["count"]) > 1:
        raise Malformed(
            f"`{path}` is file {int(shard['number'])} of {int(shard['count'])} of a model, expected a whole model",
            hint=f"give the folder `{path.parent}`",
        )
    return (path,)


def _check_shards(folder: Path, weights: Iterable[Path]) -> None:
    """Raise if files without an index are numbered, and some of the numbers are missing."""
    names = {path.name for path in weights}
    for match in filter(None, map(_SHARD.fullmatch, sorted(names))):
        count = int(match["count"])
        every = [f"{match['set']}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
        missing = [name for name in every if name not in names]
        if missing:
            _refuse_missing(folder, missing, f"{len(missing)} of {count} files are not there")


def _refuse_missing(folder: Path, names: list[str], reason: str) -> NoReturn:
    listed = ", ".join(f"`{shown(name)}`" for name in names[:_LISTED])
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    raise Malformed(f"`{folder}` is incomplete: {reason}: {listed}{rest}", hint="finish the download and try again")


def _refuse_what_is_no_folder(folder: Path) -> NoReturn:
    ensure_there(folder, BaseNotFound, hint="`adapt base list` lists the registered bases")
    if not folder.exists():
        raise BaseNotFound(f"`{shown(str(folder), 200)}` is a link that leads nowhere", hint="give the model's folder")
    raise Malformed(f"`{folder}` is a file, expected the folder of a model", hint=f"give `{folder.parent}`")


def _refuse_without_weights(folder: Path, *, has_adapter: bool) -> NoReturn:
    if has_adapter or (folder / "adapter_config.json").is_file():
        raise Malformed(
            f"`{folder}` holds an adapter, expected the model it runs on",
            hint="give the base model's folder; `adapt add FOLDER` takes an adapter",
        )
    kinds = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.safetensors")
    pointers = sorted(path.name for kind in kinds for path in folder.glob(kind) if is_pointer(path))
    if pointers:
        raise Malformed(f"`{folder}`: `{shown(pointers[0])}` is {POINTER.name}", hint=POINTER.hint)
    pickles = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(kind))
    if pickles:
        raise Malformed(
            f"`{folder}` holds pickles only (`{shown(pickles[0])}`), which can run code when they are opened;"
            " only safetensors is read",
            hint='convert it where you trust it: `python -c "from transformers import AutoModelForCausalLM as M;'
            f" M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\"`",
        )
    commits = sorted(folder.glob("snapshots/*/"))
    if commits:
        raise Malformed(
            f"`{folder}` is a repository in a Hub cache, expected one commit of it", hint=f"give `{commits[-1]}`"
        )
    raise Malformed(
        f"`{folder}` holds no weights, expected `{SINGLE_FILE}` or `{INDEX_FILE}` and the files it names",
        hint="give the folder that `save_pretrained` wrote or `hf download` printed",
    )


BUFFER_BYTES: Final = 1 << 20
"""Read at once by each thread: a multiple of the widest number that fits a core's cache."""

MOST_THREADS: Final = 8

_SETTLED_NS: Final = 2_000_000_000
"""A file younger than this may change again without a new time stamp (the clocks of some file systems tick every 2 s),
so its facts are not cached."""

_CACHE_SCHEMA: Final = "adapterhub/tensors/1"
_SPLIT_SCHEMA: Final = "adapterhub/components/1"  # another table of names needs another number
_FILE_SCHEMA: Final = "adapterhub/file/1"
_NAME_ENDS: Final = {_CACHE_SCHEMA: "", _SPLIT_SCHEMA: "-components", _FILE_SCHEMA: "-file"}
_CACHE_LIMIT_BYTES: Final = 512 << 20
_WORTH_CACHING_BYTES: Final = 1 << 20
"""Hashing a smaller file takes no longer than reading its cached digest."""

MOST_TRANSPOSED_BYTES: Final = 256 << 20
"""A tensor that is read as its transpose is held in memory whole; the largest known one has 6.5 MB."""

_UNSIGNED: Final[dict[int, Literal["B", "H", "I", "Q"]]] = {1: "B", 2: "H", 4: "I", 8: "Q"}

Header = TensorFile | GgufHeader
Views = Callable[[Any], Sequence[TensorView]]
"""The tensors that a file is read as, from its header."""


def _header_of(path: Path) -> Header:
    return read_gguf_part(path) if path.suffix == ".gguf" else read_header(path, limits=BASE_LIMITS)


def _every_tensor(header: Header) -> list[TensorView]:
    return [TensorView.of(spec) for spec in header.tensors]


def read_facts(
    files: Sequence[Path],
    *,
    cache_folder: Path | None,
    threads: int | None = None,
    progress: Progress | None = None,
    views: Views | None = None,
) -> dict[Path, tuple[TensorFacts, ...]]:
    """Facts of every tensor of `files`, or of those that `views` makes of each file, by file and in their order.

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
        file = _WeightFile(path, _CACHE_SCHEMA if views is None else _SPLIT_SCHEMA)
        cached = file.cached_facts(cache_folder) if cache_folder else None
        if cached is None:
            to_read.append(file)
            continue
        facts[path] = cached
        if progress is not None:
            progress(file.size_bytes)
    for file, found in _Reading(to_read, progress, views or _every_tensor).run(
        threads or min(MOST_THREADS, os.cpu_count() or 1)
    ):
        facts[file.path] = found
        if cache_folder is not None:
            file.cache(cache_folder, tensors=[fact.to_json() for fact in found])
    return {path: facts[path] for path in files}


def digest_now(path: Path, *, cache_folder: Path | None) -> Digest:
    """Return the digest of a file beside the weights; a large one is cached as the facts of weight files are.

    Raises:
        CouldNotTell: it cannot be read, or changed while it was read.
    """
    file = _WeightFile(path, _FILE_SCHEMA)
    is_cached = cache_folder is not None and file.size_bytes > _WORTH_CACHING_BYTES
    with contextlib.suppress(OSError, ValueError, KeyError):
        if is_cached and cache_folder is not None and (known := file.cached(cache_folder)) is not None:
            return parse_digest(known["sha256"])
    try:
        digest, _ = digest_of_file(file.real_path)
    except OSError as error:
        raise not_read(error, path, CouldNotTell) from None
    if file.identity_now() != file.identity:
        raise _changed(file)
    if is_cached and cache_folder is not None:
        file.cache(cache_folder, sha256=digest)
    return digest


def identity_of(path: Path) -> dict[str, int]:
    """Facts that change when a file does. The change time also shows a write that reset the modification time.

    Raises:
        CouldNotTell: it is not there.
    """
    try:
        found = Path(os.path.realpath(path)).stat()
    except OSError as error:
        raise not_read(error, path, CouldNotTell) from None
    return {
        "size_bytes": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
        "inode": found.st_ino,
    }


def is_settled(identity: Mapping[str, int], looked_at_ns: int) -> bool:
    """Return whether a file was old enough, when it was looked at, that its next version has another identity."""
    return looked_at_ns - identity["mtime_ns"] >= _SETTLED_NS


class _WeightFile:
    """One file of a model, and its state when it was first seen."""

    def __init__(self, path: Path, schema: str) -> None:
        self.path = path
        self.schema = schema
        self.real_path = Path(os.path.realpath(path))
        self.looked_at_ns = time.time_ns()
        self.identity = self.identity_now()
        self.size_bytes = self.identity["size_bytes"]

    def identity_now(self) -> dict[str, int]:
        """Facts that change when the file does."""
        return identity_of(self.path)

    def cached(self, folder: Path) -> dict[str, Any] | None:
        """Return the cached facts of the unchanged file; None when the cache has none.

        Raises:
            OSError, ValueError: the cache has nothing, or is damaged.
        """
        value = read_json(self._cache_path(folder), _CACHE_LIMIT_BYTES)
        known = {"schema": self.schema, "path": str(self.real_path), **self.identity}
        return value if isinstance(value, dict) and known.items() <= value.items() else None

    def cached_facts(self, folder: Path) -> tuple[TensorFacts, ...] | None:
        """Return cached facts of the unchanged file; None when the cache has none or is damaged."""
        try:
            value = self.cached(folder)
            return None if value is None else tuple(TensorFacts.from_json(item) for item in value["tensors"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def cache(self, folder: Path, **found: object) -> None:
        """Cache what was `found`, unless the file is too young to distinguish it from its next version."""
        if not is_settled(self.identity, self.looked_at_ns):
            return
        known = {"schema": self.schema, "path": str(self.real_path), **self.identity}
        data = json.dumps({**known, **found}, separators=(",", ":"))
        # A cache that cannot be written (full disk, read-only home) costs time, never the result.
        with contextlib.suppress(OSError):
            write_durably(self._cache_path(folder), data.encode(), sync=False)

    def _cache_path(self, folder: Path) -> Path:
        name = hashlib.sha256(os.fsencode(self.real_path)).hexdigest()
        return folder / f"{name}{_NAME_ENDS[self.schema]}.json"


class _Reading:
    """One pass over the files that are not cached."""

    def __init__(self, files: Sequence[_WeightFile], progress: Progress | None, views: Views) -> None:
        self.files = files
        self.views = views
        self.progress = progress
        self.one_at_a_time = threading.Lock()
        self.stop = threading.Event()
        self.found: dict[tuple[int, int], TensorFacts] = {}

    def run(self, threads: int) -> list[tuple[_WeightFile, tuple[TensorFacts, ...]]]:
        """Facts by file, in file order; the first error of any thread ends all of them."""
        from concurrent.futures import ThreadPoolExecutor  # a cached look saves this import of 4 ms

        headers = [_header_of(file.path) for file in self.files]
        if self.progress is not None:
            self.progress(sum(header.data_start for header in headers))
        views = [self.views(header) for header in headers]
        places = [(i, k, view) for i, made in enumerate(views) for k, view in enumerate(made)]
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
            (file, tuple(self.found[i, k] for k in range(len(made))))
            for i, (file, made) in enumerate(zip(self.files, views, strict=True))
        ]

    def _work(self, queue: deque[tuple[int, int, TensorView]]) -> None:
        buffer = memoryview(bytearray(BUFFER_BYTES))
        try:
            while not self.stop.is_set():
                try:
                    index, k, view = queue.popleft()
                except IndexError:
                    return
                self.found[index, k] = self._read(self.files[index], view, buffer)
        except BaseException:
            self.stop.set()
            raise

    def _read(self, file: _WeightFile, view: TensorView, buffer: memoryview) -> TensorFacts:
        # A handle of its own for each tensor: the kernel's read-ahead keeps one position a handle.
        try:
            handle = os.open(file.real_path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise not_read(error, file.path, CouldNotTell) from None
        try:
            return self._stream(file, handle, view, buffer)
        except OSError as error:
            raise not_read(error, file.path, CouldNotTell) from None
        finally:
            os.close(handle)

    def _stream(self, file: _WeightFile, handle: int, view: TensorView, buffer: memoryview) -> TensorFacts:
        is_number = view.dtype in DTYPES  # GGML's types are blocks of codes
        hasher, width = hashlib.sha256(), stored_bytes(view.dtype) if is_number else 0
        offsets = sample_offsets(TensorSpec.planned(view.name, view.dtype, view.shape)) if is_number else ()
        wanted = sorted(set(offsets), reverse=True)
        numbers: dict[int, bytes] = {}
        done = 0
        if view.is_transposed:
            buffer = _transposed(file, handle, view)
        while done < view.size_bytes and not self.stop.is_set():
            goal = min(len(buffer), view.size_bytes - done)
            if not view.is_transposed:
                _fill(file, handle, view, done, buffer[:goal])
            hasher.update(buffer[:goal])
            while wanted and wanted[-1] < done + goal:
                offset = wanted.pop()
                numbers[offset] = bytes(buffer[offset - done : offset - done + width])
            done += goal
            if self.progress is not None:
                with self.one_at_a_time:
                    self.progress(goal)
        return TensorFacts(
            name=view.name,
            dtype=view.dtype,
            shape=view.shape,
            sha256=hasher.hexdigest(),
            samples=b"".join(numbers.get(offset, b"") for offset in offsets),
        )


def _fill(file: _WeightFile, handle: int, view: TensorView, done: int, target: memoryview) -> None:
    """Fill `target` with the bytes of the tensor from `done` on, so that no number is cut in two."""
    skipped = filled = 0
    for start, end in view.pieces:
        while filled < len(target) and done + filled < skipped + end - start:
            at = start + done + filled - skipped
            count = os.preadv(handle, [target[filled : filled + end - at]], at)
            if not count:
                raise _changed(file)
            filled += count
        skipped += end - start


def _transposed(file: _WeightFile, handle: int, view: TensorView) -> memoryview:
    """Return all bytes of the transposed tensor."""
    if view.size_bytes > MOST_TRANSPOSED_BYTES:
        raise CouldNotTell(
            f"`{file.path}`: `{shown(view.name)}` has {view.size_bytes:,} bytes, expected at most"
            f" {MOST_TRANSPOSED_BYTES:,} to transpose"
        )
    whole = memoryview(bytearray(view.size_bytes))
    _fill(file, handle, view, 0, whole)
    numbers = whole.cast(_UNSIGNED[stored_bytes(view.dtype)])
    return memoryview(b"".join(numbers[column :: view.shape[0]].tobytes() for column in range(view.shape[0])))


def _changed(file: _WeightFile) -> CouldNotTell:
    return CouldNotTell(
        f"`{shown(str(file.path), 200)}` changed while it was read", hint="wait until it is written and try again"
    )
