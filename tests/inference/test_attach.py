"""Attach against plain PEFT and against dense sums, and the promise that the base stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftModel, VeraConfig
from torch import nn
from transformers import BertConfig, BertForMaskedLM, PhiConfig, PhiForCausalLM

from adapterhub.core.errors import MergeRefused, UsageProblem
from adapterhub.inference.loader import Attached, attach, base_digest
from adapterhub.library.library import Library
from adapterhub.weights.merge import MergeInput, merge
from tests.support.adapter_folders import updates_in
from tests.support.peft_bases import fresh, gpt_oss, mixtral, qwen3_moe, save
from tests.support.tiny_models import IDS, VOCABULARY, bert, convnet, gpt2, llama, logits, plain_peft, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT and transformers warn of much that is meant here

ATTENTION = ["q_proj", "v_proj"]
TARGETS = [*ATTENTION, "down_proj"]
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS} | settings)


def on(parameters: list[str], **settings: Any) -> LoraConfig:
    """An adapter on bare parameters."""
    return lora(**{"r": 2, "lora_alpha": 3, "target_modules": [], "target_parameters": parameters} | settings)


def experts() -> nn.Module:
    return fresh(mixtral)


SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip


def phi() -> nn.Module:
    return fresh(lambda: PhiForCausalLM(PhiConfig(**SMALL, bos_token_id=1, eos_token_id=None)))


def masked_bert() -> nn.Module:
    return fresh(lambda: BertForMaskedLM(BertConfig(**SMALL)))


def biased_llama() -> nn.Module:
    return llama(attention_bias=True, mlp_bias=True)


VARIANTS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "plain": (llama, lora),
    "rslora": (llama, lambda: lora(use_rslora=True)),
    "patterns": (
        llama,
        lambda: lora(
            rank_pattern={"q_proj": 8, r"layers\.1\.self_attn\.v_proj": 2},
            alpha_pattern={"down_proj": 3, "^model.layers.0.mlp.down_proj": 5},
        ),
    ),
    "regex targets": (llama, lambda: lora(target_modules=r".*layers\.1\..*(q|o)_proj")),
    "one layer": (llama, lambda: lora(layers_to_transform=[1])),
    "all-linear": (llama, lambda: lora(target_modules="all-linear")),
    "embedding": (llama, lambda: lora(target_modules=["embed_tokens", "q_proj"])),
    "head": (llama, lambda: lora(target_modules=["lm_head", "q_proj"])),
    "dora": (llama, lambda: lora(use_dora=True)),
    "lora_bias": (llama, lambda: lora(lora_bias=True)),
    "modules_to_save": (llama, lambda: lora(modules_to_save=["lm_head", "norm"])),
    "gpt2": (gpt2, lambda: lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "gpt2 dora": (gpt2, lambda: lora(target_modules=["c_attn"], use_dora=True, fan_in_fan_out=True)),
    "gpt2 embedding dora": (gpt2, lambda: lora(target_modules=["wte", "c_fc"], use_dora=True, fan_in_fan_out=True)),
    "bert with a head": (bert, lambda: lora(target_modules=["query", "value"], task_type="SEQ_CLS")),
    "convolution": (convnet, lambda: lora(target_modules=["wide", "narrow"], modules_to_save=["head"])),
    "convolution dora": (convnet, lambda: lora(target_modules=["wide", "head"], use_dora=True)),
    "bias all": (bert, lambda: lora(target_modules=["query"], bias="all", task_type="SEQ_CLS")),
    "bias lora_only": (biased_llama, lambda: lora(bias="lora_only")),
    "rows of the embedding": (llama, lambda: lora(trainable_token_indices=[0, 5])),
    "rows of a tied embedding": (gpt2, lambda: lora(target_modules=["c_attn"], trainable_token_indices={"wte": [3]})),
    "gaussian start": (llama, lambda: lora(init_lora_weights="gaussian")),
    "ia3": (llama, lambda: IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"])),
    "ia3 gpt2": (gpt2, lambda: IA3Config(target_modules=["c_attn", "c_fc"], feedforward_modules=["c_fc"])),
    "ia3 convolution": (convnet, lambda: IA3Config(target_modules=["wide", "head"], feedforward_modules=["head"])),
    "loha": (llama, lambda: LoHaConfig(r=4, target_modules=TARGETS, rank_pattern={"q_proj": 3})),
    "loha convolution": (convnet, lambda: LoHaConfig(r=2, target_modules=["wide"], use_effective_conv2d=True)),
    "lokr": (llama, lambda: LoKrConfig(r=2, alpha=4, target_modules=TARGETS, alpha_pattern={"v_proj": 7})),
    "lokr decomposed": (llama, lambda: LoKrConfig(r=2, target_modules=TARGETS, decompose_both=True, decompose_factor=4)),
    "vera": (llama, lambda: VeraConfig(r=4, target_modules=["q_proj", "down_proj"])),
    "vera from its seed": (
        llama,
        lambda: VeraConfig(r=4, target_modules=["q_proj"], save_projection=False, projection_prng_key=5),
    ),
    "adalora": (llama, lambda: AdaLoraConfig(init_r=6, target_r=4, total_step=10, target_modules=TARGETS)),
    "experts": (experts, lambda: on(BOTH)),
    "experts of qwen3": (lambda: fresh(qwen3_moe), lambda: on(BOTH)),
    "experts that lie the other way round": (lambda: fresh(gpt_oss), lambda: on(BOTH)),
    "one of two parameters": (experts, lambda: on(BOTH[:1])),
    "the other of the two": (lambda: fresh(qwen3_moe), lambda: on(BOTH[1:])),
    "experts beside modules": (experts, lambda: on(BOTH, target_modules=["q_proj", "v_proj"])),
    "experts with ranks and alphas of their own": (
        lambda: fresh(qwen3_moe),
        lambda: on(
            BOTH, rank_pattern={"experts.down_proj": 4}, alpha_pattern={r".*layers\.1\.mlp\.experts\.gate_up_proj": 5}
        ),
    ),
    "experts with rslora": (experts, lambda: on(BOTH, use_rslora=True)),
    "experts of one layer, named in full": (experts, lambda: on(["model.layers.1.mlp.experts.down_proj"])),
    "a layer's own weight": (llama, lambda: on(["q_proj.weight"], target_modules=["v_proj"])),
}  # fmt: skip


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    make_base, config = VARIANTS[request.param]
    return make_base, save_adapter(tmp_path_factory.mktemp("adapter"), make_base, config())


def test_logits_equal_plain_peft(variant: tuple[Any, Path], library: Library) -> None:
    make_base, folder = variant
    expected = logits(plain_peft(make_base, folder))

    attached = attach(make_base(), folder, library=library)

    assert torch.allclose(expected, logits(attached.model), rtol=0, atol=1e-6)
    assert not torch.allclose(expected, logits(make_base()), atol=1e-3)


def test_base_is_the_same_bit_for_bit_through_attach_use_and_detach(
    variant: tuple[Any, Path], library: Library
) -> None:
    make_base, folder = variant
    model = make_base()
    before, state = base_digest(model), snapshot(model)
    order = [name for name, _ in model.named_parameters()]

    with attach(model, folder, library=library) as attached:
        at_attach = attached.base_digest()
        logits(attached.model)
        if hasattr(model, "generate") and model.can_generate():
            attached.model.generate(IDS[:1], max_new_tokens=2, do_sample=False)
        with attached.base_alone():
            assert torch.equal(logits(make_base()), logits(attached.model))
        after_use = attached.base_digest()

    assert (before, before, before) == (at_attach, after_use, base_digest(model))
    assert state == snapshot(model)
    assert order == [name for name, _ in model.named_parameters()]
    assert torch.equal(logits(make_base()), logits(model))


def snapshot(model: nn.Module) -> list[object]:
    """Everything that PEFT touches: which modules are where, flags, hooks, attributes of the outermost module."""
    modules = [
        (name, id(module), module.training, len(module._forward_hooks)) for name, module in model.named_modules()
    ]
    return [modules, [p.requires_grad for p in model.parameters()], sorted(vars(model))]


# ---------------------------------------------------------------- what attaching leaves alone
def test_random_numbers_flags_and_modes_are_left_alone(tmp_path: Path, library: Library) -> None:
    folder = save_adapter(tmp_path / "a", llama, lora(modules_to_save=["norm"]))
    model = llama().train()
    model.lm_head.eval()
    model.model.embed_tokens.weight.requires_grad_(False)
    state = snapshot(model)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)

    attached = attach(model, folder, library=library)
    drawn = torch.rand(3)
    training = attached.model.base_model.model.model.layers[0].self_attn.q_proj.training
    attached.detach()

    assert torch.equal(expected, drawn)
    assert training is True
    assert state == snapshot(model)


def test_gradient_checkpointing_leaves_no_hook(tmp_path: Path, library: Library) -> None:
    folder = save_adapter(tmp_path / "a", llama, lora())
    model = llama()
    model.gradient_checkpointing_enable()
    state = snapshot(model)

    attach(model, folder, library=library).detach()

    assert state[0] == snapshot(model)[0]


def test_detaching_twice_gives_the_model_and_an_end_to_use(tmp_path: Path, library: Library) -> None:
    model = llama()
    attached = attach(model, save_adapter(tmp_path / "a", llama, lora()), library=library)

    given = attached.detach(), attached.detach()

    assert given == (model, model)
    with pytest.raises(UsageProblem, match="was detached"):
        _ = attached.model
    with pytest.raises(UsageProblem, match="was detached"), attached:
        pytest.fail("a second block would run without the adapter")


def test_what_is_no_model_is_refused(library: Library) -> None:
    with pytest.raises(UsageProblem, match="is not a model in memory"):
        attach("gpt2", "legal-qa", library=library)  # type: ignore[arg-type]


def test_a_model_with_an_adapter_is_refused(tmp_path: Path, library: Library) -> None:
    folder = save_adapter(tmp_path / "a", llama, lora())
    model = llama()
    attached = attach(model, folder, library=library)
    expected = logits(attached.model)

    for taken in (model, attached.model, plain_peft(llama, folder)):
        with pytest.raises(UsageProblem, match="has an adapter already"):
            attach(taken, folder, library=library)

    assert torch.equal(expected, logits(attached.model))


def test_adapter_can_be_attached_again_after_detach(tmp_path: Path, library: Library) -> None:
    first = save_adapter(tmp_path / "a", llama, lora())
    second = save_adapter(tmp_path / "b", llama, lora(r=2, modules_to_save=["norm"]), seed=2)
    model = llama()

    for folder in (first, second, first):
        with attach(model, folder, library=library) as attached:
            assert torch.allclose(logits(plain_peft(llama, folder)), logits(attached.model), atol=1e-6)


def test_attached_model_is_a_peft_model_whose_adapter_can_be_switched_off(tmp_path: Path, library: Library) -> None:
    attached = attach(llama(), save_adapter(tmp_path / "a.b lora_", llama, lora()), library=library)

    assert isinstance(attached.model, PeftModel)
    with attached.model.disable_adapter():
        assert torch.equal(logits(llama()), logits(attached.model))


def test_bfloat16_base_gives_what_plain_peft_gives(tmp_path: Path, library: Library) -> None:
    def narrow() -> nn.Module:
        return llama().to(torch.bfloat16)

    folder = save_adapter(tmp_path / "a", llama, lora(modules_to_save=["norm"]))

    attached = attach(narrow(), folder, library=library)

    assert torch.equal(logits(plain_peft(narrow, folder)), logits(attached.model))


def test_adalora_with_ranks_that_training_pruned_equals_plain_peft(tmp_path: Path, library: Library) -> None:
    kept = [True, False, True, False, False, True]
    pruned = {"model.layers.1.self_attn.q_proj.lora_E": kept}  # PEFT divides by the first rank, 6, in spite of it
    config = AdaLoraConfig(init_r=6, target_r=4, total_step=10, target_modules=ATTENTION, rank_pattern=pruned)
    folder = save_adapter(tmp_path / "a", llama, config)

    attached = attach(llama(), folder, library=library)

    layer = attached.model.get_submodule("base_model.model.model.layers.1.self_attn.q_proj")
    assert layer.lora_E[layer.active_adapters[0]].shape == (3, 1)
    assert torch.allclose(logits(plain_peft(llama, folder)), logits(attached.model), rtol=0, atol=1e-6)


# ---------------------------------------------------------------- several at once
def in_float64(folders: dict[Path, float]) -> torch.Tensor:
    """Logits of the base with the dense sum of all updates in its weights, in float64."""
    model = llama().double()
    for folder, weight in folders.items():
        for name, update in updates_in(folder).items():
            module = model.get_submodule(name)
            with torch.no_grad():
                module.weight += weight * (update.T if isinstance(module, nn.Embedding) else update)
    return logits(model)


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Adapters of different ranks, scales and targets."""
    return [
        save_adapter(tmp_path / "a", llama, lora(), seed=1),
        save_adapter(
            tmp_path / "b", llama, lora(r=6, use_rslora=True, target_modules=["q_proj", "embed_tokens"]), seed=2
        ),
        save_adapter(tmp_path / "c", llama, lora(rank_pattern={"v_proj": 2}, alpha_pattern={"q_proj": 1}), seed=3),
    ]


