"""Bases with odd settings: each loads and answers, or our error names its folder before any adapter is attached."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from adapterhub.core.errors import AdapterHubError, Malformed, UsageProblem
from adapterhub.inference.generation import Question, Writing, write
from adapterhub.inference.loader.text import load_base
from tests.support.command_line import Adapt
from tests.support.run_library import PROMPT, make_library, on_stdin, write_base

pytestmark = pytest.mark.filterwarnings("ignore")

ODD: Final[tuple[Any, ...]] = (
    None, -1, 0, 1, 3, 10**6, 2.5, float("nan"), True, "x", "eager", "float8_e4m3fn", "int8", [], [3], [[1]], {},
    {"rope_type": "x"}, {"rope_type": "yarn"}, {"type": "linear", "factor": -1}, {"0": "a"},
)  # fmt: skip
ABSENT: Final = (
    "rope_scaling", "text_config", "auto_map", "_attn_implementation", "attn_implementation", "sliding_window",
    "layer_types", "is_encoder_decoder", "id2label", "num_labels", "problem_type", "pruned_heads", "torch_dtype",
)  # fmt: skip
METHODS: Final = (
    "fp8", "fbgemm_fp8", "gptq", "awq", "bitsandbytes", "compressed-tensors", "mxfp4", "torchao", "hqq", "quanto", "eetq",
    "higgs", "vptq", "aqlm", "bitnet", "spqr", "nope", None, 8,
)  # fmt: skip
GENERATION: Final = (
    "eos_token_id", "bos_token_id", "pad_token_id", "max_length", "num_beams", "temperature", "top_k", "top_p",
    "do_sample", "cache_implementation", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids",
    "forced_bos_token_id", "suppress_tokens", "begin_suppress_tokens", "guidance_scale", "num_return_sequences",
    "stop_strings", "watermarking_config", "constraints", "penalty_alpha", "dola_layers", "prompt_lookup_num_tokens",
    "return_dict_in_generate", "min_length", "exponential_decay_length_penalty", "use_cache", "sequence_bias",
    "early_stopping", "length_penalty", "diversity_penalty",
)  # fmt: skip
FILES: Final = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("odd") / "base")


def odd_files(base: Path) -> Iterator[tuple[str, str]]:
    """The name and the text of a file that takes the place of the base's own."""
    for name, keys in (("config.json", ABSENT), ("generation_config.json", GENERATION)):
        plain = json.loads((base / name).read_text())
        for key in dict.fromkeys((*plain, *keys)):
            for value in ODD:
                yield name, json.dumps(plain | {key: value})
    plain = json.loads((base / "config.json").read_text())
    for method in METHODS:
        for more in ({}, {"bits": 4}, {"weight_block_size": [128, 128]}, {"load_in_4bit": True}):
            yield "config.json", json.dumps(plain | {"quantization_config": {"quant_method": method} | more})
    for name in FILES:
        yield from ((name, text) for text in ("", "x", "[]", "{}", "null", "[" * 5000))


def changed(base: Path, folder: Path, name: str, text: str) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    (folder / name).write_text(text)
    return folder


def test_an_odd_base_answers_or_is_refused_by_name(
    base: Path, tmp_path: Path, amount: Callable[[int, int], int]
) -> None:
    every = list(odd_files(base))
    for name, text in random.Random(0).sample(every, amount(80, len(every))):
        folder = changed(base, tmp_path / "base", name, text)
        try:
            loaded = load_base(folder)
        except AdapterHubError as error:
            told = str(error)
        else:
            told = str(folder)
            try:
                write(*loaded, [Question(text=PROMPT)], Writing(max_new_tokens=3))
            except UsageProblem:  # the prompt has no token of this vocabulary
                continue
        assert str(folder) in told, text


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("config.json", "vocab_size", 1), ("config.json", "hidden_act", []), ("generation_config.json", "min_length", "x"),
     ("config.json", "head_dim", 0)],
)  # fmt: skip
def test_settings_that_do_not_fit_are_malformed(name: str, key: str, value: Any, base: Path, tmp_path: Path) -> None:
    text = json.dumps(json.loads((base / name).read_text()) | {key: value})

    with pytest.raises(Malformed, match="a setting in its files does not fit"):
        load_base(changed(base, tmp_path / "odd", name, text))


# ---------------------------------------------------------------- the command
def test_run_names_the_setting_that_does_not_fit(tmp_path: Path) -> None:
    adapt = Adapt(make_library(tmp_path))
    path = tmp_path / "base" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"min_length": "x"}))

    told = adapt.fails(16, "run", "a@base-7b", PROMPT)

    assert "loads but does not answer" in told
    assert "a bug" not in told


@pytest.mark.parametrize("words", [["a@base-7b"], ["none", "--base", "base-7b"], ["--with", "a:1", "-"]])
def test_run_without_a_prompt_loads_no_base(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_stdin(monkeypatch, "\n")

    told = Adapt(tmp_path).fails(2, "run", *words)

    assert "no prompt given: stdin is empty" in told
    assert "loading base" not in told
