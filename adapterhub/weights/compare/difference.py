"""What is different between two adapters: bytes, config and manifest, and exactly how far their updates are apart.

The update of a module is `scale * B A`. The norm of a difference of two is taken from the factors (`difference_norms`),
so no [out, in] matrix is formed, the same update in other factors is found to be the same, and ranks may differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from adapterhub.core.digests import Digest, Progress, strict_json
from adapterhub.core.errors import CouldNotTell, MalformedManifest, MalformedTensorFile, shown
from adapterhub.core.limits import limits
from adapterhub.formats.base.fingerprint import BaseVerdict, compare
from adapterhub.formats.manifest import CONFIG_FILE, MEDIA_TYPES, WEIGHTS_FILE, BaseRef, Manifest
from adapterhub.formats.modules.base_names import Rule, find_rule
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.trust.verify import ensure_undamaged, manifest_in, open_files
from adapterhub.trust.verify.checks.container import read_weights_header
from adapterhub.trust.verify.checks.digests import differing
from adapterhub.trust.verify.listing import Listing, safe_listing
from adapterhub.weights.dtypes import TORCH_DTYPES
from adapterhub.weights.lowrank.algebra import LowRank, difference_norms, frobenius_norm
from adapterhub.weights.lowrank.factors import AdapterFactors

ABSENT: Final = "absent"
"""What a field that only the other one has is said to be."""

_UNORDERED: Final = frozenset({"target_modules", "exclude_modules", "modules_to_save", "target_parameters"})
_SAYS_NOTHING: Final[Mapping[str, object]] = MappingProxyType(
    {"inference_mode": True, "init_lora_weights": True, "bias": "none", "lora_dropout": 0.0}
)
"""Values of a config that mean the same as leaving the setting out, beside those that are empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One adapter: its folder, how to call it, and its manifest and base where they are known.

    An installed one is held to its manifest; of a folder, what differs from its manifest is a difference to be shown.
    """

    folder: Path
    label: str
    manifest: Manifest | None = None
    base: BaseRef | None = None
    is_installed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One setting that differs; `ABSENT` where one has none."""

    name: str
    first: Any
    second: Any

    def to_json(self) -> dict[str, Any]:
        """Name and both values."""
        return {"field": self.name, "first": self.first, "second": self.second}


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """How far one module, or one tensor that is no factor, is apart: norms of both and of their difference.

    A side that does not have it counts as zero and is None. `relative` is to the first, None where that is zero.
    """

    name: str
    first: float | None
    second: float | None
    apart: float

    @property
    def relative(self) -> float | None:
        """The norm of the difference over that of the first."""
        return self.apart / self.first if self.first else None

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        figures = {"first": self.first, "second": self.second, "apart": self.apart, "relative": self.relative}
        return {"name": self.name, **figures}


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The updates of two adapters. `whole` is over all modules; `unlike` is what has other shapes, and in no figure.

    `caveats` say what the figures leave out, such as the magnitudes of DoRA.
    """

    whole: Apart
    modules: tuple[Apart, ...]
    others: tuple[Apart, ...]
    unlike: Mapping[str, str]
    caveats: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        """Whether no update and no other tensor differs."""
        return not self.unlike and not self.whole.apart and not any(one.apart for one in self.others)

    def to_json(self) -> dict[str, Any]:
        """Everything; the modules that are furthest apart first."""
        return {
            "relative": self.whole.relative,
            "norm_first": self.whole.first,
            "norm_second": self.whole.second,
            "norm_apart": self.whole.apart,
            "modules": [one.to_json() for one in self.modules],
            "others": [one.to_json() for one in self.others],
            "unlike": dict(self.unlike),
            "caveats": list(self.caveats),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePair:
    """One file of either side, by its digests; None where it is not there."""

    path: str
    first: Digest | None
    second: Digest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Everything that is different. `weights` is None where the weights files have the same bytes and the same config.

    `base` compares the bases that the two declare.
    """

    files: tuple[FilePair, ...]
    config: tuple[Field, ...]
    manifest: tuple[Field, ...] | None
    base: BaseVerdict
    weights: Weights | None

    @property
    def is_identical(self) -> bool:
        """Whether every file has the same bytes."""
        return all(pair.first == pair.second for pair in self.files)

    @property
    def is_same_update(self) -> bool:
        """Whether both do the same to a base, however they are stored."""
        return self.weights is None or self.weights.is_same

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "identical": self.is_identical,
            "same_update": self.is_same_update,
            "base_verdict": self.base.name,
            "files": [{"path": p.path, "first": p.first, "second": p.second} for p in self.files],
            "config": [field.to_json() for field in self.config],
            "manifest": None if self.manifest is None else [field.to_json() for field in self.manifest],
            "weights": self.weights.to_json() if self.weights else None,
        }


