"""Asks on the terminal whether the servers that a project names may be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from adapterhub.cli.output import Output
    from adapterhub.project.values import Project
    from adapterhub.trusted_projects import Servers


def agree_on_terminal(out: Output, project: Project, servers: Servers) -> bool:
    """The user's answer, after the servers are listed on stderr."""
    from adapterhub.project_trust import lines_of

    out.warn(f"`{project.folder}` names servers that you have not agreed to:")
    for line in lines_of(servers):
        out.note(f"  {line}")
    return click.confirm("Ask them for adapters, now and later?", err=True)
