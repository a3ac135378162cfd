"""`adapt check`: check whether an engine reads adapters correctly."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from adapterhub.api.steps.checking import Checked, checked_by, subjects_to_check
from adapterhub.cli.completion.completing import complete_engine, complete_spec_or_folder
from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.core.errors import EXIT_SOME_FAILED, Incompatible, UsageProblem, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.core.specs import BaseSpec


@click.command()
@click.argument("adapters", nargs=-1, metavar="SPEC|FOLDER...", shell_complete=complete_spec_or_folder)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="ENGINE[@VERSION]",
    shell_complete=complete_engine,
    help="Check this engine: `vllm@0.32`, `llama.cpp`, `ollama`, `peft`, `tgi`, `sglang`; repeatable [default: all].",
)
@click.option("--all", "everything", is_flag=True, help="Check every installed adapter.")
@click.option("--base", type=BASE, help="Use this base for adapters that declare none.")
@common
def check(
    session: Session, adapters: tuple[str, ...], targets: tuple[str, ...], everything: bool, base: BaseSpec | None
) -> None:
    """Check which engines read an adapter correctly, why not, and which flags each engine needs.

    Engines do not check what they load: NaN in one adapter spoils the answers of others, and settings that an engine
    does not know are ignored. So the command first verifies an adapter, as `adapt verify` does, and an engine that
    misreads it counts as no, like one that refuses it. The rules come from the engines' sources; the reference page
    about engines lists them.

    Exits with code 0 when every answer is yes, 3 when some are no, and 11 when all are no.

    \b
    Examples:
      adapt check legal-qa@base-7b --target vllm@0.32
      adapt check --all --target vllm --target llama.cpp
      adapt check ./out/legal-qa --base base-7b --json
    """
    from adapterhub.formats.engines import names, parse_target

    if bool(adapters) == everything:
        raise UsageProblem("give adapters or folders, or `--all`", hint="see the examples of `adapt check --help`")
    chosen = targets or names()
    for target in chosen:
        parse_target(target)
    library = session.project_library
    checked = [checked_by(one, chosen) for one in subjects_to_check(library, adapters, base)]
    session.out.result([one.to_json() for one in checked], lambda: _say(session, checked, chosen))
    answers = [one.says_yes(verdict) for one in checked for verdict in one.verdicts]
    if answers and not any(answers):
        raise SystemExit(Incompatible.exit_code)
    if not all(answers):
        raise SystemExit(EXIT_SOME_FAILED)


def _say(session: Session, checked: Sequence[Checked], targets: Sequence[str]) -> None:
    from adapterhub.formats.engines import together

    out = session.out
    width = max(len(target) for target in targets)
    for one in checked:
        out.line(shown(one.label, 200))
        for finding in one.report.errors:
            out.line(f"  invalid: {finding}")
        for verdict in one.verdicts:
            flags = shlex.join(verdict.flags) if one.says_yes(verdict) else ""
            out.line(f"  {verdict.target:{width}}  {'yes' if one.says_yes(verdict) else 'no'}  {flags}".rstrip())
            for reason in verdict.reasons:
                out.line(f"    {reason.text}")
            for note in (*verdict.steps, *verdict.notes):
                out.note(f"    note: {note}")
    for number, target in enumerate(targets):
        good = [one.verdicts[number] for one in checked if one.says_yes(one.verdicts[number])]
        if len(good) > 1 and good[0].flags:
            out.line(f"{target}, {len(good)} adapters on one server: {shlex.join(together(good))}")