def differ(first: Side, second: Side, progress: Progress | None = None) -> Difference:
    """Compare two adapters; nothing is written. `progress` is called with 1 for each module.

    Raises:
        DigestMismatch: a file of an installed adapter is not what its manifest says, or a file changes meanwhile.
        Malformed: what is in a folder cannot be read as an adapter; which file and why.
    """
    opened = _opened(first), _opened(second)
    files = tuple(_files(*opened))
    settings = _fields(_config(opened[0]), _config(opened[1]), _UNORDERED)
    config = tuple(field for field in settings if not _is_default(field))
    manifest = None
    if first.manifest is not None and second.manifest is not None:
        manifest = tuple(_fields(_manifest(first.manifest), _manifest(second.manifest), frozenset({"target_modules"})))
    bases = [(side.base or BaseRef()).fingerprint for side in (first, second)]
    is_plain = not config and all(p.first == p.second for p in files if p.path == WEIGHTS_FILE)
    return Difference(
        files=files,
        config=config,
        manifest=manifest,
        base=compare(bases[0], bases[1]).verdict,
        weights=None if is_plain else _weights((first, second), opened, progress),
    )


def side_of_folder(folder: Path, label: str) -> Side:
    """An adapter in a folder, with its own manifest if it has one that can be read."""
    try:
        manifest = manifest_in(folder)
    except MalformedManifest:
        manifest = None
    if manifest is None:
        return Side(folder=folder, label=label)
    return Side(folder=folder, label=label, manifest=manifest, base=manifest.base)


# ---------------------------------------------------------------- bytes and settings
def _opened(side: Side) -> Listing:
    """The files of one side, each opened once; what leads out of its folder, or is no plain file, is refused."""
    listing = safe_listing(side.folder)
    for entry in listing.taken.values():
        try:
            _ = entry.held
        except OSError as error:
            raise CouldNotTell(f"`{shown(str(entry.path), 200)}` cannot be read: {error.strerror}") from None
    if WEIGHTS_FILE in listing.taken:
        try:
            read_weights_header(listing.taken[WEIGHTS_FILE])  # so that its tensors are known when it is hashed
        except MalformedTensorFile as error:  # which is said where its numbers are needed
            if error.code == "E_LIMIT":
                raise
    if side.is_installed:
        ensure_undamaged(differing(listing, side.manifest), f"{side.folder}/")
    return listing


def _files(first: Listing, second: Listing) -> Iterator[FilePair]:
    for name in MEDIA_TYPES:
        entries = [listing.taken.get(name) for listing in (first, second)]
        digests = [entry.held.digest if entry is not None else None for entry in entries]
        if any(digests):
            yield FilePair(path=name, first=digests[0], second=digests[1])


def _config(side: Listing) -> dict[str, Any]:
    """The config as it is written; whether it can be used is for `AdapterFactors` to say."""
    entry = side.taken.get(CONFIG_FILE)
    if entry is None or entry.held.size_bytes > limits().config_bytes:
        return {}
    try:
        value = strict_json(bytes(entry.held.load()), limit_bytes=limits().config_bytes)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _manifest(manifest: Manifest) -> dict[str, Any]:
    value = manifest.to_json()
    value["base"].pop("samples", None)
    del value["files"]  # compared by their own bytes
    return value


def _is_default(field: Field) -> bool:
    """Whether one has a setting that says no more than that the other lacks it."""
    given = [value for value in (field.first, field.second) if value is not ABSENT]
    return len(given) == 1 and (not given[0] or given[0] == _SAYS_NOTHING.get(field.name, ABSENT))


def _fields(first: Mapping[str, Any], second: Mapping[str, Any], unordered: frozenset[str]) -> Iterator[Field]:
    """Settings that differ, by their dotted names."""
    for name in sorted(first.keys() | second.keys()):
        one, other = first.get(name, ABSENT), second.get(name, ABSENT)
        if isinstance(one, dict) and isinstance(other, dict):
            for inner in _fields(one, other, frozenset()):
                yield Field(name=f"{name}.{inner.name}", first=inner.first, second=inner.second)
            continue
        if name in unordered and isinstance(one, list) and isinstance(other, list):
            one, other = sorted(map(str, one)), sorted(map(str, other))
        if one != other:
            yield Field(name=name, first=one, second=other)


