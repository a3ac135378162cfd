"""The tables of transformers against diffusers: its models' modules, its converters of checkpoints, its LoRA loaders."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.loaders import lora_pipeline, single_file_utils
from diffusers.utils import logging
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch import Tensor, nn

from adapterhub.core.specs import parse_name
from adapterhub.formats.foreign.families import Family, family_named
from tests.support.adapter_folders import updates_in
from tests.support.command_line import Adapt
from tests.support.foreign_files import pair, update
from tests.support.pipelines import PIPELINES

Make = Callable[[], nn.Module]
KINDS = (nn.Linear, nn.Conv2d, nn.Conv3d)


class Checkpoint(dict[str, Tensor]):
    """The original names of a table; norms and others that a converter takes as well are there when it asks."""

    def pop(self, key: str, *default: Any) -> Any:
        return super().pop(key, *(default or (torch.zeros(6),)))


def family_of(key: str) -> Family:
    found = family_named(key)
    assert found is not None
    return found


def on_meta(make: Make) -> dict[str, int]:
    """The outputs of each module of a transformer at its real width."""
    with torch.device("meta"):
        model = make()
    return {name: one.weight.shape[0] for name, one in model.named_modules() if isinstance(one, KINDS)}


WHOLE: dict[str, list[Make]] = {
    "flux": [lambda: diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)],
    "flux2": [lambda: diffusers.Flux2Transformer2DModel(num_layers=1, num_single_layers=1)],
    "chroma": [lambda: diffusers.ChromaTransformer2DModel(num_layers=1, num_single_layers=1)],
    "hunyuanvideo": [
        lambda: diffusers.HunyuanVideoTransformer3DModel(
            num_layers=1, num_single_layers=1, num_refiner_layers=1, guidance_embeds=True
        )
    ],
    "sd3": [lambda: diffusers.SD3Transformer2DModel(num_layers=2, dual_attention_layers=(0,))],
    "qwenimage": [lambda: diffusers.QwenImageTransformer2DModel(num_layers=1)],
    "wan": [
        lambda: diffusers.WanVACETransformer3DModel(
            num_layers=1, vace_layers=[0], image_dim=1280, added_kv_proj_dim=5120
        )
    ],
    "zimage": [lambda: diffusers.ZImageTransformer2DModel(n_layers=1)],
    "ltx": [
        lambda: diffusers.LTXVideoTransformer3DModel(num_layers=1),
        lambda: diffusers.LTX2VideoTransformer3DModel(num_layers=1),
    ],
}  # fmt: skip
CONVERTERS: dict[str, str] = {
    "flux": "convert_flux_transformer_checkpoint_to_diffusers",
    "flux2": "convert_flux2_transformer_checkpoint_to_diffusers",
    "chroma": "convert_chroma_transformer_checkpoint_to_diffusers",
    "hunyuanvideo": "convert_hunyuan_video_transformer_to_diffusers",
    "sd3": "convert_sd3_transformer_checkpoint_to_diffusers",
    "wan": "convert_wan_transformer_to_diffusers",
    "zimage": "convert_z_image_transformer_checkpoint_to_diffusers",
    "ltx": "convert_ltx2_transformer_to_diffusers",
}


@pytest.mark.parametrize("key", WHOLE)
def test_a_table_has_each_module_of_its_transformer(key: str) -> None:
    family = family_of(key)
    modules = {name for make in WHOLE[key] for name in on_meta(make)}

    assert {name for name in modules if not family.has_all((name,))} == set()


@pytest.mark.parametrize("key", CONVERTERS)
def test_names_and_rows_are_those_of_the_converter_of_checkpoints(key: str) -> None:
    family, outs = family_of(key), on_meta(WHOLE[key][-1])
    width = outs.get("x_embedder", outs.get("transformer_blocks.0.attn.to_q", 0))
    originals = {name: family.original(name) for name in outs}
    checkpoint, expected = Checkpoint(), {}
    for original in dict.fromkeys(originals.values()):
        assert original is not None
        targets = [target for target in family.targets(original) if target.name in outs]
        total = sum(outs[target.name] for target in targets)
        checkpoint |= {f"{original}.weight": torch.arange(total)[:, None], f"{original}.bias": torch.arange(total)}
        for target in targets:
            runs = target.rows(total, width) or ((0, total),)
            expected[target.name] = torch.cat([torch.arange(start, stop) for start, stop in runs])[:, None]
    if key == "sd3":  # it counts its blocks and asks for the second attention by such names
        checkpoint |= {f"joint_blocks.{n}.x_block.attn.qkv.weight": checkpoint[f"joint_blocks.{n}.x_block.attn.qkv.weight"] for n in (0, 1)}  # fmt: skip

    converted = getattr(single_file_utils, CONVERTERS[key])(checkpoint)

    assert expected.keys() == outs.keys()
    wrong = [n for n, rows in expected.items() if f"{n}.weight" not in converted or not torch.equal(converted[f"{n}.weight"], rows)]  # fmt: skip
    assert wrong == []


# ---------------------------------------------------------------- exports, read back by diffusers' own loaders
TINY: dict[str, Make] = {
    "flux": lambda: diffusers.FluxTransformer2DModel(
        in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=10, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    ),
    "flux2": lambda: diffusers.Flux2Transformer2DModel(
        in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, timestep_guidance_channels=8, axes_dims_rope=(2, 2, 2, 2),
    ),
    "hunyuanvideo": lambda: diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_layers=2, num_single_layers=2, num_refiner_layers=1, attention_head_dim=8,
        num_attention_heads=2, text_embed_dim=12, pooled_projection_dim=10, rope_axes_dim=(2, 2, 4),
    ),
    "ltx": lambda: diffusers.LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        cross_attention_dim=16, caption_channels=12,
    ),
    "ltx2": lambda: diffusers.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        cross_attention_dim=16, audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2,
        audio_attention_head_dim=8, audio_cross_attention_dim=16, caption_channels=12,
    ),
    "qwenimage": lambda: diffusers.QwenImageTransformer2DModel(
        in_channels=4, out_channels=1, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, axes_dims_rope=(2, 2, 4),
    ),
    "sd3": lambda: diffusers.SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=10, dual_attention_layers=(0,),
    ),
    "wan": lambda: diffusers.WanTransformer3DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=12, num_attention_heads=2, text_dim=12,
        freq_dim=8, ffn_dim=20, image_dim=10, added_kv_proj_dim=24,
    ),
    "zimage": lambda: diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=16, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=12,
        axes_dims=[4, 2, 2], axes_lens=[8, 8, 8],
    ),
}  # fmt: skip
LOADERS = {
    "flux": "Flux", "flux2": "Flux2", "hunyuanvideo": "HunyuanVideo", "ltx": "LTXVideo", "ltx2": "LTX2",
    "qwenimage": "QwenImage", "sd3": "SD3", "wan": "Wan", "zimage": "ZImage",
}  # fmt: skip

Updates = dict[str, Tensor]


def updates_of(model: nn.Module) -> Updates:
    """What each module of an adapter adds to its weight, in float64."""
    found = {}
    for name, layer in model.named_modules():
        if getattr(layer, "lora_A", None):
            a, b = (next(iter(half.values())).weight.double() for half in (layer.lora_A, layer.lora_B))
            plain = name.removeprefix("base_model.model.")
            found[plain] = next(iter(layer.scaling.values())) * (b.flatten(1) @ a.flatten(1)).detach()
    return found


def trained(model: nn.Module, folder: Path, names: list[str], *, alpha: int = 2) -> Updates:
    """An adapter that PEFT writes for these modules, with numbers as after training."""
    torch.manual_seed(1)
    peft = get_peft_model(model, LoraConfig(r=2, lora_alpha=alpha, target_modules=names))
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    peft.save_pretrained(folder)
    return updates_of(peft)


def read_back(model: nn.Module, file: Path, loader: str) -> Updates:
    """What diffusers' own loader makes of a file."""
    logging.set_verbosity_error()
    mixin = getattr(lora_pipeline, f"{loader}LoraLoaderMixin")
    more = {"return_alphas": True} if loader == "Flux" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state, *rest = mixin.lora_state_dict(str(file), return_lora_metadata=True, **more)
        alphas = {"network_alphas": rest[0]} if more else {}
        mixin.load_lora_into_transformer(state, transformer=model, adapter_name="one", metadata=rest[-1], **alphas)
    return updates_of(model)


