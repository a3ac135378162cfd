"""A bank on real models: SmolLM2 with the trained adapters that come with the package, and all-MiniLM-L6-v2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from adapterhub.inference.bank import AdapterBank
from adapterhub.inference.loader.text import load_base
from adapterhub.library.library import Library
from tests.support.real_base import smollm2_base
from tests.support.real_encoder import minilm_base
from tests.support.tiny_models import save_adapter

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SHIPPED = Path(__file__).resolve().parent.parent.parent / "adapterhub" / "cli" / "start" / "demo_run" / "adapters"
QUESTIONS = ["Priya wants 5 lamps for 30 dollars.", "Hello girl, my map is on the boat.", "Tell me of the sea."]
SENTENCES = ["a cat on a mat", "the judge read the contract", "rain again", "two lamps cost thirty dollars"]
CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-3}, torch.bfloat16: {"rtol": 0.03, "atol": 0.3}}
"""Of logits of about 20, resp. a few roundings of bfloat16 of them; two adapters differ by ten times as much."""


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.exhaustive)], ids=["fp32", "bf16"]
)
def test_trained_adapters_on_smollm2_say_what_they_say_with_peft(
    dtype: torch.dtype, library: Library, amount: Callable[[int, int], int]
) -> None:
    model: Any
    model, tokenizer = load_base(smollm2_base(), dtype=str(dtype).removeprefix("torch."))
    batch = tokenizer(QUESTIONS, return_tensors="pt", padding=True, padding_side="left")
    options = {"max_new_tokens": amount(3, 12), "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    names = ["json", "pirate", None]

    def asked(of: Any) -> Tensor:
        with torch.no_grad():
            return of(**batch).logits[:, -1].float()

    def written(of: Any) -> Tensor | None:
        # in bfloat16 one near tie is enough for another text
        return of.generate(**batch, **options) if dtype == torch.float32 else None

    with AdapterBank(model, library=library) as bank:
        digest = bank.assert_frozen()
        for name in names[:2]:
            bank.load(SHIPPED / str(name))
        alone, texts = {}, {}
        for name in names:
            with bank.use(name):
                alone[name] = asked(model)
        texts[None] = written(model)
        with bank.rows(names):
            mixed, mixed_text = asked(model), written(model)
        assert digest == bank.assert_frozen()

    peft = PeftModel.from_pretrained(model, SHIPPED / "json", adapter_name="json").eval()
    peft.load_adapter(SHIPPED / "pirate", adapter_name="pirate")
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], alone[name][row], **CLOSE[dtype])
        if name is not None:
            peft.set_adapter(name)
            torch.testing.assert_close(alone[name], asked(peft), **CLOSE[dtype])
            texts[name] = written(peft)
        if mixed_text is not None:
            assert torch.equal(mixed_text[row], texts[name][row])
    assert float((alone["json"] - alone["pirate"]).abs().max()) > 3


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.exhaustive)], ids=["fp32", "bf16"]
)
def test_adapters_on_a_real_encoder_give_the_vectors_of_peft(
    dtype: torch.dtype, tmp_path: Path, library: Library
) -> None:
    def encoder(dtype: torch.dtype = torch.float32) -> nn.Module:
        return AutoModel.from_pretrained(minilm_base(), dtype=dtype).eval()

    config = LoraConfig(r=8, lora_alpha=1, target_modules=["query", "value", "dense"], task_type="FEATURE_EXTRACTION")
    folders = [save_adapter(tmp_path / str(seed), encoder, config, seed=seed) for seed in (1, 2)]
    tokenizer = AutoTokenizer.from_pretrained(minilm_base())
    batch = tokenizer(SENTENCES, return_tensors="pt", padding=True)
    model = encoder(dtype)

    def vectors(of: nn.Module) -> Tensor:
        with torch.no_grad():
            hidden = of(**batch).last_hidden_state.float()
        mask = batch["attention_mask"][..., None]
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    plain = vectors(model)
    with AdapterBank(model, library=library) as bank:
        first, second = (bank.load(folder) for folder in folders)
        with bank.rows([first, None, second, {first: 0.5, second: 0.5}]):
            mixed = vectors(model)
        with bank.use({first: 0.5, second: 0.5}):
            summed = vectors(model)

    expected = [vectors(PeftModel.from_pretrained(encoder(dtype), folder).eval()) for folder in folders]
    rows = torch.stack([expected[0][0], plain[1], expected[1][2], summed[3]])
    torch.testing.assert_close(mixed, rows, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.02)
    assert float((expected[0] - plain).norm(dim=1).min()) > 0.2  # of vectors of length 1
    assert float((expected[0] - expected[1]).norm(dim=1).min()) > 0.2
