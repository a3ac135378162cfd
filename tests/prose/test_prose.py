"""The prose of the documentation holds none of the phrases that we do not write."""

from __future__ import annotations

import pytest

from tests.prose.phrases import PHRASES, ROOT, may_hold_phrases, pages, phrases_in, sources, texts


@pytest.mark.parametrize("document", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_holds_no_phrase_of_the_list(document):
    found = phrases_in(document.name, document.read_text(encoding="utf-8"))

    assert list(map(str, found)) == []


def test_comments_and_messages_of_the_source_hold_none():
    found = [
        str(finding)
        for path in sources()
        if may_hold_phrases(source := path.read_text(encoding="utf-8"))
        for finding in phrases_in(path.relative_to(ROOT).as_posix(), texts(source))
    ]

    assert found == []


@pytest.mark.parametrize("phrase", PHRASES, ids=lambda phrase: phrase.example)
def test_each_phrase_is_found_even_across_lines(phrase):
    found = phrases_in("page", phrase.example.replace(" ", "\n"))

    assert f"write {phrase.instead}" in [finding.advice for finding in found]


def test_a_finding_has_the_line_of_its_phrase():
    text = "# A page\n\n```text\nnobody\n```\n\nOne line, and\nwhoever reads it\n"

    assert [(found.line, found.found) for found in phrases_in("page", text)] == [(8, "whoever")]


def test_no_advice_holds_a_phrase():
    assert [str(found) for phrase in PHRASES for found in phrases_in("page", phrase.instead)] == []


def test_code_is_no_prose():
    text = "`nobody` and `whoever\nreads` it, [a](nobody.md)\n\n```text\nnobody\n```\n<!-- nobody -->\n"

    assert phrases_in("page", text) == []
