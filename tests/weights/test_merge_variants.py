"""Every method on every kind of layer and every way to give ranks and scales: PEFT loads what the folder says."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.config import VeloraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapterhub.core.errors import MergeRefused
from adapterhub.weights.catalogue import names
from tests.support.adapter_folders import write_folder
from tests.support.peft_bases import (
    ALL_KINDS,
    AllKinds,
    Base,
    apart,
    attached,
    effects,
    effects_said,
    fresh,
    gpt2,
    llama,
    llama_with_biases,
    logits,
    mixtral,
    save,
    save_several,
    weighted,
)
from tests.weights.merging import config_of
from tests.weights.merging import run_all as run

pytestmark = pytest.mark.filterwarnings("ignore")

LINEAR = [
    name
    for name in names()
    if getattr(importlib.import_module(f"adapterhub.weights.merge.methods.{name}"), "LINEAR", False)
]


KINDS = {"r": 4, "target_modules": ALL_KINDS}
VARIANTS: dict[str, tuple[Base, Mapping[str, object]]] = {
    "layers of every kind": (AllKinds, KINDS),
    "rsLoRA, rank_pattern, alpha_pattern": (
        AllKinds,
        {
            **KINDS, "use_rslora": True, "rank_pattern": {"conv.": 2, "inner.linear": 3, "^embed": 6},
            "alpha_pattern": {"^linear": 3, "point": 9, "conv3": 1},
        },
    ),
    "fan_in_fan_out": (gpt2, {"r": 4, "target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True}),
    "experts": (
        mixtral, {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "gate.weight"]}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Two adapters of each variant."""
    return {
        name: save_several(tmp_path_factory.mktemp("variant"), base, [options] * 2)
        for name, (base, options) in VARIANTS.items()
    }


@pytest.mark.parametrize("method", names())
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_any_method_makes_of_any_variant_loads_in_peft_as_it_is_stored(
    variant: str, method: str, adapters: dict[str, list[Path]], tmp_path: Path
) -> None:
    base, folders = VARIANTS[variant][0], adapters[variant]

    result = run(tmp_path / "out", folders, [0.7, 0.4], method=method)

    model = attached(base, tmp_path / "out")
    loaded = effects(model)
    assert apart(loaded, effects_said(model, tmp_path / "out")) < 1e-9
    exact = weighted([effects(attached(base, f)) for f in folders], [0.7, 0.4])
    assert loaded.keys() == exact.keys()
    if method in LINEAR:
        assert apart(loaded, exact) < 1e-6
        assert result.relative_error < 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cut_to_a_rank_loads_in_peft_for_every_kind_of_layer(
    variant: str, adapters: dict[str, list[Path]], tmp_path: Path
) -> None:
    for name, options in {"rank": {"rank": 2}, "error": {"max_error": 0.4}, "energy": {"energy": 0.9}}.items():
        result = run(tmp_path / name, adapters[variant], [0.7, -0.4], **options)

        model = attached(VARIANTS[variant][0], tmp_path / name)
        assert apart(effects(model), effects_said(model, tmp_path / name)) < 1e-9
        assert 0.01 < result.relative_error < 0.7


@pytest.mark.parametrize(("rank", "of_groups"), [(4, 4), (3, 2), (1, 2)])
def test_groups_of_a_convolution_share_the_rank_that_is_asked_for(rank: int, of_groups: int, tmp_path: Path) -> None:
    options = {"r": 4, "target_modules": ["grouped", "conv2"]}
    folders = save_several(tmp_path, AllKinds, [options, {**options, "r": 2}])

    run(tmp_path / "out", folders, [0.7, -0.4], rank=rank)

    ranks = {
        m: layer.r["one"] for m, layer in attached(AllKinds, tmp_path / "out").named_modules() if hasattr(layer, "r")
    }
    assert ranks == {"base_model.model.conv2": rank, "base_model.model.grouped": of_groups}


# ---------------------------------------------------------------- biases inside of factors


