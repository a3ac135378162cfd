"""`adapt merge`: several adapters become one, exactly by default, with the error said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.options.output_names import default_name
from adapterhub.cli.options.params import BASE, Session, common, needing, places_option
from adapterhub.cli.weights.merge_options import CHOICE_FLAGS, choice_from, choice_options, list_methods
from adapterhub.cli.weights.merge_result import (
    DEFAULT_VERSION,
    SUMS,
    description_from,
    merge_to_folder,
    merge_to_library,
)
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec

FLAGS: Final = {
    **CHOICE_FLAGS,
    "adapters": "the adapters",
    **{name: f"--{name}" for name in ("weights", "output", "base", "tune", "analyze", "plot", "offline", "force")},
    **{name: f"--{name}" for name in ("version", "task", "description", "license")},
    "places": "--from",
    "on_base": "--on",
    "tune_budget": "--tune-budget",
}
"""Options as they are typed, by the names under which click passes them."""


@click.command()
@click.argument("adapters", nargs=-1, metavar="[SPEC|FOLDER...]", shell_complete=complete_spec_or_folder)
@click.option("--weights", metavar="W,W,...", help="One number per adapter [default: equal shares that sum to 1].")
@click.option(
    "-o", "--output", metavar="NAME|DIR", help="Name of the new adapter [default: theirs, joined], or `./folder`."
)
@choice_options
@click.option("--base", type=BASE, help="The base, where the specs name none.")
@click.option("--version", metavar="VERSION", help=f"Version of the new adapter [default: {DEFAULT_VERSION}].")
@click.option("--task", metavar="TASK", help="Task of the new adapter.")
@click.option("--description", metavar="TEXT", help="One sentence for lists and search.")
@click.option("--license", "licence", metavar="SPDX", help="Licence of the new adapter.")
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Do what this TOML says, as `adapt show --recipe` prints it.",
)
@places_option("With --recipe: where to look for adapters that are not installed; may be repeated.")
@click.option("--offline", is_flag=True, help="With --recipe: ask no server for adapters that are not installed.")
@click.option("--force", is_flag=True, help="With --recipe: its name may be that of an installed adapter.")
@click.option("--analyze", is_flag=True, help="Merge nothing; show how alike the adapters are.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    callback=needing("plot"),
    help="With --analyze: draw it as well.",
)
@click.option(
    "--tune",
    type=click.Path(path_type=Path),
    metavar="FILE",
    callback=needing("tune"),
    help="Find the weights that answer these examples best (JSON Lines).",
)
@click.option(
    "--on", "on_base", type=BASE, metavar="BASE", help="With --tune: the base to try them on [default: theirs]."
)
@click.option("--tune-budget", type=click.IntRange(min=1), metavar="N", help="With --tune: how many weights to try.")
@click.option("--methods", is_flag=True, help="List the methods with their options.")
@common
def merge(
    session: Session,
    adapters: tuple[str, ...],
    weights: str | None,
    output: str | None,
    base: BaseSpec | None,
    version: str | None,
    task: str | None,
    description: str | None,
    licence: str | None,
    recipe: Path | None,
    places: tuple[Path, ...],
    offline: bool,
    force: bool,
    analyze: bool,
    plot: Path | None,
    tune: Path | None,
    on_base: BaseSpec | None,
    tune_budget: int | None,
    methods: bool,
    **choice: Any,  # noqa: ANN401 - what `choice_options` adds
) -> None:
    """Merge adapters into one: the weighted sum of their updates.

    The default concatenates the factors, which is exact. The distance to the exact sum is always measured, printed and
    recorded, with the parents, the weights and the method. The base is not needed; memory is that of one module.

    \b
    Examples:
      adapt merge legal-qa summarize --weights 0.7,0.3
      adapt merge legal-qa summarize tables --rank auto -o all-in-one
      adapt merge legal-qa summarize --method ties_svd --density 0.3 --rank 16 -o both
      adapt merge ./out/legal-qa ./out/tables --weights 1,-1 -o ./difference
      adapt merge legal-qa summarize --tune examples.jsonl --on base-7b -o tuned
      adapt merge legal-qa summarize --analyze
      adapt merge --recipe merge.toml
    """
    if methods:
        list_methods(session)
        return
    said = {"version": version, "task": task, "description": description, "license": licence}
    if recipe is not None:
        _refuse("--recipe says everything", adapters=adapters, weights=weights, base=base, tune=tune, **choice)
        _refuse("--recipe merges", analyze=analyze, plot=plot, on_base=on_base, tune_budget=tune_budget)
        from adapterhub.cli.weights.merge_recipe import merge_by_recipe

        merge_by_recipe(session, recipe, output=output, said=said, places=places, offline=offline, force=force)
        return
    _refuse("without --recipe there is nothing to fetch", places=places, offline=offline)
    _refuse("without --recipe the name is your own", force=force)
    if tune is None:
        _refuse("without --tune nothing is tried", on_base=on_base, tune_budget=tune_budget)
    if not adapters:
        raise UsageProblem("no adapters given", hint="`adapt merge legal-qa summarize -o both`, or `--recipe FILE`")
    from adapterhub.cli.weights.ingredients import ingredient, weights_from

    numbers = weights_from(weights, len(adapters))
    chosen = choice_from(**choice, is_tuned=tune is not None)
    library = session.project_library
    ingredients = [ingredient(library, text, w, base) for text, w in zip(adapters, numbers, strict=True)]
    if analyze:
        _refuse("--analyze merges nothing", output=output, tune=tune, **said, **choice | {"dtype": None})
        from adapterhub.cli.weights.compare import show_comparison

        show_comparison(session, ingredients, plot=plot, dtype=chosen.dtype or "float32")
        return
    _refuse("without --analyze nothing is drawn", plot=plot)
    from adapterhub.core.specs import names_folder
    from adapterhub.weights.recipes.combination import Combination

    output = output or default_name([each.label for each in ingredients])

    about = None if names_folder(output) else description_from(output, said)  # a wrong name is told before any work
    extra: dict[str, Any] = {}
    if tune is not None:
        _refuse("--tune finds the weights", weights=weights)
        if chosen.method not in SUMS:
            session.out.warn(f"the weights are tried on the plain sum; `{chosen.method}` makes something else of them")
        from adapterhub.cli.weights.tune import tuned

        found = tuned(session, library, ingredients, tune, on_base, budget=tune_budget, seed=choice["seed"] or 0)
        ingredients, extra = list(found.ingredients), {"tuning": found.document}
        if about is not None:
            about = replace(about, metrics=found.metrics)
    combination = Combination(
        inputs=tuple(ingredients),
        method=chosen.method,
        options=chosen.options,
        dtype=chosen.dtype,
        seed=chosen.seed,
    )
    if about is None:
        merge_to_folder(session, combination, Path(output).expanduser(), extra)
    else:
        merge_to_library(session, library, combination, about, extra)


def _refuse(why: str, **options: Any) -> None:  # noqa: ANN401 - the options of the command
    """Refuse those of `options` that were given."""
    given = [FLAGS[name] for name, value in options.items() if value is not None and value is not False and value != ()]
    if given:
        raise UsageProblem(f"{why}; drop {', '.join(given)}")
