"""Options that several commands share, parsed once at the edge into values."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli.output import Output
from adapterhub.errors import RemoteUnreachable, SpecError
from adapterhub.home import default_root

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from adapterhub.hub import Hub
    from adapterhub.library import Library
    from adapterhub.specs import AdapterSpec
    from adapterhub.transfer import Source
    from adapterhub.wanted_base import WantedBase

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Session:
    """What every command starts from: the library's root and how to speak."""

    root: Path
    out: Output

    @property
    def library(self) -> Library:
        """The library; importing it is left to the commands that need it."""
        from adapterhub.library import Library

        return Library(self.root)

    def hub(self, *, endpoint: str | None, token: str | None, offline: bool) -> Hub:
        """The remote end.

        Raises:
            RemoteUnreachable: `offline` forbids it.
        """
        if offline:
            raise RemoteUnreachable("`--offline` forbids asking a server")
        # before the import: the client reads it once, and would otherwise call its maker's server from any endpoint
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        if self.out.quiet or not sys.stderr.isatty():
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        from urllib.parse import urlsplit

        from adapterhub.hub import DEFAULT_ENDPOINT, Hub

        endpoint = endpoint or os.environ.get("ADAPTERHUB_REMOTE") or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
        token = token or os.environ.get("ADAPTERHUB_TOKEN") or _hub_token(endpoint)
        place = urlsplit(endpoint)
        folder = f"{place.hostname or 'hub'}-{place.port}" if place.port else place.hostname or "hub"
        return Hub(endpoint=endpoint, token=token, cache_folder=self.root / "cache" / "hub" / folder)


def _hub_token(endpoint: str) -> str | None:
    """The user's saved Hub token, for the endpoint it was made for and no other."""
    if endpoint.rstrip("/") != os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/"):
        return None
    from huggingface_hub import get_token

    return get_token()


def common(command: F) -> F:
    """`--root`, `--json` and `--quiet`; the command gets a `Session` first."""

    @click.option(
        "--root",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="The library's folder [default: ADAPTERHUB_HOME or the user's data folder].",
    )
    @click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
    @click.option("--quiet", "-q", is_flag=True, help="Only results, warnings and errors.")
    @functools.wraps(command)
    def wrapped(*args: Any, root: Path | None, as_json: bool, quiet: bool, **kwargs: Any) -> Any:  # noqa: ANN401 - click's
        session = Session(root=root or default_root(os.environ), out=Output(as_json=as_json, quiet=quiet))
        return command(session, *args, **kwargs)

    return wrapped  # type: ignore[return-value]


class SpecType(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """An adapter spec; completes installed names."""

    name = "spec"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> AdapterSpec:  # noqa: ANN401, ARG002
        """Parse."""
        from adapterhub.specs import AdapterSpec

        return value if isinstance(value, AdapterSpec) else AdapterSpec.parse(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Names of installed adapters."""
        from click.shell_completion import CompletionItem

        from adapterhub.index import Index

        try:
            names = Index(_completion_root(ctx) / "index.db").names()
        except Exception:  # noqa: BLE001 - completion must never disturb the prompt
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class BaseType(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """A base: alias, Hub id, digest prefix or path; completes aliases."""

    name = "base"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401, ARG002
        """Parse."""
        from adapterhub.specs import BaseSpec

        return value if isinstance(value, BaseSpec) else BaseSpec.parse(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Aliases of registered bases."""
        from click.shell_completion import CompletionItem

        folder = _completion_root(ctx) / "bases"
        return [CompletionItem(p.stem) for p in sorted(folder.glob("*.json")) if p.stem.startswith(incomplete)]


def _completion_root(ctx: click.Context) -> Path:
    root = ctx.params.get("root")
    return Path(root) if root else default_root(os.environ)


SPEC = SpecType()
BASE = BaseType()


def rank_options(command: F) -> F:
    """`--rank`, `--min-rank`, `--max-rank`."""
    positive = click.IntRange(min=1)
    for option in (
        click.option("--max-rank", type=positive, metavar="N", help="At most this rank."),
        click.option("--min-rank", type=positive, metavar="N", help="At least this rank."),
        click.option("--rank", type=positive, metavar="N", help="Exactly this rank."),
    ):
        command = option(command)
    return command


def remote_options(command: F) -> F:
    """`--remote`, `--token`, `--offline`."""
    for option in (
        click.option("--offline", is_flag=True, help="Never open a connection."),
        click.option(
            "--token", metavar="TOKEN", help="Access token [default: ADAPTERHUB_TOKEN, then the saved Hub token]."
        ),
        click.option("--remote", metavar="URL", help="Server [default: ADAPTERHUB_REMOTE, HF_ENDPOINT, the Hub]."),
    ):
        command = option(command)
    return command


def wanted_from(library: Library, spec: AdapterSpec, base: Any) -> WantedBase | None:  # noqa: ANN401 - BaseSpec or None
    """The base a command asks for: in the spec after `@`, or with `--base`."""
    from adapterhub.specs import hint_for_unknown_base
    from adapterhub.wanted_base import wanted_base

    if spec.base is not None and base is not None and spec.base != base:
        raise SpecError(str(spec), f"names the base `{spec.base}`, but --base names `{base}`", hint="name it once")
    return wanted_base(spec.base or base, library.bases, hint_for_unknown_base(spec))


def sources_from(session: Session, places: tuple[Path, ...]) -> list[Source]:
    """Places on disk given by `--from`, then those of ADAPTERHUB_SOURCES (separated by `:`)."""
    from adapterhub.directory import source_at

    configured = [Path(p) for p in os.environ.get("ADAPTERHUB_SOURCES", "").split(os.pathsep) if p]
    return [source_at(path) for path in (*places, *configured) if path.resolve() != session.root.resolve()]
