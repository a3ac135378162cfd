"""The options that name a registry on this machine or elsewhere, and the output of commands that take them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from adapterhub.core.display import table_lines
from adapterhub.core.errors import UsageProblem, shown
from adapterhub_registry.database.db import Database
from adapterhub_registry.operations.far import FarRegistry
from adapterhub_registry.operations.options import check_holds_registry, option, place_options, settings_of

Command = TypeVar("Command", bound=Callable[..., Any])
Far = TypeVar("Far", bound=FarRegistry)
_CELL_CHARACTERS = 400
_LOCAL_PLACES = ("root", "database")


def where_options(whose: str) -> Callable[[Command], Command]:
    """Add the options that locate a registry, here or elsewhere; `whose` token `--url` needs."""
    far = (
        option("--url", "Administer the registry at this address instead, through its server.", metavar="URL"),
        click.option(
            "--token",
            "admin_token",
            envvar="ADAPTERHUB_TOKEN",
            metavar="TOKEN",
            help=f"{whose} token for --url [default: ADAPTERHUB_TOKEN].",
        ),
    )

    def add(command: Command) -> Command:
        for one in far:
            command = one(command)
        return place_options(command)

    return add


def far_registry(given: Mapping[str, Any], kind: type[Far]) -> Far | None:
    """The registry at `--url`; None where the options name one on this machine.

    Raises:
        UsageProblem: the options name a registry here and one elsewhere.
    """
    if given["url"] is None:
        return None
    context = click.get_current_context()
    here = [f"--{name}" for name in _LOCAL_PLACES if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if here:
        raise UsageProblem(f"--url and {here[0]} name two registries; expected one of them")
    far = kind(given["url"], given["admin_token"])
    if far.is_plain_text:
        click.echo(f"warning: {far.url} is not encrypted: others on the network can read the token", err=True)
    return far


def local_database(given: Mapping[str, Any]) -> Database:
    """The database of the registry on this machine.

    Raises:
        NotFound: the folder holds no registry; nothing was created.
    """
    if not given["database"]:
        check_holds_registry(given["root"])
    return Database(settings_of(given, serves=False).database)


def show_rows(rows: list[dict[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Print rows as JSON, as a table on a terminal, or as columns between tabs."""
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    cells = [["" if row[name] is None else shown(str(row[name]), _CELL_CHARACTERS) for name in columns] for row in rows]
    if sys.stdout.isatty():
        head, body = table_lines(columns, cells, width=shutil.get_terminal_size().columns)
        click.echo("\n".join([*head, *body]))
    else:
        click.echo("\n".join("\t".join(row) for row in (columns, *cells)))


def time_text(milliseconds: int | None) -> str | None:
    """A time as RFC 3339."""
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, tz=timezone.utc).isoformat(timespec="seconds")
