"""`adapt verify`: run every check on adapters, or ask what engines make of them."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_engine, complete_spec_or_folder
from adapterhub.cli.options.params import BASE, Session, common, jobs_option
from adapterhub.core.errors import EXIT_SOME_FAILED, Incompatible, UsageProblem, explained_by, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.api.checking import Checked, Reports
    from adapterhub.core.specs import BaseSpec

_UNSIGNED = "is not signed"


@click.command()
@click.argument("adapters", nargs=-1, metavar="SPEC|FOLDER...", shell_complete=complete_spec_or_folder)
@click.option("--all", "everything", is_flag=True, help="Check every installed adapter.")
@click.option("--base", type=BASE, help="Check against this base if the adapter declares none.")
@click.option(
    "--engine",
    "engines",
    multiple=True,
    metavar="ENGINE[@VERSION]",
    shell_complete=complete_engine,
    help="Say whether this engine reads it right: `vllm@0.32`, `llama.cpp`, `ollama`, `peft`, … or `all`; repeatable.",
)
@click.option("--strict", is_flag=True, help="Fail when a signed folder has files that its signature does not cover.")
@click.option("--notes", is_flag=True, help="Also show notes, such as ignored files and scales.")
@click.option("--offline", is_flag=True, help="Ask no server whether it has yanked an adapter.")
@jobs_option("With --all: check N at a time [default: 1].")
@common
def verify(
    session: Session,
    adapters: tuple[str, ...],
    everything: bool,
    base: BaseSpec | None,
    engines: tuple[str, ...],
    strict: bool,
    notes: bool,
    offline: bool,
    jobs: int,
) -> None:
    """Check an adapter's bytes, format, tensor pairs and shapes, scale, numbers, base and signature.

    For an installed adapter, and for a folder with a manifest, the base is the registered one with the weights that
    they declare.

    Also warns about an installed adapter that its server has yanked. If the server does not answer, its last answer
    counts.

    If --all is interrupted, run it again within a week: it continues, and skips adapters whose files are the same as
    when they were checked. After a complete check, the next one reads every byte.

    With --engine, prints instead which engines read the adapter correctly, why others do not, and which flags each
    needs. Engines do not check what they load, so the answer for a damaged adapter is no. The rules come from the
    engines' sources; the reference page about engines lists them.

    Exits with code 0 when every check passes, 3 when one fails, 12 when bytes do not match their digest, and 17 when a
    check cannot run, for example because the base is not registered here. With --engine, with 11 when all answers are
    no, and 3 when some are.

    \b
    Examples:
      adapt verify --all --jobs 8
      adapt verify ./out/legal-qa --base base-7b
      adapt verify legal-qa@base-7b --engine vllm@0.32 --engine llama.cpp
    """
    if bool(adapters) == everything:
        raise UsageProblem("give adapters or folders, or `--all`", hint="see the examples of `adapt verify --help`")
    if engines and notes:
        raise UsageProblem("`--engine` does not use `--notes`; leave it out")
    options: dict[str, Any] = {"engines": engines} if engines else {}
    found: Any = session.checks.verify(*adapters, base=base, strict=strict, offline=offline, jobs=jobs, **options)
    if engines:
        checked: Sequence[Checked] = found
        session.out.result([one.to_json() for one in checked], lambda: _say_checked(session, checked))
        answers = [one.says_yes(verdict) for one in checked for verdict in one.verdicts]
        code = 0 if all(answers) else EXIT_SOME_FAILED if any(answers) else Incompatible.exit_code
    else:
        reports: Reports = found
        session.out.result(reports.documents, lambda: _say(session, reports, notes=notes))
        code = reports.exit_code
    if code:
        raise SystemExit(code)


def _say(session: Session, reports: Reports, *, notes: bool) -> None:
    out = session.out
    words = {"ok": "ok", "failed": "FAILED", "unknown": "unknown"}
    for label, report in reports.items():
        signed = [f.message for f in report.notes if f.code == "N_SIGNATURE" and f.message != _UNSIGNED]
        out.line(f"{label}: {words[report.status]}" + "".join(f", {message}" for message in signed))
        for finding in report.findings:
            if finding.severity == "note" and not notes:
                continue
            place = f"{finding.where}: " if finding.where else ""
            expected = f"; expected {finding.expected}" if finding.expected else ""
            out.line(f"  [{finding.code}] {finding.severity}: {place}{finding.message}{expected}")
            if finding.severity == "error":
                out.hint(finding.hint or explained_by(finding.code))
    if not reports:
        out.line("nothing is installed")


def _say_checked(session: Session, checked: Sequence[Checked]) -> None:
    from adapterhub.formats.engines import together

    out = session.out
    width = max((len(verdict.target) for one in checked for verdict in one.verdicts), default=0)
    for one in checked:
        out.line(shown(one.label, 200))
        for finding in one.report.errors:
            out.line(f"  invalid: {finding}")
        for verdict in one.verdicts:
            flags = shlex.join(verdict.flags) if one.says_yes(verdict) else ""
            out.line(f"  {verdict.target:{width}}  {'yes' if one.says_yes(verdict) else 'no'}  {flags}".rstrip())
            for reason in verdict.reasons:
                out.line(f"    {reason.text}")
            if verdict.pairs is not None and verdict.pairs.bound < verdict.pairs.all:
                out.line(f"    {verdict.pairs}")
            for note in (*verdict.steps, *verdict.notes):
                out.note(f"    note: {note}")
    for asked in zip(*(one.verdicts for one in checked), strict=True):
        good = [verdict for one, verdict in zip(checked, asked, strict=True) if one.says_yes(verdict)]
        if len(good) > 1 and good[0].flags:
            out.line(f"{good[0].target}, {len(good)} adapters on one server: {shlex.join(together(good))}")
