"""From a foreign file to a PEFT folder, in one pass over the file and with the memory of one module."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import IO, Any, Final

from adapterhub.core.digests import Digest, Progress, digest_of_hash
from adapterhub.core.disk.inside import NO_LINK, LeadsOut, inside
from adapterhub.core.errors import MalformedTensorFile, shown
from adapterhub.formats.foreign.arrays import folded, transposed
from adapterhub.formats.foreign.reading import Cut, Reading, Rows, Source
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.peft.keys import PREFIX
from adapterhub.formats.safetensors.file import TensorFile, header_bytes, parse_header
from adapterhub.formats.safetensors.header import TensorSpec

_BLOCK_BYTES: Final = 1 << 20
_AHEAD: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """The digests of a foreign file: of all its bytes, and of those behind the header (kohya's `sshs_model_hash`)."""

    whole: Digest
    data: Digest
    size_bytes: int


class OpenFile:
    """A foreign file, opened once: its header, and its bytes."""

    def __init__(self, path: Path, stream: IO[bytes], size_bytes: int) -> None:
        self.path = path
        self.where = path.name
        self._stream = stream
        self.header: TensorFile = parse_header(stream, path=path, size_bytes=size_bytes, where=self.where)
        self._seen: dict[int, bytes] = {}
        self._rest = memoryview(b"")

    def source(self, config: Mapping[str, Any] | None, base: Mapping[str, tuple[int, ...]]) -> Source:
        """What a reader gets."""
        return Source(file=self.header, where=self.where, read=self._small, config=config, base=base)

    def _small(self, spec: TensorSpec) -> bytes:
        """The bytes of a tensor of one number; the pass compares them."""
        self._seen[spec.start] = os.pread(self._stream.fileno(), spec.size_bytes, spec.start)
        return self._seen[spec.start]

    def pieces(
        self, progress: Progress | None, digests: list[Digests]
    ) -> Iterator[tuple[TensorSpec, Iterator[memoryview]]]:
        """Each tensor in the file's order with its bytes; the digests are appended behind the last one.

        Two threads hash the blocks that were read: one all of them, the other those behind the header.

        Raises:
            MalformedTensorFile: the file was cut short, or changed, meanwhile.
        """
        header = self.header
        self._stream.seek(0)
        with _Hashing() as whole, _Hashing() as data:
            whole.put(self._stream.read(header.data_start))
            blocks, self._rest = self._blocks(whole, data, progress), memoryview(b"")
            for spec in header.tensors:
                yield spec, self._of(spec, blocks)
        digests.append(Digests(whole=whole.digest, data=data.digest, size_bytes=header.size_bytes))

    def _blocks(self, whole: _Hashing, data: _Hashing, progress: Progress | None) -> Iterator[memoryview]:
        """The bytes behind the header, which are being hashed."""
        left = self.header.size_bytes - self.header.data_start
        while left:
            block = self._stream.read(min(_BLOCK_BYTES, left))
            if not block:
                raise self._changed()
            left -= len(block)
            whole.put(block)
            data.put(block)
            if progress is not None:
                progress(len(block))
            yield memoryview(block)

    def _of(self, spec: TensorSpec, blocks: Iterator[memoryview]) -> Iterator[memoryview]:
        """The bytes of the next tensor, to be taken to the end; the rest of a block stays for the one after it."""
        left, found = spec.size_bytes, bytearray()
        while left:
            rest = self._rest or next(blocks)
            piece, self._rest = rest[:left], rest[left:]
            left -= len(piece)
            if spec.start in self._seen:
                found += piece
            yield piece
        if found and found != self._seen[spec.start]:
            raise self._changed()

    def _changed(self) -> MalformedTensorFile:
        return MalformedTensorFile(self.where, "changed while it was read", hint="add it again")


class _Hashing:
    """A thread that hashes the blocks put into it, at most `_AHEAD` behind; `digest` once its block is over."""

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()
        self._blocks: Queue[bytes] = Queue(_AHEAD)
        self._thread = Thread(target=self._run, name="hash", daemon=True)
        self.put = self._blocks.put

    def __enter__(self) -> _Hashing:  # noqa: PYI034 - `typing.Self` comes with Python 3.11
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.put(b"")
        self._thread.join()

    @property
    def digest(self) -> Digest:
        """The digest of all blocks."""
        return digest_of_hash(self._hasher)

    def _run(self) -> None:
        while block := self._blocks.get():
            self._hasher.update(block)


@contextmanager
def opened(path: Path) -> Iterator[OpenFile]:
    """The file at `path`, with its header checked.

    Raises:
        MalformedTensorFile: it cannot be opened, is a link out of its folder or not a plain file, or its header breaks
            the format.
    """
    try:
        real = inside(path.parent, path.name)
        handle = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | getattr(os, "O_NONBLOCK", 0))
    except LeadsOut as error:
        hint = f"{NO_LINK}, or give the file that it leads to"
        raise MalformedTensorFile(path.name, error.strerror, code="E_LINK", hint=hint) from None
    except OSError as error:
        raise MalformedTensorFile(path.name, f"cannot be opened: {error.strerror}") from None
    with os.fdopen(handle, "rb") as stream:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise MalformedTensorFile(path.name, "is not a regular file")
        yield OpenFile(path, stream, facts.st_size)


