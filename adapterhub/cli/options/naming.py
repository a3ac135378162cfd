"""`--bump` and `--variant`: what to do where a name and version exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from adapterhub.cli.options.kinds import kind_of
from adapterhub.library.intake.clashes import Bump

F = TypeVar("F", bound=Callable[..., Any])


def naming_options(command: F) -> F:
    """Add `--bump` and `--variant`."""
    for option in (
        click.option("--variant", is_flag=True, help="Add a build of another rank to a version that exists."),
        click.option(
            "--bump",
            type=kind_of(Bump),
            help="Take the next free version where the name exists for this base.",
        ),
    ):
        command = option(command)
    return command
