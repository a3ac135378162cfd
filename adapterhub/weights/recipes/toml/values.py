"""The values of a recipe: adapters with weights, merges inside merges, and the description of the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from adapterhub.core.digests import Digest
from adapterhub.core.errors import UsageProblem
from adapterhub.core.specs import AdapterName, names_folder
from adapterhub.formats.safetensors.dtypes import CHOICES
from adapterhub.weights.catalogue import Method, Option

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
    """The default of a mapping field."""
    return MappingProxyType({})


def without_none(value: Mapping[str, _T | None]) -> dict[str, _T]:
    """The items of `value` that are not None."""
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
    step: Step[_Item]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Generic[_Item]):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A merge and the description of its result.

    `base` is the digest of the base's weights and `digest` that of the result's manifest; the result must match both
    where they are given. `metrics` are those of the author.
    """

    step: Step
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
