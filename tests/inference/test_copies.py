"""Adapters on a model that is a quantised copy, or was read from one: real files, and models as transformers loads them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from adapterhub import AdapterBank
from adapterhub.core.errors import BaseMismatch
from adapterhub.core.specs import parse_name
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.inference.loader import attach
from adapterhub.inference.loader.base import BaseModel, hold_layout
from adapterhub.inference.loader.identity import compare_base, identify, sample_base
from adapterhub.library.intake.description import Description
from tests.support.command_line import Adapt
from tests.support.copies import saved
from tests.support.quantised_copies import float8_copy, gguf_copy
from tests.support.tiny_models import llama, logits, plain_peft, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

TARGETS = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])


def small(seed: int = 0) -> nn.Module:
    """Wide enough for a block of 64 numbers."""
    return llama(seed, hidden_size=64, intermediate_size=128)


def load(folder: Path, **settings: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **settings).eval()
    hold_layout(model.modules())  # PEFT's answers are those of the same kernels as ours
    return model


def packed_copy(source: Path, out: Path) -> Path:
    """As bitsandbytes and transformers save it."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    load(source, quantization_config=config, device_map="cpu").save_pretrained(out)
    return out


COPIES: dict[str, Callable[[Path, Path], Path]] = {"fp8": float8_copy, "nf4": packed_copy}


@pytest.fixture(params=COPIES)
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Adapt:
    """A source, its copy and a copy of another model in their folders, and an adapter for each of the first two."""
    for name, seed in (("source", 0), ("other", 1)):
        small(seed).bfloat16().save_pretrained(tmp_path / name)
    COPIES[request.param](tmp_path / "source", tmp_path / "copy")
    COPIES[request.param](tmp_path / "other", tmp_path / "other-copy")
    adapt = Adapt(tmp_path)
    for name in ("source", "copy"):
        base = adapt.library.bases.add(tmp_path / name, name)
        about = Description(name=parse_name(f"of-{name}"), version="1.0.0")
        adapt.library.add(save_adapter(tmp_path / f"of-{name}", small, TARGETS), about, base=base)
    return adapt


@pytest.mark.parametrize("adapter", ["of-source", "of-copy"])
def test_adapters_of_source_and_copy_run_on_the_copy_in_memory(adapter: str, home: Adapt) -> None:
    model = load(home.folder / "copy")
    wanted = logits(plain_peft(lambda: load(home.folder / "copy"), home.folder / adapter))
    known = identify(sample_base(BaseModel(model)), home.library.bases)

    with attach(model, adapter, library=home.library) as attached:
        found = logits(attached.model)
        verdict = attached.adapters[0].verdict

    assert known is not None
    assert known.alias == "copy"
    assert torch.equal(found, wanted)
    assert verdict.is_same_model
    assert (verdict is BaseVerdict.SAME_WEIGHTS_QUANTISED) == (adapter == "of-source")


@pytest.mark.parametrize("adapter", ["of-source", "of-copy"])
def test_adapters_of_source_and_copy_run_on_the_source_in_memory(adapter: str, home: Adapt) -> None:
    model = load(home.folder / "source")

    with AdapterBank(model, library=home.library) as bank:
        name = bank.load(adapter)
        with bank.use(name):
            found = logits(model)
    with attach(model, adapter, library=home.library) as attached:
        verdict, told = attached.adapters[0].verdict, attached.explain()

    assert torch.allclose(found, logits(plain_peft(lambda: model, home.folder / adapter)), atol=0.05)
    assert verdict is BaseVerdict.SAME_WEIGHTS_QUANTISED if adapter == "of-copy" else BaseVerdict.SAME_WEIGHTS
    assert ("lie in the intervals of their codes" in told) == (adapter == "of-copy")


@pytest.mark.parametrize("adapter", ["of-source", "of-copy"])
@pytest.mark.parametrize("registers", [False, True])
def test_a_copy_of_another_model_is_refused(adapter: str, registers: bool, home: Adapt) -> None:  # noqa: FBT001
    if registers:
        home.library.bases.add(home.folder / "other-copy", "other-copy")
    model = load(home.folder / "other-copy")

    with pytest.raises(BaseMismatch):
        attach(model, adapter, library=home.library)


