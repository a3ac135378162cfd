"""Files of other programs come back byte for byte, and each program's file means what the adapter means."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapterhub.core.errors import UnsupportedAdapter
from adapterhub.core.specs import parse_name
from adapterhub.formats.foreign.conversion import foreign
from adapterhub.formats.foreign.tables import SD1, SDXL
from adapterhub.inference.export import export
from adapterhub.weights.lowrank.factors import AdapterFactors
from tests.formats.foreign.test_products import CASES
from tests.formats.foreign.test_products import write as write_products
from tests.support.adapter_folders import write_folder
from tests.support.command_line import Adapt
from tests.support.foreign_files import flux, kohya, meant_by, mlx, pair


@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    return Adapt(tmp_path)


def again(adapt: Adapt, given: Path, form: str) -> Path:
    """The file that is exported after `given` was added."""
    adapt.ok("add", given, "--name", "one")
    out = adapt.folder / "out"
    adapt.ok("export", "one", "--format", form, "-o", out)
    return out / "adapters.safetensors" if out.is_dir() else out


def assert_same_tensors(written: Path, given: dict[str, np.ndarray]) -> None:
    found = load_file(written)
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert found[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("traits", [
    {"unet": SD1, "every": 7},
    {"unet": SDXL, "names": "ldm", "every": 23, "text": "lora_te1", "dtype": "f2"},
    {"unet": SDXL, "names": "diffusers", "every": 31, "text": ""},
    {"unet": SD1, "every": 11, "alphas": False, "text": ""},
], ids=["sd1", "sdxl-sgm", "sdxl-diffusers", "no-alpha"])  # fmt: skip
def test_a_file_of_kohya_comes_back_byte_for_byte(traits, adapt):
    tensors, _ = kohya(adapt.folder / "in.safetensors", **traits)

    assert_same_tensors(again(adapt, adapt.folder / "in.safetensors", "kohya"), tensors)


@pytest.mark.parametrize(("prefix", "form"), [("lora_unet_", "kohya"), ("diffusion_model.", "comfyui")])
def test_what_flux_fuses_is_joined_again(prefix, form, adapt):
    tensors, _ = flux(adapt.folder / "in.safetensors", prefix=prefix)

    assert_same_tensors(again(adapt, adapt.folder / "in.safetensors", form), tensors)


@pytest.mark.parametrize("dora", [False, True])
def test_a_folder_of_mlx_comes_back_byte_for_byte(dora, adapt):
    tensors, _ = mlx(adapt.folder / "in", dora=dora)

    written = again(adapt, adapt.folder / "in", "mlx")

    assert_same_tensors(written, tensors)
    stated = json.loads((written.parent / "adapter_config.json").read_text())["lora_parameters"]
    assert (stated["rank"], stated["scale"], stated["keys"]) == (2, 10.0, ["mlp.down_proj", "self_attn.q_proj"])


@pytest.mark.parametrize("ends", [
    ("lora_A.weight", "lora_B.weight"),
    ("lora.down.weight", "lora.up.weight"),
    ("processor.to_q_lora.down.weight", "processor.to_q_lora.up.weight"),
])  # fmt: skip
@pytest.mark.parametrize("part", ["unet.", ""])
def test_a_file_of_diffusers_keeps_its_spelling(ends, part, adapt):
    name = f"{part}mid_block.attentions.0.transformer_blocks.0.attn1" + ("" if "processor" in ends[0] else ".to_q")
    tensors = {f"{name}.{e}": t for e, t in zip(ends, pair(np.random.default_rng(0), (8, 8), 2), strict=True)}
    save_file(tensors, adapt.folder / "in.safetensors")

    assert_same_tensors(again(adapt, adapt.folder / "in.safetensors", "diffusers"), tensors)


@pytest.mark.parametrize("form", ["comfyui", "diffusers", "kohya"])
def test_each_program_gets_the_same_update(form, adapt):
    _, meant = kohya(adapt.folder / "in.safetensors", unet=SDXL, names="ldm", every=40, text="lora_te1")

    out = again(adapt, adapt.folder / "in.safetensors", form)

    (adapt.folder / "peft").mkdir()
    with foreign(out) as found:
        found.write(adapt.folder / "peft")
    back = meant_by(adapt.folder / "peft")
    assert back.keys() == meant.keys()
    assert max(np.abs(back[name] - meant[name]).max() for name in meant) < 1e-12


@pytest.mark.parametrize("form", ["comfyui", "kohya"])
def test_rslora_and_patterns_become_an_alpha_beside_each_pair(form, tmp_path):
    shapes = {"mid_block.attentions.0.proj_in": (8, 8), "mid_block.attentions.0.proj_out": (8, 8)}
    ranks = dict(zip(shapes, (2, 3), strict=True))
    write_folder(tmp_path / "in", shapes, ranks=ranks, use_rslora=True, alpha_pattern={"proj_out": 7})

    export(tmp_path / "in", tmp_path / "out", form=form)

    (tmp_path / "peft").mkdir()
    with foreign(tmp_path / "out") as found:
        found.write(tmp_path / "peft")
    before, after = meant_by_torch(tmp_path / "in"), meant_by(tmp_path / "peft")
    assert max(np.abs(before[name] - after[name]).max() / np.abs(before[name]).max() for name in before) < 1e-7


def meant_by_torch(folder: Path) -> dict[str, np.ndarray]:
    from tests.support.adapter_folders import updates_in

    return {name: delta.numpy() for name, delta in updates_in(folder).items()}


def test_different_factors_of_what_flux_fuses_are_blocks_and_split_again(tmp_path):
    shapes = {f"transformer_blocks.0.attn.{name}": (8, 8) for name in ("to_q", "to_k", "to_v")}
    shapes["single_transformer_blocks.0.proj_out"] = (8, 40)  # the family that has these
    write_folder(tmp_path / "in", shapes, ranks=2)

    exported = export(tmp_path / "in", tmp_path / "out", form="kohya")

    assert exported.notes[-1].startswith("joined 1 modules whose factors differ")
    tensors = load_file(tmp_path / "out")
    assert tensors["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"].shape == (6, 8)
    (tmp_path / "peft").mkdir()
    with foreign(tmp_path / "out") as found:
        found.write(tmp_path / "peft")
    before, after = meant_by_torch(tmp_path / "in"), meant_by(tmp_path / "peft")
    assert max(np.abs(before[name] - after[name]).max() for name in before) < 1e-12


ATTENTION = {f"transformer_blocks.0.attn.{name}": (8, 8) for name in ("to_q", "to_k", "to_v")}


@pytest.mark.parametrize("form", ["comfyui", "kohya"])
def test_an_adapter_of_several_families_gets_the_names_of_none(form, tmp_path):
    write_folder(tmp_path / "in", ATTENTION)

    with pytest.raises(UnsupportedAdapter, match=r"FLUX.1, FLUX.2, Chroma, HunyuanVideo, .*names differ") as refused:
        export(tmp_path / "in", tmp_path / "out", form=form)

    assert "--base" in refused.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("more", "name"), [
    ({"transformer_blocks.0.img_mod.1": (48, 8)}, "transformer_blocks.0.attn.to_q"),
    ({"transformer_blocks.0.ff.linear_in": (48, 8)}, "double_blocks.0.img_attn.qkv"),
    ({"transformer_blocks.0.attn2.to_q": (8, 8)}, "joint_blocks.0.x_block.attn.qkv"),
])  # fmt: skip
def test_one_module_that_a_family_alone_has_tells_it(more, name, tmp_path):
    write_folder(tmp_path / "in", ATTENTION | more)

    export(tmp_path / "in", tmp_path / "comfyui", form="comfyui")
    export(tmp_path / "in", tmp_path / "kohya", form="kohya")

    assert f"diffusion_model.{name}.lora_A.weight" in load_file(tmp_path / "comfyui")
    assert f"lora_unet_{name.replace('.', '_')}.lora_down.weight" in load_file(tmp_path / "kohya")


@pytest.mark.parametrize("form", ["comfyui", "kohya"])
def test_a_model_without_a_table_is_refused_by_its_names(form, tmp_path):
    write_folder(tmp_path / "in", {"transformer_blocks.0.attn9.to_q": (8, 8)})

    with pytest.raises(
        UnsupportedAdapter, match=r"`transformer_blocks.0.attn9.to_q` has no name in any family"
    ) as refused:
        export(tmp_path / "in", tmp_path / "out", form=form)

    assert "--format diffusers" in refused.value.hint


@pytest.mark.parametrize(("depths", "name"), [
    ((19, 38), "double_blocks.18.img_attn.qkv"),
    ((20, 40), "double_blocks.19.img_attn_qkv"),
])  # fmt: skip
def test_the_number_of_blocks_tells_families_of_equal_names(depths, name, tmp_path):
    kinds = (("transformer_blocks", depths[0]), ("single_transformer_blocks", depths[1]))
    modules = [f"{kind}.{n}.attn.to_{x}" for kind, count in kinds for n in range(count) for x in "qkv"]
    write_folder(tmp_path / "in", dict.fromkeys(modules, (8, 8)), ranks=1)

    export(tmp_path / "in", tmp_path / "out", form="comfyui")

    assert any(key.startswith(f"diffusion_model.{name}.") for key in load_file(tmp_path / "out"))
    (tmp_path / "peft").mkdir()
    with foreign(tmp_path / "out") as found:
        found.write(tmp_path / "peft")
    before, after = meant_by_torch(tmp_path / "in"), meant_by(tmp_path / "peft")
    assert max(np.abs(before.pop(module) - after.pop(module)).max() for module in list(before)) < 1e-12
    assert not any(update.any() for update in after.values())  # `linear1` has the feed-forward, too


@pytest.mark.parametrize("form", ["comfyui", "kohya"])
def test_two_denoisers_with_the_same_names_are_refused(form, tmp_path):
    write_folder(tmp_path / "in", {f"{part}.blocks.0.attn1.to_q": (8, 8) for part in ("transformer", "transformer_2")})

    with pytest.raises(UnsupportedAdapter, match="`transformer` and `transformer_2`"):
        export(tmp_path / "in", tmp_path / "out", form=form)


@pytest.mark.parametrize("case", CASES)
def test_loha_and_lokr_come_back_byte_for_byte(case, adapt):
    write_products(adapt.folder / "in.safetensors", *CASES[case])

    assert_same_tensors(
        again(adapt, adapt.folder / "in.safetensors", "kohya"), load_file(adapt.folder / "in.safetensors")
    )
    adapt.ok("export", "one", "--format", "comfyui", "-o", "comfy.safetensors")
    given = load_file(adapt.folder / "comfy.safetensors")
    assert {name.partition(".")[0] for name in given} == {"diffusion_model"}
    assert len(given) == len(load_file(adapt.folder / "in.safetensors"))
    adapt.ok("add", "./comfy.safetensors", "--name", "two")
    adapt.ok("export", "two", "--format", "comfyui", "-o", "comfy-again.safetensors")
    assert_same_tensors(adapt.folder / "comfy-again.safetensors", given)
    one, two = (adapt.library.builds_named(parse_name(name))[0].folder for name in ("one", "two"))
    assert_same_tensors(one / "adapter_model.safetensors", load_file(two / "adapter_model.safetensors"))
    with AdapterFactors(one) as first, AdapterFactors(two) as second:
        assert {n: m.scale for n, m in first.modules.items()} == {n: m.scale for n, m in second.modules.items()}


@pytest.mark.parametrize("form", ["diffusers", "mlx"])
def test_a_program_without_loha_and_lokr_is_refused_by_name(form, adapt):
    write_products(adapt.folder / "in.safetensors", *CASES["LoKr"])
    adapt.ok("add", "./in.safetensors", "--name", "one")

    said = adapt.fails(11, "export", "one", "--format", form, "-o", "out")

    assert f"has no form in {'MLX' if form == 'mlx' else form}" in said
    assert "LoKr" in said
    assert "--format kohya" in said
    assert not (adapt.folder / "out").exists()


def test_a_lokr_of_flux_keeps_its_names_and_peft_s_own_gets_lycoris(tmp_path, adapt):
    shapes, rng = {"w1": (4, 4), "w2_a": (2, 2), "w2_b": (2, 2)}, np.random.default_rng(0)
    keys = ["lycoris_transformer_blocks_0_attn_to_q", "lycoris_single_transformer_blocks_0_proj_out"]
    tensors = {
        f"{k}.lokr_{name}": rng.standard_normal(shape).astype("f4") for k in keys for name, shape in shapes.items()
    }
    save_file(tensors | {f"{key}.alpha": np.array(1.5, "f2") for key in keys}, adapt.folder / "in.safetensors")

    written = again(adapt, adapt.folder / "in.safetensors", "kohya")

    assert_same_tensors(written, load_file(adapt.folder / "in.safetensors"))
    [build] = adapt.library.builds_named(parse_name("one"))
    export(build.folder, tmp_path / "bare", form="kohya")
    assert load_file(tmp_path / "bare").keys() == load_file(adapt.folder / "in.safetensors").keys()
    said = adapt.fails(11, "export", "one", "--format", "comfyui", "-o", "comfy")
    assert "transformer_blocks.0.proj_out" in said


def test_a_whole_lokr_of_another_scale_has_no_form(tmp_path):
    write_products(tmp_path / "in.safetensors", *CASES["LoKr, both sides whole"])
    (tmp_path / "peft").mkdir()
    with foreign(tmp_path / "in.safetensors") as found:
        found.write(tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config | {"alpha": 7, "alpha_pattern": {}}))

    with pytest.raises(UnsupportedAdapter, match="scale"):
        export(tmp_path / "peft", tmp_path / "out", form="kohya")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["comfyui", "diffusers", "kohya"])
def test_a_language_model_has_no_form_in_image_programs(form, tmp_path):
    write_folder(tmp_path / "in", {"model.layers.0.self_attn.q_proj": (8, 8)})

    with pytest.raises(UnsupportedAdapter, match="no component of an image pipeline"):
        export(tmp_path / "in", tmp_path / "out", form=form)

    assert not (tmp_path / "out").exists()


def test_kohyas_header_has_the_hash_of_its_data(adapt):
    kohya(adapt.folder / "in.safetensors", every=50)

    again(adapt, adapt.folder / "in.safetensors", "kohya")

    with foreign(adapt.folder / "out") as found:
        annotations = found.write(made_folder(adapt.folder / "second"))
        assert found.hash_note(annotations["origin"]["data_sha256"]) == ""
        assert found.header.stated_hash


def made_folder(path: Path) -> Path:
    path.mkdir()
    return path
