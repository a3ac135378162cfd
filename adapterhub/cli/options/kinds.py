"""The kinds of options: of a value type of the public functions, what click makes of its text."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args, get_origin

import click

from adapterhub.core.arguments import Between


def kind_of(value: Any, *more: str) -> Any:
    """Return the type of an option that takes a `Literal`, or a number `Between` bounds; `more` are further words."""
    if get_origin(value) is Literal:
        return click.Choice([*get_args(value), *more])
    assert get_origin(value) is Annotated
    number, bounds = get_args(value)
    assert isinstance(bounds, Between)
    if number is int:
        low, high = (None if end is None else int(end) for end in (bounds.low, bounds.high))
        return click.IntRange(low, high)
    is_open = {end: bounds.without is not None and bounds.without == end for end in (bounds.low, bounds.high)}
    return click.FloatRange(bounds.low, bounds.high, min_open=is_open[bounds.low], max_open=is_open[bounds.high])
