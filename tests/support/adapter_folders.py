"""Random adapters of any layout as PEFT folders, and the dense float64 sums that merges are checked against.

The reading here is the slow and plain one (safetensors' own loader, PEFT's rule for scales written out again), so that
a mistake of the package is not checked against itself.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapterhub.weights.lowrank.algebra import LowRank

PREFIX = "base_model.model."


def random_delta(
    seed: int, *, out: int, width: int, rank: int, scale: float = 2.0, dtype: torch.dtype = torch.float32
) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, width, generator=generator) / math.sqrt(width)
    b = torch.randn(out, rank, generator=generator)
    return LowRank(a=a.to(dtype), b=b.to(dtype), scale=scale)


def dense(deltas: Sequence[LowRank], weights: Sequence[float] = (1.0,)) -> Tensor:
    return torch.stack([w * d.scale * (d.b.double() @ d.a.double()) for d, w in zip(deltas, weights, strict=True)]).sum(
        0
    )


def relative(result: Tensor, exact: Tensor) -> float:
    return float((result - exact).norm() / exact.norm())


def write_folder(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    ranks: int | Mapping[str, int] = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    extra: Mapping[str, Tensor] | None = None,
    **config: object,
) -> Path:
    """`shapes` maps a module to its weight's shape: [out, in], [out, in, kh, kw], or an embedding's [entries, dim].

    Embeddings are told by their name. `extra` are further tensors, named in full.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) / math.sqrt(shape[-1])).to(dtype)

    tensors = dict(extra or {})
    for module, shape in shapes.items():
        rank = ranks if isinstance(ranks, int) else ranks[module]
        if "embed" in module:
            tensors[f"{PREFIX}{module}.lora_embedding_A"] = random(rank, shape[0])
            tensors[f"{PREFIX}{module}.lora_embedding_B"] = random(shape[1], rank)
        else:
            tensors[f"{PREFIX}{module}.lora_A.weight"] = random(rank, *shape[1:])
            tensors[f"{PREFIX}{module}.lora_B.weight"] = random(shape[0], rank, *(1 for _ in shape[2:]))
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    common = ranks if isinstance(ranks, int) else max(ranks.values())
    values = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "test/tiny", "r": common,
        "lora_alpha": 2 * common, "target_modules": sorted({m.rpartition(".")[2] for m in shapes}), "bias": "none",
    }  # fmt: skip
    if not isinstance(ranks, int):
        values["rank_pattern"] = {m: r for m, r in ranks.items() if r != common}
    (folder / "adapter_config.json").write_text(json.dumps(values | config))
    return folder


def updates_in(folder: Path) -> dict[str, Tensor]:
    """Every module's update as a dense float64 matrix, convolutions flattened, scaled as PEFT scales it."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    updates = {}
    for name, a in tensors.items():
        if ".lora_A." not in name and not name.endswith(".lora_embedding_A"):
            continue
        b = tensors[name.replace(".lora_A.", ".lora_B.").replace(".lora_embedding_A", ".lora_embedding_B")]
        module = re.sub(r"\.lora_A\.weight$|\.lora_embedding_A$", "", name.removeprefix(PREFIX))

        def by_pattern(kind: str, default: float, module: str = module) -> float:
            for key, value in (config.get(kind) or {}).items():
                if re.match(rf"(.*\.)?({key})$", module):
                    return value
            return default

        rank = by_pattern("rank_pattern", config["r"])
        assert a.shape[0] == b.shape[1] == rank, module
        alpha = by_pattern("alpha_pattern", config["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        updates[module] = scale * (b.flatten(1).double() @ a.flatten(1).double())
    return updates


def exact_sum(folders: Sequence[Path], weights: Sequence[float]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for folder, weight in zip(folders, weights, strict=True):
        for module, update in updates_in(folder).items():
            total[module] = total.get(module, torch.zeros_like(update)) + weight * update
    return total


def error_of(result: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """‖result - exact‖ / ‖exact‖ over all modules."""
    assert result.keys() == exact.keys()
    apart = math.hypot(*(float((result[m] - exact[m]).norm()) for m in exact))
    return apart / math.hypot(*(float(exact[m].norm()) for m in exact))
