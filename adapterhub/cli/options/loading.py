"""The options of commands that load a base: `--dtype` and `--load-in`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli.options.params import needing

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")


def loading_options(command: F) -> F:
    """Add the options; the command gets them as `dtype` and `load_in`."""
    for option in (
        click.option(
            "--load-in",
            type=click.Choice(["4bit", "8bit"]),
            callback=needing("quantized"),
            help="Quantise the base's linear layers.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default="auto",
            show_default=True,
            help="Load the base in this precision.",
        ),
    ):
        command = option(command)
    return command
