"""`adapt why`: show what needs an adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.options.params import SPEC, Session, common, project_option
from adapterhub.core.errors import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.core.specs import AdapterSpec
    from adapterhub.projects.uses import Use


@click.command()
@click.argument("spec", type=SPEC)
@project_option
@common
def why(session: Session, spec: AdapterSpec) -> None:
    """Show what needs an adapter: projects that lock it, merges made from it, processes that use it.

    For a merge, also shows what needs the merge. In a project, a bare name is the project's name for an adapter.

    \b
    Example:
      adapt why legal-qa
    """
    from adapterhub.api.steps.finding import lineage_of, meant_by
    from adapterhub.projects.uses import Uses

    lineage = lineage_of(session)
    builds = meant_by(session, lineage, spec)
    uses_there = Uses(session.root, lineage)
    documents: list[dict[str, Any]] = []
    uses: list[tuple[str, tuple[Use, ...]]] = []
    for digest, label in builds:
        reasons = uses_there.of(digest)
        uses.append((label, reasons))
        documents.append({"adapter": label, "digest": digest, "uses": [use.to_json() for use in reasons]})
    session.out.result(documents, lambda: _say(session, uses))
    for label, reasons in uses:
        if not reasons:
            session.out.hint(f"nothing needs {label}; `adapt remove {spec} --yes` removes it")


def _say(session: Session, builds: Sequence[tuple[str, tuple[Use, ...]]]) -> None:
    from adapterhub.library.upkeep.lineage import drawn

    for label, uses in builds:
        for line in drawn(label if uses else f"{label}: nothing needs it", uses, _branch):
            session.out.line(shown(line, 400))


def _branch(use: Use) -> tuple[str, Sequence[Use]]:
    if use.kind == "merge":
        return f"merge {use.who} {use.why}", use.uses
    who = {"process": use.who, "alias": f"alias {use.who}"}.get(use.kind, f"project {use.who}")
    separator = " " if use.kind == "process" else ": "
    return f"{who}{separator}{use.why}", use.uses
