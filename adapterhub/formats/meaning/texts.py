"""What is looked at of a build when one searches by meaning: bounded texts, so that a stuffed card wins nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from adapterhub.formats.relevance import MAX_DESCRIPTION, MAX_PROMPT, MAX_PROMPTS

FAR: Final = 0.25
"""A build with a lower score is far from the question."""

FEWEST: Final = 5
"""So many builds are shown when all are far."""

MOST_WORDS: Final = 160
"""Different words of the prompts of one build: sixteen sentences about one thing have fewer, a list of words more."""


def parts_of(name: str, task: str, description: str, prompts: Iterable[str] = ()) -> list[str]:
    """Return the texts whose vectors stand for a build: name, task and the description's beginning, and the prompts.

    The description comes first: that finds the right one of similar builds more often.
    """
    spoken = " ".join(f"{name}. {task}".replace("-", " ").replace("_", " ").split())
    return [f"{description[:MAX_DESCRIPTION]} {spoken}".strip(), *_bounded(prompts)]


def _bounded(prompts: Iterable[str]) -> Iterator[str]:
    """Yield the first prompts, up to the one that brings too many different words."""
    words: set[str] = set()
    for prompt in islice((one[:MAX_PROMPT] for one in prompts if one.strip()), MAX_PROMPTS):
        words.update(prompt.lower().split())
        if len(words) > MOST_WORDS:
            return
        yield prompt
