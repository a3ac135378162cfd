"""Options that several commands share, parsed once at the edge into values."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli.output import Output
from adapterhub.errors import NotFound, RemoteUnreachable, SpecError, UsageProblem, shown
from adapterhub.home import default_root
from adapterhub.limits import parse_limits, use_limits

HUB_NAME, HUB_URL = "hub", "https://huggingface.co"
"""As in `remotes.py`, which is imported by the commands that need it."""

_PROJECT = "adapterhub.project"
_TRUSTS = "adapterhub.trusts_project"

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from adapterhub.hub import Hub
    from adapterhub.library import Library
    from adapterhub.project.values import Project
    from adapterhub.remotes import Remote, Remotes
    from adapterhub.specs import AdapterSpec
    from adapterhub.transfer import Source
    from adapterhub.wanted_base import WantedBase

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Session:
    """What every command starts from: the library's root and how to speak."""

    root: Path
    out: Output
    _hubs: dict[tuple[str, str | None], Hub] = field(default_factory=dict, repr=False, compare=False)

    @property
    def library(self) -> Library:
        """The library; importing it is left to the commands that need it."""
        from adapterhub.library import Library

        return Library(self.root)

    @property
    def project_library(self) -> Library:
        """The library, in which a bare name of the project is the build that the lock file names."""
        library, folder = self.library, self.project_folder
        if folder is not None:
            from adapterhub.locked_builds import ProjectNames

            library.names = ProjectNames(folder, self.out.note).build
        return library

    @property
    def remotes(self) -> Remotes:
        """The servers that are known by name."""
        from adapterhub.remotes import Remotes

        return Remotes(self.root)

    @property
    def project_folder(self) -> Path | None:
        """The folder of the project: that of `--project`, else the nearest from here upwards; None outside of any.

        Raises:
            NotFound: `--project` names a folder that is none.
        """
        context = click.get_current_context(silent=True)
        named = context.meta.get(_PROJECT) if context else None
        from adapterhub.home import PROJECT_FILE
        from adapterhub.project import find_project

        if named is None:
            return find_project(Path.cwd())
        if not (named / PROJECT_FILE).is_file():
            raise NotFound(f"`{named}` has no `{PROJECT_FILE}`", hint=f"`adapt init {named}` makes a project of it")
        return Path(named)

    @property
    def project(self) -> Project | None:
        """The project that the command works in; None outside of any.

        Raises:
            NotFound, Malformed: `--project` names none, or its file cannot be used.
        """
        from adapterhub.project import read_project

        folder = self.project_folder
        return None if folder is None else read_project(folder)

    @property
    def trusts_project(self) -> bool:
        """Whether `--trust-project` was given."""
        context = click.get_current_context(silent=True)
        return bool(context and context.meta.get(_TRUSTS))

    def need_project(self) -> Project:
        """The project that the command works in.

        Raises:
            NotFound, Malformed: there is none, or its file cannot be used.
        """
        project = self.project
        if project is None:
            raise NotFound(
                f"no project: neither `{Path.cwd()}` nor a folder above it has an `adapters.toml`",
                hint="`adapt init` makes one of this folder, `--project DIR` names another",
            )
        return project

    def remote(self, named: str | None, *, for_bases: bool = False) -> Remote:
        """The server that `--remote` names, else the default one; for bases that is never a remote of adapters."""
        remotes = self.remotes
        if named:
            return remotes.get(named)
        configured = os.environ.get("ADAPTERHUB_REMOTE")
        if configured and not for_bases:
            return remotes.get(configured)
        default = None if for_bases else remotes.default()
        return default or remotes.get(os.environ.get("HF_ENDPOINT") or HUB_NAME)

    def hub(self, remote: Remote, *, token: str | None = None, offline: bool = False) -> Hub:
        """The remote end; `token` is one that was given for this server.

        Raises:
            RemoteUnreachable: `offline` forbids it.
        """
        if offline:
            raise RemoteUnreachable("`--offline` forbids asking a server")
        # before the import: the client reads it once, and would otherwise call its maker's server from any endpoint
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        if self.out.quiet or not sys.stderr.isatty():
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        from adapterhub.hub import Hub, bound_client

        bound_client(_silence_s())
        label = f"remote `{remote.name}` ({remote.url})" if remote.name else f"server `{remote.url}`"
        key = remote.url, token or self._token_for(remote)
        if key not in self._hubs:  # one for all specs of a command: what a server can do is asked once
            self._hubs[key] = Hub(endpoint=key[0], token=key[1], label=label, silence_s=_silence_s())
        return self._hubs[key]

    def project_hub(self, remote: Remote) -> Hub:
        """A server that a project file names; it sees a token only if the user gave one for this very URL."""
        return self._hub_with(remote, None, None)

    def place_hub(self, url: str, *, token: str | None = None) -> Hub:
        """A server that something was installed from once; `token` is for the default server, and goes to no other."""
        return self._hub_with(self.remotes.get(url), None, token)

    def named_hub(self, named: str | None, *, token: str | None, offline: bool, for_bases: bool = False) -> Hub:
        """The server that `--remote` and `--token` name, or the default one."""
        remote = self.remote(named, for_bases=for_bases)
        return self.hub(remote, token=token or self._environment_token(remote, named), offline=offline)

    def sources_of(self, spec: AdapterSpec, named: str | None, *, token: str | None) -> list[Source]:
        """The servers that may be asked for `spec`, in order.

        A namespace is asked of the remotes that were given it, else of the default server. A bare name is asked in the
        namespaces of each remote, never in a whole hub. `--remote` leaves that one server.
        """
        remotes = self.remotes
        if spec.namespace is not None:
            asked = [] if named else remotes.of_namespace(spec.namespace)
            asked = asked or [self.remote(named)]
            return [self._hub_with(remote, named, token) for remote in asked]
        asked = [self.remote(named)] if named else [r for r in remotes.all() if r.namespaces]
        found: list[Source] = []
        for remote in asked:
            if remote.namespaces:
                hub = self._hub_with(remote, named, token)
                found += [hub.within(namespace) for namespace in remote.namespaces]
        return found

    def _hub_with(self, remote: Remote, named: str | None, token: str | None) -> Hub:
        # --token belongs to the one server that is named or the default, not to whoever has the namespace
        mine = token if remote.url == self.remote(named).url else None
        return self.hub(remote, token=mine or self._environment_token(remote, named))

    def _environment_token(self, remote: Remote, named: str | None) -> str | None:
        """ADAPTERHUB_TOKEN, for ADAPTERHUB_REMOTE; without that, for the one server that is named or the default."""
        configured = os.environ.get("ADAPTERHUB_REMOTE")
        owner = self.remotes.get(configured) if configured else self.remote(named)
        return os.environ.get("ADAPTERHUB_TOKEN") if owner.url == remote.url else None

    def _token_for(self, remote: Remote) -> str | None:
        """The token of `adapt remote login`, else the one that the hub's own client saved for this very server."""
        kept = self.remotes.token(remote.url)
        if kept is not None or remote.url != (os.environ.get("HF_ENDPOINT") or HUB_URL).rstrip("/"):
            return kept
        from huggingface_hub import get_token

        return get_token()