def difference(ours: Updates, truth: Updates) -> float:
    """The largest relative error; the modules must be the same."""
    assert ours.keys() == truth.keys(), (sorted(truth.keys() - ours.keys()), sorted(ours.keys() - truth.keys()))
    return max(float((ours[name] - truth[name]).norm() / truth[name].norm()) for name in truth)


BLOCKS = r"(?:single_)?(?:transformer_)?blocks\.\d+\."
READS = {
    ("flux", "comfyui"): BLOCKS + r"(?!attn\.to_[qkv]$|proj_mlp)|transformer_blocks",  # of 3072, and no others
    ("flux", "kohya"): BLOCKS + r"(?!attn\.to_[qkv]$|proj_mlp)|transformer_blocks",
    ("flux2", "comfyui"): r"(?!norm_out)",  # it does not exchange shift and scale, as its converter of checkpoints does
    ("flux2", "kohya"): r"(?!norm_out|\w+_modulation|time_guidance_embed\.guidance)",
    ("hunyuanvideo", "comfyui"): BLOCKS + r"(?!attn\.to_[qkv]$|proj_mlp)|transformer_blocks",  # of 3072 only
    ("ltx", "comfyui"): r"(?!proj_in|time_embed)",
    ("ltx2", "comfyui"): "",
    ("wan", "comfyui"): "",
    ("wan", "kohya"): BLOCKS,
}
READS |= {(key, "diffusers"): "" for key in LOADERS}
READS |= {(key, form): "" for key in ("qwenimage", "zimage") for form in ("comfyui", "kohya")}
"""What diffusers 0.42 reads of each program's files; the modules are those whose names the expression matches."""


