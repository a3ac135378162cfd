"""What a build says of itself: its description, or its card without the text that programs write into every card."""

from __future__ import annotations

from importlib.resources import files

import jinja2
import pytest

import adapterhub
from adapterhub.core.errors import UsageProblem
from adapterhub.formats.cards.card import own_words
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter

TRAINER = """---
library_name: peft
license: apache-2.0
---

<!-- This model card has been generated automatically according to the information the Trainer had access to. You
should probably proofread and complete it, then remove this comment. -->

# results

This model is a fine-tuned version of [gpt2](https://huggingface.co/gpt2) on an unknown dataset.
It achieves the following results on the evaluation set:
- Loss: 0.41

## Model description

More information needed

## Training procedure

### Training hyperparameters

The following hyperparameters were used during training:
- learning_rate: 2e-05
"""


def template(**values: str) -> str:
    """The template that PEFT's `save_pretrained` writes, of the installed Hub client."""
    text = files("huggingface_hub").joinpath("templates/modelcard_template.md").read_text(encoding="utf-8")
    return jinja2.Template(text).render(card_data="library_name: peft", **values)


@pytest.mark.parametrize("card", ["", "---\nlicense: mit\n---\n", template(), template(developers="Ann"), TRAINER])
def test_an_unfilled_card_says_nothing(card):
    assert own_words(card) == ""


def test_what_an_author_writes_stays_without_marks_code_and_tables():
    said = (
        "Answers *questions* about [tenancy law](https://x.y/z).\n\n```python\nload()\n```\n| a | b |\n![logo](a.png)"
    )

    assert own_words(template(model_description=said)) == "Answers questions about tenancy law."
    assert (
        own_words("# Film\n\nTells good reviews from bad.\n\n## Usage\n\nadapt run") == "Tells good reviews from bad."
    )
    assert len(own_words("word " * 9000)) <= 300


@pytest.mark.parametrize("part", ["[", "![", "<!--", "```", "**a", "<", "|", "](", "# ", "~~~", "- **"])
def test_no_card_takes_long_to_read(part):
    for card in (part * 100_000, f"{part}\n" * 50_000, f"{part}a](" * 50_000):
        assert len(own_words(card)) <= 300


def test_a_search_finds_an_adapter_by_its_examples_or_its_card(tmp_path):
    adapt = Adapt(tmp_path)
    make_adapter(tmp_path / "one")
    make_adapter(tmp_path / "two", seed=2)
    (tmp_path / "two" / "README.md").write_text(template(model_description="Answers questions about tenancy law."))
    make_adapter(tmp_path / "three", seed=3)
    (tmp_path / "three" / "README.md").write_text(template())

    described = adapt("add", "one", "--no-base", "--example", "Was it worth the ticket?", "--example", "A dull film!")
    told, silent = adapt("add", "two", "--no-base"), adapt("add", "three", "--no-base")

    assert "no description" not in described.stderr + told.stderr
    assert "no description: a search finds `three` by its name alone; `--description TEXT` gives one" in silent.stderr
    [film] = adapt.json("search", "which film is worth a ticket")
    assert (film["name"], film["matched"]) == ("one", {"part": "prompt", "text": "Was it worth the ticket?"})
    [law] = adapt.json("search", "questions on the law")
    assert (law["name"], law["description"]) == ("two", None)
    assert law["matched"] == {"part": "description", "text": "Answers questions about tenancy law."}
    assert adapt.json("search", "risks, biases and limitations of downstream users") == []
    assert "Was it worth the ticket?" in adapt.ok("search", "film", "ticket")
    assert adapt.json("search", "film", "law", "--all-words") == []


@pytest.mark.parametrize("examples", [["x" * 501], [" "], [f"ask {n}" for n in range(17)]])
def test_examples_are_bounded(tmp_path, examples):
    library = adapterhub.Library(tmp_path / "home")
    make_adapter(tmp_path / "one")

    with pytest.raises(UsageProblem, match="Nothing was stored"):
        library.add(tmp_path / "one", examples=examples)
    assert list(library) == []
