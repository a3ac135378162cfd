"""Recipes of merges as TOML. The reference page is `docs/reference/recipe.md`.

A recipe may come from anyone. It contains names, a method and numbers, and nothing executable. Printing is the inverse
of reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from adapterhub.core.disk.nearest import read_typed
from adapterhub.core.errors import NotFound
from adapterhub.formats.documents import toml_of
from adapterhub.formats.manifest import Manifest
from adapterhub.weights.recipes.toml._reading import FORMAT, malformed, recipe_from, step_from
from adapterhub.weights.recipes.toml.values import MAX_DEPTH, MEASURED_PREFIX, Inner, Leaf, Recipe, Step, without_none

__all__ = ["parse_recipe", "read_recipe", "recipe_of", "step_from", "step_table", "to_toml"]

LIMIT_BYTES: Final = 256 << 10


# ---------------------------------------------------------------- reading
def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file.

    Raises:
        NotFound: no such plain file.
        Malformed: not a recipe; lists every problem with its path.
    """
    raw = read_typed(path, LIMIT_BYTES, hint="`adapt show NAME --recipe` prints the recipe of a merge")
    return parse_recipe(raw, str(path))


def parse_recipe(raw: bytes, where: str = "recipe") -> Recipe:
    """The recipe in a TOML document.

    Raises:
        Malformed: not a recipe; lists every problem with its path.
    """
    if len(raw) > LIMIT_BYTES:
        raise malformed(where, [f"larger than the limit of {LIMIT_BYTES:,} bytes"])
    try:
        document = toml_of(raw)
    except ValueError as error:
        raise malformed(where, [str(error)]) from None
    return recipe_from(document, where)


def recipe_of(manifest: Manifest) -> Recipe:
    """The recipe that reproduces this manifest.

    Raises:
        NotFound: the adapter is not a merge.
        Malformed: this version cannot run its recipe.
    """
    if not manifest.recipe.get("inputs"):
        raise NotFound(f"`{manifest.name}` is not a merge, so it has no recipe", hint=f"`adapt show {manifest.name}`")
    fingerprint = manifest.base.fingerprint
    document: dict[str, Any] = {
        "format": FORMAT,
        "name": manifest.name,
        "version": manifest.version,
        "task": manifest.task,
        "description": manifest.description or None,
        "license": manifest.license,
        "base": fingerprint.weights if fingerprint else None,
        "digest": manifest.digest,
        "metrics": {k: v for k, v in manifest.metrics.items() if not k.startswith(MEASURED_PREFIX)} or None,
    }
    recipe = _seed_beside_options(manifest.recipe, MAX_DEPTH + 1)
    return recipe_from(without_none(document | recipe), f"the recipe of `{manifest.name}`")


def _seed_beside_options(step: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """The recipe of a manifest, with the seed moved from the options to the place it has in a recipe file."""
    step = dict(step)
    options = step.get("options")
    if isinstance(options, dict):
        options = dict(options)
        if "seed" in options:
            step["seed"] = options.pop("seed")
        step["options"] = options or None
    if isinstance(step.get("inputs"), list) and depth:
        step["inputs"] = [
            item | {"merge": _seed_beside_options(item["merge"], depth - 1)}
            if isinstance(item, dict) and isinstance(item.get("merge"), dict)
            else item
            for item in step["inputs"]
        ]
    return without_none(step)


# ---------------------------------------------------------------- printing
def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML, which parses to the same recipe and is safe to print on a terminal."""
    import tomli_w

    top: dict[str, Any] = {
        "format": FORMAT,
        "name": recipe.name,
        "version": recipe.version,
        "task": recipe.task,
        "description": recipe.description or None,
        "license": recipe.license,
        "base": recipe.base,
        "digest": recipe.digest,
        **step_table(recipe.step),
        "metrics": dict(recipe.metrics) or None,
    }
    text = tomli_w.dumps(without_none(top))
    # Unprintable characters occur in quoted text only, where TOML accepts their code points.
    return "".join(c if c.isprintable() or c == "\n" else f"\\U{ord(c):08X}" for c in text)


def step_table(step: Step) -> dict[str, Any]:
    """A merge as a table of a recipe, without None values."""
    return without_none(
        {
            "method": step.method,
            "dtype": step.dtype,
            "seed": step.seed,
            "options": dict(step.options) or None,
            "inputs": [_input_table(item) for item in step.inputs],
        }
    )


def _input_table(item: Leaf | Inner) -> dict[str, Any]:
    if isinstance(item, Inner):
        return {"weight": item.weight, "merge": step_table(item.step)}
    return without_none(
        {
            "spec": item.spec,
            "weight": item.weight,
            "digest": item.digest,
            "sha256": item.sha256,
            "config_sha256": item.config_sha256,
        }
    )
