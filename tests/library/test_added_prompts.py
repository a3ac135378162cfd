"""The prompt form that `add` records: typed, taken from the folder where that is certain, or only told."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest

import adapterhub
from adapterhub import PromptForm
from adapterhub.core.errors import Malformed, UsageProblem
from adapterhub.formats.base.fingerprint import BaseHints
from adapterhub.formats.prompts.form import template_digest
from adapterhub.formats.prompts.modelfile import LOOKED_AT_BYTES, form_in_modelfile, modelfile_lines, prompt_prefix
from adapterhub.library.intake.prompts import choose_form, template_in
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter

JINJA = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def write_gguf(path: Path, **values: str) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokens", ["a", "b"])
    for key, value in values.items():
        writer.add_string(key.replace("__", "."), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


# ---------------------------------------------------------------- Modelfile
@pytest.mark.parametrize(
    "form",
    [
        PromptForm(form="raw"),
        PromptForm(form="template", template="Q: {input}\nA:", stop=("\n", '"end"'), max_new_tokens=40),
        PromptForm(form="template", template='  {{{{"q"}}: {input}" '),
        PromptForm(form="chat", system='Say "yes" or\nno.'),
    ],
    ids=lambda form: form.label[:30],
)
def test_form_comes_back_from_a_modelfile(form: PromptForm) -> None:
    lines, notes = modelfile_lines(form)
    assert not notes
    assert form_in_modelfile("\n".join(["# a comment", "FROM base", *lines, ""])) == form


def test_text_with_three_quotes_and_a_jinja_template_are_told() -> None:
    lines, notes = modelfile_lines(PromptForm(form="chat", system='a """ b'))
    assert not lines
    assert "three quotes" in notes[0]
    own = PromptForm(form="chat", chat_template=JINJA, chat_template_sha256=template_digest(JINJA))
    assert "Jinja" in modelfile_lines(own)[1][0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("TEMPLATE {{ .System }} {{ .Prompt }}", "`{{ .System }} `"),
        ("TEMPLATE {{- .Prompt }}", "`{{- .Prompt }}`"),
        ("TEMPLATE {{ .Prompt }}{{ .Prompt }}", "2 places"),
        ("TEMPLATE nothing", "0 places"),
        ("TEMPLATE {{ .Prompt }}\nSYSTEM x", "without a place"),
        (f"SYSTEM {'x' * (17 << 10)}", "at most 16,384 bytes"),
    ],
)
def test_template_that_is_not_literal_is_named(text: str, reason: str) -> None:
    with pytest.raises(Malformed, match="Modelfile") as refusal:
        form_in_modelfile(text)
    assert reason in str(refusal.value)


def test_modelfile_without_prompts_or_with_open_quotes_says_nothing() -> None:
    assert form_in_modelfile("FROM x\nPARAMETER temperature 0.7") is None
    assert form_in_modelfile('SYSTEM """never ends\n') is None


# ---------------------------------------------------------------- GGUF
def test_prefix_is_read_from_a_file_of_the_gguf_package(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", adapter__type="lora", adapter__lora__prompt_prefix="Q: é")
    assert prompt_prefix(path.read_bytes()) == "Q: é"
    assert prompt_prefix(write_gguf(tmp_path / "b.gguf", adapter__type="lora").read_bytes()) is None


def test_damaged_gguf_gives_no_prefix(tmp_path: Path) -> None:
    raw = write_gguf(tmp_path / "a.gguf", adapter__lora__prompt_prefix="Q").read_bytes()
    for end in range(len(raw) - 8):
        assert prompt_prefix(raw[:end]) in (None, "Q")
    for at in range(len(raw)):
        prompt_prefix(raw[:at] + b"\xff" + raw[at + 1 :])
    assert prompt_prefix(b"GGUF" + b"\x03\0\0\0" + b"\xff" * LOOKED_AT_BYTES) is None


# ---------------------------------------------------------------- the folder
@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "out")


