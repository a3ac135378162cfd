"""Exported GGUF files in llama.cpp itself: its logits are PEFT's, and what the rules refuse is what it cannot do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from adapterhub.core.errors import UnsupportedAdapter
from adapterhub.formats.engines import judge
from adapterhub.formats.engines.llama_cpp import BASES
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.safetensors.file import read_header
from adapterhub.inference.engine_bases import base_facts
from adapterhub.inference.export import export
from adapterhub.library.library import Library
from adapterhub.weights.merge import MergeInput, merge
from tests.support.adapter_folders import updates_in, write_folder
from tests.support.llama_cpp import Engine, smollm2_gguf, write_base
from tests.support.real_base import smollm2_base
from tests.support.tiny_models import VOCABULARY, gpt2, llama, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

SHIPPED = Path(__file__).resolve().parent.parent.parent / "adapterhub" / "cli" / "start" / "demo_run" / "adapters"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPT = [1, 3, 25, 11, 7, 50, 2, 9, 33, 18, 60, 5]
REAL_PROMPT = [1, 4093, 198, 504, 3575, 282, 4649, 314, 2, 198, 1, 520, 9531, 198]


def peft_logits(base: nn.Module, folder: Path, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return PeftModel.from_pretrained(base, folder).eval()(torch.tensor([ids])).logits[0].float()


# ---------------------------------------------------------------- a real base, real adapters
def real_adapters(tmp_path: Path) -> dict[str, Path]:
    def base() -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(smollm2_base(), dtype=torch.float32)

    common: dict[str, Any] = {"r": 8, "lora_alpha": 2, "target_modules": LINEAR, "task_type": "CAUSAL_LM"}
    patterns = {
        "rank_pattern": {"k_proj": 2, "down_proj": 12},
        "alpha_pattern": {"q_proj": 5, r"layers\.1\d\.mlp\.up_proj": 1},
    }
    both = [MergeInput(folder=SHIPPED / n, label=n, weight=w) for n, w in (("json", 0.7), ("pirate", -0.4))]
    merge(both, tmp_path / "cat", method="cat")
    return {
        "plain": SHIPPED / "pirate",
        "rslora": save_adapter(tmp_path / "rslora", base, LoraConfig(use_rslora=True, **common), seed=3, lora_alpha=0.05),
        "patterns": save_adapter(tmp_path / "patterns", base, LoraConfig(**common | patterns), seed=4, lora_alpha=0.1,
                                 alpha_pattern={"q_proj": 0.2, r"layers\.1\d\.mlp\.up_proj": 0.04}),
        "cat": tmp_path / "cat",
    }  # fmt: skip


@pytest.mark.exhaustive
def test_four_adapters_on_smollm2_have_pefts_logits(tmp_path: Path, library: Library) -> None:
    library.bases.add(smollm2_base(), "smollm2")
    engine = Engine(smollm2_gguf())
    model = AutoModelForCausalLM.from_pretrained(smollm2_base(), dtype=torch.float32).eval()
    with torch.no_grad():
        plain = model(torch.tensor([REAL_PROMPT])).logits[0]
    torch.testing.assert_close(engine.ask(REAL_PROMPT), plain, rtol=0, atol=5e-4)

    adapters = real_adapters(tmp_path)
    for name, folder in adapters.items():
        out = tmp_path / f"{name}.gguf"
        export(folder, out, form="gguf", library=library, base="smollm2")
        expected = peft_logits(
            AutoModelForCausalLM.from_pretrained(smollm2_base(), dtype=torch.float32), folder, REAL_PROMPT
        )
        found = engine.ask(REAL_PROMPT, {out: 1.0})

        # of logits of about 20; the base alone differs nearly as much, by the order in which sums are added up
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-4)
        assert float((expected - plain).abs().max()) > 1, f"{name} does nothing"
        assert torch.equal(found.argmax(-1), expected.argmax(-1))

    # several at once are the exact sum, as `merge` with cat has it
    pair = {tmp_path / "json.gguf": 0.7, tmp_path / "plain.gguf": -0.4}
    export(SHIPPED / "json", tmp_path / "json.gguf", form="gguf", library=library, base="smollm2")
    torch.testing.assert_close(
        engine.ask(REAL_PROMPT, pair), engine.ask(REAL_PROMPT, {tmp_path / "cat.gguf": 1.0}), rtol=1e-4, atol=3e-3
    )
    assert torch.equal(engine.ask(REAL_PROMPT), engine.ask(REAL_PROMPT, {tmp_path / "plain.gguf": 0.0}))
    engine.close()


# ---------------------------------------------------------------- families, small
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip


def small(family: str, **values: Any) -> Callable[[], nn.Module]:
    """A model of transformers' class for that family, such as `Qwen2`."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**SMALL | values)
        return getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config).eval()

    return make


