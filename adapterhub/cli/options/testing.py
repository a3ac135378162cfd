"""Options of commands that test the adapters they install or make against a behaviour contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli.groups import BareOption
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import needing
from adapterhub.core.arguments import LoadIn, Precision, Testing

if TYPE_CHECKING:
    from collections.abc import Callable

    from adapterhub.cli.options.params import Session

F = TypeVar("F", bound="Callable[..., Any]")


def install_test_options(command: F) -> F:
    """Add `--test`, `--dtype` and `--load-in`."""
    for option in (
        click.option(
            "--load-in",
            type=kind_of(LoadIn),
            callback=needing("quantized"),
            help="With --test: quantise the base's linear layers.",
        ),
        click.option("--dtype", type=kind_of(Precision), help="With --test: load the base in this precision."),
        test_option("Keep the build only if it answers as its contract records, on your base"),
    ):
        command = option(command)
    return command


def test_option(what: str) -> Callable[[F], F]:
    """Add `--test[=warn]`; `what` names its action on an adapter that passes its contract."""
    return click.option(
        "--test", cls=BareOption, bare="keep", type=kind_of(Testing), metavar="[=warn]", help=f"{what}; or only warn."
    )


def tells_tests(session: Session, results: Any) -> None:
    """Print one row for each parent whose contract was tested."""
    for result in results:
        session.out.line(f"  {result.row}")