# ---------------------------------------------------------------- the plan
def planned(reading: Reading) -> list[tuple[TensorSpec, Cut]]:
    """Every tensor of the PEFT folder and where its bytes come from, in the order of the foreign file."""
    found = [
        (TensorSpec.planned(f"{PREFIX}{reading.full_name(module)}.{slot}", cut.dtype, cut.shape), cut)
        for module in reading.modules
        for slot, cut in module.slots.items()
    ]
    return sorted(
        found, key=lambda pair: (max(pair[1].source.start, pair[1].mid.start if pair[1].mid else 0), pair[0].name)
    )


def write_folder(file: OpenFile, reading: Reading, folder: Path, progress: Progress | None = None) -> Digests:
    """Write config and weights of the PEFT folder into `folder`, which exists; returns the digests of the original.

    Raises:
        MalformedTensorFile: the file changed meanwhile.
        OSError: the folder cannot be written.
    """
    plan = planned(reading)
    header = header_bytes([spec for spec, _ in plan], {"format": "pt"})
    places: dict[int, list[tuple[int, Cut]]] = {}
    needed: Counter[int] = Counter()
    at = len(header)
    for spec, cut in plan:
        for one in (cut.source, cut.mid):
            if one is not None:
                places.setdefault(one.start, []).append((at, cut))
        needed.update([cut.source.start] if cut.mid else [])
        at += spec.size_bytes
    kept: dict[int, bytes] = {}
    digests: list[Digests] = []
    with (folder / WEIGHTS_FILE).open("xb", buffering=0) as sink:
        _write_at(sink.fileno(), memoryview(header), 0)
        for spec, pieces in file.pieces(progress, digests):
            uses = places.get(spec.start, []) if spec.size_bytes else []
            if all(_is_as_stored(cut) for _, cut in uses):
                _write_parts(sink.fileno(), spec, uses, pieces)
                continue
            raw = b"".join(pieces)
            for place, cut in uses:
                if cut.mid is not None:
                    kept[spec.start] = raw
                    if not {cut.source.start, cut.mid.start} <= kept.keys():
                        continue
                    made = folded(kept.pop(cut.source.start), cut.source, kept.pop(cut.mid.start), cut.mid)
                else:
                    made = transposed(raw, cut.source)
                _write_at(sink.fileno(), memoryview(made), place)
    text = json.dumps(config_of(reading), indent=2) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    return digests[0]


def _is_as_stored(cut: Cut) -> bool:
    """Whether a cut is runs of the file's own bytes."""
    return not cut.is_transposed and cut.mid is None


