"""What is looked at of a build when one searches by meaning: bounded texts, so that a stuffed card wins nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

FAR: Final = 0.25
"""A build with a lower score is far from the question."""

MOST_PROMPTS: Final = 16
PROMPT_CHARACTERS: Final = 500
DESCRIPTION_CHARACTERS: Final = 300
MOST_QUESTION_CHARACTERS: Final = 1000


def parts_of(name: str, task: str, description: str, prompts: Iterable[str] = ()) -> list[str]:
    """The texts whose vectors stand for a build: the beginning of its description with name and task, then its prompts.

    The description comes first: that finds the right one of similar builds more often.
    """
    spoken = " ".join(f"{name}. {task}".replace("-", " ").replace("_", " ").split())
    asked = [prompt[:PROMPT_CHARACTERS] for prompt in prompts if prompt.strip()]
    return [f"{description[:DESCRIPTION_CHARACTERS]} {spoken}".strip(), *asked[:MOST_PROMPTS]]
