"""Pipelines of several models as bases: from a diffusers folder, and from one file in the names of their authors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.core.errors import BaseNotFound, Conflict, Malformed, UsageProblem
from adapterhub.formats.base.comparison import compare
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.formats.diffusion.components import ensure_no_code
from adapterhub.library.bases.records import BaseRecord, Bases
from tests.support import pipelines

PARTS = {
    "sd15": ["unet", "text_encoder"],
    "sdxl": ["unet", "text_encoder", "text_encoder_2"],
    "flux": ["transformer", "text_encoder", "text_encoder_2"],
    "sd3": ["transformer", "text_encoder", "text_encoder_2", "text_encoder_3"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    place = tmp_path_factory.mktemp("pipelines")
    found = {kind: (make(), place / kind) for kind, make in pipelines.PIPELINES.items()}
    for pipeline, folder in found.values():
        pipeline.save_pretrained(folder)
    return found


@pytest.fixture
def bases(tmp_path: Path) -> Bases:
    return Bases(tmp_path / "library" / "bases", None)


@pytest.mark.parametrize("kind", PARTS)
def test_a_folder_of_diffusers_is_a_base_with_components(
    made: dict[str, tuple[Any, Path]], bases: Bases, kind: str
) -> None:
    _, folder = made[kind]

    bases.add(folder, "x")

    whole = bases.find("x")
    assert list(whole.components) == PARTS[kind]
    assert [r.alias for r in bases.list()] == ["x", *(f"x/{name}" for name in PARTS[kind])]
    for name in PARTS[kind]:
        part = bases.find(f"x/{name}")
        alone = bases.look(folder / name)
        assert compare(part.fingerprint, alone.fingerprint).verdict is BaseVerdict.SAME_WEIGHTS
        assert part.fingerprint.tensors == alone.fingerprint.tensors
        assert part.hints == alone.hints
        assert part.path == folder / name
        assert bases.look_again(part).fingerprint == part.fingerprint
    assert BaseRecord.parse(whole.to_bytes(), "x") == whole


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "flux"])
@pytest.mark.parametrize(
    ("dtype", "verdict"),
    [(torch.float32, BaseVerdict.SAME_WEIGHTS), (torch.float16, BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION)],
)
def test_one_file_has_the_components_of_the_folder(
    made: dict[str, tuple[Any, Path]], bases: Bases, tmp_path: Path, kind: str, dtype: torch.dtype, verdict: BaseVerdict
) -> None:
    pipeline, folder = made[kind]
    there = bases.look(folder)

    here = bases.look(pipelines.single_file(kind, pipeline, tmp_path / "x.safetensors", dtype))

    for name in here.components:
        assert compare(there.part(name).fingerprint, here.part(name).fingerprint).verdict is verdict, name
    assert list(here.components) == (["transformer"] if kind == "flux" else PARTS[kind])
    if kind != "flux":
        assert compare(there.fingerprint, here.fingerprint).verdict is verdict


def test_the_names_of_the_file_are_those_of_the_folder_row_for_row(
    made: dict[str, tuple[Any, Path]], bases: Bases, tmp_path: Path
) -> None:
    for kind in ("sd15", "sdxl", "flux"):
        pipeline, folder = made[kind]
        here = bases.look(pipelines.single_file(kind, pipeline, tmp_path / f"{kind}.safetensors"))
        there = {fact.name: fact for fact in bases.look(folder).tensors}
        facts = {fact.name: fact for fact in here.tensors if not fact.name.endswith("position_ids")}
        assert facts == {name: there[name] for name in facts}


def test_a_fine_tune_and_another_kind_are_told_apart(
    made: dict[str, tuple[Any, Path]], bases: Bases, tmp_path: Path
) -> None:
    _pipeline, folder = made["sdxl"]
    shutil.copytree(folder, tmp_path / "tuned")
    file = tmp_path / "tuned" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 0.5 for name, tensor in load_file(file).items()}, file)
    base, tuned, other = bases.look(folder), bases.look(tmp_path / "tuned"), bases.look(made["sd15"][1])

    def verdict(part: str, record: BaseRecord) -> BaseVerdict:
        return compare(base.part(part).fingerprint, record.part(part).fingerprint).verdict

    assert verdict("unet", tuned) is BaseVerdict.SAME_SHAPES
    assert verdict("text_encoder", tuned) is BaseVerdict.SAME_WEIGHTS
    assert verdict("unet", other) is BaseVerdict.DIFFERENT
    assert compare(base.fingerprint, tuned.fingerprint).verdict is BaseVerdict.SAME_SHAPES
    bases.add(folder, "x")
    with pytest.raises(Conflict, match="belongs to another base"):
        bases.add(tmp_path / "tuned", "x")
    with pytest.raises(UsageProblem, match="`x/unet` is a component of `x`"):
        bases.remove("x/unet")
    with pytest.raises(BaseNotFound, match="no component `transformer` in `x`"):
        bases.find("x/transformer")
    bases.remove("x")
    assert bases.list() == ()


def test_a_record_of_a_pipeline_goes_to_another_machine(
    made: dict[str, tuple[Any, Path]], bases: Bases, tmp_path: Path
) -> None:
    bases.add(made["sd15"][1], "x")
    exported = tmp_path / "x.json"
    exported.write_bytes(bases.find("x").exported().to_bytes())
    there = Bases(tmp_path / "other" / "bases", None)

    there.add_record(exported)

    assert there.find("x/unet").fingerprint == bases.find("x/unet").fingerprint
    lying = json.loads(exported.read_bytes())
    lying["components"]["text_encoder_2"] = {}
    exported.write_text(json.dumps(lying))
    with pytest.raises(Malformed, match="components: expected the first part of every tensor's name"):
        there.add_record(exported, "y")


def lost_component(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")


def lost_shard(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.ones(2)}, folder / "unet" / "a.safetensors")


def rewrite(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model_index.json").write_text(text) and None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lost_component, "incomplete: `model_index.json` names `text_encoder`, and there is no such folder"),
        (lost_shard, "incomplete: 1 of 2 files that .* not there: `b.safetensors`"),
        (rewrite("["), "model_index.json: not JSON"),
        (rewrite("[]"), "expected an object with the components"),
        (rewrite('{"unet": ["diffusers"]}'), r"`unet` is .*, expected \[library, class\]"),
        (
            rewrite('{"../unet": ["a", "b"], "vae": ["a", "b"]}'),
            "names no component, expected one of `unet`, `transformer`",
        ),
        (rewrite('{"unet": null, "text_encoder": [null, null]}'), "names no component"),
    ],
)
def test_damaged_pipelines_are_refused(
    made: dict[str, tuple[Any, Path]], bases: Bases, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "p"
    shutil.copytree(made["sd15"][1], folder)
    damage(folder)

    with pytest.raises(Malformed, match=message):
        bases.add(folder, "x")
    assert bases.list() == ()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "unet" / "m.py").write_text(""), "holds code, which is never run: `m.py`"),
        (rewrite('{"_class_name": "P", "unet": ["subprocess", "Popen"]}'), "names classes of subprocess"),
        (rewrite('{"_class_name": "P", "scheduler": [["a"], "B"]}'), "names classes of"),
        (rewrite('{"_class_name": ["pipeline", "P"]}'), "`_class_name` is"),
        (rewrite('{"_class_name": "a.b"}'), "`_class_name` is a.b"),
    ],
)
def test_a_pipeline_with_code_is_refused(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    (tmp_path / "unet").mkdir()
    rewrite('{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}')(tmp_path)
    ensure_no_code(tmp_path)
    damage(tmp_path)

    with pytest.raises(Malformed, match=message):
        ensure_no_code(tmp_path)


X = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": X}, "is not a tensor of a UNet or of Flux"),
        ({"model.diffusion_model.out.2.weight": X, "extra.weight": X}, "`extra.weight` belongs to no component"),
        ({"img_in.weight": X, "double_blocks.0.img_attn.qkv.weight": X}, "has 2 rows, expected 2, 2, 2"),
        ({"double_blocks.0.img_attn.proj.weight": X}, "has no `img_in.weight`"),
        ({"img_in.weight": X, "single_blocks.0.linear1.weight": X}, "has 2 rows, expected 2, 2, 2, -4"),
        ({"conditioner.embedders.1.model.text_projection": torch.ones(2)}, "expected a matrix"),
        ({"conditioner.embedders.1.model.visual.proj": X}, "is not a tensor of OpenCLIP's text encoder"),
        ({"img_in.weight": X, "model.diffusion_model.img_in.weight": X}, "in two spellings"),
        ({"model.diffusion_model.input_blocks.9999.1.proj_in.weight": X}, "is not a tensor of a UNet"),
    ],
)
def test_files_of_another_layout_are_refused_by_name(
    bases: Bases, tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    file = tmp_path / "x.safetensors"
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)

    with pytest.raises(Malformed, match=message):
        bases.add(file, "x")
