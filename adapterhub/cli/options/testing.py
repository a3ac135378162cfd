"""Options of commands that test what they bring or make against a behaviour contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import needing
from adapterhub.core.arguments import LoadIn, Precision
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Callable

    from adapterhub.api.steps.contracts.gating import ContractGate
    from adapterhub.cli.options.params import Session
    from adapterhub.core.arguments import Testing
    from adapterhub.core.specs import BaseSpec

F = TypeVar("F", bound="Callable[..., Any]")


def install_test_options(command: F) -> F:
    """Add `--test`, `--test-warn`, `--test-dtype` and `--test-load-in`."""
    for option in (
        click.option(
            "--test-load-in",
            type=kind_of(LoadIn),
            callback=needing("quantized"),
            help="With --test: quantise the base's linear layers.",
        ),
        click.option(
            "--test-dtype",
            type=kind_of(Precision),
            help="With --test: load the base in this precision.",
        ),
        click.option("--test-warn", is_flag=True, help="Test as --test does, and only warn."),
        click.option(
            "--test",
            is_flag=True,
            help="Keep the build only if it answers as its contract records, on your base.",
        ),
    ):
        command = option(command)
    return command


def test_options(what: str) -> Callable[[F], F]:
    """Add `--test`, which does `what` only for what passes its contract, and `--test-warn`."""

    def decorate(command: F) -> F:
        command = click.option("--test-warn", is_flag=True, help="Test as --test does, and only warn.")(command)
        return click.option("--test", is_flag=True, help=f"{what} only if it answers as its contract records.")(command)

    return decorate


def testing_from(*, test: bool, test_warn: bool) -> Testing | None:
    """What the two options ask for; None without them.

    Raises:
        UsageProblem: both are given.
    """
    if test and test_warn:
        raise UsageProblem("`--test` and `--test-warn` exclude each other: one refuses where the other warns")
    return "warn" if test_warn else "keep" if test else None


def gate_from(
    session: Session,
    *,
    test: bool,
    test_warn: bool,
    test_dtype: str | None = None,
    test_load_in: str | None = None,
    on: BaseSpec | None = None,
) -> ContractGate | None:
    """The gate that the options ask for; None without `--test` and `--test-warn`.

    Raises:
        UsageProblem: both are given, or an option of a test without one.
    """
    testing = testing_from(test=test, test_warn=test_warn)
    if testing is None:
        if given := "--test-dtype" if test_dtype else "--test-load-in" if test_load_in else "":
            raise UsageProblem(f"`{given}` needs `--test` or `--test-warn`")
        return None
    from adapterhub.api.steps.contracts.gating import contract_gate
    from adapterhub.api.steps.contracts.testing import Question

    question = Question(on=on, dtype=test_dtype or "auto", load_in=test_load_in)
    return contract_gate(session.library, testing, question, bars=session.out, out=session.out)


def tells_tests(session: Session, results: Any) -> None:
    """Print one row for each parent whose contract was tested."""
    from adapterhub.api.steps.contracts.gating import row_of

    for result in results:
        session.out.line(f"  {row_of(result)}")
