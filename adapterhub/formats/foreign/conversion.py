"""From a foreign file to a PEFT folder, in one pass over the file and with the memory of one module."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from queue import Queue
from threading import Thread
from types import MappingProxyType
from typing import IO, Any, Final

from adapterhub.core.digests import Digest, Progress, digest_of_hash, hex_of
from adapterhub.core.disk.files import NO_LINK, LeadsOut, inside, read_json
from adapterhub.core.errors import MalformedTensorFile, MissingExtra, shown
from adapterhub.core.limits import limits
from adapterhub.formats.foreign.reading import (
    MATRIX,
    PEFT,
    Cut,
    FactorSource,
    ForeignHeader,
    Method,
    Module,
    Reading,
    Rows,
    lora_module,
    read_metadata,
    recognise,
)
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.peft.keys import PREFIX
from adapterhub.formats.safetensors.file import TensorFile, header_bytes, parse_header
from adapterhub.formats.safetensors.header import DTYPE_BITS, FACTOR_DTYPES, TensorSpec
from adapterhub.formats.safetensors.parts import parts_problem

_BLOCK_BYTES: Final = 1 << 20
_AHEAD: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigests:
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

    def source(self, config: Mapping[str, Any] | None, base: Mapping[str, tuple[int, ...]]) -> FactorSource:
        """Return the read result."""
        return FactorSource(file=self.header, where=self.where, read=self._small, config=config, base=base)

    def _small(self, spec: TensorSpec) -> bytes:
        """Return the bytes of a tensor of one number; the pass compares them."""
        self._seen[spec.start] = os.pread(self._stream.fileno(), spec.size_bytes, spec.start)
        return self._seen[spec.start]

    def pieces(
        self, progress: Progress | None, digests: list[FileDigests]
    ) -> Iterator[tuple[TensorSpec, Iterator[memoryview]]]:
        """Each tensor in the file's order with its bytes; the digests are appended behind the last one.

        Two threads hash the blocks that were read: one all of them, the other those behind the header.

        Raises:
            MalformedTensorFile: the file was cut short, or changed, meanwhile.
        """
        header = self.header
        self._stream.seek(0)
        with _HashedCopy() as whole, _HashedCopy() as data:
            whole.put(self._stream.read(header.data_start))
            blocks, self._rest = self._blocks(whole, data, progress), memoryview(b"")
            for spec in header.tensors:
                yield spec, self._of(spec, blocks)
        digests.append(FileDigests(whole=whole.digest, data=data.digest, size_bytes=header.size_bytes))

    def _blocks(self, whole: _HashedCopy, data: _HashedCopy, progress: Progress | None) -> Iterator[memoryview]:
        """Yield the bytes behind the header, which are being hashed."""
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
        """Yield the bytes of the next tensor, to be taken to the end.

        The rest of a block stays for the one after it.
        """
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


class _HashedCopy:
    """A thread that hashes the blocks put into it, at most `_AHEAD` behind; `digest` once its block is over."""

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()
        self._blocks: Queue[bytes] = Queue(_AHEAD)
        self._thread = Thread(target=self._run, name="hash", daemon=True)
        self.put = self._blocks.put

    def __enter__(self) -> _HashedCopy:  # noqa: PYI034 - `typing.Self` comes with Python 3.11
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
    """Provide the file at `path`, with its header checked.

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


def write_folder(file: OpenFile, reading: Reading, folder: Path, progress: Progress | None = None) -> FileDigests:
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
    digests: list[FileDigests] = []
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
    """Return whether a cut is runs of the file's own bytes."""
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
    """Return the `adapter_config.json`: whole module names, and the rank and alpha that most modules have."""
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


def ensure_one_kind(source: FactorSource, reading: Reading) -> None:
    """Raise if PEFT's single config cannot describe all modules.

    Raises:
        MalformedTensorFile: E_UNSUPPORTED for DoRA or biases on some modules and not on others.
    """
    for slot, what in (("lora_magnitude_vector", "DoRA's magnitude"), ("lora_B.bias", "a bias of B")):
        having = [module for module in reading.modules if slot in module.slots]
        if having and len(having) < len(reading.modules):
            lacking = next(module for module in reading.modules if slot not in module.slots)
            text = f"{len(having)} of {len(reading.modules)} modules have {what}, `{shown(lacking.name)}` has none"
            source.refuse("E_UNSUPPORTED", text, "PEFT has it on all modules of an adapter or on none")


