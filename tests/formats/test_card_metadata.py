"""The check of a card's metadata finds what the Hub refuses, says where, and accepts what the Hub accepts."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from adapterhub.formats.cards.metadata import UnreadableCard, check_metadata, read_metadata
from adapterhub.formats.licenses import HUB_LICENSES, hub_license

RESULT = """model-index:
- name: qa
  results:
  - task: {type: text-generation}
    dataset: {type: squad, name: SQuAD, config: plain}
    metrics: [{type: exact_match, value: 61.5}]
    source: {url: https://example.org}
"""


def found(front: str) -> list[tuple[str, int | None, str]]:
    """The errors as `(key, line, message)`."""
    errors, _ = check_metadata(read_metadata(f"---\n{front}\n---\n# Text\n"))
    return [(e.key, e.line, e.message) for e in errors]


@pytest.mark.parametrize(
    "front",
    [
        "license: mit\nbase_model: org/model\ntags: [lora]\nlanguage: [en, code]",
        "language: no\nlicense: [mit, apache-2.0]",  # Norwegian, not false
        "base_model:\n- gpt2\n- org/model\ndatasets: squad",
        "license: null\ncustom: {any: [1, 2]}",
        "model-index:\n- name: out\n  results: []",
        RESULT,
    ],
)
def test_what_the_hub_accepts_passes(front):
    assert found(front) == []


@pytest.mark.parametrize(
    ("front", "key", "line", "words"),
    [
        ("tags: [x]\nlicense: asdf", "license", 3, '"license" must be one of [apache-2.0, mit, '),
        ("license:\n- mit\n- asdf", "license[1]", 4, '"license[1]" must be one of'),
        ("license: 7", "license", 2, '"license" must be a string'),
        ("base_model: /home/ann/model", "base_model", 2, 'with value "/home/ann/model" is not valid. Use a model id'),
        ("base_model:\n- org/model\n- ./out", "base_model[1]", 4, "is not valid"),
        ("datasets: [/var/images/]", "datasets[0]", 2, "If possible, use a dataset id"),
        ("language: EN", "language", 2, "must only contain lowercase characters"),
        ("language: english", "language", 2, "must be an ISO 639-1"),
        ("tags: [1]", "tags[0]", 2, "must be a string"),
        ("pipeline_tag: [x]", "pipeline_tag", 2, "must be a string"),
        ("model-index: {}", "model-index", 2, "must be an array"),
        ("model-index: [qa]", "model-index[0]", 2, "must be of type object"),
        ("model-index:\n- results: []", "model-index[0].name", 3, '"model-index[0].name" is required'),
        (RESULT.replace("name: SQuAD, ", ""), "model-index[0].results[0].dataset.name", 6, "is required"),
        (RESULT.replace("plain", "7"), "model-index[0].results[0].dataset.config", 6, "must be a string"),
        (
            RESULT.replace("    dataset: {type: squad, name: SQuAD, config: plain}\n", ""),
            None,
            5,
            '.dataset" is required',
        ),
        (RESULT.replace(", value: 61.5", ""), "model-index[0].results[0].metrics[0].value", 7, "is required"),
        (
            RESULT.replace("url: https://example.org", "name: x"),
            "model-index[0].results[0].source.url",
            8,
            "is required",
        ),
    ],
)
def test_what_the_hub_refuses_is_named_with_its_line(front, key, line, words):
    ((named, at, message),) = found(front)
    assert key is None or named == key
    assert at == line
    assert words in message


@pytest.mark.parametrize(
    ("front", "words"),
    [
        ("a: [", "not YAML in line 3"),
        ("a: b\na: c", "key `a` twice, the second time in line 3"),
        ("- a", "must be a mapping"),
        ("a: &x 1\nb: *x", "aliases in line 3"),
    ],
)
def test_what_cannot_be_read_says_where(front, words):
    with pytest.raises(UnreadableCard, match="metadata") as error:
        read_metadata(f"---\n{front}\n---\n")
    assert words in str(error.value)


@pytest.mark.parametrize(
    "drop", ["task: {type: text-generation}", "type: squad, ", "name: SQuAD, ", "type: exact_match, "]
)
def test_results_that_the_client_cannot_read_are_refused(drop):
    """huggingface_hub's own reader of cards is the judge."""
    front = RESULT.replace(drop, "x: {}" if drop.startswith("task") else "")
    with pytest.raises(ValueError, match="model_index"):
        ModelCard(f"---\n{front}---\n")
    assert found(front)


def test_the_local_path_in_a_tag_is_a_warning():
    errors, warnings = check_metadata(read_metadata("---\ntags:\n- base_model:adapter:/home/ann/model\n---\n"))
    assert not errors
    assert [w.text for w in warnings] == [
        '"tags[0]" with value "base_model:adapter:/home/ann/model" names no model id (line 3)'
    ]


def test_a_block_may_follow_blank_lines_as_on_the_hub():
    assert read_metadata("\n\n---\nlicense: mit\n---\n").values == {"license": "mit"}
    assert read_metadata("# text\n---\nlicense: mit\n---\n").values == {}


@pytest.mark.parametrize(
    ("stated", "there"),
    [
        ("Apache-2.0", "apache-2.0"),
        ("GPL-3.0-or-later", "gpl-3.0"),
        ("BSD-3-Clause", "bsd-3-clause"),
        ("ODbL-1.0", "odbl"),
        ("llama3.1", "llama3.1"),
        ("other", "other"),
        ("Apache-2.0 AND CC-BY-NC-4.0", None),
        ("asdf", None),
    ],
)
def test_a_licence_finds_its_name_on_the_hub(stated, there):
    assert hub_license(stated) == there
    assert there is None or there in HUB_LICENSES
