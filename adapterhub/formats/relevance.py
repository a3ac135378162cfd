"""Ranks builds for a question in words, by the words of each build and their weights.

The order is that of BM25 (Robertson and Zaragoza, 2009) over words that a build holds or does not: no text wins by
saying a word often, and a long text gains less by each. An index finds who holds a word; this module, which knows no
database, decides whom it has to name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated, Final, NamedTuple, TypeAlias

from adapterhub.formats.documented import Documented

MAX_QUESTION: Final = 1000
"""Characters of a question that are read."""
MAX_DESCRIPTION: Final = 300
MAX_PROMPTS: Final = 16
MAX_PROMPT: Final = 500
MAX_DISTINCT: Final = 64
"""Different words of one build that are indexed, so that no card can hold every word that somebody may ask for."""
MOST_RANKED: Final = 200
"""Builds that an answer in order of relevance holds at most."""

_COMMON: Final = 200
"""A word that more builds hold only tells apart those that a rarer one found, or that hold several common ones."""
_MOST_COMMON_WORDS: Final = 6
_MOST_SETS: Final = 24
_MOST_WORDS: Final = 24
_SATURATION, _LENGTH_WEIGHT = 1.2, 0.3
_USUAL_LENGTH: Final = 120
_WORD: Final = re.compile(r"[^\W_]+")
_STOP: Final = frozenset(
    re.findall(
        r"\w+",
        """
        a about all also am an and any are as at be been but by can could did do does for from had has have how i if in
        into is it its me my of on one or our should so some somebody such than that the their them then there these
        they this those to us was we were what when where which who why will with would you your
        """,
    )
)

All: TypeAlias = Sequence[Sequence[str]]
"""A condition on words: of each inner list, one has to be there."""
Holders: TypeAlias = Callable[[All, int], Sequence[int]]
"""The numbers of the builds that meet a condition, ascending, at most so many. Words count in any inflection."""


class Wording(NamedTuple):
    """The texts of a build that a search reads, bounded; `prompts` has one per line."""

    name: str
    task: str
    description: str
    prompts: str = ""


@dataclass(frozen=True, slots=True)
class Relevant:
    """A build that was found: its number, how well it fits (more is better), and the words that it holds."""

    number: int
    score: float
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Matched(Documented, title="WhyFound"):
    """Why a search found an adapter."""

    part: Annotated[str, "`name`, `task`, `description` or `prompt`: the one that holds most of the words"]
    text: Annotated[str, "that text, at most 500 characters"]


def wording_of(name: str, task: str, description: str, prompts: Iterable[str] = ()) -> Wording:
    """Return the texts to index: the first 300 characters and 16 prompts, and of all that 64 different words."""
    asked = [" ".join(prompt[:MAX_PROMPT].split()) for prompt in list(prompts)[:MAX_PROMPTS]]
    seen: set[str] = set()

    def fitting(found: re.Match[str]) -> str:
        word = found[0].casefold()
        if len(seen) < MAX_DISTINCT:
            seen.add(word)
        return found[0] if word in seen else ""

    parts = (name, task, description[:MAX_DESCRIPTION], "\n".join(asked))
    return Wording(*map(partial(_WORD.sub, fitting), parts))


def words_of(text: str) -> list[str]:
    """Return the different words of a text, in lower case."""
    return list(dict.fromkeys(map(str.lower, _WORD.findall(text))))


def question_words(text: str) -> list[str]:
    """Return the words of a question, without stop words unless nothing else remains."""
    every = words_of(text[:MAX_QUESTION])
    return [word for word in every if word not in _STOP][:_MOST_WORDS] or every[:_MOST_WORDS]


def find(words: Sequence[str], builds: int, most: int, holders: Holders) -> list[Relevant]:
    """Return the `most` of `builds` builds that hold the rarest words, and most of them.

    Uses only the weights of the words.

    It names every holder of a rare word. Of the common ones it asks for several at once, the set with the greatest
    weight first, so that a library of 100,000 costs a few milliseconds.
    """
    weights: dict[str, float] = {}
    rare: dict[str, Sequence[int]] = {}
    for word in words:
        found = holders([[word]], _COMMON + 1)
        if found:
            is_rare = len(found) <= _COMMON
            # numbers grow with time, and the holders of a word lie anywhere among them
            count = len(found) if is_rare else max(len(found), len(found) * builds // (found[-1] + 1))
            weights[word] = math.log(1 + (max(builds - count, 0) + 0.5) / (count + 0.5))
            if is_rare:
                rare[word] = found
    common = sorted((word for word in weights if word not in rare), key=lambda word: -weights[word])
    held: dict[int, list[str]] = {}
    for word, found in rare.items():
        for number in found:
            held.setdefault(number, []).append(word)
    common = common[:_MOST_COMMON_WORDS]
    for word in common if rare else ():
        for number in holders([list(rare), [word]], len(held)):
            held.setdefault(number, []).append(word)
    scores = {number: sum([weights[word] for word in own]) for number, own in held.items()}
    for total, several in _sets(common, weights):
        if sum([score >= total for score in scores.values()]) >= most:
            break
        for number in holders([[word] for word in several], most):
            if scores.setdefault(number, total) == total:
                held.setdefault(number, several)
    best = sorted(scores, key=lambda number: (-scores[number], number))[:most]
    return [Relevant(number, scores[number], tuple(held[number])) for number in best]


def _sets(words: Sequence[str], weights: Mapping[str, float]) -> list[tuple[float, list[str]]]:
    """Set of `words` with their total weight, the greatest first."""
    every = [[word for at, word in enumerate(words) if bits >> at & 1] for bits in range(1, 1 << len(words))]
    ranked = sorted(((sum(weights[word] for word in one), one) for one in every), key=lambda pair: -pair[0])
    return ranked[:_MOST_SETS]


def weigh(found: Relevant, wording: Wording) -> float:
    """Return the score with the length of the text, and a word in the name counting twice."""
    length = sum(map(len, wording)) / _USUAL_LENGTH
    slack = _SATURATION * (1 - _LENGTH_WEIGHT + _LENGTH_WEIGHT * length)
    times = 1 + _held(wording.name, found.words) / len(found.words)
    return found.score * times * (_SATURATION + 1) / (times + slack)


def matched(words: Sequence[str], wording: Wording) -> Matched:
    """Return the part that holds the most of `words`: the description before the name, the task and the best prompt."""
    prompts = [("prompt", line) for line in wording.prompts.split("\n") if line]
    parts = [("description", wording.description), ("name", wording.name), ("task", wording.task), *prompts]
    part, text = max(parts, key=lambda one: _held(one[1], words))
    return Matched(part, " ".join(text.split()))


def _held(text: str, words: Sequence[str]) -> int:
    """Return how many of `words` the text holds: a word that begins alike stands for any inflection."""
    own = _own(text)
    return sum([f" {word[: max(3, len(word) - 3)]}" in own for word in words])


@lru_cache(maxsize=2048)
def _own(text: str) -> str:
    return " " + " ".join(words_of(text))