# ---------------------------------------------------------------- weights
def _weights(sides: tuple[Side, Side], opened: tuple[Listing, Listing], progress: Progress | None) -> Weights:
    first, second = sides
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(AdapterFactors(side.folder, subject=open_files(side.folder, {}, opened=listing.taken)))
            for side, listing in zip(sides, opened, strict=True)
        )
        rule = _rule(one, other)
        theirs = {rule.apply(module): module for module in other.modules}
        unlike: dict[str, str] = {}
        modules: list[Apart] = []
        for module in sorted({*one.modules, *theirs}):
            mine, yours = one.modules.get(module), other.modules.get(theirs.get(module, ""))
            if mine and yours and mine.layout != yours.layout:
                unlike[module] = f"{mine.layout} in the first, {yours.layout} in the second"
            else:
                parts = one.parts(module) if mine else (), other.parts(theirs[module]) if yours else ()
                modules.append(_apart(module, *parts))
            if progress is not None:
                progress(1)
        others, unlike_others = _others(one, other, rule)
        caveats = tuple(_caveats((first, one), (second, other)))
    modules.sort(key=lambda m: (-m.apart, m.name))
    whole = Apart(
        name="",
        first=math.hypot(*(m.first or 0.0 for m in modules)),
        second=math.hypot(*(m.second or 0.0 for m in modules)),
        apart=math.hypot(*(m.apart for m in modules)),
    )
    return Weights(whole=whole, modules=tuple(modules), others=others, unlike=unlike | unlike_others, caveats=caveats)


def _rule(one: AdapterFactors, other: AdapterFactors) -> Rule:
    """How the second one's module names become the first's, where they begin otherwise for the same modules."""
    rule = find_rule(list(other.modules), frozenset(one.modules))
    return rule if len({rule.apply(module) for module in other.modules}) == len(other.modules) else Rule()


def _apart(module: str, first: Sequence[LowRank], second: Sequence[LowRank]) -> Apart:
    if not first or not second:
        norm = math.hypot(*(frobenius_norm(part) for part in (*first, *second)))
        return Apart(name=module, first=norm if first else None, second=norm if second else None, apart=norm)
    apart, mine, yours = [], [], []
    for one, other in zip(first, second, strict=True):
        error, norm = difference_norms([one], [1.0], other)
        apart.append(error)
        mine.append(norm)
        yours.append(difference_norms([other], [1.0], other)[1])
    return Apart(name=module, first=math.hypot(*mine), second=math.hypot(*yours), apart=math.hypot(*apart))


def _others(one: AdapterFactors, other: AdapterFactors, rule: Rule) -> tuple[tuple[Apart, ...], dict[str, str]]:
    """Tensors that are no factor (saved modules, magnitudes, biases), compared number by number."""
    mine = _named(one, Rule())
    yours = _named(other, rule)
    found: list[Apart] = []
    unlike: dict[str, str] = {}
    for name in sorted(mine.keys() | yours.keys()):
        a, b = mine.get(name), yours.get(name)
        if a is not None and b is not None and a.shape != b.shape:
            unlike[name] = f"{list(a.shape)} in the first, {list(b.shape)} in the second"
            continue
        if any(spec is not None and spec.dtype not in TORCH_DTYPES for spec in (a, b)):
            if a is None or b is None or one.data(a) != other.data(b):
                unlike[name] = "numbers of a kind that is not measured"
            continue
        first = one.tensor(a).double() if a is not None else None
        second = other.tensor(b).double() if b is not None else None
        if first is not None and second is not None:
            difference = first - second
        else:
            difference = first if first is not None else second  # type: ignore[assignment]  # one of the two is there
        norms = [None if t is None else float(t.norm()) for t in (first, second)]
        found.append(Apart(name=name, first=norms[0], second=norms[1], apart=float(difference.norm())))
    return tuple(found), unlike


def _named(factors: AdapterFactors, rule: Rule) -> dict[str, TensorSpec]:
    biases = [pair.bias for pair in factors.modules.values() if pair.bias is not None]
    prefix = "base_model.model."
    return {
        prefix + rule.apply(spec.name.removeprefix(prefix)) if spec.name.startswith(prefix) else spec.name: spec
        for spec in (*factors.others, *biases)
    }


def _caveats(*sides: tuple[Side, AdapterFactors]) -> Iterator[str]:
    for side, factors in sides:
        config, label = factors.config, shown(side.label)
        for key, variant in config.variants.items():
            if variant.changes_update:
                yield f"`{label}` uses `{key}`: its update is not B·A alone, which is what the norms are of"
        if config.start_changes_base or config.start_is_unknown:
            start = shown(config.init_lora_weights)
            yield f"`{label}` was begun with `{start}`, which changes the base: its update is relative to that"
        if factors.unclear:
            yield f"`{label}` has {len(factors.unclear)} pairs whose meaning the file does not tell; they are left out"
