"""Detection of names that people confuse."""

from __future__ import annotations

from typing import Final

_LOOK_ALIKE: Final = str.maketrans({"-": None, "_": None, ".": None, "0": "o", "1": "l", "i": "l"})


def fold(name: str) -> str:
    """The key that look-alike names share. It ignores case and `-_.`, and treats 0 and O, and 1, l and I, as equal."""
    return name.casefold().translate(_LOOK_ALIKE) or name.casefold()


def is_one_edit_apart(a: str, b: str) -> bool:
    """Whether the names differ by one inserted, deleted or replaced character, or by two swapped neighbours.

    Replacing one digit by another does not count: people number adapters (`qa-r4`, `qa-r8`) and tell them apart.
    """
    if a == b or abs(len(a) - len(b)) > 1:
        return False
    start = _same_start(a, b)
    rest_a, rest_b = a[start:], b[start:]
    end = _same_start(rest_a[::-1], rest_b[::-1])
    middle_a, middle_b = rest_a[: len(rest_a) - end], rest_b[: len(rest_b) - end]
    if len(middle_a) > 1 or len(middle_b) > 1:
        return len(middle_a) == len(middle_b) == len("ab") and middle_a == middle_b[::-1]
    return not (middle_a.isdigit() and middle_b.isdigit())


def _same_start(a: str, b: str) -> int:
    """How many characters two texts have in common at their beginning."""
    for index, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return index
    return min(len(a), len(b))