_METHODS: Final[Mapping[str, Method]] = MappingProxyType({"hada": "LOHA", "lokr": "LOKR"})
_LOHA: Final = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_LARGEST_SIDE: Final = 1 << 20
_KERNEL: Final = 9


def method_of(source: FactorSource, groups: Mapping[str, Iterable[str]]) -> Method:
    """Return the one method of all modules, by the ends of their tensors.

    Raises:
        MalformedTensorFile: E_UNSUPPORTED for a mixture.
    """
    kinds: dict[Method, str] = {}
    for name, slots in groups.items():
        here = {_METHODS.get(slot.partition("_")[0], "LORA") for slot in slots if slot not in ("alpha", "magnitude")}
        for kind in here or {"LORA"}:
            kinds.setdefault(kind, name)
    if len(kinds) > 1:
        which = ", ".join(f"{kind} on `{shown(name)}`" for kind, name in kinds.items())
        source.refuse("E_UNSUPPORTED", f"mixes methods: {which}", "a PEFT adapter has one method")
    return next(iter(kinds))


def module_of(
    source: FactorSource,
    part: str,
    name: str,
    found: Mapping[str, TensorSpec],
    *,
    method: Method,
    alpha: float | None,
    label: str,
) -> Module:
    """One module of `method` from its tensors; arguments as for `lora_module`.

    Raises:
        MalformedTensorFile: E_PAIR, E_SHAPE, E_RANK, E_DTYPE, or E_UNSUPPORTED for what PEFT has no place for.
    """
    if method == "LORA":
        return lora_module(source, part, name, found, alpha=alpha, label=label)
    label = shown(label)
    if "magnitude" in found:
        source.refuse("E_UNSUPPORTED", f"`{label}` has a `dora_scale`, which PEFT's {method} has no place for")
    for spec in found.values():
        if spec.dtype not in FACTOR_DTYPES:
            source.refuse("E_DTYPE", f"`{shown(spec.name)}` is {spec.dtype}, expected {', '.join(FACTOR_DTYPES)}")
        if len(spec.shape) < MATRIX or not all(spec.shape):
            source.refuse("E_SHAPE", f"`{shown(spec.name)}` has shape {list(spec.shape)}, expected a matrix")
    rank = _loha(source, found, label) if method == "LOHA" else _lokr(source, found, label)
    if rank > limits().rank:
        source.refuse("E_RANK", f"`{label}` has rank {rank}, expected at most {limits().rank}")
    slots = {slot: Cut(source=spec, shape=spec.shape) for slot, spec in found.items()}
    is_whole = dimension(slots) is None  # LyCORIS writes an alpha then, too, and no program reads it
    own = Module(part=part, name=name, slots=slots, rank=rank, alpha=None if is_whole else alpha, unused_alpha=alpha)
    weight, (out, numbers) = source.shape_of(part, name), _size(own)
    if weight is not None and (out, numbers) != (weight[0], math.prod(weight)):
        text = f"`{label}` updates {out} x {numbers // out} numbers, and the base has {list(weight)}"
        source.refuse("E_SHAPE", text)
    return own


def _size(module: Module) -> tuple[int, int]:
    """Return the outputs of the layer with this update, and the numbers of its weight."""
    slots = module.slots
    if "hada_w1_a" in slots:
        out = slots["hada_w1_a"].shape[1 if "hada_t1" in slots else 0]
        kernel = slots["hada_t1"].shape[MATRIX:] if "hada_t1" in slots else ()
    else:
        out = math.prod(_sides(module)[0])
        kernel = next((slots[slot].shape[MATRIX:] for slot in ("lokr_w2", "lokr_t2") if slot in slots), ())
    return out, out * width_of(module) * math.prod(kernel)


def dimension(slots: Mapping[str, Cut]) -> int | None:
    """Return the rank that LyCORIS divides alpha by; None for a LoKr with both sides whole, whose scale is 1."""
    found = next((slots[slot] for slot in ("hada_w1_b", "lokr_w2_b", "lokr_w1_b") if slot in slots), None)
    return found.shape[0] if found is not None else None


def width_of(module: Module) -> int:
    """Return the inputs of a linear layer with this update."""
    slots = module.slots
    if "lora_A.weight" in slots:
        return slots["lora_A.weight"].shape[1]
    if "hada_w1_b" in slots:
        return slots["hada_w1_b"].shape[1]
    first, second = _sides(module)[1]
    return first * second


