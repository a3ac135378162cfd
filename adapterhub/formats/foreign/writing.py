"""From a PEFT folder to the file of another program: which tensors it has, and the bytes of each."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from adapterhub.core.errors import UnsupportedAdapter, shown
from adapterhub.formats.foreign.conversion import block_diagonal, dimension, padded, rows_of, transposed
from adapterhub.formats.foreign.families import having
from adapterhub.formats.foreign.reading import CARRIED, PARTS, Cut, Method, Module, Reading
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.keys import PREFIX, AdapterKeys, sort_keys
from adapterhub.formats.safetensors.file import TensorFile, header_bytes
from adapterhub.formats.safetensors.header import DTYPES, TensorSpec

Read = Callable[[TensorSpec], bytes | bytearray | memoryview]
_UNET: Final = ("down_blocks.", "up_blocks.", "mid_block.", "conv_in", "conv_out", "time_embedding.", "add_embedding.")
_CLIP: Final = ("text_model.", "encoder.layers.", "text_projection")
_TRANSFORMER: Final = ("transformer_blocks.", "single_transformer_blocks.", "x_embedder", "context_embedder")
_TRANSFORMER_MORE: Final = ("time_text_embed.", "norm_out.", "proj_out", "blocks.")
_TITLES: Final = MappingProxyType({"LORA": "LoRA", "LOHA": "LoHa", "LOKR": "LoKr"})
_WORDS: Final = MappingProxyType({"F16": "<e", "F32": "<f", "F64": "<d"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignOutput:
    """One tensor to write: `parts` one after another, or as blocks of a diagonal.

    `rank` and `factor`, only for MLX: the last part is padded with zeros to that rank and multiplied.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Cut | bytes, ...]
    is_diagonal: bool = False
    rank: int = 0
    factor: float = 1.0

    @classmethod
    def of(cls, name: str, cut: Cut, shape: tuple[int, ...] | None = None) -> ForeignOutput:
        """Return an unchanged tensor, perhaps in another shape of as many numbers."""
        return cls(name=name, dtype=cut.dtype, shape=cut.shape if shape is None else shape, parts=(cut,))

    def data(self, read: Read) -> bytes:
        """Return the bytes."""
        if self.is_diagonal:
            cuts = [part for part in self.parts if isinstance(part, Cut)]
            return block_diagonal([(bytes(read(cut.source)) if cut.shape[1] else b"", cut.source) for cut in cuts])
        if self.rank:
            (cut,) = self.parts
            assert isinstance(cut, Cut)
            return padded(bytes(read(cut.source)), cut.source, self.shape, self.factor)
        return b"".join(part if isinstance(part, bytes) else _bytes_of(part, read) for part in self.parts)


def _bytes_of(cut: Cut, read: Read) -> bytes:
    raw = bytes(read(cut.source))
    if cut.rows:
        return b"".join(rows_of(raw, cut.source, cut.rows))
    return transposed(raw, cut.source) if cut.is_transposed else raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a program's file of an adapter holds. `config` is written beside it where the program wants one."""

    outputs: tuple[ForeignOutput, ...]
    metadata: Mapping[str, str]
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = None
    hash_key: str = ""


