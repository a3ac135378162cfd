"""diffusers on tiny pipelines of the real block structure, against the formula fused into the weights in float64."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import logging
from torch import Tensor

from adapterhub.formats.foreign.tables import SD1, SDXL
from tests.support.foreign_files import Arrays, Updates, pair, update

BOUND = 1e-4
"""Of outputs of order 10."""


def tiny_unet(*, is_xl: bool) -> UNet2DConditionModel:
    """A UNet with the blocks of SD 1 or SDXL and a few channels; SDXL's deepest blocks have 2 layers instead of 10.

    PEFT's time grows with the square of the modules: all 794 take minutes, and these have every kind of name.
    """
    torch.manual_seed(0)
    common = {"sample_size": 8, "norm_num_groups": 8, "layers_per_block": 2, "attention_head_dim": 2}
    if not is_xl:
        return UNet2DConditionModel(block_out_channels=(8, 16, 16, 16), cross_attention_dim=12, **common).eval()
    return UNet2DConditionModel(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 2),
        cross_attention_dim=12,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=32,
        **common,
    ).eval()


def outputs(unet: UNet2DConditionModel, *, is_xl: bool) -> Tensor:
    """One step on fixed inputs, in float64 so that only the adapter makes a difference."""
    generator = torch.Generator().manual_seed(1)
    more = {}
    if is_xl:
        embeds, ids = torch.randn(1, 8, generator=generator), torch.ones(1, 6)
        more = {"added_cond_kwargs": {"text_embeds": embeds.double(), "time_ids": ids.double()}}
    latents, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, 12, generator=generator)
    with torch.no_grad():
        return unet.double()(latents.double(), 7, text.double(), **more).sample


def random_lora(unet: UNet2DConditionModel, *, only_attention: bool, seed: int = 0) -> tuple[Arrays, Updates]:
    """kohya's factors for the modules of a UNet, with ranks and alphas that differ, and what each means."""
    rng = np.random.default_rng(seed)
    tensors: Arrays = {}
    meant: Updates = {}
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    modules = [(n, m) for n, m in unet.named_modules() if isinstance(m, kinds) and (".attn" in n or not only_attention)]
    for number, (name, module) in enumerate(modules):
        rank = 1 + number % 2
        down, up = pair(rng, tuple(module.weight.shape), rank)
        down, up, alpha = down * np.float32(0.2), up * np.float32(0.2), 0.5 * (1 + number % 3)
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        tensors[f"{key}.alpha"] = np.array(alpha, "f4")
        meant[name] = update(down, up, alpha / rank)
    return tensors, meant


def kinds_of(names: Iterable[str]) -> set[str]:
    """The names without their numbers."""
    return {re.sub(r"\d+", "N", name) for name in names}


def fused(unet: UNet2DConditionModel, meant: Mapping[str, np.ndarray]) -> UNet2DConditionModel:
    """A copy with the updates added to its weights in float64."""
    whole = copy.deepcopy(unet).double()
    for name, delta in meant.items():
        module = whole.get_submodule(name)
        if module.weight.ndim == 4 and delta.shape[1] == module.weight[0].numel():
            delta = delta.reshape(module.weight.shape)  # noqa: PLW2901 - the same numbers
        module.weight.data += torch.from_numpy(delta)
    return whole


def loaded(unet: UNet2DConditionModel, file: Path, *, is_xl: bool) -> UNet2DConditionModel:
    """The UNet after diffusers' own loader has read the file; it warns at length of what it drops."""
    logging.set_verbosity_error()
    mixin = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
    own = copy.deepcopy(unet).float()
    state, alphas, metadata = mixin.lora_state_dict(str(file), unet_config=own.config, return_lora_metadata=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixin.load_lora_into_unet(state, network_alphas=alphas, unet=own, metadata=metadata)
    return own


def difference(tmp_path: Path, *, is_xl: bool, only_attention: bool) -> tuple[float, float, float]:
    """How far diffusers is from the formula with our export, how far with the original, and what the adapter moves."""
    from safetensors.numpy import save_file

    from adapterhub.inference.export import export
    from adapterhub.library.intake.description import Description
    from adapterhub.library.intake.foreign import peft_folder
    from adapterhub.library.library import Library

    unet = tiny_unet(is_xl=is_xl)
    tensors, meant = random_lora(unet, only_attention=only_attention)
    if not only_attention:
        assert kinds_of(meant) == kinds_of((SDXL if is_xl else SD1).ldm)
    save_file(tensors, tmp_path / "in.safetensors")
    library = Library(tmp_path / "home")
    with peft_folder(library.store, tmp_path / "in.safetensors") as ready:
        library.add(ready.folder, ready.described(Description(name="one", version="1.0.0")))  # type: ignore[arg-type]
    export("one", tmp_path / "out.safetensors", form="diffusers", library=library)
    exact, plain = outputs(fused(unet, meant), is_xl=is_xl), outputs(copy.deepcopy(unet), is_xl=is_xl)
    ours = outputs(loaded(unet, tmp_path / "out.safetensors", is_xl=is_xl), is_xl=is_xl)
    theirs = outputs(loaded(unet, tmp_path / "in.safetensors", is_xl=is_xl), is_xl=is_xl)
    distances = [(one - exact).abs().max().item() for one in (ours, theirs)]
    return distances[0], distances[1], (plain - exact).abs().max().item()