@pytest.mark.parametrize("method", LINEAR)
def test_biases_inside_of_factors_add_up(method: str, tmp_path: Path) -> None:
    options = {"target_modules": ["q_proj", "down_proj"], "lora_bias": True}
    adapters = [
        {"r": 2, **options, "alpha_pattern": {"q_proj": 11}},
        {"r": 4, **options, "use_rslora": True},
        {"r": 3, "target_modules": ["q_proj", "v_proj"]},  # none of its own, and a module that the others lack
    ]
    folders, weights = save_several(tmp_path, llama_with_biases, adapters), [0.7, -0.3, 1.5]

    result = run(tmp_path / "out", folders, weights, method=method)

    merged = attached(llama_with_biases, tmp_path / "out")
    wanted = weighted([effects(attached(llama_with_biases, f)) for f in folders], weights)
    assert apart(effects(merged), wanted) < 1e-6
    assert result.relative_error < 1e-6
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert config_of(tmp_path / "out")["lora_bias"] is True
    assert sum(name.endswith("lora_B.bias") for name in stored) == sum(
        name.endswith("lora_B.weight") for name in stored
    )
    assert not any(stored[n].any() for n in stored if n.endswith("v_proj.lora_B.bias"))


def test_biases_of_convolutions_add_up(tmp_path: Path) -> None:
    options = {"r": 2, "target_modules": [kind for kind in ALL_KINDS if kind != "embed"]}
    folders = save_several(tmp_path, AllKinds, [{**options, "lora_bias": True}, options])

    run(tmp_path / "out", folders, [0.7, -0.3])

    model = attached(AllKinds, tmp_path / "out")
    wanted = weighted([effects(attached(AllKinds, f)) for f in folders], [0.7, -0.3])
    assert apart(effects(model), wanted) < 1e-6
    assert apart(effects(model), effects_said(model, tmp_path / "out")) < 1e-9


def test_one_adapter_with_a_bias_is_scaled(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", llama_with_biases, {"r": 2, "target_modules": ["q_proj"], "lora_bias": True})

    run(tmp_path / "out", [folder], [-2.0])
    run(tmp_path / "back", [tmp_path / "out"], [-0.5])

    wanted = effects(attached(llama_with_biases, folder))
    assert apart(effects(attached(llama_with_biases, tmp_path / "back")), wanted) < 1e-6


def test_a_bias_however_large_is_no_part_of_the_error_that_is_reported(tmp_path: Path) -> None:
    options = {"r": 2, "target_modules": ["q_proj"], "lora_bias": True}
    folders = save_several(tmp_path, llama_with_biases, [options] * 2)
    before = run(tmp_path / "before", folders, [0.7, 0.3], rank=1).relative_error
    for folder in folders:
        path = folder / "adapter_model.safetensors"
        tensors = {n: t * (100 if n.endswith(".bias") else 1) for n, t in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})

    cut = run(tmp_path / "cut", folders, [0.7, 0.3], rank=1)
    rounded = run(tmp_path / "rounded", folders, [0.7, 0.3], dtype="bfloat16")

    assert cut.relative_error == before > 0.1
    assert 1e-4 < rounded.relative_error < 1e-2


@pytest.mark.parametrize("method", [name for name in names() if name not in LINEAR])
def test_a_method_that_is_no_sum_refuses_biases_by_name(method: str, tmp_path: Path) -> None:
    options = {"r": 2, "target_modules": ["q_proj"]}
    folders = save_several(tmp_path, llama_with_biases, [{**options, "lora_bias": True}, options])

    with pytest.raises(MergeRefused) as refused:
        run(tmp_path / "out", folders, [0.7, 0.3], method=method)

    assert refused.value.reasons == (
        f"`adapter0` has a bias inside its factors (lora_bias), and `{method}` has no rule for biases",
    )
    assert "--method cat" in refused.value.hint


@pytest.mark.parametrize(
    ("base", "other", "said"),
    [
        (llama_with_biases, {"target_modules": ["embed_tokens"]}, "`model.embed_tokens` is an embedding"),
        (
            llama_with_biases,
            {"target_modules": [], "target_parameters": ["v_proj.weight"]},
            "`model.layers.1.self_attn.v_proj` is a parameter",
        ),
    ],
)
def test_biases_beside_what_peft_gives_none_are_refused(
    base: Base, other: dict[str, object], said: str, tmp_path: Path
) -> None:
    first = save(tmp_path / "a", base, {"r": 2, "target_modules": ["q_proj"], "lora_bias": True})
    second = save(tmp_path / "b", base, {"r": 2, **other}, save_embedding_layers=False)

    with pytest.raises(MergeRefused, match=said):
        run(tmp_path / "out", [first, second], [0.7, 0.3])


# ---------------------------------------------------------------- what all adapters of a merge may share


