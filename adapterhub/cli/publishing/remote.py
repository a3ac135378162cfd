"""`adapt remote`: manage servers, the namespaces of each, and their tokens."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal

import click

from adapterhub.cli.completion.completing import complete_remote
from adapterhub.cli.groups import Group
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import Session, common
from adapterhub.core.errors import UsageProblem
from adapterhub.trust.signing.policy import SignaturePolicy

if TYPE_CHECKING:
    from adapterhub.library.remotes import Remote, Remotes


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
def add(
    session: Session,
    name: str,
    url: str,
    namespaces: str,
    default: bool,
    signatures: SignaturePolicy | None,
) -> None:
    """Name a server. Repeat the command to change its namespaces; the signature policy stays unless you pass one.

    A namespace belongs to one remote. Adapters without a namespace are looked up in all listed namespaces, in order.

    \b
    Examples:
      adapt remote add ours https://adapters.example.org --namespaces acme,legal-team
      adapt remote add corp oci://registry.example.org --namespaces acme
    """
    remotes = session.remotes
    listed = [word.strip() for word in namespaces.split(",") if word.strip()]
    made = remotes.add(name, url, namespaces=listed, default=default, signatures=signatures)
    if made.is_plain_text:
        session.out.warn(f"{made.url} is not encrypted: others on the network can read tokens and adapters")
    session.out.result(_document(made, remotes), lambda: session.out.line(f"{made.name}  {made.url}"))


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
    remotes = session.remotes
    made = remotes.set_signatures(name, None if signatures == "default" else signatures)
    session.out.result(
        _document(made, remotes), lambda: session.out.line(f"{made.name}  signatures: {made.signatures or 'default'}")
    )


@remote.command("list")
@common
def list_(session: Session) -> None:
    """List the remotes in the order in which `adapt` asks them.

    \b
    Example:
      adapt remote list
    """
    remotes = session.remotes
    rows = [_document(r, remotes) for r in remotes.all()]
    chosen = session.remote(None)
    for row in rows:
        row["default"] = row["url"] == chosen.url
    columns = ("name", "url", "namespaces", "default", "token", "signatures")
    cells = [
        (
            r["name"],
            r["url"],
            ",".join(r["namespaces"]),
            "yes" if r["default"] else "",
            "yes" if r["token"] else "",
            r["signatures"] or "",
        )
        for r in rows
    ]
    session.out.result(rows, lambda: session.out.table(columns, cells))


@remote.command("remove")
@click.argument("name", shell_complete=complete_remote)
@common
def remove(session: Session, name: str) -> None:
    """Remove a remote and its token. Installed adapters stay.

    \b
    Example:
      adapt remote remove ours
    """
    gone = session.remotes.remove(name)
    session.out.result({"removed": gone.name}, lambda: session.out.line(f"removed {gone.name}"))


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
    from adapterhub.api.steps.keys import login_to

    place = session.remotes.get(name)
    if token is None:
        token = click.prompt("token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
    token = token.strip()
    if not token:
        raise UsageProblem("no token given", hint=f"`adapt remote login {name} < token.txt`")
    if place.is_plain_text:
        session.out.warn(f"{place.url} is not encrypted: others on the network can read the token")
    who = login_to(session, place, token)
    session.out.result(
        {"name": place.name or None, "url": place.url, "who": who or None},
        lambda: session.out.line(f"{place.url}: {who or 'token stored'}"),
    )


@remote.command("logout")
@click.argument("name", metavar="NAME|URL", shell_complete=complete_remote)
@common
def logout(session: Session, name: str) -> None:
    """Delete the stored token of a server. The token itself stays valid until you revoke it on the server.

    \b
    Example:
      adapt remote logout ours
    """
    remotes = session.remotes
    place = remotes.get(name)
    was_there = remotes.logout(place)
    text = f"deleted the token for {place.url}" if was_there else f"no token is stored for {place.url}"
    session.out.result({"url": place.url, "forgotten": was_there}, lambda: session.out.line(text))


def _document(remote: Remote, remotes: Remotes) -> dict[str, Any]:
    return {
        "name": remote.name,
        "url": remote.url,
        "namespaces": list(remote.namespaces),
        "default": remote.is_default,
        "signatures": remote.signatures,
        "token": remotes.has_token(remote),
    }