def exported(key: str, form: str, folder: Path, wanted: str = "", *, alpha: int = 2) -> Updates:
    """Export an adapter of PEFT for a registered transformer, all in `folder`; returns what it adds."""
    adapt = Adapt(folder)
    torch.manual_seed(0)
    model = TINY[key]()
    model.save_pretrained(folder / "model")
    names = [n for n, one in model.named_modules() if isinstance(one, nn.Linear) and re.match(wanted, n)]
    truth = trained(model, folder / "peft", names, alpha=alpha)
    adapt.ok("base", "add", "./model", "--as", "tiny")
    adapt.ok("add", "./peft", "--name", "one", "--base", "tiny")
    adapt.ok("export", "one", "--format", form, "-o", "out.safetensors")
    assert len(truth) == len(names) > 0
    return truth


@pytest.mark.parametrize(("key", "form"), READS)
def test_diffusers_binds_each_module_of_an_export(key: str, form: str, tmp_path: Path) -> None:
    truth = exported(key, form, tmp_path, READS[key, form])

    assert difference(read_back(TINY[key](), tmp_path / "out.safetensors", LOADERS[key]), truth) < 1e-6


@pytest.mark.parametrize("form", ["comfyui", "kohya"])
@pytest.mark.parametrize("key", TINY)
def test_an_export_is_read_as_what_was_exported(key: str, form: str, tmp_path: Path) -> None:
    truth = exported(key, form, tmp_path, alpha=3)

    adapt = Adapt(tmp_path)
    adapt.ok("add", "./out.safetensors", "--name", "two", "--base", "tiny")
    folder = adapt.library.builds_named(parse_name("two"))[0].folder
    assert difference(updates_in(folder), truth) < 1e-6


