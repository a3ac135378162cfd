"""`adapt search` by words: it finds the right adapter, in order, says why, and no card wins by stuffing."""

from __future__ import annotations

import sqlite3
from collections import Counter

import pytest

from adapterhub.formats.relevance import MAX_DISTINCT, Matched, question_words, wording_of
from adapterhub.library.store.index import Index
from adapterhub.library.store.rows import Filters
from tests.bench.find_questions import cards, questions, recall, row_of


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    index = Index(tmp_path_factory.mktemp("found") / "index.db")
    index.rebuild([row_of(card) for card in cards()], [], [])
    return index


def found(index, text, **filters):
    return [row.name for row in index.search(Filters(text=text, **{"limit": 10} | filters))]


def test_the_questions_find_their_builds(index):
    shares = recall(lambda text: found(index, text))

    assert shares[5] >= 0.80, shares
    assert shares[1] >= 0.55, shares


def test_common_words_give_the_order_of_weighing_every_build(index, monkeypatch):
    some = questions()[::3]
    every = [found(index, question.text) for question in some]
    monkeypatch.setattr("adapterhub.formats.relevance._COMMON", 20)
    quick = [found(index, question.text) for question in some]

    assert quick != every
    shared = [len(set(one) & set(other)) / len(other) for one, other in zip(quick, every, strict=True) if other]
    assert sum(shared) / len(shared) >= 0.9


def test_a_hit_says_why(index):
    (first, *_) = index.find(Filters(text="Which words rhyme with this one?"))

    assert first.row.name == "task183-rhyme-generation"
    assert first.score > 0
    assert first.matched.part == "description"
    assert "rhyme" in first.matched.text


def test_words_match_in_any_inflection_and_stop_words_say_nothing(index):
    assert question_words("is this a Spam message, or what?") == ["spam", "message"]
    assert question_words("is it") == ["is", "it"]
    assert found(index, "translation of questions into polish")[0] == "task175-spl-translation-en-pl"
    assert found(index, "xyzzy plugh") == []


@pytest.mark.parametrize("text", ["rhym", "RHYME", "rhyme-gen", "rhymes"])
def test_one_word_is_the_beginning_of_a_word(index, text):
    assert found(index, text, limit=None) == ["task183-rhyme-generation"]


def test_one_word_finds_the_beginning_of_a_word_whose_stem_is_shorter(index):
    names = found(index, "translatio", limit=None)

    assert names[0] == "task117-spl-translation-en-de"
    assert len(names) == sum("translation" in card.name + card.description for card in cards())


@pytest.mark.parametrize("filters", [{}, {"bases": ("sha256:1",)}, {"skip": 7}])
def test_a_word_that_very_many_have_gives_the_first_by_name(tmp_path, monkeypatch, filters):
    index = Index(tmp_path / "index.db")
    index.rebuild([row_of(card)._replace(base_weights=f"sha256:{at % 2}") for at, card in enumerate(cards())], [], [])
    monkeypatch.setattr("adapterhub.library.store.words._MOST_READ", 20)
    by_name = [row.name for row in index.search(Filters(text="classif", **filters))]
    assert len(by_name) > 40
    assert by_name == sorted(by_name)

    for tried in (1_000, 5):  # among the first names, and by the whole index
        monkeypatch.setattr("adapterhub.library.store.words._MOST_TRIED", tried)
        assert found(index, "classif", **filters, limit=4) == by_name[:4]


def test_all_words_have_to_begin_a_word(index):
    assert found(index, "sent bulg", all_words=True, limit=None) == [
        "task271-europarl-translation",
        "task272-europarl-translation",
        "task273-europarl-classification",
    ]
    assert found(index, "spam bulgarian", all_words=True) == []


def test_filters_hold_before_the_order_does(index):
    rows = [row_of(card)._replace(task="other", rank=4) for card in cards()[:1]]
    index.upsert_builds(rows)

    assert found(index, "questions that require tracking", task="other") == [rows[0].name]
    index.upsert_builds([row_of(cards()[0])])
    assert found(index, "questions that require tracking", task="other") == []


