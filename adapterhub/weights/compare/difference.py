"""The differences between two adapters: bytes, config, manifest, and the exact distance of their updates.

The update of a module is `scale * B A`. The norm of the difference of two comes from their factors
(`difference_norms`), so no [out, in] matrix is formed, ranks may differ, and equal updates in other factors are equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final

from adapterhub.core.digests import Digest, Progress, strict_json
from adapterhub.core.disk.files import not_read
from adapterhub.core.errors import CouldNotTell, MalformedManifest, MalformedTensorFile, shown
from adapterhub.core.limits import limits
from adapterhub.formats.base.comparison import Judge, compare
from adapterhub.formats.base.fingerprint import BaseVerdict
from adapterhub.formats.documented import Documented
from adapterhub.formats.manifest import CONFIG_FILE, MEDIA_TYPES, WEIGHTS_FILE, BaseRef, Manifest
from adapterhub.formats.modules import find_rule
from adapterhub.formats.naming.finding import NameRule
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.trust.verify import ensure_undamaged, manifest_in, open_files
from adapterhub.trust.verify.checks.container import read_weights_header
from adapterhub.trust.verify.checks.digests import differing
from adapterhub.trust.verify.subject import FolderListing, safe_listing
from adapterhub.weights.dtypes import READABLE
from adapterhub.weights.lowrank.algebra import LowRank, difference_norms, frobenius_norm
from adapterhub.weights.lowrank.factors import AdapterFactors

ABSENT: Final = "absent"
"""The value of a field that only the other adapter has."""

_UNORDERED: Final = frozenset({"target_modules", "exclude_modules", "modules_to_save", "target_parameters"})
_DEFAULTS: Final[Mapping[str, object]] = MappingProxyType(
    {"inference_mode": True, "init_lora_weights": True, "bias": "none", "lora_dropout": 0.0}
)
"""Values of a config that equal the default, as an empty value does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedSide(Documented, keys="label digest=manifest.digest path origin=place", title="ComparedSide"):
    """One adapter of a comparison: its folder, its label, and its manifest and base where known.

    An installed adapter must match its manifest. For a folder, a mismatch is one of the differences. `origin` is where
    on a server it was read from; its folder is gone after the comparison.
    """

    folder: Path
    label: str
    manifest: Manifest | None = None
    base: BaseRef | None = None
    is_installed: bool = False
    origin: str = ""

    @property
    def path(self) -> Path | None:
        """A path on this machine; None: it was read from a server."""
        return None if self.origin else self.folder

    @property
    def place(self) -> str | None:
        """The place on a server that it was read from."""
        return self.origin or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Field(Documented, keys="field=name first second", title="FieldDifference"):
    """A setting that differs. A missing value is `ABSENT`."""

    name: str
    first: Any = field(hash=False)
    second: Any = field(hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance(Documented, keys="name first second apart relative", title="ModuleDifference"):
    """The Frobenius norms of a module, or of a tensor that is not a factor, on both sides, and of their difference.

    A side that lacks it is None and counts as zero. `relative` refers to the first side; None if that is zero.
    """

    name: str
    first: Annotated[float | None, "norm of the first update; null: absent"]
    second: float | None
    apart: Annotated[float, "norm of the difference"]

    @property
    def relative(self) -> float | None:
        """`apart` divided by `first`; None if the first is zero."""
        return self.apart / self.first if self.first else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights(
    Documented,
    keys="relative=whole.relative norm_first=whole.first norm_second=whole.second norm_apart=whole.apart"
    " modules others unlike caveats",
    title="WeightsDifference",
):
    """The updates of two adapters. `whole` covers all modules; `unlike` lists what differs in shape and has no figures.

    `caveats` name the parts that the figures leave out, such as the magnitudes of DoRA.
    """

    whole: Distance
    modules: Annotated[tuple[Distance, ...], "largest difference first"]
    others: Annotated[tuple[Distance, ...], "differing tensors that are not factors"]
    unlike: Annotated[Mapping[str, str], "modules that cannot be compared, with the reason"] = field(hash=False)
    caveats: Annotated[tuple[str, ...], "what the numbers leave out, such as magnitudes of DoRA"]

    @property
    def is_same(self) -> bool:
        """Whether all updates and other tensors are equal."""
        return not self.unlike and not self.whole.apart and not any(one.apart for one in self.others)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePair(Documented, title="FileDifference"):
    """The digests of one file on both sides; None if it is missing."""

    path: str
    first: Digest | None
    second: Digest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference(
    Documented,
    keys="first second identical=is_identical same_update=is_same_update base_verdict=base files config manifest"
    " weights",
):
    """All differences. `weights` is None if config and bytes of the weights are equal.

    `base` compares the declared bases.
    """

    first: ComparedSide
    second: ComparedSide
    files: tuple[FilePair, ...]
    config: tuple[Field, ...]
    manifest: Annotated[tuple[Field, ...] | None, "null if one has no manifest"]
    base: BaseVerdict
    weights: Annotated[Weights | None, "null if the weights are the same bytes or cannot be compared"]

    @property
    def is_identical(self) -> bool:
        """Whether they are the same byte for byte."""
        return all(pair.first == pair.second for pair in self.files)

    @property
    def is_same_update(self) -> bool:
        """Whether both have the same effect on a base, however they are stored."""
        return self.weights is None or self.weights.is_same


def differ(
    first: ComparedSide, second: ComparedSide, progress: Progress | None = None, *, judge: Judge = compare
) -> Difference:
    """Compare two adapters; nothing is written. `progress` gets 1 for each module, and `judge` compares their bases.

    Raises:
        DigestMismatch: a file of an installed adapter differs from its manifest, or a file changed meanwhile.
        Malformed: a folder does not contain a readable adapter; names the file and the reason.
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
        first=first,
        second=second,
        files=files,
        config=config,
        manifest=manifest,
        base=judge(bases[0], bases[1]).verdict,
        weights=None if is_plain else _weights((first, second), opened, progress),
    )


def side_of_folder(folder: Path, label: str) -> ComparedSide:
    """Return the adapter in a folder, with its manifest if that is readable."""
    try:
        manifest = manifest_in(folder)
    except MalformedManifest:
        manifest = None
    if manifest is None:
        return ComparedSide(folder=folder, label=label)
    return ComparedSide(folder=folder, label=label, manifest=manifest, base=manifest.base)


# ---------------------------------------------------------------- bytes and settings
def _opened(side: ComparedSide) -> FolderListing:
    """Return the files of one side, each opened once; refuses links out of the folder and anything but plain files."""
    listing = safe_listing(side.folder)
    for entry in listing.taken.values():
        try:
            _ = entry.held
        except OSError as error:
            raise not_read(error, shown(str(entry.path), 200), CouldNotTell) from None
    if WEIGHTS_FILE in listing.taken:
        try:
            read_weights_header(listing.taken[WEIGHTS_FILE])  # the digest check then knows its tensors
        except MalformedTensorFile as error:  # reported later, when its numbers are needed
            if error.code == "E_LIMIT":
                raise
    if side.is_installed:
        ensure_undamaged(differing(listing, side.manifest), f"{side.folder}/")
    return listing


def _files(first: FolderListing, second: FolderListing) -> Iterator[FilePair]:
    for name in MEDIA_TYPES:
        entries = [listing.taken.get(name) for listing in (first, second)]
        digests = [entry.held.digest if entry is not None else None for entry in entries]
        if any(digests):
            yield FilePair(path=name, first=digests[0], second=digests[1])


def _config(side: FolderListing) -> dict[str, Any]:
    """Return the config as stored; `AdapterFactors` checks it."""
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
    """Return whether one side sets the default and the other side lacks the setting."""
    present = [value for value in (field.first, field.second) if value is not ABSENT]
    return len(present) == 1 and (not present[0] or present[0] == _DEFAULTS.get(field.name, ABSENT))


def _fields(first: Mapping[str, Any], second: Mapping[str, Any], unordered: frozenset[str]) -> Iterator[Field]:
    """Yield the settings that differ, by their dotted names."""
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
def _weights(
    sides: tuple[ComparedSide, ComparedSide], opened: tuple[FolderListing, FolderListing], progress: Progress | None
) -> Weights:
    first, second = sides
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(AdapterFactors(side.folder, subject=open_files(side.folder, {}, opened=listing.taken)))
            for side, listing in zip(sides, opened, strict=True)
        )
        rule = _rule(one, other)
        theirs = {rule.apply(module): module for module in other.modules}
        unlike: dict[str, str] = {}
        modules: list[Distance] = []
        for module in sorted({*one.modules, *theirs}):
            mine, yours = one.modules.get(module), other.modules.get(theirs.get(module, ""))
            if mine and yours and mine.layout != yours.layout:
                unlike[module] = f"{mine.layout} in the first, {yours.layout} in the second"
            else:
                parts = one.parts(module) if mine else (), other.parts(theirs[module]) if yours else ()
                modules.append(_distance(module, *parts))
            if progress is not None:
                progress(1)
        others, unlike_others = _others(one, other, rule)
        caveats = tuple(_caveats((first, one), (second, other)))
    modules.sort(key=lambda m: (-m.apart, m.name))
    whole = Distance(
        name="",
        first=math.hypot(*(m.first or 0.0 for m in modules)),
        second=math.hypot(*(m.second or 0.0 for m in modules)),
        apart=math.hypot(*(m.apart for m in modules)),
    )
    return Weights(whole=whole, modules=tuple(modules), others=others, unlike=unlike | unlike_others, caveats=caveats)


def _rule(one: AdapterFactors, other: AdapterFactors) -> NameRule:
    """Return the rule that maps module names of the second adapter to those of the first."""
    rule = find_rule(list(other.modules), frozenset(one.modules))
    return rule if len({rule.apply(module) for module in other.modules}) == len(other.modules) else NameRule()


def _distance(module: str, first: Sequence[LowRank], second: Sequence[LowRank]) -> Distance:
    if not first or not second:
        norm = math.hypot(*(frobenius_norm(part) for part in (*first, *second)))
        return Distance(name=module, first=norm if first else None, second=norm if second else None, apart=norm)
    apart, mine, yours = [], [], []
    for one, other in zip(first, second, strict=True):
        error, norm = difference_norms([one], [1.0], other)
        apart.append(error)
        mine.append(norm)
        yours.append(difference_norms([other], [1.0], other)[1])
    return Distance(name=module, first=math.hypot(*mine), second=math.hypot(*yours), apart=math.hypot(*apart))


def _others(one: AdapterFactors, other: AdapterFactors, rule: NameRule) -> tuple[tuple[Distance, ...], dict[str, str]]:
    """Compare tensors that are not factors (saved modules, magnitudes, biases) number by number."""
    mine = _named(one, NameRule())
    yours = _named(other, rule)
    distances: list[Distance] = []
    unlike: dict[str, str] = {}
    for name in sorted(mine.keys() | yours.keys()):
        a, b = mine.get(name), yours.get(name)
        if a is not None and b is not None and a.shape != b.shape:
            unlike[name] = f"{list(a.shape)} in the first, {list(b.shape)} in the second"
            continue
        if any(spec is not None and spec.dtype not in READABLE for spec in (a, b)):
            if a is None or b is None or one.data(a) != other.data(b):
                unlike[name] = "stored in a dtype that is not measured"
            continue
        first = one.tensor(a).double() if a is not None else None
        second = other.tensor(b).double() if b is not None else None
        if first is not None and second is not None:
            difference = first - second
        else:
            difference = first if first is not None else second  # type: ignore[assignment]  # one of them exists
        norms = [None if t is None else float(t.norm()) for t in (first, second)]
        distances.append(Distance(name=name, first=norms[0], second=norms[1], apart=float(difference.norm())))
    return tuple(distances), unlike


def _named(factors: AdapterFactors, rule: NameRule) -> dict[str, TensorSpec]:
    biases = [pair.bias for pair in factors.modules.values() if pair.bias is not None]
    prefix = "base_model.model."
    return {
        prefix + rule.apply(spec.name.removeprefix(prefix)) if spec.name.startswith(prefix) else spec.name: spec
        for spec in (*factors.others, *biases)
    }


def _caveats(*sides: tuple[ComparedSide, AdapterFactors]) -> Iterator[str]:
    for side, factors in sides:
        config, label = factors.config, shown(side.label)
        for key, variant in config.variants.items():
            if variant.changes_update:
                yield f"`{label}` uses `{key}`: its update is not B·A alone, but the norms are of B·A"
        if config.start_changes_base or config.start_is_unknown:
            start = shown(config.init_lora_weights)
            yield f"`{label}` was initialised with `{start}`, which may change the base that its update adds to"
        if factors.unclear:
            yield f"`{label}` has {len(factors.unclear)} pairs whose meaning its files leave open; they are left out"
