"""Canonical JSON against `rfc8785`, which defines it here, and the depth that is read."""

from __future__ import annotations

import random
from typing import Any

import pytest
import rfc8785

from adapterhub.core.digests import MAX_DEPTH, canonical_json, strict_json

TEXTS = ("", "a", "é", "\u2028", "\x7f", "\x1f", '"', "\\", "\n", "\ufeff", "\ue000", "😀", "\ud800", "z" * 20)
NUMBERS = (0, -1, 2**53 - 1, 2**53, -(2**53), 0.0, -0.0, 1.0, 0.1, 1e-7, 1e16, 1e21, 5e-324, 2.0**60, float("inf"))


def made(random: random.Random, depth: int = 0) -> Any:
    kind = random.randrange(8 if depth < 3 else 5)
    if kind < 5:
        return random.choice([None, True, random.choice(TEXTS), random.choice(NUMBERS), random.randrange(-99, 99)])
    if kind == 5:
        return tuple(made(random, depth + 1) for _ in range(random.randrange(4)))
    if kind == 6:
        return [made(random, depth + 1) for _ in range(random.randrange(4))]
    return {random.choice(TEXTS): made(random, depth + 1) for _ in range(random.randrange(5))}


def bytes_or_error(write: Any, value: Any) -> bytes | str:
    try:
        return write(value)
    except (ValueError, TypeError) as error:
        return type(error).__name__


def test_canonical_json_is_what_rfc_8785_writes(amount):
    seeds = random.Random(7)

    for value in [made(seeds) for _ in range(amount(2_000, 100_000))]:
        assert bytes_or_error(canonical_json, value) == bytes_or_error(rfc8785.dumps, value)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("inside", ["", "0", "[]"])
def test_json_is_read_to_the_greatest_depth_and_no_deeper(opening, closing, inside):
    def nested(levels: int) -> bytes:
        return (opening * levels + (inside or "[]") + closing * levels).encode()

    most = MAX_DEPTH - 1
    strict_json(nested(most))
    with pytest.raises(ValueError, match="nested deeper"):
        strict_json(nested(most + 1))
