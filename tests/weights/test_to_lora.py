"""`adapt resize --to lora`: an adapter of any linear method becomes a LoRA that answers as PEFT does with the original."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from adapterhub.inference.bank.adapter_bank import AdapterBank
from adapterhub.inference.loader import attach
from adapterhub.weights.extract import linear
from tests.support.command_line import Adapt
from tests.support.peft_bases import import_build_tools
from tests.support.tiny_models import gpt2, llama, logits

LINEAR: dict[str, dict[str, Any]] = {
    "AdaLoraConfig": {"total_step": 90_000, "init_r": 4, "target_r": 4},
    "BOFTConfig": {"boft_block_size": 4},
    "C3AConfig": {"block_size": 16},
    "DeftConfig": {},
    "DeloraConfig": {"r": 4},
    "FourierFTConfig": {"n_frequency": 50},
    "FrodConfig": {},
    "GloraConfig": {},
    "GraloraConfig": {"r": 4},
    "HRAConfig": {"r": 4},
    "HiraConfig": {"r": 4},
    "IA3Config": {"feedforward_modules": ["down_proj"]},
    "LoHaConfig": {"r": 4},
    "LoKrConfig": {"r": 4},
    "LoraConfig": {"use_dora": True},
    "MissConfig": {"r": 4},
    "OFTConfig": {"oft_block_size": 4, "r": 0},
    "PeanutConfig": {},
    "PveraConfig": {"r": 8},
    "RandLoraConfig": {"r": 4},
    "RoadConfig": {"group_size": 4},
    "ShiraConfig": {"r": 2},
    "SupertuningConfig": {},
    "TinyLoraConfig": {},
    "VBLoRAConfig": {"vector_length": 8, "num_vectors": 16},
    "VeraConfig": {"r": 8},
    "WaveFTConfig": {"n_frequency": 50},
}
CASES = [
    *LINEAR.items(),
    ("MissConfig", {"r": 4, "init_weights": "bat"}),
    ("RandLoraConfig", {"r": 4, "save_projection": False}),
    ("VeraConfig", {"r": 8, "save_projection": False}),
]
TARGETS = ["v_proj", "q_proj", "down_proj"]
Make = Callable[[], nn.Module]
biased: Make = partial(llama, attention_bias=True)


def trained(folder: Path, make: Make, kind: str, settings: dict[str, Any], targets: list[str]) -> Path:
    """An adapter as PEFT writes it, its numbers moved by noise."""
    if kind == "BOFTConfig":
        import_build_tools()
    torch.manual_seed(7)
    model = get_peft_model(make(), getattr(peft, kind)(target_modules=targets, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder


def answers(make: Make, folder: Path | None = None) -> Tensor:
    """What PEFT answers in float64."""
    model = make()
    return logits((PeftModel.from_pretrained(model, folder) if folder else model).double().eval())


def apart(make: Make, converted: Path, original: Path) -> float:
    """The error of the answers, of the effect of the original."""
    truth = answers(make, original)
    return float((answers(make, converted) - truth).norm() / (truth - answers(make)).norm())


@pytest.fixture(scope="module")
def adapt(tmp_path_factory) -> Adapt:
    folder = tmp_path_factory.mktemp("to-lora")
    shell = Adapt(folder)
    for name, make in {"llama": llama, "biased": biased, "gpt2": gpt2}.items():
        model = make()
        for parameter in model.parameters():
            if parameter.ndim == 1 and name == "biased":
                nn.init.normal_(parameter)
        model.save_pretrained(folder / name)
        shell.library.bases.add(folder / name, name)
    return shell


def stored(adapt: Adapt, name: str) -> Make:
    kind = {"gpt2": gpt2}.get(name, llama)
    return partial(type(kind()).from_pretrained, adapt.folder / name)


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=[f"{kind}{i}" for i, (kind, _) in enumerate(CASES)])
def test_a_linear_method_becomes_a_lora_that_answers_alike(adapt, tmp_path, kind, settings):
    make = stored(adapt, "llama")
    original = trained(tmp_path / "in", make, kind, settings, TARGETS)

    said = adapt.json("resize", original, "--to", "lora", "--base", "llama", "-o", tmp_path / "out")

    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert said["relative_error"] < 1e-7
    assert apart(make, tmp_path / "out", original) < 1e-5


def test_boft_becomes_a_lora_without_the_tools_for_extensions(adapt, tmp_path, monkeypatch):
    original = trained(tmp_path / "in", stored(adapt, "llama"), "BOFTConfig", {"boft_block_size": 4}, TARGETS)
    monkeypatch.setitem(sys.modules, "torch.utils.cpp_extension", None)

    said = adapt.json("resize", original, "--to", "lora", "--base", "llama", "-o", tmp_path / "out")

    assert said["relative_error"] < 1e-7


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=[f"{kind}{i}" for i, (kind, _) in enumerate(CASES)])
def test_only_named_methods_depend_on_the_order_of_layers(adapt, tmp_path, monkeypatch, kind, settings):
    make = stored(adapt, "llama")
    original = trained(tmp_path / "in", make, kind, settings, TARGETS)
    method = json.loads((original / "adapter_config.json").read_text())["peft_type"]
    convert = ("resize", original, "--to", "lora", "--base", "llama", "-o")
    adapt.ok(*convert, tmp_path / "out")
    turned = [name for name, _ in make().named_modules()][::-1]
    monkeypatch.setattr(linear, "_layers_of", lambda _: turned)
    adapt.ok(*convert, tmp_path / "turned")

    straight, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "turned"))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    one, two = (it[name.format("B")] @ it[name.format("A")] for it in (straight, other))
    assert torch.allclose(one, two, atol=1e-5) == (method not in linear._BY_ORDER)

    monkeypatch.setattr(linear, "_layers_of", lambda _: [])
    done = adapt(*convert, tmp_path / "unordered")
    assert done.exit_code == (0 if torch.allclose(one, two, atol=1e-5) else 11), done.stderr


@pytest.mark.parametrize(
    ("base", "kind", "settings", "targets"),
    [
        ("biased", "RoadConfig", {"group_size": 4}, ["q_proj", "v_proj"]),
        ("biased", "IA3Config", {"feedforward_modules": []}, ["q_proj", "o_proj"]),
        ("biased", "BeftConfig", {}, ["q_proj"]),
        ("biased", "OFTConfig", {"oft_block_size": 4, "r": 0}, ["k_proj"]),
        ("gpt2", "IA3Config", {"feedforward_modules": ["c_proj"], "fan_in_fan_out": True}, ["c_attn", "c_proj"]),
        ("gpt2", "VeraConfig", {"r": 8, "fan_in_fan_out": True}, ["c_attn", "c_fc"]),
        ("gpt2", "FourierFTConfig", {"n_frequency": 60, "fan_in_fan_out": True}, ["c_proj", "c_attn"]),
    ],
)
def test_biases_and_turned_weights_are_kept(adapt, tmp_path, base, kind, settings, targets):
    make = stored(adapt, base)
    original = trained(tmp_path / "in", make, kind, settings, targets)

    adapt.ok("resize", original, "--to", "lora", "--base", base, "-o", tmp_path / "out")

    assert apart(make, tmp_path / "out", original) < 1e-5


def test_trained_biases_of_the_base_are_refused(adapt, tmp_path):
    settings = {"r": 8, "bias": "vera_only"}
    original = trained(tmp_path / "in", stored(adapt, "biased"), "VeraConfig", settings, ["q_proj"])

    said = adapt.fails(11, "resize", original, "--to", "lora", "--base", "biased", "-o", tmp_path / "out")

    assert "replaces the bias of" in said or "has no place for" in said


def test_what_replaces_modules_whole_is_carried(adapt, tmp_path):
    make = stored(adapt, "llama")
    original = trained(tmp_path / "in", make, "VeraConfig", {"r": 8, "modules_to_save": ["lm_head"]}, ["q_proj"])

    adapt.ok("resize", original, "--to", "lora", "--base", "llama", "-o", tmp_path / "out")

    name = "base_model.model.lm_head.weight"
    files = [load_file(folder / "adapter_model.safetensors")[name] for folder in (original, tmp_path / "out")]
    assert torch.equal(*files)
    assert apart(make, tmp_path / "out", original) < 1e-5


def test_the_result_attaches_and_shares_a_bank(adapt, tmp_path):
    make = stored(adapt, "llama")
    originals = {}
    for name, kind in {"vera-one": "VeraConfig", "oft-one": "OFTConfig"}.items():
        originals[name] = trained(tmp_path / name, make, kind, LINEAR[kind], ["q_proj", "v_proj"])
        adapt.ok("add", originals[name], "--base", "llama")
        adapt.ok("resize", name, "--to", "lora")

    with attach(make().eval(), "vera-one-lora", library=adapt.library) as held:
        assert float((logits(held.model) - answers(make, originals["vera-one"])).abs().max()) < 1e-4
    model = make().eval()
    bank = AdapterBank(model, library=adapt.library)
    names = [f"{name}-lora" for name in originals]
    bank.load(names[0]), bank.load(names[1])
    ids = torch.arange(24).reshape(2, 12) % 64
    with bank.rows(names), torch.no_grad():
        found = model(ids).logits
    truth = torch.stack([answers(make, folder)[row] for row, folder in enumerate(originals.values())])
    assert float((found - truth).abs().max()) < 1e-4


def test_lineage_names_the_original_and_the_method(adapt, tmp_path):
    make = stored(adapt, "llama")
    adapt.ok("add", trained(tmp_path / "kin", make, "LoKrConfig", {"r": 4}, ["q_proj"]), "--base", "llama")

    said = adapt.json("resize", "kin", "--to", "lora", "--rank", "3", "-o", "kin-small")

    shown = adapt.json("info", "kin-small")
    assert [parent["spec"] for parent in shown["parents"]] == ["kin==1.0.0"]
    assert (shown["recipe"]["method"], shown["recipe"]["options"]) == ("lora", {"rank": 3})
    assert said["after"]["ranks"] == {"3": 2}
    assert 1e-3 < said["relative_error"] < 1


def test_what_is_no_linear_map_is_refused_by_its_reason(adapt, tmp_path, monkeypatch):
    make = stored(adapt, "llama")
    lily = trained(tmp_path / "lily", make, "LilyConfig", {}, ["q_proj"])
    loha = trained(tmp_path / "loha", make, "LoHaConfig", {}, ["q_proj"])
    plain = trained(tmp_path / "plain", make, "LoraConfig", {}, ["q_proj"])
    ask = ("--to", "lora", "--base", "llama", "-o", tmp_path / "out")

    assert "PEFT cannot merge it" in adapt.fails(11, "resize", lily, *ask)
    for kind, own in {
        "PsoftConfig": {"r": 8},
        "OSFConfig": {},
        "PveraConfig": {"sample_at_inference": True},
        "UniLoraConfig": {},
    }.items():
        unsettled = trained(tmp_path / kind, make, kind, own, ["q_proj"])
        said = adapt.fails(11, "resize", unsettled, *ask)
        assert any(why in said for why in ("is in no file", "draws random numbers", "no factors", "leaves open"))
    huge = trained(tmp_path / "huge", make, "VeraConfig", {"r": 8}, ["q_proj"])
    path = huge / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 50_000}))
    assert "far above the sizes of its tensors" in adapt.fails(11, "resize", huge, *ask)
    assert "is a LoRA already" in adapt.fails(2, "resize", plain, *ask)
    assert "--base" in adapt.fails(10, "resize", lily, "--to", "lora", "-o", tmp_path / "out")
    straight = peft.tuners.loha.layer.LoHaLayer.forward
    monkeypatch.setattr(peft.tuners.loha.layer.LoHaLayer, "forward", lambda *given: straight(*given).tanh())
    assert "no linear map" in adapt.fails(11, "resize", loha, *ask)
    assert not (tmp_path / "out").exists()
