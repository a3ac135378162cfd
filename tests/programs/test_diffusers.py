"""One quick case of `python -m tests.programs`, and the tables of names against diffusers' own models and converter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

from adapterhub.formats.foreign.places import flat
from adapterhub.formats.foreign.tables import SD1, SDXL, UNet
from tests.programs.in_diffusers import BOUND, difference
from tests.support.foreign_files import flux_modules

WIDTH = 3072
ROWS = {
    "qkv": 3 * WIDTH, "linear1": 7 * WIDTH, "mod.lin": 6 * WIDTH, "modulation.lin": 3 * WIDTH,
    "adaLN_modulation.1": 2 * WIDTH,
}  # fmt: skip


def test_diffusers_computes_what_the_adapter_means(tmp_path: Path) -> None:
    ours, _, moved = difference(tmp_path, is_xl=False, only_attention=True)

    assert ours < BOUND < moved


def sdxl() -> torch.nn.Module:
    return UNet2DConditionModel(
        block_out_channels=(320, 640, 1280), cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2, 10),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )  # fmt: skip


def modules_of(make: Callable[[], torch.nn.Module]) -> set[str]:
    with torch.device("meta"):
        model = make()
    return {name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear | torch.nn.Conv2d)}


@pytest.mark.parametrize(
    ("unet", "make", "count"), [(SD1, lambda: UNet2DConditionModel(cross_attention_dim=768), 282), (SDXL, sdxl, 794)]
)
def test_a_table_has_each_module_of_its_unet_under_one_original_name(
    unet: UNet, make: Callable[[], torch.nn.Module], count: int
) -> None:
    assert modules_of(make) == unet.ldm.keys()
    spelt = {flat(name) for name in unet.ldm} | {flat(name) for name in unet.ldm.values()}
    fixed = unet.ldm.keys() & set(unet.ldm.values())
    assert (len(unet.ldm), len(set(unet.ldm.values()))) == (count, count)
    assert len(spelt) == 2 * count - len(fixed)


def test_the_table_of_flux_has_each_module_of_its_transformer() -> None:
    targets = [target.name for targets in flux_modules().values() for target in targets]

    assert sorted(targets) == sorted(modules_of(lambda: FluxTransformer2DModel(guidance_embeds=True)))


def test_the_rows_of_flux_are_those_of_diffusers_converter() -> None:
    blocks = ("double_blocks.0.", "single_blocks.0.")
    table = {name: found for name, found in flux_modules().items() if name.startswith(blocks) or "_blocks." not in name}
    given = {name: next((rows for end, rows in ROWS.items() if name.endswith(end)), WIDTH) for name in table}
    checkpoint: dict[str, Any] = {}
    for name, out in given.items():
        checkpoint |= {f"{name}.weight": torch.arange(out)[:, None], f"{name}.bias": torch.arange(out)}
    norms = ["double_blocks.0.img_attn", "double_blocks.0.txt_attn", "single_blocks.0"]
    checkpoint |= {f"{name}.norm.{which}_norm.scale": torch.ones(1) for name in norms for which in ("query", "key")}

    converted = convert_flux_transformer_checkpoint_to_diffusers(checkpoint)

    expected = {}
    for name, targets in table.items():
        for target in targets:
            runs = target.rows(given[name], WIDTH) or ((0, given[name]),)
            rows = torch.cat([torch.arange(start, stop) for start, stop in runs])
            expected |= {f"{target.name}.weight": rows[:, None], f"{target.name}.bias": rows}
    assert len(expected) == 60
    assert all(torch.equal(converted[name], rows) for name, rows in expected.items())
