"""`adapt test`: test whether adapters still answer as their contracts record."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_own_key, complete_spec_or_folder
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.loading import loading_options
from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.core.arguments import Budget, RunnerName
from adapterhub.core.errors import EXIT_SOME_FAILED, CouldNotTell, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.formats.contract.results import Tested

_FILE = click.Path(path_type=Path, dir_okay=False)
OUTCOME_CODES = {"broken": EXIT_SOME_FAILED, "drifts": EXIT_SOME_FAILED, "cannot_run": CouldNotTell.exit_code}
EXIT_CODES = {"PASS": 0, "CHANGED": EXIT_SOME_FAILED, "UNKNOWN": CouldNotTell.exit_code}
_CASES_SHOWN = 3


@click.command()
@click.argument("adapters", nargs=-1, metavar="[SPEC|FOLDER]...", shell_complete=complete_spec_or_folder)
@click.option("--all", "everything", is_flag=True, help="Test every installed build that has a contract.")
@click.option("--base", type=BASE, help="Use this base [default: the one that the adapter was made for].")
@click.option("--on", type=BASE, metavar="BASE", help="Ask on another base, to learn what works on it.")
@loading_options
@click.option("--tests", type=_FILE, metavar="FILE", help="Test against this contract instead of the build's own.")
@click.option("--bound", "bounds", multiple=True, metavar="NAME=X", help="Tighten a bound, such as `same=1`.")
@click.option(
    "--base-alone", is_flag=True, help="Also test the base without the adapter, and compare it with the recording."
)
@click.option(
    "--budget",
    type=kind_of(Budget),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="CPU seconds that one verdict may take.",
)
@click.option("--runner", type=kind_of(RunnerName), help="Run the tests with this installed tool.")
@click.option(
    "--task",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="With --runner: a task of lm-eval instead of the goldens, or tests of pytest.",
)
@click.option("--require", is_flag=True, help="Count a build without a contract as unknown.")
@click.option("--again", is_flag=True, help="Ask again, whatever results are kept.")
@click.option("--junit", type=_FILE, metavar="FILE", help="Write the results to FILE as JUnit XML.")
@click.option("--statement", type=_FILE, metavar="FILE", help="Write the result to FILE as an in-toto statement.")
@click.option("--sign", is_flag=True, help="Sign the result, and write it beside the build.")
@click.option(
    "--key",
    metavar="NAME",
    shell_complete=complete_own_key,
    help="Sign with this key [default: ADAPTERHUB_KEY, or your only key].",
)
@common
def test(session: Session, adapters: tuple[str, ...], bounds: tuple[str, ...], **options: Any) -> None:
    """Test whether an adapter still answers as its contract records: on your base, in your precision.

    A contract is a small file in a build: prompts, the answers that the adapter gave when it was recorded, and bounds;
    `adapt contract record` makes one. PASS means answers as recorded, on the prompts of the contract. CHANGED names
    each broken bound. UNKNOWN means that no verdict is possible, and why. None of them says that an adapter is good or
    safe.

    With --sign, signs the result as an in-toto statement about the build's manifest, and keeps it in the library, or in
    `.tests/` beside a published folder. `push` and `install` copy it; a project's policy may require one.

    With --on, asks adapters on a base that they were not made for, such as a later version of it, and prints a table,
    the worst first: broken, drifts, cannot run, works. With --all it tests the newest version of each name; SPECs are
    then parts of names, or patterns. Verdicts are kept as they come: the same command goes on where it was stopped.

    Exits with code 0 for PASS, 3 when an adapter is CHANGED, and 17 when no verdict is possible for one. With --on:
    0 if all work, 3 if one is broken or drifts, and 17 if one cannot run.

    \b
    Examples:
      adapt test legal-qa@base-7b
      adapt test legal-qa --base base-7b-bf16 --bound same=1
      adapt test --all --junit results.xml
      adapt test --all --on base-7b-v2 'legal-*'
      adapt test legal-qa==1.1 --tests ./legal-qa-1.0.tests.jsonl
      adapt test legal-qa@base-7b --sign --key ana
      adapt test legal-qa --runner lm-eval
      adapt test legal-qa --runner pytest --task tests/test_legal.py
    """
    from adapterhub.formats.contract.standards import parse_bound

    found = session.opened.test(*adapters, bounds=dict(map(parse_bound, bounds)), **options)
    say, code = _say, EXIT_CODES[found.verdict]
    if options["on"] is not None:
        say, code = _say_table, OUTCOME_CODES.get(found.outcome, 0)
    session.out.result(found.to_json(), lambda: say(session, found))
    if code:
        raise SystemExit(code)


def _say_table(session: Session, results: Sequence[Tested]) -> None:
    """Print what works on another base, a line for each adapter, and how many of each."""
    rows = [(one.name, one.version, _word(one.outcome), *map(_number, _figures(one)), _why(one)) for one in results]
    columns = ("adapter", "version", "outcome", "same", "left", "drift", "base moved", "why")
    session.out.table(columns, rows, right=("same", "left", "drift", "base moved"))
    counts = Counter(one.outcome for one in results)
    if not results:
        session.out.note("no installed build has a contract")
    else:
        told = ", ".join(f"{number} {_word(name)}" for name, number in counts.items())
        session.out.note(f"on {shown(results[0].base, 200)}: {told}")


def _figures(result: Tested) -> tuple[float | None, ...]:
    """Return the lines about kept and moved answers, about the adapter's effect in its kind's measure, and the base."""
    left = next((one for one in (result.retention, result.cosine, result.effect) if one is not None), None)
    return result.same, left, result.drift, result.noise


def _why(result: Tested) -> str:
    return shown(result.why[0], 200) if result.why else ""


def _word(outcome: str) -> str:
    return outcome.replace("_", " ") or "no contract"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _say(session: Session, results: Sequence[Tested]) -> None:
    """Print the verdicts, and what broke each bound."""
    out = session.out
    for result in results:
        out.line(f"{shown(result.label, 200)}: {result.verdict}{_numbers(result)}")
        for reason in result.why:
            out.line(f"  {shown(reason, 400)}")
        for case in [case for case in result.cases if case.verdict == "CHANGED"][:_CASES_SHOWN]:
            if case.text is not None and case.recorded_text is not None:
                out.line(f"  {case.id}: `{shown(case.recorded_text)}` became `{shown(case.text)}`")
    if not results:
        out.line("no installed build has a contract")
    elif any(result.passed for result in results):
        out.note("PASS means answers as recorded on these prompts; it says nothing of quality or safety")


def _numbers(result: Tested) -> str:
    if result.verdict == "NONE":
        return ", it has no contract"
    parts = [f"{result.goldens} goldens"] if result.goldens else []
    if result.cases and not result.goldens:
        parts.append(f"{len(result.cases)} tests")
    parts += [f"{name} {value:.3f}" for name, value in result.metrics.items()]
    if result.same is not None:
        parts.append(f"{result.same:.0%} the same")
    for name, value in (
        ("retention", result.retention), ("KL", result.kl), ("cosine", result.cosine), ("effect", result.effect),
    ):  # fmt: skip
        if value is not None:
            parts.append(f"{name} {value:.3f}")
    parts.append(result.drifted)
    where = ", ".join(filter(None, (result.base, result.dtype, result.load_in)))
    parts.append(f"on {where}" if where else "")
    kept = "  (kept result)" if result.is_cached else ""
    return f"  {', '.join(filter(None, parts))}{kept}"
