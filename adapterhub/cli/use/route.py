"""`adapt route`: which adapter a text is for, and the routing file that a server uses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_spec
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import BASE, SPEC, Session, common
from adapterhub.core.arguments import Cosine
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from adapterhub.api.steps.routing import CheckedRoute


@click.command()
@click.argument("text", nargs=-1)
@click.option("--base", type=BASE, help="Route among adapters for this base.")
@click.option(
    "--over",
    type=SPEC,
    multiple=True,
    metavar="SPEC",
    shell_complete=complete_spec,
    help="Route among these (repeatable) [default: the newest of each name with at least 8 example prompts].",
)
@click.option("--file", type=click.Path(path_type=Path), metavar="FILE", help="Route by this routing file.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write a routing file to FILE.")
@click.option("--check", is_flag=True, help="Show how well the texts tell the adapters apart.")
@click.option(
    "--threshold",
    type=kind_of(Cosine),
    metavar="T",
    help="Leave texts below this cosine to the base [default: it keeps 95 % of the adapters' own prompts].",
)
@click.option("--accept-routing", is_flag=True, help="Write the file although it confuses more than one text in ten.")
@click.option("--strict", is_flag=True, help="Fail with exit code 10 where TEXT is for none of the adapters.")
@common
def route(session: Session, text: tuple[str, ...], check: bool, **options: Any) -> None:
    """Print the adapter that TEXT is for, or `base`; or write a routing file for `adapt serve --route`.

    Compares TEXT with the example prompts of each adapter: those of its contract, or of its manifest, at least 8.
    It compares only texts, so it cannot separate two tasks that take the same kind of text: a film review to judge
    and one to translate, for example. --check leaves out one prompt of every adapter at a time, routes it, and prints
    which are taken for which. A file that routes fewer than nine in ten right is not written without --accept-routing.

    \b
    Examples:
      adapt route "Dmitri takes 4 bricks for 8 dollars." --base base-7b
      adapt route --base base-7b --over orders --over legal-qa -o route.json
      adapt route --file route.json --check
      adapt serve --base base-7b --route route.json
    """
    if not (text or options["output"] or check):
        raise UsageProblem(
            "there is no text to route", hint="give TEXT, `--check`, or `-o FILE` to write a routing file"
        )
    found: Any = session.opened.route(" ".join(text) or None, **options)
    if text:
        session.out.result(found.to_json(), lambda: session.out.line(found.name or found.model))
        return
    session.out.result(found.to_json(), lambda: _say(session, found))
    if check and options["output"] is None:
        found.ensure_good("A server does not take it")


def _say(session: Session, result: CheckedRoute) -> None:
    out = session.out
    rows = [
        (
            one.name,
            one.version,
            one.prompts,
            one.right,
            ", ".join(f"{c.taken_for} {c.prompts}" for c in result.confused if c.name == one.name),
            one.to_base,
        )
        for one in result.adapters
    ]
    out.table(
        ("name", "version", "prompts", "right", "taken for", "to the base"),
        rows,
        right=("prompts", "right", "to the base"),
    )
    out.line(
        f"serves {result.accuracy:.1%} of left-out prompts by their own adapter ({result.method}),"
        f" with texts below cosine {result.threshold:g} left to the base"
    )
    if result.path is not None:
        out.line(f"wrote {result.path}")
