"""Foreign files become PEFT folders that mean what the formula says, module by module, in float64."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapterhub.formats.foreign.conversion import foreign
from adapterhub.formats.foreign.tables import SD1, SDXL
from adapterhub.trust.verify import verify_folder
from tests.support.foreign_files import flux, kohya, meant_by, mlx, pair, update

CLOSE = 1e-12


def converted(path: Path, folder: Path, base: dict[str, tuple[int, ...]] | None = None) -> dict[str, np.ndarray]:
    """What the PEFT folder of a foreign file means; nothing but unknowns and warnings may be found in it."""
    folder.mkdir()
    with foreign(path, base) as found:
        assert found is not None
        found.write(folder)
    assert [f for f in verify_folder(folder).findings if f.severity == "error"] == []
    return meant_by(folder)


def assert_same(found: dict[str, np.ndarray], meant: dict[str, np.ndarray]) -> None:
    assert found.keys() == meant.keys()
    assert max(np.abs(found[name] - meant[name]).max() for name in meant) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("unet", [SD1, SDXL], ids=lambda unet: unet.key)
@pytest.mark.parametrize("names", ["diffusers", "ldm"])
def test_every_module_of_kohyas_files_gets_its_place_and_scale(unet, names, tmp_path):
    _, meant = kohya(tmp_path / "x.safetensors", unet=unet, names=names, text="lora_te1" if unet is SDXL else "")

    assert_same(converted(tmp_path / "x.safetensors", tmp_path / "peft"), meant)


def test_without_alpha_the_scale_is_one(tmp_path):
    _, meant = kohya(tmp_path / "x.safetensors", every=9, alphas=False, dtype="f2")

    assert_same(converted(tmp_path / "x.safetensors", tmp_path / "peft"), meant)


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model.", ""])
def test_fused_modules_of_flux_are_cut_by_rows(prefix, tmp_path, monkeypatch):
    monkeypatch.setattr("adapterhub.formats.foreign.conversion._BLOCK_BYTES", 13)  # pieces that end inside rows
    _, meant = flux(tmp_path / "x.safetensors", prefix=prefix)

    assert_same(converted(tmp_path / "x.safetensors", tmp_path / "peft"), meant)


@pytest.mark.parametrize("dora", [False, True])
def test_mlx_is_transposed_and_its_scale_is_taken_as_it_is(dora, tmp_path):
    tensors, meant = mlx(tmp_path / "mlx", dora=dora)

    assert_same(converted(tmp_path / "mlx" / "adapters.safetensors", tmp_path / "peft"), meant)

    written = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert sum(name.endswith("magnitude_vector") for name in written) == sum(n.endswith(".m") for n in tensors)


def test_a_convolution_in_three_parts_is_folded(tmp_path):
    rng = np.random.default_rng(1)
    down, up, mid = (rng.standard_normal(s).astype("f4") for s in ((2, 8, 1, 1), (8, 2, 1, 1), (2, 2, 3, 3)))
    key = "lora_unet_down_blocks_0_resnets_0_conv1"
    tensors = {f"{key}.lora_{n}.weight": t for n, t in (("down", down), ("up", up), ("mid", mid))}
    save_file(tensors | {f"{key}.alpha": np.array(1.0, "f4")}, tmp_path / "x.safetensors")
    exact = 0.5 * np.einsum("op,pqhw,qi->oihw", up[:, :, 0, 0], mid, down[:, :, 0, 0], dtype="f8").reshape(8, -1)

    found = converted(tmp_path / "x.safetensors", tmp_path / "peft")

    assert np.abs(found["down_blocks.0.resnets.0.conv1"] - exact).max() < 1e-5
    with foreign(tmp_path / "x.safetensors") as file:
        assert not file.reading.is_exact


@pytest.mark.parametrize("ends", [
    ("lora_A.weight", "lora_B.weight"),
    ("lora.down.weight", "lora.up.weight"),
    ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
])  # fmt: skip
@pytest.mark.parametrize("part", ["unet.", ""])
def test_spellings_of_diffusers_mean_the_same(ends, part, tmp_path):
    rng, module = np.random.default_rng(2), "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = pair(rng, (8, 8), 3)
    save_file({f"{part}{module}.{e}": t for e, t in zip(ends, (down, up), strict=True)}, tmp_path / "x.safetensors")

    assert_same(converted(tmp_path / "x.safetensors", tmp_path / "peft"), {module: update(down, up, 1.0)})


def test_old_processors_of_diffusers_are_their_projections(tmp_path):
    rng, block = np.random.default_rng(3), "mid_block.attentions.0.transformer_blocks.0.attn2"
    meant, tensors = {}, {}
    for old, new in (("to_q", "to_q"), ("to_out", "to_out.0")):
        down, up = pair(rng, (8, 8), 2)
        tensors |= {f"{block}.processor.{old}_lora.down.weight": down, f"{block}.processor.{old}_lora.up.weight": up}
        meant[f"{block}.{new}"] = update(down, up, 1.0)
    save_file(tensors, tmp_path / "x.safetensors")

    assert_same(converted(tmp_path / "x.safetensors", tmp_path / "peft"), meant)


def test_the_header_of_diffusers_states_rank_and_alpha_of_each_module(tmp_path):
    rng, block = np.random.default_rng(4), "mid_block.attentions.0.transformer_blocks.0"
    first, second = pair(rng, (8, 8), 2), pair(rng, (8, 8), 3)
    names = (f"{block}.attn1.to_q", f"{block}.attn2.to_q")
    tensors = {
        f"unet.{name}.lora_{half}.weight": tensor
        for name, factors in zip(names, (first, second), strict=True)
        for half, tensor in zip("AB", factors, strict=True)
    }
    stated = {
        "r": 2,
        "lora_alpha": 5,
        "rank_pattern": {names[1]: 3},
        "alpha_pattern": {names[1]: 6},
        "use_rslora": True,
    }
    header = {f"unet.{key}": value for key, value in {**stated, "target_modules": ["to_q"]}.items()}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": json.dumps(header)})

    found = converted(tmp_path / "x.safetensors", tmp_path / "peft")

    assert_same(found, {names[0]: update(*first, 5 / 2**0.5), names[1]: update(*second, 6 / 3**0.5)})


def test_names_of_an_unknown_family_are_looked_up_in_the_base(tmp_path):
    rng = np.random.default_rng(5)
    down, up = pair(rng, (8, 6), 2)
    key = "lora_unet_blocks_0_cross_attn_to_q"
    save_file({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}, tmp_path / "x.safetensors")
    base = {"blocks.0.cross_attn.to_q": (8, 6), "blocks.0.cross_attn.to_k": (8, 6)}

    assert_same(
        converted(tmp_path / "x.safetensors", tmp_path / "peft", base),
        {"blocks.0.cross_attn.to_q": update(down, up, 1.0)},
    )


def test_a_magnitude_of_dora_is_one_number_for_each_output(tmp_path):
    rng, key = np.random.default_rng(6), "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    down, up = pair(rng, (8, 8), 2)
    magnitude = rng.random((8, 1)).astype("f4")
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.dora_scale": magnitude}
    save_file(tensors, tmp_path / "x.safetensors")

    converted(tmp_path / "x.safetensors", tmp_path / "peft")

    written = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    name = next(name for name in written if name.endswith("lora_magnitude_vector"))
    assert np.array_equal(written[name], magnitude[:, 0])
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["use_dora"] is True


def test_an_xlabs_file_is_cut_in_three(tmp_path):
    rng = np.random.default_rng(7)
    down, up = pair(rng, (24, 8), 2)
    key = "double_blocks.3.processor.qkv_lora1"
    save_file({f"{key}.down.weight": down, f"{key}.up.weight": up}, tmp_path / "x.safetensors")
    whole = update(down, up, 1.0)

    found = converted(tmp_path / "x.safetensors", tmp_path / "peft")

    parts = {"to_q": 0, "to_k": 8, "to_v": 16}
    assert_same(found, {f"transformer_blocks.3.attn.{n}": whole[at : at + 8] for n, at in parts.items()})
