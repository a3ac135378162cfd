"""`--exclude-newer`, and the line that shows why the project refuses a build."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def exclude_newer_option(command: F) -> F:
    """`--exclude-newer`."""
    text = "Take no release newer than a day (2026-01-31), a time or an age (7d, 2w, 12h) [default: the project's]."
    return click.option("--exclude-newer", metavar="DATE|AGE", help=text)(command)


def policy_fields(document: dict[str, Any]) -> list[tuple[str, object]]:
    """The line of `refusal_here`, which is under `policy_refusal` in a document."""
    refusal = document["policy_refusal"]
    return [("policy", f"the project refuses it: {refusal}")] if refusal else []
