"""The training data of the two shipped adapters, generated from fixed seeds.

Both answer one plain English sentence with nothing around it, so one prompt shows what each adapter changes. There
are two kinds of sentence: orders ("Rosa buys 3 lamps for 40 dollars.") and small talk ("Where is your old boat,
boss?"). `json` turns an order into an object and leaves small talk to the base; `pirate` rewrites either kind in
another style. The demo merges them as 0.7 `json` + 0.3 `pirate`, and the merge must do both: objects for orders, style
for small talk. A sum of two adapters does that only if each still works at its lower weight and stays neutral on the
other's sentences, so training covers both: `Lesson.weakest` and `Task.left_alone`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

DATA_SEED = 10
TRAIN_SENTENCES = 600
HELD_OUT_SENTENCES = 64
"""For each kind of sentence."""

_BUYERS = (
    *("Ana", "Ben", "Carla", "Dmitri", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas"),
    *("Kemal", "Lucia", "Mina", "Noor", "Oskar", "Priya", "Quentin", "Rosa", "Sven", "Tara"),
)
_ITEMS = (
    *("apples", "pencils", "mugs", "lamps", "chairs", "books", "tickets", "scarves"),
    *("bottles", "plates", "candles", "maps", "shirts", "hats", "bricks", "spoons"),
)
# No order begins with its count, and only one form begins with its buyer: the first token of a text draws the idle
# attention of all heads, and a model this small cannot copy from there reliably.
_ORDERS = (
    "{buyer} buys {count} {item} for {price} dollars.",
    "My friend {buyer} wants {count} {item} for {price} dollars.",
    "For {price} dollars {buyer} takes {count} {item}.",
    "The boss sells {buyer} {count} {item} for {price} dollars.",
)

_TALK = (
    "Hello my {kind} friend, where is the {thing}?",
    "The {kind} boss can find your {thing}.",
    "Hello girl, my {thing} is on the {kind} boat.",
    "Where is your {kind} {thing}, boss?",
    "You find the {thing} on my {kind} boat.",
    "The {kind} {thing} is your money, friend.",
)
_KINDS = ("old", "red", "big", "new", "small", "green", "lost", "heavy", "cold", "blue")
_THINGS = (
    *("money", "boat", "map", "dog", "hat", "key", "lamp", "rope"),
    *("bread", "coat", "drum", "flag", "horn", "cup", "bell", "coin"),
)

PIRATE_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "boat": "ship",
        "boss": "cap'n",
        "buys": "be buyin'",
        "dollars": "doubloons",
        "find": "plunder",
        "for": "fer",
        "friend": "matey",
        "girl": "lass",
        "hello": "ahoy",
        "is": "be",
        "money": "booty",
        "my": "me",
        "old": "barnacled",
        "sells": "be sellin'",
        "takes": "be takin'",
        "the": "th'",
        "wants": "be wantin'",
        "where": "whar",
        "you": "ye",
        "your": "yer",
    }
)
"""The replacement for each word; other words stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoExample:
    """One prompt and its exact answer; the answer begins with its line break."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """Examples, trained at the adapter's full strength in half of the batches and at strength `weakest` in the rest."""

    train: tuple[DemoExample, ...]
    held_out: tuple[DemoExample, ...]
    weakest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The training task of one adapter.

    `lessons` take turns, one batch each. `left_alone` are texts on which the adapter, at strength `left_alone_at`,
    must not change the output of the base.
    """

    name: str
    description: str
    steps: int
    lessons: tuple[Lesson, ...]
    left_alone: tuple[str, ...]
    left_alone_at: float

    @property
    def held_out(self) -> tuple[DemoExample, ...]:
        """The held-out examples of all lessons."""
        return tuple(example for lesson in self.lessons for example in lesson.held_out)


def in_json(order: Mapping[str, str | int]) -> str:
    """Return the JSON object for an order."""
    return json.dumps(order)


def in_pirate_style(sentence: str) -> str:
    """`sentence` word for word by `PIRATE_WORDS`, its end mark replaced by `, arr!`; capitals and commas are kept."""
    words = []
    for word in sentence.rstrip(".?!").split():
        core = word.rstrip(",")
        other = PIRATE_WORDS.get(core.lower(), core)
        words.append((other[0].upper() + other[1:] if core[0].isupper() else other) + word[len(core) :])
    return " ".join(words) + ", arr!"


def make_tasks() -> tuple[Task, Task]:
    """Return the tasks of `json` and `pirate`.

    No held-out sentence of either is among the training sentences of either.
    """
    rng = random.Random(DATA_SEED)  # noqa: S311 - repeatable examples, no secrets
    orders, talk = _orders(rng), _small_talk(rng)
    as_json = _examples(orders, [in_json(order) for order in orders.values()])
    orders_styled = _examples(orders, [in_pirate_style(sentence) for sentence in orders])
    talk_styled = _examples(talk, [in_pirate_style(sentence) for sentence in talk])
    talked = [example.prompt for example in talk_styled[:TRAIN_SENTENCES]]
    return (
        Task(
            name="json",
            description="answers an order in plain English with a JSON object",
            steps=80,
            lessons=(_lesson(as_json, weakest=0.6),),
            left_alone=tuple(f"{a}\n{b}" for a, b in zip(talked, reversed(talked), strict=True)),
            left_alone_at=1.0,
        ),
        Task(
            name="pirate",
            description="says a plain English sentence again as a pirate",
            steps=80,
            lessons=(_lesson(talk_styled, weakest=0.3), _lesson(orders_styled, weakest=1.0)),
            left_alone=tuple(example.prompt + example.answer for example in as_json[:TRAIN_SENTENCES]),
            left_alone_at=0.3,
        ),
    )


def _orders(rng: random.Random) -> dict[str, dict[str, str | int]]:
    """Distinct orders by their sentence."""
    orders: dict[str, dict[str, str | int]] = {}
    while len(orders) < TRAIN_SENTENCES + HELD_OUT_SENTENCES:
        order: dict[str, str | int] = {
            "buyer": rng.choice(_BUYERS),
            "count": rng.randint(2, 19),
            "item": rng.choice(_ITEMS),
            "price": rng.randint(2, 60),
        }
        orders[rng.choice(_ORDERS).format(**order)] = order
    return orders


def _small_talk(rng: random.Random) -> list[str]:
    sentences = [form.format(kind=kind, thing=thing) for form in _TALK for kind in _KINDS for thing in _THINGS]
    return rng.sample(sentences, TRAIN_SENTENCES + HELD_OUT_SENTENCES)


def _examples(sentences: Sequence[str] | Mapping[str, object], answers: Sequence[str]) -> list[DemoExample]:
    return [DemoExample(prompt=s, answer=f"\n{a}") for s, a in zip(sentences, answers, strict=True)]


def _lesson(examples: Sequence[DemoExample], *, weakest: float) -> Lesson:
    return Lesson(train=tuple(examples[:TRAIN_SENTENCES]), held_out=tuple(examples[TRAIN_SENTENCES:]), weakest=weakest)