def _write_parts(handle: int, spec: TensorSpec, uses: list[tuple[int, Cut]], pieces: Iterator[memoryview]) -> None:
    """Write each piece to every place that it has a part of, uncopied: q, k and v of FLUX.1 each have their own A."""
    runs: list[tuple[int, int, int]] = []
    for place, cut in uses:
        at = place
        row_bytes = spec.size_bytes // spec.shape[0] if cut.rows else 1
        for start, stop in cut.rows or ((0, spec.size_bytes),):
            runs.append((start * row_bytes, stop * row_bytes, at - start * row_bytes))
            at += (stop - start) * row_bytes
    done = 0
    for piece in pieces:
        end = done + len(piece)
        for start, stop, shift in runs:
            first, last = max(start, done), min(stop, end)
            if first < last:
                _write_at(handle, piece[first - done : last - done], first + shift)
        done = end


def _write_at(handle: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(handle, data, at)
        data, at = data[count:], at + count


def rows_of(raw: bytes, spec: TensorSpec, rows: Rows) -> list[memoryview]:
    """Those rows of a tensor, in that order."""
    width, view = len(raw) // spec.shape[0], memoryview(raw)
    return [view[start * width : stop * width] for start, stop in rows]


# ---------------------------------------------------------------- the config
def config_of(reading: Reading) -> dict[str, Any]:
    """The `adapter_config.json`: whole module names, and the rank and alpha that most modules have."""
    names = [reading.full_name(module) for module in reading.modules]
    ranks = Counter(module.rank for module in reading.modules)
    alphas = Counter(float(module.rank if module.alpha is None else module.alpha) for module in reading.modules)
    rank, alpha = ranks.most_common(1)[0][0], alphas.most_common(1)[0][0]
    inner = _ends_of(names)
    keys = {name: f"^{re.escape(name)}" if name in inner else name for name in names}
    pairs = list(zip(names, reading.modules, strict=True))
    own_ranks = {keys[name]: module.rank for name, module in pairs if module.rank != rank}
    own_alphas = {
        keys[name]: _number(value)
        for name, module in pairs
        if (value := float(module.rank if module.alpha is None else module.alpha)) != alpha
    }
    targets: list[str] | str = sorted(names)
    if inner:
        targets = f"^(?:{'|'.join(re.escape(name) for name in sorted(names))})$"
    common = {
        "peft_type": reading.method,
        "base_model_name_or_path": None,
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "target_modules": targets,
        "rank_pattern": own_ranks,
        "alpha_pattern": own_alphas,
        **reading.settings,
    }
    if reading.method == "LORA":
        slots = {slot for module in reading.modules for slot in module.slots}
        return common | {
            "lora_alpha": _number(alpha),
            "lora_dropout": 0.0,
            "bias": "none",
            "use_rslora": reading.use_rslora,
            "use_dora": "lora_magnitude_vector" in slots,
            "lora_bias": "lora_B.bias" in slots,
            "init_lora_weights": True,
        }
    return common | {"alpha": _number(alpha), "init_weights": True}


def _number(value: float) -> int | float:
    return int(value) if value.is_integer() else value


def _ends_of(names: list[str]) -> set[str]:
    """Names that end another one at a dot, which a plain pattern would hit as well."""
    known = set(names)
    return {end for name in names for end in _endings(name) if end in known}


def _endings(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[n:]) for n in range(1, len(parts)))


def ensure_one_kind(source: Source, reading: Reading) -> None:
    """Raise where PEFT's one config cannot say what the modules are.

    Raises:
        MalformedTensorFile: E_UNSUPPORTED for DoRA or biases on some modules and not on others.
    """
    for slot, what in (("lora_magnitude_vector", "DoRA's magnitude"), ("lora_B.bias", "a bias of B")):
        having = [module for module in reading.modules if slot in module.slots]
        if having and len(having) < len(reading.modules):
            lacking = next(module for module in reading.modules if slot not in module.slots)
            text = f"{len(having)} of {len(reading.modules)} modules have {what}, `{shown(lacking.name)}` has none"
            source.refuse("E_UNSUPPORTED", text, "PEFT has it on all modules of an adapter or on none")
