"""Reads typed fields from one untrusted JSON object and collects every problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from adapterhub.core.digests import Json
from adapterhub.core.errors import shown
from adapterhub.core.limits import limits

MAX_NAME_CHARACTERS = 4096
MAX_LIST_ITEMS = 65_536
_MAX_ALPHA = 1e30

Note = tuple[str, str]
"""A code and a sentence: worth knowing, but no reason to refuse the config."""


class Fields:
    """One JSON object being read. `problems` and `notes` grow; reading goes on after a problem."""

    def __init__(self, value: Mapping[str, Any]) -> None:
        self.value = value
        self.taken: set[str] = set()
        self.problems: list[str] = []
        self.notes: list[Note] = []

    def take(self, key: str) -> Json:
        """The raw value, None when the key is missing. The key then counts as known."""
        self.taken.add(key)
        return self.value.get(key)

    def has(self, key: str) -> bool:
        """Whether the key has a value other than null."""
        return self.value.get(key) is not None

    def wrong(self, key: str, expected: str) -> None:
        """Record that a field has a wrong value."""
        self.problems.append(f"`{key}` is {shown(as_json(self.value.get(key)))}, expected {expected}")

    def flag(self, key: str, *, default: bool = False) -> bool:
        """A boolean. Some writers use 0 or 1."""
        value = self.take(key)
        if value is None:
            return default
        if type(value) is int and value in (0, 1):
            self.notes.append(("W_CONFIG_TYPE", f"`{key}` is {value}, read as {str(bool(value)).lower()}"))
            return bool(value)
        if not isinstance(value, bool):
            self.wrong(key, "true or false")
            return default
        return value

    def text(self, key: str, limit: int = MAX_NAME_CHARACTERS) -> str | None:
        """Text of one printable line, or None."""
        value = self.take(key)
        if value is None:
            return None
        if not isinstance(value, str) or len(value) > limit or not value.isprintable():
            self.wrong(key, f"printable text of at most {limit} characters")
            return None
        return value

    def rank(self, key: str) -> int | None:
        """A rank from 1 to the limit, or None."""
        value = self.take(key)
        if value is None:
            return None
        if not is_rank(value):
            self.wrong(key, f"a whole number from 1 to {limits().rank}")
            return None
        assert isinstance(value, int)
        return value

    def number(self, key: str) -> int | float | None:
        """A finite number, or None."""
        value = self.take(key)
        if value is None:
            return None
        if not is_number(value):
            self.wrong(key, "a finite number")
            return None
        assert isinstance(value, int | float)
        return value

    def names(self, key: str, most: int = MAX_LIST_ITEMS) -> tuple[str, ...]:
        """A list of at most `most` names in its order, each once; empty for null."""
        value = self.take(key)
        if value is None:
            return ()
        if not _is_list(value, lambda item: isinstance(item, str) and bool(item) and item.isprintable()):
            self.wrong(key, "a list of names")
            return ()
        if len(value) > most:
            self.problems.append(f"`{key}` holds {len(value)} names, expected at most {most}")
            return ()
        return tuple(dict.fromkeys(value))

    def names_or_pattern(self, key: str) -> tuple[str, ...] | str | None:
        """A list of names, or one pattern, or None."""
        value = self.value.get(key)
        if isinstance(value, str):
            self.taken.add(key)
            if not value or not value.isprintable():
                self.wrong(key, "a list of names or one pattern")
                return None
            return value
        if value is not None and not isinstance(value, list):
            self.taken.add(key)
            self.wrong(key, "a list of names or one pattern")
            return None
        names = self.names(key)
        return None if value is None else names

    def integers(self, key: str) -> tuple[int, ...] | None:
        """A list of natural numbers (a single number counts as a list), or None."""
        value = self.take(key)
        if value is None:
            return None
        items = [value] if type(value) is int else value
        if not _is_list(items, lambda item: type(item) is int and item >= 0):
            self.wrong(key, "a list of natural numbers")
            return None
        return tuple(items)

    def numbers_by_pattern(self, key: str, check: Callable[[object], bool], expected: str) -> dict[str, Any]:
        """An object from patterns to numbers that `check` accepts; empty for null."""
        value = self.take(key)
        if value is None:
            return {}
        if not isinstance(value, dict) or len(value) > MAX_LIST_ITEMS:
            self.wrong(key, f"an object from module names to {expected}")
            return {}
        for name, number in value.items():
            if not check(number):
                where = f"`{key}` for `{shown(name, 40)}`"
                self.problems.append(f"{where} is {shown(as_json(number), 40)}, expected {expected}")
        return dict(value)


def is_rank(value: object) -> bool:
    """Whether `value` is a usable rank; a boolean is not a number here."""
    return type(value) is int and 1 <= value <= limits().rank


def is_number(value: object) -> bool:
    """Whether `value` is a finite number of sane size; a boolean is not a number here."""
    return type(value) in (int, float) and abs(value) <= _MAX_ALPHA  # type: ignore[arg-type]  # false for NaN too


def _is_list(value: object, check: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) <= MAX_LIST_ITEMS and all(check(item) for item in value)


def as_json(value: object) -> str:
    """A value as the file has it: `true` and not `True`, and the text "8" with its quotes."""
    import json

    return json.dumps(value, ensure_ascii=False)