def test_chat_template_is_told_and_kept_when_asked_for(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(JINJA)
    told = choose_form(folder, None, None)
    assert told.form is None
    assert "which may not be its base's: `--prompt chat` keeps it" in told.note
    kept = choose_form(folder, PromptForm(form="chat", system="Hi"), None).form
    assert kept == PromptForm(
        form="chat", system="Hi", chat_template=JINJA, chat_template_sha256=template_digest(JINJA)
    )
    assert choose_form(folder, PromptForm(form="raw"), None).form == PromptForm(form="raw")


def test_chat_template_of_the_base_is_not_kept_again(folder: Path) -> None:
    hints = BaseHints(chat_template_sha256=template_digest(JINJA))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": JINJA}))
    assert choose_form(folder, None, hints) == choose_form(folder.parent / "no-such", None, hints)
    chat = choose_form(folder, PromptForm(form="chat"), hints).form
    assert chat == PromptForm(form="chat", chat_template_sha256=template_digest(JINJA))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": JINJA + "!"}))
    assert "other than its base's" in choose_form(folder, None, hints).note


def test_default_one_of_several_templates_is_meant(folder: Path) -> None:
    named: Any = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": JINJA}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    found = template_in(folder)
    assert found is not None
    assert found.text == JINJA
    for other in ([{"name": "x"}], [1], {"a": "b"}, 7, [{"name": ["default"], "template": "x"}]):
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": other}))
        assert template_in(folder) is None


def test_too_long_a_chat_template_is_refused_by_its_size(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("x" * ((64 << 10) + 1))
    with pytest.raises(UsageProblem, match="65,537 bytes, and a build holds at most 65,536"):
        choose_form(folder, PromptForm(form="chat"), None)


def test_link_out_of_the_folder_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("SYSTEM secret")
    (folder / "Modelfile").symlink_to(tmp_path / "secret")
    (folder / "chat_template.jinja").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "tokenizer_config.json")
    assert choose_form(folder, None, None).form is None
    assert template_in(folder) is None


def test_lesser_signs_are_told(folder: Path) -> None:
    write_gguf(folder / "a.gguf", adapter__lora__prompt_prefix="Q {1}: ")
    (folder / "README.md").write_text("---\nwidget:\n- messages: [{role: user, content: Hi}]\n---\n")
    (folder / "Modelfile").write_text("TEMPLATE {{ .System }}{{ .Prompt }}")
    note = choose_form(folder, None, None).note
    assert "`{{ .System }}`" in note
    assert "begins prompts with `Q {{1}}: {input}`" in note
    assert "its card shows a conversation" in note


# ---------------------------------------------------------------- the command
def test_add_records_what_was_typed_and_what_a_modelfile_says(folder: Path, tmp_path: Path) -> None:
    adapt = Adapt(tmp_path)
    typed = adapt.json("add", folder, "--name", "typed", "--template", "Q: {input}")
    template = PromptForm(form="template", template="Q: {input}")
    assert adapt.library.store.read_manifest(typed["digest"]).prompt == template
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "Modelfile").write_text('TEMPLATE """Q: {{ .Prompt }}"""\nPARAMETER stop "#"\n')
    told = adapt("add", "other").stderr
    assert "took the prompt form from `Modelfile`: template, `Q: {input}`; `--prompt` names another" in told
    form = {"form": "template", "template": "Q: {input}", "stop": ["#"]}
    assert adapt.json("show", "other")["behaviour"]["prompt"] == form
    assert "template, `Q: {input}`" in adapt.ok("show", "other")


def test_add_refuses_what_contradicts_and_warns_of_backslashes(folder: Path, tmp_path: Path) -> None:
    adapt = Adapt(tmp_path)
    refusal = adapt.fails(2, "add", folder, "--prompt", "raw", "--system", "Hi")
    assert "`--system`: belongs to the form chat, and this one is raw" in refusal
    assert not list(adapt.library.installed())
    assert r"holds `\n` as two characters" in adapt("add", folder, "--template", r"Q: {input}\n").stderr


def test_python_adds_with_a_form_and_notes_what_it_took(folder: Path, tmp_path: Path) -> None:
    library = adapterhub.Library(tmp_path / "home")
    form = PromptForm(form="chat", system="Be brief.")
    assert library.add(folder, prompt=form).build.manifest.prompt == form
    (folder / "Modelfile").write_text("SYSTEM Be long.")
    taken = library.add(folder, name="taken").build.manifest.prompt
    assert taken == PromptForm(form="chat", system="Be long.")


def test_form_that_no_manifest_may_hold_is_refused_before_anything_is_stored(folder: Path, tmp_path: Path) -> None:
    library = adapterhub.Library(tmp_path / "home")
    with pytest.raises(Malformed, match="exactly one"):
        library.add(folder, prompt=PromptForm(form="template", template="{input}{input}"))
    assert not list(library.installed())
