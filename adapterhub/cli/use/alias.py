"""`adapt alias`: moving names of adapters, such as `legal-qa@prod`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_alias
from adapterhub.cli.groups import Group
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import SPEC, Session, common, project_option, remote_option, remote_options
from adapterhub.core.arguments import Count, Days

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from adapterhub.core.specs import AdapterSpec
    from adapterhub.formats.alias import Alias


class TargetType(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """A spec, and its weight after a single `=`; completes as a spec does."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text as a target."""
        from adapterhub.formats.alias import parse_target

        return parse_target(value) if isinstance(value, str) else value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names and versions of installed adapters."""
        return SPEC.shell_complete(ctx, param, incomplete)


class NewestType(click.IntRange):
    """A number of versions, or `all`."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text as a number of the range, or `all`."""
        return value if value == "all" else super().convert(value, param, ctx)


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
@remote_options
@common
def set_(session: Session, name: str, targets: tuple[tuple[AdapterSpec, float | None], ...], **options: Any) -> None:
    """Point an alias at a build, or at several with weights.

    Each SPEC means the installed build that it means now; later versions do not move the alias. With several, `adapt
    serve` gives each request key one of them, in proportion to the weights. Every other command takes the one with the
    largest weight.

    With --save, the project's file gets the alias with its target, and its lock pins it. It comes before the
    library's. With --remote, moves the alias of a repository of a registry, whose targets are released versions. `adapt
    install acme/legal-qa@prod` then takes the build that it means there.

    \b
    Examples:
      adapt alias set prod legal-qa==1.2
      adapt alias set prod legal-qa==1.2=0.9 legal-qa==1.3=0.1
      adapt alias set prod legal-qa==1.2 --save
      adapt alias set prod acme/legal-qa==1.2 --remote ours
    """
    made = session.opened.set_alias(name, targets, **options)
    if options["save"]:
        session.out.result(made.to_json(), lambda: session.out.line(f"{made}: {made.text()}, locked"))
    else:
        _tell_moved(session, made)


@alias.command("list")
@click.argument("adapter", required=False, type=SPEC, metavar="[NAME|NAME@ALIAS]", shell_complete=complete_alias)
@remote_option
@common
def list_(session: Session, adapter: AdapterSpec | None, **options: Any) -> None:
    """List the aliases with their targets, or those of one adapter, or one; --json has the digests.

    \b
    Examples:
      adapt alias list
      adapt alias list legal-qa@prod
    """
    found = session.opened.list_aliases(adapter, **options)
    rows = [(str(one), one.text(), one.last.time, one.last.by, one.place) for one in found]
    session.out.result(
        [one.to_json() for one in found],
        lambda: session.out.table(("alias", "means", "moved", "by", "follows"), rows),
    )


@alias.command("remove")
@alias_argument
@remote_option
@common
def remove(session: Session, spec: AdapterSpec, **options: Any) -> None:
    """Remove an alias. The builds stay, and so does its history.

    \b
    Example:
      adapt alias remove legal-qa@prod
    """
    gone = session.opened.remove_alias(spec, **options)
    session.out.result(gone.to_json(), lambda: session.out.line(f"removed {gone}"))
    session.out.hint(f"`adapt alias rollback {gone}` brings it back")


@alias.command("history")
@alias_argument
@remote_option
@common
def history(session: Session, spec: AdapterSpec, **options: Any) -> None:
    """Show the moves of an alias: when, by whom, and what it meant since then.

    \b
    Example:
      adapt alias history legal-qa@prod
    """
    from adapterhub.formats.alias import targets_text

    moves = session.opened.alias_history(spec, **options)
    rows = [(move.number, move.time, move.by, move.action, targets_text(move.targets)) for move in moves]
    columns = ("move", "at", "by", "action", "means")
    session.out.result([move.to_json() for move in moves], lambda: session.out.table(columns, rows))


@alias.command("rollback")
@alias_argument
@click.option("--to", type=kind_of(Count), metavar="N", help="Go back to move N of `adapt alias history`.")
@remote_option
@common
def rollback(session: Session, spec: AdapterSpec, **options: Any) -> None:
    """Point an alias at what it meant before. Each rollback goes one step further back.

    \b
    Examples:
      adapt alias rollback legal-qa@prod
      adapt alias rollback legal-qa@prod --to 3
    """
    _tell_moved(session, session.opened.roll_back_alias(spec, **options))


@alias.command("keep")
@alias_argument
@click.argument("newest", required=False, type=NewestType(1, 1_000_000), metavar="[N|all]")
@click.argument("days", required=False, type=kind_of(Days), default=30.0, metavar="[DAYS]")
@remote_option
@common
def keep(session: Session, spec: AdapterSpec, newest: Any, days: float, **options: Any) -> None:
    """Let a registry keep only the newest N versions that an alias named, or all again.

    The others go DAYS (30) after the alias left them. These stay: what another alias ever named, what is signed or
    yanked, the parents of other builds, the head of `main`, and what the alias never named. Without N, nothing changes,
    and the command shows what is set.

    \b
    Examples:
      adapt alias keep acme/agent@current 20 --remote ours
      adapt alias keep acme/agent@current 20 7
      adapt alias keep acme/agent@current all
    """
    kept = session.opened.keep_alias(spec, newest, days, **options)
    session.out.result(kept.to_json(), lambda: session.out.line(f"{kept.repo}@{kept.alias} keeps {kept.text}"))


def _tell_moved(session: Session, moved: Alias) -> None:
    session.out.result(moved.to_json(), lambda: session.out.line(moved.moved_text()))
