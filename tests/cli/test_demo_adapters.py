"""The shipped adapters do what their cards say, and the data they were taught with is what it claims to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapterhub.cli.start.demo_run import ADAPTERS, BASE_HUB_ID
from adapterhub.cli.start.demo_run.tasks import in_pirate_style, make_tasks
from tests.support.real_base import smollm2_base

SHIPPED = Path(__file__).resolve().parent.parent.parent / "adapterhub" / "cli" / "start" / "demo_run" / "adapters"


def test_pirate_style_keeps_capitals_commas_and_unknown_words() -> None:
    said = in_pirate_style("Hello girl, my old map is on the boat.")

    assert said == "Ahoy lass, me barnacled map be on th' ship, arr!"


def test_tasks_are_the_same_every_time() -> None:
    assert make_tasks() == make_tasks()


def test_no_held_out_sentence_was_taught() -> None:
    tasks = make_tasks()
    taught = {e.prompt for task in tasks for lesson in task.lessons for e in lesson.train}
    left_alone = {line for task in tasks for text in task.left_alone for line in text.split("\n")}

    held_out = {e.prompt for task in tasks for e in task.held_out}

    assert held_out & (taught | left_alone) == set()


def test_shipped_adapters_are_small_and_name_their_base() -> None:
    configs = [json.loads((SHIPPED / name / "adapter_config.json").read_text()) for name in ADAPTERS]
    size = sum((SHIPPED / name / "adapter_model.safetensors").stat().st_size for name in ADAPTERS)

    assert {config["base_model_name_or_path"] for config in configs} == {BASE_HUB_ID}
    assert size < 2_000_000


@pytest.mark.slow
@pytest.mark.parametrize("task", make_tasks(), ids=lambda task: task.name)
@pytest.mark.exhaustive
def test_shipped_adapter_answers_held_out_sentences(task) -> None:
    from peft import PeftModel

    from adapterhub.cli.start.demo_run.train import Pupil

    examples = task.held_out[::8]
    pupil = Pupil.load(smollm2_base())
    before = pupil.measure(examples)

    after = Pupil(PeftModel.from_pretrained(pupil.model, SHIPPED / task.name).eval(), pupil.tokenizer).measure(examples)

    assert before.exact == 0
    # The cards say about 0.8 and 0.9; a few of these 8 or 16 may flip where sums are rounded otherwise.
    assert after.exact >= 0.5
    assert after.loss < before.loss / 10