def test_adapters_switched_on_by_the_same_tokens_add_up(tmp_path: Path) -> None:
    tokens = {"alora_invocation_tokens": [3, 4], "task_type": "CAUSAL_LM"}
    adapters = [
        {"r": 2, "target_modules": ["q_proj"], **tokens},
        {"r": 3, "target_modules": ["q_proj", "v_proj"], **tokens},
    ]
    folders = save_several(tmp_path, llama, adapters)

    run(tmp_path / "out", folders, [0.7, -0.3])

    def updates(folder: Path) -> dict[str, Tensor]:
        layers = attached(llama, folder).base_model.model.named_modules()
        return {n: m.get_delta_weight("one").detach() for n, m in layers if isinstance(m, LoraLayer)}

    assert config_of(tmp_path / "out")["alora_invocation_tokens"] == [3, 4]
    assert apart(updates(tmp_path / "out"), weighted([updates(f) for f in folders], [0.7, -0.3])) < 1e-6
    acted = logits(attached(llama, tmp_path / "out")) - logits(fresh(llama).double())
    assert float(acted[0].abs().max()) > 1e-3  # 1 2 3 4 5 6
    assert float(acted[1].abs().max()) == 0  # 7 8 9 10 11 12


def test_adapters_of_the_same_repeated_layers_add_up(tmp_path: Path) -> None:
    repeated = {"layer_replication": [[0, 2], [1, 3]]}
    adapters = [{"r": 2, "target_modules": ["q_proj"], **repeated}, {"r": 3, "target_modules": ["up_proj"], **repeated}]
    folders = save_several(tmp_path, llama, adapters)

    run(tmp_path / "out", folders, [0.7, -0.3])

    merged = attached(llama, tmp_path / "out")
    assert len(effects(merged)) == 8
    assert apart(effects(merged), weighted([effects(attached(llama, f)) for f in folders], [0.7, -0.3])) < 1e-6


@pytest.mark.parametrize(
    ("setting", "other", "said"),
    [
        ({"alora_invocation_tokens": [3, 4]}, {}, "aLoRA"),
        ({"alora_invocation_tokens": [3, 4]}, {"alora_invocation_tokens": [3]}, "aLoRA"),
        ({"layer_replication": [[0, 2], [1, 3]]}, {}, "layer_replication"),
        ({"layer_replication": [[0, 2], [1, 3]]}, {"layer_replication": [[0, 3], [2, 3]]}, "layer_replication"),
    ],
)
def test_what_they_do_not_share_is_refused_by_name(
    setting: dict[str, object], other: dict[str, object], said: str, tmp_path: Path
) -> None:
    folders = [write_folder(tmp_path / n, {"q": (8, 8)}, **c) for n, c in {"a": setting, "b": other}.items()]

    with pytest.raises(MergeRefused) as refused:
        run(tmp_path / "out", folders, [0.7, 0.3])

    (reason,) = refused.value.reasons
    assert said in reason
    assert "`a`" in reason


# ---------------------------------------------------------------- initialisations


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "eva", "mica", True, False])
def test_an_init_that_leaves_the_base_alone_is_merged(init: object, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", {"q": (8, 8)}, init_lora_weights=init)

    assert run(tmp_path / "out", [folder], [0.5]).relative_error < 1e-7


def test_settings_of_the_training_alone_are_merged(tmp_path: Path) -> None:
    options = {"r": 2, "target_modules": ["q_proj"]}
    folders = save_several(tmp_path, llama, [{**options, "velora_config": VeloraConfig()}, options])

    run(tmp_path / "out", folders, [0.7, 0.3])

    wanted = weighted([effects(attached(llama, f)) for f in folders], [0.7, 0.3])
    assert apart(effects(attached(llama, tmp_path / "out")), wanted) < 1e-6


@pytest.mark.parametrize(
    "init", ["pissa", "pissa_niter_4", "PiSSA_niter_16", "olora", "OLoRA", "corda", "lora_ga", "loftq"]
)
def test_an_init_that_changed_the_base_is_refused_with_the_way_to_convert(init: str, tmp_path: Path) -> None:
    folders = [write_folder(tmp_path / n, {"q": (8, 8)}, seed=i, **c) for i, (n, c) in enumerate({"a": {"init_lora_weights": init}, "b": {}}.items())]  # fmt: skip

    for method in names():
        with pytest.raises(MergeRefused) as refused:
            run(tmp_path / "out", folders, [0.7, 0.3], method=method)

        (reason,) = refused.value.reasons
        assert reason.startswith(f"`a` changed the base weights when it was initialised (init_lora_weights {init})")
        assert ("path_initial_model_for_weight_conversion" in refused.value.hint) == (init != "loftq")


def test_an_init_that_is_not_known_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", {"q": (8, 8)}, init_lora_weights="milora")

    with pytest.raises(MergeRefused, match="milora"):
        run(tmp_path / "out", [folder], [0.5])


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_the_hint_says_makes_a_plain_adapter_of_it(init: str, tmp_path: Path) -> None:
    model = get_peft_model(fresh(llama), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=init))
    model.peft_config["default"].init_lora_weights = True  # as PEFT's guide does it
    model.save_pretrained(tmp_path / "initial")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1)  # as if trained
    model.peft_config["default"].init_lora_weights = init
    trained = logits(model)
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))

    run(tmp_path / "out", [tmp_path / "plain"], [0.5])
    run(tmp_path / "twice", [tmp_path / "out"], [2.0])

    assert not torch.allclose(trained, logits(fresh(llama)), atol=1e-4)
    assert torch.allclose(logits(attached(llama, tmp_path / "twice")), trained, atol=1e-5)


