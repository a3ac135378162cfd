"""Hostile quantised copies of the corpus's base: each makes the files of a copy in a new folder.

A copy is written right, and then spoilt in one way, so that it gets as far as it can.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.torch import save_file

from tests.formats.quantised import test_packed
from tests.formats.quantised.test_fp4 import compressed_tensors, mxfp4
from tests.formats.quantised.test_mlx import affine
from tests.formats.quantised.writers import as_awq, as_gptq, plain

Tensors = dict[str, torch.Tensor]
Spoil = Callable[[Tensors, dict[str, Any]], object]

LINEAR: Final = "_proj.weight"
HUGE: Final = 10**30


def each_linear(source: Tensors, quantise: Callable[[torch.Tensor], Tensors]) -> Tensors:
    """The model with its linear weights in the tensors that `quantise` makes of `x.weight`."""
    found: Tensors = {}
    for name, tensor in source.items():
        if not name.endswith(LINEAR):
            found[name] = tensor
            continue
        front = name.removesuffix("weight")
        found |= {part.replace("x.", front): made for part, made in quantise(tensor).items()}
    return found


def fp8(weight: torch.Tensor, scale_of: str = "x.weight_scale_inv") -> Tensors:
    rows, columns = weight.shape
    scale = weight.reshape(rows // 32, 32, columns // 32, 32).abs().amax((1, 3)) / 448
    each = scale.repeat_interleave(32, 0).repeat_interleave(32, 1)
    return {"x.weight": (weight / each).to(torch.float8_e4m3fn), scale_of: scale}


def int8(weight: torch.Tensor) -> Tensors:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return {"x.weight": (weight / scale).round().to(torch.int8), "x.weight_scale": scale}


def mx(weight: torch.Tensor) -> Tensors:
    codes, scales = mxfp4(weight)
    return {"x.weight_packed": codes, "x.weight_scale": scales}


def gptq(weight: torch.Tensor) -> Tensors:
    return as_gptq(plain(weight.double().numpy(), group=32))


def awq(weight: torch.Tensor) -> Tensors:
    return as_awq(plain(weight.double().numpy(), group=32, is_symmetric=False))


def mlx(weight: torch.Tensor) -> Tensors:
    return affine(weight, 4, 32)


def bnb(weight: torch.Tensor, state: object = None) -> Tensors:
    flat = weight.float().reshape(-1, 64)
    levels = torch.linspace(-1, 1, 16)
    scale = flat.abs().amax(1)
    codes = ((flat / scale[:, None])[..., None] - levels).abs().argmin(-1).reshape(-1)
    said = (
        {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(weight.shape)}
        if state is None
        else state
    )
    raw = said if isinstance(said, bytes) else json.dumps(said).encode()
    return {
        "x.weight": (codes[::2] << 4 | codes[1::2]).to(torch.uint8)[:, None],
        "x.weight.absmax": scale,
        "x.weight.quant_map": levels,
        "x.weight.quant_state.bitsandbytes__nf4": torch.tensor(list(raw), dtype=torch.uint8),
    }


WRITERS: Final[Mapping[str, tuple[Callable[[torch.Tensor], Tensors], dict[str, Any]]]] = {
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [32, 32]}),
    "int8": (
        int8,
        {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8, "type": "int"}}}},
    ),
    "nvfp4": (compressed_tensors, {"quant_method": "compressed-tensors"}),
    "mxfp4": (mx, {"quant_method": "compressed-tensors"}),
    "int4": (
        lambda weight: test_packed.packed(weight, 4, 32, has_zero=True),
        {"quant_method": "compressed-tensors", **test_packed.settings(4, 32)},
    ),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
    "mlx": (mlx, {"group_size": 32, "bits": 4}),
    "bnb": (bnb, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
}
"""Writers by name, and the `quantization_config` beside their files."""


def ends(tensors: Tensors, end: str) -> list[str]:
    found = [name for name in tensors if name.endswith(end)]
    assert found
    return found


def filled(end: str, value: float) -> Spoil:
    """All tensors of that name hold this number."""

    def spoil(tensors: Tensors, _: object) -> None:
        for name in ends(tensors, end):
            tensors[name] = torch.full(tensors[name].shape, value, dtype=torch.float64).to(tensors[name].dtype)

    return spoil


def reshaped(end: str, how: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    def spoil(tensors: Tensors, _: object) -> None:
        for name in ends(tensors, end):
            tensors[name] = how(tensors[name]).contiguous()

    return spoil


def both(*spoils: Spoil) -> Spoil:
    def spoil(tensors: Tensors, said: dict[str, Any]) -> None:
        for one in spoils:
            one(tensors, said)

    return spoil


def says(**changed: Any) -> Spoil:
    return lambda _, said: said.update(changed)


def with_state(**changed: Any) -> Spoil:
    """The JSON of bitsandbytes says something else."""

    def spoil(tensors: Tensors, _: object) -> None:
        for name in ends(tensors, "__nf4"):
            said = json.loads(bytes(tensors[name].tolist())) | changed
            tensors[name] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)

    return spoil


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(depth):
        found = {"a": found}
    return found


def _numbers(writer: str, end: str, *values: float) -> dict[str, tuple[str, Spoil]]:
    return {f"{writer}: every `{end}` is {value}": (writer, filled(end, value)) for value in values}


_ODD: Final = (float("nan"), float("inf"), 0.0, -1.0, 1e38)

KINDS: Final[Mapping[str, tuple[str, Spoil]]] = {
    **_numbers("fp8", "weight_scale_inv", *_ODD),
    **_numbers("int8", "weight_scale", *_ODD),
    **_numbers("nvfp4", "weight_scale", float("nan"), 0.0, 448.0),
    **_numbers("nvfp4", "weight_global_scale", *_ODD, 1e-38),
    **_numbers("mxfp4", "weight_scale", 0.0, 254.0, 255.0),
    **_numbers("int4", "weight_scale", *_ODD),
    **_numbers("gptq", "scales", float("nan"), float("inf"), 0.0, -1.0, 6e4),
    **_numbers("awq", "scales", float("nan"), float("inf"), 0.0, -1.0, 6e4),
    **_numbers("mlx", "scales", *_ODD),
    **_numbers("mlx", "biases", *_ODD),
    **_numbers("bnb", "absmax", *_ODD),
    **_numbers("bnb", "quant_map", *_ODD),
    "fp8: zeros under a huge scale": ("fp8", both(filled("_proj.weight", 0), filled("weight_scale_inv", 1e30))),
    "fp8: the smallest codes under a huge scale": (
        "fp8",
        both(filled("_proj.weight", 2.0**-9), filled("weight_scale_inv", 1e30)),
    ),
    "fp8: codes of NaN": ("fp8", filled("_proj.weight", float("nan"))),
    "int8: zeros under a huge scale": ("int8", both(filled("_proj.weight", 0), filled("weight_scale", 1e30))),
    "nvfp4: zeros under a huge scale": ("nvfp4", both(filled("weight_packed", 0), filled("weight_scale", 448.0))),
    "int8: all but a few zeros under a huge scale": (
        "int8",
        both(
            reshaped(
                "_proj.weight", lambda codes: torch.where(torch.rand(codes.shape) < 0.5, torch.zeros_like(codes), codes)
            ),
            lambda tensors, _: [
                tensors.update({name: tensors[name] * 1e3}) for name in ends(tensors, "_proj.weight_scale")
            ],
        ),
    ),
    "int8: half of the rows are zeros under a huge scale": (
        "int8",
        both(
            reshaped("_proj.weight", lambda codes: codes * (torch.arange(len(codes)) % 2 == 0)[:, None]),
            reshaped(
                "_proj.weight_scale",
                lambda scale: torch.where((torch.arange(len(scale)) % 2 == 0)[:, None], scale, torch.tensor(1e9)),
            ),
        ),
    ),
    "fp8: scales of another shape": ("fp8", reshaped("weight_scale_inv", lambda scale: scale[:, :1])),
    "fp8: no scales": ("fp8", reshaped("weight_scale_inv", lambda scale: scale[:0])),
    "fp8: scales in integers": ("fp8", reshaped("weight_scale_inv", lambda scale: scale.long())),
    "fp8: blocks of 0": ("fp8", says(weight_block_size=[0, 0])),
    "fp8: blocks of a number without end": (
        "fp8",
        both(says(weight_block_size=[HUGE, 32]), reshaped("weight_scale_inv", lambda scale: scale[:1])),
    ),
    "fp8: blocks of -1": ("fp8", says(weight_block_size=[-1, 32])),
    "fp8: blocks of nested lists": ("fp8", says(weight_block_size=[[32], {"a": 32}])),
    "fp8: says that it is gptq": ("fp8", says(quant_method="gptq", bits=4, group_size=128)),
    "fp8: nests its settings": ("fp8", says(config_groups=nested(200))),
    "fp8: groups of layers that are no objects": (
        "fp8",
        says(config_groups={"g": {"weights": [1, 2]}, "h": 3, "i": {"weights": {"num_bits": "x"}}}),
    ),
    "int8: codes of 10**9 bits": ("int8", says(config_groups={"g": {"weights": {"num_bits": 10**9, "type": "int"}}})),
    "int8: zero points of another shape": (
        "int8",
        lambda tensors, _: tensors.update(
            {f"{name[:-6]}_zero_point": torch.zeros(3, dtype=torch.int8) for name in ends(tensors, "weight_scale")}
        ),
    ),
    "int4: 10**9 bits": ("int4", says(**test_packed.settings(10**9, 32))),
    "int4: 0 bits": ("int4", says(**test_packed.settings(0, 32))),
    "int4: -4 bits": ("int4", says(**test_packed.settings(-4, 32))),
    "int4: groups of a number without end": ("int4", says(**test_packed.settings(4, HUGE))),
    "int4: says 3 bits": ("int4", says(**test_packed.settings(3, 32))),
    "int4: cut off": ("int4", reshaped("weight_packed", lambda words: words[:, :-1])),
    "int4: a shape of numbers without end": ("int4", filled("weight_shape", 2**62)),
    "int4: a negative shape": ("int4", filled("weight_shape", -8)),
    "int4: zero points cut off": ("int4", reshaped("weight_zero_point", lambda words: words[:-1])),
    "gptq: 10**9 bits": ("gptq", says(bits=10**9)),
    "gptq: groups of a number without end": ("gptq", says(group_size=HUGE)),
    "gptq: an index beyond the groups": ("gptq", filled("g_idx", 2**31 - 128)),
    "gptq: a negative index": ("gptq", filled("g_idx", -5)),
    "gptq: an index of another length": ("gptq", reshaped("g_idx", lambda index: index[:-9])),
    "gptq: cut off": ("gptq", reshaped("qweight", lambda words: words[:-1])),
    "gptq: zeros cut off": ("gptq", reshaped("qzeros", lambda words: words[:, :-1])),
    "gptq: all codes 0": ("gptq", filled("qweight", 0)),
    "gptq: says that it is awq": ("gptq", says(quant_method="awq", version="gemm")),
    "awq: cut off": ("awq", reshaped("qweight", lambda words: words[:, :-1])),
    "awq: scales of another shape": ("awq", reshaped("scales", lambda scale: scale[:, :-1])),
    "awq: all codes 0": ("awq", filled("qweight", 0)),
    "awq: groups of 0": ("awq", says(group_size=0)),
    "mlx: 10**9 bits": ("mlx", says(bits=10**9)),
    "mlx: groups of a number without end": ("mlx", says(group_size=HUGE)),
    "mlx: scales of another shape": ("mlx", reshaped("scales", lambda scale: scale[:, :1])),
    "mlx: cut off": ("mlx", reshaped("_proj.weight", lambda words: words[:, :-1])),
    "bnb: a state that is no JSON": ("bnb", reshaped("__nf4", lambda raw: torch.full_like(raw, 255))),
    "bnb: a state of a list": ("bnb", reshaped("__nf4", lambda _: torch.tensor(list(b"[1]"), dtype=torch.uint8))),
    "bnb: a state of 15 kB of brackets": (
        "bnb",
        reshaped("__nf4", lambda _: torch.tensor(list(b"[" * 15_000), dtype=torch.uint8)),
    ),
    "bnb: a shape of numbers without end": ("bnb", with_state(shape=[10**200, 10**200])),
    "bnb: blocks of a number without end": ("bnb", with_state(blocksize=10**400)),
    "bnb: another shape": ("bnb", with_state(shape=[32, 128])),
    "bnb: nested scales that are not there": ("bnb", with_state(nested_blocksize=256, nested_offset=0.1)),
    "bnb: an offset without end": ("bnb", with_state(nested_blocksize=256, nested_offset=10**400)),
    "bnb: cut off": ("bnb", reshaped("_proj.weight", lambda codes: codes[:-40])),
    "bnb: no levels": ("bnb", reshaped("quant_map", lambda levels: levels[:0])),
}


def make(kind: str, source: Tensors, config: Mapping[str, Any], folder: Path) -> Path:
    """The folder of one of `KINDS`, or the GGUF file of one of `GGUF_KINDS`."""
    folder.mkdir()
    if kind in GGUF_KINDS:
        return GGUF_KINDS[kind](source, folder)
    writer, spoil = KINDS[kind]
    return _written(folder, writer, source, config, spoil)


def make_right(writer: str, source: Tensors, config: Mapping[str, Any], folder: Path) -> Path:
    """A copy that is not spoilt, by one of `WRITERS` or in a type of GGUF."""
    folder.mkdir()
    if writer in WRITERS:
        return _written(folder, writer, source, config, lambda *_: None)
    return write_gguf(
        source, folder / f"{writer}.gguf", kind=GGMLQuantizationType[writer], architecture=str(config["model_type"])
    )


def _written(folder: Path, writer: str, source: Tensors, config: Mapping[str, Any], spoil: Spoil) -> Path:
    quantise, stated = WRITERS[writer]
    tensors, said = each_linear(source, quantise), dict(stated)
    torch.manual_seed(0)
    spoil(tensors, said)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    key = "quantization" if writer == "mlx" else "quantization_config"
    (folder / "config.json").write_text(json.dumps({**config, key: said}))
    return folder


# ---------------------------------------------------------------- GGUF
_PARTS: Final = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_WHOLE: Final = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
HEADS: Final = {"q_proj": 4, "k_proj": 2}


def gguf_name_of(name: str) -> str:
    stem, _, end = name.rpartition(".")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{end}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_PARTS[part]}.{end}"


def write_gguf(
    source: Tensors,
    path: Path,
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.Q8_0,
    values: Mapping[str, int] | None = None,
    spoil: Callable[[np.ndarray], np.ndarray] | None = None,
    split: tuple[int, int] | None = None,
    architecture: str = "llama",
) -> Path:
    """The corpus's base as llama.cpp writes it; `values` are metadata of its architecture, `spoil` changes blocks."""
    writer = GGUFWriter(path, architecture)
    said = {
        "block_count": 2,
        "embedding_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        **(values or {}),
    }
    for key, value in said.items():
        (writer.add_uint64 if abs(value) >= 2**31 else writer.add_int32)(f"{architecture}.{key}", value)
    if split:
        writer.add_uint32("split.no", split[0])
        writer.add_uint32("split.count", split[1])
    for name, tensor in source.items():
        numbers = tensor.float().numpy()
        heads = next((count for part, count in HEADS.items() if part in name), 0)
        if heads and architecture == "llama":
            numbers = numbers.reshape(heads, 2, -1, numbers.shape[1]).swapaxes(1, 2).reshape(numbers.shape)
        numbers = np.ascontiguousarray(numbers)
        if name.endswith(LINEAR):
            raw = gguf.quants.quantize(numbers, kind)
            writer.add_tensor(gguf_name_of(name), raw if spoil is None else spoil(raw), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name_of(name), numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _scales(value: int) -> Callable[[np.ndarray], np.ndarray]:
    """Every scale of Q8_0 or Q4_0 is these 16 bits."""

    def spoil(raw: np.ndarray) -> np.ndarray:
        found = raw.reshape(len(raw), -1, 34).copy()
        found[..., :2] = np.frombuffer(struct.pack("<H", value), np.uint8)
        return found.reshape(raw.shape)

    return spoil


def _zeros(raw: np.ndarray) -> np.ndarray:
    found = _scales(0x7BFF)(raw).reshape(len(raw), -1, 34)
    found[..., 2:] = 0
    return found.reshape(raw.shape)


def _patched(find: bytes, put: bytes, at: int = 0) -> Callable[[Tensors, Path], Path]:
    """Bytes behind the first place of a text are others."""

    def made(source: Tensors, folder: Path) -> Path:
        path = write_gguf(source, folder / "model.gguf")
        raw = bytearray(path.read_bytes())
        place = raw.index(find) + len(find) + at
        raw[place : place + len(put)] = put
        path.write_bytes(raw)
        return path

    return made


def _split(numbers: list[int], count: int, *, is_same: bool = False) -> Callable[[Tensors, Path], Path]:
    def made(source: Tensors, folder: Path) -> Path:
        names = sorted(source)
        for number in numbers:
            part = {name: source[name] for k, name in enumerate(names) if is_same or k % count == number}
            write_gguf(part, folder / f"m-{number + 1:05}-of-{count:05}.gguf", split=(number, count))
        return folder / f"m-{numbers[0] + 1:05}-of-{count:05}.gguf"

    return made


def _given(**options: Any) -> Callable[[Tensors, Path], Path]:
    return lambda source, folder: write_gguf(source, folder / "model.gguf", **options)


def _cut(source: Tensors, folder: Path) -> Path:
    path = write_gguf(source, folder / "model.gguf")
    path.write_bytes(path.read_bytes()[:-4000])
    return path


_Q: Final = b"blk.1.attn_q.weight"  # followed by: dimensions (4), sizes (8 each), type (4), place (8)

GGUF_KINDS: Final[Mapping[str, Callable[[Tensors, Path], Path]]] = {
    "gguf: scales of NaN": _given(spoil=_scales(0x7E00)),
    "gguf: scales of infinity": _given(spoil=_scales(0x7C00)),
    "gguf: scales of 0": _given(spoil=_scales(0)),
    "gguf: the largest scales": _given(spoil=_scales(0x7BFF)),
    "gguf: zeros under the largest scales": _given(spoil=_zeros),
    "gguf: a type that is unknown": _patched(_Q, struct.pack("<I", 999), 20),
    "gguf: a type of 256 in rows of 64": _patched(_Q, struct.pack("<I", 12), 20),
    "gguf: a place outside of the file": _patched(_Q, struct.pack("<Q", 1 << 40), 24),
    "gguf: a place in another tensor": _patched(_Q, struct.pack("<Q", 0), 24),
    "gguf: a place beyond all numbers": _patched(_Q, struct.pack("<Q", 2**64 - 32), 24),
    "gguf: sizes whose product overflows": _patched(_Q, struct.pack("<QQ", 1 << 62, 1 << 62), 4),
    "gguf: a size of 0": _patched(_Q, struct.pack("<QQ", 64, 0), 4),
    "gguf: sizes of 0": _patched(_Q, struct.pack("<QQ", 0, 0), 4),
    "gguf: other sizes of the same product": _patched(_Q, struct.pack("<QQ", 32, 128), 4),
    "gguf: 10**9 dimensions": _patched(_Q, struct.pack("<I", 10**9)),
    "gguf: 10**9 heads": _given(values={"attention.head_count": 10**9}),
    "gguf: 0 heads": _given(values={"attention.head_count": 0}),
    "gguf: -1 heads": _given(values={"attention.head_count": -1, "attention.head_count_kv": -1}),
    "gguf: 2**63 heads": _given(values={"attention.head_count": 2**63, "attention.head_count_kv": 2**63}),
    "gguf: 3 heads": _given(values={"attention.head_count": 3}),
    "gguf: 10**9 layers": _given(values={"block_count": 10**9, "embedding_length": 10**9}),
    "gguf: an architecture of another kind": _patched(b"general.architecture", b"gemma", 12),
    "gguf: cut off": _cut,
    "gguf: a file of a set is missing": _split([0, 2], 3),
    "gguf: the files of a set have the same tensors": _split([0, 1], 2, is_same=True),
    "gguf: one of 99,999 files": _split([0], 99_999),
}
