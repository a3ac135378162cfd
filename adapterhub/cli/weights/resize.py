"""`adapt resize`: compute the closest adapter of a lower rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adapterhub.api.results import report_warnings
from adapterhub.api.steps.combining import Resizing, combine, contract_note, plan_resize, weights_in
from adapterhub.api.steps.contracts.gating import same_adapter_test
from adapterhub.api.steps.merge_choice import one_cut
from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.options.cutting import cut_options, ranks_text
from adapterhub.cli.options.naming import naming_options
from adapterhub.cli.options.params import BASE, Session, common
from adapterhub.cli.options.testing import tells_tests
from adapterhub.cli.output import size_text

if TYPE_CHECKING:
    from adapterhub.api.results import Merged
    from adapterhub.core.specs import BaseSpec
    from adapterhub.library.intake.clashes import Bump


@click.command()
@click.argument("adapter", metavar="SPEC|FOLDER", shell_complete=complete_spec_or_folder)
@click.option(
    "-o",
    "--output",
    metavar="NAME|DIR",
    help="Write to this name or `./folder` [default: the adapter's name and `rN` or `small`].",
)
@cut_options("the adapter's own")
@click.option("--base", type=BASE, help="Use this base if the spec names none.")
@click.option("--version", metavar="VERSION", help="Version of the new adapter [default: the adapter's own].")
@naming_options
@click.option("--task", metavar="TASK", help="Task of the new adapter [default: the adapter's own].")
@click.option("--description", metavar="TEXT", help="Describe the new adapter [default: the adapter's own].")
@click.option("--test", is_flag=True, help="Write the result only if it passes the adapter's contract.")
@common
def resize(
    session: Session,
    adapter: str,
    output: str | None,
    rank: int | None,
    energy: float | None,
    max_error: float | None,
    dtype: str | None,
    base: BaseSpec | None,
    version: str | None,
    bump: Bump | None,
    variant: bool,
    task: str | None,
    description: str | None,
    test: bool,
) -> None:
    """Reduce an adapter to a lower rank: the closest update of that rank, module by module.

    No other update of that rank is closer (Eckart and Young). The command measures, prints and records its distance
    from the adapter. `--energy` and `--max-error` choose the rank of each module. A rank above the adapter's own
    changes nothing.

    \b
    Examples:
      adapt resize legal-qa --rank 4
      adapt resize legal-qa --rank 4 -o legal-qa --variant
      adapt resize legal-qa --rank 2 --test
      adapt resize legal-qa --energy 0.99 -o legal-qa-small
      adapt resize ./out/legal-qa --max-error 0.05 --dtype bfloat16 -o ./out/legal-qa-small
    """
    from adapterhub.library.intake.clashes import check_naming

    check_naming(bump, variant=variant, version=version)
    said = {"version": version, "task": task, "description": description}
    cut = one_cut(rank=rank, energy=energy, max_error=max_error)
    plan = plan_resize(session.project_library, adapter, output, cut, dtype=dtype, base=base, said=said)
    merged = combine(
        session.library,
        plan.combination,
        plan.target,
        what="resize",
        bump=bump,
        variant=variant,
        test=same_adapter_test(session.library, plan.combination, bars=session.out) if test else None,
        bars=session.out,
    )
    if merged.added is None:
        _say(session, plan, merged, rank, f"resized into {merged.folder}", {"path": str(merged.folder)})
        return
    added = merged.added
    report_warnings(session, added)
    state = "resized" if added.created else "already installed:"
    headline = f"{state} {added.build.full_name} {added.build.manifest.label}"
    _say(session, plan, merged, rank, headline, added.to_json())


def _say(
    session: Session, plan: Resizing, merged: Merged, rank: int | None, headline: str, document: dict[str, Any]
) -> None:
    out, made, result = session.out, merged.made, merged.made.result
    for warning in made.warnings:
        out.warn(warning)
    if note := contract_note(merged):
        out.note(note)
    after, _ = weights_in(merged.folder, None)
    document |= {"before": plan.before.to_json(), "after": after.to_json(), "dtype": result.dtype}
    document |= {"relative_error": result.relative_error, "worst_module": result.worst_module}
    document |= {"tests": [one.to_json() for one in merged.tests]} if merged.tests else {}
    document |= {"worst_error": result.worst_error, "recipe": dict(made.recipe)}

    def text() -> None:
        out.line(headline)
        for when, weights in (("before", plan.before), ("after", after)):
            out.line(f"  {when:6}  {size_text(weights.size_bytes)}  {ranks_text(weights.ranks)}")
        worst = f", worst in {result.worst_module}: {result.worst_error:.2g}" if result.worst_error > 0 else ""
        out.line(f"  {result.dtype}; relative error against the adapter: {result.relative_error:.2g}{worst}")
        tells_tests(session, merged.tests)
        if rank is not None and rank > max(after.ranks):
            out.line(f"  no module's update has a rank above {max(after.ranks)}; rank {rank} would only add zeros")

    out.result(document, text)
