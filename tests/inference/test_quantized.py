"""Adapters on a base that bitsandbytes packs into 4 or 8 bits on loading: real SmolLM2, and small random ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from adapterhub import AdapterBank
from adapterhub.cli.start.demo_run import ADAPTERS
from adapterhub.core.errors import BaseMismatch, UnsupportedAdapter, UsageProblem
from adapterhub.core.specs import parse_name
from adapterhub.formats.base.fingerprint import BaseFingerprint, BaseVerdict
from adapterhub.inference.loader import attach, base_digest
from adapterhub.inference.loader.base import BaseModel
from adapterhub.inference.loader.identity import compare_base, sample_base
from adapterhub.inference.loader.text import answer, load_base
from adapterhub.library.bases.records import BaseRecord, Bases
from adapterhub.library.intake.description import Description
from tests.support.command_line import Adapt
from tests.support.real_base import smollm2_base
from tests.support.run_library import PROMPT, make_library, write_tokenizer
from tests.support.tiny_models import IDS, llama, logits, save_adapter

SHIPPED = Path(__file__).resolve().parent.parent.parent / "adapterhub" / "cli" / "start" / "demo_run" / "adapters"
SENTENCE = "Priya wants 5 lamps for 30 dollars."
pytestmark = pytest.mark.filterwarnings("ignore")

KINDS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4 twice": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


# ---------------------------------------------------------------- small ones
def small(seed: int = 0) -> LlamaForCausalLM:
    """Wide enough for a block of 64 numbers, and for the layout that bitsandbytes rewrites weights into."""
    return llama(seed, hidden_size=64, intermediate_size=128)


def packed(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    config = BitsAndBytesConfig(**KINDS[kind])
    return LlamaForCausalLM.from_pretrained(folder, quantization_config=config, device_map="cpu", dtype=dtype).eval()


def fingerprint_of(model: nn.Module, folder: Path) -> BaseFingerprint:
    model.save_pretrained(folder)
    return Bases(folder / "bases", None).look(folder).fingerprint


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, torch.bfloat16) for kind in KINDS), ("nf4", torch.float32), ("int8", torch.float16)]
)
def test_a_packed_base_is_recognised_by_its_source(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    fingerprint = fingerprint_of(small(), tmp_path)

    comparison = compare_base(fingerprint, sample_base(BaseModel(packed(tmp_path, kind, dtype))))

    assert comparison.verdict is BaseVerdict.SAME_WEIGHTS_QUANTISED
    assert comparison.form == {"nf4 twice": "bnb-nf4", "int8": "bnb-int8"}.get(kind, f"bnb-{kind}")
    assert comparison.differences[0].startswith("14 tensors are quantised in the model in memory; all 224 sampled")


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_base_whose_linear_layers_were_tuned_is_another_one(kind: str, tmp_path: Path) -> None:
    fingerprint = fingerprint_of(small(), tmp_path / "source")
    tuned, generator = small(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "proj" in name:  # embeddings and norms stay: only packed weights can tell
                parameter.add_(0.05 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    tuned.save_pretrained(tmp_path / "tuned")

    comparison = compare_base(fingerprint, sample_base(BaseModel(packed(tmp_path / "tuned", kind))))

    assert comparison.verdict is BaseVerdict.SAME_SHAPES
    assert "proj.weight` (" in comparison.differences[0]


def test_a_weight_that_a_forward_has_rewritten_is_not_compared(tmp_path: Path) -> None:
    fingerprint = fingerprint_of(small(), tmp_path)
    model = packed(tmp_path, "nf4")
    layers = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    for layer in layers:  # as the first forward does on a CPU with AVX512-BF16
        from bitsandbytes.functional import _convert_weight_packed_for_cpu as rewrite

        layer.weight.data, layer.weight.quant_state = rewrite(layer.weight.data, layer.weight.quant_state)

    comparison = compare_base(fingerprint, sample_base(BaseModel(model)))

    assert comparison.verdict is BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION
    assert "14 tensors are quantised here and were not compared" in comparison.differences


@pytest.mark.parametrize("kind", KINDS)
def test_the_digest_holds_through_a_forward_and_sees_every_scale(kind: str, tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    model = packed(tmp_path, kind)
    before = base_digest(model)

    with torch.no_grad():
        model(IDS)
    after = base_digest(model)
    weight = model.model.layers[1].mlp.up_proj
    scales = weight.state.SCB if kind == "int8" else weight.weight.quant_state.absmax
    scales.view(-1)[3] += 1

    assert after == before
    assert base_digest(model) != before


# ---------------------------------------------------------------- adapters on small ones
def written_out(model: nn.Module, folder: Path) -> LlamaForCausalLM:
    """The source model with what the packed weights mean in their place: the reference, in float32."""
    from bitsandbytes.functional import dequantize_4bit

    plain = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name, module in plain.named_modules():
        there = model.get_submodule(name)
        if type(there).__name__ == "Linear4bit":
            module.weight.data = dequantize_4bit(there.weight.data, there.weight.quant_state).float()
        elif type(there).__name__ == "Linear8bitLt":
            module.weight.data = there.weight.data.float() * there.weight.SCB[:, None] / 127
    return plain


def make_adapters(folder: Path) -> list[Path]:
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    return [save_adapter(folder / f"adapter-{seed}", small, config, seed=seed) for seed in (1, 2)]


def answers_with(how: str, model: nn.Module, adapters: list[Path], library: Path) -> list[Tensor]:
    """Logits of the base, of each adapter in turn, and of the base again."""
    found = [logits(model)]
    if how == "attach":
        for adapter in adapters:
            with attach(model, adapter, library=library) as attached:
                found.append(logits(attached.model))
        return [*found, logits(model)]
    with AdapterBank(model, library=library) as bank:
        for adapter in adapters:
            with bank.use(bank.load(adapter)):
                found.append(logits(model))
        bank.assert_frozen()
    return [*found, logits(model)]


def apart(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest distance of logits, relative to how far they spread."""
    return max(float((f - w).abs().max() / w.std()) for f, w in zip(found, wanted, strict=True))


