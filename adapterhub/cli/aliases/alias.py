"""`adapt alias`: moving names of adapters, such as `legal-qa@prod`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli.completion.completing import complete_alias, complete_remote
from adapterhub.cli.groups import Group
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import SPEC, Session, common, project_option, trust_option
from adapterhub.core.arguments import Count
from adapterhub.core.errors import UsageProblem, shown

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from adapterhub.api.aliases.servers import Server
    from adapterhub.core.aliases import Alias
    from adapterhub.core.specs import AdapterSpec


F = TypeVar("F", bound=Callable[..., Any])


def server_options(command: F) -> F:
    """Add `--remote`, `--token` and `--offline`; the command gets `server`, None without `--remote`."""

    @click.option("--offline", is_flag=True, help="Use no network.")
    @click.option("--token", metavar="TOKEN", help="Access token for --remote [default: that of `adapt remote login`].")
    @click.option(
        "--remote",
        metavar="NAME|URL",
        shell_complete=complete_remote,
        help="The alias of this registry [default: that of the library].",
    )
    @functools.wraps(command)
    def wrapped(
        session: Session, *args: Any, remote: str | None, token: str | None, offline: bool, **kwargs: Any
    ) -> Any:
        server: Server | None = None
        if remote is not None:
            from adapterhub.api.aliases.servers import Server as There

            server = There(session=session, remote=remote, token=token, offline=offline)
        elif token is not None:
            raise UsageProblem("`--token` is for a registry", hint="name it with `--remote`")
        return command(session, *args, server=server, **kwargs)

    return wrapped  # type: ignore[return-value]  # `wraps` keeps the shape that click reads


class TargetType(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """A spec, and its weight after a single `=`; completes as a spec does."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text as a target."""
        from adapterhub.core.aliases import parse_target

        return parse_target(value) if isinstance(value, str) else value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names and versions of installed adapters."""
        return SPEC.shell_complete(ctx, param, incomplete)


alias_argument = click.argument("spec", type=SPEC, metavar="NAME@ALIAS", shell_complete=complete_alias)


@click.group(cls=Group)
def alias() -> None:
    """Give builds of an adapter a moving name: `legal-qa@prod`.

    An alias belongs to one adapter and means one exact build, or several with weights. Every command that takes a spec
    takes `NAME@ALIAS`; `adapt serve` looks it up again while it runs.

    \b
    Examples:
      adapt alias set prod legal-qa==1.2
      adapt alias rollback legal-qa@prod
    """


@alias.command("set")
@click.argument("name", shell_complete=complete_alias)
@click.argument("targets", nargs=-1, required=True, type=TargetType(), metavar="SPEC[=WEIGHT]...")
@click.option("--save", is_flag=True, help="Set it in the project's adapters.toml instead, then lock and sync.")
@project_option
@trust_option
@common
@server_options
def set_(
    session: Session,
    name: str,
    targets: tuple[tuple[AdapterSpec, float | None], ...],
    save: bool,
    server: Server | None,
) -> None:
    """Point an alias at a build, or at several with weights.

    Each SPEC means the installed build that it means now; later versions do not move the alias. With several, `adapt
    serve` gives each request key one of them, in proportion to the weights. Every other command takes the one with the
    largest weight.

    With --save, the project's file says what the alias means there, and its lock pins that. It comes before the
    library's. With --remote, moves the alias of a repository of a registry, whose targets are released versions. `adapt
    install acme/legal-qa@prod` then takes the build that it means there.

    \b
    Examples:
      adapt alias set prod legal-qa==1.2
      adapt alias set prod legal-qa==1.2=0.9 legal-qa==1.3=0.1
      adapt alias set prod legal-qa==1.2 --save
      adapt alias set prod acme/legal-qa==1.2 --remote ours
    """
    from adapterhub.api.aliases.steps import set_alias

    if save:
        if server is not None:
            raise UsageProblem("`--save` is for the project, `--remote` for a registry", hint="set one after the other")
        from adapterhub.api.aliases.projects import set_project_alias

        made = set_project_alias(session, name, targets, bars=session.out)
        session.out.result(made.to_json(), lambda: session.out.line(f"{made}: {made.text()}, locked"))
        return
    _tell_moved(session, server.set_alias(name, targets) if server else set_alias(session, name, targets))


@alias.command("list")
@click.argument("adapter", required=False, type=SPEC, metavar="[NAME]")
@common
@server_options
def list_(session: Session, adapter: AdapterSpec | None, server: Server | None) -> None:
    """List the aliases, or those of one adapter.

    \b
    Examples:
      adapt alias list
      adapt alias list legal-qa
    """
    from adapterhub.api.aliases.steps import list_aliases

    if server is not None and adapter is None:
        raise UsageProblem(
            "`--remote` needs the name of a repository", hint="`adapt alias list acme/legal-qa --remote …`"
        )
    found = server.list_aliases(adapter) if server and adapter else list_aliases(session, adapter)
    rows = [(str(one), one.text(), one.to_json()["moved_at"], one.moves[-1].by, one.place) for one in found]
    session.out.result(
        [one.to_json() for one in found],
        lambda: session.out.table(("alias", "means", "moved", "by", "follows"), rows),
    )


@alias.command("show")
@alias_argument
@common
@server_options
def show(session: Session, spec: AdapterSpec, server: Server | None) -> None:
    """Show which build an alias means.

    \b
    Example:
      adapt alias show legal-qa@prod
    """
    from adapterhub.api.aliases.steps import existing_alias

    found = existing_alias(session, spec, server.find_alias(spec) if server else None)
    session.out.result(found.to_json(), lambda: session.out.fields(_fields(found)))


@alias.command("remove")
@alias_argument
@common
@server_options
def remove(session: Session, spec: AdapterSpec, server: Server | None) -> None:
    """Remove an alias. The builds stay, and so does its history.

    \b
    Example:
      adapt alias remove legal-qa@prod
    """
    from adapterhub.api.aliases.steps import remove_alias

    gone = server.remove_alias(spec) if server else remove_alias(session, spec)
    session.out.result(gone.to_json(), lambda: session.out.line(f"removed {gone}"))
    session.out.hint(f"`adapt alias rollback {gone}` brings it back")


@alias.command("history")
@alias_argument
@common
@server_options
def history(session: Session, spec: AdapterSpec, server: Server | None) -> None:
    """Show the moves of an alias: when, by whom, and what it meant since then.

    \b
    Example:
      adapt alias history legal-qa@prod
    """
    from adapterhub.api.aliases.steps import find_alias
    from adapterhub.core.aliases import targets_text

    found = server.find_alias(spec) if server else find_alias(session, spec)
    moves = [{"number": number} | move.to_json() for number, move in enumerate(found.moves, 1)]
    rows = [
        (move["number"], move["at"], move["by"], move["action"], targets_text(one.targets))
        for move, one in zip(moves, found.moves, strict=True)
    ]
    session.out.result(moves, lambda: session.out.table(("move", "at", "by", "action", "means"), rows))


@alias.command("rollback")
@alias_argument
@click.option("--to", type=kind_of(Count), metavar="N", help="Go back to move N of `adapt alias history`.")
@common
@server_options
def rollback(session: Session, spec: AdapterSpec, to: int | None, server: Server | None) -> None:
    """Point an alias at what it meant before. Each rollback goes one step further back.

    \b
    Examples:
      adapt alias rollback legal-qa@prod
      adapt alias rollback legal-qa@prod --to 3
    """
    from adapterhub.api.aliases.steps import roll_back_alias

    _tell_moved(session, server.roll_back_alias(spec, to=to) if server else roll_back_alias(session, spec, to=to))


def _tell_moved(session: Session, moved: Alias) -> None:
    from adapterhub.library.store.aliases import moved_text

    session.out.result(moved.to_json(), lambda: session.out.line(moved_text(moved)))


def _fields(found: Alias) -> list[tuple[str, object]]:
    last = found.moves[-1]
    return [
        ("alias", str(found)),
        ("means", found.text()),
        *(("target", f"{found.adapter}=={target.version}  {target.digest}") for target in found.targets),
        ("moved", f"{found.to_json()['moved_at']} by {shown(last.by, 200)} ({last.action})"),
        ("follows", found.place or None),
    ]
