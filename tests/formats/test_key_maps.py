"""Adapters made under the module names of transformers 4 on models of transformers 5, and the other way round."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapterhub.core.errors import BaseMismatch, RefusedAdapter
from adapterhub.core.specs import parse_name
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.formats.naming.table import renames_for, renames_of
from adapterhub.inference.bank import AdapterBank
from adapterhub.inference.loader import attach, base_digest
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.trust.verify import verify_folder
from tests.support import renamed_families as families
from tests.support.renamed_families import FAMILIES, PIXELS, READ, SIZES, WRITTEN, captioner, names_in_files, vit
from tests.support.tiny_models import save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT and transformers warn of much that is meant here


def docs_renames() -> Any:
    """The script that writes the table."""
    spec = spec_from_file_location("renames", Path(__file__).parents[2] / "docs" / "renames.py")
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def logits(model: nn.Module, inputs: Mapping[str, Tensor] | None = None) -> Tensor:
    with torch.no_grad():
        out = model(**(inputs or {"pixel_values": PIXELS}))
    return out.logits if "logits" in out else out.last_hidden_state


def renamed(folder: Path, into: Path, modules: Mapping[str, str], **settings: object) -> Path:
    """A copy of an adapter whose modules have other names, its targets spelt out; `settings` go into its config."""
    into.mkdir()
    prefix = "base_model.model."
    tensors = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        module = max((m for m in modules if name.startswith(f"{prefix}{m}.")), key=len, default="")
        tensors[f"{prefix}{modules[module]}{name[len(prefix + module) :]}" if module else name] = tensor
    save_file(tensors, into / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    targets = {name.partition(".lora_")[0].partition(".ia3_l")[0].removeprefix(prefix) for name in tensors}
    config["target_modules"] = sorted(targets - {"classifier.weight", "classifier.bias"})
    (into / "adapter_config.json").write_text(json.dumps(config | settings))
    return into


def old_name(name: str) -> str:
    """The name in transformers 4 of a module of a ViT."""
    found = renames_for("vit").back([f"{name}.weight"], with_prefixes=False)[f"{name}.weight"]
    return found.removesuffix(".weight")


def as_before(folder: Path, into: Path, base: Callable[[], nn.Module] = vit, **settings: object) -> Path:
    """A copy of an adapter for a ViT under the names of transformers 4."""
    names = {name: old_name(name) for name, _ in base().named_modules() if name}
    return renamed(folder, into, {new: old for new, old in names.items() if new != old}, **settings)


# ---------------------------------------------------------------- the table
@pytest.mark.parametrize("kind", WRITTEN)
def test_names_that_transformers_writes_into_files_lead_to_those_in_memory(kind: str, tmp_path: Path) -> None:
    expected = names_in_files(WRITTEN[kind], tmp_path)
    renames = renames_for(kind, json.loads((tmp_path / "config.json").read_text()))

    found = renames.of(expected.values())

    assert list(expected) == [found[old].name for old in expected.values()]
    assert any(new != old for new, old in expected.items())
    # a name in memory is its own; where a rename would find something in it, the result is no name of the model
    again = {name: renamed.name for name, renamed in renames.of(expected).items()}
    assert all(new in (name, *({new} - expected.keys())) for name, new in again.items())


@pytest.mark.parametrize("kind", READ)
def test_names_in_memory_lead_back_to_those_that_transformers_reads_from_files(kind: str, tmp_path: Path) -> None:
    model = READ[kind]()
    memory = [name for name, _ in model.named_parameters()]
    names = renames_for(kind).back(memory, with_prefixes=True)
    model.config.save_pretrained(tmp_path)
    tensors = {names[name]: parameter.detach() for name, parameter in model.named_parameters()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)

    assert not any(report.values())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert memory == [each.name for each in renames_for(kind).of(names.values()).values()]
    assert kind == "mlcd_vision_model" or all(
        old.startswith(("vision_model.", "text_model.")) for old in names.values()
    )


def test_the_table_has_what_the_installed_transformers_publishes() -> None:
    assert docs_renames().lacking() == []


def test_only_the_part_of_a_type_that_has_renames_gets_other_names() -> None:
    renames = renames_of({"": "vision-encoder-decoder", "encoder": "vit", "decoder": "phi"})
    old = ["encoder.encoder.layer.0.intermediate.dense.weight", "decoder.encoder.layer.0.intermediate.dense.weight"]

    assert [each.name for each in renames.of(old).values()] == ["encoder.layers.0.mlp.fc1.weight", old[1]]


# ---------------------------------------------------------------- attach
@pytest.mark.parametrize("name", FAMILIES)
def test_adapter_of_before_gives_the_logits_of_the_same_adapter_in_peft(
    name: str, tmp_path: Path, library: Library
) -> None:
    family = FAMILIES[name]
    config = LoraConfig(r=4, lora_alpha=6, target_modules=list(family.targets))
    new = save_adapter(tmp_path / "new", family.make, config)
    tensors = names_in_files(family, tmp_path / "files")
    names = {here.rpartition(".")[0]: there.rpartition(".")[0] for here, there in tensors.items()}
    old = renamed(new, tmp_path / "old", names)
    expected = logits(PeftModel.from_pretrained(family.make(), new).eval(), family.inputs)
    model = family.make()
    before = base_digest(model)

    attached = attach(model, old, library=library)

    assert torch.allclose(expected, logits(attached.model, family.inputs), rtol=0, atol=1e-6)
    assert not torch.allclose(expected, logits(family.make(), family.inputs), atol=1e-3)
    assert before == attached.base_digest()
    assert "are those of transformers 4 and were mapped to those of transformers 5" in attached.explain()


def test_plain_peft_does_not_attach_an_adapter_of_before(tmp_path: Path) -> None:
    new = save_adapter(tmp_path / "new", vit, LoraConfig(target_modules=["q_proj"]))

    with pytest.raises(ValueError, match="not found in the base model"):
        PeftModel.from_pretrained(vit(), as_before(new, tmp_path / "old", target_modules=["query"]))


VARIANTS: dict[str, tuple[Any, dict[str, object]]] = {
    "rank and alpha by name": (
        lambda: LoraConfig(
            r=4, target_modules=["q_proj", "v_proj", "fc2"], rank_pattern={"q_proj": 2, r"layers\.1\..*v_proj": 3},
            alpha_pattern={"fc2": 5, "vit.layers.0.attention.q_proj": 7},
        ),
        {
            "rank_pattern": {"query": 2, r"layer\.1\..*value": 3},
            "alpha_pattern": {"output.dense": 5, "vit.encoder.layer.0.attention.attention.query": 7},
        },
    ),
    "targets as a pattern": (
        lambda: LoraConfig(r=2, target_modules=r".*layers\.\d+\..*(q_proj|fc1)"),
        {"target_modules": r".*layer\.\d+\..*(query|intermediate\.dense)"},
    ),
    "one layer": (
        lambda: LoraConfig(target_modules=["q_proj"], layers_to_transform=[1]), {"target_modules": ["query"]}
    ),
    "dora": (lambda: LoraConfig(target_modules=["q_proj", "fc1"], use_dora=True), {}),
    "modules replaced whole": (
        lambda: LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier", "o_proj"]),
        {"target_modules": ["query"], "modules_to_save": ["classifier", "attention.output.dense"]},
    ),
    "what holds them replaced whole": (
        lambda: LoraConfig(target_modules=["q_proj"], modules_to_save=["fc1", "layernorm"]),
        {"target_modules": ["query"], "modules_to_save": ["intermediate", "layernorm"]},
    ),
    "ia3": (
        lambda: IA3Config(target_modules=["k_proj", "fc2"], feedforward_modules=["fc2"]),
        {"target_modules": ["key", "output.dense"], "feedforward_modules": ["output.dense"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_patterns_are_matched_with_the_names_the_adapter_was_made_for(
    name: str, tmp_path: Path, library: Library
) -> None:
    config, settings = VARIANTS[name]
    new = save_adapter(tmp_path / "new", vit, config())
    expected = logits(PeftModel.from_pretrained(vit(), new).eval())

    attached = attach(vit(), as_before(new, tmp_path / "old", **settings), library=library)

    assert torch.allclose(expected, logits(attached.model), rtol=0, atol=1e-6)


def test_adapter_of_now_finds_its_modules_in_a_model_of_before(tmp_path: Path, library: Library) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj", "fc2"], alpha_pattern={"fc2": 3})
    new = save_adapter(tmp_path / "new", families.now, config)
    x = torch.linspace(-1, 1, 12).reshape(2, 6)

    attached = attach(families.before(), new, library=library)

    assert torch.allclose(
        PeftModel.from_pretrained(families.now(), new).eval()(x), attached.model(x), rtol=0, atol=1e-6
    )
    assert "are those of transformers 5 and were mapped to those of transformers 4" in attached.explain()


def test_model_of_no_known_type_is_never_mapped(tmp_path: Path, library: Library) -> None:
    new = save_adapter(tmp_path / "new", families.now, LoraConfig(r=2, target_modules=["q_proj"]))
    model = families.before()
    model.config.model_type = "something-else"

    with pytest.raises(BaseMismatch, match="2 of 2 modules"):
        attach(model, new, library=library)


def test_a_vit_inside_another_model_is_found(tmp_path: Path, library: Library) -> None:
    config = LoraConfig(r=2, target_modules=r"(encoder\..*q_proj|decoder\..*attention\.output\.dense)")
    new = save_adapter(tmp_path / "new", captioner, config)
    images = {name: old_name(name) for name, _ in captioner().named_modules() if name.startswith("encoder.layers.")}
    old = renamed(new, tmp_path / "old", images)
    inputs = {"pixel_values": PIXELS, "decoder_input_ids": torch.arange(8).reshape(2, 4)}
    expected = logits(PeftModel.from_pretrained(captioner(), new).eval(), inputs)

    attached = attach(captioner(), old, library=library)

    assert torch.allclose(expected, logits(attached.model, inputs), rtol=0, atol=1e-6)


def test_the_bank_finds_the_same_modules_and_says_so(tmp_path: Path, library: Library) -> None:
    new = save_adapter(tmp_path / "new", vit, LoraConfig(target_modules=["q_proj", "fc1"]))
    old = as_before(new, tmp_path / "old", target_modules=["query", "intermediate.dense"])
    expected = logits(PeftModel.from_pretrained(vit(), new).eval())
    model = vit()
    bare = logits(model)

    with AdapterBank(model, library=library) as bank:
        loaded = bank.load(old)
        with bank.use(loaded):
            whole = logits(model)
        with bank.rows([loaded, None]):
            by_row = logits(model)
        said = bank.explain(loaded)

    assert torch.allclose(expected, whole, rtol=0, atol=1e-6)
    assert torch.allclose(torch.stack([expected[0], bare[1]]), by_row, rtol=0, atol=1e-6)
    assert "engine: native" in said
    assert "are those of transformers 4 and were mapped to those of transformers 5" in said


# ---------------------------------------------------------------- names of several kinds
MIXED = {"vit.layers.0.attention.q_proj": "vit.encoder.layer.0.attention.attention.query"}


def test_names_of_both_releases_in_one_adapter_lead_to_their_modules(tmp_path: Path, library: Library) -> None:
    new = save_adapter(tmp_path / "new", vit, LoraConfig(target_modules=["q_proj"]))
    expected = logits(PeftModel.from_pretrained(vit(), new).eval())

    attached = attach(vit(), renamed(new, tmp_path / "mixed", MIXED), library=library)

    assert torch.allclose(expected, logits(attached.model), rtol=0, atol=1e-6)


def test_two_names_of_one_module_are_refused(tmp_path: Path, library: Library) -> None:
    new = save_adapter(tmp_path / "new", vit, LoraConfig(target_modules=["q_proj"]))
    twice = renamed(
        new, tmp_path / "twice", {"vit.layers.1.attention.q_proj": old_name("vit.layers.0.attention.q_proj")}
    )

    with pytest.raises(BaseMismatch, match="modules of"):
        attach(vit(), twice, library=library)


def test_layer_that_the_model_lacks_is_named(tmp_path: Path, library: Library) -> None:
    deep = families.of("ViTForImageClassification", "ViTConfig", config=SIZES | {"num_hidden_layers": 3})
    new = save_adapter(tmp_path / "new", deep, LoraConfig(target_modules=["q_proj"]))
    model = vit()
    before = base_digest(model)

    with pytest.raises(BaseMismatch) as refusal:
        attach(model, as_before(new, tmp_path / "old", base=deep), library=library)

    assert "1 of 3 modules" in str(refusal.value)
    assert "`vit.encoder.layer.2.attention.attention.query`" in str(refusal.value)
    assert before == base_digest(model)


def test_adapter_of_before_for_the_model_without_its_head_finds_the_same_layers(
    tmp_path: Path, library: Library
) -> None:
    new = save_adapter(tmp_path / "new", vit, LoraConfig(target_modules=["q_proj"]))
    names = {name: old_name(name).removeprefix("vit.") for name, _ in vit().named_modules() if "q_proj" in name}
    expected = logits(PeftModel.from_pretrained(vit(), new).eval())

    attached = attach(vit(), renamed(new, tmp_path / "old", names), library=library)

    assert torch.allclose(expected, logits(attached.model), rtol=0, atol=1e-6)


def test_module_of_a_holder_that_is_replaced_whole_must_be_in_the_file(tmp_path: Path, library: Library) -> None:
    new = save_adapter(tmp_path / "new", vit, LoraConfig(target_modules=["q_proj"], modules_to_save=["fc1"]))
    old = as_before(new, tmp_path / "old", modules_to_save=["intermediate"])
    tensors = load_file(old / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layer.1.intermediate" not in name}
    save_file(kept, old / "adapter_model.safetensors", metadata={"format": "pt"})

    with pytest.raises(RefusedAdapter, match=r"`vit\.layers\.1\.mlp\.fc1`: the config replaces it whole"):
        attach(vit(), old, library=library)


def test_saved_module_that_has_no_other_name_is_refused(tmp_path: Path, library: Library) -> None:
    new = save_adapter(tmp_path / "new", vit, LoraConfig(target_modules=["q_proj"], modules_to_save=["fc1"]))
    old = as_before(new, tmp_path / "old", modules_to_save=["intermediate.dense", "gone"])
    tensors = load_file(old / "adapter_model.safetensors")
    tensors["base_model.model.vit.encoder.layer.0.gone.weight"] = torch.zeros(2)
    save_file(tensors, old / "adapter_model.safetensors", metadata={"format": "pt"})

    with pytest.raises(RefusedAdapter, match=r"encoder\.layer\.0\.gone\.weight"):
        attach(vit(), old, library=library)


# ---------------------------------------------------------------- a base that is files
@pytest.fixture
def base(tmp_path: Path, library: Library) -> BaseRecord:
    """A ViT whose files were written by transformers 5, which keeps the names of transformers 4 in them."""
    vit().save_pretrained(tmp_path / "base")
    record = library.bases.add(tmp_path / "base", "vit-tiny")
    library.catalog.put_base(record)
    return record


def store_flowers(tmp_path: Path, library: Library, base: BaseRecord) -> None:
    new = save_adapter(tmp_path / "new", vit, LoraConfig(target_modules=["q_proj"]))
    library.add(new, Description(name=parse_name("flowers"), version="1.0.0"), base=base)


def on_files(folder: Path, base: BaseRecord) -> list[tuple[str, str]]:
    report = verify_folder(folder, base_tensors=base.tensors)
    return [(f.code, f.message) for f in report.findings if f.code in {"N_NAMES", "E_BASE_MISMATCH", "W_TARGETS"}]


def test_verify_finds_the_modules_of_an_adapter_of_now_in_files_of_before(tmp_path: Path, base: BaseRecord) -> None:
    new = save_adapter(tmp_path / "new", vit, LoraConfig(target_modules=["q_proj", "fc1"]))

    found = on_files(new, base)

    assert [code for code, _ in found] == ["N_NAMES"]
    assert "those of transformers 5 and were mapped to those of transformers 4" in found[0][1]
    assert on_files(as_before(new, tmp_path / "old"), base) == []


def test_verify_still_sees_shapes_that_differ_behind_other_names(tmp_path: Path, base: BaseRecord) -> None:
    wide = families.of("ViTForImageClassification", "ViTConfig", config=SIZES | {"intermediate_size": 32})
    new = save_adapter(tmp_path / "new", wide, LoraConfig(target_modules=["fc1"]))

    assert sorted(code for code, _ in on_files(new, base)) == ["E_BASE_MISMATCH", "N_NAMES"]


def test_model_in_memory_is_the_base_whose_files_have_the_names_of_before(
    tmp_path: Path, library: Library, base: BaseRecord
) -> None:
    store_flowers(tmp_path, library, base)

    attached = attach(vit(), "flowers", library=library)

    assert attached.adapters[0].verdict is BaseVerdict.SAME_WEIGHTS
    assert "mapped" not in attached.explain()


def test_another_model_is_not_that_base_under_any_name(tmp_path: Path, library: Library, base: BaseRecord) -> None:
    store_flowers(tmp_path, library, base)
    other = vit()
    with torch.no_grad():
        other.vit.layers[1].attention.q_proj.weight += 0.01

    with pytest.raises(BaseMismatch, match="sampled values differ"):
        attach(other, "flowers", library=library)
