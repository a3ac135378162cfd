"""A card that holds the words of every question must not win a search by meaning: its texts are bounded."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from adapterhub.formats.meaning.encoder import Encoder
from adapterhub.formats.meaning.ranking import VectorBlock, packed, packed_build
from adapterhub.formats.meaning.texts import parts_of
from tests.bench.find_questions import PLAIN, cards, questions
from tests.support.real_encoder import minilm_base

STEP = 5
"""Every fifth question; `bench_find` asks all."""


@pytest.mark.slow
def test_a_stuffed_card_wins_no_question_and_the_right_ones_are_found() -> None:
    asked = questions()[:PLAIN:STEP]
    wanted = frozenset[str]().union(*(question.answers for question in asked))
    honest = [card for at, card in enumerate(cards()) if card.name in wanted or at % STEP == 0]
    words = Counter(word for question in questions() for word in question.text.lower().split())
    stuffing = " ".join(word for word, _ in words.most_common())
    rare = [word for word, _ in words.most_common()[40:]]
    lists = [" ".join(rare[at : at + 30]) for at in range(0, 480, 30)]
    mixed = [question.text for question in questions()[PLAIN:]]  # the text of a question that is not asked here
    encoder = Encoder(minilm_base())
    kept = [packed(encoder.vectors(parts_of(card.name, card.task, card.description))) for card in honest]
    vectors = encoder.vectors([question.text for question in asked])
    for prompts in ([], lists, mixed):
        parts = parts_of("stuffed", "questions", stuffing, prompts)
        block = VectorBlock([*kept, packed_build(encoder.vectors(parts))])
        won = right = 0
        for question, vector in zip(asked, vectors, strict=True):
            best = [at for at, _, _ in block.best(block.scores(vector), 5)]
            won += best[0] == len(honest)
            right += any(at < len(honest) and honest[at].name in question.answers for at in best)
        assert won <= 0.05 * len(asked)
        assert right >= 0.95 * len(asked)


def test_a_long_text_counts_by_its_beginning_alone() -> None:
    short = parts_of("a", "b", "Positive or negative film reviews " + "x" * 300)
    assert short == parts_of("a", "b", "Positive or negative film reviews " + "x" * 300 + "database")
    assert len(parts_of("a", "b", "c", ["p" * 900] * 40)) == 17
    assert (
        len(
            parts_of("a", "b", "c", [f"{at} " * 3 + " ".join(map(str, range(at, at + 30))) for at in range(0, 480, 30)])
        )
        < 8
    )
    assert max(map(len, parts_of("a", "b", "c", ["p" * 900] * 40))) == 500


def test_scores_name_the_nearest_part() -> None:
    unit = np.eye(384, dtype=np.float32)
    block = VectorBlock(
        [packed(unit[:1]), packed(unit[[5, 1, 2]]), packed((unit[:1] + unit[1:2]) / np.sqrt(np.float32(2)))]
    )

    assert block.best(block.scores(unit[2]), 1) == [(1, np.float32(0.9), 2)]
    assert [(at, part) for at, _, part in block.best(block.scores(unit[0]), 9)] == [(0, 0), (2, 0), (1, 0)]
    assert VectorBlock([]).best(VectorBlock([]).scores(unit[0]), 3) == []