# 8 bits round what goes into a layer, too; a first forward before ours may have turned to kernels in bfloat16
TOLERANCES = {"nf4": 1e-4, "nf4 twice": 1e-4, "fp4": 1e-4, "int8": 0.15}
IN_BFLOAT16 = 0.15


@pytest.mark.parametrize("how", ["attach", "bank"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_adapter_after_another_is_right_on_a_packed_base(kind: str, how: str, tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    adapters, model = make_adapters(tmp_path), packed(tmp_path, kind)
    wanted = answers_with(how, written_out(model, tmp_path), adapters, tmp_path / "home")
    before = base_digest(model)

    found = answers_with(how, model, adapters, tmp_path / "home")

    assert base_digest(model) == before
    assert torch.equal(found[0], found[-1])
    assert apart(found, wanted) < TOLERANCES[kind]
    assert apart(wanted[:2], wanted[1:3]) > 1  # base and adapters are told apart by more than any tolerance


@pytest.mark.parametrize("how", ["attach", "bank"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_base_that_ran_before_is_not_ruined(kind: str, how: str, tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    adapters, model = make_adapters(tmp_path), packed(tmp_path, kind)
    wanted = answers_with(how, written_out(model, tmp_path), adapters, tmp_path / "home")
    plain = logits(model)  # may rewrite weights: nobody told bitsandbytes not to
    before = base_digest(model)

    found = answers_with(how, model, adapters, tmp_path / "home")

    assert base_digest(model) == before
    assert torch.equal(found[0], plain)
    assert torch.equal(found[-1], plain)
    assert apart(found, wanted) < IN_BFLOAT16


@pytest.mark.parametrize("how", ["attach", "bank"])
@pytest.mark.parametrize(
    ("kind", "changed", "said"),
    [
        ("nf4", {"modules_to_save": ["down_proj"]}, "layers.1.mlp.down_proj` would be replaced whole"),
        ("int8", {"modules_to_save": ["mlp"]}, "layers.1.mlp.up_proj` would be replaced whole"),
        ("int8", {"use_dora": True}, "layers.1.self_attn.q_proj` is in 8 bits and would get DoRA"),
    ],
    ids=["replaced", "holds replaced", "dora"],
)
def test_what_would_ruin_packed_weights_is_refused(
    kind: str, changed: dict[str, Any], said: str, how: str, tmp_path: Path
) -> None:
    small().save_pretrained(tmp_path)
    config = LoraConfig(r=4, target_modules=["q_proj"], **changed)
    adapter, model = save_adapter(tmp_path / "adapter", small, config), packed(tmp_path, kind)
    plain, before = logits(model), base_digest(model)

    with pytest.raises(UnsupportedAdapter, match=said):
        answers_with(how, model, [adapter], tmp_path / "home")

    assert base_digest(model) == before
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_on_a_packed_base_are_those_of_each_adapter_alone(kind: str, tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    model = packed(tmp_path, kind)

    with AdapterBank(model, library=tmp_path / "home") as bank:
        names = [None, *(bank.load(adapter) for adapter in make_adapters(tmp_path))]
        with bank.rows(names), torch.no_grad():
            together = model(IDS[:1].expand(3, -1)).logits
        for name, row in zip(names, together, strict=True):
            with bank.use(name), torch.no_grad():
                alone = model(IDS[:1].expand(3, -1)).logits[0]
            # what 8 bits round depends on all rows of a batch, with or without adapters
            assert apart([row], [alone]) < max(1e-3, TOLERANCES[kind])


# ---------------------------------------------------------------- the real one
@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapt, BaseRecord]:
    adapt = Adapt(tmp_path_factory.mktemp("quantized"))
    library = adapt.library
    record = library.bases.add(smollm2_base(), "smol")
    library.catalog.put_base(record)
    for name, task in ADAPTERS.items():
        about = Description(name=parse_name(name), version="1.0.0", task=task)
        library.add(SHIPPED / name, about, base=record)
    return adapt, record


@pytest.fixture(scope="module")
def full() -> tuple[Any, Any]:
    return load_base(smollm2_base(), dtype="float32")


@pytest.fixture(scope="module", params=["4bit", pytest.param("8bit", marks=pytest.mark.exhaustive)])
def loaded(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    return request.param, *load_base(smollm2_base(), dtype="float32", load_in=request.param)


def last_logits(model: nn.Module, tokenizer: Any) -> Tensor:
    with torch.no_grad():
        return model(**tokenizer(SENTENCE, return_tensors="pt")).logits[0, -1].double()


def divergence(found: Tensor, wanted: Tensor) -> float:
    """Kullback and Leibler's, in nats, of the next token."""
    return float((wanted.log_softmax(-1).exp() * (wanted.log_softmax(-1) - found.log_softmax(-1))).sum())


@pytest.mark.slow
def test_each_of_two_adapters_in_turn_is_right_on_a_packed_base_that_stays_as_it_was(
    home: tuple[Adapt, BaseRecord], full: tuple[Any, Any], loaded: tuple[str, Any, Any]
) -> None:
    (adapt, _), (source, _), (kind, model, tokenizer) = home, full, loaded
    before, plain = base_digest(model), last_logits(model, tokenizer)
    digests, distances, wanted = [], [], {}
    for name in ADAPTERS:
        with attach(source, f"{name}@smol", library=adapt.library) as attached:
            wanted[name] = last_logits(attached.model, tokenizer)

    for name in (*ADAPTERS, *list(ADAPTERS)[:1]):  # each comes after forwards of the base and of the one before
        with attach(model, f"{name}@smol", library=adapt.library) as attached:
            found = last_logits(attached.model, tokenizer)
            digests.append(attached.base_digest())
            distances.append(divergence(found, wanted[name]))
            assert attached.adapters[0].verdict is BaseVerdict.SAME_WEIGHTS_QUANTISED

    assert {*digests, base_digest(model)} == {before}
    assert torch.equal(last_logits(model, tokenizer), plain)
    # what packing costs this base (0.3 and 0.05 nats were measured over other prompts); a ruined base is at 12
    assert max(distances) < {"4bit": 1.0, "8bit": 0.2}[kind], distances
    assert distances[0] == distances[-1]


@pytest.mark.exhaustive
def test_logits_on_a_packed_base_are_those_of_peft_on_a_fresh_one(
    home: tuple[Adapt, BaseRecord], loaded: tuple[str, Any, Any]
) -> None:
    (adapt, _), (kind, model, tokenizer) = home, loaded
    last_logits(model, tokenizer)
    with attach(model, "json@smol", library=adapt.library):
        pass  # the first of two
    with attach(model, "pirate@smol", library=adapt.library) as attached:
        ours = last_logits(attached.model, tokenizer)

    fresh, _ = load_base(smollm2_base(), dtype="float32", load_in=kind)
    for module in fresh.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # the other kernel rounds to bfloat16
    theirs = last_logits(PeftModel.from_pretrained(fresh, SHIPPED / "pirate").eval(), tokenizer)

    assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_the_command_answers_with_an_adapter_on_a_packed_base(tmp_path: Path) -> None:
    adapt = Adapt(make_library(tmp_path))

    document = adapt.json("run", "a@base-7b", PROMPT, "--load-in", "4bit", "--max-new-tokens", 8, "--prove-base")

    assert len(document["text"]) > 0
    assert document["adapters"][0]["base"] == "SAME_WEIGHTS_QUANTISED"
    assert document["base_unchanged"] is True


@pytest.mark.exhaustive
def test_another_base_is_refused_although_it_is_packed(home: tuple[Adapt, BaseRecord], tmp_path: Path) -> None:
    adapt, _ = home
    tuned, tokenizer = load_base(smollm2_base(), dtype="float32")
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.endswith("q_proj.weight"):
                parameter.mul_(1.05)
    tuned.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    other, _ = load_base(tmp_path, load_in="4bit")

    with pytest.raises(BaseMismatch, match="sampled values differ"):
        attach(other, "json@smol", library=adapt.library)


def test_weights_that_are_packed_in_their_files_are_not_packed_again(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "source")
    packed(tmp_path / "source", "nf4").save_pretrained(tmp_path / "packed")
    write_tokenizer(tmp_path / "packed")

    with pytest.raises(UsageProblem, match="quantised already"):
        load_base(tmp_path / "packed", load_in="4bit")
    as_it_is, tokenizer = load_base(tmp_path / "packed")
    assert len(answer(as_it_is, tokenizer, "Hi", max_new_tokens=4)) > 0
