"""The files of an adapter from a folder, a model or a state dict, written once into the store's staging folder.

A tensor comes to the CPU when its bytes are written and is let go of then, so the memory needed is that of the largest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapterhub.core.disk.files import write_file, write_new
from adapterhub.core.errors import UsageProblem, shown
from adapterhub.core.extras import extra_named
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.safetensors.file import header_bytes
from adapterhub.formats.safetensors.header import DTYPES, TensorSpec

_DTYPES: Final = {dtype.torch: name for name, dtype in DTYPES.items() if dtype.torch} | {
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
}
_IN_MODELS: Final = "base_model.model."
_WRAPPERS: Final = ("module", "_orig_mod")
"""Where DistributedDataParallel and `torch.compile` keep the model that they wrap."""
_EMBEDDINGS: Final = frozenset({"embed_tokens", "lm_head"})


@dataclass(frozen=True, slots=True)
class State:
    """The tensors of an adapter by their names in a PEFT file, and its config as PEFT writes it."""

    tensors: Mapping[str, Any]
    config: bytes

    @property
    def size_bytes(self) -> int:
        """Bytes of the numbers."""
        return sum(_planned(name, tensor).size_bytes for name, tensor in self.tensors.items())

    def write(self, folder: Path) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`.

        Raises:
            UsageProblem: a value is not a dense tensor in memory, or has a dtype that safetensors lacks.
            OSError: the files cannot be written.
        """
        specs = sorted(
            (_planned(name, tensor) for name, tensor in self.tensors.items()),
            key=lambda spec: (-DTYPES[spec.dtype].bits, spec.name),  # each number begins at a multiple of its size
        )
        write_file(folder / CONFIG_FILE, self.config)
        with write_new(folder / WEIGHTS_FILE) as sink:
            sink.write(header_bytes(specs, {"format": "pt"}))
            for spec in specs:
                sink.write(_bytes_of(self.tensors[spec.name]))


def state_of(source: object, config: object = None) -> State:
    """Return the adapter in a model, the active one of several; or a state dict, with its config.

    Raises:
        UsageProblem: it is neither, has no adapter or no tensors, or the config is missing or no JSON.
    """
    if isinstance(source, Mapping):
        if config is None:
            raise _refused("a state dict has no config with its rank and targets", "pass `config=` to `Library.live`")
        return State(_named(source), config_bytes(config))
    model: Any = source
    while not hasattr(model, "peft_config"):
        inner = next((getattr(model, name) for name in _WRAPPERS if hasattr(model, name)), None)
        if inner is None:
            raise _refused(f"a {type(source).__name__} has no adapter", "pass a PEFT model, a state dict or a folder")
        model = inner
    with extra_named("publishing a model"):
        from peft import PeftModel, get_peft_model_state_dict

    name = _active(model)
    settings = model.peft_config[name]
    found: Mapping[str, Any] = get_peft_model_state_dict(
        model, adapter_name=name, save_embedding_layers=_trains_embeddings(settings)
    )
    if not isinstance(model, PeftModel):  # a model of transformers writes the names so
        found = {key if key.startswith(_IN_MODELS) else f"{_IN_MODELS}{key}": found[key] for key in found}
    return State(_named(found), config_bytes(settings if config is None else config))


def config_bytes(config: object) -> bytes:
    """Return a config of PEFT, or a mapping, as `adapter_config.json`; equal configs give equal bytes.

    Raises:
        UsageProblem: it is neither, or no JSON.
    """
    if isinstance(config, bytes):  # made here
        return config
    values = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(values, Mapping):
        raise _refused(f"config is {shown(config)}, expected a config of PEFT or a mapping")
    try:
        text = json.dumps({**values, "inference_mode": True}, default=_plain, indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _refused(f"config is no JSON: {shown(error, 200)}") from None
    return text.encode()


def _plain(value: object) -> object:
    """Return a set as a sorted list and a path or an enumeration as text, where JSON has neither."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a {type(value).__name__} has no JSON")


def _active(model: Any) -> str:
    names = list(model.peft_config)
    if len(names) == 1:
        return str(names[0])
    active = model.active_adapters() if callable(model.active_adapters) else model.active_adapters
    if len(active) == 1:
        return str(active[0])
    raise _refused(f"the model has the adapters {', '.join(names)}", "make one of them active with `set_adapter`")


def _trains_embeddings(settings: Any) -> bool:
    """Return whether PEFT saves the embeddings with the adapter. PEFT's own check also queries the Hub at each call."""
    targets = settings.target_modules
    return not isinstance(targets, str) and not _EMBEDDINGS.isdisjoint(targets or ())


def _named(tensors: Mapping[Any, Any]) -> Mapping[str, Any]:
    strange = next((name for name in tensors if not isinstance(name, str)), None)
    if strange is not None:
        raise _refused(f"the state dict has the key {shown(strange)}, expected names of tensors")
    if not tensors:
        raise _refused("the state dict is empty", "PEFT's `get_peft_model_state_dict(model)` makes one")
    return tensors


def _planned(name: str, tensor: Any) -> TensorSpec:
    """Name, dtype and shape of a tensor of torch or numpy."""
    if not (hasattr(tensor, "dtype") and hasattr(tensor, "shape")):
        raise _refused(f"`{shown(name)}` is {shown(tensor)}, expected a tensor")
    if hasattr(tensor, "full_tensor"):
        raise _refused(f"`{shown(name)}` is a part of a tensor", "pass what `full_tensor()` returns in all processes")
    if str(getattr(tensor, "layout", "torch.strided")) != "torch.strided" or getattr(tensor, "is_meta", False):
        raise _refused(f"`{shown(name)}` is not a dense tensor of numbers")
    dtype = str(getattr(tensor.dtype, "name", tensor.dtype)).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise _refused(f"`{shown(name)}` is of dtype {shown(dtype)}", f"expected one of {', '.join(sorted(_DTYPES))}")
    return TensorSpec.planned(name, _DTYPES[dtype], tuple(map(int, tensor.shape)))


def _bytes_of(tensor: Any) -> memoryview:
    """Return the numbers of a tensor, little-endian and in order."""
    if hasattr(tensor, "detach"):
        import torch

        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        return memoryview(flat.view(torch.uint8).numpy())
    import numpy as np

    plain = np.ascontiguousarray(tensor)
    if plain.dtype.byteorder == ">":
        plain = plain.astype(plain.dtype.newbyteorder("<"))
    return plain.reshape(-1).view(np.uint8).data


def _refused(what: str, hint: str = "") -> UsageProblem:
    return UsageProblem(f"{what}. Nothing was published", hint=hint)
