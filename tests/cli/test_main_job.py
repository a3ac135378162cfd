"""The main job on the real base: SmolLM2-135M-Instruct and the two adapters trained on it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from adapterhub.cli.start import demo
from adapterhub.cli.start.demo_run import ADAPTERS
from adapterhub.core.errors import BaseMismatch
from adapterhub.core.specs import parse_name
from adapterhub.inference.loader import attach, base_digest
from adapterhub.inference.loader.text import answer, load_base
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.weights.merge import MergeInput, merge
from tests.support.command_line import Adapt
from tests.support.real_base import smollm2_base
from tests.test_docs import DOCS, appears, steps

SHIPPED = Path(__file__).resolve().parent.parent.parent / "adapterhub" / "cli" / "start" / "demo_run" / "adapters"
SENTENCE = "Priya wants 5 lamps for 30 dollars."
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> tuple[Library, BaseRecord]:
    library = Library(tmp_path_factory.mktemp("home"))
    record = library.bases.add(smollm2_base(), "smol")
    library.catalog.put_base(record)
    for name, task in ADAPTERS.items():
        about = Description(name=parse_name(name), version="1.0.0", task=task)
        library.add(SHIPPED / name, about, base=record)
    return library, record


@pytest.fixture(scope="module")
def model():
    return load_base(smollm2_base(), dtype="float32")


def test_the_shipped_adapters_verify_without_a_warning(home):
    library, _ = home

    reports = [library.verify_build(build) for build in library.installed()]

    assert [(r.status, r.warnings) for r in reports] == [("ok", ()), ("ok", ())]


def test_attach_generate_and_detach_leave_every_base_parameter_as_it_was(home, model):
    library, _ = home
    base, tokenizer = model
    before = base_digest(base)
    plain = answer(base, tokenizer, SENTENCE, max_new_tokens=8)

    with attach(base, "json@smol", library=library) as attached:
        text = answer(attached.model, tokenizer, SENTENCE, max_new_tokens=40)
        during = attached.base_digest()

    assert json.loads(text.strip().splitlines()[0]) == {"buyer": "Priya", "count": 5, "item": "lamps", "price": 30}
    assert (during, base_digest(base)) == (before, before)
    assert answer(base, tokenizer, SENTENCE, max_new_tokens=8) == plain


@pytest.mark.exhaustive
def test_a_mixture_at_run_time_gives_the_logits_of_the_merge(home, model, tmp_path):
    library, _ = home
    base, tokenizer = model
    tokens = tokenizer(SENTENCE, return_tensors="pt")
    inputs = [MergeInput(folder=SHIPPED / n, label=n, weight=w) for n, w in (("json", 0.7), ("pirate", 0.3))]
    result = merge(inputs, tmp_path / "merged")

    with torch.no_grad():
        with attach(base, {"json@smol": 0.7, "pirate@smol": 0.3}, library=library) as mixed:
            mixture = mixed.model(**tokens).logits
        with attach(base, tmp_path / "merged", library=library) as merged:
            once = merged.model(**tokens).logits

    assert result.relative_error < 1e-6
    # float32 sums in another order: 1e-4 on logits of about 20
    assert torch.allclose(mixture, once, atol=1e-4, rtol=1e-4)


@pytest.mark.exhaustive
def test_one_training_step_on_the_base_is_another_base(home):
    library, _ = home
    tuned, tokenizer = load_base(smollm2_base(), dtype="float32")
    tuned.requires_grad_(requires_grad=True)
    tokens = tokenizer(SENTENCE, return_tensors="pt")
    tuned(**tokens, labels=tokens["input_ids"]).loss.backward()
    torch.optim.SGD(tuned.parameters(), lr=1e-2).step()
    tuned.requires_grad_(requires_grad=False)

    with pytest.raises(BaseMismatch):
        attach(tuned, "json@smol", library=library)


@pytest.mark.exhaustive
def test_the_base_in_another_precision_is_accepted(home):
    library, _ = home
    half, tokenizer = load_base(smollm2_base(), dtype="bfloat16")

    with attach(half, "json@smol", library=library) as attached:
        text = answer(attached.model, tokenizer, SENTENCE, max_new_tokens=30)

    assert attached.adapters[0].verdict.name == "SAME_WEIGHTS_OTHER_PRECISION"
    assert '"item": "lamps"' in text


@pytest.mark.parametrize("tokens", [14, pytest.param(None, marks=pytest.mark.exhaustive)], ids=["short", "whole"])
def test_the_demo_runs_the_whole_job_and_the_first_tutorial_goes_on_from_it(tokens, tmp_path, monkeypatch):
    folder = tmp_path / "home-demo" / "models"
    folder.mkdir(parents=True)
    (folder / "smollm2-135m-instruct").symlink_to(smollm2_base())
    monkeypatch.setattr(demo, "MAX_NEW_TOKENS", tokens or demo.MAX_NEW_TOKENS)

    done = Adapt(tmp_path)("demo")

    assert done.exit_code == 0, done.stderr
    answers = dict(re.findall(r"^  (base|json|pirate|json-pirate) +(.+)$", done.stdout, re.MULTILINE))
    assert set(answers) == {"base", "json", "pirate", "json-pirate"}
    assert len(set(answers.values())) == len(answers)
    assert "$ adapt merge json pirate --weights 0.7,0.3 -o json-pirate" in done.stderr
    assert "relative error against the exact sum" in done.stdout
    next_lines = done.stdout.partition("Try next:")[2].strip().splitlines()
    assert [line.split()[1] for line in next_lines] == ["ui", "info", "run"]
    for step in steps(DOCS / "tutorial" / "first-adapter.md", with_model=True) if tokens else ():
        typed = Adapt(tmp_path, "home-demo")(*shlex.split(step.command)[1:])
        lines = (typed.stdout + typed.stderr).splitlines()
        assert typed.exit_code == step.exit_code, (step.command, lines)
        assert [line for line in step.shown if not appears(line, lines)] == [], (step.command, lines)