def _loha(source: FactorSource, found: Mapping[str, TensorSpec], label: str) -> int:
    missing = [slot for slot in _LOHA if slot not in found]
    strange = found.keys() - {*_LOHA, "hada_t1", "hada_t2"}
    if missing or strange or ("hada_t1" in found) != ("hada_t2" in found):
        there = ", ".join(f"`{slot}`" for slot in sorted(found))
        source.refuse("E_PAIR", f"`{label}` has {there}, expected the four factors of a LoHa")
    w1_a, w1_b, w2_a, w2_b = (found[slot].shape for slot in _LOHA)
    has_core = "hada_t1" in found
    rank = w1_b[0]
    sides = (w1_a[0], w2_a[0]) if has_core else (w1_a[1], w2_a[1])
    if {rank, w2_b[0], *sides} != {rank}:
        source.refuse("E_RANK", f"`{label}` has factors of ranks {sorted({rank, w2_b[0], *sides})}")
    if w1_a != w2_a or w1_b != w2_b:
        source.refuse("E_SHAPE", f"`{label}` multiplies updates of different sizes")
    if has_core and not found["hada_t1"].shape[:2] == found["hada_t2"].shape[:2] == (rank, rank):
        source.refuse("E_SHAPE", f"`{label}` has cores that are not of rank {rank}")
    return rank


def _lokr(source: FactorSource, found: Mapping[str, TensorSpec], label: str) -> int:
    one, two = "lokr_w1" in found, "lokr_w2" in found
    parts = set(found) - {"lokr_t2"}
    expected = ({"lokr_w1"} if one else {"lokr_w1_a", "lokr_w1_b"}) | (
        {"lokr_w2"} if two else {"lokr_w2_a", "lokr_w2_b"}
    )
    if parts != expected or ("lokr_t2" in found and two):
        there = ", ".join(f"`{slot}`" for slot in sorted(found))
        source.refuse("E_PAIR", f"`{label}` has {there}, expected both sides of a LoKr, each whole or in two factors")
    ranks = set()
    if not one:
        ranks |= {found["lokr_w1_a"].shape[1], found["lokr_w1_b"].shape[0]}
    if not two:
        is_core = "lokr_t2" in found
        ranks |= {found["lokr_w2_a"].shape[0 if is_core else 1], found["lokr_w2_b"].shape[0]}
        if is_core and found["lokr_t2"].shape[:2] != (found["lokr_w2_b"].shape[0],) * 2:
            source.refuse("E_SHAPE", f"`{label}` has a core of shape {list(found['lokr_t2'].shape)}")
    if len(ranks) > 1:
        source.refuse("E_RANK", f"`{label}` has factors of ranks {sorted(ranks)}")
    if ranks:
        return ranks.pop()
    return max(1, math.ceil(max(found["lokr_w2"].shape[:2]) / 2))


# ---------------------------------------------------------------- PEFT's settings
def settings_of(source: FactorSource, method: Method, modules: Sequence[Module]) -> dict[str, Any]:
    """Return the settings with which PEFT makes factors of these shapes, because it chooses the shapes itself.

    Raises:
        MalformedTensorFile: E_UNSUPPORTED where no single setting gives the sides of every LoKr.
    """
    slots = {slot for module in modules for slot in module.slots}
    settings: dict[str, Any] = {"use_effective_conv2d": bool(slots & {"hada_t1", "lokr_t2"})}
    if method == "LOHA":
        return settings
    sides = {module.name: _sides(module) for module in modules}
    largest = max(first for both in sides.values() for first, _ in both)
    unfit = ""
    for factor in (-1, largest):
        unfit = next((name for name, both in sides.items() if not _fits(both, factor)), "")
        if not unfit:
            return settings | {"decompose_both": "lokr_w1_a" in slots, "decompose_factor": factor}
    text = f"the factors of `{shown(unfit)}` have sides that no `decompose_factor` gives every module"
    return source.refuse("E_UNSUPPORTED", text, "PEFT's LoKr has one for all modules")


