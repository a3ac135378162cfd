"""`adapt run`: one answer as it comes, side by side, many at once, each in the form of its build; on a small base."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

import adapterhub
from adapterhub import AdapterBank
from adapterhub.core.errors import ChatTemplateRefused, Incompatible, UsageProblem
from adapterhub.formats.base.fingerprint import read_hints
from adapterhub.formats.prompts.form import (
    RAW,
    PromptForm,
    has_other_template,
    prompt_texts,
    prompt_tokens,
    template_digest,
)
from adapterhub.inference.answering import Typed, wish_of
from adapterhub.inference.generation import Question, Writing, _Row, all_tokens_of, before_stop, write
from adapterhub.inference.loader.text import load_base
from tests.contracts.export import files_of_at_most
from tests.support.command_line import Adapt
from tests.support.forked import forked
from tests.support.run_library import PROMPT, alone, make_library, on_stdin, write_base, write_tokenizer
from tests.support.tiny_models import VOCABULARY

pytestmark = pytest.mark.filterwarnings("ignore")

CHAT, BRIEF = PromptForm(form="chat"), PromptForm(form="chat", system="Be brief")
OWN = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
FRAME = PromptForm(form="template", template="Ask: {input} Say:", max_new_tokens=6)
OTHER = PromptForm(form="chat", chat_template=OWN, chat_template_sha256=template_digest(OWN), max_new_tokens=9)
LOST = PromptForm(form="chat", chat_template_sha256=template_digest("gone"))
FORMS = {"framed": FRAME, "chatty": BRIEF, "other": OTHER, "lost": LOST}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_library(tmp_path_factory.mktemp("run"))
    library = adapterhub.Library(folder / "home")
    for name, form in FORMS.items():
        library.add(folder / "a", name=name, base="base-7b", prompt=form)
    return folder


@pytest.fixture
def adapt(made: Path) -> Adapt:
    return Adapt(made)


@pytest.fixture(scope="module")
def model(made: Path) -> tuple[Any, Any]:
    return load_base(made / "base")


# ---------------------------------------------------------------- one answer
def test_an_answer_is_that_of_the_adapter_on_its_base(adapt: Adapt, made: Path, model: Any) -> None:
    expected = alone(made, model, "a", Question(text=PROMPT))

    said = adapt.ok("run", "a@base-7b", PROMPT, "--max-new-tokens", 12)
    document = adapt.json("run", "a@base-7b", PROMPT, "--max-new-tokens", 12)

    assert said == expected + "\n"
    assert (document["text"], document["tokens"], document["base"]) == (expected, 12, "base-7b")
    assert document["adapters"] == [{"adapter": "a==1.0.0", "weight": 1.0, "base": "SAME_WEIGHTS"}]
    assert expected != alone(made, model, None, Question(text=PROMPT))


def test_the_pieces_of_a_streamed_answer_are_the_answer(model: Any) -> None:
    pieces: list[str] = []

    (answer,) = write(*model, [Question(text=PROMPT)], Writing(max_new_tokens=20), on_text=pieces.append)

    assert "".join(pieces) == answer.text
    assert len(pieces) == len(answer.text) > 10  # every token is a character here, told when it comes


@pytest.mark.parametrize("words", [["a"], ["a", "-"], ["--with", "a:1"], ["--with", "a:1", "-"]])
def test_a_prompt_may_come_from_stdin(
    words: list[str], adapt: Adapt, made: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_stdin(monkeypatch, PROMPT + "\n")

    said = adapt.ok("run", *words, "--max-new-tokens", 6)

    assert said == alone(made, model, "a", Question(text=PROMPT), 6) + "\n"


def test_none_is_the_base_alone(adapt: Adapt, made: Path, model: Any) -> None:
    document = adapt.json("run", "none", PROMPT, "--base", "base-7b", "--max-new-tokens", 6)

    assert (document["text"], document["adapters"]) == (alone(made, model, None, Question(text=PROMPT), 6), [])


def test_an_adapter_may_be_named_by_its_folder(adapt: Adapt) -> None:
    by_name = adapt.ok("run", "a", PROMPT, "--max-new-tokens", 6)

    assert adapt.ok("run", "./a", PROMPT, "--base", "base-7b", "--max-new-tokens", 6) == by_name


def test_a_mixture_and_the_proof_of_the_base_are_in_the_document(adapt: Adapt) -> None:
    document = adapt.json("run", "--with", "a:0.7,b:0.3", PROMPT, "--max-new-tokens", 4, "--prove-base")

    assert [(a["adapter"], a["weight"]) for a in document["adapters"]] == [("a==1.0.0", 0.7), ("b==1.0.0", 0.3)]
    assert document["base_unchanged"] is True


# ---------------------------------------------------------------- chat
def test_a_prompt_goes_in_as_it_is_unless_a_chat_is_asked_for(model: Any) -> None:
    base, tokenizer = model
    questions = [Question(text="Hi"), Question(text="Hi", form=CHAT), Question(text="Hi", form=BRIEF)]

    read = [tokenizer.decode(found) for found in all_tokens_of(base, tokenizer, questions, Writing())]

    assert read == ["Hi", "<user>Hi|<assistant>", "<system>Be brief|<user>Hi|<assistant>"]


def test_chat_and_system_reach_the_model_and_the_choice_is_told(adapt: Adapt, made: Path, model: Any) -> None:
    plain = adapt("run", "a", "Hi", "--max-new-tokens", 8)
    chat = adapt("run", "a", "Hi", "--max-new-tokens", 8, "--system", "Be brief")
    declined = adapt("run", "a", "Hi", "--max-new-tokens", 8, "--no-chat")

    assert chat.stdout == alone(made, model, "a", Question(text="Hi", form=BRIEF), 8) + "\n" != plain.stdout
    assert "--chat" in plain.stderr
    assert "--chat" not in chat.stderr + declined.stderr
    assert declined.stdout == plain.stdout


def test_a_base_without_a_chat_template_refuses_a_chat(tmp_path: Path) -> None:
    base, tokenizer = load_base(write_base(tmp_path / "plain", template=None))

    with pytest.raises(UsageProblem, match="no chat template"):
        write(base, tokenizer, [Question(text="Hi", form=CHAT)], Writing())


def test_a_template_that_refuses_the_prompt_is_no_bug(tmp_path: Path) -> None:
    template = "{{ raise_exception('no system role') }}"
    base, tokenizer = load_base(write_base(tmp_path / "strict", template=template))

    with pytest.raises(UsageProblem, match="no system role"):
        write(base, tokenizer, [Question(text="Hi", form=BRIEF)], Writing())


# ---------------------------------------------------------------- drawing
def test_drawing_is_repeatable_by_its_seed_and_leaves_the_generator_alone(adapt: Adapt) -> None:
    asked = ["run", "a", PROMPT, "--max-new-tokens", 16, "--temperature", 1.5]
    state = torch.get_rng_state()

    first = adapt.json(*asked)
    again = adapt.json(*asked, "--seed", first["seed"])
    other = adapt.json(*asked, "--seed", first["seed"] + 1)

    assert again["text"] == first["text"] != other["text"]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_tiny_share_of_the_likeliest_is_greedy(adapt: Adapt) -> None:
    greedy = adapt.ok("run", "a", PROMPT, "--max-new-tokens", 10)

    assert adapt.ok("run", "a", PROMPT, "--max-new-tokens", 10, "--top-p", 0.0001) == greedy


# ---------------------------------------------------------------- side by side
@pytest.mark.parametrize(
    "words", [["a", PROMPT, "--compare", "b"], ["--compare", "a", "--compare", "b", PROMPT]], ids=["beside", "only"]
)
def test_compared_answers_are_those_of_each_alone(words: list[str], adapt: Adapt, made: Path, model: Any) -> None:
    asked = [*words, "--compare", "a:0.5,b:0.5", "--compare", "none", "--max-new-tokens", 12]

    document = adapt.json("run", *asked)
    said = adapt.ok("run", *asked)

    choices = {"a": "a", "b": "b", "0.5 x a + 0.5 x b": {"a": 0.5, "b": 0.5}, "none": None}
    expected = {label: alone(made, model, choice, Question(text=PROMPT)) for label, choice in choices.items()}
    assert {answer["answered_by"]: answer["text"] for answer in document["answers"]} == expected
    assert said == "\n".join(f"== {label}\n{text}\n" for label, text in expected.items())
    assert len(set(expected.values())) == 4


def test_those_compared_may_stand_between_commas(adapt: Adapt) -> None:
    asked = ["run", "a>=1,<2", PROMPT, "--compare", "b>=1,<2,a:0.5,b:0.5,none"]

    said = adapt.fails(2, *asked)  # one of them has a weight
    document = adapt.json(
        *asked[:3], "--compare", "b>=1,<2,none", "--compare", "a>=1,<2:0.5,b:0.5", "--max-new-tokens", 2
    )

    assert "expected a spec, a colon and a number" in said
    labels = ["a>=1,<2", "b>=1,<2", "none", "0.5 x a>=1,<2 + 0.5 x b"]
    assert [answer["answered_by"] for answer in document["answers"]] == labels


def environment(made: Path) -> dict[str, str]:
    return os.environ | {"ADAPTERHUB_HOME": str(made / "home"), "COLUMNS": "60", "TERM": "dumb"}


def test_compared_answers_stand_in_columns_on_a_terminal(made: Path) -> None:
    words = ("run", "a", "Hi", "--compare", "none", "--max-new-tokens", 4, "--quiet")
    ours, theirs = pty.openpty()

    with forked(*words, environ=environment(made), stdout=theirs) as running:
        os.close(theirs)
        said = b""
        while piece := _read(ours):
            said += piece
        complaints = running.stderr.read().decode()

    assert running.returncode == 0, complaints
    header = said.decode().splitlines()[:2]
    assert any(line.split() == ["a", "none"] for line in header)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says so when the other end is closed
        return b""


# ---------------------------------------------------------------- cut off
@pytest.mark.parametrize("how", ["interrupted", pytest.param("closed pipe", marks=pytest.mark.exhaustive)])
def test_an_answer_may_be_cut_off(how: str, made: Path) -> None:
    with forked("run", "a", "Hi", "--max-new-tokens", 250, environ=environment(made)) as running:
        first = running.stdout.read(1)  # the answer has begun
        if how == "interrupted":
            running.send_signal(signal.SIGINT)
            rest = running.stdout.read()
        else:
            running.stdout.close()
            rest = b""
        complaints = running.stderr.read().decode()

    assert (running.returncode, len(first)) == (130, 1), complaints
    assert len(rest) < 249
    assert "Traceback" not in complaints
    assert "Exception" not in complaints


def test_help_and_refusals_load_nothing_heavy(made: Path) -> None:
    code = """
