"""The values of a recipe: adapters with weights, merges inside merges, and the description of the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from adapterhub.core.digests import Digest, parse_digest
from adapterhub.core.disk.files import read_typed
from adapterhub.core.errors import Malformed, NotFound, UsageProblem, problem_list, shown
from adapterhub.core.specs import AdapterName, AdapterSpec, names_folder, parse_name, parse_version
from adapterhub.formats.documents import DocumentReader, toml_of
from adapterhub.formats.manifest import Manifest
from adapterhub.formats.safetensors.header import CHOICES
from adapterhub.weights.catalogue import Method, Option, describe, names

MAX_DEPTH: Final = 8
"""Levels of merges inside merges; each is written to disk before the next one starts."""
MAX_INPUTS: Final = 1000
"""Adapters and inner merges in one recipe, on all levels together."""
MAX_WHOLE: Final = (1 << 53) - 1
"""The largest seed or whole-number option: JSON, and so a manifest, holds no larger number safely."""

DTYPES: Final = tuple(CHOICES)
CUTS: Final = (
    Option(name="rank", kind="int", default=None),
    Option(name="energy", kind="float", default=None),
    Option(name="max_error", kind="float", default=None),
)
"""The options that choose the rank of a result. Every method takes them besides its own options."""
MEASURED_PREFIX: Final = "merge_"
"""Each run measures the metrics with this prefix."""

_T = TypeVar("_T")


def empty_mapping() -> Mapping[str, Any]:
    """Return the default of a mapping field."""
    return MappingProxyType({})


def without_none(value: Mapping[str, _T | None]) -> dict[str, _T]:
    """Return the items of `value` that are not None."""
    return {key: item for key, item in value.items() if item is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """An adapter as a recipe names it: `spec` is a spec or a folder.

    A recipe pins an adapter by the digest of its manifest, a folder by the sha256 of its weights and of its config.
    """

    spec: str
    weight: float
    digest: Digest | None = None
    sha256: Digest | None = None
    config_sha256: Digest | None = None

    @property
    def is_folder(self) -> bool:
        """Whether `spec` is a path."""
        return names_folder(self.spec)


if TYPE_CHECKING:  # only type checkers know defaults before Python 3.13
    from typing_extensions import TypeVar as TypeVarWithDefault

    _Item = TypeVarWithDefault("_Item", default=Leaf)
else:
    _Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner(Generic[_Item]):
    """An input that is itself a merge, with its weight."""

    weight: float
    step: MergeStep[_Item]


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeStep(Generic[_Item]):
    """One merge: its method, options (including `rank`, `energy` or `max_error`), dtype, seed and inputs.

    The inputs are leaves and other merges; a recipe has `Leaf`, a merge about to run `Ingredient`. None for dtype and
    seed means the default.
    """

    inputs: tuple[_Item | Inner[_Item], ...]
    method: str = "cat"
    options: Mapping[str, object] = field(default_factory=empty_mapping, hash=False)
    dtype: str | None = None
    seed: int | None = None

    def leaves(self) -> Iterator[_Item]:
        """Every leaf of every level, in order."""
        for item in self.inputs:
            if isinstance(item, Inner):
                yield from item.step.leaves()
            else:
                yield item

    def with_leaves(self, change: Callable[[_Item], _Item]) -> MergeStep[_Item]:
        """Return this merge with every leaf of every level changed."""
        inputs = tuple(
            replace(item, step=item.step.with_leaves(change)) if isinstance(item, Inner) else change(item)
            for item in self.inputs
        )
        return replace(self, inputs=inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A merge and the description of its result.

    `base` is the digest of the base's weights and `digest` that of the result's manifest; the result must match both
    where they are given. `metrics` are those of the author.
    """

    step: MergeStep
    name: AdapterName | None = None
    version: str | None = None
    task: str | None = None
    description: str = ""
    license: str | None = None
    base: Digest | None = None
    digest: Digest | None = None
    metrics: Mapping[str, float | str] = field(default_factory=empty_mapping)


