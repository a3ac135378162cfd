"""`adapt run --batch`: many prompts, each for its own adapter; on a small base with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from adapterhub import AdapterBank
from adapterhub.formats.prompts.form import RAW, PromptForm
from adapterhub.inference.generation import Question, Writing, write
from adapterhub.inference.loader.text import load_base
from tests.support.command_line import Adapt
from tests.support.run_library import PROMPT, alone, make_library, on_stdin, write_tokenizer
from tests.support.tiny_models import VOCABULARY

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_library(tmp_path_factory.mktemp("run"))


@pytest.fixture
def adapt(made: Path) -> Adapt:
    return Adapt(made)


@pytest.fixture(scope="module")
def model(made: Path) -> tuple[Any, Any]:
    return load_base(made / "base")


ROWS: list[dict[str, Any]] = [
    {"prompt": PROMPT, "adapter": "a", "id": "first"},
    {"prompt": "Hi", "adapter": "b", "id": 2},
    {"prompt": "You find the rope on my boat", "adapter": None},
    {"prompt": "Yes", "adapter": {"a": 0.7, "b": 0.3}},
    {"prompt": "Hello my old friend, where is the treasure", "adapter": "a"},
    {"prompt": "Hello", "adapter": "a", "system": "Be brief"},
    {"prompt": "And where is the rope?", "adapter": "ia3"},
    {"prompt": "No", "adapter": "dora"},
    {"prompt": "Maybe", "adapter": "ia3"},
]


def write_rows(folder: Path, rows: list[Any]) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("size", [1, 4, 32])
def test_rows_of_a_batch_are_answered_as_they_are_alone(
    size: int, adapt: Adapt, made: Path, model: Any, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    done = adapt(
        "run", "--batch", write_rows(tmp_path, ROWS), "--out", out, "--max-new-tokens", 12, "--batch-size", size
    )

    chats = [PromptForm.typed(None, system=row.get("system")) or RAW for row in ROWS]
    questions = [Question(text=row["prompt"], form=form) for row, form in zip(ROWS, chats, strict=True)]
    expected = [alone(made, model, row["adapter"], q) for row, q in zip(ROWS, questions, strict=True)]
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert (done.exit_code, done.stdout) == (0, f"wrote 9 answers to {out}\n"), done.stderr
    assert [answer["text"] for answer in answers] == expected
    assert [{k: v for k, v in a.items() if k not in {"text", "tokens"}} for a in answers] == ROWS
    assert "tokens/s" in done.stderr


def test_rows_that_name_nobody_are_for_the_adapter_of_the_command(adapt: Adapt, tmp_path: Path) -> None:
    prompts = write_rows(tmp_path, [{"prompt": PROMPT}, {"prompt": PROMPT, "adapter": None}])

    document = adapt.json("run", "b", "--batch", prompts, "--max-new-tokens", 8, "--prove-base")

    assert [answer["adapter"] for answer in document["answers"]] == ["b", None]
    assert document["answers"][0]["text"] + "\n" == adapt.ok("run", "b", PROMPT, "--max-new-tokens", 8)
    assert (document["rows"], document["tokens"], document["base_unchanged"]) == (2, 16, True)


def test_a_batch_goes_from_stdin_to_stdout(adapt: Adapt, monkeypatch: pytest.MonkeyPatch) -> None:
    on_stdin(monkeypatch, '{"prompt": "Hi", "id": "x"}\n\n{"prompt": "Yes"}')

    lines = adapt.ok("run", "none", "--base", "base-7b", "--batch", "-", "--max-new-tokens", 3).splitlines()

    assert [(json.loads(line)["prompt"], json.loads(line).get("id")) for line in lines] == [("Hi", "x"), ("Yes", None)]


def test_every_wrong_line_is_told_before_anything_is_loaded(adapt: Adapt, tmp_path: Path) -> None:
    wrong = [
        '{"prompt": "Hi", "adapter": "a"}',
        "[1]",
        '{"prompt": ""}',
        '{"text": "Hi"}',
        '{"prompt": "Hi", "adapter": {"a": "much"}}',
        '{"prompt": "Hi", "adapter": {}}',
        '{"prompt": "Hi", "adapter": "A B"}',
        '{"prompt": "Hi", "adapter": "a", "id": 1.5}',
        '{"prompt": "Hi", "adapter": "a", "system": 3}',
        '{"prompt": "Hi"',
        '{"prompt": "Hi"}',
        '{"prompt": "Hi", "adapter": "a", "id": "x"}',
        '{"prompt": "Hi", "adapter": "a", "id": "x"}',
    ]

    said = adapt.fails(16, "run", "--batch", write_rows(tmp_path, wrong), "--out", tmp_path / "out.jsonl")

    told = [line.split(":")[0].strip() for line in said.splitlines() if line.startswith("  line")]
    assert told == [f"line {number}" for number in (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13)]
    assert "nothing was answered" in said
    assert "loading base" not in said
    assert not (tmp_path / "out.jsonl").exists()


def test_rows_that_cannot_be_answered_are_told_before_the_first_answer(adapt: Adapt, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Hi", "adapter": "a"},
        {"prompt": "x" * 300, "adapter": "a"},
        {"prompt": "Hi", "adapter": "nobody"},
        {"prompt": "Hi", "adapter": {"dora": 0.5, "a": 0.5}},
    ]

    said = adapt.fails(16, "run", "--batch", write_rows(tmp_path, rows), "--out", tmp_path / "out.jsonl")

    assert "line 2: the prompt has 300 tokens" in said
    assert "line 3: " in said
    assert "nobody" in said
    assert "line 4: " in said
    assert "DoRA" in said
    assert not (tmp_path / "out.jsonl").exists()


def test_few_adapters_are_in_memory_however_many_rows_name_one(
    adapt: Adapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapterhub.inference.answering.RESIDENT", 1)
    rows = [{"prompt": PROMPT, "adapter": name} for name in ("a", "b", None, "dora", "a", "b")]
    banks = []
    make = AdapterBank.__init__

    def note(self: AdapterBank, *given: Any, **options: Any) -> None:
        banks.append(self)
        make(self, *given, **options)

    monkeypatch.setattr(AdapterBank, "__init__", note)

    answers = adapt.json("run", "--batch", write_rows(tmp_path, rows), "--max-new-tokens", 6)["answers"]

    assert [(bank.stats.resident, bank.stats.evictions > 2) for bank in banks] == [(1, True)]
    assert [a["text"] for a in answers[:2]] == [a["text"] for a in answers[4:]]
    assert len({a["text"] for a in answers}) == 4


def test_answers_never_replace_a_file(adapt: Adapt, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    out.write_text("mine")

    said = adapt.fails(15, "run", "--batch", write_rows(tmp_path, ROWS), "--out", out)

    assert ("exists" in said, out.read_text()) == (True, "mine")


def test_rows_that_end_early_are_not_filled_up(model: Any) -> None:
    base, tokenizer = model
    question = Question(text=PROMPT)
    (whole,) = write(base, tokenizer, [question], Writing(max_new_tokens=12))
    fifth = tokenizer(whole.text[4])["input_ids"][0]
    kept = base.generation_config.eos_token_id
    base.generation_config.eos_token_id = fifth

    try:
        short, other = write(base, tokenizer, [question, Question(text="Hi")], Writing(max_new_tokens=12))
    finally:
        base.generation_config.eos_token_id = kept

    assert short.tokens == whole.text.index(whole.text[4]) + 1
    assert short.text == whole.text[: short.tokens]
    assert other.tokens > 0


def test_an_encoder_and_decoder_answers_a_batch_as_it_answers_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "initializer_factor": 4.0}
    config = T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, pad_token_id=0, eos_token_id=None, **sizes)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    loaded = load_base(write_tokenizer(tmp_path))
    questions = [Question(text=PROMPT), Question(text="Hi"), Question(text="You find the rope")]
    pieces: list[str] = []

    together = [answer.text for answer in write(*loaded, questions, Writing(max_new_tokens=8))]
    one_by_one = [write(*loaded, [q], Writing(max_new_tokens=8), on_text=pieces.append)[0].text for q in questions]

    assert together == one_by_one
    assert "".join(pieces) == "".join(one_by_one)
