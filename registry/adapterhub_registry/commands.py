"""`adapt registry`: serve a registry, and hand out its tokens."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from adapterhub_registry.app import open_registry
from adapterhub_registry.context import Registry
from adapterhub_registry.server import serve as serve_forever
from adapterhub_registry.settings import Limits, load_settings
from adapterhub_registry.tokens import ROLES, TokenRecord

DEFAULT_ROOT = "registry-data"

_ROOT = click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_ROOT,
    show_default=True,
    metavar="DIR",
    help="Folder that holds everything: blobs, database, secret.",
)
_DATABASE = click.option(
    "--database",
    envvar="ADAPTERHUB_REGISTRY_DATABASE",
    metavar="URL",
    help="SQLAlchemy URL instead of SQLite in --root.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


@click.group()
def registry() -> None:
    """Run and administer a self-hosted registry that speaks the Hugging Face Hub's API.

    \b
    Example:
      adapt registry serve --root ./registry-data --port 8000
    """


@registry.command()
@_ROOT
@_DATABASE
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 takes a free one."
)
@click.option("--public-url", metavar="URL", help="What clients call this server, behind a proxy.")
@click.option("--no-anonymous-read", is_flag=True, help="Let nobody read without a token.")
@click.option("--limit", "limits", multiple=True, metavar="NAME=VALUE", help="Change one of the limits.")
@_JSON
def serve(
    root: Path,
    database: str | None,
    host: str,
    port: int,
    public_url: str | None,
    no_anonymous_read: bool,
    limits: tuple[str, ...],
    as_json: bool,
) -> None:
    """Serve until interrupted. Prints the URL and, on the first start, an administrator's token, once.

    Any tool that speaks to the Hub uses it with HF_ENDPOINT set to the URL.

    \b
    Example:
      adapt registry serve --root ./registry-data --port 8000
    """
    settings = load_settings(
        root,
        database_url=database,
        public_url=public_url,
        anonymous_read=not no_anonymous_read,
        limits=Limits().with_values(limits),
    )

    def announce(line: str) -> None:
        name, _, value = line.partition(": ")
        click.echo(json.dumps({name.split(" (")[0].replace(" ", "_"): value}) if as_json else line)

    serve_forever(settings, host=host, port=port, announce=announce)


@registry.group()
def token() -> None:
    """Make, list and revoke the tokens of a registry, on the machine that runs it.

    \b
    Example:
      adapt registry token create --root ./registry-data --user ana --role write
    """


@token.command()
@_ROOT
@_DATABASE
@click.option("--user", required=True, metavar="NAME", help="Whose token it is.")
@click.option("--role", type=click.Choice(ROLES), default="read", show_default=True)
@click.option("--namespaces", default="", metavar="GLOBS", help="What it reaches, such as `acme/*` [default: USER/*].")
@click.option("--days", type=float, metavar="N", help="Expire after that many days.")
@click.option("--label", default="", metavar="TEXT", help="What it is for.")
@_JSON
def create(
    root: Path,
    database: str | None,
    user: str,
    role: str,
    namespaces: str,
    days: float | None,
    label: str,
    as_json: bool,
) -> None:
    """Print a new token, alone on stdout. It cannot be shown again.

    \b
    Example:
      adapt registry token create --root ./registry-data --user ana --role write --namespaces 'acme/*'
    """
    globs = [part.strip() for part in namespaces.split(",") if part.strip()]
    text = _open(root, database).tokens.create(user, role, namespaces=globs, label=label, days=days)
    click.echo(json.dumps({"token": text, "user": user, "role": role}) if as_json else text)


@token.command("list")
@_ROOT
@_DATABASE
@_JSON
def list_(root: Path, database: str | None, as_json: bool) -> None:
    """List tokens: who, role, reach, times; never the token itself.

    \b
    Example:
      adapt registry token list --root ./registry-data
    """
    records = [_document(record) for record in _open(root, database).tokens.records()]
    if as_json:
        click.echo(json.dumps(records, indent=1))
        return
    columns = ("id", "user", "role", "namespaces", "label", "created", "expires", "used", "revoked")
    click.echo("\t".join(columns))
    for record in records:
        click.echo("\t".join("" if record[name] is None else str(record[name]) for name in columns))


@token.command()
@click.argument("number", type=int)
@_ROOT
@_DATABASE
@_JSON
def revoke(number: int, root: Path, database: str | None, as_json: bool) -> None:
    """Revoke the token NUMBER of `list`: from now on it opens nothing.

    \b
    Example:
      adapt registry token revoke 2 --root ./registry-data
    """
    record = _document(_open(root, database).tokens.revoke(number))
    click.echo(json.dumps(record) if as_json else f"revoked token {number} of {record['user']}")


def _open(root: Path, database: str | None) -> Registry:
    return open_registry(load_settings(root, database_url=database))


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