GEMMA: dict[str, Any] = {
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 64,
    "attn_implementation": "eager",
}
GRANITE: dict[str, Any] = {
    "attention_multiplier": 0.35, "embedding_multiplier": 2.0, "residual_multiplier": 0.8, "logits_scaling": 1.5,
}  # fmt: skip
MIXTURE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
FAMILIES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "arcee": (small("Arcee"), [*LINEAR[:4], "up_proj", "down_proj"]),
    "ernie4_5": (small("Ernie4_5", head_dim=8, tie_word_embeddings=False), LINEAR),
    "exaone4": (small("Exaone4", head_dim=8, sliding_window=None, layer_types=["full_attention"] * 2), LINEAR),
    "gemma": (small("Gemma", head_dim=8, tie_word_embeddings=True), LINEAR),
    "gemma2": (small("Gemma2", **GEMMA), LINEAR),
    "gemma3_text": (small("Gemma3Text", **GEMMA), LINEAR),
    "glm4": (small("Glm4", head_dim=8), [*LINEAR[:4], "gate_up_proj", "down_proj"]),
    "gpt2": (gpt2, ["c_attn", "c_fc", "c_proj"]),
    "granite": (small("Granite", **GRANITE), LINEAR),
    "hunyuan_v1_dense": (small("HunYuanDenseV1", head_dim=8), LINEAR),
    "llama": (llama, LINEAR),
    "mistral": (small("Mistral", head_dim=16), LINEAR),
    "mixtral": (small("Mixtral", num_local_experts=4), LINEAR[:4]),
    "nemotron": (small("Nemotron"), [*LINEAR[:4], "up_proj", "down_proj"]),
    "olmo": (small("Olmo"), LINEAR),
    "olmo2": (small("Olmo2"), LINEAR),
    "phi3": (small("Phi3"), ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
    "qwen2": (small("Qwen2"), LINEAR),
    "qwen2_moe": (small("Qwen2Moe", shared_expert_intermediate_size=40, **MIXTURE), [*LINEAR, "shared_expert_gate"]),
    "qwen3": (small("Qwen3", head_dim=8), LINEAR),
    "qwen3_moe": (small("Qwen3Moe", head_dim=8, norm_topk_prob=True, **MIXTURE), LINEAR[:4]),
    "seed_oss": (small("SeedOss", head_dim=8), LINEAR),
    "smollm3": (small("SmolLM3", no_rope_layers=[1, 1]), LINEAR),
    "stablelm": (small("StableLm"), LINEAR),
    "starcoder2": (small("Starcoder2", use_bias=True), [*LINEAR[:4], "c_fc", "c_proj"]),
}


def test_every_base_that_is_known_is_tried() -> None:
    assert set(BASES) == set(FAMILIES)


CLOSE = dict.fromkeys(("gemma", "gemma2", "gemma3_text", "starcoder2"), 2e-3)
"""llama.cpp looks their GELU up in a table of float16."""


def compare(tmp_path: Path, library: Library, make: Callable[[], nn.Module], folder: Path, close: float = 2e-4) -> None:
    """The logits of the exported file are PEFT's, and it does something."""
    make().save_pretrained(tmp_path / "base")
    library.bases.add(tmp_path / "base", "tiny")

    export(folder, tmp_path / "a.gguf", form="gguf", library=library, base="tiny")

    engine = Engine(write_base(make(), tmp_path / "base.gguf"), context=32)
    found, alone = engine.ask(PROMPT, {tmp_path / "a.gguf": 1.0}), engine.ask(PROMPT)
    engine.close()
    expected = peft_logits(make(), folder, PROMPT)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=close)
    assert float((expected - alone).abs().max()) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_pefts_logits(family: str, tmp_path: Path, library: Library) -> None:
    make, targets = FAMILIES[family]
    options = {"fan_in_fan_out": True} if family == "gpt2" else {}
    config = LoraConfig(
        r=4,
        lora_alpha=3,
        target_modules=targets,
        use_rslora=True,
        rank_pattern={targets[0]: 3},
        task_type="CAUSAL_LM",
        **options,
    )

    compare(tmp_path, library, make, save_adapter(tmp_path / "adapter", make, config), CLOSE.get(family, 2e-4))


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize("parameters", [EXPERTS, EXPERTS[:1], EXPERTS[1:]], ids=str)
@pytest.mark.parametrize("family", [kind for kind, base in BASES.items() if base.experts])
def test_experts_have_pefts_logits(family: str, parameters: list[str], tmp_path: Path, library: Library) -> None:
    make, targets = FAMILIES[family]
    config = LoraConfig(
        r=4, lora_alpha=3, target_modules=targets, target_parameters=parameters, use_rslora=True, task_type="CAUSAL_LM"
    )

    compare(tmp_path, library, make, save_adapter(tmp_path / "adapter", make, config))


