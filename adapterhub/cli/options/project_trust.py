"""Ask on the terminal whether to trust the servers that a project names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from adapterhub.cli.output import Output

if TYPE_CHECKING:
    from adapterhub.projects.values import Project, Servers


def agree_on_terminal(out: Output, project: Project, servers: Servers) -> bool:
    """List the servers on stderr and return the user's answer."""
    from adapterhub.projects.trust import lines_of

    out.warn(f"`{project.folder}` names servers that you do not trust yet:")
    for line in lines_of(servers):
        out.note(f"  {line}")
    return click.confirm("Trust these servers now and in later runs?", err=True)
