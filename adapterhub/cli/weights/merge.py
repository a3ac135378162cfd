"""`adapt merge`: merge several adapters into one, exactly by default, and report the error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from adapterhub.api.steps.combining import DEFAULT_VERSION, description_from, ingredient, weights_from
from adapterhub.api.steps.merge_choice import CHOICE_FLAGS, choice_from
from adapterhub.api.steps.output_names import default_name
from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.options.params import BASE, Session, common, needing, places_option
from adapterhub.cli.weights.merge_options import choice_options, list_methods, named_option
from adapterhub.cli.weights.merge_result import SUMS, merge_to_folder, merge_to_library
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
"""The options as the user types them, by click's parameter names."""


@click.command()
@click.argument("adapters", nargs=-1, metavar="[SPEC|FOLDER...]", shell_complete=complete_spec_or_folder)
@click.option("--weights", metavar="W,W,...", help="One weight per adapter [default: equal shares that sum to 1].")
@click.option(
    "-o", "--output", metavar="NAME|DIR", help="Write to this name or `./folder` [default: the names, joined by `-`]."
)
@choice_options
@click.option("--base", type=BASE, help="Use this base for specs that name none.")
@click.option("--version", metavar="VERSION", help=f"Version of the new adapter [default: {DEFAULT_VERSION}].")
@click.option("--task", metavar="TASK", help="Task of the new adapter.")
@click.option("--description", metavar="TEXT", help="Describe the new adapter in one sentence.")
@click.option("--license", "licence", metavar="SPDX", help="Licence of the new adapter.")
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Merge as this TOML file says, which `adapt show --recipe` prints.",
)
@places_option("With --recipe: also look here for adapters that are not installed; may be repeated.")
@click.option("--offline", is_flag=True, help="With --recipe: use no network.")
@click.option("--force", is_flag=True, help="With --recipe: allow its name to be that of an installed adapter.")
@click.option("--analyze", is_flag=True, help="Merge nothing; compare the adapters and predict the merge.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    callback=needing("plot"),
    help="With --analyze: draw a heatmap.",
)
@click.option(
    "--tune",
    type=click.Path(path_type=Path),
    metavar="FILE",
    callback=needing("tune"),
    help="Search for the weights that answer these examples best (JSON Lines).",
)
@click.option(
    "--on",
    "on_base",
    type=BASE,
    metavar="BASE",
    help="With --tune: evaluate on this base [default: the adapters'].",
)
@click.option("--tune-budget", type=click.IntRange(min=1), metavar="N", help="With --tune: try at most N weight sets.")
@click.option("--methods", is_flag=True, help="List the merge methods and their options.")
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
    **choice: Any,
) -> None:
    """Merge adapters into one adapter: the weighted sum of their updates.

    The default method concatenates the factors, which is exact. Every merge measures, prints and records its distance
    to the exact sum, with the parents, weights and method. Needs no base; memory holds one module at a time.

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
    details = {"version": version, "task": task, "description": description, "license": licence}
    if recipe is not None:
        _check_unused("`--recipe` sets these", adapters=adapters, weights=weights, base=base, tune=tune, **choice)
        _check_unused("`--recipe` merges", analyze=analyze, plot=plot, on_base=on_base, tune_budget=tune_budget)
        from adapterhub.cli.weights.merge_recipe import merge_by_recipe

        merge_by_recipe(session, recipe, output=output, details=details, places=places, offline=offline, force=force)
        return
    _check_unused("only `--recipe` fetches adapters", places=places, offline=offline)
    _check_unused("only `--recipe` brings a name of its own", force=force)
    if tune is None:
        _check_unused("only `--tune` evaluates", on_base=on_base, tune_budget=tune_budget)
    if not adapters:
        raise UsageProblem("no adapters given", hint="`adapt merge legal-qa summarize -o both`, or `--recipe FILE`")
    numbers = weights_from(weights, adapters)
    choice["more"] = tuple(map(named_option, choice["more"]))
    chosen = choice_from(**choice, is_tuned=tune is not None)
    library = session.project_library
    ingredients = [ingredient(library, text, w, base) for text, w in zip(adapters, numbers, strict=True)]
    if analyze:
        _check_unused("`--analyze` merges nothing", output=output, tune=tune, **details, **choice | {"dtype": None})
        from adapterhub.cli.weights.compare import show_comparison

        show_comparison(session, ingredients, plot=plot, dtype=chosen.dtype or "float32")
        return
    _check_unused("only `--analyze` draws", plot=plot)
    from adapterhub.core.specs import names_folder
    from adapterhub.weights.recipes.toml.values import Step

    output = output or default_name([each.label for each in ingredients])

    about = None if names_folder(output) else description_from(output, details)  # reports a bad name before any work
    extra: dict[str, Any] = {}
    if tune is not None:
        _check_unused("`--tune` finds the weights", weights=weights)
        if chosen.method not in SUMS:
            session.out.warn(
                f"`--tune` searches weights for the plain sum, but `{chosen.method}` computes another result"
            )
        from adapterhub.api.steps.tuning import tuned
        from adapterhub.cli.weights.tune import say_tuned

        seed = choice["seed"] or 0
        found = tuned(session, library, ingredients, tune, on_base, budget=tune_budget, seed=seed, bars=session.out)
        if not session.out.as_json:
            say_tuned(session, ingredients, found.result)
        ingredients, extra = list(found.ingredients), {"tuning": found.document}
        if about is not None:
            about = replace(about, metrics=found.metrics)
    combination = Step(
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


def _check_unused(why: str, **options: Any) -> None:
    """Raise `UsageProblem` if any of `options` was given."""
    given = [FLAGS[name] for name, value in options.items() if value is not None and value is not False and value != ()]
    if given:
        raise UsageProblem(f"{why}; drop {', '.join(given)}")
