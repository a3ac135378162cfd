"""The bases of the benchmark: real ones from PyPI, and two small ones that are trained here from a seed.

Whisper is no family of it: a contract holds texts, and Whisper hears.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapterhub.distribution.wheels import pip_command
from tests.bench.bench_quality import training_script
from tests.bench.contracts.tasks import (
    ANTIBODIES,
    CHEMISTRY,
    ENGLISH,
    LETTERS,
    STRINGS,
    SYMBOLS,
    WRITING,
    Task,
)
from tests.support.real_base import smollm2_base
from tests.support.real_encoder import minilm_base

SMALL_STEPS, SMALL_BATCH = 700, 32
_SPECIAL: Final = ("<pad>", "<end>", "<unk>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A base and what its adapters learn. `make` writes the base below a folder and returns its own folder."""

    label: str
    make: Callable[[Path], Path]
    tasks: Mapping[str, Task]
    kind: str
    targets: tuple[tuple[str, ...], ...]
    steps: int
    batch: int
    rate: float


def _package(work: Path, requirement: str) -> None:
    """A package from PyPI on the import path, beside the environment and without what it needs."""
    target = work / "packages" / requirement.replace("==", "-")
    if not target.is_dir():
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        options = ["--no-deps", "--quiet", "--disable-pip-version-check", "--no-input", "--target", str(partial)]
        subprocess.run([*pip_command(requirement), "install", *options, requirement], check=True, timeout=1800)
        partial.rename(target)
    sys.path.append(str(target))


def _pickled(requirement: str, package: str, inside: str, classes: tuple[str, str]) -> Callable[[Path], Path]:
    def make(work: Path) -> Path:
        folder = work / "bases" / package
        if (folder / "tokenizer.json").exists():
            return folder
        _package(work, requirement)
        script = training_script()
        script.prepare_pickled(folder, script.package_dir(package) / inside, *classes)
        _write_words(folder, (folder / "vocab.txt").read_text().splitlines())
        return folder

    return make


def _write_words(folder: Path, vocabulary: list[str]) -> None:
    """A tokenizer that takes words between spaces, each one of the vocabulary, for molecules and proteins."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


# ---------------------------------------------------------------- small models, trained here
def _small_gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 96, "n_layer": 3, "n_head": 4, "n_positions": 96}
    return GPT2LMHeadModel(GPT2Config(vocab_size=_size(), bos_token_id=1, eos_token_id=1, pad_token_id=0, **sizes))


def _small_t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 96, "d_kv": 24, "d_ff": 192, "num_layers": 3, "num_heads": 4}
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(vocab_size=_size(), dropout_rate=0.0, **sizes, **tokens))


_CHARACTERS: Final = [chr(code) for code in range(32, 127)] + ["\n"]


def _size() -> int:
    return len(_SPECIAL) + len(_CHARACTERS)


def _write_characters(folder: Path, *, ends: bool) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {token: number for number, token in enumerate((*_SPECIAL, *_CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    names = {"unk_token": "<unk>", "eos_token": "<end>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def _trained(name: str, model: Callable[[], Any], *, ends: bool) -> Callable[[Path], Path]:
    def make(work: Path) -> Path:
        folder = work / "bases" / name
        if (folder / "model.safetensors").exists():
            return folder
        import torch
        from transformers import AutoTokenizer

        from tests.bench.contracts.training import fit

        partial = folder.with_name(name + ".partial")
        _write_characters(partial, ends=ends)
        tokenizer = AutoTokenizer.from_pretrained(partial)
        torch.manual_seed(0)
        base, rng, rows = model(), random.Random(0), []
        for _ in range(4000):
            symbol = rng.choice(list(SYMBOLS))
            text = "".join(rng.choice(LETTERS) for _ in range(rng.randint(4, 7)))
            rows.append((f"{symbol}{text}=", SYMBOLS[symbol](text)))
        fit(base, tokenizer, rows, steps=SMALL_STEPS, batch=SMALL_BATCH, rate=2e-3)
        base.save_pretrained(partial)
        partial.rename(folder)
        return folder

    return make


_QV = ("query", "value")
_ENCODER: Final[dict[str, Any]] = {"kind": "classify", "steps": 60, "batch": 16, "rate": 2e-3}
_LLAMA = (("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj"), ("q_proj", "v_proj", "down_proj"))
_BERT = (_QV, ("query", "key", "value"))

FAMILIES: Final[Mapping[str, Family]] = {
    "smollm2": Family(
        label="SmolLM2-135M-Instruct", make=lambda _: smollm2_base(), tasks=WRITING, kind="causal", targets=_LLAMA,
        steps=30, batch=6, rate=5e-3),
    "minilm": Family(label="all-MiniLM-L6-v2", make=lambda _: minilm_base(), tasks=ENGLISH, targets=_BERT, **_ENCODER),
    "albert-chemistry": Family(
        label="ALBERT of rxnmapper, 0.7M", tasks=CHEMISTRY, targets=_BERT,
        make=_pickled("rxnmapper==0.4.3", "rxnmapper", "models/transformers/albert_heads_8_uspto_all_1310k",
                      ("AlbertForMaskedLM", "AlbertConfig")), **_ENCODER | {"steps": 150}),
    "bert-chemistry": Family(
        label="BERT of rxnfp, 6.7M", tasks=CHEMISTRY, targets=_BERT,
        make=_pickled("rxnfp==0.1.0", "rxnfp", "models/transformers/bert_pretrained", ("BertModel", "BertConfig")),
        **_ENCODER),
    "bert-antibody": Family(
        label="AntiBERTy, 26M", tasks=ANTIBODIES, targets=_BERT,
        make=_pickled("antiberty==0.1.3", "antiberty", "trained_models/AntiBERTy_md_smooth",
                      ("BertModel", "BertConfig")), **_ENCODER),
    "small-gpt2": Family(
        label="GPT-2 of 3 layers, trained here", make=_trained("small-gpt2", _small_gpt2, ends=False), tasks=STRINGS,
        kind="causal", targets=(("c_attn", "c_proj", "c_fc"),), steps=250, batch=32, rate=5e-3),
    "small-t5": Family(
        label="T5 of 3 + 3 layers, trained here", make=_trained("small-t5", _small_t5, ends=True), tasks=STRINGS,
        kind="seq2seq", targets=(("q", "k", "v", "o", "wi", "wo"), ("q", "v", "wo")), steps=250, batch=32, rate=5e-3),
}  # fmt: skip
"""By name; `targets` take turns over the adapters of a family."""
