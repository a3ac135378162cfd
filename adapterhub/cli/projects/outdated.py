"""`adapt outdated`: show adapters that have a newer release or were withdrawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.options.params import (
    SPEC,
    Session,
    common,
    places_option,
    project_option,
    remote_options,
    trust_option,
)
from adapterhub.core.errors import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.core.specs import AdapterSpec
    from adapterhub.distribution.outdated import Offer


@click.command()
@click.argument("specs", nargs=-1, type=SPEC, metavar="[NAME...]")
@click.option("--all", "show_all", is_flag=True, help="Also show adapters that are up to date.")
@click.option("--library", "is_library", is_flag=True, help="Check the library even inside a project.")
@places_option()
@project_option
@trust_option
@remote_options
@common
def outdated(
    session: Session, specs: tuple[AdapterSpec, ...], show_all: bool, is_library: bool, **options: Any
) -> None:
    """Show adapters that have a newer release, one line for each source that has one, and those that were withdrawn.

    In a project: the locked version, the version that `adapt upgrade` would take (`allowed`), and the newest that fits
    the base. Outside: the installed version and the newest where it came from. Changes nothing.

    \b
    Examples:
      adapt outdated
      adapt outdated legal-qa --all
    """
    project = None if is_library else session.project_here
    found = project.outdated(*map(str, specs), **options) if project else session.opened.outdated(*specs, **options)
    told = [offer for offer in found if show_all or offer.is_worth_telling]
    session.out.result([offer.to_json() for offer in told], lambda: _say(session, told, is_project=project is not None))
    for offer in found:
        if offer.has_replaced:
            one = offer.request
            session.out.hint(
                f"`adapt remove '{one.key}=={one.version}'` removes the yanked version; another is installed"
            )
    if any(offer.has_allowed for offer in found):
        session.out.hint("`adapt upgrade` installs the allowed versions")
    elif found and not any(offer.is_worth_telling for offer in found):
        session.out.note("everything is up to date")


def _say(session: Session, told: Sequence[Offer], *, is_project: bool) -> None:
    rows: list[tuple[object, ...]] = []
    for offer in told:
        allowed = (offer.allowed.version if offer.allowed else None,) if is_project else ()
        newest = offer.newest.version if offer.newest else None
        rows.append((offer.request.key, offer.request.version, *allowed, newest, offer.place, _note(offer)))
    had = ("locked", "allowed") if is_project else ("installed",)
    session.out.table(("name", *had, "newest", "place", "note"), rows)


def _note(offer: Offer) -> str:
    if offer.problem is not None:
        return shown(offer.problem.splitlines()[0], 200)
    if offer.yanked is not None:
        return f"yanked: {shown(offer.yanked or 'no reason given', 200)}"
    return "" if offer.allowed is not None else "no release here is allowed"
