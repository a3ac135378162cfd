"""A library with a small base that writes, and adapters for it: what the tests of `adapt run` share."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from peft import IA3Config, LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adapterhub.core.specs import parse_name
from adapterhub.inference.generation import Question, Writing, write
from adapterhub.inference.loader import attach
from adapterhub.library.intake.description import Description
from tests.support.command_line import Adapt
from tests.support.tiny_models import VOCABULARY, llama, save_adapter

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,?!<>|:"
PROMPT = "Where is the boat?"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{% endfor %}<assistant>"


def write_base(folder: Path, *, seed: int = 0, template: str | None = TEMPLATE) -> Path:
    """A llama that reads and writes single characters."""
    llama(seed, initializer_range=0.4, max_position_embeddings=256).save_pretrained(folder)
    return write_tokenizer(folder, template)


def write_tokenizer(folder: Path, template: str | None = TEMPLATE) -> Path:
    words = ["<unk>", "<s>", "</s>", *CHARACTERS]
    raw = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, words[0]))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    special = dict(zip(("unk_token", "bos_token", "eos_token"), words, strict=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **special)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    assert len(words) <= VOCABULARY
    return folder


def make_library(folder: Path) -> Path:
    """Fill a folder with a library that has a base and adapters for it; no test writes into the library.

    `a` and `b` are plain, `ia3` is no LoRA, and `dora` cannot be given a weight.
    """
    library = Adapt(folder).library
    record = library.bases.add(write_base(folder / "base"), "base-7b")
    library.catalog.put_base(record)
    lora = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    ia3 = IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
    configs = {"a": LoraConfig(**lora), "b": LoraConfig(**lora), "ia3": ia3, "dora": LoraConfig(**lora, use_dora=True)}
    for seed, (name, config) in enumerate(configs.items(), 1):
        adapter = save_adapter(folder / name, llama, config, seed=seed)
        library.add(adapter, Description(name=parse_name(name), version="1.0.0"), base=record)
    return folder


def alone(made: Path, model: tuple[Any, Any], adapter: Any, question: Question, count: int = 12) -> str:
    """What one adapter writes, alone on the base and in no batch."""
    base, tokenizer = model
    if not adapter:
        return write(base, tokenizer, [question], Writing(max_new_tokens=count))[0].text
    with attach(base, adapter, library=Adapt(made).library) as attached:
        return write(attached.model, tokenizer, [question], Writing(max_new_tokens=count))[0].text


def on_stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