def _sides(module: Module) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return outputs and inputs of a LoKr, each as the sides of its two factors."""
    shapes = {slot.removeprefix("lokr_"): cut.shape for slot, cut in module.slots.items()}
    one = shapes["w1"] if "w1" in shapes else (shapes["w1_a"][0], shapes["w1_b"][1])
    if "w2" in shapes:
        return (one[0], shapes["w2"][0]), (one[1], shapes["w2"][1])
    return (one[0], shapes["w2_a"][1 if "t2" in shapes else 0]), (one[1], shapes["w2_b"][1])


def _fits(sides: tuple[tuple[int, int], tuple[int, int]], factor: int) -> bool:
    (out, out_rest), (width, width_rest) = sides
    rests = [width_rest] + ([width_rest // _KERNEL] if width_rest % _KERNEL == 0 else [])  # a 3x3 in one matrix
    return _side(out * out_rest, factor) == out and any(_side(width * rest, factor) == width for rest in rests)


@cache
def _side(total: int, factor: int) -> int:
    """Return the first side of a number of outputs or inputs: `factor` if it divides it, or the largest below the root.

    -1 stands for any. 0 for what no layer has.
    """
    if total > _LARGEST_SIDE:
        return 0
    if factor > 0 and total % factor == 0:
        return factor
    most = math.isqrt(total) if factor < 0 else min(math.isqrt(total), factor)
    return next(side for side in range(most, 0, -1) if total % side == 0)


_FLOATS: Final = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def transposed(raw: bytes, spec: TensorSpec) -> bytes:
    """Return the matrix with rows and columns exchanged, whatever its dtype."""
    _need_numpy("a LoRA of Apple's MLX")
    import numpy as np

    numbers = np.frombuffer(raw, f"<u{DTYPE_BITS[spec.dtype] // 8}").reshape(spec.shape)
    return np.ascontiguousarray(numbers.T).tobytes()


def folded(down: bytes, down_spec: TensorSpec, mid: bytes, mid_spec: TensorSpec) -> bytes:
    """One convolution of what kohya stores as two: `A[p, i, h, w] = sum over q of mid[p, q, h, w] down[q, i]`.

    In float32, computed in float64.
    """
    _need_numpy("a convolution in three parts (`lora_mid`)")
    import numpy as np

    a = _floats(down, down_spec).reshape(down_spec.shape[:2])
    core = _floats(mid, mid_spec).reshape(mid_spec.shape)
    return np.ascontiguousarray(np.einsum("pqhw,qi->pihw", core, a).astype("<f4")).tobytes()


def _floats(raw: bytes, spec: TensorSpec) -> Any:
    from adapterhub.formats.derived.reading import floats

    return floats(raw, spec.dtype).astype("<f8")


def block_diagonal(blocks: list[tuple[bytes, TensorSpec]]) -> bytes:
    """One matrix with the given ones along its diagonal, zeros elsewhere; all of one dtype, and some of no column."""
    _need_numpy("fused modules of different factors")
    import numpy as np

    width = DTYPE_BITS[blocks[0][1].dtype] // 8
    rows, columns = (sum(spec.shape[n] for _, spec in blocks) for n in (0, 1))
    made = np.zeros((rows, columns), f"<u{width}")
    row = column = 0
    for raw, spec in blocks:
        out, rank = spec.shape
        if rank:
            made[row : row + out, column : column + rank] = np.frombuffer(raw, f"<u{width}").reshape(spec.shape)
        row, column = row + out, column + rank
    return made.tobytes()


def padded(raw: bytes, spec: TensorSpec, shape: tuple[int, ...], factor: float) -> bytes:
    """Return the matrix transposed, multiplied and filled with zeros up to `shape`.

    Without a factor the numbers stay.
    """
    _need_numpy("a LoRA of Apple's MLX")
    import numpy as np

    width = DTYPE_BITS[spec.dtype] // 8
    numbers = np.frombuffer(raw, f"<u{width}").reshape(spec.shape)
    if factor != 1:
        numbers = _stored((_floats(raw, spec) * factor).reshape(spec.shape), spec.dtype)
    made = np.zeros(shape, f"<u{width}")
    made[: spec.shape[1], : spec.shape[0]] = numbers.T
    return made.tobytes()


def _stored(numbers: Any, dtype: str) -> Any:
    """Numbers in a dtype, as unsigned integers of its width; rounded to the nearest."""
    import numpy as np

    if dtype == "BF16":
        bits = numbers.astype("<f4").view("<u4")
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return np.ascontiguousarray(numbers.astype(_FLOATS[dtype])).view(f"<u{DTYPE_BITS[dtype] // 8}")


def _need_numpy(what: str) -> None:
    if find_spec("numpy") is None:
        raise MissingExtra(what, ("numpy",), "weights")


CONVERTER: Final = "1"
_ENDING: Final = ".safetensors"
MLX_WEIGHTS: Final = "adapters.safetensors"


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A foreign file that was understood; open while the block of `foreign` runs."""

    path: Path
    file: OpenFile
    reading: Reading
    header: ForeignHeader

    def write(self, folder: Path, progress: Progress | None = None) -> dict[str, Any]:
        """Write the PEFT folder into `folder`, and return what a manifest's `annotations` keep of the original.

        Raises:
            MalformedTensorFile: the file changed meanwhile.
            OSError: the folder cannot be written.
        """
        digests = write_folder(self.file, self.reading, folder, progress)
        origin: dict[str, Any] = {
            "scheme": self.reading.scheme,
            "parts": [part for part in self.reading.parts if part],
            "sha256": digests.whole,
            "data_sha256": digests.data,
            "size_bytes": digests.size_bytes,
            "data_bytes": digests.size_bytes - self.file.header.data_start,
            "exact": self.reading.is_exact,
            "converter": CONVERTER,
            "spelling": {**self.reading.spelling, **self.reading.unused_alphas(), **self._alphas()},
        }
        return {"origin": origin, **self.header.annotations()}

    def _alphas(self) -> dict[str, Any]:
        """Return how the file writes its alphas, where it writes all in one way; nothing where it has none."""
        kinds = {(s.dtype, s.shape) for s in self.file.header.tensors if s.name.endswith(".alpha")}
        if len(kinds) != 1:
            return {}
        dtype, shape = kinds.pop()
        return {"alpha": {"dtype": dtype, "shape": list(shape)}}

    def hash_note(self, data_sha256: str) -> str:
        """Return a note where the header states another hash of its data than it has; "" otherwise."""
        stated = self.header.stated_hash
        if not stated or stated == hex_of(data_sha256):  # type: ignore[arg-type]  # a digest
            return ""
        return f"its header states the hash {stated[:12]}, the data has {hex_of(data_sha256)[:12]}"  # type: ignore[arg-type]


