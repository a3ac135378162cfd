"""`adapt similar`: find installed adapters with like updates, and those that an update is a sum of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import Session, common, remote_options
from adapterhub.core.arguments import Cosine
from adapterhub.core.errors import shown

if TYPE_CHECKING:
    from adapterhub.distribution.hub import AlikeThere
    from adapterhub.library.find.likeness import Likeness, LikenessGroups, Similar

_SHOWN: float = 0.5


@click.command()
@click.argument("adapter", metavar="[SPEC|FOLDER]", required=False, shell_complete=complete_spec_or_folder)
@click.option(
    "--above",
    type=kind_of(Cosine),
    metavar="COSINE",
    help=f"List cosines from here on [default: {_SHOWN}; 0.99 for groups, 0.9 with --remote].",
)
@click.option("--no-parents", "parents", flag_value=False, default=True, help="Look for no sums of adapters.")
@remote_options
@common
def similar(session: Session, adapter: str | None, **options: Any) -> None:
    """Find the installed adapters whose update is like that of one, whatever its name, precision, scale or rank.

    `same update`: a cosine of 0.9995 or more. `negated`: its opposite. `near`: 0.9 or more, as another seed of one
    recipe, an earlier checkpoint or a noisy copy has. `related`: 0.5 or more. Each cosine is exact, from the files.
    A near update is no proof of copying.

    The parents are installed adapters of which the update is a weighted sum, whether its manifest names them or not;
    each carries at least 5 % of its norm.

    Without an adapter, everything that is installed is grouped. With --remote, a registry lists what is like a release
    there, with cosines that it estimates.

    \b
    Examples:
      adapt similar legal-qa
      adapt similar ./out/legal-qa --above 0.9
      adapt similar
      adapt similar acme/legal-qa --remote ours
    """
    found: Any = session.opened.similar(adapter, **options)

    def say() -> None:
        if options["remote"] is not None:
            _say_there(session, found)
        elif adapter is None:
            _say_groups(session, found)
        else:
            _say(session, found, options["above"])

    session.out.result(found.to_json(), say)


def _say(session: Session, found: Likeness, above: float | None) -> None:
    if found.similar:
        session.out.table(("kind", "adapter", "cosine", "what is different"), [_row(one) for one in found.similar])
    else:
        least = _SHOWN if above is None else above
        session.out.line(f"nothing like it among {found.compared} installed adapters (cosine {least:g} or more)")
    if found.parents:
        parts = " ".join(
            f"{'-' if one.weight < 0 else '+'} {abs(one.weight):.3g} {one.build.full_name} {one.build.version}"
            for one in found.parents
        )
        left = found.unexplained or 0.0
        session.out.line(
            f"{'a sum of' if found.is_plain_sum else 'mostly'} {parts.removeprefix('+ ')}, unexplained {left:.1%}"
        )
        undeclared = [f"{one.build.full_name} {one.build.version}" for one in found.parents if not one.declared]
        if undeclared:
            session.out.line(f"not declared as parents: {', '.join(undeclared)}")
        if found.turned:
            session.out.hint("a part has a higher rank: it may rather be made from this adapter")
    for name, reason in found.without.items():
        session.out.detail(f"not compared: {shown(name)}: {shown(reason)}")


def _say_there(session: Session, found: AlikeThere) -> None:
    if found.state == "waiting":
        session.out.line("the server has not read these weights yet; ask again in a minute")
    elif not found.similar:
        session.out.line("nothing like it on this server" if found.state == "made" else "it has no update to compare")
    else:
        rows = [
            (
                one.repo,
                one.version or one.commit[:12],
                f"about {one.cosine:.2f}",
                "" if one.same_base else "another base",
            )
            for one in found.similar
        ]
        session.out.table(("adapter", "version", "cosine", "what is different"), rows)


def _row(one: Similar) -> tuple[object, ...]:
    cosine = f"{one.cosine:.4f}" if one.exact else f"about {one.cosine:.2f}"
    partly = () if one.modules_shared == one.modules else (f"{one.modules_shared} of {one.modules} modules",)
    name = f"{one.build.full_name} {one.build.version}"
    return one.kind, name, cosine, ", ".join((*one.scale_words, *one.notes, *partly))


def _say_groups(session: Session, found: LikenessGroups) -> None:
    if not found.groups:
        session.out.line(f"no two installed adapters have a cosine of {found.above:g} or more")
    for at, group in enumerate(found.groups):
        if at:
            session.out.line()
        session.out.table(("kind", "adapter", "cosine", "what is different"), [_row(one) for one in group.members])
