"""What `adapt serve` tells clients: where and how to ask each adapter, in its prompt form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.core.digests import digest_of
from adapterhub.core.specs import parse_name
from adapterhub.formats.prompts.form import PromptForm, template_digest
from adapterhub.inference.calling import calling_from, calling_of
from adapterhub.inference.serving.llama_cpp.names import Names, Served
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from tests.support.command_line import Adapt
from tests.support.standin_vllm import make_standin
from tests.support.tiny import make_adapter

BASE = template_digest("base")
FRAME = PromptForm(form="template", template="Q: {input}\nA:", stop=("\n",), max_new_tokens=5)
OTHER = PromptForm(form="chat", system="Hi", chat_template="own", chat_template_sha256=template_digest("own"))
CASES: list[tuple[PromptForm | None, str, dict[str, Any]]] = [
    (None, "/v1/completions", {"prompt": "The parties agree that", "max_tokens": 32}),
    (PromptForm(form="raw"), "/v1/completions", {"prompt": "The parties agree that", "max_tokens": 32}),
    (FRAME, "/v1/completions", {"prompt": "Q: The parties agree that\nA:", "stop": ["\n"], "max_tokens": 5}),
    (
        PromptForm(form="chat", system="Hi", chat_template_sha256=BASE),
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "system", "content": "Hi"},
                {"role": "user", "content": "The parties agree that"},
            ],
            "max_tokens": 32,
        },
    ),
]


@pytest.mark.parametrize(("form", "route", "body"), CASES, ids=["none", "raw", "template", "chat"])
def test_each_form_has_its_route_and_its_example(form: PromptForm | None, route: str, body: dict[str, Any]) -> None:
    calling = calling_of(form, BASE)
    assert (calling.route, calling.warning) == (route, "")
    assert json.loads(calling.example("legal-qa")) == {"model": "legal-qa", **body}
    assert calling_from(calling.to_json()) == calling


def test_other_chat_template_is_warned_of_as_the_engine_applies_the_base_s() -> None:
    own, lost = (
        calling_of(OTHER, BASE),
        calling_of(PromptForm(form="chat", chat_template_sha256=template_digest("x")), BASE),
    )
    assert "another chat template than the base's" in own.warning
    assert "another chat template than the base's" in lost.warning
    assert own.route == "/v1/completions"
    assert "rendered with its own chat template, with the system text `Hi`" in own.how
    assert json.loads(own.example("a"))["prompt"] == "…"


def test_list_of_models_of_llama_cpp_says_how_to_ask() -> None:
    callings = {"a": calling_of(FRAME, BASE).to_json(), "b": calling_of(None, BASE).to_json()}
    served = [
        Served(name=name, label=f"{name}==1", digest=digest_of(name.encode()), calling=calling)
        for name, calling in callings.items()
    ]
    names = Names("base-7b", served)
    rows = {row["id"]: row for row in names.listing()["data"]}
    assert rows["a"]["calling"]["prompt_form"] == FRAME.to_json()
    assert rows["b"]["calling"]["prompt_form"] is None
    assert "calling" not in rows["base-7b"]


@pytest.mark.slow
def test_serve_prints_how_to_ask_each_adapter(tmp_path: Path, library: Library, base: BaseRecord) -> None:
    for seed, (name, form) in enumerate({"framed": FRAME, "other": OTHER}.items()):
        about = Description(name=parse_name(name), version="1.0.0", prompt=form)
        library.add(make_adapter(tmp_path / name, seed=seed), about, base=base)
    adapt, python = Adapt(tmp_path), make_standin(tmp_path / "vllm")
    said = adapt("serve", "framed", "other", "--base", "base-7b", "--python", python, "--dry-run")
    assert "ask it at /v1/completions: send the whole prompt, `Q: ` + text + `\\nA:`" in said.stdout
    assert "other==1.0.0: it wants another chat template than the base's" in said.stderr
    shown = adapt.json("serve", "framed", "--base", "base-7b", "--python", python, "--dry-run")
    assert shown["adapters"][0]["calling"]["prompt_form"] == FRAME.to_json()
