"""The names of an adapter's modules in a model and in its files: what fits one, fits the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from adapterhub.core.errors import BaseMismatch
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.formats.naming.experts import ExpertPart
from adapterhub.formats.naming.files import find_in_files
from adapterhub.formats.naming.finding import find_names
from adapterhub.inference.loader import attach
from adapterhub.inference.loader.base import BaseModel
from adapterhub.inference.loader.file_names import FileTensor, FileTensors, named
from adapterhub.inference.loader.identity import compare_base, sample_base
from adapterhub.inference.loader.reading import names_for
from adapterhub.library.library import Library
from adapterhub.trust.verify import verify_folder
from tests.dialects.classes import CLASSES, SAMPLE
from tests.dialects.proof import prove
from tests.dialects.tiny import build

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT and transformers warn of much that is meant here


# ---------------------------------------------------------------- every class
@pytest.mark.parametrize("name", SAMPLE)
def test_verify_attach_and_the_bank_agree_under_every_name(name: str, tmp_path: Path) -> None:
    rows = prove(name, tmp_path)

    assert [str(row) for row in rows if not row.is_right] == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name in CLASSES if name not in SAMPLE])
def test_all_classes_agree_under_every_name(name: str, tmp_path: Path) -> None:
    assert [str(row) for row in prove(name, tmp_path) if not row.is_right] == []


# ---------------------------------------------------------------- tensors of files
@pytest.mark.parametrize(
    "name",
    ["MixtralForCausalLM", "Qwen3MoeForCausalLM", "Qwen3VLMoeForConditionalGeneration", "Dinov2ForImageClassification",
     "Qwen2_5_VLForConditionalGeneration", "GteForMaskedLM", "MiniMaxM3SparseForConditionalGeneration"],
)  # fmt: skip
def test_every_tensor_of_the_files_is_found_in_memory(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path)
    stored = {n: t for path in tmp_path.glob("*.safetensors") for n, t in load_file(path).items()}
    own = dict(model.state_dict())

    found = FileTensors(BaseModel(model)).places(stored)

    assert found.keys() == stored.keys()
    for key, place in found.items():
        made = [FileTensor((own[place],))] if isinstance(place, str) else place
        assert any(same(tensor, stored[key]) for tensor in made), key


def same(tensor: FileTensor, stored: Tensor) -> bool:
    if tensor.shape != tuple(stored.shape):
        return False
    return torch.equal(tensor.take(list(range(stored.numel()))), stored.flatten())


def test_pieces_beside_each_other_are_read_as_one_tensor() -> None:
    whole = torch.arange(60.0).reshape(3, 5, 4)
    tensor = FileTensor((whole[:, :2], whole[:, 2:3], whole[:, 3:]), 1)

    assert tensor.shape == (3, 5, 4)
    assert torch.equal(tensor.take([59, 0, 7, 21, 40]), whole.flatten()[[59, 0, 7, 21, 40]])


def test_another_expert_in_memory_is_another_base(tmp_path: Path, library: Library) -> None:
    model = build("Qwen3MoeForCausalLM")
    model.save_pretrained(tmp_path / "base")
    base = library.bases.add(tmp_path / "base", "b")
    assert compare_base(base.fingerprint, sample_base(BaseModel(model))).verdict is BaseVerdict.SAME_WEIGHTS

    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.experts.down_proj")[2] += 0.01
    found = compare_base(base.fingerprint, sample_base(BaseModel(model)))

    assert found.verdict is BaseVerdict.SAME_SHAPES
    assert "`model.layers.1.mlp.experts.2.down_proj.weight`" in found.differences[0]


def test_a_text_model_is_the_base_that_it_was_loaded_from(tmp_path: Path, library: Library) -> None:
    build("Qwen3_5ForConditionalGeneration").save_pretrained(tmp_path / "base")
    base = library.bases.add(tmp_path / "base", "b")
    text = AutoModelForCausalLM.from_pretrained(tmp_path / "base")

    assert compare_base(base.fingerprint, sample_base(BaseModel(text))).verdict is BaseVerdict.SAME_WEIGHTS

    short = type(text)(
        type(text.config).from_dict(text.config.to_dict() | {"num_hidden_layers": 1, "layer_types": ["full_attention"]})
    )
    found = compare_base(base.fingerprint, sample_base(BaseModel(short)))
    assert found.verdict is BaseVerdict.DIFFERENT
    assert "1 layers are in its base only" in found.differences[0]


# ---------------------------------------------------------------- single experts
@pytest.mark.parametrize("name", ["MixtralForCausalLM", "Qwen3MoeForCausalLM", "JambaForCausalLM"])
def test_a_module_of_one_expert_is_a_part_of_the_stacked_parameter(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path)
    stored = {n: t for path in tmp_path.glob("*.safetensors") for n, t in load_file(path).items()}
    experts = {n.removesuffix(".weight"): t for n, t in stored.items() if ".experts." in n}

    found = names_for(experts, BaseModel(model)).parts

    assert found.keys() == experts.keys()
    for module, part in found.items():
        whole = model.get_parameter(part.parameter)[part.expert]
        assert torch.equal(whole.chunk(part.parts)[part.part], experts[module])
        assert not part.is_transposed
        assert not part.is_interleaved


def test_the_layout_of_experts_is_that_of_the_module() -> None:
    base = named(BaseModel(build("GptOssForCausalLM")))

    assert base.experts("model.layers.0.mlp.experts.gate_up_proj") == (True, True)
    assert base.experts("model.layers.0.mlp.router.weight") == (False, False)


def test_files_that_hold_experts_stacked_have_the_same_parts() -> None:
    tensors = {
        "model.layers.0.mlp.experts.gate_up_proj": (4, 96, 32),
        "model.layers.0.mlp.experts.down_proj": (4, 32, 48),
    }
    up, down = (f"model.layers.0.mlp.experts.3.{name}_proj" for name in ("up", "down"))

    names = find_in_files({up: (48, 32), down: (32, 48)}, tensors, "qwen3_moe")

    assert names.is_complete
    assert names.parts[up] == ExpertPart("model.layers.0.mlp.experts.gate_up_proj", 3, 1, 2, False, False)
    assert names.parts[down] == ExpertPart("model.layers.0.mlp.experts.down_proj", 3, 0, 1, False, False)
    assert names.is_cut_otherwise(up)


# ---------------------------------------------------------------- names that fit twice
class Towers(nn.Module):
    """Two parts with layers of the same names."""

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__()
        for name, width in widths.items():
            layers = nn.ModuleList(nn.ModuleDict({"q_proj": nn.Linear(width, width, bias=False)}) for _ in range(2))
            self.add_module(name, nn.ModuleDict({"layers": layers}))


def adapter(folder: Path, width: int) -> Path:
    folder.mkdir()
    tensors = {}
    for layer in range(2):
        front = f"base_model.model.layers.{layer}.q_proj.lora_"
        tensors |= {f"{front}A.weight": torch.ones(2, width), f"{front}B.weight": torch.ones(width, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = '{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}'
    (folder / "adapter_config.json").write_text(config)
    return folder


def test_names_that_fit_two_parts_are_refused_with_both(tmp_path: Path, library: Library) -> None:
    model, made = Towers({"left": 8, "right": 8}), adapter(tmp_path / "a", 8)
    (tmp_path / "base").mkdir()
    save_file(model.state_dict(), tmp_path / "base" / "model.safetensors")
    base = library.bases.add(tmp_path / "base", "b")
    both = r"can be read in 2 ways: .*`left\.layers\.0\.q_proj`; or .*`right\.layers\.0\.q_proj`"

    report = verify_folder(made, base_tensors=base.tensors)

    [found] = [f for f in report.errors if f.code == "E_BASE_MISMATCH"]
    with pytest.raises(BaseMismatch, match=both) as refusal:
        attach(model, made, library=library)
    assert found.message in str(refusal.value)


def test_shapes_tell_two_parts_apart(tmp_path: Path, library: Library) -> None:
    model, made = Towers({"left": 8, "right": 6}), adapter(tmp_path / "a", 6)
    tensors = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    modules = {f"layers.{layer}.q_proj": (6, 6) for layer in range(2)}

    with attach(model, made, library=library) as attached:
        wrapped = {name for name, _ in attached.model.named_modules() if name.endswith("lora_A")}

    assert {name.partition(".right.")[2] for name in wrapped} == {f"layers.{n}.q_proj.lora_A" for n in range(2)}
    assert find_in_files(modules, tensors).here("layers.1.q_proj") == "right.layers.1.q_proj"
    assert find_names(modules, named(BaseModel(model))).here("layers.1.q_proj") == "right.layers.1.q_proj"


# ---------------------------------------------------------------- files and memory
FRONTS = ("", "model.", "vision_model.", "vision_tower.vision_model.", "vision_tower.", "model.vision_tower.", "visual.",
          "model.visual.", "language_model.", "language_model.model.", "model.language_model.", "base.model.", "x.",
          "transformer.", "bert.", "model.language_model.model.", "text_model.", "roberta.encoder.")  # fmt: skip


@pytest.mark.parametrize(
    "name", ["LlavaForConditionalGeneration", "Qwen2VLForConditionalGeneration", "ViTForImageClassification"]
)
def test_files_and_memory_take_and_refuse_the_same_names(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path)
    stored = {n: tuple(t.shape) for path in tmp_path.glob("*.safetensors") for n, t in load_file(path).items()}
    memory, own = named(BaseModel(model)), {n: tuple(p.shape) for n, p in model.named_parameters()}
    both = {layers(n): shape for n, shape in (own | stored).items() if n.endswith("0.weight") or "layers.1." in n}
    ends = dict([(end, shape) for end, shape in both.items() if end and len(shape) == 2][:3])
    alike = 0
    for front in FRONTS:
        for end, shape in ends.items():
            wanted = {f"{front}{end.removesuffix('.weight')}": shape}

            here, there = find_names(wanted, memory), find_in_files(wanted, stored, model.config.model_type)

            assert (here.is_complete, bool(here.readings)) == (there.is_complete, bool(there.readings)), wanted
            alike += here.is_complete

    assert alike


def layers(name: str) -> str:
    """The name from what holds the layers on: `layers.0.self_attn.q_proj.weight`."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdecimal()), 0)
    return ".".join(parts[at - 1 :]) if at else ""
