"""`adapt merge --recipe`: run the merge that a file describes; the same bytes give the same manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.api.steps.combining import ensure_named
from adapterhub.api.steps.recipes import plan_recipe
from adapterhub.cli.weights.merge_result import merge_to

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adapterhub.cli.options.params import Session
    from adapterhub.core.specs import BaseSpec
    from adapterhub.library.intake.clashes import Bump
    from adapterhub.trust.signing.keys import SigningKey


def merge_by_recipe(
    session: Session,
    path: Path,
    *,
    output: str | None,
    details: Mapping[str, str | None],
    places: Sequence[Path],
    offline: bool,
    force: bool = False,
    bump: Bump | None = None,
    variant: bool = False,
    tests_on: tuple[BaseSpec | None] | None = None,
    signer: SigningKey | None = None,
) -> None:
    """Merge the recipe's inputs and compare the result with the recorded one; options as `plan_recipe`, `combine`."""
    plan = plan_recipe(
        session, path, output=output, details=details, places=places, offline=offline, force=force, bars=session.out
    )
    if isinstance(plan.target, Path):
        ensure_named(plan.target, bump, variant=variant)
    merge_to(
        session,
        session.library,
        plan.combination,
        plan.target,
        expected=plan.expected if bump is None else None,
        bump=bump,
        variant=variant,
        tests_on=tests_on,
        signer=signer,
    )
