"""Asks on the terminal whether the servers that a project names may be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from adapterhub.cli.output import Output
    from adapterhub.projects.trusted import Servers
    from adapterhub.projects.values import Project


def agree_on_terminal(out: Output, project: Project, servers: Servers) -> bool:
    """The user's answer, after the servers are listed on stderr."""
    from adapterhub.projects.trust import lines_of

    out.warn(f"`{project.folder}` names servers that you have not agreed to:")
    for line in lines_of(servers):
        out.note(f"  {line}")
    return click.confirm("Ask them for adapters, now and later?", err=True)