def default_method(options: Mapping[str, object]) -> str:
    """`svd` with an option that chooses the rank, otherwise `cat`."""
    return "svd" if any(cut.name in options for cut in CUTS) else "cat"


def options_of(method: Method) -> dict[str, Option]:
    """Every option of a merge by `method`, including those that choose the rank, without the seed."""
    return {option.name: option for option in (*CUTS, *method.options) if option.name != "seed"}


def converted(option: Option, value: object) -> object:
    """`value`, given as such or as text, converted to the option's type and within what a manifest can record.

    Raises:
        UsageProblem: it cannot be converted or recorded.
    """
    if not _is_too_long(value):
        result = option.convert(value)
        if not _is_too_long(result):
            return result
    raise UsageProblem(f"option `{option.name}`: expected a whole number of at most {MAX_WHOLE}")


def _is_too_long(value: object) -> bool:
    return isinstance(value, int) and abs(value) > MAX_WHOLE  # may have too many digits to print


FORMAT: Final = 1


def recipe_from(document: Mapping[str, Any], where: str) -> Recipe:
    """Return the recipe in a parsed document.

    Raises:
        Malformed: not a recipe; lists every problem with its path.
    """
    reader = _RecipeReader()
    recipe = reader.recipe(document)
    if reader.problems or recipe is None:
        raise malformed(where, reader.lines)
    return recipe


def step_from(
    holder: Mapping[str, Any], path: str, *, inputs_by: str = "spec"
) -> tuple[MergeStep, list[tuple[str, str]]]:
    """Return the merge in a table of a project or a lock, and `(path, text)` of every problem in it.

    `path` precedes the place of each problem. The caller checks the other keys of the table. With `inputs_by="adapter"`
    the inputs name adapters of a project with that key.
    """
    reader = _RecipeReader(inputs_by=inputs_by)
    return reader.step(holder, path, 0), reader.problems


def malformed(where: str, problems: Sequence[str]) -> Malformed:
    """Return the error for a recipe with these problems."""
    return Malformed(
        problem_list(f"{shown(where, 200)}: not a usable recipe", problems),
        hint="`adapt info NAME --recipe` prints a recipe in the right form",
    )


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
"""By the key that names an adapter: `spec` in a recipe, `adapter` in a project, whose lock has the digests."""


