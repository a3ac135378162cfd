"""The prompts of tests/bench/find_routes: sixteen tasks with near pairs, and texts that are for none of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PROMPTS = Path(__file__).resolve().parent.parent / "bench" / "find_routes" / "prompts.txt"
BUILT = 8
"""The prompts of a task that a routing file is built of; the others are held out."""

NONE = "-"


@functools.cache
def prompts_by_task() -> Mapping[str, Sequence[str]]:
    """By task, sixteen prompts each; those under `-` are for none."""
    found: dict[str, list[str]] = {}
    for line in PROMPTS.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            found[line[2:]] = []
        elif line:
            found[list(found)[-1]].append(line)
    return found


def tasks() -> list[str]:
    return [name for name in prompts_by_task() if name != NONE]


def auc(own: Any, strange: Any) -> float:
    """The share of pairs in which the own one is nearer."""
    return float(np.mean(np.asarray(own)[:, None] > np.asarray(strange)[None, :]))
