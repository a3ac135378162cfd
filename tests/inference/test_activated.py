"""aLoRA acts from the last occurrence of its invocation tokens on, as PEFT's own models do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import MambaConfig, MambaForCausalLM

from adapterhub.core.errors import MergeRefused, UnsupportedAdapter, UsageProblem
from adapterhub.inference.bank.adapter_bank import AdapterBank
from adapterhub.inference.loader import attach
from tests.support.tiny_models import gpt2, llama, plain_peft, save_adapter

INVOCATION = [7, 9, 11]
PAD = 0
PROMPTS = {
    "once": [3, 4, 5, *INVOCATION, 6, 8, 10, 12],
    "twice": [*INVOCATION, 5, 6, *INVOCATION, 6, 8],
    "without": [3, 4, 5, 7, 9, 12, 6, 8, 10, 12],
    "at the end": [3, 4, 5, 6, 8, 10, 13, *INVOCATION],
    "at the start": [*INVOCATION, 4, 5, 6, 8, 10, 13, 2],
    "in part at the end": [3, 4, *INVOCATION, 5, 6, 8, 7, 9],
}
BATCH = torch.tensor(list(PROMPTS.values()))
TARGETS = ["q_proj", "v_proj", "down_proj"]


def settings(**changed: object) -> LoraConfig:
    values = {"r": 4, "lora_alpha": 12, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
    return LoraConfig(**values | {"alora_invocation_tokens": INVOCATION} | changed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("alora") / "alora", llama, settings())


@pytest.fixture(scope="module")
def truth(folder) -> nn.Module:
    model = plain_peft(llama, folder)
    assert type(model).__name__ == "PeftModelForCausalLM"
    return model


@pytest.fixture
def attached(folder, tmp_path) -> Iterator[PeftModel]:
    with attach(llama(), folder, library=tmp_path / "home") as held:
        yield held.model


def out(model: nn.Module, ids: Tensor, **more: object) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


def test_a_batch_with_and_without_the_tokens_answers_as_in_peft(attached, truth):
    assert torch.equal(out(attached, BATCH), out(truth, BATCH))
    base = out(llama(), BATCH)
    changed = (out(attached, BATCH) - base).abs().amax(-1) > 1e-6
    first = [row.int().argmax().item() if row.any() else None for row in changed]
    assert first == [3, 5, None, 7, 0, 2]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_answer_as_in_peft(attached, truth, side):
    rows = [PROMPTS["once"], PROMPTS["at the end"][2:], [*INVOCATION], [5, 6]]
    width = max(map(len, rows))
    fill = [[PAD] * (width - len(row)) for row in rows]
    ids = torch.tensor([pad + row if side == "left" else row + pad for row, pad in zip(rows, fill, strict=True)])
    mask = (ids != PAD).long()

    assert torch.equal(out(attached, ids, attention_mask=mask), out(truth, ids, attention_mask=mask))


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"use_cache": False}])
def test_generated_tokens_are_those_of_whole_passes(attached, truth, how):
    asked = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD, **how}
    found = attached.generate(input_ids=BATCH, **asked)

    assert torch.equal(found, attached.get_base_model().generate(BATCH, **asked))
    if not how:
        assert torch.equal(found, truth.generate(input_ids=BATCH, **asked))
    if "num_beams" not in how:
        for count in range(BATCH.shape[1], found.shape[1]):
            assert torch.equal(out(attached, found[:, :count])[:, -1].argmax(-1), found[:, count])


def test_the_base_itself_answers_with_the_adapter_and_alone_without_it(folder, tmp_path, truth):
    model = llama()
    held = attach(model, folder, library=tmp_path / "home")

    assert torch.equal(out(model, BATCH), out(truth, BATCH))
    with held.base_alone():
        assert torch.equal(out(model, BATCH), out(llama(), BATCH))
    held.detach()
    assert torch.equal(out(model, BATCH), out(llama(), BATCH))
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_a_call_that_hides_tokens_is_refused_before_an_answer(attached):
    embeddings = attached.get_input_embeddings()(BATCH)
    first = attached(input_ids=BATCH[:, :5], use_cache=True)
    with pytest.raises(UsageProblem, match="a cache hides the tokens"):
        attached(input_ids=BATCH[:, 5:], past_key_values=first.past_key_values)
    with pytest.raises(UsageProblem, match="not their embeddings"):
        attached(inputs_embeds=embeddings)
    with pytest.raises(UsageProblem, match="a part of the model was called"):
        attached.get_base_model().model(input_ids=BATCH)
    step = attached(input_ids=BATCH, use_cache=True)
    with torch.no_grad():
        found = attached(input_ids=BATCH[:, :1], past_key_values=step.past_key_values).logits[:, -1]
    assert torch.allclose(found, out(attached, torch.cat([BATCH, BATCH[:, :1]], 1))[:, -1], atol=1e-5)


def test_gpt2_and_weights_and_biases_of_b(tmp_path):
    config = settings(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, lora_bias=True)
    folder = save_adapter(tmp_path / "turned", gpt2, config)
    twice = save_adapter(tmp_path / "twice", gpt2, config, lora_alpha=24)
    with attach(gpt2(), folder, library=tmp_path / "home") as held:
        assert torch.equal(out(held.model, BATCH), out(plain_peft(gpt2, folder), BATCH))
    with attach(gpt2(), {folder: 2.0}, library=tmp_path / "home") as held:
        assert torch.allclose(out(held.model, BATCH), out(plain_peft(gpt2, twice), BATCH), atol=1e-5)


def test_a_bank_uses_it_for_a_whole_batch_and_refuses_it_by_row(folder, tmp_path, truth):
    model = llama()
    plain = save_adapter(tmp_path / "plain", llama, settings(alora_invocation_tokens=None), seed=3)
    bank = AdapterBank(model, library=tmp_path / "home")
    one, other = bank.load(folder), bank.load(plain)

    with bank.use(one):
        assert torch.equal(out(model, BATCH), out(truth, BATCH))
        found = model.generate(BATCH, max_new_tokens=4, do_sample=False, pad_token_id=PAD)
    assert torch.equal(found, truth.generate(input_ids=BATCH, max_new_tokens=4, do_sample=False, pad_token_id=PAD))
    assert "aLoRA" in bank.explain(one)
    with bank.use(other):
        expected = out(plain_peft(llama, plain), BATCH)
        assert torch.allclose(out(model, BATCH), expected, atol=1e-6)  # some CPUs round it otherwise
    with pytest.raises(UnsupportedAdapter, match="cannot be chosen by row"):
        bank.rows([one, other, *[None] * 4])
    with pytest.raises(MergeRefused):
        bank.use({one: 0.5, other: 0.5})
    assert torch.equal(out(model, BATCH), out(llama(), BATCH))


def test_a_cache_that_counts_no_tokens_is_refused(tmp_path):
    make = partial(MambaForCausalLM, MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4))
    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "base")
    load = partial(MambaForCausalLM.from_pretrained, tmp_path / "base")
    folder = save_adapter(tmp_path / "mamba", load, settings(target_modules=["in_proj"]))
    with attach(load(), folder, library=tmp_path / "home") as held:
        assert torch.equal(out(held.model, BATCH), out(plain_peft(load, folder), BATCH))
        with pytest.raises(UsageProblem, match="does not say what it holds"):
            held.model.generate(input_ids=BATCH, max_new_tokens=3, do_sample=False, pad_token_id=PAD)


def test_an_output_head_that_gets_the_last_tokens_only(tmp_path):
    make = partial(llama, tie_word_embeddings=False)
    folder = save_adapter(tmp_path / "head", make, settings(target_modules=["lm_head", "q_proj"]))
    asked = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": PAD}
    with attach(make(), folder, library=tmp_path / "home") as held:
        truth = plain_peft(make, folder)
        assert torch.equal(out(held.model, BATCH), out(truth, BATCH))
        assert torch.equal(held.model.generate(input_ids=BATCH, **asked), truth.generate(input_ids=BATCH, **asked))
        with pytest.raises(UsageProblem, match="a layer gets"):
            out(held.model, BATCH, logits_to_keep=torch.tensor([1, 4]))


def test_what_replaces_modules_whole_is_always_on_as_in_peft(tmp_path):
    folder = save_adapter(tmp_path / "whole", llama, settings(modules_to_save=["lm_head"]))
    with attach(llama(), folder, library=tmp_path / "home") as held:
        assert torch.equal(out(held.model, BATCH), out(plain_peft(llama, folder), BATCH))


def test_factors_of_an_embedding_and_mixtures_are_refused(folder, tmp_path):
    plain_settings = settings(alora_invocation_tokens=None, target_modules=["q_proj", "embed_tokens"])
    table = save_adapter(tmp_path / "table", llama, plain_settings, alora_invocation_tokens=INVOCATION)
    empty = save_adapter(tmp_path / "empty", llama, settings(), alora_invocation_tokens=[])
    plain = save_adapter(tmp_path / "plain", llama, settings(alora_invocation_tokens=None), seed=3)
    for each, named in ((table, "embed_tokens"), (empty, "is empty")):
        with pytest.raises(UnsupportedAdapter, match=named):
            attach(llama(), each, library=tmp_path / "home")
    with pytest.raises(MergeRefused, match="attach it alone"):
        attach(llama(), [folder, plain], library=tmp_path / "home")
