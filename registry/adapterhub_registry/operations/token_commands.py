"""The commands `adapt registry token` and `adapt registry user`, on the server's machine or from afar."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from adapterhub.core.errors import UsageProblem
from adapterhub_registry.access.tokens import LOCAL, ROLES, TokenRecord, Tokens
from adapterhub_registry.database.db import Database
from adapterhub_registry.operations.far_tokens import FarTokens
from adapterhub_registry.operations.options import JSON, check_holds_registry, option, place_options, settings_of

Command = TypeVar("Command", bound=Callable[..., Any])
_COLUMNS = ("id", "user", "role", "namespaces", "label", "created", "expires", "used", "revoked")
_LOCAL_PLACES = ("root", "database")


def _where(command: Command) -> Command:
    """Add the options that locate a registry, here or elsewhere."""
    far = (
        option("--url", "Administer the registry at this address instead, through its server.", metavar="URL"),
        click.option(
            "--token",
            "admin_token",
            envvar="ADAPTERHUB_TOKEN",
            metavar="TOKEN",
            help="Administrator's token for --url [default: ADAPTERHUB_TOKEN].",
        ),
    )
    for add in far:
        command = add(command)
    return place_options(command)


@click.group()
def token() -> None:
    """Create, list and revoke the tokens of a registry, on its machine or with an administrator's token.

    \b
    Examples:
      adapt registry token create --root ./registry-data --user ana --role write
      adapt registry token list --url https://registry.example.org
    """


@token.command()
@_where
@click.option("--user", required=True, metavar="NAME", help="User of the token.")
@click.option("--role", type=click.Choice(ROLES), default="read", show_default=True, help="What the token may do.")
@click.option(
    "--namespaces",
    multiple=True,
    metavar="GLOBS",
    help="Repositories that the token covers, such as `acme/*`; repeat for several [default: USER/*].",
)
@click.option("--days", type=float, metavar="N", help="Let the token expire after N days.")
@click.option("--label", default="", metavar="TEXT", help="Purpose of the token.")
@JSON
def create(
    user: str,
    role: str,
    namespaces: tuple[str, ...],
    days: float | None,
    label: str,
    as_json: bool,
    **given: object,
) -> None:
    """Create a token and print it. No command can show it again.

    \b
    Example:
      adapt registry token create --root ./registry-data --user ana --role write --namespaces 'acme/*'
    """
    globs = [part.strip() for text in namespaces for part in text.split(",") if part.strip()]
    text = _tokens(given).create(user, role, namespaces=globs, label=label, days=days)
    click.echo(json.dumps({"token": text, "user": user, "role": role}) if as_json else text)


@token.command("list")
@_where
@JSON
def list_(as_json: bool, **given: object) -> None:
    """List the tokens with user, role, namespaces and times, but never a token itself.

    \b
    Example:
      adapt registry token list --root ./registry-data
    """
    _show([_document(record) for record in _tokens(given).records()], _COLUMNS, as_json=as_json)


@token.command()
@click.argument("number", type=int)
@_where
@JSON
def revoke(number: int, as_json: bool, **given: object) -> None:
    """Revoke a token by its NUMBER in `list`; it stops working at once.

    \b
    Example:
      adapt registry token revoke 2 --root ./registry-data
    """
    record = _document(_tokens(given).revoke(number))
    click.echo(json.dumps(record) if as_json else f"revoked token {number} of {record['user']}")


@token.command()
@_where
@JSON
def log(as_json: bool, **given: object) -> None:
    """Show who created and revoked tokens, and when; oldest first.

    \b
    Example:
      adapt registry token log --url https://registry.example.org
    """
    entries = [asdict(entry) | {"created_at": _time(entry.created_at)} for entry in _tokens(given).log()]
    rows = [{"at": entry["created_at"], **{k: entry[k] for k in ("actor", "action", "subject")}} for entry in entries]
    _show(rows, ("at", "actor", "action", "subject"), as_json=as_json)


@click.group()
def user() -> None:
    """List the users of a registry, and revoke all tokens of one. A user's first token creates the user.

    \b
    Example:
      adapt registry user list --root ./registry-data
    """


@user.command("list")
@_where
@JSON
def list_users(as_json: bool, **given: object) -> None:
    """List the users, each with the number of tokens that work.

    \b
    Example:
      adapt registry user list --url https://registry.example.org
    """
    rows = [{"user": u.name, "created": _time(u.created_at), "tokens": u.tokens} for u in _tokens(given).users()]
    _show(rows, ("user", "created", "tokens"), as_json=as_json)


@user.command("revoke")
@click.argument("name")
@_where
@JSON
def revoke_user(name: str, as_json: bool, **given: object) -> None:
    """Revoke all tokens of the user NAME. Repositories of the user stay.

    \b
    Example:
      adapt registry user revoke ana --root ./registry-data
    """
    records = [_document(record) for record in _tokens(given).revoke_user(name)]
    click.echo(json.dumps(records, indent=1) if as_json else f"revoked all {len(records)} tokens of {name}")


def _tokens(given: Mapping[str, Any]) -> Tokens | FarTokens:
    """The tokens that the options name.

    Raises:
        NotFound: the folder holds no registry; nothing was created.
        UsageProblem: the options name a registry here and one elsewhere.
    """
    if given["url"] is not None:
        context = click.get_current_context()
        here = [
            f"--{name}" for name in _LOCAL_PLACES if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        ]
        if here:
            raise UsageProblem(f"--url and {here[0]} name two registries; expected one of them")
        far = FarTokens(given["url"], given["admin_token"])
        if far.is_plain_text:
            click.echo(f"warning: {far.url} is not encrypted: others on the network can read the token", err=True)
        return far
    if not given["database"]:
        check_holds_registry(given["root"])
    database = Database(settings_of(given, serves=False).database)
    return Tokens(database, actor=f"{getpass.getuser()}, by {LOCAL}")


def _show(rows: list[dict[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    click.echo("\t".join(columns))
    for row in rows:
        click.echo("\t".join("" if row[name] is None else str(row[name]) for name in columns))


def _document(record: TokenRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "user": record.user,
        "role": record.role,
        "namespaces": ",".join(record.namespaces),
        "label": record.label,
        "created": _time(record.created_at),
        "expires": _time(record.expires_at),
        "used": _time(record.used_at),
        "revoked": _time(record.revoked_at),
    }


def _time(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, tz=timezone.utc).isoformat(timespec="seconds")