# ---------------------------------------------------------------- numbers that no method may pass on

SHAPES = {f"layers.{i}.{m}": s for i in range(2) for m, s in {"q": (8, 6), "embed": (9, 5), "conv": (5, 3, 2)}.items()}


@pytest.mark.parametrize("method", names())
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_every_method_refuses_numbers_that_are_not_finite_with_every_module(
    bad: float, method: str, tmp_path: Path
) -> None:
    folders = [write_folder(tmp_path / n, SHAPES, seed=i) for i, n in enumerate("ab")]
    path = folders[1] / "adapter_model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if "layers.1" in name and "_B" in name:
            tensor.view(-1)[3] = bad
    save_file(tensors, path, metadata={"format": "pt"})

    with pytest.raises(MergeRefused) as refused:
        run(tmp_path / "out", folders, [0.7, 0.3], method=method)

    assert sorted(refused.value.reasons) == [
        f"`layers.1.{m}` in `b` holds NaN or infinite numbers" for m in ("conv", "embed", "q")
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("method", names())
def test_every_method_refuses_what_overflows_with_every_module(method: str, tmp_path: Path) -> None:
    folders = [write_folder(tmp_path / n, SHAPES, seed=i, lora_alpha=1e12) for i, n in enumerate("ab")]

    with pytest.raises(MergeRefused) as refused:
        run(tmp_path / "out", folders, [0.7, 0.3], method=method, dtype="float16")

    assert sorted(refused.value.reasons) == [f"`{m}`: the result is not finite in F16" for m in sorted(SHAPES)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("method", names())
@pytest.mark.parametrize("alpha", [1e30, 1e-30])
def test_every_method_keeps_numbers_of_any_size_or_refuses_them_by_name(
    alpha: float, method: str, tmp_path: Path
) -> None:
    folders = [write_folder(tmp_path / n, SHAPES, seed=i, lora_alpha=alpha) for i, n in enumerate("ab")]

    try:
        result = run(tmp_path / "out", folders, [1e6, 0.3e6], method=method)
    except MergeRefused as refused:
        reasons = refused.reasons
    else:
        assert all(t.isfinite().all() for t in load_file(tmp_path / "out" / "adapter_model.safetensors").values())
        assert result.relative_error < 10
        return

    assert alpha > 1
    assert all(any(m in r for r in reasons) for m in SHAPES)


def test_a_base_whose_head_is_its_embedding_takes_a_merge_on_both(tmp_path: Path) -> None:
    """Adding adapters up leaves the tie alone: both have their own factors, and nothing is written into the base."""

    def tied() -> nn.Module:
        return llama(2, tie_word_embeddings=True)

    folders = save_several(tmp_path, tied, [{"r": 2, "target_modules": ["lm_head", "embed_tokens"]}, {"r": 3, "target_modules": ["lm_head"]}], save_embedding_layers=False)  # fmt: skip

    run(tmp_path / "out", folders, [0.7, -0.3])

    wanted = weighted([effects(attached(tied, f)) for f in folders], [0.7, -0.3])
    assert apart(effects(attached(tied, tmp_path / "out")), wanted) < 1e-6