# ---------------------------------------------------------------- what a PEFT folder holds
def modules_of(
    header: TensorFile,
    config: AdapterConfig,
    label: str,
    origin: Mapping[str, Any],
    *,
    program: str,
    methods: tuple[Method, ...],
) -> Reading:
    """Return the modules of a PEFT adapter, with their components; `program` has a form for updates of `methods`.

    Raises:
        UnsupportedAdapter: it holds more than LoRA pairs with their magnitudes and biases, or factors of LoHa or LoKr,
            or is of a method that the program does not have; names each part.
    """
    keys = sort_keys(header, config)
    method = next((one for one in methods if one == config.peft_type), None)
    reasons = [f"`{shown(name)}` is not a factor of a LoRA" for name, _ in (*keys.saved, *keys.biases, *keys.copies)]
    reasons += [f"`{shown(spec.name)}` is not a factor of a LoRA" for spec in keys.others]
    reasons += [f"rows of `{shown(name)}` were trained (`trainable_token_indices`)" for name, _ in keys.tokens]
    reasons += [f"`{key}` changes what its factors mean" for key in config.variants if key not in CARRIED]
    title = _TITLES.get(config.peft_type, config.peft_type)
    titles = " and ".join(_TITLES[one] for one in methods)
    reasons += [] if method else [f"it is {title}, and {program} has a form for {titles} alone"]
    reasons += [f"`{shown(pair.module)}` is an embedding" for pair in keys.pairs if pair.kind == "embedding"]
    reasons += [f"it {reason}" for reason in config.obstacles]
    if not reasons and not keys.pairs and not keys.marked:
        reasons = [f"it holds no {title} factors"]
    modules = [] if reasons else _products(keys, config, origin, reasons)
    if reasons:
        message = f"`{shown(label, 200)}` has no form in {program}; nothing was written"
        is_product = method is None and config.peft_type in _TITLES
        hint = "`--format kohya` and `--format comfyui` hold LoHa and LoKr" if is_product else ""
        raise UnsupportedAdapter(message, reasons[:20], hint=hint)
    assert method is not None  # else there is a reason
    for pair in keys.pairs:
        assert pair.a is not None  # verified
        assert pair.b is not None
        part, name = _part_of(pair.module, origin)
        slots = {"lora_A.weight": pair.a, "lora_B.weight": pair.b}
        slots |= {"lora_magnitude_vector": pair.magnitude} if pair.magnitude else {}
        slots |= {"lora_B.bias": pair.bias} if pair.bias else {}
        alpha = config.alpha_of(pair.module)
        cuts = {slot: Cut(source=spec, shape=spec.shape) for slot, spec in slots.items()}
        modules.append(Module(part=part, name=name, slots=cuts, rank=pair.rank, alpha=float(alpha)))
    ordered = tuple(sorted(modules, key=lambda module: (module.part, module.name)))
    return Reading(scheme="peft", modules=ordered, method=method, use_rslora=config.use_rslora)


def _products(keys: AdapterKeys, config: AdapterConfig, origin: Mapping[str, Any], reasons: list[str]) -> list[Module]:
    """Return the modules of a LoHa or LoKr, each with the alpha that LyCORIS would give it; adds to `reasons`."""
    slots: dict[str, dict[str, Cut]] = {}
    for spec in keys.marked:
        name, _, slot = spec.name.removeprefix(PREFIX).rpartition(".")
        slots.setdefault(name, {})[slot] = Cut(source=spec, shape=spec.shape)
    spelling = origin.get("spelling")
    stated: Any = spelling.get("unused_alpha") if isinstance(spelling, Mapping) else None
    found = []
    for full, cuts in slots.items():
        part, name = _part_of(full, origin)
        rank, alpha, size = config.rank_of(full), float(config.alpha_of(full)), dimension(cuts)
        if size is None:
            if alpha != rank:
                reasons.append(
                    f"both sides of `{shown(full)}` are whole at scale {alpha / rank:g}; there it is always 1"
                )
            own = stated.get(full) if isinstance(stated, Mapping) else stated
            alpha = float(own) if isinstance(own, int | float) else alpha
        elif size != rank:
            reasons.append(f"`{shown(full)}` has rank {size}, and its config says {rank}")
        found.append(Module(part=part, name=name, slots=cuts, rank=rank, alpha=alpha))
    return found


def _part_of(name: str, origin: Mapping[str, Any]) -> tuple[str, str]:
    """Split a name into its component and the rest: from the name's front, or the original's, or by the rest itself."""
    part, _, rest = name.partition(".")
    if part in PARTS:
        return part, rest
    parts = origin.get("parts")
    if isinstance(parts, list) and len(parts) == 1 and parts[0] in PARTS:
        return parts[0], name
    if name.startswith(_UNET):
        return "unet", name
    if name.startswith(_CLIP):
        return "text_encoder", name
    is_known = name.startswith((*_TRANSFORMER, *_TRANSFORMER_MORE)) or having((name,))
    return ("transformer" if is_known else ""), name


def plain_alpha(module: Module, *, use_rslora: bool) -> float:
    """Return the alpha that gives the module's scale when it is divided by the rank."""
    alpha = float(module.rank) if module.alpha is None else module.alpha
    return alpha * math.sqrt(module.rank) if use_rslora else alpha


def alpha_output(name: str, value: float, kind: Mapping[str, Any] | None, like: str) -> ForeignOutput:
    """Return the tensor of an alpha: in the original's dtype and shape if known, otherwise as exact as needed."""
    dtype = str(kind["dtype"]) if kind and kind.get("dtype") in DTYPES else like
    shape = tuple(kind["shape"]) if kind and kind.get("shape") in ([], [1]) else ()
    raw = _packed(value, dtype)
    if raw is None:
        dtype, raw = "F32", struct.pack("<f", value)
    return ForeignOutput(name=name, dtype=dtype, shape=shape, parts=(raw,))


