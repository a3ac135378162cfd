"""From a parsed document to a `Recipe`: strict, with every problem and its path."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from adapterhub.core.digests import parse_digest
from adapterhub.core.errors import Malformed, UsageProblem, problem_list, shown
from adapterhub.core.specs import AdapterSpec, names_folder, parse_name, parse_version
from adapterhub.formats.documents import DocumentReader
from adapterhub.weights.catalogue import Method, describe, names
from adapterhub.weights.recipes.toml.values import (
    DTYPES,
    MAX_DEPTH,
    MAX_INPUTS,
    MAX_WHOLE,
    MEASURED_PREFIX,
    Inner,
    Leaf,
    Recipe,
    Step,
    converted,
    default_method,
    options_of,
)

FORMAT: Final = 1


def recipe_from(document: Mapping[str, Any], where: str) -> Recipe:
    """The recipe that a parsed document is.

    Raises:
        Malformed: it is none; every problem with its path.
    """
    reader = _Reader()
    recipe = reader.recipe(document)
    if reader.problems or recipe is None:
        raise malformed(where, reader.lines)
    return recipe


def step_from(holder: Mapping[str, Any], path: str, *, inputs_by: str = "spec") -> tuple[Step, list[tuple[str, str]]]:
    """The merge in a table of a project or a lock, and `(path, text)` of every problem with it.

    `path` stands before each place; keys beside those of a merge are left to the caller. With `inputs_by="adapter"` its
    inputs name adapters of a project by that key.
    """
    reader = _Reader(inputs_by=inputs_by)
    return reader.step(holder, path, 0), reader.problems


def malformed(where: str, problems: Sequence[str]) -> Malformed:
    """The refusal of a recipe for these problems."""
    return Malformed(problem_list(f"{shown(where, 200)}: not a usable recipe", problems))


_STEP_KEYS: Final = ("method", "dtype", "seed", "options", "inputs")
_TOP_KEYS: Final = (
    "format", "name", "version", "task", "description", "license", "base", "digest", *_STEP_KEYS, "metrics",
)  # fmt: skip
_INPUT_KEYS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "spec": ("spec", "weight", "digest", "sha256", "config_sha256", "merge"),
        "adapter": ("adapter", "weight", "merge"),
    }
)
"""By the key that names an adapter: `spec` in a recipe, `adapter` in a project, which locks digests elsewhere."""


class _Reader(DocumentReader):
    """Reads a parsed document into a Recipe and gathers every problem on the way."""

    def __init__(self, *, inputs_by: str = "spec") -> None:
        super().__init__()
        self.named = inputs_by
        self.inputs = 0

    def recipe(self, top: Mapping[str, Any]) -> Recipe | None:
        found = self.take(top, "format", int, "")
        if found != FORMAT:
            if found is not None or "format" not in top:
                self.say("format", f"expected {FORMAT}, got {'nothing' if found is None else 'another number'}")
            return None
        self.known(top, _TOP_KEYS, "")
        step = self.step(top, "", 0)
        return Recipe(
            step=step,
            name=self.checked(top, "name", parse_name),
            version=self.checked(top, "version", parse_version),
            task=self.text(top, "task"),
            description=self.text(top, "description") or "",
            license=self.text(top, "license"),
            base=self.checked(top, "base", parse_digest),
            digest=self.checked(top, "digest", parse_digest),
            metrics=self.metrics(self.take(top, "metrics", dict, "") or {}),
        )

    def step(self, holder: Mapping[str, Any], path: str, depth: int) -> Step:
        given = self.take(holder, "options", dict, path) or {}
        name = self.text(holder, "method", path) or default_method(given)
        method = None
        try:
            method = describe(name)
        except UsageProblem:
            self.say(f"{path}method", f"no merge method `{shown(name)}`{self.near(name, names())}")
        options = self.options(given, method, f"{path}options.") if method else {}
        dtype = self.text(holder, "dtype", path)
        if dtype is not None and dtype not in DTYPES:
            self.say(f"{path}dtype", f"`{shown(dtype)}`, expected one of {', '.join(DTYPES)}")
        seed = self.take(holder, "seed", int, path)
        if seed is not None and not 0 <= seed <= MAX_WHOLE:
            self.say(f"{path}seed", f"expected 0 to {MAX_WHOLE}")
        if seed is not None and method and not method.is_random:
            self.say(f"{path}seed", f"`{name}` draws nothing")
        items = self.take(holder, "inputs", list, path)
        if not items:
            if items is not None or "inputs" not in holder:
                self.say(f"{path}inputs", f"no input; each is a table `[[inputs]]` with `{self.named}` and `weight`")
            items = []
        inputs = [self.input(item, f"{path}inputs[{i}]", depth) for i, item in enumerate(items)]
        found = tuple(item for item in inputs if item is not None)
        return Step(method=name, options=options, dtype=dtype, seed=seed, inputs=found)

    def options(self, given: Mapping[str, Any], method: Method, path: str) -> dict[str, object]:
        known = options_of(method)
        options: dict[str, object] = {}
        for key, value in given.items():
            where = f"{path}{key}"
            if key == "seed":
                self.say(where, "the seed is written beside `method`, not among the options")
            elif key not in known:
                near = self.near(key, known) or "; it takes " + ", ".join(known)
                self.say(where, f"`{method.name}` has no such option{near}")
            elif not isinstance(value, str | int | float):
                self.wrong(where, known[key].kind, value)
            else:
                try:
                    options[key] = converted(known[key], value)
                except UsageProblem as error:
                    self.say(where, error.message)
        return options

    def input(self, item: object, path: str, depth: int) -> Leaf | Inner | None:
        self.inputs += 1
        if self.inputs == MAX_INPUTS + 1:
            self.say(path, f"more than {MAX_INPUTS} inputs")
        if self.inputs > MAX_INPUTS:
            return None
        if not isinstance(item, dict):
            self.wrong(path, "a table", item)
            return None
        path += "."
        self.known(item, _INPUT_KEYS[self.named], path)
        weight = self.number(item, "weight", path)
        if ("merge" in item) == (self.named in item):
            self.say(path[:-1], f"expected one of `{self.named}` and `merge`")
            return None
        if self.named == "adapter" and "adapter" in item:
            key = self.checked(item, "adapter", parse_name, path)
            return Leaf(spec=key, weight=weight) if key else None
        if "spec" in item:
            return self.leaf(item, weight, path)
        for key in ("digest", "sha256", "config_sha256"):
            if key in item:
                self.say(f"{path}{key}", "an inner merge has no digest of its own; its inputs have")
        inner = self.take(item, "merge", dict, path)
        if inner is None:
            return None
        path += "merge."
        if depth + 1 > MAX_DEPTH:
            self.say(path[:-1], f"merges inside merges, at most {MAX_DEPTH} levels of them")
            return None
        self.known(inner, _STEP_KEYS, path)
        return Inner(weight=weight, step=self.step(inner, path, depth + 1))

    def leaf(self, item: Mapping[str, Any], weight: float, path: str) -> Leaf | None:
        spec = self.text(item, "spec", path)
        if spec is None:
            return None
        allowed = ("sha256", "config_sha256") if names_folder(spec) else ("digest",)
        for key in ("digest", "sha256", "config_sha256"):
            if key in item and key not in allowed:
                kind = "a folder" if names_folder(spec) else "an adapter"
                self.say(f"{path}{key}", f"`{shown(spec)}` is {kind}, which is held to {' and '.join(allowed)}")
        if not names_folder(spec):
            self.checked(item, "spec", AdapterSpec.parse, path)
        digests = {key: self.checked(item, key, parse_digest, path) for key in allowed}
        return Leaf(spec=spec, weight=weight, **digests)

    def metrics(self, items: Mapping[str, Any]) -> dict[str, float | str]:
        metrics: dict[str, float | str] = {}
        for key, value in items.items():
            where = f"metrics.{key}"
            if key.startswith(MEASURED_PREFIX):
                self.say(where, "is measured by each run and cannot be given")
            elif isinstance(value, str):
                metrics[key] = self.text(items, key, "metrics.") or ""
            elif (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) <= MAX_WHOLE):
                metrics[key] = value
            else:
                self.wrong(where, "a finite number or text", value)
        return metrics
