"""The adapters that a command combines: each `SPEC|FOLDER` with its weight."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.core.errors import UsageProblem
from adapterhub.core.specs import AdapterSpec, BaseSpec, names_folder
from adapterhub.distribution.choosing import find_installed
from adapterhub.library.library import Library

if TYPE_CHECKING:
    from adapterhub.weights.recipes.combination import Ingredient


def weights_from(text: str | None, count: int) -> list[float]:
    """The weights of `--weights`, one for each of `count` adapters; by default equal shares that sum to 1.

    Raises:
        UsageProblem: the text is not a list of numbers, or their count differs.
    """
    if text is None:
        return [1 / count] * count
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageProblem(f"--weights `{text}`: expected numbers separated by commas, such as `0.7,0.3`") from None
    if len(numbers) != count:
        example = ",".join([f"{1 / count:.2g}"] * count)
        raise UsageProblem(
            f"{len(numbers)} weight{'s' * (len(numbers) != 1)} for {count} adapter{'s' * (count != 1)}",
            hint=f"separate weights with commas: `--weights {example}`",
        )
    return numbers


def ingredient(library: Library, text: str, weight: float, base: BaseSpec | None) -> Ingredient:
    """The adapter that `text` names: a folder if it looks like a path, else an installed adapter.

    Raises:
        AdapterNotFound, NoCompatibleRelease, SpecError: no installed adapter matches.
    """
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
