"""The merge that a recipe describes: from the same bytes to the same manifest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.api.steps.combining import description_from
from adapterhub.core.arguments import path_of
from adapterhub.core.errors import Conflict, UsageProblem, shown
from adapterhub.projects.session import sources_from

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adapterhub.core.specs import AdapterSpec
    from adapterhub.library.intake.description import Description
    from adapterhub.library.library import Library
    from adapterhub.library.transfer import Source
    from adapterhub.projects.reporting import Bars
    from adapterhub.projects.session import Session
    from adapterhub.weights.recipes.combination import Combination


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipePlan:
    """A recipe whose adapters were found: what to merge, where to, and the digest that it recorded of the result."""

    combination: Combination
    target: Description | Path
    expected: str | None


def plan_recipe(
    session: Session,
    path: Path,
    *,
    output: str | None,
    details: Mapping[str, str | None],
    places: Sequence[Path],
    offline: bool,
    force: bool = False,
    bars: Bars,
) -> RecipePlan:
    """Find the recipe's inputs; those that are not installed come from `places` and servers.

    `output` and `details` replace the recipe's own values; the result then differs from the recorded one. `force`
    allows the recipe's name for the result although an installed adapter has it.

    Raises:
        Conflict: an installed adapter already has the name that the recipe gives.
        Malformed, NotFound: the file is not a recipe, or does not exist.
        DigestMismatch, AdapterNotFound, BaseMismatch: an input differs from the recipe's, or is missing.
    """
    from adapterhub.core.specs import names_folder
    from adapterhub.weights.recipes.toml import read_recipe

    recipe = read_recipe(path)
    if not output and not recipe.name:
        raise UsageProblem("the recipe has no name for its result", hint="give one with `-o NAME`")
    own: dict[str, str | None] = {
        "version": recipe.version,
        "task": recipe.task,
        "description": recipe.description or None,
        "license": recipe.license,
    }
    words = own | {key: text for key, text in details.items() if text is not None}
    target = output or str(recipe.name)
    about = None if names_folder(target) else description_from(target, words)
    from adapterhub.weights.recipes.parents import combination_of

    library, disk = session.library, sources_from(session, tuple(places))
    if about is not None and output is None and not force:
        _check_name_is_free(library, path, about, recipe.digest)

    def sources_for(spec: AdapterSpec) -> list[Source]:
        return disk if offline else [*disk, *session.sources_of(spec, None, token=None)]

    combination, warnings = combination_of(library, recipe, path.parent, sources_for, bars.progress)
    for warning in warnings:
        session.out.warn(warning)
    if about is None:
        return RecipePlan(combination=combination, target=path_of(target), expected=None)
    expected = recipe.digest if about.name == recipe.name and words == own else None
    return RecipePlan(combination=combination, target=replace(about, metrics=recipe.metrics), expected=expected)


def _check_name_is_free(library: Library, path: Path, about: Description, digest: str | None) -> None:
    """Raise `Conflict` if the recipe's name for its result is that of another installed adapter.

    A stranger's recipe must not change the meaning of a name that the user already has.
    """
    from adapterhub.core.specs import version_of

    named = library.builds_named(about.name)
    taken = [build for build in named if build.manifest.digest != digest]
    # A merge of this version may be an earlier run of this recipe; `Library.add` refuses it if the bytes differ.
    same = (one for one in named if version_of(one.manifest.version) == version_of(about.version))
    is_again = any(one.manifest.recipe.get("inputs") for one in same)
    if not taken or is_again:
        return
    there = ", ".join(f"`{build.full_name}` {build.manifest.label}" for build in taken[:3])
    raise Conflict(
        f"the recipe `{shown(str(path), 200)}` names its result `{about.name}` {about.version}, but {there} is "
        "installed, and the name would then mean the merge. Nothing was changed",
        hint=f"`-o NAME` gives the result another name; `--force` keeps the name `{about.name}`",
    )
