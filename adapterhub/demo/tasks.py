"""The two tasks that the shipped adapters were trained on, made from fixed seeds.

Both tasks take the same kind of input, one plain English sentence with nothing around it. So one prompt shows
what each adapter changes: the base continues the sentence as it likes, `json` answers with an object and `pirate`
says it again in another style.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

DATA_SEED = 10
TRAIN_EXAMPLES = 600
HELD_OUT_EXAMPLES = 64

_BUYERS = tuple(
    "Ana Ben Carla Dmitri Elif Farid Greta Hugo Ines Jonas Kemal Lucia Mina Noor Oskar Priya Quentin Rosa Sven Tara".split()
)
_ITEMS = tuple(
    "apples pencils mugs lamps chairs books tickets scarves bottles plates candles maps shirts hats bricks spoons".split()
)
_ORDERS = (
    "{buyer} buys {count} {item} for {price} dollars.",
    "{buyer} wants {count} {item} for {price} dollars.",
    "{count} {item} for {buyer}, {price} dollars.",
    "For {price} dollars {buyer} takes {count} {item}.",
)

_TALK = (
    "Hello my {kind} friend, where is the {thing}?",
    "The {kind} boss can find your {thing}.",
    "Hello girl, my {thing} is on the {kind} boat.",
    "Where is your {kind} {thing}, boss?",
    "You find the {thing} on my {kind} boat.",
    "The {kind} {thing} is your money, friend.",
)
_KINDS = tuple("old red big new small green lost heavy cold blue".split())
_THINGS = tuple("money boat map dog hat key lamp rope bread coat drum flag horn cup bell coin".split())

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
        "takes": "be takin'",
        "the": "th'",
        "wants": "be wantin'",
        "where": "whar",
        "you": "ye",
        "your": "yer",
    }
)
"""What each word becomes; a word that is not here stays as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One input and the exact answer wanted for it, line break before the answer included."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A generator of examples, with the words that its adapter's card uses."""

    name: str
    description: str
    make: Callable[[random.Random, int], list[Example]]


def json_examples(rng: random.Random, count: int) -> list[Example]:
    """`count` different orders as text, each with the object that says the same: copying into a fixed shape."""
    examples: dict[str, Example] = {}
    while len(examples) < count:
        order = _order(rng)
        prompt = rng.choice(_ORDERS).format(**order)
        examples[prompt] = Example(prompt=prompt, answer="\n" + json.dumps(order))
    return list(examples.values())


def pirate_examples(rng: random.Random, count: int) -> list[Example]:
    """`count` different sentences, half small talk and half orders, each in pirate style."""
    examples: dict[str, Example] = {}
    while len(examples) < count:
        if rng.random() < 0.5:
            prompt = rng.choice(_ORDERS).format(**_order(rng))
        else:
            prompt = rng.choice(_TALK).format(kind=rng.choice(_KINDS), thing=rng.choice(_THINGS))
        examples[prompt] = Example(prompt=prompt, answer="\n" + in_pirate_style(prompt))
    return list(examples.values())


def in_pirate_style(sentence: str) -> str:
    """`sentence` word for word by `PIRATE_WORDS`, its end mark replaced by `, arr!`; capitals and commas are kept."""
    words = []
    for word in sentence.rstrip(".?!").split():
        core = word.rstrip(",")
        said = PIRATE_WORDS.get(core.lower(), core)
        words.append((said[0].upper() + said[1:] if core[0].isupper() else said) + word[len(core) :])
    return " ".join(words) + ", arr!"


def examples_of(task: Task) -> tuple[list[Example], list[Example]]:
    """Examples for training and examples held out from it; no sentence is in both."""
    # The generator is for repeatable examples, not for secrets.
    examples = task.make(random.Random(DATA_SEED), TRAIN_EXAMPLES + HELD_OUT_EXAMPLES)  # noqa: S311
    return examples[:TRAIN_EXAMPLES], examples[TRAIN_EXAMPLES:]


def _order(rng: random.Random) -> dict[str, str | int]:
    return {
        "buyer": rng.choice(_BUYERS),
        "count": rng.randint(2, 19),
        "item": rng.choice(_ITEMS),
        "price": rng.randint(2, 60),
    }


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "json": Task(
            name="json", description="answers an order in plain English with a JSON object", make=json_examples
        ),
        "pirate": Task(
            name="pirate", description="says a plain English sentence again as a pirate", make=pirate_examples
        ),
    }
)