@pytest.mark.parametrize("key", ["flux2", "ltx2", "sd3", "wan"])
def test_a_file_of_comfyui_has_the_names_of_the_original_checkpoint(key: str, tmp_path: Path) -> None:
    truth = exported(key, "comfyui", tmp_path)

    tensors = load_file(tmp_path / "out.safetensors")
    checkpoint = Checkpoint()
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            b = tensors[name.replace("lora_A", "lora_B")]
            whole = name.removeprefix("diffusion_model.").removesuffix(".lora_A.weight")
            checkpoint[f"{whole}.weight"] = b.double() @ a.double()
    ours = getattr(single_file_utils, CONVERTERS["ltx" if key == "ltx2" else key])(checkpoint)

    found = {name.removesuffix(".weight"): tensor for name, tensor in ours.items() if len(tensor.shape) == 2}
    assert difference(found, truth) < 1e-6


# ---------------------------------------------------------------- text encoders
def kohya_file(path: Path, pipeline: Any, encoders: dict[str, str]) -> dict[str, Updates]:
    """kohya's file on a UNet and its CLIP encoders, with alphas that differ; what each component gets."""
    rng, tensors, meant = np.random.default_rng(0), {}, {}
    names = [("lora_unet", "unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")]
    for prefix, part in encoders.items():
        names += [(prefix, part, f"text_model.encoder.layers.{n}.self_attn.q_proj") for n in (0, 1)]
    for number, (prefix, part, name) in enumerate(names):
        component = getattr(pipeline, part)
        here = name if hasattr(component, "text_model") or part == "unet" else name.removeprefix("text_model.")
        down, up = pair(rng, tuple(component.get_submodule(here).weight.shape), 2)
        key = f"{prefix}_{name.replace('.', '_')}"
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        tensors[f"{key}.alpha"] = np.array(1.0 + number, "f4")
        meant.setdefault(part, {})[here] = torch.from_numpy(update(down, up, (1.0 + number) / 2))
    save_file(tensors, path)
    return meant


@pytest.mark.parametrize(("kind", "encoders"), [
    ("sd15", {"lora_te": "text_encoder"}),
    ("sdxl", {"lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}),
    ("sdxl", {"lora_te1": "text_encoder"}),
])  # fmt: skip
def test_text_encoders_of_either_class_are_bound(kind: str, encoders: dict[str, str], tmp_path: Path) -> None:
    adapt, pipeline = Adapt(tmp_path), PIPELINES[kind]()
    meant = kohya_file(tmp_path / "in.safetensors", pipeline, encoders)
    adapt.ok("add", "./in.safetensors", "--name", "one")
    adapt.ok("export", "one", "--format", "diffusers", "-o", "out.safetensors")

    pipeline.load_lora_weights(str(tmp_path), weight_name="out.safetensors")

    assert max(difference(updates_of(getattr(pipeline, part)), meant[part]) for part in meant) < 1e-6


def test_an_adapter_of_a_bare_encoder_gets_the_names_that_files_have(tmp_path: Path) -> None:
    pipeline = PIPELINES["sdxl"]()
    truth = trained(pipeline.text_encoder, tmp_path / "peft", ["q_proj", "mlp.fc1"], alpha=3)
    adapt = Adapt(tmp_path)
    pipeline = PIPELINES["sdxl"]()
    pipeline.save_pretrained(tmp_path / "model")
    adapt.ok("base", "add", "./model", "--as", "tiny")
    adapt.ok("add", "./peft", "--name", "one", "--base", "tiny/text_encoder")
    for form in ("diffusers", "kohya", "comfyui"):
        adapt.ok("export", "one", "--format", form, "-o", f"{form}.safetensors")

    pipeline.load_lora_weights(str(tmp_path), weight_name="diffusers.safetensors")

    assert difference(updates_of(pipeline.text_encoder), truth) < 1e-6
    assert {name.split(".")[0] for name in load_file(tmp_path / "kohya.safetensors")} == {
        f"lora_te1_text_model_{name.replace('.', '_')}" for name in truth
    }
    assert all("clip_l.transformer.text_model.encoder." in name for name in load_file(tmp_path / "comfyui.safetensors"))
