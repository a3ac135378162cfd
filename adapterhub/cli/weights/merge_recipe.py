"""`adapt merge --recipe`: run the merge that a file describes; the same bytes give the same manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.api.steps.recipes import plan_recipe
from adapterhub.cli.weights.merge_result import merge_to_folder, merge_to_library

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adapterhub.cli.options.params import Session


def merge_by_recipe(
    session: Session,
    path: Path,
    *,
    output: str | None,
    details: Mapping[str, str | None],
    places: Sequence[Path],
    offline: bool,
    force: bool = False,
) -> None:
    """Merge the recipe's inputs and compare the result with the recorded one; options as `plan_recipe`."""
    plan = plan_recipe(
        session, path, output=output, details=details, places=places, offline=offline, force=force, bars=session.out
    )
    if isinstance(plan.target, Path):
        merge_to_folder(session, plan.combination, plan.target)
    else:
        merge_to_library(session, session.library, plan.combination, plan.target, expected=plan.expected)
