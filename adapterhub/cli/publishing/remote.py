"""`adapt remote`: manage servers, the namespaces of each, and their tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_remote
from adapterhub.cli.groups import Group
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import Session, common
from adapterhub.core.errors import Conflict, UsageProblem, shown
from adapterhub.trust.signing.policy import SignaturePolicy

if TYPE_CHECKING:
    from adapterhub.distribution.hub.device import CodeToType


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
@click.option("--witness", metavar="KEY", help="Take releases only from a log that this witness has co-signed.")
@common
def add(session: Session, name: str, url: str, namespaces: str, **options: Any) -> None:
    """Name a server. Repeat the command to change its namespaces; policy and witness stay unless you pass one.

    A namespace belongs to one remote. Adapters without a namespace are looked up in all listed namespaces, in order.

    \b
    Examples:
      adapt remote add ours https://adapters.example.org --namespaces acme,legal-team
      adapt remote add corp oci://registry.example.org --namespaces acme
    """
    listed = [word.strip() for word in namespaces.split(",") if word.strip()]
    made = session.opened.remotes.add(name, url, namespaces=listed, **options)
    session.out.result(made.to_json(), lambda: session.out.line(f"{made.name}  {made.url}"))


@remote.command("list")
@common
def list_(session: Session) -> None:
    """List the remotes in the order in which `adapt` queries them.

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
@click.option("--token", metavar="TOKEN", help="Store this token [default: read from stdin, or sign in on a terminal].")
@click.option("--device", is_flag=True, help="Sign in on a page of the registry, also without a terminal.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["read", "write", "release", "administer"]),
    help="Let the new token do this; repeatable [default: read, write and release].",
)
@click.option("--days", type=click.IntRange(1, 366), default=30, show_default=True, help="Let the new token expire.")
@common
def login(session: Session, name: str, token: str | None, device: bool, scopes: tuple[str, ...], days: int) -> None:
    """Store a token for a server, readable only by you. `adapt` sends it only to that server.

    On a terminal, a registry shows a code that you type on one of its pages, where you sign in and approve a new token.
    Other servers, and registries of earlier versions, take a token that you paste.

    \b
    Examples:
      adapt remote login ours
      adapt remote login ours --device --scope read --days 7 --json
      adapt remote login https://adapters.example.org --token TOKEN
    """
    if device and token is not None:
        raise UsageProblem("`--device` makes a token, so it excludes `--token`", hint="drop one of the two")
    is_typed = token is None and not device
    if device or (is_typed and sys.stdin.isatty()):
        try:
            done = session.opened.remotes.sign_in(
                name, _show_code, scopes=scopes or ("read", "write", "release"), days=days
            )
        except Conflict:
            if device:
                raise
            done = session.opened.remotes.login(name, _typed_token)
    else:
        done = session.opened.remotes.login(name, token if token is not None else _typed_token)
    until = f", until {done.expires}" if done.expires else ""
    session.out.result(done.to_json(), lambda: session.out.line(f"{done.url}: {done.who or 'token stored'}{until}"))


def _show_code(code: CodeToType) -> None:
    lines = f"Open {shown(code.url)}\nand type the code {shown(code.code)}, within {code.lasts_s // 60} minutes."
    click.echo(lines, err=True)


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
            raise UsageProblem(
                "`--list` takes no DIR and no `--revoke`: it lists all projects",
                hint="`adapt remote trust DIR --revoke` takes trust back",
            )
        known = session.opened.trusted_projects
        rows = [(one.folder, " ".join(one.urls)) for one in known]
        session.out.result([one.to_json() for one in known], lambda: session.out.table(("project", "servers"), rows))
        return
    done = session.opened.trust_project(folder, revoke=revoke)
    session.out.result(done.to_json(), lambda: session.out.line(str(done)))
