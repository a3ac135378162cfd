"""Adapters that answer together, with a weight each, as one types them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from adapterhub.core.errors import UsageProblem, shown

NONE: Final = "none"
"""The name of the base alone, in place of an adapter."""

Choice = Mapping[str, float]
"""Adapters and their weights that answer together; empty for the base alone."""


def choice_from(text: str, option: str = "") -> Choice:
    """Return the choice in `a`, `a:0.7,b:0.3` or `none`; error messages name `option`.

    Raises:
        UsageProblem: the text has another form.
    """
    if text.strip() == NONE:
        return {}
    parts = _parts(text)
    if len(parts) == 1 and _weighted(parts[0]) is None:
        if not parts[0]:
            raise UsageProblem(f"{option} names no adapter".lstrip(), hint="write a spec, or `none` for the base")
        return {parts[0]: 1.0}
    weights: dict[str, float] = {}
    for part in parts:
        found = _weighted(part)
        if found is None or found[0] in weights:
            expected = "expected a spec, a colon and a number, such as `legal-qa:0.7`, each spec once"
            raise UsageProblem(f"{option} `{shown(part)}`: {expected}".lstrip())
        weights[found[0]] = found[1]
    return weights


def choices_from(text: str, option: str) -> list[Choice]:
    """Return the choices in `text`: that of `choice_from`, or several.

    In a list without weights such as `a,b,none`, each name is a choice of its own.
    """
    parts = _parts(text)
    if len(parts) > 1 and all(_weighted(part) is None for part in parts):
        return [choice_from(part, option) for part in parts]
    return [choice_from(text, option)]


def _parts(text: str) -> list[str]:
    """Return the parts between commas, except commas inside a version range (`a>=1.2,<2`)."""
    parts: list[str] = []
    for part in map(str.strip, text.split(",")):
        if parts and part.startswith(("<", ">", "=", "!", "~=")):
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return parts


def _weighted(part: str) -> tuple[str, float] | None:
    """Return spec and weight of `a:0.7`; None for a spec without a weight, since a digest also holds a colon."""
    name, colon, number = part.rpartition(":")
    if not colon or not name or name.endswith(("#sha256", "@sha256")):
        return None
    try:
        return name, float(number)
    except ValueError:
        return None


def label_of(choice: Choice) -> str:
    """Return `a`, `0.7 x a + 0.3 x b` or `none`."""
    if list(choice.values()) == [1.0]:
        return next(iter(choice))
    return " + ".join(f"{weight:g} x {name}" for name, weight in choice.items()) or NONE