@pytest.mark.parametrize("weights", [(0.7, 0.3, 1.0), (1.0, -1.0, 0.5), (0.0, 2.0, -0.25)])
def test_weighted_adapters_are_the_dense_float64_sum(
    three: list[Path], weights: tuple[float, ...], library: Library
) -> None:
    mixture = dict(zip(three, weights, strict=True))

    attached = attach(llama().double(), mixture, library=library)

    # Both in float64; only the order of the sums differs.
    assert torch.allclose(in_float64(mixture), logits(attached.model), rtol=0, atol=1e-12)


def test_a_list_adds_up_with_weight_one_and_facts_say_so(three: list[Path], library: Library) -> None:
    attached = attach(llama().double(), three, library=library)

    assert torch.allclose(in_float64(dict.fromkeys(three, 1.0)), logits(attached.model), rtol=0, atol=1e-12)
    weights = [adapter.weight for adapter in attached.adapters]
    assert weights == [1.0, 1.0, 1.0]
    scales = [[(group.rank, group.alpha, group.modules) for group in a.scales] for a in attached.adapters]
    assert scales == [[(4, 8, 6)], [(6, 8, 3)], [(2, 8, 2), (4, 1, 2), (4, 8, 2)]]


def test_mixture_is_what_the_merge_of_the_same_weights_is(three: list[Path], tmp_path: Path, library: Library) -> None:
    parts = {three[0]: 0.7, three[2]: -1.3}
    merge([MergeInput(folder=f, label=f.name, weight=w) for f, w in parts.items()], tmp_path / "merged")

    mixed = attach(llama(), parts, library=library)
    merged = attach(llama(), tmp_path / "merged", library=library)

    # Both in float32: two small sums on one side, one of the summed rank on the other.
    assert torch.allclose(logits(merged.model), logits(mixed.model), rtol=0, atol=1e-5)


