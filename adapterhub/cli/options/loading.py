"""The options of commands that load a base: `--dtype` and `--load-in`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import needing
from adapterhub.core.arguments import LoadIn, LoadPrecision

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")


def loading_options(command: F) -> F:
    """Add the options; the command gets them as `dtype` and `load_in`."""
    for option in (
        click.option(
            "--load-in",
            type=kind_of(LoadIn),
            callback=needing("quantized"),
            help="Quantise the base's linear layers.",
        ),
        click.option(
            "--dtype",
            type=kind_of(LoadPrecision),
            default="auto",
            show_default=True,
            help="Load the base in this precision.",
        ),
    ):
        command = option(command)
    return command
