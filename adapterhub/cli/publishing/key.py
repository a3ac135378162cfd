"""`adapt key`: the user's own key pairs, the keys he trusts, and what is asked of signatures."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_own_key
from adapterhub.cli.options.params import Session, common
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from adapterhub.trust.signing.keys import KeyFolder
    from adapterhub.trust.signing.trust import TrustedKey, TrustFile


@click.group()
def key() -> None:
    """Make key pairs, trust the keys of others, say what is asked of signatures.

    \b
    Examples:
      adapt key new ana
      adapt key trust ben ./ben.pub --scope 'acme/*'
    """


def _keys(session: Session) -> KeyFolder:
    from adapterhub.trust.signing.keys import KeyFolder

    return KeyFolder(session.root)


def _trust(session: Session) -> TrustFile:
    from adapterhub.trust.signing.trust import TrustFile

    return TrustFile(session.root)


@key.command("new")
@click.argument("name")
@click.option("--unencrypted", is_flag=True, help="Write the private key without a password (for a machine's own key).")
@common
def new(session: Session, name: str, unencrypted: bool) -> None:
    """Make a P-256 key pair. The private key stays here, encrypted, readable by you only.

    The password is ADAPTERHUB_PASSWORD, else it is asked for.

    \b
    Example:
      adapt key new ana
    """
    keys = _keys(session)
    password = None if unencrypted else os.environ.get("ADAPTERHUB_PASSWORD")
    if not unencrypted and not password:
        if not sys.stdin.isatty():
            raise UsageProblem(
                "no password for the new key", hint="set ADAPTERHUB_PASSWORD, or `--unencrypted` writes it without one"
            )
        password = click.prompt("password for the new key", hide_input=True, confirmation_prompt=True, err=True)
    made = keys.new(name, password)
    document = {
        "name": name,
        "fingerprint": made.fingerprint,
        "private": str(keys.path(name)),
        "public": str(keys.public_path(name)),
        "encrypted": not unencrypted,
    }
    session.out.result(document, lambda: session.out.line(f"{name}  {made.fingerprint}  {keys.public_path(name)}"))
    session.out.note("hand out the public half and its fingerprint, each by another way; keep the private half")


@key.command("list")
@common
def list_(session: Session) -> None:
    """List your own keys and those that are trusted.

    \b
    Example:
      adapt key list
    """
    keys, trust = _keys(session), _trust(session).read()
    rows: list[dict[str, Any]] = []
    for name in keys.names():
        found = keys.public(name)
        rows.append({"name": name, "kind": "own", "fingerprint": found.fingerprint})
    rows += [_trusted_document(trusted) for trusted in trust.keys]
    columns = ("name", "kind", "fingerprint", "adapters", "remotes", "not after")
    cells = [
        (
            r["name"],
            r["kind"],
            r["fingerprint"],
            " ".join(r.get("adapters", ())),
            " ".join(r.get("remotes", ())),
            (r.get("not_after") or "")[:10],
        )
        for r in rows
    ]
    session.out.result(rows, lambda: session.out.table(columns, cells))


@key.command("show")
@click.argument("name", shell_complete=complete_own_key)
@common
def show(session: Session, name: str) -> None:
    """Print a public key, your own or a trusted one, as PEM; its fingerprint goes to the other stream.

    \b
    Example:
      adapt key show ana > ana.pub
    """
    from adapterhub.api.steps.publishing import public_key

    found = public_key(session, name)
    session.out.result(
        {"name": name, "fingerprint": found.fingerprint, "pem": found.pem}, lambda: session.out.line(found.pem.rstrip())
    )
    session.out.note(f"fingerprint {found.fingerprint}")


@key.command("trust")
@click.argument("name")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--scope", multiple=True, metavar="GLOB", help="Adapters it may sign: `acme`, `acme/*`; repeatable [*].")
@click.option("--remote", "remotes", multiple=True, metavar="GLOB", help="Places it may sign for; repeatable [*].")
@click.option("--not-after", metavar="DAY", help="The last day it is trusted, as in 2027-01-31 [never].")
@click.option(
    "--replace", is_flag=True, help="Put it in the place of the key by that name; it signs those adapters now."
)
@click.option("--accept", multiple=True, metavar="GLOB", help="Adapters it takes over from another key; repeatable.")
@common
def trust(
    session: Session,
    name: str,
    file: Path | None,
    scope: tuple[str, ...],
    remotes: tuple[str, ...],
    not_after: str | None,
    replace: bool,
    accept: tuple[str, ...],
) -> None:
    """Trust a public key (a PEM file), and print its fingerprint. Compare that with what its owner tells you.

    Without a file it is your own key by that name, or, with other terms, the one that is trusted already.
    A name that another key signed until now is refused until you `--replace` that key or `--accept` the change.

    \b
    Examples:
      adapt key trust ana
      adapt key trust ben ./ben.pub --scope 'acme/*' --not-after 2027-12-31
      adapt key trust ben --accept acme/legal-qa
    """
    from adapterhub.api.steps.publishing import trust_key

    made = trust_key(
        session, name, file, scope=scope, remotes=remotes, not_after=not_after, replace=replace, accept=accept
    )
    document = _trusted_document(made)
    session.out.result(document, lambda: session.out.line(_text(made)))


@key.command("untrust")
@click.argument("name")
@common
def untrust(session: Session, name: str) -> None:
    """Trust a key no longer. What it signed and is installed stays.

    \b
    Example:
      adapt key untrust ben
    """
    gone = _trust(session).untrust(name)
    session.out.result(
        {"name": gone.name, "fingerprint": gone.fingerprint, "trusted": False},
        lambda: session.out.line(f"{gone.name}  {gone.fingerprint}  is not trusted any more"),
    )


@key.command("policy")
@click.argument("policy", required=False, type=click.Choice(["require", "warn", "off", "default"]))
@click.option("--namespace", metavar="NAMESPACE", help="For this namespace only.")
@common
def policy(session: Session, policy: str | None, namespace: str | None) -> None:
    """Say what is asked of signatures, in general or in one namespace; without a word, show it.

    `require`: only what a trusted key signed. `warn`: anything, with a warning. `off`: anything. `default`: unsigned
    adapters come in silently, unknown keys with a warning. A false signature is refused in any case. The policy of the
    namespace comes first, then that of the remote, then the general one.

    \b
    Examples:
      adapt key policy require --namespace acme
      adapt key policy
    """
    from adapterhub.trust.signing.trust import GENERAL, parse_policy

    file = _trust(session)
    if policy is not None:
        file.set_policy(namespace, None if policy == "default" else parse_policy(policy))
    elif namespace is not None:
        raise UsageProblem("`--namespace` without a policy", hint="`adapt key policy` alone shows every one")
    told = {GENERAL: "default", **file.read().policies}
    rows = [{"place": name, "policy": value} for name, value in told.items()]
    rows += [{"place": f"remote {r.name}", "policy": r.signatures} for r in session.remotes.all() if r.signatures]
    cells = [("in general" if r["place"] == GENERAL else r["place"], r["policy"]) for r in rows]
    session.out.result(rows, lambda: session.out.table(("place", "policy"), cells))


def _trusted_document(trusted: TrustedKey) -> dict[str, Any]:
    from adapterhub.trust.signing.trust import day_text

    return {
        "name": trusted.name,
        "kind": "trusted",
        "fingerprint": trusted.fingerprint,
        "adapters": list(trusted.adapters),
        "remotes": list(trusted.remotes),
        "not_after": day_text(trusted.not_after) if trusted.not_after is not None else None,
        "accepts": list(trusted.accepts),
        "replaces": list(trusted.replaces),
    }


def _text(made: TrustedKey) -> str:
    from adapterhub.trust.signing.trust import day_text

    parts = [f"trusted {made.name}  {made.fingerprint}", f"for {' '.join(made.adapters)}"]
    if made.remotes != ("*",):
        parts.append(f"from {' '.join(made.remotes)}")
    if made.not_after is not None:
        parts.append(f"until {day_text(made.not_after)[:10]}")
    return "  ".join(parts)