def test_one_replaced_module_goes_into_a_mixture_in_either_order(tmp_path: Path, library: Library) -> None:
    plain = save_adapter(tmp_path / "a", llama, lora(), seed=1)
    headed = save_adapter(tmp_path / "b", llama, lora(modules_to_save=["lm_head"]), seed=2)

    one = attach(llama().double(), {plain: 0.5, headed: 0.5}, library=library)
    other = attach(llama().double(), {headed: 0.5, plain: 0.5}, library=library)

    assert torch.allclose(logits(one.model), logits(other.model), rtol=0, atol=1e-12)
    assert not torch.allclose(logits(one.model), in_float64({plain: 0.5, headed: 0.5}), atol=1e-3)
    assert any("weight does not apply" in warning for warning in one.warnings)


def test_module_that_two_adapters_replace_by_the_same_numbers_is_no_clash(tmp_path: Path, library: Library) -> None:
    one = save_adapter(tmp_path / "a", llama, lora(modules_to_save=["norm"]), seed=1)
    other = save_adapter(tmp_path / "b", llama, lora(modules_to_save=["norm"]), seed=1)

    attached = attach(llama().double(), [one, other], library=library)

    doubled = attach(llama().double(), one, weights=[2.0], library=library)
    assert torch.allclose(logits(doubled.model), logits(attached.model), rtol=0, atol=1e-12)


