"""`adapt alias`: moving names of adapters, such as `legal-qa@prod`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_alias
from adapterhub.cli.groups import Group
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import SPEC, Session, common, project_option, remote_options, trust_option
from adapterhub.core.arguments import Count
from adapterhub.core.errors import shown

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
@remote_options
@common
def set_(session: Session, name: str, targets: tuple[tuple[AdapterSpec, float | None], ...], **options: Any) -> None:
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
    made = session.opened.set_alias(name, targets, **options)
    if options["save"]:
        session.out.result(made.to_json(), lambda: session.out.line(f"{made}: {made.text()}, locked"))
    else:
        _tell_moved(session, made)


@alias.command("list")
@click.argument("adapter", required=False, type=SPEC, metavar="[NAME]")
@remote_options
@common
def list_(session: Session, adapter: AdapterSpec | None, **options: Any) -> None:
    """List the aliases, or those of one adapter.

    \b
    Examples:
      adapt alias list
      adapt alias list legal-qa
    """
    found = session.opened.list_aliases(adapter, **options)
    rows = [(str(one), one.text(), one.last.time, one.last.by, one.place) for one in found]
    session.out.result(
        [one.to_json() for one in found],
        lambda: session.out.table(("alias", "means", "moved", "by", "follows"), rows),
    )


@alias.command("show")
@alias_argument
@remote_options
@common
def show(session: Session, spec: AdapterSpec, **options: Any) -> None:
    """Show which build an alias means.

    \b
    Example:
      adapt alias show legal-qa@prod
    """
    found = session.opened.alias(spec, **options)
    session.out.result(found.to_json(), lambda: session.out.fields(_fields(found)))


@alias.command("remove")
@alias_argument
@remote_options
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
@remote_options
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
@remote_options
@common
def rollback(session: Session, spec: AdapterSpec, **options: Any) -> None:
    """Point an alias at what it meant before. Each rollback goes one step further back.

    \b
    Examples:
      adapt alias rollback legal-qa@prod
      adapt alias rollback legal-qa@prod --to 3
    """
    _tell_moved(session, session.opened.roll_back_alias(spec, **options))


def _tell_moved(session: Session, moved: Alias) -> None:
    session.out.result(moved.to_json(), lambda: session.out.line(moved.moved_text()))


def _fields(found: Alias) -> list[tuple[str, object]]:
    last = found.last
    return [
        ("alias", str(found)),
        ("means", found.text()),
        *(("target", f"{found.adapter}=={target.version}  {target.digest}") for target in found.targets),
        ("moved", f"{last.time} by {shown(last.by, 200)} ({last.action})"),
        ("follows", found.place or None),
    ]
