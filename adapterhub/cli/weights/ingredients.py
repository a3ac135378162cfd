"""The adapters that a command puts together, as typed: `SPEC|FOLDER`, and one weight each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.core.errors import UsageProblem
from adapterhub.distribution.choosing import find_installed

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.library.library import Library
    from adapterhub.weights.recipes.combination import Ingredient


def weights_from(text: str | None, count: int) -> list[float]:
    """The numbers of `--weights`, one for each of `count` adapters; equal shares that sum to 1 without it.

    Raises:
        UsageProblem: no numbers, or another number of them.
    """
    if text is None:
        return [1 / count] * count
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageProblem(f"--weights `{text}`: expected numbers separated by commas, such as `0.7,0.3`") from None
    if len(numbers) != count:
        raise UsageProblem(f"--weights gives {len(numbers)} numbers for {count} adapters")
    return numbers


def ingredient(library: Library, text: str, weight: float, base: BaseSpec | None) -> Ingredient:
    """The adapter that `text` names: a folder where it begins as a path does, else an installed one.

    Raises:
        AdapterNotFound, NoCompatibleRelease, SpecError: nothing installed answers to it.
    """
    from adapterhub.core.specs import AdapterSpec, names_folder
    from adapterhub.library.upkeep.damage import ensure_manifest_unchanged
    from adapterhub.projects.session import wanted_from
    from adapterhub.weights.recipes.combination import Ingredient

    if names_folder(text):
        return Ingredient(folder=Path(text).expanduser(), label=text, weight=weight)
    spec = AdapterSpec.parse(text)
    build, _ = find_installed(library, spec, wanted=wanted_from(library, spec, base))
    ensure_manifest_unchanged(library, build)
    label = f"{build.full_name}=={build.manifest.version}"
    return Ingredient(folder=build.folder, label=label, weight=weight, base=build.base, digest=build.manifest.digest)
