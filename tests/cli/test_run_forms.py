"""`adapt run` asks each adapter in the prompt form that its build states, says so, and lets the user go before it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

import adapterhub
from adapterhub.core.errors import ChatTemplateRefused, UsageProblem
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
from adapterhub.inference.generation import Question, StopGate, Writing, before_stop, tokens_of, write
from adapterhub.inference.loader.text import load_base
from tests.support.command_line import Adapt
from tests.support.run_library import PROMPT, alone, make_library

OWN = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
FRAME = PromptForm(form="template", template="Ask: {input} Say:", max_new_tokens=6)
CHAT = PromptForm(form="chat", system="Be brief")
OTHER = PromptForm(form="chat", chat_template=OWN, chat_template_sha256=template_digest(OWN), max_new_tokens=9)
LOST = PromptForm(form="chat", chat_template_sha256=template_digest("gone"))
FORMS = {"framed": FRAME, "chatty": CHAT, "other": OTHER, "lost": LOST}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_library(tmp_path_factory.mktemp("forms"))
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


def asked(made: Path, model: Any, form: PromptForm, count: int = 6) -> str:
    return alone(made, model, "a", Question(text=PROMPT, form=form), count)


def test_the_prompt_takes_the_form_of_the_build_and_a_note_says_so(adapt: Adapt, made: Path, model: Any) -> None:
    framed = adapt("run", "framed", PROMPT)
    assert framed.stdout == asked(made, model, FRAME) + "\n" != asked(made, model, RAW) + "\n"
    assert "prompt form: template, `Ask: {input} Say:` for `framed`" in framed.stderr
    chatty = adapt.json("run", "chatty", PROMPT, "--max-new-tokens", 6)
    assert chatty["text"] == asked(made, model, CHAT)
    assert chatty["prompt_form"].items() > CHAT.to_json().items()  # and the digest of the base's template


def test_its_own_chat_template_is_used(adapt: Adapt, made: Path, model: Any) -> None:
    base, tokenizer = model
    tokens = tokens_of(base, tokenizer, Question(text="Hi", form=OTHER), Writing())
    assert tokens == tokenizer("[user] Hi ", add_special_tokens=False)["input_ids"]
    said = adapt("run", "other", PROMPT, "--max-new-tokens", 6)
    assert said.stdout == asked(made, model, OTHER) + "\n" != asked(made, model, PromptForm(form="chat")) + "\n"
    assert "its own chat template" in said.stderr


@pytest.mark.parametrize(
    ("options", "form"),
    [
        (["--raw"], RAW),
        (["--no-chat"], RAW),
        (["--chat"], PromptForm(form="chat")),
        (["--system", "Be brief"], CHAT),
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
    assert said.stdout == alone(made, model, mixture, Question(text=PROMPT, form=CHAT), 6) + "\n"
    assert "as `chatty` weighs most; `framed` states template" in said.stderr
    assert wish_of({"a": 1.0, "b": -2.0, "c": 9.0}, {"a": FRAME, "b": CHAT, "c": None}, Typed()).form == CHAT


def test_compared_adapters_are_each_asked_in_their_form_and_the_base_as_the_first(
    adapt: Adapt, made: Path, model: Any
) -> None:
    document = adapt.json("run", "framed", PROMPT, "--compare", "chatty,none", "--max-new-tokens", 6)
    texts = [answer["text"] for answer in document["answers"]]
    base = alone(made, model, None, Question(text=PROMPT, form=FRAME), 6)
    assert texts == [asked(made, model, FRAME), asked(made, model, CHAT), base]
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
    pieces: list[str] = []
    gate = StopGate(pieces.append, ["###", "#!"])
    for text in ("a #b ## c##", "#d"):
        for at in range(0, len(text), cut):
            gate.send(text[at : at + cut])
    gate.end()
    assert "".join(pieces) == "a #b ## c"


def test_python_asks_in_the_form_of_the_build(made: Path, model: Any) -> None:
    library = adapterhub.Library(made / "home")
    assert library.run("framed", PROMPT)[0].text == asked(made, model, FRAME)
    assert library.run("framed", PROMPT, chat=False, max_new_tokens=6)[0].text == asked(made, model, RAW)
    with pytest.raises(UsageProblem):
        library.run("framed", PROMPT, chat=True, template="{input}")


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
