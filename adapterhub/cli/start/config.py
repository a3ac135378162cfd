"""`adapt config`: your own defaults, which hold in every project."""

from __future__ import annotations

import click

from adapterhub.cli.groups import Group
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import Session, common
from adapterhub.core.arguments import TestsPolicy


@click.group(cls=Group)
def config() -> None:
    """Set your own defaults; a project may ask for more, never for less.

    \b
    Example:
      adapt config tests require
    """


@config.command("tests")
@click.argument("policy", required=False, type=kind_of(TestsPolicy))
@click.option("--bound", "bounds", multiple=True, metavar="NAME=X", help="Let no test have a looser bound; repeatable.")
@click.option("--max-age", metavar="AGE", help="Let a signed result count for so long, such as 90d.")
@click.option("--reset", is_flag=True, help="Forget what was set before.")
@common
def tests(session: Session, policy: str | None, bounds: tuple[str, ...], max_age: str | None, reset: bool) -> None:
    """Show or set what becomes of builds without a PASS of their contract.

    `require` refuses such a build in `adapt sync` and `adapt serve`, `warn` warns of it, `off` does neither. Runs no
    model. What is not given stays unchanged. A project's policy `tests` may be stricter; the stricter value holds.

    \b
    Examples:
      adapt config tests
      adapt config tests require --bound same=0.95 --max-age 90d
      adapt config tests --reset
    """
    from adapterhub.formats.contract.bounds import parse_bound
    from adapterhub.library.own_settings import OwnSettings, set_own_tests

    if policy is None and not bounds and max_age is None and not reset:
        found = OwnSettings(session.root).read()
    else:
        found = set_own_tests(session.root, policy, max_age=max_age, bounds=dict(map(parse_bound, bounds)), reset=reset)
    document = {"tests": found.policy, "max_age": found.max_age, "bounds": dict(found.bounds)}
    parts = [found.policy, *(f"{name}={value:g}" for name, value in found.bounds.items())]
    parts += [f"max-age {found.max_age}"] if found.max_age else []
    session.out.result(document, lambda: session.out.line(f"tests  {'  '.join(parts)}"))