class _RecipeReader(DocumentReader):
    """Reads a parsed document into a Recipe and collects every problem."""

    def __init__(self, *, inputs_by: str = "spec") -> None:
        super().__init__()
        self.named = inputs_by
        self.inputs = 0

    def recipe(self, top: Mapping[str, Any]) -> Recipe | None:
        version = self.take(top, "format", int, "")
        if version != FORMAT:
            if version is not None or "format" not in top:
                self.say("format", f"expected {FORMAT}, got {'nothing' if version is None else 'another number'}")
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

    def step(self, holder: Mapping[str, Any], path: str, depth: int) -> MergeStep:
        table = self.take(holder, "options", dict, path) or {}
        name = self.text(holder, "method", path) or default_method(table)
        method = None
        try:
            method = describe(name)
        except UsageProblem:
            self.say(f"{path}method", f"no merge method `{shown(name)}`{self.near(name, names())}")
        options = self.options(table, method, f"{path}options.") if method else {}
        dtype = self.text(holder, "dtype", path)
        if dtype is not None and dtype not in DTYPES:
            self.say(f"{path}dtype", f"`{shown(dtype)}`, expected one of {', '.join(DTYPES)}")
        seed = self.take(holder, "seed", int, path)
        if seed is not None and not 0 <= seed <= MAX_WHOLE:
            self.say(f"{path}seed", f"expected 0 to {MAX_WHOLE}")
        if seed is not None and method and not method.is_random:
            self.say(f"{path}seed", f"`{name}` draws no random numbers, so it takes no seed")
        items = self.take(holder, "inputs", list, path)
        if not items:
            if items is not None or "inputs" not in holder:
                self.say(
                    f"{path}inputs", f"no inputs; write each as a table `[[inputs]]` with `{self.named}` and `weight`"
                )
            items = []
        inputs = [self.input(item, f"{path}inputs[{i}]", depth) for i, item in enumerate(items)]
        usable = tuple(item for item in inputs if item is not None)
        return MergeStep(method=name, options=options, dtype=dtype, seed=seed, inputs=usable)

    def options(self, table: Mapping[str, Any], method: Method, path: str) -> dict[str, object]:
        known = options_of(method)
        options: dict[str, object] = {}
        for key, value in table.items():
            where = f"{path}{key}"
            if key == "seed":
                self.say(where, "the seed belongs beside `method`, not among the options")
            elif key not in known:
                near = self.near(key, known) or "; expected one of " + ", ".join(known)
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
            name = self.checked(item, "adapter", parse_name, path)
            return Leaf(spec=name, weight=weight) if name else None
        if "spec" in item:
            return self.leaf(item, weight, path)
        for key in ("digest", "sha256", "config_sha256"):
            if key in item:
                self.say(f"{path}{key}", "an inner merge has no digest of its own; give the digests of its inputs")
        inner = self.take(item, "merge", dict, path)
        if inner is None:
            return None
        path += "merge."
        if depth + 1 > MAX_DEPTH:
            self.say(path[:-1], f"too many merges inside merges; at most {MAX_DEPTH} levels")
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
                self.say(f"{path}{key}", f"`{shown(spec)}` is {kind}; expected {' and '.join(allowed)} instead")
        if not names_folder(spec):
            self.checked(item, "spec", AdapterSpec.parse, path)
        digests = {key: self.checked(item, key, parse_digest, path) for key in allowed}
        return Leaf(spec=spec, weight=weight, **digests)

    def metrics(self, items: Mapping[str, Any]) -> dict[str, float | str]:
        metrics: dict[str, float | str] = {}
        for key, value in items.items():
            where = f"metrics.{key}"
            if key.startswith(MEASURED_PREFIX):
                self.say(where, "is measured by each run, so a recipe cannot set it")
            elif isinstance(value, str):
                metrics[key] = self.text(items, key, "metrics.") or ""
            elif (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) <= MAX_WHOLE):
                metrics[key] = value
            else:
                self.wrong(where, "a finite number or text", value)
        return metrics


__all__ = ["parse_recipe", "read_recipe", "recipe_of", "step_from", "step_table", "to_toml"]

LIMIT_BYTES: Final = 256 << 10


# ---------------------------------------------------------------- reading
def read_recipe(path: Path) -> Recipe:
    """Return the recipe in a TOML file.

    Raises:
        NotFound: no such plain file.
        Malformed: not a recipe; lists every problem with its path.
    """
    raw = read_typed(path, LIMIT_BYTES, hint="`adapt info NAME --recipe` prints the recipe of a merge")
    return parse_recipe(raw, str(path))


def parse_recipe(raw: bytes, where: str = "recipe") -> Recipe:
    """Return the recipe in a TOML document.

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
    """Return the recipe that reproduces this manifest.

    Raises:
        NotFound: the adapter is not a merge.
        Malformed: this version cannot run its recipe.
    """
    if not manifest.recipe.get("inputs"):
        raise NotFound(f"`{manifest.name}` is not a merge, so it has no recipe", hint=f"`adapt info {manifest.name}`")
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
    """Return the recipe of a manifest, with the seed moved from the options to the place it has in a recipe file."""
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
    """Return the recipe as TOML, which parses to the same recipe and is safe to print on a terminal."""
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


def step_table(step: MergeStep) -> dict[str, Any]:
    """Return a merge as a table of a recipe, without None values."""
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
