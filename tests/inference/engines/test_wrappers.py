"""A base that wraps a language model, where vLLM finds no module for a text adapter and answers like the base.

The table of classes knows that. Where the base's config names the class of the text model, and only a flag of vLLM the
wrapper, the table is asked about the wrong class, and the engine itself is all that knows.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adapterhub.core.specs import parse_name
from adapterhub.inference.serving.effects import PROMPT
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from tests.inference.engines.classes import CASES, VOCABULARY, make
from tests.inference.engines.servers import adapt_serve

pytestmark = pytest.mark.engine
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
WRAPPER, TEXT = "Gemma3ForConditionalGeneration", "Gemma3ForCausalLM"
FLAGS = f"""
--max-model-len 64 --max-num-seqs 2 --dtype float32 --limit-mm-per-prompt '{{"image": 0}}'
--hf-overrides '{{"architectures": ["{WRAPPER}"]}}'
"""


def write_tokenizer(folder: Path) -> None:
    """One token for each word of the question, and the numbers."""
    words = [*SPECIAL.values(), *dict.fromkeys(PROMPT.split())]
    words += [str(number) for number in range(len(words), VOCABULARY)]
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, SPECIAL["unk_token"]))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL).save_pretrained(folder)


@pytest.fixture(scope="module")
def wrapper(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """The base, and adapters in the names of the text model, in vLLM's, and in PEFT's for the wrapper."""
    folder = tmp_path_factory.mktemp("wrapper")
    assert CASES["gemma3"].model == WRAPPER
    adapters = make("gemma3", folder)
    write_tokenizer(folder / "base")
    return folder, adapters


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (WRAPPER, {"base": 200, "text": 409, "exported": 200, "peft": 200}),
        (TEXT, {"base": 200, "text": 424, "exported": 409, "peft": 409}),
    ],
)
def test_an_adapter_that_vllm_drops_is_refused_by_its_table_and_where_that_errs_by_the_question(
    wrapper: tuple[Path, dict[str, Path]], tmp_path: Path, named: str, expected: dict[str, int]
) -> None:
    folder, adapters = wrapper
    base = shutil.copytree(folder / "base", tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | {"architectures": [named]}
    (base / "config.json").write_text(json.dumps(config))
    library = Library(tmp_path / "served")
    record = library.bases.add(base, "base")
    library.catalog.put_base(record)
    for name, adapter in adapters.items():
        library.add(adapter, Description(name=parse_name(name), version="1.0.0"), base=record)

    log = tmp_path / "audit.jsonl"
    words = ["--base", "base", "--max-rank", "8", "--slots", "3", "--audit-log", str(log)]
    asked = {"prompt": "The quick brown", "max_tokens": 4, "temperature": 0}
    with adapt_serve(library.root, tmp_path / "log", *words, engine_args=FLAGS) as server:
        told = {name: server.post("/v1/completions", asked | {"model": name}) for name in expected}
        streamed = server.post("/v1/completions", asked | {"model": "text", "stream": True})

    assert {name: answer.status for name, answer in told.items()} == expected
    assert streamed.status == expected["text"]
    if streamed.status == 424:
        assert "not zero, and the engine still gives the same numbers" in told["text"].message
        assert streamed.value["error"]["type"] == "AdapterWithoutEffect"
        assert '"refusal": "AdapterWithoutEffect"' in log.read_text()
