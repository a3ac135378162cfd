"""`adapt merge --tune`: search the weights and show what was found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.weights.catalogue import SUMS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adapterhub.api.steps.merge_choice import Choice
    from adapterhub.api.steps.tuning import TunedMerge
    from adapterhub.cli.options.params import Session
    from adapterhub.core.specs import BaseSpec
    from adapterhub.inference.tuning import Tuned
    from adapterhub.library.library import Library
    from adapterhub.weights.recipes.combination import Ingredient


def tune_weights(
    session: Session,
    library: Library,
    chosen: Choice,
    ingredients: Sequence[Ingredient],
    examples: Path,
    on_base: BaseSpec | None,
    *,
    budget: int | None,
    seed: int,
) -> TunedMerge:
    """Search the weights as `tuned` does, and print what was found unless the output is JSON."""
    if chosen.method not in SUMS:
        session.out.warn(f"`--tune` searches weights for the plain sum, but `{chosen.method}` computes another result")
    from adapterhub.api.steps.tuning import tuned

    found = tuned(session, library, ingredients, examples, on_base, budget=budget, seed=seed, bars=session.out)
    if not session.out.as_json:
        say_tuned(session, ingredients, found.result)
    return found


def say_tuned(session: Session, ingredients: Sequence[Ingredient], result: Tuned) -> None:
    """The losses of the base, of each adapter alone, of equal shares and of what was found."""
    rows = [("the base alone", result.base_loss)]
    rows += [(f"{i.label} alone", loss) for i, loss in zip(ingredients, result.single_losses, strict=True)]
    rows += [("equal shares", result.loss_before), ("tuned weights", result.loss_after)]
    session.out.table(("model", "loss"), [(name, f"{loss:.4f}") for name, loss in rows], right=("loss",))
    other = (
        f"measured the losses on {result.reported} others" if result.is_held_out else "measured the losses on the same"
    )
    session.out.note(f"tried {result.evaluations} sets of weights on {result.searched} examples and {other}")
