"""What a merge writes, loaded in PEFT: no key missing or unexpected, and the update of the dense float64 sum."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.weights.lowrank.algebra import difference_norms
from adapterhub.weights.lowrank.factors import AdapterFactors
from adapterhub.weights.merge import MergeInput, merge
from adapterhub.weights.merge.plan import common_rank, rank_pattern
from tests.support.adapter_folders import write_folder
from tests.support.peft_bases import Pixels, attached, bert, gpt2, llama, logits, save_several

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass
class Case:
    base: Callable[[], nn.Module]
    adapters: list[dict[str, object]]
    weights: list[float]
    targets: list[str] | None = None  # what the merged config must name; None: not looked at
    pattern: dict[str, int] | None = None
    merge: dict[str, object] = field(default_factory=dict)


QV, MLP = ["q_proj", "v_proj"], ["gate_proj", "up_proj", "down_proj"]
CASES = {
    "mixed ranks and targets, rsLoRA": Case(
        llama,
        [{"r": 8, "target_modules": QV}, {"r": 4, "target_modules": ["q_proj", "down_proj"], "use_rslora": True}],
        [0.7, 0.3], ["down_proj", "q_proj", "v_proj"], {"down_proj": 4, "v_proj": 8},
    ),
    "rank_pattern and alpha_pattern, negative weight": Case(
        llama,
        [
            {
                "r": 4, "target_modules": [*QV, *MLP], "rank_pattern": {"layers.1.mlp.up_proj": 2, "v_proj": 3},
                "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 7, "up_proj": 5},
            },
            {"r": 2, "target_modules": QV, "use_rslora": True, "alpha_pattern": {"q_proj": 3}},
        ],
        [0.7, -0.3], ["down_proj", "gate_proj", "q_proj", "up_proj", "v_proj"],
        {"model.layers.1.mlp.up_proj": 2, "q_proj": 6, "v_proj": 5},
    ),
    "three, one of them in one layer": Case(
        llama,
        [
            {"r": 4, "target_modules": QV},
            {"r": 3, "target_modules": ["q_proj", "o_proj"], "layers_to_transform": [1]},
            {"r": 2, "target_modules": ["k_proj"]},
        ],
        [0.5, 0.25, 1.5], ["k_proj", "model.layers.1.self_attn.o_proj", "q_proj", "v_proj"],
    ),
    "targets by pattern": Case(
        llama, [{"r": 4, "target_modules": r".*layers\.[02]\.self_attn\.(q|v)_proj"}, {"r": 4, "target_modules": MLP}],
        [0.5, 0.5],
        sorted([*MLP, *(f"model.layers.{i}.self_attn.{m}" for i in (0, 2) for m in QV)]),
    ),
    "all-linear and excluded modules": Case(
        llama,
        [{"r": 2, "target_modules": "all-linear"},
         {"r": 4, "target_modules": QV, "exclude_modules": "model.layers.0.*"}],
        [0.5, 0.5],
    ),
    "short names that reach more than the adapters have": Case(
        llama,
        [{"r": 4, "target_modules": ["layers.0.self_attn.q_proj"]}, {"r": 4, "target_modules": ["v_proj"]}],
        [0.5, 0.5], ["layers.0.self_attn.q_proj", "v_proj"],
    ),
    "embedding": Case(
        llama, [{"r": 4, "target_modules": ["embed_tokens", "q_proj"]}, {"r": 2, "target_modules": ["embed_tokens"]}],
        [0.7, 0.3], ["embed_tokens", "q_proj"],
    ),
    "Conv1D": Case(
        gpt2,
        [{"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True},
         {"r": 2, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}],
        [0.7, 0.3], ["c_attn", "c_fc"],
    ),
    "attn.c_proj but not mlp.c_proj": Case(
        gpt2,
        [{"r": 4, "target_modules": ["attn.c_proj"], "fan_in_fan_out": True},
         {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True}],
        [0.7, 0.3], ["attn.c_proj", "c_attn"],
    ),
    "classifier saved by one": Case(
        bert,
        [{"r": 4, "target_modules": ["query", "value"], "modules_to_save": ["classifier"], "task_type": "SEQ_CLS"},
         {"r": 3, "target_modules": ["dense", "query"], "exclude_modules": ["pooler.dense"]}],
        [0.7, 0.3],
    ),
    "convolutions": Case(
        Pixels, [{"r": 2, "target_modules": ["first", "second"]}, {"r": 3, "target_modules": ["second"]}],
        [0.7, -0.3], ["first", "second"],
    ),
    "cut to rank 2": Case(
        llama, [{"r": 4, "target_modules": QV}, {"r": 4, "target_modules": MLP}], [0.7, 0.3],
        merge={"method": "svd", "rank": 2},
    ),
    "cut by error": Case(
        llama, [{"r": 4, "target_modules": [*QV, *MLP]}, {"r": 6, "target_modules": QV}], [0.7, 0.3],
        merge={"method": "svd", "max_error": 0.4},
    ),
    "full svd": Case(
        llama, [{"r": 4, "target_modules": QV}, {"r": 6, "target_modules": QV}], [0.7, 0.3], merge={"method": "svd"}
    ),
}  # fmt: skip


def made(case: Case, root: Path) -> list[Path]:
    """The adapters of a case, as PEFT saves them."""
    return save_several(root, case.base, case.adapters, save_embedding_layers=False)


def updates(model: PeftModel, name: str) -> dict[str, Tensor]:
    """PEFT's own update of every layer, from its factors in float64, in the shape of the layer's weight."""
    found = {}
    for module, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer) and name in layer.scaling:
            layer.double()
            found[module] = layer.get_delta_weight(name)
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_merge_loads_in_peft_and_is_the_sum(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    folders = made(case, tmp_path)
    inputs = [MergeInput(folder=f, label=f.name, weight=w) for f, w in zip(folders, case.weights, strict=True)]

    result = merge(inputs, tmp_path / "out", **case.merge)  # type: ignore[arg-type]

    exact: dict[str, Tensor] = {}
    for folder, weight in zip(folders, case.weights, strict=True):
        for module, update in updates(attached(case.base, folder, "one"), "one").items():
            exact[module] = exact.get(module, 0) + weight * update
    merged = updates(attached(case.base, tmp_path / "out", "merged"), "merged")
    assert merged.keys() == exact.keys()
    apart = sum(float((merged[m] - exact[m]).norm() ** 2) for m in exact) ** 0.5
    error = apart / sum(float(exact[m].norm() ** 2) for m in exact) ** 0.5
    assert error == pytest.approx(result.relative_error, rel=1e-3, abs=1e-9)
    if "rank" not in case.merge and "max_error" not in case.merge:
        assert error < 1e-6
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    if case.targets is not None:
        assert config["target_modules"] == case.targets
    if case.pattern is not None:
        assert config["rank_pattern"] == case.pattern


@pytest.mark.parametrize("name", ["mixed ranks and targets, rsLoRA", "Conv1D", "classifier saved by one", "embedding"])
def test_logits_are_those_of_a_base_with_the_sum_added_to_its_weights(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    folders = made(case, tmp_path)
    inputs = [MergeInput(folder=f, label=f.name, weight=w) for f, w in zip(folders, case.weights, strict=True)]

    merge(inputs, tmp_path / "out")

    plain = attached(case.base, folders[0], "one").double().unload()  # with its saved classifier, without its update
    before = logits(plain)
    with torch.no_grad():
        for folder, weight in zip(folders, case.weights, strict=True):
            for module, update in updates(attached(case.base, folder, "one"), "one").items():
                plain.get_submodule(module).weight += weight * update
    expected, actual = logits(plain), logits(attached(case.base, tmp_path / "out", "merged").double())
    assert float((expected - before).abs().max()) > 1e-3
    assert float((actual - expected).abs().max()) < 1e-6


@pytest.mark.parametrize("weights", [(0.7, 0.3), (0.7, -0.3), (1.0, 0.0), (-1.0, -2.0)])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_linear_is_pefts_linear(weights: tuple[float, float], use_rslora: bool, tmp_path: Path) -> None:  # noqa: FBT001
    options = {"r": 4, "target_modules": QV, "use_rslora": use_rslora}
    case = Case(llama, [options, options], list(weights))
    folders = made(case, tmp_path)
    theirs = attached(case.base, folders[0], "a")
    theirs.load_adapter(folders[1], "b")
    theirs.add_weighted_adapter(["a", "b"], list(weights), "c", combination_type="linear")
    inputs = [MergeInput(folder=f, label=f.name, weight=w or 1e-300) for f, w in zip(folders, weights, strict=True)]

    result = merge(inputs, tmp_path / "out", method="linear")

    ours = attached(case.base, tmp_path / "out", "c")
    for (name, left), (_, right) in zip(factors(theirs).items(), factors(ours).items(), strict=True):
        assert float((left - right).norm() / left.norm()) < 1e-6, name
    if 0.0 not in weights:
        assert result.relative_error > 0.1  # the cross terms


def factors(model: PeftModel) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if re.search(r"lora_[AB]\.c\.", n)}


def test_svd_is_pefts_svd_without_the_matrix(tmp_path: Path) -> None:
    case = CASES["cut to rank 2"]
    case = Case(llama, [case.adapters[0]] * 2, [0.7, 0.3])
    folders = made(case, tmp_path)
    theirs = attached(case.base, folders[0], "a")
    theirs.load_adapter(folders[1], "b")
    theirs.add_weighted_adapter(["a", "b"], [0.7, 0.3], "c", combination_type="svd", svd_rank=2)
    inputs = [MergeInput(folder=f, label=f.name, weight=w) for f, w in zip(folders, [0.7, 0.3], strict=True)]

    merge(inputs, tmp_path / "out", method="svd", rank=2)

    ours, theirs_c = updates(attached(case.base, tmp_path / "out", "c"), "c"), updates(theirs, "c")
    for module, update in theirs_c.items():
        assert float((ours[module] - update).norm() / update.norm()) < 1e-5, module


# ---------------------------------------------------------------- patterns and targets, for any tree of names

part = st.sampled_from(["a", "b", "q", "layers", "0", "1", "11", "x_q"])
module = st.lists(part, min_size=1, max_size=4).map(".".join)
trees = st.dictionaries(module, st.integers(1, 3), min_size=1, max_size=8)


@settings(max_examples=300)
@given(ranks=trees, reverse=st.booleans())
def test_patterns_give_every_module_its_rank_in_peft_and_here(ranks: Mapping[str, int], reverse: bool) -> None:  # noqa: FBT001
    r = common_rank(ranks.values())
    pattern = dict(sorted(rank_pattern(ranks, r).items(), reverse=reverse))  # JSON tools reorder keys
    raw = {"peft_type": "LORA", "r": r, "lora_alpha": r, "target_modules": ["q"], "base_model_name_or_path": "x"}
    config = AdapterConfig.parse(json.dumps(raw | {"rank_pattern": pattern, "alpha_pattern": pattern}).encode(), "here")

    for name, rank in ranks.items():
        assert pattern.get(get_pattern_key(pattern.keys(), name), r) == rank
        assert (config.rank_of(name), config.scaling_of(name)) == (rank, 1.0)


@settings(max_examples=60)
@given(data=st.data())
def test_targets_reach_the_merged_modules_and_no_other(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("targets")
    leaves = data.draw(st.lists(st.sampled_from(["q", "k", "v", "mlp.up"]), min_size=2, max_size=4, unique=True))
    tree = [f"{part}.{i}.{leaf}" for part in ("encoder.layers", "decoder.layers") for i in range(3) for leaf in leaves]
    folders = []
    for i in range(2):
        targets = data.draw(st.lists(st.sampled_from([*leaves, "up", *tree[:3]]), min_size=1, max_size=3, unique=True))
        layers = data.draw(st.sampled_from([None, [0], [1, 2]]))
        config = LoraConfig(target_modules=targets, layers_to_transform=layers)
        reached = [m for m in tree if check_target_module_exists(config, m)]
        if reached:
            extra = {"target_modules": targets, "layers_to_transform": layers}
            folders.append(write_folder(root / str(i), dict.fromkeys(reached, (4, 4)), ranks=2, seed=i, **extra))
    if not folders:
        return

    merge([MergeInput(folder=f, label=f.name, weight=0.5) for f in folders], root / "out")

    with AdapterFactors(root / "out") as out:
        ours = LoraConfig.from_pretrained(root / "out")
        assert [m for m in sorted(tree) if check_target_module_exists(ours, m)] == list(out.modules)
        assert all(out.config.targets(m) for m in out.modules)


def test_a_merge_of_a_merge_is_still_the_sum(tmp_path: Path) -> None:
    case = CASES["mixed ranks and targets, rsLoRA"]
    first, second = made(case, tmp_path)

    merge([MergeInput(folder=f, label="", weight=w) for f, w in ((first, 0.7), (second, 0.3))], tmp_path / "sum")
    merge(
        [MergeInput(folder=f, label="", weight=w) for f, w in ((tmp_path / "sum", 2.0), (first, -1.4))],
        tmp_path / "out",
    )

    with AdapterFactors(second) as expected, AdapterFactors(tmp_path / "out") as out:
        for name in expected.modules:
            error, norm = difference_norms([expected.read(name)], [0.6], out.read(name))
            assert error < 1e-6 * norm
