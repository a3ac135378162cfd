"""LoRA files in the layouts of other programs, with the dense update that each module means in float64."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from adapterhub.formats.foreign.families import Targets, family_named
from adapterhub.formats.foreign.tables import SD1, UNet

Arrays = dict[str, np.ndarray]
Updates = dict[str, np.ndarray]

WIDTH = 8


def flux_modules() -> dict[str, Targets]:
    """Each module of the original checkpoint of FLUX.1, and what diffusers has for it."""
    family = family_named("flux")
    assert family is not None
    depths = {"double_blocks": 19, "single_blocks": 38}
    numbered = [
        name.replace(".N.", f".{n}.") for name in family.modules for n in range(depths.get(name.partition(".")[0], 1))
    ]
    return {name: family.targets(name) for name in numbered}


def shape_of(module: str) -> tuple[int, ...]:
    """A tiny weight for a module of a UNet: convolutions where the real ones have them."""
    last = module.rpartition(".")[2]
    if last in ("conv1", "conv2", "conv", "conv_in", "conv_out"):
        return (WIDTH, WIDTH, 3, 3)
    if last == "conv_shortcut":
        return (WIDTH, WIDTH, 1, 1)
    return (WIDTH, 12 if "attn2.to_k" in module or "attn2.to_v" in module else WIDTH)


def pair(
    rng: np.random.Generator, shape: tuple[int, ...], rank: int, dtype: str = "f4"
) -> tuple[np.ndarray, np.ndarray]:
    """Random `down` and `up` of a weight's shape."""
    down = rng.standard_normal((rank, *shape[1:])).astype(dtype)
    up = rng.standard_normal((shape[0], rank, *([1] * (len(shape) - 2)))).astype(dtype)
    return down, up


def update(down: np.ndarray, up: np.ndarray, scale: float) -> np.ndarray:
    """The formula: scale * up down, in float64, convolutions flattened."""
    return scale * (up.reshape(up.shape[0], -1).astype("f8") @ down.reshape(down.shape[0], -1).astype("f8"))


def kohya(  # noqa: PLR0913 - one argument for each trait of a file
    path: Path,
    *,
    unet: UNet = SD1,
    names: str = "diffusers",
    every: int = 1,
    text: str = "lora_te",
    alphas: bool = True,
    dtype: str = "f4",
    metadata: Mapping[str, str] | None = None,
    seed: int = 0,
) -> tuple[Arrays, Updates]:
    """kohya's layout, with ranks and alphas that differ between modules; `names` `ldm` has the original ones."""
    rng = np.random.default_rng(seed)
    tensors: Arrays = {}
    meant: Updates = {}
    chosen = list(unet.ldm.items())[::every]
    modules = [("lora_unet", ours if names == "diffusers" else theirs, f"unet.{ours}") for ours, theirs in chosen]
    clip = (
        [f"text_model.encoder.layers.{n}.{m}" for n in (0, 11) for m in ("self_attn.q_proj", "mlp.fc1")] if text else []
    )
    modules += [(text, name, f"text_encoder.{name}") for name in clip]
    for number, (prefix, name, full) in enumerate(modules):
        rank = 1 + number % 3
        down, up = pair(rng, shape_of(full), rank, dtype)
        key = f"{prefix}_{name.replace('.', '_')}"
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        alpha = 0.5 * (1 + number % 4) if alphas else rank
        if alphas:
            tensors[f"{key}.alpha"] = np.array(alpha, dtype)
        meant[full if text else full.removeprefix("unet.")] = update(down, up, alpha / rank)
    save_file(tensors, path, metadata=dict(metadata) if metadata else None)
    return tensors, meant


def flux(path: Path, *, prefix: str = "lora_unet_", seed: int = 0, alphas: bool = True) -> tuple[Arrays, Updates]:
    """A LoRA on one block of each kind of Flux, in the fused names, with what diffusers' modules get."""
    rng = np.random.default_rng(seed)
    tensors: Arrays = {}
    meant: Updates = {}
    outs = {"qkv": 3 * WIDTH, "linear1": 7 * WIDTH, "lin": 6 * WIDTH, "adaLN_modulation.1": 2 * WIDTH}
    names = [n for n in flux_modules() if n.startswith(("double_blocks.0.", "single_blocks.0.")) or "_blocks." not in n]
    for number, name in enumerate(names):
        out = next((o for end, o in outs.items() if name.endswith(f".{end}")), WIDTH)
        rank = 1 + number % 3
        down, up = pair(rng, (out, WIDTH), rank)
        is_flat = prefix.endswith("_")
        key = prefix + (name.replace(".", "_") if is_flat else name)
        a, b = ("lora_down.weight", "lora_up.weight") if is_flat else ("lora_A.weight", "lora_B.weight")
        tensors |= {f"{key}.{a}": down, f"{key}.{b}": up}
        alpha = 1.0 + number % 2 if alphas else rank
        if alphas:
            tensors[f"{key}.alpha"] = np.array(alpha, "f4")
        whole = update(down, up, alpha / rank)
        for target in flux_modules()[name]:
            rows = target.rows(out, WIDTH) or ((0, out),)
            meant[target.name] = np.concatenate([whole[start:stop] for start, stop in rows])
    save_file(tensors, path)
    return tensors, meant


def mlx(
    folder: Path, *, scale: float = 10.0, rank: int = 2, dora: bool = False, seed: int = 0
) -> tuple[Arrays, Updates]:
    """The folder that mlx-lm writes, for two layers of a tiny llama."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    tensors: Arrays = {}
    meant: Updates = {}
    for layer in range(2):
        for name, (out, width) in {"self_attn.q_proj": (8, 8), "mlp.down_proj": (8, 12)}.items():
            module = f"model.layers.{layer}.{name}"
            down, up = pair(rng, (out, width), rank)
            tensors |= {
                f"{module}.lora_a": np.ascontiguousarray(down.T),
                f"{module}.lora_b": np.ascontiguousarray(up.T),
            }
            if dora:
                tensors[f"{module}.m"] = rng.random(out).astype("f4")
            meant[module] = update(down, up, scale)
    save_file(tensors, folder / "adapters.safetensors")
    config = {
        "fine_tune_type": "dora" if dora else "lora",
        "model": "org/tiny",
        "num_layers": 2,
        "lora_parameters": {"rank": rank, "alpha": 16, "dropout": 0.0, "scale": scale},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return tensors, meant


def meant_by(folder: Path) -> Updates:
    """What each module of a converted PEFT folder means: its patterns have whole names, anchored where one ends another."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for name, down in tensors.items():
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        if not name.endswith(".lora_A.weight"):
            continue

        def own(key: str, usual: float, module: str = module) -> float:
            patterns = config[key]
            return patterns.get(module, patterns.get("^" + re.escape(module), usual))

        rank, alpha = own("rank_pattern", config["r"]), own("alpha_pattern", config["lora_alpha"])
        assert rank == down.shape[0]
        scale = alpha / (rank**0.5 if config["use_rslora"] else rank)
        found[module] = update(down, tensors[name.replace("lora_A", "lora_B")], scale)
    return found