def single_experts(family: str) -> dict[str, tuple[int, int]]:
    """The layers of every expert as the base's files have them, by name, with their shapes."""
    place, inner, names = (
        ("block_sparse_moe", 48, ("w1", "w3", "w2"))
        if family == "mixtral"
        else ("mlp", 24, ("gate_proj", "up_proj", "down_proj"))
    )
    return {
        f"model.layers.{layer}.{place}.experts.{expert}.{name}": (32, inner) if name == names[-1] else (inner, 32)
        for layer in range(2)
        for expert in range(4)
        for name in names
    }


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_pairs_of_single_experts_have_pefts_logits(family: str, tmp_path: Path, library: Library) -> None:
    """Without rsLoRA: PEFT 0.21 joins gate and up to one pair of twice the rank, which makes that scale another."""
    folder = write_folder(tmp_path / "adapter", single_experts(family))

    compare(tmp_path, library, FAMILIES[family][0], folder)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_of_several_ranks_one_without_a_pair_and_the_router(
    family: str, tmp_path: Path, library: Library
) -> None:
    """PEFT cannot load these here, so the updates are added to the model by hand."""
    shapes = {name: shape for name, shape in single_experts(family).items() if ".experts.2." not in name}
    shapes |= {name.partition(".experts.")[0] + ".gate": (4, 32) for name in shapes}
    ranks = {name: 1 + at % 5 for at, name in enumerate(shapes)}
    folder = write_folder(
        tmp_path / "adapter", shapes, ranks=ranks, alpha_pattern={r".*experts\.1\..*": 3}, use_rslora=True
    )
    make = FAMILIES[family][0]
    make().save_pretrained(tmp_path / "base")
    library.bases.add(tmp_path / "base", "tiny")

    export(folder, tmp_path / "a.gguf", form="gguf", library=library, base="tiny")

    engine = Engine(write_base(make(), tmp_path / "base.gguf"), context=32)
    found = engine.ask(PROMPT, {tmp_path / "a.gguf": 1.0})
    engine.close()
    model: Any = make()
    with torch.no_grad():
        for name, update in updates_in(folder).items():
            _, _, layer, _, kind, *which = name.split(".")
            experts = model.model.layers[int(layer)].mlp.experts
            if kind == "gate":
                model.model.layers[int(layer)].mlp.gate.weight += update
                continue
            expert, leaf = which
            inner = experts.down_proj.shape[2]
            if leaf in ("w2", "down_proj"):
                experts.down_proj[int(expert)] += update
            else:
                first = 0 if leaf in ("w1", "gate_proj") else inner
                experts.gate_up_proj[int(expert), first : first + inner] += update
        expected = model(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)


# ---------------------------------------------------------------- verdicts against the engine
def untied() -> nn.Module:
    return llama(tie_word_embeddings=False)


def tied() -> nn.Module:
    return llama(tie_word_embeddings=True)


def untied_gpt2() -> nn.Module:
    model = gpt2()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() * 0.9)
    model.config.tie_word_embeddings = False
    return model


