"""`peft`: the plainest PEFT folder, for programs that read original LoRA and none of its later extensions.

`lora_alpha` equals `r`, so the scale is 1 for every program, also for one that ignores it; there is no rsLoRA and no
pattern. Scales are folded into B, and modules of a lower rank are padded with zeros. `adapt pull` writes the author's
original files.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from adapterhub.core.disk.files import new_folder
from adapterhub.core.errors import Incompatible, UnsupportedAdapter, shown
from adapterhub.formats.engines import FEATURES, SETTINGS, BaseFacts, Traits
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.formats.peft.keys import sort_keys
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.inference.export._job import Adapter, Exported, Job, other_way
from adapterhub.weights.dtypes import CHOSEN_DTYPES, FORMAT_DTYPES, TORCH_DTYPES
from adapterhub.weights.lowrank.factors import TensorFileWriter, is_finite, join

_MORE: Final = (
    "method",
    "dora",
    "lora_bias",
    "bias",
    "modules_to_save",
    "trainable_tokens",
    "target_parameters",
    *SETTINGS,
    "others",
)
"""Features beyond B·A on a weight."""


def export(job: Job, out: Path) -> Exported:
    """Write the folder `out`; the default dtype is the adapter's own if that loses nothing, otherwise float32.

    Raises:
        UnsupportedAdapter: plain LoRA cannot express parts of the adapter; names each of them.
        Incompatible: numbers are too large for the dtype.
    """
    with job.opened("peft", needs_base=False) as adapter:
        _ensure_plain(adapter)
        dtype = _dtype(adapter, job.dtype)
        rank = max(factors.rank for factors in adapter.factors.modules.values())
        with new_folder(out, durable=True) as folder:
            _write(adapter, folder / WEIGHTS_FILE, rank=rank, dtype=dtype, job=job)
            (folder / CONFIG_FILE).write_text(json.dumps(_config(adapter, rank), indent=2) + "\n", encoding="utf-8")
            job.check(folder, adapter)
        return adapter.exported(out / CONFIG_FILE, out / WEIGHTS_FILE, notes=_notes(adapter, rank, dtype))


def _ensure_plain(adapter: Adapter) -> None:
    """Raise unless the adapter is B·A on weights and nothing more.

    Raises:
        UnsupportedAdapter: with every other part.
    """
    factors = adapter.factors
    config, weights = factors.config, factors.header
    traits = Traits(config=config, weights=weights, base=BaseFacts(), keys=sort_keys(weights, config))
    more = {name: found for name in _MORE if (found := FEATURES[name].test(traits))}
    reasons = [f"{FEATURES[name].title}: {found}" for name, found in more.items()]
    reasons += [
        f"`{shown(module)}`: one update for each of {pair.layout.parts} parts"
        for module, pair in factors.modules.items()
        if pair.layout.parts > 1 and pair.layout.kind != "experts"
    ]
    if reasons:
        raise UnsupportedAdapter(
            f"`{shown(adapter.label, 200)}` is more than plain LoRA; nothing was written",
            reasons,
            hint=other_way(more, adapter.facts),
        )


def _dtype(adapter: Adapter, name: str | None) -> torch.dtype:
    if name is not None:
        return CHOSEN_DTYPES[name]
    modules = adapter.factors.modules.values()
    own = {TORCH_DTYPES.get(spec.dtype, torch.float32) for factors in modules for spec in (factors.a, factors.b)}
    exact = all(math.frexp(factors.scale)[0] == 0.5 for factors in modules)
    if own == {torch.float16}:
        exact &= all(factors.scale >= 1 for factors in modules)  # a smaller scale costs numbers below 6e-5 some bits
    return own.pop() if len(own) == 1 and exact and torch.float64 not in own else torch.float32


def _write(adapter: Adapter, path: Path, *, rank: int, dtype: torch.dtype, job: Job) -> None:
    modules = adapter.factors.modules
    planned = [
        TensorSpec.planned(name, FORMAT_DTYPES[dtype], shape)
        for module, factors in modules.items()
        for name, shape in zip(factors.layout.names(module), factors.layout.shapes(rank), strict=True)
    ]
    with TensorFileWriter(path, planned) as writer:
        for done, (module, factors) in enumerate(modules.items()):
            job.step(done, len(modules))
            update = adapter.factors.read(module).folded(dtype)
            tensors: tuple[Tensor, Tensor] = join(factors.layout, [update], rank)
            for name, tensor in zip(factors.layout.names(module), tensors, strict=True):
                if not is_finite(tensor):
                    what = f"the update of `{shown(module)}` is too large for {str(dtype).removeprefix('torch.')}"
                    raise Incompatible(f"{what}; nothing was written", hint="use `--dtype float32`")
                writer.add(name, tensor)
        job.step(len(modules), len(modules))


def _config(adapter: Adapter, rank: int) -> dict[str, object]:
    """Return a config with scale 1 for all modules.

    It has full target names if the author chose layers or used a pattern.
    """
    config = adapter.factors.config
    as_written = (
        isinstance(config.target_modules, tuple) and not config.layers_to_transform and not config.exclude_modules
    )
    targets = config.target_modules if as_written else tuple(adapter.factors.modules)
    return {
        "peft_type": "LORA",
        "task_type": config.task_type,
        "base_model_name_or_path": config.base_model_name_or_path,
        "revision": config.revision,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(targets or ()),
        "fan_in_fan_out": config.fan_in_fan_out,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _notes(adapter: Adapter, rank: int, dtype: torch.dtype) -> list[str]:
    filled = sum(factors.rank < rank for factors in adapter.factors.modules.values())
    notes = [f"padded {filled} of {len(adapter.factors.modules)} modules to rank {rank} with zeros"] if filled else []
    folded = sum(factors.scale != 1 for factors in adapter.factors.modules.values())
    return [*notes, f"folded {folded} scales into B, in {str(dtype).removeprefix('torch.')}"] if folded else notes