def foreign_path(path: Path) -> Path | None:
    """Return the foreign weights that `path` may be: a file, or the only weights of a folder that is not PEFT's.

    Else None.

    Raises:
        MalformedTensorFile: E_CONFLICT for a folder of several files that it could be.
    """
    if path.is_file():
        return None if path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file() else path
    if not path.is_dir() or (path / WEIGHTS_FILE).exists():
        return None
    if (path / MLX_WEIGHTS).is_file():  # beside the checkpoints of the same training
        return path / MLX_WEIGHTS
    found = sorted(p for p in path.iterdir() if p.name.endswith(_ENDING) and p.is_file())
    if (parts := parts_problem(p.name for p in found)) is not None:
        raise MalformedTensorFile(str(path), f"{parts[0]}, expected one file", hint=parts[1])
    if len(found) > 1:
        few = ", ".join(f"`{shown(p.name)}`" for p in found[:4])
        raise MalformedTensorFile(
            str(path),
            f"holds {len(found)} files that may be adapters ({few}{', …' if len(found) > 4 else ''})",
            code="E_CONFLICT",
            hint="give one of them, or all: `adapt add FOLDER/*.safetensors`",
        )
    return found[0] if found else None


@contextmanager
def foreign(path: Path, base: Mapping[str, tuple[int, ...]] | None = None) -> Iterator[Foreign | None]:
    """Provide the foreign LoRA in a file, read and checked; None if its names are PEFT's or of nothing known.

    `base`: the shapes of the base's weights by the names of its modules.

    Raises:
        MalformedTensorFile: the file is damaged, of a kind that is not taken, or no adapter as a whole.
    """
    with opened(path) as file:
        scheme = recognise((spec.name for spec in file.header.tensors), file.where)
        if scheme is None or scheme.key == PEFT:
            yield None
            return
        config = _config_beside(path) if scheme.key == "mlx" else None
        source = file.source(config, base or {})
        reader = import_module(f"adapterhub.formats.foreign.programs.{scheme.reader}")
        reading: Reading = reader.read(source)
        ensure_one_kind(source, reading)
        yield Foreign(path=path, file=file, reading=reading, header=read_metadata(file.header.metadata))


def _config_beside(path: Path) -> Mapping[str, Any] | None:
    """MLX's config beside the weights.

    Raises:
        MalformedTensorFile: E_CONFIG or E_LINK; it is there and no JSON object, or a link out of the folder.
    """
    try:
        value = read_json(inside(path.parent, CONFIG_FILE), limits().config_bytes)
    except FileNotFoundError:
        return None
    except LeadsOut as error:
        raise MalformedTensorFile(CONFIG_FILE, error.strerror, code="E_LINK", hint=NO_LINK) from None
    except (OSError, ValueError) as error:
        raise MalformedTensorFile(CONFIG_FILE, shown(str(error)), code="E_CONFIG") from None
    if not isinstance(value, dict):
        raise MalformedTensorFile(CONFIG_FILE, f"holds {shown(value, 40)}, expected an object", code="E_CONFIG")
    return value
