"""Options of commands that test what they bring or make against a behaviour contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli.groups import BareOption
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import needing
from adapterhub.core.arguments import LoadIn, Precision, Testing
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Callable

    from adapterhub.api.steps.contracts.gating import ContractGate
    from adapterhub.cli.options.params import Session
    from adapterhub.core.specs import BaseSpec

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
    """Add `--test[=warn]`; `what` says what it does for what passes its contract."""
    return click.option(
        "--test", cls=BareOption, bare="keep", type=kind_of(Testing), metavar="[=warn]", help=f"{what}; or only warn."
    )


def gate_from(
    session: Session,
    *,
    test: Testing | None,
    dtype: str | None = None,
    load_in: str | None = None,
    on: BaseSpec | None = None,
) -> ContractGate | None:
    """The gate that the options ask for; None without `--test`.

    Raises:
        UsageProblem: an option of a test without one.
    """
    if test is None:
        if given := "--dtype" if dtype else "--load-in" if load_in else "":
            raise UsageProblem(f"`{given}` needs `--test`")
        return None
    from adapterhub.api.steps.contracts.gating import contract_gate
    from adapterhub.api.steps.contracts.testing import Question

    question = Question(on=on, dtype=dtype or "auto", load_in=load_in)
    return contract_gate(session.library, test, question, bars=session.out, out=session.out)


def tells_tests(session: Session, results: Any) -> None:
    """Print one row for each parent whose contract was tested."""
    for result in results:
        session.out.line(f"  {result.row}")
