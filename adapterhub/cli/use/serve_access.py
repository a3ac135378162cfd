"""The options of `adapt serve` that say who may use which adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from adapterhub.cli.options.params import SPEC

_F = TypeVar("_F", bound=Callable[..., Any])


def access_options(command: _F) -> _F:
    """Add them to a command, whose parameters get their values."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _say_new_key(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from adapterhub.inference.serving.access.tenants import new_key

    key, digest = new_key()
    click.echo(f'for the tenant:            {key}\nfor the file of tenants:   keys = ["{digest}"]')
    context.exit()


_OPTIONS = (
    click.option(
        "--pin",
        "pins",
        type=SPEC,
        multiple=True,
        metavar="SPEC",
        help="vLLM: load this adapter at the start and keep it in memory (repeatable).",
    ),
    click.option(
        "--tenants",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Let in only the tenants in the TOML file FILE; read again when it changes.",
    ),
    click.option(
        "--new-key",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_say_new_key,
        help="Print a new key for a tenant and its line for the file, and exit.",
    ),
    click.option(
        "--audit-log",
        metavar="FILE",
        help="Append one JSON line for each request to FILE; `-` is standard error.",
    ),
    click.option(
        "--deny",
        multiple=True,
        metavar="TEXT",
        help="Refuse an adapter: a spec or digest, then the reason (repeatable).",
    ),
    click.option(
        "--deny-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Refuse the adapters in FILE, one `--deny` a line; read again when it changes.",
    ),
)
