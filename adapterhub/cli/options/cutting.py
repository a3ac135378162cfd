"""The options that set the rank at which a command cuts an update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli.options.kinds import kind_of
from adapterhub.core.arguments import Precision, Rank, RelativeError, Share

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


F = TypeVar("F", bound="Callable[..., Any]")

energy_option = click.option(
    "--energy",
    type=kind_of(Share),
    metavar="E",
    help="Keep the smallest rank in each module that holds this share of the squared norm.",
)
max_error_option = click.option(
    "--max-error",
    type=kind_of(RelativeError),
    metavar="E",
    help="Keep the smallest rank in each module whose relative error is at most E.",
)


def cut_options(own_dtype: str) -> Callable[[F], F]:
    """`--rank`, `--energy`, `--max-error` and `--dtype`; `own_dtype` describes the default of `--dtype`."""
    options = (
        click.option("--rank", type=kind_of(Rank), metavar="N", help="Keep at most rank N in every module."),
        energy_option,
        max_error_option,
        click.option(
            "--dtype",
            type=kind_of(Precision),
            help=f"Precision of the result [default: {own_dtype}].",
        ),
    )

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def ranks_text(ranks: Mapping[int, int]) -> str:
    """`rank 4 in 12 modules, rank 8 in 1 module`."""
    return ", ".join(f"rank {rank} in {count} module{'s' * (count != 1)}" for rank, count in sorted(ranks.items()))
