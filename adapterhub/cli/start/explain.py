"""`adapt help CODE`: explain a code of a finding or an exit code, and what to do."""

from __future__ import annotations

from pathlib import Path

import click

from adapterhub.cli.completion.completing import complete_code
from adapterhub.cli.options.params import Session, common
from adapterhub.trust.explaining import Explanation, explain, explanations

_COLUMNS = ("code", "kind", "meaning")


@click.command(name="explain")
@click.argument("codes", nargs=-1, metavar="[CODE]...", shell_complete=complete_code)
@click.option("--skill", is_flag=True, help="Print a SKILL.md that teaches an agent to use `adapt`.")
@common
def explain_(session: Session, codes: tuple[str, ...], skill: bool) -> None:
    """Explain the codes of findings, and exit codes: what they mean and what to do.

    CODE is one that `verify`, `audit` or a refusal prints in brackets, an exit code, or an error class of Python;
    `adapt help codes` lists all. Works without a network.

    \b
    Examples:
      adapt help E_BASE_WEIGHT
      adapt help 11
      adapt help --skill > ~/.claude/skills/adapt/SKILL.md
    """
    if skill:
        text = Path(__file__).with_name("SKILL.md").read_text(encoding="utf-8")
        session.out.result({"skill": text}, lambda: session.out.line(text.rstrip()))
        return
    if not codes:
        rows = list(explanations().values())
        lines = [(one.code, _kind(one), one.text) for one in rows]
        session.out.result([one.to_json() for one in rows], lambda: session.out.table(_COLUMNS, lines))
        return
    found = [explain(code) for code in codes]
    session.out.result([one.to_json() for one in found], lambda: _say(session, found))


def _kind(one: Explanation) -> str:
    return "exit code" if one.kind == "exit" else f"{one.kind} of audit" if one.audit else one.kind


def _say(session: Session, found: list[Explanation]) -> None:
    for one in found:
        session.out.line(f"{one.code} ({_kind(one)})")
        session.out.line(f"  {one.text}")
        if one.remedy:
            session.out.line(f"  To do: {one.remedy}")
        if one.raised:
            session.out.line(f"  In Python: {', '.join(one.raised)}")