def test_a_copy_that_is_not_registered_is_refused_with_what_to_do(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "source")
    float8_copy(tmp_path / "source", tmp_path / "copy")
    adapt = Adapt(tmp_path)
    base = adapt.library.bases.add(tmp_path / "source", "source")
    about = Description(name=parse_name("small"), version="1.0.0")
    adapt.library.add(save_adapter(tmp_path / "small", small, TARGETS), about, base=base)
    model = load(tmp_path / "copy")

    with pytest.raises(BaseMismatch) as refusal:
        attach(model, "small", library=adapt.library)

    assert "adapt base add" in refusal.value.hint
    adapt.library.bases.add(tmp_path / "copy", "copy")
    with attach(model, "small", library=adapt.library) as attached:
        assert attached.adapters[0].verdict is BaseVerdict.SAME_WEIGHTS_QUANTISED
        assert "this model is the copy `copy` of it" in attached.explain()


def test_a_changed_number_of_a_written_out_copy_is_no_copy_any_more(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "source")
    record = Adapt(tmp_path).library.bases.add(float8_copy(tmp_path / "source", tmp_path / "copy"), "copy")
    model = load(tmp_path / "copy")
    same = compare_base(record.fingerprint, sample_base(BaseModel(model)))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.2)

    found = compare_base(record.fingerprint, sample_base(BaseModel(model)))

    assert same.verdict is BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION
    assert "14 tensors are codes in its base, and here the numbers that these stand for" in same.differences
    assert found.verdict is BaseVerdict.SAME_SHAPES
    assert "layers.1.mlp.up_proj" in found.differences[0]


def test_a_model_that_was_read_from_gguf_is_the_copy(tmp_path: Path) -> None:
    small().bfloat16().save_pretrained(tmp_path / "source")
    small(1).bfloat16().save_pretrained(tmp_path / "other")
    adapt, about = Adapt(tmp_path), Description(name=parse_name("small"), version="1.0.0")
    base = adapt.library.bases.add(tmp_path / "source", "source")
    adapt.library.add(save_adapter(tmp_path / "small", small, TARGETS), about, base=base)
    for name in ("source", "other"):
        gguf_copy(tmp_path / name, tmp_path / f"{name}.gguf")
    adapt.library.bases.add(tmp_path / "source.gguf", "in-gguf")

    def read(name: str) -> Any:
        return load(tmp_path, gguf_file=name)

    wanted = logits(plain_peft(lambda: read("source.gguf"), tmp_path / "small"))
    with attach(read("source.gguf"), "small", library=adapt.library) as attached:
        found, verdict = logits(attached.model), attached.adapters[0].verdict

    assert torch.equal(found, wanted)
    assert verdict is BaseVerdict.SAME_WEIGHTS_QUANTISED
    with pytest.raises(BaseMismatch):
        attach(read("other.gguf"), "small", library=adapt.library)


class InFloat8(nn.Module):
    """A linear layer as transformers' FP8 and compressed-tensors hold it in memory."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().float().abs().amax(1, keepdim=True) / 448
        codes = (linear.weight.detach().float() / scale).to(torch.float8_e4m3fn)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)


def test_codes_and_scales_in_memory_are_those_of_the_source(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "source")
    record = Adapt(tmp_path).library.bases.add(tmp_path / "source", "source")

    def compared(model: Any) -> Any:
        for layer in model.model.layers:
            for part in (layer.self_attn, layer.mlp):
                for name, child in list(part.named_children()):
                    if isinstance(child, nn.Linear):
                        setattr(part, name, InFloat8(child))
        return compare_base(record.fingerprint, sample_base(BaseModel(model)))

    found, other = compared(small()), compared(small(1))

    assert found.verdict is BaseVerdict.SAME_WEIGHTS_QUANTISED
    assert found.label == "SAME_WEIGHTS_QUANTISED (fp8-channel)"
    assert re.match("14 tensors are quantised in the model in memory; all 224 sampled", found.differences[0])
    assert other.verdict is BaseVerdict.SAME_SHAPES


def test_a_copy_in_an_unknown_format_is_the_same_only_with_the_same_codes(tmp_path: Path) -> None:
    def held(code: int) -> Any:
        model = nn.Module()
        model.embed_tokens = nn.Embedding.from_pretrained(torch.arange(96.0).reshape(12, 8))
        model.layer = nn.Module()
        model.layer.register_buffer("trellis", torch.full((6, 10), code, dtype=torch.int16))
        return model

    config = {"quantization_config": {"quant_method": "exl3"}}
    record = Adapt(tmp_path).library.bases.add(saved(tmp_path / "copy", held(3).state_dict(), **config), "copy")

    same, other = (compare_base(record.fingerprint, sample_base(BaseModel(held(code)))) for code in (3, 4))

    assert same.verdict is BaseVerdict.SAME_WEIGHTS
    assert not other.verdict.allows_attach