MIXTURES: dict[str, tuple[list[Any], str]] = {
    "dora": ([lora(), lora(use_dora=True)], "DoRA"),
    "two methods": ([lora(), IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"])], "2 different types"),
    "two heads": ([lora(modules_to_save=["lm_head"]), lora(modules_to_save=["lm_head"])], "`lm_head` is replaced whole"),
    "a head on a head": ([lora(target_modules=["lm_head"]), lora(modules_to_save=["lm_head"])], "is adapted by"),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXTURES)
def test_what_does_not_add_up_is_refused_by_name(name: str, tmp_path: Path, library: Library) -> None:
    configs, reason = MIXTURES[name]
    folders = [save_adapter(tmp_path / str(i), llama, config, seed=i) for i, config in enumerate(configs)]
    model = llama()
    state = snapshot(model)

    with pytest.raises(MergeRefused, match=reason):
        attach(model, folders, library=library)

    assert state == snapshot(model)


@pytest.mark.parametrize("config", [lora(use_dora=True), IA3Config(target_modules=ATTENTION, feedforward_modules=[])])
def test_weight_on_what_cannot_be_scaled_is_refused(config: Any, tmp_path: Path, library: Library) -> None:
    folder = save_adapter(tmp_path / "a", llama, config)

    with pytest.raises(MergeRefused, match="weight 1"):
        attach(llama(), {folder: 0.5}, library=library)


@pytest.mark.parametrize(
    ("adapter", "weights"),
    [([], None), ({}, None), (["./a"], [1.0, 2.0]), ({"./a": 1.0}, [1.0]), ({"./a": float("nan")}, None),
     ({"./a": float("inf")}, None), ({"./a": 1e30}, None), ({"./a": True}, None), ({"./a": "1"}, None)],
)  # fmt: skip
def test_weights_that_make_no_sense_are_a_usage_problem(adapter: Any, weights: Any, library: Library) -> None:
    with pytest.raises(UsageProblem):
        attach(llama(), adapter, weights=weights, library=library)


def test_explanation_names_base_scale_and_warnings(tmp_path: Path, library: Library) -> None:
    attached: Attached = attach(llama(), save_adapter(tmp_path / "a", llama, lora()), library=library)

    text = attached.explain()

    assert "scale 2 (rank 4, alpha 8) in 6 modules" in text
    assert "warning: declares no base fingerprint" in text


@pytest.mark.parametrize("make", [phi, masked_bert], ids=["a bias of its own", "a bias with two names"])
def test_the_trained_bias_of_a_head_is_no_other_weight_of_the_base(make, tmp_path: Path, library: Library) -> None:
    target = "q_proj" if make is phi else "query"
    folder = save(tmp_path / "a", make, {"r": 2, "target_modules": [target], "bias": "all"})
    expected = logits(plain_peft(make, folder))

    with attach(make(), folder, library=library) as attached:
        assert torch.allclose(expected, logits(attached.model), rtol=0, atol=1e-6)
    assert float((expected - logits(make())).abs().max()) > 0.1
