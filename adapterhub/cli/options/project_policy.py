"""`--exclude-newer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def exclude_newer_option(command: F) -> F:
    """Add `--exclude-newer`."""
    text = "Ignore releases newer than a date (2026-01-31), time or age (7d, 2w, 12h) [default: the project's setting]."
    return click.option("--exclude-newer", metavar="DATE|AGE", help=text)(command)
