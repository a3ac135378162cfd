"""The habits of grammar that we do not write, in the kinds of text that are free of them."""

from __future__ import annotations

import re

import pytest

from tests.prose.grammar import HABITS, NOT_YET, habits_in, sentences, texts


def test_no_text_of_a_finished_kind_shows_a_habit():
    found = [
        f"{text.place}: {text.sentence} ({habit.name}: {habit.instead})"
        for text in texts()
        if text.kind not in NOT_YET
        for habit in habits_in(text.sentence)
    ]

    assert found == []


def test_every_kind_of_text_is_read():
    kinds = {text.kind for text in texts()}

    assert kinds >= {"README", "how-to", "reference", "help", "hints", "errors", "docstrings", "pages", *NOT_YET}


@pytest.mark.parametrize("habit", HABITS, ids=lambda habit: habit.name)
def test_each_habit_is_found_in_its_example(habit):
    assert habit in habits_in(habit.example)


@pytest.mark.parametrize(
    "sentence",
    ["There is no folder.", "It is too large, too many to read.", "Ask the server.", "Who is allowed to read?"],
)
def test_sentences_of_good_english_show_none(sentence):
    assert habits_in(sentence) == []


def test_a_page_is_read_by_sentences_and_cells_without_its_code():
    text = (
        "# A title\n\nOne, and `two. Three`. Four\nfive.\n\n| a | b |\n| --- | --- |\n| c d | e |\n\n```text\nno\n```\n"
    )

    found = list(sentences(text))

    assert found[:3] == ["A title", f"One, and {'_' * 12}.", "Four five."]
    assert {"c d", "e"} <= {*found}
    assert not any(re.search(r"\bno\b", sentence) for sentence in found)
