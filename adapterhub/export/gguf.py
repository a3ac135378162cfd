"""`gguf`: one file for llama.cpp, `--lora FILE`, exact for rsLoRA, patterns and every rank.

The scale that PEFT gives each module is folded into B and `adapter.lora.alpha` is 0, with which llama.cpp takes B·A as
it is; any other alpha would be divided by each module's rank, which is right for neither rsLoRA nor `alpha_pattern`.
Tensors have the names of the base's own GGUF. Where llama.cpp keeps the pairs of a rotary embedding side by side (Llama
and its kin), the rows of B are put in that order for q and k, as they are in the base.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from adapterhub.engines import engine
from adapterhub.errors import Incompatible, Malformed, NotFound, UnsupportedAdapter, shown
from adapterhub.export._job import Adapter, Exported, Job
from adapterhub.factors import Factors
from adapterhub.layouts import is_finite, owner
from adapterhub.new_folder import not_written, refuse_taken
from adapterhub.store import sync_folder

_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_QUERIES: Final = ".q_proj"
_KEYS: Final = ".k_proj"
_EMBEDDING: Final = "token_embd.weight"
_RANDOM_BYTES: Final = 4


def export(job: Job, out: Path) -> Exported:
    """Write the GGUF file `out`; `dtype` float32 where none is asked for.

    Raises:
        NotFound: the package `gguf` is not installed.
        UnsupportedAdapter: what GGUF cannot carry, all of it named.
        Incompatible: numbers that are too large for the dtype.
    """
    _package()
    with job.opened("llama.cpp", needs_base=True) as adapter:
        write_gguf(adapter, out, dtype=job.dtype or "float32", job=job)
        return Exported(
            paths=(out,),
            label=adapter.label,
            size_bytes=out.stat().st_size,
            notes=adapter.warnings,
            flags=("--lora", str(out)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a module's pair goes: the base's tensor, and how many heads its rows are turned by (0: they are not)."""

    module: str
    tensor: str
    heads: int = 0

    def factors(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """A [r, in] and B [out, r] as the file has them; of the token embedding A is [entries, r]."""
        if self.tensor == _EMBEDDING:
            return a.T, b
        return a, turned(b, self.heads) if self.heads else b

    def shapes(self, factors: Factors) -> tuple[tuple[int, ...], tuple[int, ...]]:
        a, b = factors.a.shape, factors.b.shape
        return (a[::-1] if self.tensor == _EMBEDDING else a), b


def turned(b: Tensor, heads: int) -> Tensor:
    """The rows of B [out, r] with the two halves of each head interleaved.

    transformers rotates row i of a head against row i of its second half, llama.cpp each even row against the next.
    """
    out, rank = b.shape
    return b.reshape(heads, 2, out // heads // 2, rank).transpose(1, 2).reshape(out, rank)


def write_gguf(adapter: Adapter, out: Path, *, dtype: str, job: Job) -> None:
    """The file, written module by module; it appears complete or not at all.

    Raises:
        UnsupportedAdapter: modules without a tensor in the base's GGUF.
        Incompatible, Conflict, DiskFull, NotAllowed: as `export`.
    """
    places = _places(adapter)
    refuse_taken(out)
    partial = out.with_name(f".{out.name}.partial-{secrets.token_hex(_RANDOM_BYTES)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write(adapter, places, partial, dtype=dtype, job=job)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise not_written(error, out) from error
    finally:
        with contextlib.suppress(OSError):  # it may be that its folder could not be made
            partial.unlink()


def _write(adapter: Adapter, places: list[_Place], path: Path, *, dtype: str, job: Job) -> None:
    import numpy as np

    gguf = _package()
    kind = _DTYPES[dtype]
    raw = {"bfloat16": gguf.GGMLQuantizationType.BF16}.get(dtype)
    stored = np.dtype({"float32": "f4", "float16": "f2", "bfloat16": "u2"}[dtype])
    writer = gguf.GGUFWriter(path, _base(adapter).architecture)
    try:
        for key, value in _metadata(adapter).items():
            writer.add_string(key, value)
        writer.add_float32("adapter.lora.alpha", 0.0)
        for place in places:
            for name, shape in zip(_names(place), place.shapes(adapter.factors.modules[place.module]), strict=True):
                size = int(np.prod(shape)) * stored.itemsize
                writer.add_tensor_info(name, shape, stored, size, raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, place in enumerate(places):
            job.step(done, len(places))
            update = adapter.factors.read(place.module).folded(kind)
            if not (is_finite(update.a) and is_finite(update.b)):
                what = f"the update of `{shown(place.module)}` is too large for {dtype}"
                raise Incompatible(f"{what}; nothing was written", hint="`--dtype float32` holds it")
            for tensor in place.factors(update.a, update.b):
                writer.write_tensor_data(_numbers(tensor))
        job.step(len(places), len(places))
    finally:
        writer.close()


def _names(place: _Place) -> tuple[str, str]:
    return f"{place.tensor}.lora_a", f"{place.tensor}.lora_b"


def _numbers(tensor: Tensor) -> Any:  # noqa: ANN401 - a numpy array
    """The same bytes for numpy, which has no bfloat16."""
    tensor = tensor.contiguous()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _metadata(adapter: Adapter) -> Mapping[str, str]:
    """What the file says of itself. llama.cpp reads the kinds, llama-server the task; the rest is for people."""
    found = {"general.type": "adapter", "adapter.type": "lora", "general.name": adapter.label}
    manifest = adapter.manifest
    if manifest is not None:
        found["general.name"] = f"{manifest.name} {manifest.version}"
        found["general.version"] = manifest.version
        found["adapterhub.manifest"] = manifest.digest
        if manifest.task:
            found["adapter.lora.task_name"] = manifest.task
    if adapter.record is not None:
        found["adapterhub.base.weights"] = adapter.record.fingerprint.weights
    return found


def _base(adapter: Adapter) -> Any:  # noqa: ANN401 - `engines.llama_cpp.GgufBase`, imported with the rules
    return engine("llama.cpp").BASES[_text_config(adapter)["model_type"]]


def _text_config(adapter: Adapter) -> Mapping[str, Any]:
    inner = adapter.base_config.get("text_config")
    return inner if isinstance(inner, Mapping) else adapter.base_config


def _number(adapter: Adapter, *keys: str) -> int:
    config = _text_config(adapter)
    value = next((config[key] for key in keys if type(config.get(key)) is int), None)
    if value is None or value < 1:
        raise Malformed(f"the base's config.json has no `{keys[0]}`, expected a whole number above 0")
    return int(value)


def _places(adapter: Adapter) -> list[_Place]:
    """The tensor of every module, sorted by module.

    Raises:
        UnsupportedAdapter: modules that have none, all of them named.
    """
    gguf = _package()
    base = _base(adapter)
    arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}.get(base.architecture)
    if arch is None:
        raise NotFound(f"the installed `gguf` does not know `{base.architecture}`", hint="`pip install --upgrade gguf`")
    names = gguf.get_tensor_name_map(arch, _number(adapter, "num_hidden_layers", "n_layer"))
    places: list[_Place] = []
    reasons: list[str] = []
    for module in adapter.factors.modules:
        here = adapter.base_name(owner(module))
        tensor = names.get_name(f"{here}.weight", try_suffixes=(".weight",))
        heads = _heads(adapter, here) if base.turned else 0
        if tensor is None:
            reasons.append(f"`{shown(module)}`: GGUF has no tensor for it in `{base.architecture}`")
        elif heads and adapter.factors.modules[module].b.shape[0] % (2 * heads):
            reasons.append(f"`{shown(module)}`: {adapter.factors.modules[module].b.shape[0]} rows for {heads} heads")
        else:
            places.append(_Place(module=module, tensor=tensor, heads=heads))
    twice = {place.tensor for place in places if sum(p.tensor == place.tensor for p in places) > 1}
    reasons += [f"`{shown(p.module)}`: another module is `{p.tensor}`, too" for p in places if p.tensor in twice]
    if reasons:
        raise UnsupportedAdapter(
            f"`{shown(adapter.label, 200)}` cannot be exported as GGUF; nothing was written",
            reasons,
            hint="`adapt export … --format merged` writes base and adapter as one model",
        )
    return places


def _heads(adapter: Adapter, module: str) -> int:
    """How many heads the rows of a module are of, where they are turned; 0 where they are not."""
    if module.endswith(_QUERIES):
        return _number(adapter, "num_attention_heads")
    if module.endswith(_KEYS):
        return _number(adapter, "num_key_value_heads", "num_attention_heads")
    return 0


def _package() -> Any:  # noqa: ANN401 - the module; it has no types
    try:
        import gguf
    except ModuleNotFoundError:
        hint = "`pip install 'adapterhub[export]'` brings it"
        raise NotFound("writing GGUF needs the package `gguf`, not installed here", hint=hint) from None
    return gguf
