"""`adapt merge`: merge several adapters into one, exactly by default, and report the error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.making import (
    about_options,
    cut_options,
    dtype_option,
    output_option,
    ranks_text,
    weights_option,
)
from adapterhub.cli.options.params import BASE, Session, common, needing, places_option
from adapterhub.cli.options.testing import tells_tests
from adapterhub.cli.output import size_text
from adapterhub.core.arguments import Count, MergeSeed, Rank
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from click.shell_completion import CompletionItem

    from adapterhub.api.weights import Merged
    from adapterhub.inference.tuning import Tuned
    from adapterhub.weights.catalogue import Option

AUTO: Final = "auto"


class MethodType(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """A merge method; its file is parsed, not imported."""

    name = "method"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the name."""
        from adapterhub.weights.catalogue import describe

        try:
            return describe(value).name
        except UsageProblem as problem:
            self.fail(f"{problem.message}\n{problem.hint}", param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names of methods, with a summary for shells that show one."""
        from click.shell_completion import CompletionItem

        from adapterhub.weights.catalogue import describe, names

        return [CompletionItem(name, help=describe(name).summary) for name in names() if name.startswith(incomplete)]


class RankOrAutoType(click.ParamType):  # type: ignore[type-arg]  # as above
    """A rank, or `auto`."""

    name = "rank"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Return a whole number of at least 1, or `auto`."""
        if value == AUTO:
            return AUTO
        rank: int = kind_of(Rank).convert(value, param, ctx)
        return rank

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the word `auto`."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(AUTO)] if AUTO.startswith(incomplete) else []


def _named(_ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """Return the values of `-O NAME=VALUE` by their names."""
    named: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise UsageProblem(f"-O `{text}`: expected NAME=VALUE, such as `majority=frequency`")
        if name in named:
            raise UsageProblem(f"`{name}` is given twice", hint="set each option once")
        named[name] = value
    return named


def _option_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from adapterhub.weights.catalogue import describe, names

    method = ctx.params.get("method")
    options = {o.name for m in ([method] if method else names()) for o in describe(m).options}
    return [CompletionItem(f"{name}=") for name in sorted(options - {"seed"}) if name.startswith(incomplete)]


@click.command()
@click.argument("adapters", nargs=-1, metavar="[SPEC|FOLDER...]", shell_complete=complete_spec_or_folder)
@weights_option
@output_option("the names, joined by `-`")
@click.option(
    "--method",
    type=MethodType(),
    metavar="METHOD",
    help="`cat` is exact, `svd` is closest at a given rank; --methods lists all "
    "[default: cat; svd with --rank, --energy or --max-error].",
)
@click.option("--rank", type=RankOrAutoType(), metavar="N|auto", help="Rank of the result; `auto` is --energy 0.99.")
@cut_options
@click.option(
    "--seed", type=kind_of(MergeSeed), metavar="N", help="Seed for methods that drop numbers at random [default: 0]."
)
@click.option(
    "-O",
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_named,
    shell_complete=_option_names,
    help="Set another option of the method, such as `density=0.3`; may be repeated.",
)
@dtype_option("float32, which keeps the sum exact")
@click.option(
    "--base",
    type=BASE,
    help="Use this base for specs that name none, and to ask with --tune and --test.",
)
@about_options("1.0.0")
@click.option("--license", metavar="SPDX", help="Licence of the new adapter.")
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Merge as in this TOML file, which `adapt info --recipe` prints.",
)
@places_option("With --recipe: also look here for adapters that are not installed; may be repeated.")
@click.option("--offline", is_flag=True, help="With --recipe: use no network.")
@click.option(
    "--tune",
    type=click.Path(path_type=Path),
    metavar="FILE|contracts",
    callback=needing("tune"),
    help="Search for the weights that answer these examples (JSON Lines) or the parents' contracts best.",
)
@click.option("--tune-budget", type=kind_of(Count), metavar="N", help="With --tune: try at most N weight sets.")
@click.option(
    "--test",
    is_flag=True,
    help="Write the merge only if it keeps the `never` and `leave_alone` lines of all parents' contracts.",
)
@click.option("--methods", is_flag=True, help="List the merge methods and their options.")
@common
def merge(session: Session, adapters: tuple[str, ...], methods: bool, **options: Any) -> None:
    """Merge adapters into one adapter: the weighted sum of their updates.

    The default method concatenates the factors, which is exact. Every merge measures, prints and records its distance
    to the exact sum, with the parents, weights and method. Needs no base; memory holds a few modules at a time.
    `adapt compare` tells beforehand how alike the adapters are, and what their merge would be.

    \b
    Examples:
      adapt merge legal-qa summarize --weights 0.7,0.3
      adapt merge legal-qa summarize tables --rank auto -o all-in-one
      adapt merge legal-qa summarize --weights 0.6,0.4 --bump minor
      adapt merge legal-qa summarize --method ties_svd -O density=0.3 --rank 16 -o both
      adapt merge ./out/legal-qa ./out/tables --weights 1,-1 -o ./difference
      adapt merge legal-qa summarize --tune examples.jsonl --base base-7b -o tuned
      adapt merge legal-qa summarize --tune contracts --test -o tuned
      adapt merge legal-qa summarize --test
      adapt merge --recipe merge.toml
    """
    if methods:
        _list_methods(session)
        return
    merged = session.opened.merge(adapters, **options)
    if merged.as_recorded is False and merged.adapter is not None:
        session.out.warn(
            f"the result is {merged.adapter.manifest.digest}, but the recipe records {merged.recorded_digest}: the "
            "inputs are the same, but CPUs, torch versions and thread counts change the last digits of the numbers"
        )
        session.out.hint("set OMP_NUM_THREADS=1 here and where the recipe was recorded to rule out threads")
    session.out.result(merged.to_json(), lambda: _say(session, merged))


def _say(session: Session, merged: Merged) -> None:
    out, result = session.out, merged.made.result
    if merged.tuning is not None:
        _say_tuned(session, merged, merged.tuning)
    if merged.added is None:
        out.line(f"merged into {merged.folder}")
    else:
        manifest = merged.added.build.manifest
        state = "merged" if merged.added.created else "already installed:"
        out.line(f"{state} {merged.added.build.full_name} {manifest.label}  {size_text(manifest.size_bytes)}")
        if merged.as_recorded:
            out.line(f"  {merged.recorded_digest}, as recorded")
    out.line(f"  = {merged.formula}")
    method = merged.recipe["method"]
    if method != "cat" or merged.recipe["options"]:
        out.line(f"  by {_method_text(merged.recipe)}")
    out.line(f"  {ranks_text(merged.ranks)}; {result.dtype}")
    worst = f", worst in {result.worst_module}: {result.worst_error:.2g}" if result.worst_error > 0 else ""
    distance = "relative error against the exact sum" if merged.is_sum else "distance from the plain sum"
    out.line(f"  {distance}: {result.relative_error:.2g}{worst}")
    if result.truncation_error is not None:
        out.line(f"  lost by the cut to this rank: {result.truncation_error:.2g}")
    tells_tests(session, merged.tests or ())
    for inner in merged.made.inner:
        out.line(f"  inner merge by {_method_text(inner.recipe)}: {inner.relative_error:.2g} from its plain sum")


def _method_text(recipe: Mapping[str, Any]) -> str:
    """Return the method and its options, such as `ties, density 0.5`."""
    return ", ".join([recipe["method"], *(f"{name} {value}" for name, value in recipe["options"].items())])


def _say_tuned(session: Session, merged: Merged, tuned: Tuned) -> None:
    """Print the losses of the base, of each adapter, of equal shares and of the found weights."""
    rows: list[tuple[str, float, float | None]] = [("the base alone", tuned.base_loss, None)]
    rows += [(f"{i.spec} alone", loss, None) for i, loss in zip(merged.parents, tuned.single_losses, strict=True)]
    rows.append(("equal shares", tuned.loss_before, tuned.drift_before))
    rows.append(("tuned weights", tuned.loss_after, tuned.drift_after))
    by_drift = tuned.drift_after is not None
    cells = [(name, f"{loss:.4f}", "" if drift is None else f"{drift:.4f}") for name, loss, drift in rows]
    columns = ("model", "loss", "drift")[: 2 + by_drift]
    session.out.table(columns, [row[: 2 + by_drift] for row in cells], right=columns[1:])
    what, asked = ("drifts", "prompts of the contracts") if by_drift else ("losses", "examples")
    other = f"the {what} on {f'{tuned.reported} others' if tuned.is_held_out else 'the same'}"
    session.out.note(f"tried {tuned.evaluations} sets of weights on {tuned.searched} {asked} and measured {other}")


def _list_methods(session: Session) -> None:
    """Every method with its options."""
    from adapterhub.api.weights import merge_methods

    methods = merge_methods()
    rows = [(m.name, m.summary, ", ".join(_option_text(o) for o in m.options)) for m in methods]
    session.out.result(
        [method.to_json() for method in methods], lambda: session.out.table(("method", "result", "options"), rows)
    )
    if not session.out.as_json:
        session.out.note("every method also takes --rank, --energy or --max-error; `adapt merge --help` has examples")


def _option_text(option: Option) -> str:
    """`density=0.5`, `majority=total|frequency` or `keep=int`: the default, the choices (it leads), or the type."""
    if option.choices:
        return f"{option.name}=" + "|".join(sorted(option.choices, key=lambda choice: choice != option.default))
    default = option.kind.removesuffix(" | None") if option.default is None else str(option.default).lower()
    return f"{option.name}={default}"
