"""Questions with known answers over 314 builds whose texts are real task cards; `README.md` names the source."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapterhub.library.store.rows import BuildRow
from tests.bench.many_builds import digest

HERE: Final = Path(__file__).parent
AT: Final = (1, 5, 10)
PLAIN: Final = 156
"""So many questions name their subject; those after them use other words."""


@dataclass(frozen=True, slots=True)
class Card:
    """What a build says of itself; `prompts` are examples of what one asks it."""

    name: str
    task: str
    description: str
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and the names of the builds that answer it."""

    text: str
    answers: frozenset[str]


def cards() -> list[Card]:
    """The 314 builds."""
    return [Card(name.replace("_", "-"), task, text) for name, task, text in _lines("builds.tsv")]


def questions() -> list[Question]:
    """The 180 questions."""
    by_number = {int(card.name[4:7]): card.name for card in cards()}
    return [
        Question(text, frozenset(by_number[int(number)] for number in numbers.split(",")))
        for text, numbers in _lines("questions.tsv")
    ]


def recall(search: Callable[[str], Sequence[str]], asked: Sequence[Question] | None = None) -> dict[int, float]:
    """The share of questions with an answer among the first 1, 5 and 10 names that `search` gives."""
    asked = questions() if asked is None else asked
    found = dict.fromkeys(AT, 0)
    for question in asked:
        names = list(search(question.text))
        for k in AT:
            found[k] += not question.answers.isdisjoint(names[:k])
    return {k: count / len(asked) for k, count in found.items()}


def many(count: int, seed: int = 0) -> Iterator[Card]:
    """The 314 builds, then made-up ones up to `count`: each mixes the words of three of them.

    So the words of a library of 100,000 are as common as in the small one.
    """
    real = cards()
    yield from real[:count]
    chance = random.Random(seed)
    for number in range(len(real), count):
        mixed = [word for card in chance.sample(real, 3) for word in card.description.split()]
        words = chance.sample(mixed, min(len(mixed), chance.randint(8, 24)))
        yield Card(f"mix-{number}", chance.choice(real).task, " ".join(words))


def row_of(card: Card) -> BuildRow:
    """The row of a build in a library's index; `name` and `folder` are the card's name."""
    return BuildRow(
        digest=digest(card.name),
        namespace="",
        name=card.name,
        version="1.0.0",
        base_weights=digest("base"),
        base_tensors=digest("tensors"),
        base_hub_id="mistralai/Mistral-7B-Instruct-v0.2",
        task=card.task,
        description=card.description,
        method="LORA",
        rank=16,
        alpha=32.0,
        dtype="F32",
        parameters=9_437_184,
        size_bytes=37_748_736,
        target_modules="q_proj,k_proj,v_proj",
        parents=0,
        folder=card.name,
        added_at=1.7e9,
    )


def _lines(name: str) -> Iterator[list[str]]:
    for line in (HERE / name).read_text(encoding="utf-8").splitlines():
        yield line.split("\t")