def _packed(value: float, dtype: str) -> bytes | None:
    """Return the number in that dtype; None if it is not exactly that number."""
    if dtype == "BF16":
        raw = struct.pack("<f", value)
        return raw[2:] if raw[:2] == b"\0\0" else None
    word = _WORDS.get(dtype)
    if word is None:
        return None
    try:
        raw = struct.pack(word, value)
    except OverflowError:
        return None
    return raw if struct.unpack(word, raw)[0] == value else None


# ---------------------------------------------------------------- joining what diffusers splits
def joined(
    modules: Sequence[Module | None], outs: Sequence[int], read: Read, label: str
) -> tuple[ForeignOutput, ForeignOutput, Module, bool]:
    """One fused module from its parts, each with as many rows as in `outs`: down, up, rank and alpha, and if it grew.

    Equal As stay one, with the Bs stacked; otherwise the As are stacked, and the Bs are blocks of a diagonal. A part
    without an update has rows of zeros.

    Raises:
        UnsupportedAdapter: parts with different scales or dtypes, or with magnitudes or biases.
    """
    there = [module for module in modules if module is not None]
    first = there[0]
    downs = [module.slots["lora_A.weight"] for module in there]
    scales = {module.scale for module in there}
    dtypes = {(cut.dtype, module.slots["lora_B.weight"].dtype) for cut, module in zip(downs, there, strict=True)}
    if len(scales) > 1 or len(dtypes) > 1 or any(len(module.slots) > 2 for module in there):
        what = "scales" if len(scales) > 1 else "dtypes" if len(dtypes) > 1 else "magnitudes or biases"
        reason = f"its parts `{shown(first.name)}` and others have different {what}"
        message = f"`{shown(label)}` is one module in that program; nothing was written"
        raise UnsupportedAdapter(message, [reason if what != "magnitudes or biases" else "its parts have " + what])
    dtype_a, dtype_b = dtypes.pop()
    width = downs[0].shape[1]
    is_one = len({(cut.shape, hashlib.sha256(read(cut.source)).digest()) for cut in downs}) == 1
    size = DTYPES[dtype_b].bits // 8
    if is_one:
        rank = first.rank
        up: tuple[Cut | bytes, ...] = tuple(
            bytes(out * rank * size) if module is None else module.slots["lora_B.weight"]
            for module, out in zip(modules, outs, strict=True)
        )
        return (
            ForeignOutput(name="", dtype=dtype_a, shape=(rank, width), parts=(downs[0],)),
            ForeignOutput(name="", dtype=dtype_b, shape=(sum(outs), rank), parts=up),
            first,
            False,
        )
    rank = sum(module.rank for module in there)
    blocks = tuple(
        _nothing(dtype_b, out) if module is None else module.slots["lora_B.weight"]
        for module, out in zip(modules, outs, strict=True)
    )
    return (
        ForeignOutput(name="", dtype=dtype_a, shape=(rank, width), parts=tuple(downs)),
        ForeignOutput(name="", dtype=dtype_b, shape=(sum(outs), rank), parts=blocks, is_diagonal=True),
        replace(first, rank=rank, alpha=first.scale * rank),
        True,
    )


def _nothing(dtype: str, out: int) -> Cut:
    """Return the block of a part without an update: its rows and no column."""
    return Cut(source=TensorSpec.planned("", dtype, (out, 0)), shape=(out, 0))


# ---------------------------------------------------------------- the file
def write_file(path: Path, program: Program, read: Read, step: Callable[[int, int], None]) -> None:
    """Write the program's file, a tensor at a time; the hash of its data goes into the header where it wants one.

    Raises:
        OSError: the file cannot be written.
    """
    outputs = sorted(program.outputs, key=lambda output: output.name)
    specs = [TensorSpec.planned(output.name, output.dtype, output.shape) for output in outputs]
    metadata = dict(program.metadata)
    if program.hash_key:
        metadata[program.hash_key] = "0" * 64
    room = len(header_bytes(specs, metadata))
    data = hashlib.sha256()
    with path.open("wb") as sink:
        sink.seek(room)
        for done, chunk in enumerate(_checked(outputs, specs, read)):
            step(done, len(outputs))
            data.update(chunk)
            sink.write(chunk)
        if program.hash_key:
            metadata[program.hash_key] = data.hexdigest()
        sink.seek(0)
        sink.write(header_bytes(specs, metadata, pad_to=room))
    step(len(outputs), len(outputs))


def _checked(outputs: Sequence[ForeignOutput], specs: Sequence[TensorSpec], read: Read) -> Iterator[bytes]:
    for output, spec in zip(outputs, specs, strict=True):
        raw = output.data(read)
        assert len(raw) == spec.size_bytes, output.name
        yield raw
