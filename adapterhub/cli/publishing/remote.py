"""`adapt remote`: manage servers, the namespaces of each, and their tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import click

from adapterhub.cli.completion.completing import complete_remote
from adapterhub.cli.groups import Group
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import Session, common
from adapterhub.core.errors import UsageProblem
from adapterhub.trust.signing.policy import SignaturePolicy


@click.group(cls=Group)
def remote() -> None:
    """Manage servers, their namespaces and access tokens.

    \b
    Example:
      adapt remote add ours https://adapters.example.org --namespaces acme --default
    """


@remote.command("add")
@click.argument("name")
@click.argument("url")
@click.option("--namespaces", default="", metavar="A,B", help="Look up these namespaces on this server only.")
@click.option("--default", "default", is_flag=True, help="Use this server when nothing else names one.")
@click.option("--signatures", type=kind_of(SignaturePolicy), help="Signature policy for this server.")
@common
def add(session: Session, name: str, url: str, namespaces: str, **options: Any) -> None:
    """Name a server. Repeat the command to change its namespaces; the signature policy stays unless you pass one.

    A namespace belongs to one remote. Adapters without a namespace are looked up in all listed namespaces, in order.

    \b
    Examples:
      adapt remote add ours https://adapters.example.org --namespaces acme,legal-team
      adapt remote add corp oci://registry.example.org --namespaces acme
    """
    listed = [word.strip() for word in namespaces.split(",") if word.strip()]
    made = session.opened.remotes.add(name, url, namespaces=listed, **options)
    session.out.result(made.to_json(), lambda: session.out.line(f"{made.name}  {made.url}"))


@remote.command("set")
@click.argument("name", shell_complete=complete_remote)
@click.option(
    "--signatures",
    type=kind_of(SignaturePolicy, "default"),
    required=True,
    help="Signature policy for this server; `default` uses that of `adapt key policy`.",
)
@common
def set_(session: Session, name: str, signatures: SignaturePolicy | Literal["default"]) -> None:
    """Set the signature policy of a server.

    \b
    Example:
      adapt remote set ours --signatures require
    """
    made = session.opened.remotes.set(name, signatures=signatures)
    session.out.result(
        made.to_json(), lambda: session.out.line(f"{made.name}  signatures: {made.signatures or 'default'}")
    )


@remote.command("list")
@common
def list_(session: Session) -> None:
    """List the remotes in the order in which `adapt` asks them.

    \b
    Example:
      adapt remote list
    """
    found = session.opened.remotes.all()
    columns = ("name", "url", "namespaces", "default", "token", "signatures")
    cells = [
        (
            one.name,
            one.url,
            ",".join(one.namespaces),
            "yes" if one.is_default else "",
            "yes" if one.has_token else "",
            one.signatures or "",
        )
        for one in found
    ]
    session.out.result([one.to_json() for one in found], lambda: session.out.table(columns, cells))


@remote.command("remove")
@click.argument("name", shell_complete=complete_remote)
@common
def remove(session: Session, name: str) -> None:
    """Remove a remote and its token. Installed adapters stay.

    \b
    Example:
      adapt remote remove ours
    """
    gone = session.opened.remotes.remove(name)
    session.out.result(gone.to_json(), lambda: session.out.line(f"removed {gone.name}"))


@remote.command("login")
@click.argument("name", metavar="NAME|URL", shell_complete=complete_remote)
@click.option("--token", metavar="TOKEN", help="Store this token [default: read from stdin, or ask for it].")
@common
def login(session: Session, name: str, token: str | None) -> None:
    """Store a token for a server, readable only by you. `adapt` sends it only to that server.

    \b
    Examples:
      adapt remote login ours
      adapt remote login https://adapters.example.org --token TOKEN
    """
    done = session.opened.remotes.login(name, token if token is not None else _typed_token)
    session.out.result(done.to_json(), lambda: session.out.line(f"{done.url}: {done.who or 'token stored'}"))


def _typed_token() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("token", hide_input=True, err=True))
    return sys.stdin.readline()


@remote.command("logout")
@click.argument("name", metavar="NAME|URL", shell_complete=complete_remote)
@common
def logout(session: Session, name: str) -> None:
    """Delete the stored token of a server. The token itself stays valid until you revoke it on the server.

    \b
    Example:
      adapt remote logout ours
    """
    done = session.opened.remotes.logout(name)
    text = f"deleted the token for {done.url}" if done.forgotten else f"no token is stored for {done.url}"
    session.out.result(done.to_json(), lambda: session.out.line(text))


@remote.command("trust")
@click.argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path), metavar="[DIR]")
@click.option("--revoke", is_flag=True, help="Stop trusting the project.")
@click.option("--list", "is_list", is_flag=True, help="List the trusted projects.")
@common
def trust(session: Session, folder: Path | None, revoke: bool, is_list: bool) -> None:
    """Trust the servers that a project names.

    A project file that you did not write may name servers under `[remotes]`, and a lock file may name more. `adapt`
    contacts none of them before you agree. A later change of their names, URLs, namespaces or signature policies needs
    your agreement again. Namespaces and names of your own remotes stay yours in any case.

    \b
    Examples:
      adapt remote trust
      adapt remote trust ./assistant --revoke
      adapt remote trust --list
    """
    if is_list:
        if revoke or folder is not None:
            raise UsageProblem("`--list` takes no DIR and no `--revoke`: it lists all projects")
        known = session.opened.trusted_projects
        rows = [(one.folder, " ".join(one.urls)) for one in known]
        session.out.result([one.to_json() for one in known], lambda: session.out.table(("project", "servers"), rows))
        return
    done = session.opened.trust_project(folder, revoke=revoke)
    session.out.result(done.to_json(), lambda: session.out.line(str(done)))
