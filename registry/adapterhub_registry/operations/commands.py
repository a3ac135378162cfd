"""`adapt registry`: serve a registry, and hand out its tokens."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
from sqlalchemy.exc import OperationalError

from adapterhub.core.errors import DigestMismatch, NotFound, RemoteUnreachable, shown
from adapterhub_registry.access.tokens import ROLES, TokenRecord
from adapterhub_registry.api.context import Registry
from adapterhub_registry.app import open_registry
from adapterhub_registry.operations.holdings import check_holdings
from adapterhub_registry.operations.move import move_registry
from adapterhub_registry.operations.options import place_options, server_options, settings_of
from adapterhub_registry.operations.server import serve as serve_forever
from adapterhub_registry.storage.blobs import StoreUnreachable

_AGAIN = "look at the options and the credentials, then run it again; nothing is half done"
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")


@click.group()
def registry() -> None:
    """Run and administer a self-hosted registry that speaks the Hugging Face Hub's API.

    \b
    Example:
      adapt registry serve --root ./registry-data --port 8000
    """


@registry.command()
@place_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 takes a free one."
)
@server_options
@_JSON
def serve(host: str, port: int, replace_secret: bool, as_json: bool, **given: Any) -> None:  # noqa: ANN401
    """Serve until interrupted. Prints the URL and, on the first start, an administrator's token, once.

    Any tool that speaks to the Hub uses it with HF_ENDPOINT set to the URL. Each option is read from the environment,
    too: ADAPTERHUB_REGISTRY_ROOT, ADAPTERHUB_REGISTRY_DATABASE and so on.

    \b
    Examples:
      adapt registry serve --root ./registry-data --port 8000
      adapt registry serve --database postgresql://registry@db/registry --blobs s3://adapters --secret-file ./secret
    """

    def announce(line: str) -> None:
        name, _, value = line.partition(": ")
        click.echo(json.dumps({name.split(" (")[0].replace(" ", "_"): value}) if as_json else line)

    serve_forever(settings_of(given), host=host, port=port, announce=announce, replace_secret=replace_secret)


@registry.command()
@place_options
@click.option("--bytes", "read_bytes", is_flag=True, help="Read and hash every blob, too, and mark damaged ones.")
@_JSON
def check(read_bytes: bool, as_json: bool, **given: Any) -> None:  # noqa: ANN401
    """Check that everything that commits name is there; exit 12 when something is not.

    With --bytes, a damaged blob is marked in the database: the server then takes its bytes from the next push of them,
    and a later check removes the mark from a blob that was restored. Nothing else changes.

    \b
    Example:
      adapt registry check --root ./registry-data --bytes
    """
    if not given["database"]:
        _refuse_nothing(given["root"])
    with _reaching():
        opened = _open(given)
        held = check_holdings(opened.db, opened.blobs, read_bytes=read_bytes)
    if as_json:
        click.echo(json.dumps({"blobs": held.blobs, "bytes": held.bytes, "problems": list(held.problems)}, indent=1))
    else:
        click.echo(f"blobs\t{held.blobs}\nbytes\t{held.bytes}\nproblems\t{len(held.problems)}")
        for problem in held.problems:
            click.echo(problem)
    if held.problems:
        done = "they are marked, and the next push heals them" if read_bytes else "nothing was changed"
        click.echo(f"hint: restore the blobs from a backup, or push the same files again; {done}", err=True)
        raise SystemExit(DigestMismatch.exit_code)


@registry.command()
@place_options
@_JSON
def move(as_json: bool, **given: Any) -> None:  # noqa: ANN401
    """Copy the registry in --root to the empty --database, and its files to --blobs. Stop its server first.

    Files are hashed on the way; rows are written at the end, all or none. Cut off, it goes on when it is run again.
    The folder is not changed.

    \b
    Example:
      adapt registry move --root ./registry-data --database postgresql://registry@db/registry --blobs s3://adapters
    """
    _refuse_nothing(given["root"])
    with _reaching():
        moved = move_registry(given["root"], _open(given))
    if as_json:
        click.echo(json.dumps({"blobs": moved.blobs, "bytes": moved.bytes, "rows": moved.rows}, indent=1))
    else:
        click.echo(f"blobs\t{moved.blobs}\nbytes\t{moved.bytes}\nrows\t{moved.rows}")
    click.echo("hint: `adapt registry check --bytes` with the same options reads everything once more", err=True)


@registry.group()
def token() -> None:
    """Make, list and revoke the tokens of a registry, on the machine that runs it.

    \b
    Example:
      adapt registry token create --root ./registry-data --user ana --role write
    """


@token.command()
@place_options
@click.option("--user", required=True, metavar="NAME", help="Whose token it is.")
@click.option("--role", type=click.Choice(ROLES), default="read", show_default=True)
@click.option("--namespaces", default="", metavar="GLOBS", help="What it reaches, such as `acme/*` [default: USER/*].")
@click.option("--days", type=float, metavar="N", help="Expire after that many days.")
@click.option("--label", default="", metavar="TEXT", help="What it is for.")
@_JSON
def create(
    user: str,
    role: str,
    namespaces: str,
    days: float | None,
    label: str,
    as_json: bool,
    **given: Any,  # noqa: ANN401
) -> None:
    """Print a new token, alone on stdout. It cannot be shown again.

    \b
    Example:
      adapt registry token create --root ./registry-data --user ana --role write --namespaces 'acme/*'
    """
    globs = [part.strip() for part in namespaces.split(",") if part.strip()]
    text = _open(given).tokens.create(user, role, namespaces=globs, label=label, days=days)
    click.echo(json.dumps({"token": text, "user": user, "role": role}) if as_json else text)


@token.command("list")
@place_options
@_JSON
def list_(as_json: bool, **given: Any) -> None:  # noqa: ANN401
    """List tokens: who, role, reach, times; never the token itself.

    \b
    Example:
      adapt registry token list --root ./registry-data
    """
    records = [_document(record) for record in _open(given).tokens.records()]
    if as_json:
        click.echo(json.dumps(records, indent=1))
        return
    columns = ("id", "user", "role", "namespaces", "label", "created", "expires", "used", "revoked")
    click.echo("\t".join(columns))
    for record in records:
        click.echo("\t".join("" if record[name] is None else str(record[name]) for name in columns))


@token.command()
@click.argument("number", type=int)
@place_options
@_JSON
def revoke(number: int, as_json: bool, **given: Any) -> None:  # noqa: ANN401
    """Revoke the token NUMBER of `list`: from now on it opens nothing.

    \b
    Example:
      adapt registry token revoke 2 --root ./registry-data
    """
    record = _document(_open(given).tokens.revoke(number))
    click.echo(json.dumps(record) if as_json else f"revoked token {number} of {record['user']}")


def _refuse_nothing(root: Path) -> None:
    if not (root / "registry.db").is_file():
        raise NotFound(f"`{root}` holds no registry", hint=f"`adapt registry serve --root {root}` makes one")


def _open(given: dict[str, Any]) -> Registry:
    return open_registry(settings_of(given))


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        why = str(error.orig).partition("\n")[0]
        raise RemoteUnreachable(f"the database does not answer: {shown(why, 200)}", hint=_AGAIN) from None
    except StoreUnreachable as error:
        raise RemoteUnreachable(str(error), hint=_AGAIN) from None


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
