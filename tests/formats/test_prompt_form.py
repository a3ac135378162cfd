"""`PromptForm`: what it accepts, what a question becomes, and how a manifest holds it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from adapterhub import Manifest
from adapterhub.core.digests import canonical_json
from adapterhub.core.errors import DigestMismatch, Malformed, MalformedManifest, UsageProblem
from adapterhub.formats.prompts.form import PromptForm, prompt_texts, template_digest, template_of

JINJA = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
FILES = [
    {"path": path, "sha256": "sha256:" + "0" * 64, "size_bytes": 1}
    for path in ("adapter_config.json", "adapter_model.safetensors")
]
FORMS: list[dict[str, Any]] = [
    {"form": "raw"},
    {"form": "raw", "add_special_tokens": False, "stop": ["\n"], "max_new_tokens": 512},
    {"form": "template", "template": "Q: {input}\nA:", "stop": ["\n", "Q:"], "max_new_tokens": 1},
    {"form": "template", "template": '{{"q": "{input}"}}'},
    {"form": "chat"},
    {"form": "chat", "system": "Be brief.", "generation_prompt": False, "add_special_tokens": True},
    {"form": "chat", "chat_template_sha256": template_digest(JINJA), "chat_template": JINJA},
    {"form": "text", "pair": True},
]


def manifest_value() -> dict[str, Any]:
    named = {"schema": "adapterhub/1", "name": "m", "version": "1.0.0", "base": {}}
    return named | {"method": ["LORA"], "files": FILES}


@pytest.mark.parametrize("value", FORMS, ids=lambda v: v["form"])
def test_form_comes_back_from_json_and_from_a_manifest(value: dict[str, Any]) -> None:
    form = PromptForm.from_json(value)
    assert form.to_json() == value
    manifest = Manifest.parse(canonical_json(manifest_value() | {"behaviour": {"prompt": value}}))
    assert manifest.prompt == form
    assert manifest.with_prompt(None).with_prompt(form).digest == manifest.digest


def test_defaults_are_left_out_and_depend_on_the_form() -> None:
    assert PromptForm.from_json({"form": "chat", "generation_prompt": True, "stop": []}).to_json() == {"form": "chat"}
    assert not PromptForm(form="chat").has_special_tokens
    assert PromptForm(form="template", template="{input}").has_special_tokens


REFUSED: list[tuple[Any, str]] = [
    ("raw", "prompt: expected object"),
    ({}, "prompt.form: missing"),
    ({"form": "jinja"}, "prompt.form: expected one of raw, template, chat, text"),
    ({"form": "raw", "templat": "x"}, "prompt.templat: no such key; did you mean `template`?"),
    ({"form": "template"}, "prompt.template: missing"),
    ({"form": "template", "template": "no place"}, "expected exactly one `{input}`, got none"),
    ({"form": "template", "template": "{input} {input}"}, "exactly one `{input}`, got more"),
    ({"form": "template", "template": "{{input}}"}, "got none"),
    ({"form": "template", "template": "{0} {input}"}, "`{` stands alone at character 1"),
    ({"form": "template", "template": "{input.__class__}"}, "stands alone"),
    ({"form": "template", "template": "{input}" + "x" * (16 << 10)}, "at most 16,384 bytes"),
    ({"form": "template", "template": "{input}" + "é" * (8 << 10)}, "at most 16,384 bytes"),
    ({"form": "raw", "template": "{input}"}, "prompt.template: belongs to the form template"),
    ({"form": "raw", "system": "x"}, "prompt.system: belongs to the form chat"),
    ({"form": "chat", "system": None}, "prompt.system: expected string, got null"),
    ({"form": "chat", "system": "\ud800"}, "half a character"),
    ({"form": "chat", "chat_template": JINJA}, "chat_template_sha256: missing"),
    ({"form": "chat", "chat_template_sha256": "sha256:12"}, "chat_template_sha256: expected sha256:"),
    ({"form": "chat", "pair": True}, "prompt.pair: belongs to the form text"),
    ({"form": "chat", "generation_prompt": 1}, "expected boolean, got integer"),
    ({"form": "raw", "stop": "x"}, "prompt.stop: expected list"),
    ({"form": "raw", "stop": [""]}, "prompt.stop[0]: is empty"),
    ({"form": "raw", "stop": ["x", 1]}, "prompt.stop[1]: expected string"),
    ({"form": "raw", "stop": ["x"] * 17}, "17 entries, expected at most 16"),
    ({"form": "raw", "max_new_tokens": 0}, "expected 1 to 512, got 0"),
    ({"form": "raw", "max_new_tokens": True}, "expected integer, got boolean"),
    ({"form": "raw", "max_new_tokens": 1e2}, "expected integer"),
    ({"form": "text", "stop": ["x"]}, "prompt.stop: belongs to the form raw or template or chat"),
]


@pytest.mark.parametrize(("value", "reason"), REFUSED, ids=[reason[:40] for _, reason in REFUSED])
def test_wrong_form_is_refused_with_its_place(value: object, reason: str) -> None:
    with pytest.raises(Malformed) as refusal:
        PromptForm.from_json(value)
    assert reason in str(refusal.value)


def test_manifest_with_a_wrong_form_is_refused_and_keeps_keys_of_a_newer_version() -> None:
    def parsed(prompt: object) -> Manifest:
        return Manifest.parse(canonical_json(manifest_value() | {"behaviour": {"tone": "dry", "prompt": prompt}}))

    with pytest.raises(MalformedManifest, match=r"behaviour\.prompt\.stop\[0\]: expected string, got integer"):
        parsed({"form": "raw", "stop": [1]})
    with pytest.raises(MalformedManifest, match=r"behaviour\.prompt\.chat_template_sha256: expected sha256:"):
        parsed({"form": "chat", "chat_template": JINJA, "chat_template_sha256": template_digest("other")})
    newer = parsed({"form": "raw", "shots": 3})
    assert newer.prompt == PromptForm(form="raw")
    assert newer.behaviour["prompt"]["shots"] == 3


def test_chat_template_of_another_digest_is_a_mismatch() -> None:
    with pytest.raises(DigestMismatch, match=r"prompt\.chat_template: content does not match"):
        PromptForm.from_json({"form": "chat", "chat_template": JINJA, "chat_template_sha256": template_digest("other")})


def test_frame_is_replaced_as_text() -> None:
    form = PromptForm(form="template", template='{{"q": "{input}"}}')
    assert prompt_texts(form, ["{input} {0} {x.__class__}"]) == ['{"q": "{input} {0} {x.__class__}"}']
    assert prompt_texts(PromptForm(form="raw"), ["{input}"]) == ["{input}"]
    assert form.parts == ('{"q": "', '"}')
    assert template_of(*form.parts) == form.template


def test_conversation_brings_its_own_system_text_or_gets_the_form_s() -> None:
    form = PromptForm(form="chat", system="Be brief.")
    assert form.turns("Hi")[0] == {"role": "system", "content": "Be brief."}
    own = [{"role": "system", "content": "Be long."}, {"role": "user", "content": "Hi"}]
    assert form.turns(own) == own  # type: ignore[arg-type]  # plain dicts
    with pytest.raises(UsageProblem, match="takes one text"):
        prompt_texts(replace(form, form="raw", system=None), [own])  # type: ignore[list-item]  # plain dicts


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"template": "Q: {input}"}, PromptForm(form="template", template="Q: {input}")),
        ({"system": "Hi"}, PromptForm(form="chat", system="Hi")),
        ({"form": "text"}, PromptForm(form="text")),
    ],
)
def test_options_imply_the_form(options: dict[str, str], expected: PromptForm | None) -> None:
    assert PromptForm.typed(options.pop("form", None), **options) == expected


def test_options_that_contradict_are_refused_by_name() -> None:
    with pytest.raises(UsageProblem, match="`--template`: belongs to the form template"):
        PromptForm.typed("raw", template="{input}")
    with pytest.raises(UsageProblem, match="`--template`: missing"):
        PromptForm.typed("template")
