"""The names of tensors in GGUF files, by their names in the files of transformers: a copy of the tables of `gguf`.

The copy spares its readers the package, and knows architectures that older releases of it lack.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

FILE: Final = Path(__file__).with_name("names.json")
TURNED: Final = frozenset(
    (
        "arcee", "arctic", "baichuan", "bailingmoe", "chameleon", "deci", "deepseek", "granite", "granite_swa",
        "granitehybrid", "granitemoe", "internlm2", "llada", "llama", "llama-embed", "minicpm", "mistral3",
        "nanbeige", "nemotron_h", "nemotron_h_moe", "olmo", "smollm3",
    )
)  # fmt: skip
"""Architectures whose rotary embeddings turn neighbours in GGUF, and halves of a head in transformers.

So the converter reorders the rows of queries and keys (`LlamaModel.permute`).
"""
READ: Final = (TURNED - {"bailingmoe", "chameleon"}) | frozenset(
    (
        "afmoe", "apertus", "bert", "bloom", "chatglm", "codeshell", "cohere2", "command-r", "dbrx",
        "deepseek2", "dots1", "dream", "ernie4_5", "ernie4_5-moe", "eurobert", "exaone", "exaone-moe", "exaone4",
        "falcon", "gemma", "gemma-embedding", "gemma2", "gemma3", "gemma3n", "gemma4", "glm4", "glm4moe",
        "gpt-oss", "gpt2", "gptneox", "hunyuan-dense", "hunyuan-moe", "hunyuan_vl", "hy_v3", "jais2", "jamba",
        "jina-bert-v2", "laguna", "lfm2", "lfm2moe", "llada-moe", "llama4", "maincoder", "mamba", "mamba2",
        "mellum", "minicpm3", "minimax-m2", "minimax-m3", "modern-bert", "mpt", "nemotron", "neo-bert",
        "nomic-bert", "nomic-bert-moe", "olmo2", "olmoe", "openelm", "orion", "paddleocr", "pangu-embedded",
        "phi2", "phi3", "phimoe", "plm", "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen35", "qwen35moe",
        "qwen3moe", "qwen3next", "qwen3vl", "qwen3vlmoe", "refact", "rnd1", "seed_oss", "smallthinker", "stablelm",
        "starcoder", "starcoder2", "t5", "t5encoder",
    )
)  # fmt: skip
"""Architectures whose tensors the converter changes by the rules of `base.quantised.gguf` alone.

Others are left out for what a file does not show: bailingmoe divides some heads by their norms, falcon-h1 multiplies
by factors of the config, chameleon keeps one head of its norms.
"""
_SUFFIXES: Final = (".weight", ".bias")
_NUMBER: Final = re.compile(r"(?<![^.])\d{1,6}(?![^.])")
_BLOCK: Final = "{bid}"


@cache
def _table() -> Mapping[str, Any]:
    value: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    return value


def architectures() -> frozenset[str]:
    """llama.cpp's names of the kinds of models whose tensors are known."""
    return frozenset(_table()["architectures"])


@cache
def names_of(architecture: str) -> Mapping[str, str]:
    """Return the names in GGUF of one architecture by those in files of transformers; {} where it is unknown.

    Both are without `.weight` and `.bias`, and `{bid}` stands for the number of a block. GGUF's names are there too.
    """
    table = _table()
    own = table["own"].get(architecture, {})
    found: dict[str, str] = {}
    for tensor in table["architectures"].get(architecture, "").split():
        gguf, *others = table["tensors"][tensor]
        found |= dict.fromkeys((gguf, *others), gguf)
    for tensor, others in own.items():
        found |= dict.fromkeys(others, table["tensors"][tensor][0])
    return MappingProxyType(found)


def families_of(architecture: str) -> tuple[tuple[str, ...], ...]:
    """How transformers names the tensors of such models: by family, as a mixture has other names than a dense model.

    `{bid}` stands for the number of a layer, `{eid}` for that of an expert. () where no model was looked at.
    """
    return tuple(map(tuple, _table()["sources"].get(architecture, ())))


def gguf_name(architecture: str, name: str) -> str | None:
    """GGUF's name of a tensor that files of transformers call `name`, if the table has it."""
    known = names_of(architecture)
    for stem, suffix in _stems(name):
        if stem in known:
            return known[stem] + suffix
        for number in _NUMBER.finditer(stem):
            pattern = stem[: number.start()] + _BLOCK + stem[number.end() :]
            if pattern in known:
                return known[pattern].replace(_BLOCK, number[0]) + suffix
    return None


def _stems(name: str) -> Iterator[tuple[str, str]]:
    yield name, ""
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            yield name.removesuffix(suffix), suffix