def _silence_s() -> float | None:
    """ADAPTERHUB_TIMEOUT_S: how long to wait for a server's next byte; None leaves it to the library."""
    text = os.environ.get("ADAPTERHUB_TIMEOUT_S", "")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:  # noqa: PLR2004 - a day; false for NaN, too
        raise UsageProblem(f"ADAPTERHUB_TIMEOUT_S is `{shown(text)}`, expected seconds above 0")
    return seconds


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
        use_limits(parse_limits(os.environ.get("ADAPTERHUB_LIMITS", "")))
        session = Session(root=root or default_root(os.environ), out=Output(as_json=as_json, quiet=quiet))
        return command(session, *args, **kwargs)

    return wrapped  # type: ignore[return-value]  # `wraps` keeps the shape that click reads


def project_option(command: F) -> F:
    """`--project`, which `Session.project` obeys."""

    def keep(context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
        if value is not None:
            context.meta[_PROJECT] = value

    text = "The project's folder [default: the nearest one with an adapters.toml, from here upwards]."
    kind = click.Path(file_okay=False, path_type=Path)
    return click.option(
        "--project", type=kind, metavar="DIR", help=text, expose_value=False, callback=keep, is_eager=True
    )(command)


def trust_option(command: F) -> F:
    """`--trust-project`, which `Session.trusts_project` tells."""

    def keep(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        context.meta[_TRUSTS] = value

    text = "Ask the servers that the project names, in this run only; `adapt trust` remembers it."
    return click.option("--trust-project", is_flag=True, help=text, expose_value=False, callback=keep)(command)


class SpecType(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """An adapter spec; completes installed names and those of the project."""

    name = "spec"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> AdapterSpec:  # noqa: ANN401, ARG002 - click's signature
        """Parse."""
        from adapterhub.specs import AdapterSpec

        return value if isinstance(value, AdapterSpec) else AdapterSpec.parse(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names of installed adapters and of the project, bases after `@`, versions after `==`."""
        from adapterhub.cli.completing import complete_spec

        return complete_spec(ctx, param, incomplete)


class BaseType(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """A base: alias, Hub id, digest prefix or path; completes aliases."""

    name = "base"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401, ARG002 - click's signature
        """Parse."""
        from adapterhub.specs import BaseSpec

        return value if isinstance(value, BaseSpec) else BaseSpec.parse(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Aliases of registered bases."""
        from adapterhub.cli.completing import complete_base

        return complete_base(ctx, param, incomplete)


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


def places_option(
    text: str = "Another directory to look in; may be repeated [default: ADAPTERHUB_SOURCES].",
) -> Callable[[F], F]:
    """`--from DIR`, any number of them; `text` is its help."""
    folder = click.Path(path_type=Path, exists=True)
    return click.option("--from", "places", multiple=True, type=folder, metavar="DIR", help=text)


def remote_option(command: F) -> F:
    """`--remote`."""
    text = "A remote's name or a server's URL [default: the namespace's remote, then the default one]."
    return click.option("--remote", metavar="NAME|URL", shell_complete=_remote_names, help=text)(command)


def _remote_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from adapterhub.cli.completing import complete_remote

    return complete_remote(ctx, param, incomplete)


def remote_options(command: F) -> F:
    """`--remote`, `--token`, `--offline`."""
    for option in (
        click.option("--offline", is_flag=True, help="Never open a connection."),
        click.option(
            "--token", metavar="TOKEN", help="Access token [default: ADAPTERHUB_TOKEN, then the one of `remote login`]."
        ),
        remote_option,
    ):
        command = option(command)
    return command


def signatures_option(command: F) -> F:
    """`--signatures`, a policy for this run."""
    text = "What is asked of signatures in this run [default: the policy of the namespace, the remote, or in general]."
    return click.option("--signatures", type=click.Choice(["require", "warn", "off"]), help=text)(command)


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
