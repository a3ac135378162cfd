"""What a recipe of a merge says, as values: adapters with weights, merges inside merges, what is said of the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from adapterhub.core.digests import Digest
from adapterhub.core.errors import UsageProblem
from adapterhub.core.specs import AdapterName, names_folder
from adapterhub.formats.safetensors.dtypes import CHOICES
from adapterhub.weights.catalogue import Method, Option

MAX_DEPTH: Final = 8
"""Merges inside merges; each level is written to disk before the next one begins."""
MAX_INPUTS: Final = 1000
"""Adapters and inner merges of one recipe, all levels together."""
MAX_WHOLE: Final = (1 << 53) - 1
"""The largest whole number that JSON carries safely, so that a manifest can record it: of seeds and options."""

DTYPES: Final = tuple(CHOICES)
CUTS: Final = (
    Option(name="rank", kind="int", default=None),
    Option(name="energy", kind="float", default=None),
    Option(name="max_error", kind="float", default=None),
)
"""What chooses the rank of a result, whatever the method; a method's own options come beside these."""
MEASURED_PREFIX: Final = "merge_"
"""Metrics of these names are measured by every run anew."""


def _empty() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """An adapter as a recipe names it: `spec` is a spec, or a folder.

    An installed adapter is held to the digest of its manifest, a folder to the sha256 of its weights and of its config.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """A merge that is made first, and then goes in with `weight`."""

    weight: float
    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One merge: its method, options (`rank`, `energy` or `max_error` among them), dtype, seed and inputs.

    None for dtype and seed: the default.
    """

    method: str
    inputs: tuple[Leaf | Inner, ...]
    options: Mapping[str, object] = field(default_factory=_empty)
    dtype: str | None = None
    seed: int | None = None

    def leaves(self) -> Iterable[Leaf]:
        """Every adapter of every level, in order."""
        for item in self.inputs:
            if isinstance(item, Leaf):
                yield item
            else:
                yield from item.step.leaves()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A merge with what is said of its result. `base` and `digest` are what the result must have, where known.

    `base` is the weights digest of the base, `digest` that of the manifest. `metrics` are the author's own.
    """

    step: Step
    name: AdapterName | None = None
    version: str | None = None
    task: str | None = None
    description: str = ""
    license: str | None = None
    base: Digest | None = None
    digest: Digest | None = None
    metrics: Mapping[str, float | str] = field(default_factory=_empty)


def default_method(options: Mapping[str, object]) -> str:
    """`cat`; with an option that chooses the rank, `svd`."""
    return "svd" if any(cut.name in options for cut in CUTS) else "cat"


def options_of(method: Method) -> dict[str, Option]:
    """Every option that a merge by `method` takes, the choice of the rank among them; not the seed."""
    return {option.name: option for option in (*CUTS, *method.options) if option.name != "seed"}


def converted(option: Option, value: object) -> object:
    """`value`, or the text of one, as the option's type, and such that a manifest can record it.

    Raises:
        UsageProblem: it is none.
    """
    if not _is_too_long(value):
        found = option.convert(value)
        if not _is_too_long(found):
            return found
    raise UsageProblem(f"option `{option.name}`: expected a whole number of at most {MAX_WHOLE}")


def _is_too_long(value: object) -> bool:
    return isinstance(value, int) and abs(value) > MAX_WHOLE  # may have too many digits to be shown
