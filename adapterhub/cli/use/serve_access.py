"""The options of `adapt serve` that say who may use which adapter, and which one a request without a choice gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli.options.params import SPEC
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.library import Library

_F = TypeVar("_F", bound=Callable[..., Any])


def access_options(command: _F) -> _F:
    """Add them to a command, whose parameters get their values."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def routed_specs(
    library: Library, file: Path, record: BaseRecord, base_name: str, specs: Sequence[AdapterSpec]
) -> tuple[AdapterSpec, ...]:
    """The adapters of a routing file, each as exactly the build that it was checked with.

    Raises:
        NotFound, Malformed, BaseMismatch: it cannot be used, or is for another base.
        NotFound, MissingExtra: the model that compares texts is not set up.
        CouldNotTell: it confuses its adapters, and does not say that this is accepted.
        UsageProblem: an adapter or the base is called `auto`.
    """
    from adapterhub.api.steps.routing import check_route
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.formats.route import AUTO
    from adapterhub.inference.serving.auto import route_for
    from adapterhub.library.find.meaning import encoder_of

    if base_name == AUTO or any(spec.full_name == AUTO for spec in specs):
        hint = "`--name` gives the base another one"
        raise UsageProblem(f"`--route` answers the model name `{AUTO}`, which is taken", hint=hint)
    read = route_for(file, record.fingerprint.weights)
    check_route(read).ensure_good("Nothing was started")
    encoder_of(library)
    return tuple(AdapterSpec.parse(one.model) for one in read.adapters)


def _say_new_key(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from adapterhub.inference.serving.access.tenants import new_key

    key, digest = new_key()
    click.echo(f'for the tenant:            {key}\nfor the file of tenants:   keys = ["{digest}"]')
    context.exit()


_OPTIONS = (
    click.option(
        "--route",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Answer the model name `auto` by the routing file FILE, which `adapt route` writes.",
    ),
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
