"""`adapt port`: move an adapter to another base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.core.errors import UsageProblem, shown
from adapterhub.library.intake.clashes import Bump

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from adapterhub.api.weights import Ported


class PortMethodType(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """A way to port; its file is parsed, not imported."""

    name = "method"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the name."""
        from adapterhub.weights.port.catalogue import describe

        try:
            return describe(value).name
        except UsageProblem as problem:
            self.fail(f"{problem.message}\n{problem.hint}".rstrip(), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names of methods, with a summary for shells that show one."""
        from click.shell_completion import CompletionItem

        from adapterhub.weights.port.catalogue import describe, names

        return [CompletionItem(name, help=describe(name).summary) for name in names() if name.startswith(incomplete)]


@click.command()
@click.argument("adapter", metavar="SPEC|FOLDER", shell_complete=complete_spec_or_folder)
@click.option("--to", type=BASE, required=True, help="The new base: its name, a Hub id or `./folder`.")
@click.option("--method", type=PortMethodType(), metavar="METHOD", help="Use this way only [default: the best one].")
@click.option("-o", "--output", metavar="NAME", help="Write to this name [default: the adapter's own].")
@click.option("--unproved", is_flag=True, help="Write it also where no contract proves that it works.")
@click.option("--dry-run", is_flag=True, help="Show how far the bases are apart and what to expect; write nothing.")
@click.option("--version", metavar="VERSION", help="Version of the new adapter [default: the adapter's own].")
@click.option("--bump", type=kind_of(Bump), help="Take the next free version where the name exists for this base.")
@common
def port(session: Session, adapter: str, **options: Any) -> None:
    """Move an adapter to a base that is related to its own: a later checkpoint, a merge, a pruned or reordered one.

    The adapter's contract decides on the new base. `copy` changes no number. If that does not work, `project` turns
    the update as the base's weights were turned. The result is a new build with a contract of its own. Nothing is
    written unless it passes. A copy of the same base needs no port.

    \b
    Examples:
      adapt port legal-qa --to base-7b-v2 --dry-run
      adapt port legal-qa --to base-7b-v2
      adapt port legal-qa==1.0.1 --to ./models/base-7b-v2 --method copy -o legal-qa-v2
    """
    ported = session.opened.port(adapter, **options)
    session.out.result(ported.to_json(), lambda: _say(session, ported))


def _say(session: Session, ported: Ported) -> None:
    out, look = session.out, ported.look
    if (build := ported.adapter) is not None:
        created = ported.added is not None and ported.added.created
        out.line(f"{'ported' if created else 'already installed:'} {build.full_name} {build.manifest.label}")
    out.line(f"  {shown(look.base, 200)} -> {shown(look.to, 200)}: {look.bases}")
    if look.distance is not None:
        near = look.distance
        out.line(
            f"  weights moved {near.change:.2g} (largest directions {near.spectral:.2g}),"
            f" overlap where the adapter acts {near.overlap:.3f}, its update {near.update:.2g}"
        )
    odds = "" if look.prediction.probability is None else f" ({look.prediction.probability:.0%} of such copies passed)"
    out.line(f"  a copy: expected `{look.prediction.expected}`{odds}; {look.prediction.reason}")
    if build is None:
        for note in look.notes:
            out.line(f"  {note}")
        return
    for one in ported.tries:
        drift = "" if one.drift is None else f"drift {one.drift:.3f}"
        chosen = "chosen" if one.method == ported.method else ""
        out.line("  " + "  ".join(filter(None, (f"{one.method:8}", one.outcome, drift, one.reason, chosen))))
    if ported.left_out:
        out.line(f"  its contract leaves out {len(ported.left_out)} prompts: {ported.left_out[0].reason}")
