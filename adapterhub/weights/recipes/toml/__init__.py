"""Recipes of merges as TOML. The reference page is `docs/reference/recipe.md`.

A recipe is somebody else's file: it names adapters, a method and numbers, and nothing in it is run. Printing is the
inverse of reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from adapterhub.core.disk.files import read_plain
from adapterhub.core.errors import NotFound, shown
from adapterhub.formats.documents import toml_of
from adapterhub.formats.manifest import Manifest
from adapterhub.weights.recipes.toml._reading import FORMAT, malformed, recipe_from, step_from
from adapterhub.weights.recipes.toml.values import MAX_DEPTH, MEASURED_PREFIX, Inner, Leaf, Recipe, Step

__all__ = ["parse_recipe", "read_recipe", "recipe_of", "step_from", "step_table", "to_toml"]

LIMIT_BYTES: Final = 256 << 10


# ---------------------------------------------------------------- reading
def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file.

    Raises:
        NotFound: no plain file is there.
        Malformed: it is no recipe; every problem with its path.
    """
    try:
        raw = read_plain(path, LIMIT_BYTES)
    except OSError as error:
        raise NotFound(
            f"`{shown(str(path), 200)}`: {error.strerror}", hint="`adapt show NAME --recipe` prints that of a merge"
        ) from None
    return parse_recipe(raw, str(path))


def parse_recipe(raw: bytes, where: str = "recipe") -> Recipe:
    """The recipe that a TOML document is.

    Raises:
        Malformed: it is none; every problem with its path.
    """
    if len(raw) > LIMIT_BYTES:
        raise malformed(where, [f"more than the {LIMIT_BYTES:,} bytes that a recipe may have"])
    try:
        document = toml_of(raw)
    except ValueError as error:
        raise malformed(where, [str(error)]) from None
    return recipe_from(document, where)


def recipe_of(manifest: Manifest) -> Recipe:
    """The recipe that gives this manifest again.

    Raises:
        NotFound: it is no merge.
        Malformed: its recipe is not one that this version can run.
    """
    if not manifest.recipe.get("inputs"):
        raise NotFound(f"`{manifest.name}` is no merge: it has no recipe", hint=f"`adapt show {manifest.name}`")
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
    return recipe_from(
        {k: v for k, v in (document | recipe).items() if v is not None}, f"the recipe of `{manifest.name}`"
    )


def _seed_beside_options(step: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """The recipe of a manifest, which keeps the seed among the options, as a recipe file writes it."""
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
    return {key: value for key, value in step.items() if value is not None}


# ---------------------------------------------------------------- printing
def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML: reading it gives it back, and no character of it disturbs a terminal."""
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
    text = tomli_w.dumps(_without_none(top))
    # outside of quoted text TOML has printable characters only, and inside each may be written by its number
    return "".join(c if c.isprintable() or c == "\n" else f"\\U{ord(c):08X}" for c in text)


def step_table(step: Step) -> dict[str, Any]:
    """A merge as the table that a recipe has for it; nothing that is None."""
    return _without_none(
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
    return _without_none(
        {
            "spec": item.spec,
            "weight": item.weight,
            "digest": item.digest,
            "sha256": item.sha256,
            "config_sha256": item.config_sha256,
        }
    )


def _without_none(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}
