"""The options that say how much of an update to keep, for commands that cut one update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


F = TypeVar("F", bound="Callable[..., Any]")

energy_option = click.option(
    "--energy",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="E",
    help="Smallest rank of each module that keeps this share of its squared norm.",
)
max_error_option = click.option(
    "--max-error",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="E",
    help="Smallest rank of each module within this relative error.",
)


def cut_options(own_dtype: str) -> Callable[[F], F]:
    """`--rank`, `--energy`, `--max-error`, `--dtype`; `own_dtype` says what the dtype is without the last."""
    options = (
        click.option("--rank", type=click.IntRange(min=1), metavar="N", help="This rank in every module, at most."),
        energy_option,
        max_error_option,
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16", "float16"]),
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