def test_a_search_for_a_base_reads_its_builds_alone(tmp_path):
    index, own = Index(tmp_path / "index.db"), "sha256:" + "ab" * 31 + "ed"
    rows = [row_of(card) for card in cards()[:60]]
    index.rebuild([row._replace(base_weights=own) if at % 7 == 0 else row for at, row in enumerate(rows)], [], [])
    among = {row.name for row in rows[::7]}

    names = found(index, "writing questions and answers", bases=(own, "sha256:" + "0" * 64), limit=60)
    assert names
    assert set(names) < among
    assert set(found(index, "quest", bases=(own,), limit=None)) < among
    assert found(index, f"{own[7:]} nothing") == []
    index.upsert_builds([rows[0]])  # pinned to another base
    assert rows[0].name not in found(index, "writing questions and answers", bases=(own,), limit=60)


def test_a_replaced_and_a_removed_build_leave_no_words(tmp_path):
    index = Index(tmp_path / "index.db")
    row = row_of(cards()[0])._replace(description="a marmot whistles", prompts="Who whistles?\nWhich badger was that?")
    index.upsert_builds([row])
    assert index.find(Filters(text="a badger, which badger"))[0].matched == Matched("prompt", "Which badger was that?")
    index.upsert_builds([row._replace(description="a fox", prompts="")])
    assert found(index, "marmot badger") == []
    assert found(index, "brown fox") == [row.name]
    index.remove_builds([row.folder])
    assert found(index, "brown fox") == []
    assert index.differences([], lambda: ([], [])) == ([], set(), set())


@pytest.mark.parametrize("most", [10_000, MAX_DISTINCT], ids=["every word", "the words asked for most"])
def test_no_card_wins_by_holding_every_word(tmp_path, most):
    counted = Counter(word for question in questions() for word in question_words(question.text))
    asked = " ".join(word for word, _ in counted.most_common(most))
    stuffed = row_of(cards()[0])._replace(
        name="x", folder="x", task="", description=asked * 3, prompts=f"{asked}\n" * 9
    )
    index = Index(tmp_path / "index.db")
    index.rebuild([*(row_of(card) for card in cards()), stuffed], [], [])
    some = questions()[::2]
    answers = {question.text: found(index, question.text) for question in some}

    assert len(counted) > 5 * MAX_DISTINCT
    assert sum(names[:1] == ["x"] for names in answers.values()) <= 0.05 * len(answers)
    assert recall(answers.__getitem__, some)[5] >= 0.80


def test_what_is_indexed_is_bounded():
    text = wording_of("n", "t", "d" * 1000, ["p" * 2000] * 40)

    assert (len(text.description), len(text.prompts)) == (300, 16 * 500 + 15)
    several = wording_of("a", "b", "", [" ".join(f"{i}x{k}" for k in range(20)) for i in range(16)])
    assert len({word for part in several for word in part.split()}) == MAX_DISTINCT


@pytest.mark.parametrize(
    "text", ['x" OR 1', '"; DROP TABLE builds; --', "NEAR(a b)", "a AND", "*", "\0 \ud800 x", "name:x y"]
)
def test_no_question_is_a_query_of_the_index(index, text):
    for all_words in (False, True):
        found(index, text, all_words=all_words)
    assert index.count() == len(cards())


def test_an_index_of_an_earlier_schema_is_made_again(tmp_path):
    from adapterhub.library.store.index import IndexUnusable

    path = tmp_path / "index.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE builds (digest)")
        connection.execute("PRAGMA user_version = 3")

    with pytest.raises(IndexUnusable, match="schema 3"):
        found(Index(path), "a b")
    Index(path).rebuild([row_of(cards()[0])], [], [])
    assert Index(path).count() == 1
