"""Options of the commands that make an adapter: what it is called, what goes in, and the rank that it is cut to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import BASE
from adapterhub.core.arguments import Precision, Rank, RelativeError, Share
from adapterhub.core.errors import UsageProblem
from adapterhub.library.intake.clashes import Bump

F = TypeVar("F", bound=Callable[..., Any])


class WeightsType(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """Weights as numbers with commas between them."""

    name = "weights"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        """Return the numbers; a comma at the end means nothing."""
        try:
            return [float(part) for part in value.removesuffix(",").split(",")]
        except ValueError:
            raise UsageProblem(
                f"--weights `{value}`: expected numbers separated by commas, such as `0.7,0.3`"
            ) from None


adapters_argument = click.argument(
    "adapters", nargs=-1, required=True, metavar="SPEC|FOLDER...", shell_complete=complete_spec_or_folder
)
weights_option = click.option(
    "--weights",
    type=WeightsType(),
    metavar="W,W,...",
    help="One weight per adapter [default: equal shares that sum to 1].",
)
base_option = click.option("--base", type=BASE, help="Use this base for specs that name none.")


def dtype_option(default: str) -> Callable[[F], F]:
    """`--dtype` of the result; `default` is in words."""
    return click.option("--dtype", type=kind_of(Precision), help=f"Precision of the result [default: {default}].")


def rank_option(command: F) -> F:
    """Add `--rank`, which cuts to a rank."""
    return click.option("--rank", type=kind_of(Rank), metavar="N", help="Keep at most rank N in every module.")(command)


def cut_options(command: F) -> F:
    """Add `--energy` and `--max-error`, which choose the rank of each module."""
    for option in (
        click.option(
            "--max-error",
            type=kind_of(RelativeError),
            metavar="E",
            help="Keep the smallest rank in each module whose relative error is at most E.",
        ),
        click.option(
            "--energy",
            type=kind_of(Share),
            metavar="E",
            help="Keep the smallest rank in each module that holds this share of the squared norm.",
        ),
    ):
        command = option(command)
    return command


def output_option(default: str) -> Callable[[F], F]:
    """`-o/--output`, a name in the library or a new folder; `default` is in words."""
    text = f"Write to this name or `./folder` [default: {default}]."
    return click.option("-o", "--output", metavar="NAME|DIR", help=text)


def naming_options(command: F) -> F:
    """Add `--bump` and `--variant`: what to do where a name and version exist."""
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


def about_options(version: str, ending: str = "") -> Callable[[F], F]:
    """`--version`, `--bump`, `--variant`, `--task` and `--description`; `version` is the default of the first."""

    def decorate(command: F) -> F:
        command = click.option(
            "--description", metavar="TEXT", help=f"Describe the new adapter in one sentence{ending}."
        )(command)
        command = click.option("--task", metavar="TASK", help=f"Task of the new adapter{ending}.")(command)
        command = naming_options(command)
        text = f"Version of the new adapter [default: {version}]."
        return click.option("--version", metavar="VERSION", help=text)(command)

    return decorate


def ranks_text(ranks: Mapping[int, int]) -> str:
    """`rank 4 in 12 modules, rank 8 in 1 module`."""
    return ", ".join(f"rank {rank} in {count} module{'s' * (count != 1)}" for rank, count in sorted(ranks.items()))
