"""The options that several commands share, parsed once into values."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.output import Output
from adapterhub.core.arguments import Count
from adapterhub.core.disk.home import default_root
from adapterhub.core.limits import parse_limits, use_limits
from adapterhub.projects import session as library_session

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from adapterhub.api.checking import Checking
    from adapterhub.api.library import Library
    from adapterhub.api.project import Project
    from adapterhub.api.searching import Searching
    from adapterhub.core.ranks import RankRange
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.projects import values


def exclude_newer_option(command: F) -> F:
    """Add `--exclude-newer`."""
    text = "Ignore releases newer than a date (2026-01-31), time or age (7d, 2w, 12h) [default: the project's setting]."
    return click.option("--exclude-newer", metavar="DATE|AGE", help=text)(command)


F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Session(library_session.Session):
    """The library session of one command run; it reports to the terminal."""

    out: Output

    @property
    def opened(self) -> Library:
        """The library as Python has it, in this session: a command calls one method and prints what that returns."""
        from adapterhub.api.library import library_of

        return library_of(self)

    @property
    def index(self) -> Searching:
        """The answers of the library's index, for commands that should start fast: it imports no library."""
        from adapterhub.api.searching import Searching

        return Searching(self)

    @property
    def checks(self) -> Checking:
        """The checks of adapters, for `verify`: a folder needs no library."""
        from adapterhub.api.checking import Checking

        return Checking(self)

    @property
    def opened_project(self) -> Project:
        """The project as Python has it, in this session.

        Raises:
            NotFound, Malformed: there is none, or its file is unusable.
        """
        from adapterhub.api.project import project_of

        return project_of(self, self.opened)

    @property
    def project_here(self) -> Project | None:
        """The same; None outside a project."""
        return self.opened_project if self.project_folder is not None else None