VARIANTS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], bool]] = {
    "plain": (untied, {}, True),
    "rslora": (untied, {"use_rslora": True}, True),
    "rank_pattern": (untied, {"rank_pattern": {"q_proj": 2}}, True),
    "alpha_pattern": (untied, {"alpha_pattern": {"q_proj": 2}}, True),
    "some layers": (untied, {"layers_to_transform": [1]}, True),
    "rank over the width": (untied, {"r": 40}, True),
    "embedding": (untied, {"target_modules": ["embed_tokens", "q_proj"]}, True),
    "head": (untied, {"target_modules": ["lm_head", "q_proj"]}, True),
    "embedding, tied": (tied, {"target_modules": ["embed_tokens", "q_proj"]}, False),
    "head, tied": (tied, {"target_modules": ["lm_head", "q_proj"]}, False),
    "dora": (untied, {"use_dora": True}, False),
    "lora_bias": (untied, {"lora_bias": True}, False),
    "modules_to_save": (untied, {"modules_to_save": ["lm_head"]}, False),
    "bias": (small("Qwen2"), {"bias": "all"}, False),
    "trainable tokens": (untied, {"trainable_token_indices": [1, 2]}, False),
    "pissa": (untied, {"init_lora_weights": "pissa"}, False),
    "positions": (untied_gpt2, {"target_modules": ["wpe", "c_attn"], "fan_in_fan_out": True}, False),
    "tokens of another name": (untied_gpt2, {"target_modules": ["wte", "c_attn"], "fan_in_fan_out": True}, True),
    "head, never apart": (
        small("Gemma", head_dim=8, tie_word_embeddings=False),
        {"target_modules": ["lm_head"]},
        False,
    ),
}
"""The base, the settings, and whether GGUF can carry it."""


@pytest.mark.parametrize("variant", VARIANTS)
def test_verdicts_are_those_of_the_engine(variant: str, tmp_path: Path, library: Library) -> None:
    make, options, is_carried = VARIANTS[variant]
    values: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    folder = save_adapter(tmp_path / "adapter", make, LoraConfig(**values | options))
    make().save_pretrained(tmp_path / "base")
    record = library.bases.add(tmp_path / "base", "tiny")
    config = AdapterConfig.parse((folder / "adapter_config.json").read_bytes(), "adapter")

    verdict = judge("llama.cpp", config, read_header(folder / "adapter_model.safetensors"), base=base_facts(record))

    assert is_carried == verdict.ok, verdict.reasons
    if not is_carried:
        with pytest.raises(UnsupportedAdapter):
            export(folder, tmp_path / "a.gguf", form="gguf", library=library, base="tiny")
        return
    export(folder, tmp_path / "a.gguf", form="gguf", library=library, base="tiny")
    engine = Engine(write_base(make(), tmp_path / "base.gguf"), context=32)
    torch.testing.assert_close(
        engine.ask(PROMPT, {tmp_path / "a.gguf": 1.0}), peft_logits(make(), folder, PROMPT), rtol=1e-4, atol=2e-4
    )
    engine.close()


def test_the_engine_has_no_place_for_the_head_of_a_tied_base(tmp_path: Path, library: Library) -> None:
    config = LoraConfig(r=4, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM")
    folder = save_adapter(tmp_path / "adapter", untied, config)
    untied().save_pretrained(tmp_path / "base")
    library.bases.add(tmp_path / "base", "tiny")
    export(folder, tmp_path / "a.gguf", form="gguf", library=library, base="tiny")

    engine = Engine(write_base(tied(), tmp_path / "tied.gguf"), context=32)

    with pytest.raises(ValueError, match=r"llama\.cpp refuses"):
        engine.load(tmp_path / "a.gguf")
    engine.close()


# ---------------------------------------------------------------- aLoRA
def test_an_alora_acts_from_the_tokens_that_the_engine_reads(tmp_path: Path, library: Library) -> None:
    invocation = PROMPT[4:7]
    config = LoraConfig(r=4, target_modules=LINEAR, task_type="CAUSAL_LM", alora_invocation_tokens=invocation)
    folder = save_adapter(tmp_path / "alora", untied, config)
    model = untied()
    model.save_pretrained(tmp_path / "base")
    library.bases.add(tmp_path / "base", "tiny")
    out = tmp_path / "alora.gguf"

    written = export(folder, out, form="gguf", library=library, base="tiny")

    assert any("llama-server switches it on" in note for note in written.notes)
    engine = Engine(write_base(model, tmp_path / "base.gguf"), context=32)
    engine.load(out)
    assert engine.invocation(out) == invocation
    with torch.no_grad():
        truth = PeftModel.from_pretrained(untied(), folder).eval()(input_ids=torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(engine.ask(PROMPT, {out: 1.0}, begin=4), truth, rtol=0, atol=5e-4)
    assert not torch.allclose(engine.ask(PROMPT, {out: 1.0}), truth, atol=5e-3)
    engine.close()
