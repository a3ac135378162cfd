"""The card of a manifest keeps the author's text, names the base by its Hub id, and says nothing a hub refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapterhub.formats.cards.card import license_in, make_card, refusals_of, split_card, tags_for
from adapterhub.formats.cards.metadata import read_metadata

PEFT_CARD = """---
base_model: /home/ann/models/base
library_name: peft
tags:
- base_model:adapter:/home/ann/models/base
- lora
---

# Model Card for Model ID

My own words.
"""


@pytest.fixture
def manifest(add):
    return add("legal-qa").build.manifest


def test_paths_leave_the_card_and_the_base_has_its_hub_id(manifest):
    card = make_card(replace(manifest, card=PEFT_CARD), base_hub_id="acme/base-7b")
    matter = read_metadata(card.text).values

    assert matter["base_model"] == "acme/base-7b"
    assert "base_model:adapter:acme/base-7b" in matter["tags"]
    assert "/home/ann" not in card.text
    assert "My own words." in card.text
    assert card.notes == (
        "README.md line 2: `base_model` names `/home/ann/models/base`, no Hub id; the card leaves it out",
        "README.md line 5: `tags` names `base_model:adapter:/home/ann/models/base`, no Hub id; the card leaves it out",
    )


def test_a_base_without_a_hub_id_is_left_out(manifest):
    card = make_card(replace(manifest, card=PEFT_CARD))

    assert "base_model" not in read_metadata(card.text).values
    assert refusals_of(manifest, card) == []


@pytest.mark.parametrize(
    ("stated", "metadata", "noted"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}, 0),
        ("Apache-2.0 AND CC-BY-NC-4.0", {"license": "other", "license_name": "Apache-2.0 AND CC-BY-NC-4.0"}, 1),
    ],
)
def test_a_licence_is_written_as_the_hub_takes_it_and_read_back_as_stated(manifest, stated, metadata, noted):
    card = make_card(replace(manifest, license=stated))

    assert metadata.items() <= read_metadata(card.text).values.items()
    assert len(card.notes) == noted
    assert license_in(card.text) == stated
    assert refusals_of(manifest, card) == []


def test_what_cannot_be_mended_is_named_by_the_line_of_the_author(manifest):
    theirs = replace(manifest, card="---\nlicense: mit\nlanguage: english\n---\n")

    (problem,) = refusals_of(theirs, make_card(theirs))
    assert (problem.key, problem.line) == ("language", 3)
    assert refusals_of(theirs, make_card(theirs, without={"language"})) == []


def test_metadata_that_is_not_yaml_is_left_out_with_a_note(manifest):
    card = make_card(replace(manifest, card="---\na: [\n---\n# Mine\n"))

    assert "# Mine" in card.text
    assert "not YAML in line 3" in card.notes[0]


def test_the_card_of_a_repository_shows_how_to_use_it_and_does_not_grow(manifest):
    card = make_card(replace(manifest, card=PEFT_CARD), base_hub_id="acme/base-7b", repo="acme/legal-qa-base-7b")

    version = manifest.version
    assert f"adapt install acme/legal-qa-base-7b=={version}\n" in card.text
    assert f'PeftModel.from_pretrained(base, "acme/legal-qa-base-7b", revision="v{version}")' in card.text
    assert f"hf download acme/legal-qa-base-7b --revision v{version} --local-dir legal-qa\n" in card.text
    assert "vllm serve acme/base-7b --enable-lora --max-lora-rank 8 --lora-modules legal-qa=./legal-qa\n" in card.text
    assert "HF_ENDPOINT" not in card.text
    _, again = split_card(card.text)
    assert again.strip() == split_card(PEFT_CARD)[1].strip()


def test_a_server_of_ones_own_is_named_in_each_command(manifest):
    card = make_card(manifest, repo="acme/x", endpoint="https://adapters.example.org").text

    version = manifest.version
    assert f"adapt install acme/x=={version} --remote https://adapters.example.org" in card
    assert f"HF_ENDPOINT=https://adapters.example.org hf download acme/x --revision v{version}" in card


def test_other_methods_than_lora_get_no_line_for_vllm(manifest):
    assert "vllm" not in make_card(replace(manifest, method=("LOHA",)), repo="acme/x").text


def test_a_folder_gets_no_commands(manifest):
    assert "How to use it" not in make_card(manifest).text


def test_tags_name_the_base_that_only_the_library_knows(manifest):
    nameless = replace(manifest, base=replace(manifest.base, hints=replace(manifest.base.hints, hub_id=None)))

    assert "base_model:adapter:org/m" in tags_for(nameless, "org/m")
    assert not any(tag.startswith("base_model") for tag in tags_for(nameless))