def common(command: F) -> F:
    """Add `--root`, `--json`, `--quiet` and `--verbose`; the command gets a `Session` as its first argument.

    `--quiet` and `--verbose` also count before the command.
    """

    @click.option(
        "--root",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Use this library folder [default: ADAPTERHUB_HOME or the user's data folder].",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
    @click.option("--quiet", "-q", is_flag=True, help="Print only results, warnings and errors.")
    @click.option("--verbose", "-v", is_flag=True, help="Also print the library, the project and each request.")
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        root: Path | None,
        as_json: bool,
        quiet: bool,
        verbose: bool,
        project_dir: Path | None = None,
        **kwargs: Any,
    ) -> Any:
        use_limits(parse_limits(os.environ.get("ADAPTERHUB_LIMITS", "")))
        before = click.get_current_context().find_root().params
        out = Output(as_json=as_json, quiet=quiet or before.get("quiet", False))
        agree = None
        is_typed_at = sys.stdin is not None and sys.stdin.isatty()
        if is_typed_at:
            agree = functools.partial(agree_on_terminal, out)
        session = Session(
            root=root or default_root(os.environ),
            out=out,
            variables=os.environ,
            project_dir=project_dir,
            trusts_project=os.environ.get("ADAPTERHUB_TRUST_PROJECT") == "1",
            agree=agree,
            ask_password=ask_password if is_typed_at else None,
        )
        if verbose or before.get("verbose", False):
            from adapterhub.cli.options.verbose import report_steps

            report_steps(out, session.root, session.project_folder)
        return command(session, *args, **kwargs)

    return wrapped  # type: ignore[return-value]  # `wraps` keeps the shape that click reads


def agree_on_terminal(out: Output, project: values.Project, servers: values.Servers) -> bool:
    """List the servers on stderr and return the user's answer."""
    from adapterhub.projects.trust import lines_of

    out.warn(f"`{project.folder}` names servers that you do not trust yet:")
    for line in lines_of(servers):
        out.note(f"  {line}")
    return click.confirm("Trust these servers now and in later runs?", err=True)


def ask_password(name: str) -> str:
    """Return the password of a key, typed on the terminal."""
    password: str = click.prompt(f"password of key {name}", hide_input=True, err=True)
    return password


def project_option(command: F) -> F:
    """Add `--project`, which `common` puts into the session."""
    text = "Use the project in DIR [default: the nearest folder upwards that has an adapters.toml]."
    kind = click.Path(file_okay=False, path_type=Path)
    return click.option("--project", "project_dir", type=kind, metavar="DIR", help=text)(command)


class SpecType(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """An adapter spec; completes the names of installed adapters and of the project's."""

    name = "spec"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> AdapterSpec:
        """Parse the text as an adapter spec."""
        from adapterhub.core.specs import AdapterSpec

        return value if isinstance(value, AdapterSpec) else AdapterSpec.parse(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names of installed adapters and of the project; bases after `@`, versions after `==`."""
        from adapterhub.cli.completion.completing import complete_spec

        return complete_spec(ctx, param, incomplete)


class BaseType(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """A base: name, Hub id, digest prefix or path; completes names."""

    name = "base"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text as a base spec."""
        from adapterhub.core.specs import BaseSpec

        return value if isinstance(value, BaseSpec) else BaseSpec.parse(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Aliases of registered bases."""
        from adapterhub.cli.completion.completing import complete_base

        return complete_base(ctx, param, incomplete)


SPEC = SpecType()
BASE = BaseType()


class RankType(click.ParamType):  # type: ignore[type-arg]  # as `SpecType`
    """Which ranks are accepted: `8`, `4-16`, `4-`, `-16`."""

    name = "rank"

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> RankRange:
        """Return the ranks.

        Raises:
            UsageProblem: the text names none.
        """
        from adapterhub.core.ranks import RankRange

        return RankRange.of(value)


rank_option = click.option(
    "--rank", type=RankType(), metavar="RANKS", help="Accept only these ranks: `8`, `4-16`, `4-` or `-16`."
)


class ExistingPath(click.Path):
    """A path where something is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path.

        Raises:
            NotFound: nothing is there; the hint offers the nearest path.
        """
        from adapterhub.core.disk.files import ensure_there
        from adapterhub.core.errors import NotFound

        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        ensure_there(path, NotFound)
        return path


def places_option(
    text: str = "Also look in this directory; may be repeated [default: ADAPTERHUB_SOURCES].",
) -> Callable[[F], F]:
    """Add `--from DIR`, which may be repeated; `text` is its help."""
    folder = ExistingPath(path_type=Path)
    return click.option("--from", "places", multiple=True, type=folder, metavar="DIR", help=text)


def jobs_option(text: str, *, default: int = 1) -> Callable[[F], F]:
    """Add `--jobs N`; `text` is its help."""
    return click.option("--jobs", type=kind_of(Count), default=default, metavar="N", help=text)


offline_option = click.option("--offline", is_flag=True, help="Use no network.")


def remote_option(command: F) -> F:
    """Add `--remote`."""
    text = "Use this remote or server URL [default: the remote of the namespace, then the default remote]."
    return click.option("--remote", metavar="NAME|URL", shell_complete=_remote_names, help=text)(command)


def _remote_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from adapterhub.cli.completion.completing import complete_remote

    return complete_remote(ctx, param, incomplete)


def remote_options(command: F) -> F:
    """Add `--remote` and `--offline`."""
    return remote_option(offline_option(command))


def signatures_option(command: F) -> F:
    """Add `--signatures`, the signature policy for one run."""
    text = "Signature policy for this run [default: that of the namespace, of the remote, or the general one]."
    from adapterhub.trust.signing.policy import SignaturePolicy

    return click.option("--signatures", type=kind_of(SignaturePolicy), help=text)(command)


def needing(extra: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return a callback for an option that needs an extra: without the extra, the option is refused before any work."""

    def check(_ctx: click.Context, param: click.Parameter, value: object) -> object:
        if value is not None:
            from adapterhub.core.extras import require

            require(extra, f"`{param.opts[0]}`")
        return value

    return check
