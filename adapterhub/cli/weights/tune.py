"""What `adapt merge --tune` found, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.cli.options.params import Session
    from adapterhub.inference.tuning import Tuned
    from adapterhub.weights.recipes.combination import Ingredient


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
