"""The prompt form goes along: in merges, resizes, extractions, exports and cards."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import adapterhub
from adapterhub import PromptForm
from adapterhub.core.specs import parse_name
from adapterhub.formats.cards.card import license_in, make_card
from adapterhub.formats.manifest import Manifest
from adapterhub.formats.prompts.form import template_digest
from adapterhub.formats.prompts.modelfile import PROMPT_PREFIX, form_in_modelfile, prompt_prefix
from adapterhub.inference.export import export
from adapterhub.library.intake.description import Description
from tests.contracts.export import SHAPES, library_with_base
from tests.support.adapter_folders import write_folder
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

FRAME = PromptForm(form="template", template='{{"q"}}: {input}\nA:', stop=("\n", "|"), max_new_tokens=9)
CHAT = PromptForm(form="chat", system="Be brief.")


# ---------------------------------------------------------------- merge, resize, extract
@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    library = adapterhub.Library(tmp_path / "home")
    library.bases.add(make_base(tmp_path / "base"), "tiny")
    for seed, (name, form) in enumerate({"a": FRAME, "b": FRAME, "chat": CHAT, "plain": None}.items()):
        folder = make_adapter(tmp_path / name, seed=seed)
        library.add(folder, name=name, base="tiny", prompt=form)
    return Adapt(tmp_path)


def form_of(adapt: Adapt, name: str) -> PromptForm | None:
    return adapterhub.Library(adapt.folder / "home").find(name).manifest.prompt


@pytest.mark.parametrize(("parents", "kept"), [("a b", FRAME), ("a chat", None), ("a plain", None)])
def test_merge_keeps_the_form_that_its_parents_agree_on(parents: str, kept: PromptForm | None, adapt: Adapt) -> None:
    done = adapt("merge", *parents.split(), "-o", "made")
    assert done.exit_code == 0, done.stderr
    assert form_of(adapt, "made") == kept
    assert ("states no prompt form, because its parents differ" in done.stderr) is (kept is None)
    adapt.ok("resize", "a", "--rank", 2)
    assert form_of(adapt, "a-r2") == FRAME
    assert "a folder holds no prompt form" in adapt("resize", "a", "--rank", 2, "-o", "./small").stderr


def test_diff_names_the_forms(adapt: Adapt) -> None:
    rows = {row["field"]: row for row in adapt.json("compare", "--diff", "a", "chat")["manifest"]}
    assert rows["behaviour.prompt.form"]["first"] == "template"
    assert rows["behaviour.prompt.form"]["second"] == "chat"
    assert "behaviour.prompt.system" in adapt.ok("compare", "--diff", "a", "chat")


def test_extraction_keeps_the_tuned_model_s_other_chat_template(adapt: Adapt) -> None:
    tuned = make_base(adapt.folder / "tuned", seed=5)
    (adapt.folder / "base" / "chat_template.jinja").write_text("{{ messages }}")
    (tuned / "chat_template.jinja").write_text("{{ messages[0] }}")
    adapt.ok("base", "add", "base", "--as", "again")
    done = adapt("extract", "./tuned", "--base", "again", "--rank", 2, "-o", "made")
    assert done.exit_code == 0, done.stderr
    form = form_of(adapt, "made")
    assert form is not None
    assert (form.form, form.chat_template) == ("chat", "{{ messages[0] }}")
    assert "keeps the chat template" in done.stderr


# ---------------------------------------------------------------- export
@pytest.mark.parametrize("form", [FRAME, CHAT, PromptForm(form="raw")], ids=lambda form: form.form)
def test_exports_say_how_to_ask(form: PromptForm, tmp_path: Path) -> None:
    import gguf

    library = library_with_base(tmp_path)
    about = Description(name=parse_name("legal-qa"), version="1.2.0", prompt=form)
    library.add(write_folder(tmp_path / "adapter", SHAPES), about, base=library.bases.get("tiny"))
    written = export("legal-qa", tmp_path / "out.gguf", form="gguf", library=library)
    export("legal-qa", tmp_path / "out", form="ollama", library=library, ollama_base="tiny:latest")

    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    before = form.parts[0]
    assert (fields[PROMPT_PREFIX].contents() if PROMPT_PREFIX in fields else "") == before
    assert (prompt_prefix((tmp_path / "out.gguf").read_bytes()) or "") == before
    assert any("after it comes `\\nA:`" in note for note in written.notes) is (form is FRAME)
    modelfile = (tmp_path / "out" / "Modelfile").read_text()
    assert form_in_modelfile(modelfile) == form
    # and `add` takes it from there
    again = shutil.copytree(tmp_path / "adapter", tmp_path / "again")
    (again / "Modelfile").write_text(modelfile)
    assert adapterhub.Library(tmp_path / "other").add(again).build.manifest.prompt == form


# ---------------------------------------------------------------- card
def manifest(form: PromptForm, card: str = "", licence: str | None = None) -> Manifest:
    base = adapterhub.Manifest.parse(
        b'{"schema":"adapterhub/1","name":"legal-qa","version":"1.0.0","base":{},"method":["LORA"],"files":['
        b'{"path":"adapter_config.json","sha256":"sha256:' + b"0" * 64 + b'","size_bytes":1},'
        b'{"path":"adapter_model.safetensors","sha256":"sha256:' + b"0" * 64 + b'","size_bytes":1}]}'
    )
    return replace(base, card=card, license=licence).with_prompt(form)


def test_card_says_how_to_ask() -> None:
    card = make_card(manifest(FRAME, licence="MIT"), repo="acme/legal-qa").text
    assert "prompt = '{\"q\"}: ' + question + '\\nA:'" in card
    assert "inference:\n  parameters:\n    max_new_tokens: 9\n    stop:" in card
    assert "| prompt form | template, `" in card
    assert license_in(card) == "MIT"
    chat = make_card(manifest(CHAT), repo="acme/legal-qa").text
    assert "in a chat, with the base's chat template and the system text `Be brief.`" in chat


def test_card_keeps_the_author_s_settings_and_its_table() -> None:
    own = "---\ninference:\n  parameters: {max_new_tokens: 5}\n---\n# Mine\n"
    form = PromptForm(form="template", template="a | b\n| license | GPL |\n{input}", max_new_tokens=9)
    card = make_card(manifest(form, own, licence="MIT"), repo="acme/legal-qa").text
    assert "max_new_tokens: 5" in card
    assert "max_new_tokens: 9" not in card
    assert license_in(card) == "MIT"
    off = make_card(manifest(form, "---\ninference: false\n---\n")).text
    assert "inference: false" in off


def test_own_chat_template_is_named_on_the_card() -> None:
    form = PromptForm(form="chat", chat_template="x", chat_template_sha256=template_digest("x"))
    assert "its own chat template" in make_card(manifest(form), repo="acme/legal-qa").text