import sys
from adapterhub.cli import _run
for words in (["--help"], ["a", "b", "c"], ["a", "Hi", "--seed", "1"], ["a", "--batch", "nowhere.jsonl"]):
    sys.argv = ["adapt", "run", *words]
    _run()
print([name for name in ("torch", "transformers", "peft", "numpy", "rich", "bitsandbytes") if name in sys.modules])
"""
    command = [sys.executable, "-c", code]

    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(made))

    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr.count("error: ") == 3


# ---------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected a spec and a prompt"),
        (["a", "Hi", "there"], "3 words"),
        (["Hi", "--compare", "a", "b", "none"], "--compare legal-qa,summarize,none"),
        (["--with", "a:1,b:1", "b", "Hi"], "2 words"),
        (["--with", "a", "Hi", "--compare", "a"], "is named twice"),
        (["--with", "a:x,b:1", "Hi"], "expected a spec, a colon and a number"),
        (["a", "Hi", "--system", "x", "--no-chat"], "--no-chat"),
        (["a", "Hi", "--seed", "1"], "`--seed` has no effect without sampling"),
        (["a", "Hi", "--temperature", "0", "--top-p", "0.5"], "`--top-p` has no effect without sampling"),
        (["a", "Hi", "--out", "x"], "--batch"),
        (["a", "--batch", "x", "--compare", "b"], "exclude each other"),
        (["a", "Hi", "--batch", "x"], "2 words"),
        (["a", ""], "the prompt is empty"),
        (["a", "x" * 300], "300 tokens"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused(words: list[str], said: str, adapt: Adapt) -> None:
    assert said in adapt.fails(2, "run", *words)


def test_adapters_for_two_bases_are_not_asked_together(tmp_path: Path, made: Path) -> None:
    adapt = Adapt(tmp_path)
    library = adapt.library
    for seed, alias in enumerate(("one", "two")):
        library.catalog.put_base(library.bases.add(write_base(tmp_path / alias, seed=seed), alias))

    said = adapt.fails(2, "run", "a@one", "Hi", "--compare", "b@two")

    assert "only one can run at a time" in said


def test_packing_without_its_package_names_the_extra(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed

    with pytest.raises(UsageProblem) as refused:
        load_base(made / "base", load_in="4bit")

    assert "adapterhub[quantized]" in refused.value.hint


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Incompatible):
        load_base(tmp_path)


# ---------------------------------------------------------------- many prompts
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


def test_python_answers_a_file_several_prompts_and_side_by_side(made: Path, tmp_path: Path) -> None:
    library = adapterhub.Library(made / "home")
    short: Any = {"max_new_tokens": 4}

    rows = library.run(
        {}, batch=write_rows(tmp_path, [{"prompt": PROMPT}, {"prompt": PROMPT, "adapter": "a"}]), **short
    )
    several = library.run("a", [PROMPT, PROMPT], **short)
    compared = library.run({}, PROMPT, compare=["a", {"a": 1.0}], prove_base=True, **short)

    bare, adapted = (answer.text for answer in rows)
    assert [answer.text for answer in several] == [adapted, adapted] != [bare, bare]
    assert [answer.text for answer in compared] == [bare, adapted, adapted]
    assert compared.base_unchanged
    with pytest.raises(UsageProblem):
        library.run("a")
    with pytest.raises(UsageProblem):
        library.run("a", PROMPT, batch="rows.jsonl")


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


def test_answers_that_find_no_room_are_printed(adapt: Adapt, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, [{"prompt": "Hi", "adapter": "a"}] * 30)

    with files_of_at_most(1000):
        done = adapt("run", "--batch", rows, "--out", tmp_path / "out.jsonl", "--max-new-tokens", 2)

    assert (done.exit_code, done.stdout.count("\n")) == (14, 30)
    assert "The answers went to stdout instead" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


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


# ---------------------------------------------------------------- the prompt form of the build
def asked(made: Path, model: Any, form: PromptForm, count: int = 6) -> str:
    return alone(made, model, "a", Question(text=PROMPT, form=form), count)


def test_the_prompt_takes_the_form_of_the_build_and_a_note_says_so(adapt: Adapt, made: Path, model: Any) -> None:
    framed = adapt("run", "framed", PROMPT)
    assert framed.stdout == asked(made, model, FRAME) + "\n" != asked(made, model, RAW) + "\n"
    assert "prompt form: template, `Ask: {input} Say:` for `framed`" in framed.stderr
    chatty = adapt.json("run", "chatty", PROMPT, "--max-new-tokens", 6)
    assert chatty["text"] == asked(made, model, BRIEF)
    assert chatty["prompt_form"].items() > BRIEF.to_json().items()  # and the digest of the base's template


def test_its_own_chat_template_is_used(adapt: Adapt, made: Path, model: Any) -> None:
    base, tokenizer = model
    tokens = all_tokens_of(base, tokenizer, [Question(text="Hi", form=OTHER)], Writing())[0]
    assert tokens == tokenizer("[user] Hi ", add_special_tokens=False)["input_ids"]
    said = adapt("run", "other", PROMPT, "--max-new-tokens", 6)
    assert said.stdout == asked(made, model, OTHER) + "\n" != asked(made, model, CHAT) + "\n"
    assert "its own chat template" in said.stderr


@pytest.mark.parametrize(
    ("options", "form"),
    [
        (["--raw"], RAW),
        (["--no-chat"], RAW),
        (["--chat"], CHAT),
        (["--system", "Be brief"], BRIEF),
        (["--template", "{input}?"], PromptForm(form="template", template="{input}?")),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else None,
)
def test_what_is_typed_goes_before_the_build(
    options: list[str], form: PromptForm, adapt: Adapt, made: Path, model: Any
) -> None:
    said = adapt("run", "framed", PROMPT, *options, "--max-new-tokens", 6)
    assert said.stdout == asked(made, model, form) + "\n"
    assert "`framed` states template, `Ask: {input} Say:`" in said.stderr


def test_a_chat_that_is_typed_keeps_the_adapter_s_own_template() -> None:
    assert Typed(chat=True).form(OTHER) == OTHER
    assert Typed(system="Hi").form(OTHER).chat_template == OWN


@pytest.mark.parametrize(
    "options", [["--raw", "--system", "x"], ["--template", "{input}", "--chat"], ["--template", "no place"]]
)
def test_what_contradicts_itself_is_refused_before_anything_is_loaded(options: list[str], adapt: Adapt) -> None:
    adapt.fails(2, "run", "framed", PROMPT, *options)


def test_of_several_forms_that_of_the_heaviest_is_used(adapt: Adapt, made: Path, model: Any) -> None:
    said = adapt("run", "--with", "framed:0.3,chatty:0.7", PROMPT, "--max-new-tokens", 6)
    mixture = {"framed": 0.3, "chatty": 0.7}
    assert said.stdout == alone(made, model, mixture, Question(text=PROMPT, form=BRIEF), 6) + "\n"
    assert "as `chatty` weighs most; `framed` states template" in said.stderr
    assert wish_of({"a": 1.0, "b": -2.0, "c": 9.0}, {"a": FRAME, "b": BRIEF, "c": None}, Typed()).form == BRIEF


def test_compared_adapters_are_each_asked_in_their_form_and_the_base_as_the_first(
    adapt: Adapt, made: Path, model: Any
) -> None:
    document = adapt.json("run", "framed", PROMPT, "--compare", "chatty,none", "--max-new-tokens", 6)
    texts = [answer["text"] for answer in document["answers"]]
    base = alone(made, model, None, Question(text=PROMPT, form=FRAME), 6)
    assert texts == [asked(made, model, FRAME), asked(made, model, BRIEF), base]
    assert [answer["prompt_form"]["form"] for answer in document["answers"]] == ["template", "chat", "template"]


def test_rows_of_a_batch_are_each_asked_in_the_form_of_their_adapter(
    adapt: Adapt, made: Path, model: Any, tmp_path: Path
) -> None:
    names = {"framed": FRAME, "other": OTHER}
    rows = [{"prompt": PROMPT, "adapter": name} for name in names]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "Hi", "adapter": None}])
    )
    document = adapt.json("run", "--batch", tmp_path / "rows.jsonl")
    texts = [answer["text"] for answer in document["answers"]]
    limits = [form.max_new_tokens or 64 for form in names.values()]
    expected = [asked(made, model, form, limit) for form, limit in zip(names.values(), limits, strict=True)]
    assert texts[:2] == expected  # each its own length, in one batch
    assert texts[2] == alone(made, model, None, Question(text="Hi"), 64)


def test_a_template_that_neither_build_nor_base_has_is_warned_of(adapt: Adapt) -> None:
    assert "`lost` wants another chat template than this base has" in adapt("run", "lost", "Hi").stderr


def test_answers_end_before_a_stop_text_each_by_itself(model: Any) -> None:
    base, tokenizer = model
    (whole,) = write(base, tokenizer, [Question(text=PROMPT)], Writing(max_new_tokens=20))
    stop = whole.text[5:7]
    form = PromptForm(form="raw", stop=("no such", stop))
    pieces: list[str] = []
    (ended,) = write(
        base, tokenizer, [Question(text=PROMPT, form=form)], Writing(max_new_tokens=20), on_text=pieces.append
    )
    assert ended.text == before_stop(whole.text, [stop]) == "".join(pieces)
    assert ended.tokens < whole.tokens
    questions = [Question(text=PROMPT, form=form), Question(text=PROMPT), Question(text=PROMPT, max_new_tokens=3)]
    both = write(base, tokenizer, questions, Writing(max_new_tokens=20))
    assert [answer.text for answer in both] == [ended.text, whole.text, whole.text[:3]]
    assert [answer.tokens for answer in both] == [ended.tokens, 20, 3]


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_stop_that_comes_in_pieces_is_held_back(cut: int) -> None:
    text = "a #b ## c###d"
    parts = [text[at : at + cut] for at in range(0, len(text), cut)]
    tokenizer: Any = SimpleNamespace(decode=lambda tokens, **_: "".join(parts[token] for token in tokens))
    pieces: list[str] = []
    row = _Row(tokenizer, ["###", "#!"], 99, frozenset(), pieces.append)
    for token in range(len(parts)):
        row.put(token)
    row.end()
    assert "".join(pieces) == "a #b ## c"
    assert row.is_over


def test_hostile_chat_template_of_a_build_is_refused_in_words(adapt: Adapt, made: Path) -> None:
    jinja = "{{ 'a' * 10**9 }}"
    form = PromptForm(form="chat", chat_template=jinja, chat_template_sha256=template_digest(jinja))
    adapterhub.Library(made / "home").add(made / "a", name="hostile", base="base-7b", prompt=form)
    refusal = adapt("run", "hostile", "Hi")
    assert (refusal.exit_code, refusal.stdout) == (ChatTemplateRefused.exit_code, "")
    assert "it makes more than the limits allow" in refusal.stderr
    assert "`--raw`" in refusal.stderr


def test_template_of_a_base_with_several_is_known_by_the_digest_of_its_hints(made: Path, tmp_path: Path) -> None:
    named = [{"name": "default", "template": OWN}, {"name": "tool_use", "template": "x"}]
    shutil.copytree(made / "base", tmp_path / "several")
    (tmp_path / "several" / "chat_template.jinja").unlink(missing_ok=True)
    config = tmp_path / "several" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": named}))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "several")
    form = PromptForm(form="chat", chat_template_sha256=read_hints(tmp_path / "several").chat_template_sha256)
    assert not has_other_template(form, tokenizer)
    assert has_other_template(LOST, tokenizer)
    assert prompt_texts(form, ["Hi"], tokenizer) == ["[user] Hi "]


def test_pairs_are_two_texts_with_one_tab(model: Any) -> None:
    _, tokenizer = model
    form = PromptForm(form="text", pair=True)
    assert prompt_tokens(form, ["Hi\tYes", ("Hi", "Yes")], tokenizer) == [tokenizer("Hi", "Yes")["input_ids"]] * 2
    with pytest.raises(UsageProblem, match="pairs of texts"):
        prompt_tokens(form, ["Hi"], tokenizer)
