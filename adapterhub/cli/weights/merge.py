"""`adapt merge`: merge several adapters into one, exactly by default, and report the error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from adapterhub.api.steps.combining import (
    DEFAULT_VERSION,
    default_name,
    description_from,
    ensure_named,
    ingredient,
    weights_from,
)
from adapterhub.api.steps.merge_choice import CHOICE_FLAGS, choice_from
from adapterhub.cli.completion.completing import complete_spec_or_folder
from adapterhub.cli.options.kinds import kind_of
from adapterhub.cli.options.naming import naming_options
from adapterhub.cli.options.params import BASE, Session, common, needing, places_option
from adapterhub.cli.weights.merge_options import choice_options, list_methods, named_option
from adapterhub.cli.weights.merge_result import merge_to
from adapterhub.core.arguments import Count, path_of
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.library.intake.clashes import Bump
    from adapterhub.trust.signing.keys import SigningKey

FLAGS: Final = {
    **CHOICE_FLAGS,
    "test": "--test",
    "statement": "--statement",
    "adapters": "the adapters",
    **{name: f"--{name}" for name in ("weights", "output", "base", "tune", "analyze", "plot", "offline", "force")},
    **{name: f"--{name}" for name in ("version", "task", "description", "license")},
    "places": "--from",
    **{name: f"--{name}" for name in ("bump", "variant")},
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
@naming_options
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
    metavar="FILE|contracts",
    callback=needing("tune"),
    help="Search for the weights that answer these examples (JSON Lines) or the parents' contracts best.",
)
@click.option(
    "--test",
    is_flag=True,
    help="Write the merge only if it keeps the `never` and `leave_alone` lines of all parents' contracts.",
)
@click.option(
    "--on",
    "on_base",
    type=BASE,
    metavar="BASE",
    help="With --tune or --test: ask on this base [default: the adapters'].",
)
@click.option("--tune-budget", type=kind_of(Count), metavar="N", help="With --tune: try at most N weight sets.")
@click.option(
    "--statement",
    is_flag=True,
    help="Sign how it was made, with your only key or ADAPTERHUB_KEY; see `adapt sign --statement`.",
)
@click.option("--methods", is_flag=True, help="List the merge methods and their options.")
@common
def merge(
    session: Session,
    adapters: tuple[str, ...],
    weights: str | None,
    output: str | None,
    base: BaseSpec | None,
    version: str | None,
    bump: Bump | None,
    variant: bool,
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
    test: bool,
    on_base: BaseSpec | None,
    tune_budget: int | None,
    statement: bool,
    methods: bool,
    **choice: Any,
) -> None:
    """Merge adapters into one adapter: the weighted sum of their updates.

    The default method concatenates the factors, which is exact. Every merge measures, prints and records its distance
    to the exact sum, with the parents, weights and method. Needs no base; memory holds a few modules at a time.

    \b
    Examples:
      adapt merge legal-qa summarize --weights 0.7,0.3
      adapt merge legal-qa summarize tables --rank auto -o all-in-one
      adapt merge legal-qa summarize --weights 0.6,0.4 --bump minor
      adapt merge legal-qa summarize --method ties_svd --density 0.3 --rank 16 -o both
      adapt merge ./out/legal-qa ./out/tables --weights 1,-1 -o ./difference
      adapt merge legal-qa summarize --tune examples.jsonl --on base-7b -o tuned
      adapt merge legal-qa summarize --tune contracts --test -o tuned
      adapt merge legal-qa summarize --test
      adapt merge legal-qa summarize --statement
      adapt merge legal-qa summarize --analyze
      adapt merge --recipe merge.toml
    """
    if methods:
        list_methods(session)
        return
    from adapterhub.library.intake.clashes import check_naming

    check_naming(bump, variant=variant, version=version)
    details = {"version": version, "task": task, "description": description, "license": licence}
    if recipe is not None:
        _check_unused("`--recipe` sets these", adapters=adapters, weights=weights, base=base, tune=tune, **choice)
        unused = {"analyze": analyze, "plot": plot, "on_base": None if test else on_base, "tune_budget": tune_budget}
        _check_unused("`--recipe` merges", **unused)
        from adapterhub.cli.weights.merge_recipe import merge_by_recipe

        merge_by_recipe(
            session,
            recipe,
            output=output,
            details=details,
            places=places,
            offline=offline,
            force=force,
            bump=bump,
            variant=variant,
            tests_on=(on_base,) if test else None,
            signer=_signer(session) if statement else None,
        )
        return
    _check_unused("only `--recipe` fetches adapters", places=places, offline=offline)
    _check_unused("only `--recipe` brings a name of its own", force=force)
    if tune is None:
        _check_unused("only `--tune` evaluates", on_base=None if test else on_base, tune_budget=tune_budget)
    if not adapters:
        raise UsageProblem("no adapters given", hint="`adapt merge legal-qa summarize -o both`, or `--recipe FILE`")
    numbers = weights_from(weights, adapters)
    choice["more"] = tuple(map(named_option, choice["more"]))
    chosen = choice_from(**choice, is_tuned=tune is not None)
    library = session.project_library
    ingredients = [ingredient(library, text, w, base) for text, w in zip(adapters, numbers, strict=True)]
    if analyze:
        _check_unused(
            "`--analyze` merges nothing",
            output=output,
            tune=tune,
            test=test,
            statement=statement,
            bump=bump,
            variant=variant,
            **details,
            **choice | {"dtype": None},
        )
        from adapterhub.cli.weights.compare import show_comparison

        show_comparison(session, ingredients, plot=plot, dtype=chosen.dtype or "float32")
        return
    _check_unused("only `--analyze` draws", plot=plot)
    from adapterhub.core.specs import names_folder

    output = output or default_name([each.label for each in ingredients])

    about = None if names_folder(output) else description_from(output, details)  # reports a bad name before any work
    ensure_named(about, bump, variant=variant)
    signer = _signer(session) if statement else None  # before any work
    extra: dict[str, Any] = {}
    if tune is not None:
        _check_unused("`--tune` finds the weights", weights=weights)
        from adapterhub.cli.weights.tune import tune_weights

        if about is not None and bump is None:
            from adapterhub.weights.recipes.combination import ensure_room

            ensure_room(library, chosen.step(ingredients), about, variant=variant, tuned=True)
        found = tune_weights(
            session, library, chosen, ingredients, tune, on_base, budget=tune_budget, seed=choice["seed"] or 0
        )
        ingredients, extra = list(found.ingredients), {"tuning": found.document}
        if about is not None:
            about = replace(about, metrics=found.metrics)
    combination = chosen.step(ingredients)
    merge_to(
        session,
        library,
        combination,
        about or path_of(output),
        extra,
        bump=bump,
        variant=variant,
        tests_on=(on_base,) if test else None,
        signer=signer,
    )


def _signer(session: Session) -> SigningKey:
    """The key for a statement; its password is typed on a terminal."""
    from adapterhub.api.steps.keys import signing_key

    return signing_key(session, None)


def _check_unused(why: str, **options: Any) -> None:
    """Raise `UsageProblem` if any of `options` was given."""
    given = [FLAGS[name] for name, value in options.items() if value is not None and value is not False and value != ()]
    if given:
        raise UsageProblem(f"{why}; drop {', '.join(given)}")
