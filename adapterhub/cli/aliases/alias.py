"""`adapt alias`: moving names of adapters, such as `legal-qa@prod`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_alias
from adapterhub.cli.groups import Group
from adapterhub.cli.options.params import SPEC, Session, common
from adapterhub.core.errors import shown

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from adapterhub.core.aliases import Alias
    from adapterhub.core.specs import AdapterSpec


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
@common
def set_(session: Session, name: str, targets: tuple[tuple[AdapterSpec, float | None], ...]) -> None:
    """Point an alias at a build, or at several with weights.

    Each SPEC means the installed build that it means now; later versions do not move the alias. With several, `adapt
    serve` gives each request key one of them, in proportion to the weights. Every other command takes the one with the
    largest weight.

    \b
    Examples:
      adapt alias set prod legal-qa==1.2
      adapt alias set prod legal-qa==1.2=0.9 legal-qa==1.3=0.1
    """
    from adapterhub.api.aliases.steps import set_alias

    _tell_moved(session, set_alias(session, name, targets))


@alias.command("list")
@click.argument("adapter", required=False, type=SPEC, metavar="[NAME]")
@common
def list_(session: Session, adapter: AdapterSpec | None) -> None:
    """List the aliases, or those of one adapter.

    \b
    Examples:
      adapt alias list
      adapt alias list legal-qa
    """
    from adapterhub.api.aliases.steps import list_aliases

    found = list_aliases(session, adapter)
    rows = [(str(one), one.text(), one.to_json()["moved_at"], one.moves[-1].by, one.place) for one in found]
    session.out.result(
        [one.to_json() for one in found],
        lambda: session.out.table(("alias", "means", "moved", "by", "follows"), rows),
    )


@alias.command("show")
@click.argument("spec", type=SPEC, metavar="NAME@ALIAS", shell_complete=complete_alias)
@common
def show(session: Session, spec: AdapterSpec) -> None:
    """Show which build an alias means.

    \b
    Example:
      adapt alias show legal-qa@prod
    """
    from adapterhub.api.aliases.steps import existing_alias

    found = existing_alias(session, spec)
    session.out.result(found.to_json(), lambda: session.out.fields(_fields(found)))


@alias.command("remove")
@click.argument("spec", type=SPEC, metavar="NAME@ALIAS", shell_complete=complete_alias)
@common
def remove(session: Session, spec: AdapterSpec) -> None:
    """Remove an alias. The builds stay, and so does its history.

    \b
    Example:
      adapt alias remove legal-qa@prod
    """
    from adapterhub.api.aliases.steps import remove_alias

    gone = remove_alias(session, spec)
    session.out.result(gone.to_json(), lambda: session.out.line(f"removed {gone}"))
    session.out.hint(f"`adapt alias rollback {gone}` brings it back")


@alias.command("history")
@click.argument("spec", type=SPEC, metavar="NAME@ALIAS", shell_complete=complete_alias)
@common
def history(session: Session, spec: AdapterSpec) -> None:
    """Show the moves of an alias: when, by whom, and what it meant since then.

    \b
    Example:
      adapt alias history legal-qa@prod
    """
    from adapterhub.api.aliases.steps import find_alias
    from adapterhub.core.aliases import targets_text

    found = find_alias(session, spec)
    moves = [{"number": number} | move.to_json() for number, move in enumerate(found.moves, 1)]
    rows = [
        (move["number"], move["at"], move["by"], move["action"], targets_text(one.targets))
        for move, one in zip(moves, found.moves, strict=True)
    ]
    session.out.result(moves, lambda: session.out.table(("move", "at", "by", "action", "means"), rows))


@alias.command("rollback")
@click.argument("spec", type=SPEC, metavar="NAME@ALIAS", shell_complete=complete_alias)
@click.option("--to", type=click.IntRange(min=1), metavar="N", help="Go back to move N of `adapt alias history`.")
@common
def rollback(session: Session, spec: AdapterSpec, to: int | None) -> None:
    """Point an alias at what it meant before. Each rollback goes one step further back.

    \b
    Examples:
      adapt alias rollback legal-qa@prod
      adapt alias rollback legal-qa@prod --to 3
    """
    from adapterhub.api.aliases.steps import roll_back_alias

    _tell_moved(session, roll_back_alias(session, spec, to=to))


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
