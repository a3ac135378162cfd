"""Which family a file's names and sizes mean, and where its tensors go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from adapterhub.core.errors import MalformedTensorFile
from adapterhub.formats.foreign.conversion import foreign
from adapterhub.formats.foreign.telling import family_of_images
from tests.support.foreign_files import meant_by, pair, update

COMFY, KOHYA = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
DIFFSYNTH = ("lora_A.default.weight", "lora_B.default.weight")
W = 16


def file_of(path: Path, shapes: dict[str, tuple[int, int]], ends: tuple[str, str]) -> dict[str, np.ndarray]:
    """A file with a pair for each name; what each means by that name."""
    rng, tensors, meant = np.random.default_rng(0), {}, {}
    for name, shape in shapes.items():
        down, up = pair(rng, shape, 2)
        tensors |= {f"{name}.{ends[0]}": down, f"{name}.{ends[1]}": up}
        meant[name] = update(down, up, 1)
    save_file(tensors, path)
    return meant


def read_families(path: Path) -> str:
    with foreign(path) as found:
        return family_of_images(found.reading)


FLUX, FLUX2 = "single_transformer_blocks.0", "single_transformer_blocks.0.attn"
CASES = [
    ("lora_unet_single_blocks_0_linear2", (W, 5 * W), KOHYA, [f"{FLUX}.proj_out"], "FLUX.1, Chroma or HunyuanVideo"),
    ("lora_unet_single_blocks_0_linear2", (W, 4 * W), KOHYA, [f"{FLUX2}.to_out"], "FLUX.2"),
    ("diffusion_model.single_blocks.0.linear1", (7 * W, W), COMFY,
     [f"{FLUX}.attn.to_q", f"{FLUX}.attn.to_k", f"{FLUX}.attn.to_v", f"{FLUX}.proj_mlp"], "FLUX.1, Chroma or HunyuanVideo"),
    ("diffusion_model.single_blocks.0.linear1", (9 * W, W), COMFY, [f"{FLUX2}.to_qkv_mlp_proj"], "FLUX.2"),
    ("diffusion_model.distilled_guidance_layer.layers.0.in_layer", (W, W), COMFY,
     ["distilled_guidance_layer.layers.0.linear_1"], "Chroma"),
    ("Hunyuan_video_I2V_lora_double_blocks_0_img_attn_qkv", (3 * W, W), KOHYA,
     [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"], ""),
    ("diffusion_model.double_blocks.0.img_mod.linear", (6 * W, W), COMFY, ["transformer_blocks.0.norm1.linear"], "HunyuanVideo"),
    ("lora_unet_joint_blocks_37_x_block_attn_qkv", (3 * W, W), KOHYA,
     [f"transformer_blocks.37.attn.to_{x}" for x in "qkv"], "Stable Diffusion 3"),
    ("diffusion_model.blocks.39.cross_attn.k_img", (W, W), COMFY, ["blocks.39.attn2.add_k_proj"], "Wan"),
    ("blocks.0.ffn.0", (3 * W, W), DIFFSYNTH, ["blocks.0.ffn.net.0.proj"], "Wan"),
    ("lora_unet_transformer_blocks_59_img_mod_1", (6 * W, W), KOHYA, ["transformer_blocks.59.img_mod.1"], "Qwen-Image"),
    ("layers.0.attention.qkv", (3 * W, W), COMFY, [f"layers.0.attention.to_{x}" for x in "qkv"], "Z-Image"),
    ("lora_unet_layers_0_attention_out", (W, W), KOHYA, ["layers.0.attention.to_out.0"], "Z-Image"),
    ("diffusion_model.transformer_blocks.0.audio_attn1.to_q", (W, W), COMFY, ["transformer_blocks.0.audio_attn1.to_q"],
     "LTX-Video or LTX-2"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shape", "ends", "modules", "family"), CASES)
def test_a_name_leads_to_the_modules_of_its_family(name, shape, ends, modules, family, tmp_path):
    meant = file_of(tmp_path / "in.safetensors", {name: shape}, ends)[name]
    (tmp_path / "peft").mkdir()

    with foreign(tmp_path / "in.safetensors") as found:
        found.write(tmp_path / "peft")
        assert found.reading.parts == ("transformer",)
        assert family_of_images(found.reading) == family

    written = meant_by(tmp_path / "peft")
    assert set(written) == set(modules)
    assert np.abs(np.concatenate([written[module] for module in modules]) - meant).max() < 1e-12


@pytest.mark.parametrize(("front", "names", "family"), [
    ("", {"blocks.0.self_attn.q": "blocks.0.attn1.to_q", "blocks.0.ffn.0": "blocks.0.ffn.net.0.proj", "head.head": "proj_out"},
     "Wan"),
    ("", {name: name for name in ("layers.0.attention.to_q", "layers.0.feed_forward.w1", "noise_refiner.0.attention.to_out.0")},
     "Z-Image"),
    ("transformer.", {"double_blocks.0.img_attn_proj": "transformer_blocks.0.attn.to_out.0",
     "txt_in.individual_token_refiner.blocks.0.mlp.fc1": "context_embedder.token_refiner.refiner_blocks.0.ff.net.0.proj"},
     "HunyuanVideo"),
    ("transformer.", {name: name for name in ("transformer_blocks.0.attn.to_q", "img_in", "transformer_blocks.0.img_mod.1")},
     "Qwen-Image"),
    ("transformer.", {name: name for name in ("blocks.0.attn1.to_q", "blocks.0.ffn.net.0.proj")}, "Wan"),
    ("transformer.", {name: name for name in ("layers.0.attention.to_q", "layers.0.feed_forward.w1")}, "Z-Image"),
])  # fmt: skip
@pytest.mark.parametrize("ends", [COMFY, DIFFSYNTH])
def test_names_without_a_mark_or_behind_that_of_diffusers_are_read(front, names, family, ends, tmp_path):
    meant = file_of(tmp_path / "in.safetensors", {front + name: (W, W) for name in names}, ends)
    (tmp_path / "peft").mkdir()

    with foreign(tmp_path / "in.safetensors") as found:
        found.write(tmp_path / "peft")
        assert family_of_images(found.reading) == family

    written = meant_by(tmp_path / "peft")
    assert set(written) == set(names.values())
    assert all(np.abs(written[ours] - meant[front + theirs]).max() < 1e-12 for theirs, ours in names.items())


def test_names_of_families_that_differ_are_refused_with_both(tmp_path):
    file_of(tmp_path / "in.safetensors", {"diffusion_model.img_in": (W, W)}, COMFY)

    with pytest.raises(MalformedTensorFile, match=r"those of FLUX.1, FLUX.2.*different modules") as refused:
        read_families(tmp_path / "in.safetensors")

    assert (refused.value.code, "--base" in refused.value.hint) == ("E_NAME", True)


def test_the_base_tells_families_of_equal_names(tmp_path):
    file_of(tmp_path / "in.safetensors", {"diffusion_model.time_in.in_layer": (W, W)}, COMFY)

    with foreign(tmp_path / "in.safetensors", {"time_guidance_embed.timestep_embedder.linear_1": (W, W)}) as found:
        assert [module.name for module in found.reading.modules] == ["time_guidance_embed.timestep_embedder.linear_1"]


def test_what_no_family_has_is_refused_with_the_nearest_or_all(tmp_path):
    names = {"diffusion_model.blocks.0.self_attn.q": (W, W), "diffusion_model.blocks.0.self_attn.gate": (W, W)}
    file_of(tmp_path / "near.safetensors", names, COMFY)
    file_of(tmp_path / "far.safetensors", {"diffusion_model.ladders.0.rung": (W, W)}, COMFY)

    with pytest.raises(MalformedTensorFile, match=r"1 of 2 .* lead nowhere in Wan: `blocks.0.self_attn.gate`"):
        read_families(tmp_path / "near.safetensors")
    with pytest.raises(MalformedTensorFile, match=r"lead nowhere in any of Chroma, FLUX.1, .*: `ladders.0.rung`"):
        read_families(tmp_path / "far.safetensors")


@pytest.mark.parametrize(("says", "family"), [("flux-1-dev/lora", "FLUX.1"), ("hunyuan-video/lora", "HunyuanVideo")])
def test_what_the_header_says_chooses_among_families_that_fit(says, family, tmp_path):
    file_of(tmp_path / "in.safetensors", {"lora_unet_double_blocks_0_img_attn_proj": (W, W)}, KOHYA)

    with foreign(tmp_path / "in.safetensors") as found:
        assert family_of_images(found.reading, says) == family
