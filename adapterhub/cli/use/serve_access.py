"""The options of `adapt serve` that say who may use which adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])


def access_options(command: _F) -> _F:
    """Add them to a command, whose parameters get their values."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.option(
        "--deny",
        multiple=True,
        metavar="TEXT",
        help="Refuse an adapter: a spec or digest, then the reason (repeatable).",
    ),
    click.option(
        "--deny-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Refuse the adapters in FILE, one `--deny` a line; read again when it changes.",
    ),
)
