"""The commands `adapt registry token` and `adapt registry user`, on the server's machine or from afar."""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from adapterhub_registry.access.tokens import LOCAL, ROLES, TokenRecord, Tokens
from adapterhub_registry.operations.far_options import (
    far_registry,
    local_database,
    show_rows,
    time_text,
    where_options,
)
from adapterhub_registry.operations.far_tokens import FarTokens
from adapterhub_registry.operations.options import JSON

_COLUMNS = ("id", "user", "role", "namespaces", "label", "created", "expires", "used", "revoked")


_where = where_options("Administrator's")


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
    show_rows([_document(record) for record in _tokens(given).records()], _COLUMNS, as_json=as_json)


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
    entries = [asdict(entry) | {"created_at": time_text(entry.created_at)} for entry in _tokens(given).log()]
    rows = [{"at": entry["created_at"], **{k: entry[k] for k in ("actor", "action", "subject")}} for entry in entries]
    show_rows(rows, ("at", "actor", "action", "subject"), as_json=as_json)


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
    rows = [{"user": u.name, "created": time_text(u.created_at), "tokens": u.tokens} for u in _tokens(given).users()]
    show_rows(rows, ("user", "created", "tokens"), as_json=as_json)


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
    number = "the only token" if len(records) == 1 else f"all {len(records)} tokens"
    click.echo(json.dumps(records, indent=1) if as_json else f"revoked {number} of {name}")


def _tokens(given: Mapping[str, Any]) -> Tokens | FarTokens:
    """The tokens that the options name."""
    far = far_registry(given, FarTokens)
    return far or Tokens(local_database(given), actor=f"{getpass.getuser()}, by {LOCAL}")


def _document(record: TokenRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "user": record.user,
        "role": record.role,
        "namespaces": ",".join(record.namespaces),
        "label": record.label,
        "created": time_text(record.created_at),
        "expires": time_text(record.expires_at),
        "used": time_text(record.used_at),
        "revoked": time_text(record.revoked_at),
    }
