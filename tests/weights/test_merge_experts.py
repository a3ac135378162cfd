"""Pairs on bare parameters of the base, such as all experts of a layer at once (PEFT's `target_parameters`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from adapterhub.core.errors import MergeRefused, RefusedAdapter, UnsupportedAdapter
from adapterhub.weights.lowrank.factors import AdapterFactors
from tests.support.peft_bases import (
    EXPERTS,
    Base,
    apart,
    attached,
    effects,
    fresh,
    gpt_oss,
    logits,
    mixtral,
    qwen3_moe,
    save,
    save_several,
    weighted,
)
from tests.weights.merging import config_of
from tests.weights.merging import run_all as run

pytestmark = pytest.mark.filterwarnings("ignore")

BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def exact(base: Base, folders: list[Path], weights: list[float]) -> dict[str, torch.Tensor]:
    return weighted([effects(attached(base, f)) for f in folders], weights)


CASES = {
    "one rank": [{"r": 2, "target_modules": ["q_proj"], "target_parameters": BOTH}] * 2,
    "ranks and scales of their own, rsLoRA": [
        {"r": 2, "target_modules": ["q_proj"], "target_parameters": BOTH},
        {"r": 3, "target_modules": [], "target_parameters": ["experts.down_proj", "experts.gate_up_proj"],
         "use_rslora": True},
    ],
    "one parameter, and the router": [
        {"r": 2, "target_modules": [], "target_parameters": ["mlp.experts.down_proj"]},
        {"r": 3, "target_modules": ["v_proj"], "target_parameters": ["mlp.experts.down_proj", "router.weight"]},
    ],
    "bare names": [
        {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"]},
        {"r": 3, "target_modules": ["v_proj"], "target_parameters": ["gate_up_proj", "down_proj"]},
    ],
    "one layer only": [
        {"r": 2, "target_modules": [], "target_parameters": ["layers.1.mlp.experts.down_proj"]},
        {"r": 2, "target_modules": ["q_proj", "v_proj"]},
    ],
    "rank by pattern": [
        {"r": 2, "target_modules": [], "target_parameters": BOTH, "rank_pattern": {"gate_up_proj": 4},
         "alpha_pattern": {"gate_up_proj": 12}},
        {"r": 2, "target_modules": [], "target_parameters": BOTH},
    ],
}  # fmt: skip


@pytest.mark.parametrize("base", [mixtral, qwen3_moe, gpt_oss])
@pytest.mark.parametrize("name", CASES)
def test_a_merge_of_experts_loads_in_peft_and_is_the_sum(base: Base, name: str, tmp_path: Path) -> None:
    adapters = [dict(a) for a in CASES[name]]
    for adapter in adapters:  # what the router is called
        if base is not gpt_oss and "target_parameters" in adapter:
            adapter["target_parameters"] = [p.replace("router", "gate") for p in adapter["target_parameters"]]
    folders, weights = save_several(tmp_path, base, adapters), [0.7, -0.3]

    result = run(tmp_path / "out", folders, weights)

    merged = attached(base, tmp_path / "out")
    assert apart(effects(merged), exact(base, folders, weights)) < 1e-6
    assert result.relative_error < 1e-6
    assert float((logits(merged) - logits(merged.unload())).abs().max()) > 1e-3


@pytest.mark.parametrize("base", [mixtral, gpt_oss])
def test_logits_are_those_of_a_base_with_the_sum_added_to_its_experts(base: Base, tmp_path: Path) -> None:
    folders = save_several(tmp_path, base, [{"r": 2, "target_modules": [], "target_parameters": BOTH}] * 2)
    merged, plain = tmp_path / "out", fresh(base).double()

    run(merged, folders, [0.7, -0.3])

    with torch.no_grad():
        for name, update in exact(base, folders, [0.7, -0.3]).items():
            experts = plain.get_submodule(name.replace(".base_layer", ""))
            (experts.gate_up_proj if "base_layer" in name else experts.down_proj).add_(update)
    assert float((logits(attached(base, merged)) - logits(plain)).abs().max()) < 1e-6
    assert float((logits(fresh(base).double()) - logits(plain)).abs().max()) > 1e-3


def test_experts_of_unlike_ranks_are_filled_up_to_the_largest(tmp_path: Path) -> None:
    folders = save_several(tmp_path, mixtral, [{"r": 4, "target_modules": [], "target_parameters": BOTH}] * 2)
    tensors = load_file(folders[0] / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor[:, ::EXPERTS] = 0  # the first expert of each pair
        if "layers.0" in name and "base_layer.lora_B" in name:
            tensor[:] = 0
    save_file(tensors, folders[0] / "adapter_model.safetensors", metadata={"format": "pt"})

    result = run(tmp_path / "out", folders, [0.7, -0.3])

    # Layer 0's first parameter needs 4 for every expert, its second one 8 for two of them: a config knows one of them.
    assert dict(result.ranks) == {8: 4}
    assert config_of(tmp_path / "out")["rank_pattern"] == {}
    assert apart(effects(attached(mixtral, tmp_path / "out")), exact(mixtral, folders, [0.7, -0.3])) < 1e-6


@pytest.mark.parametrize("options", [{"max_error": 0.5}, {"rank": 1}, {"method": "svd", "energy": 0.7}])
def test_experts_are_cut_one_by_one(options: dict[str, object], tmp_path: Path) -> None:
    folders = save_several(tmp_path, mixtral, [{"r": 3, "target_modules": ["q_proj"], "target_parameters": BOTH}] * 2)

    result = run(tmp_path / "out", folders, [0.7, -0.3], **options)

    merged, wanted = effects(attached(mixtral, tmp_path / "out")), exact(mixtral, folders, [0.7, -0.3])
    lost = sum(float((merged[m] - wanted[m]).norm() ** 2) for m in wanted if "experts" in m) ** 0.5
    whole = sum(float(wanted[m].norm() ** 2) for m in wanted if "experts" in m) ** 0.5
    assert 0.05 < lost / whole < 0.8
    assert result.truncation_error is not None
    if "max_error" in options:
        for name in (m for m in wanted if "experts" in m):
            for ours, theirs in zip(merged[name], wanted[name], strict=True):
                assert float((ours - theirs).norm() / theirs.norm()) <= 0.5


def test_ranks_that_differ_by_layer_are_written_by_parameter(tmp_path: Path) -> None:
    options = {"target_modules": [], "target_parameters": BOTH}
    folders = save_several(
        tmp_path, mixtral, [{"r": 2, **options}, {"r": 3, **options, "rank_pattern": {"layers.0.mlp.experts.*": 1}}]
    )

    run(tmp_path / "out", folders, [0.7, -0.3])

    config = config_of(tmp_path / "out")
    layer = "model.layers.0.mlp.experts"
    assert (config["r"], config["target_parameters"]) == (5, sorted(BOTH))
    assert config["rank_pattern"] == {f"{layer}.down_proj": 3, f"{layer}.gate_up_proj": 3}
    assert apart(effects(attached(mixtral, tmp_path / "out")), exact(mixtral, folders, [0.7, -0.3])) < 1e-6


def test_a_merge_of_merged_experts_is_still_the_sum(tmp_path: Path) -> None:
    folders = save_several(tmp_path, gpt_oss, [{"r": 2, "target_modules": [], "target_parameters": BOTH}] * 2)

    run(tmp_path / "sum", folders, [0.7, 0.3])
    run(tmp_path / "out", [tmp_path / "sum", folders[0]], [2.0, -1.4])

    assert apart(effects(attached(gpt_oss, tmp_path / "out")), exact(gpt_oss, folders[1:], [0.6])) < 1e-5


def test_targets_are_named_in_full_where_a_short_name_could_reach_more(tmp_path: Path) -> None:
    options = {"r": 2, "target_modules": []}
    first = save(tmp_path / "a", mixtral, {**options, "target_parameters": ["experts.down_proj"]})
    second = save(tmp_path / "b", mixtral, {**options, "target_parameters": ["layers.0.mlp.experts.down_proj"]}, seed=1)
    tensors = load_file(first / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1" in name}
    save_file(kept, first / "adapter_model.safetensors", metadata={"format": "pt"})

    run(tmp_path / "out", [first, second], [0.5, 0.5])

    names = ["layers.0.mlp.experts.down_proj", "model.layers.1.mlp.experts.down_proj"]
    assert config_of(tmp_path / "out")["target_parameters"] == names


def test_experts_of_other_parameters_are_refused_with_every_layer(tmp_path: Path) -> None:
    options = {"r": 2, "target_modules": ["q_proj"]}
    folders = save_several(
        tmp_path,
        mixtral,
        [{**options, "target_parameters": BOTH}, {**options, "target_parameters": BOTH[1:]}],
    )

    with pytest.raises(MergeRefused) as refused:
        run(tmp_path / "out", folders, [0.5, 0.5])

    assert len(refused.value.reasons) == 2
    for layer, reason in enumerate(refused.value.reasons):
        assert f"`model.layers.{layer}.mlp.experts` differs in its parameters" in reason
        assert "down_proj, gate_up_proj in `adapter0`, down_proj in `adapter1`" in reason


def test_a_transposed_base_that_an_adapter_claims_by_mistake_is_passed_over(tmp_path: Path) -> None:
    first = save(tmp_path / "a", mixtral, {"r": 2, "target_modules": [], "target_parameters": BOTH})
    second = save(tmp_path / "b", mixtral, {"r": 2, "target_modules": ["q_proj"]})
    path = second / "adapter_config.json"
    path.write_text(json.dumps(config_of(second) | {"fan_in_fan_out": True}))  # PEFT corrects it for a linear layer

    run(tmp_path / "out", [first, second], [0.5, 0.5])

    assert apart(effects(attached(mixtral, tmp_path / "out")), exact(mixtral, [first, second], [0.5, 0.5])) < 1e-6


def test_a_module_is_not_the_same_as_its_parameter(tmp_path: Path) -> None:
    first = save(tmp_path / "a", mixtral, {"r": 2, "target_modules": [], "target_parameters": ["q_proj.weight"]})
    second = save(tmp_path / "b", mixtral, {"r": 2, "target_modules": ["q_proj"]})

    with pytest.raises(MergeRefused, match=r"q_proj` differs: experts 16 x 16 in `a`, linear 16 x 16 in `b`"):
        run(tmp_path / "out", [first, second], [0.5, 0.5])


def ambiguous(folder: Path) -> Path:
    """Two parameters of one rank and two alphas: the file does not say which pair has which."""
    pattern = {"gate_up_proj": 3}
    return save(folder, mixtral, {"r": 2, "target_modules": [], "target_parameters": BOTH, "alpha_pattern": pattern})


def test_pairs_that_could_be_on_either_parameter_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MergeRefused) as refused:
        run(tmp_path / "out", [ambiguous(tmp_path / "a")], [0.5])

    assert len(refused.value.reasons) == 4
    assert all("down_proj, gate_up_proj" in reason for reason in refused.value.reasons)


def test_such_pairs_are_copied_all_the_same(tmp_path: Path) -> None:
    folder = ambiguous(tmp_path / "a")

    result = run(tmp_path / "out", [folder], [1.0])

    assert result.is_copy
    name = "adapter_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_rows_that_are_no_whole_number_of_ranks_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", mixtral, {"r": 2, "target_modules": [], "target_parameters": BOTH})
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 2', '"r": 4'))

    with pytest.raises(RefusedAdapter, match=r"A is \[6, 24\] and B is \[16, 6\], expected rank 4"):
        AdapterFactors(folder)


def test_experts_are_read_one_by_one_and_never_as_one(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", gpt_oss, {"r": 2, "target_modules": [], "target_parameters": BOTH})
    name = "model.layers.0.mlp.experts"

    with AdapterFactors(folder) as adapter:
        parts = adapter.parts(name)
        with pytest.raises(UnsupportedAdapter, match="each of 3 experts"):
            adapter.read(name)

    wanted = effects(attached(gpt_oss, folder))[name]  # [experts, in, out]
    assert len(parts) == EXPERTS
    for part, update in zip(parts, wanted, strict=True):
        assert torch.allclose((part.scale * part.b.double() @ part.a.double()).T, update, atol=1e-12)


def test_experts_as_modules_of_transformers_4_are_merged_and_converted_by_peft(tmp_path: Path) -> None:
    """Adapters of 2024 and 2025 have a pair for each expert, which PEFT turns into those of a parameter."""
    folders = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for layer in range(2):
            for expert in range(EXPERTS):
                for leaf, out, width in (("gate_proj", 20, 16), ("up_proj", 20, 16), ("down_proj", 16, 20)):
                    name = f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{leaf}"
                    tensors[f"{name}.lora_A.weight"] = torch.randn(2, width, generator=generator)
                    tensors[f"{name}.lora_B.weight"] = torch.randn(out, 2, generator=generator)
        folder = tmp_path / f"in{seed}"
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        leaves = ["gate_proj", "up_proj", "down_proj"]
        config = {
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 4,
            "target_modules": leaves,
            "base_model_name_or_path": "x",
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
        folders.append(folder)

    run(tmp_path / "out", folders, [0.7, -0.3])

    loaded = [PeftModel.from_pretrained(fresh(qwen3_moe), f, "one").double() for f in (tmp_path / "out", *folders)]
    merged, *wanted = map(effects, loaded)
    assert len(merged) == 4
    assert apart(merged, weighted(wanted, [0.7, -0.3])) < 1e-6
    uneven = run(tmp_path / "uneven", folders, [0.7, -0.3], max_error=0.3)
    assert len(uneven.ranks) > 1
    assert sum("experts have different ranks" in w for w in uneven.warnings) == 1
    with pytest.raises((RuntimeError, ValueError)):  # so the warning is true
        PeftModel.from_pretrained(fresh(qwen3_moe), tmp_path / "uneven")
