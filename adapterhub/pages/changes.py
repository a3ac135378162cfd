"""The values in which two configs differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from adapterhub.pages.values import ChangeView

MAX_DEPTH: Final = 8
MAX_CHARACTERS: Final = 400


def changed(
    before: Mapping[str, Any], after: Mapping[str, Any], above: str = "", depth: int = 0
) -> Iterator[ChangeView]:
    """The values that differ, by key."""
    for key in sorted(before.keys() | after.keys()):
        old, new, name = before.get(key), after.get(key), f"{above}{key}"
        if isinstance(old, dict) and isinstance(new, dict) and depth < MAX_DEPTH:
            yield from changed(old, new, f"{name}.", depth + 1)
        elif key not in before or key not in after or old != new or type(old) is not type(new):
            yield ChangeView(
                key=name[:MAX_CHARACTERS],
                before=_text(old) if key in before else None,
                after=_text(new) if key in after else None,
            )


def _text(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"
