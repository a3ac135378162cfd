"""`adapt run`: one answer as it comes, chats, drawing, side by side; on a small base with random weights."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub.core.errors import Incompatible, UsageProblem
from adapterhub.formats.prompts.form import PromptForm
from adapterhub.inference.generation import Question, Writing, tokens_of, write
from adapterhub.inference.loader.text import load_base
from tests.support.command_line import Adapt
from tests.support.forked import forked
from tests.support.run_library import PROMPT, alone, make_library, on_stdin, write_base

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


CHAT, BRIEF = PromptForm(form="chat"), PromptForm(form="chat", system="Be brief")


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

    read = [tokenizer.decode(tokens_of(base, tokenizer, question, Writing())) for question in questions]

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
        (["a", "Hi", "--seed", "1"], "`--seed` needs sampling"),
        (["a", "Hi", "--temperature", "0", "--top-p", "0.5"], "`--top-p` needs sampling"),
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
