"""Decides from a few numbers of each tensor whether the model in memory is the base that a fingerprint describes.

Hashing a model costs as much as reading it. The sampled numbers of a fingerprint cost milliseconds, and every tensor of
another training run differs in them. A change that misses the samples of all tensors goes unseen; so does one smaller
than rounding, between two precisions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from adapterhub.core.digests import canonical_json, digest_of
from adapterhub.core.errors import AdapterHubError, BaseMismatch, shown
from adapterhub.distribution.finding import FoundAdapter
from adapterhub.formats.base.fingerprint import (
    BaseComparison,
    BaseFingerprint,
    BaseVerdict,
    Interval,
    interval,
    is_buffer,
    is_vocabulary,
    may_be_same,
    number_text,
    resized_text,
    stored_bytes,
)
from adapterhub.formats.modules import OtherNames, other_names
from adapterhub.formats.safetensors.header import DTYPES, TensorSpec, sample_offsets
from adapterhub.inference.loader.base import BaseModel, model_types, source_intervals, source_shape
from adapterhub.library.bases.records import BaseRecord, Bases
from adapterhub.library.bases.requested import Families
from adapterhub.library.library import Library
from adapterhub.weights.dtypes import FORMAT_DTYPES

_PARTS: Final = 6  # a pipeline has at most as many models


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBase:
    """The model in memory as a fingerprint sees it: dtype, sampled numbers and shape by tensor name.

    `packed`: for quantised weights, the intervals in which the sampled numbers of their source must lie; their shape is
    that of the source. `others`: the tensors' names in other releases of transformers, which weight files keep; `types`
    are the model types of the modules that they follow from.
    """

    samples: Mapping[str, tuple[str, bytes]]
    shapes: Mapping[str, tuple[int, ...]]
    packed: Mapping[str, tuple[Interval, ...]]
    others: tuple[OtherNames, ...]
    types: Mapping[str, str]

    def part(self, component: str) -> LoadedBase:
        """One component of a pipeline, under the names that it has itself."""
        front = f"{component}."
        samples = {name[len(front) :]: s for name, s in self.samples.items() if name.startswith(front)}
        types = {
            f"{name}."[len(front) :].rstrip("."): t for name, t in self.types.items() if f"{name}.".startswith(front)
        }
        return LoadedBase(
            samples=samples,
            shapes={name: self.shapes[front + name] for name in samples},
            packed={name: self.packed[front + name] for name in samples if front + name in self.packed},
            others=other_names(samples, types),
            types=types,
        )


def sample_base(base: BaseModel) -> LoadedBase:
    """The sampled numbers of every tensor that a weight file of the base would hold; reads no others."""
    samples: dict[str, tuple[str, bytes]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor, is_kept in base.tensors():
        shape = tuple(tensor.shape)
        dtype = FORMAT_DTYPES.get(tensor.dtype)
        if not is_kept or dtype is None or is_buffer(name, shape):
            continue
        samples[name] = (dtype, _numbers_at_samples(tensor, TensorSpec.planned(name, dtype, shape)))
        shapes[name] = shape
    packed: dict[str, tuple[Interval, ...]] = {}
    for owner, module in base.modules.items():
        source, name = source_shape(module), f"{owner}.weight" if owner else "weight"
        if source is None or name not in samples:
            continue
        shapes[name] = source
        found = source_intervals(module, _places(TensorSpec.planned(name, "F32", source)))
        if found is not None:
            packed[name] = found
    types = model_types(base)
    return LoadedBase(samples=samples, shapes=shapes, packed=packed, others=other_names(samples, types), types=types)


def _places(spec: TensorSpec) -> list[int]:
    """The indices of the sampled elements in the flattened tensor; the same in every dtype."""
    width = stored_bytes(spec.dtype)
    return [offset // width for offset in sample_offsets(spec)]


def _numbers_at_samples(tensor: Tensor, spec: TensorSpec) -> bytes:
    places = torch.tensor(_places(spec), dtype=torch.int64, device=tensor.device)
    numbers = tensor.detach().take(places).cpu()
    return numbers.view(torch.uint8).numpy().tobytes() if len(numbers) else b""


def compare_base(declared: BaseFingerprint, loaded: LoadedBase) -> BaseComparison:
    """How the base `declared` relates to the model in memory.

    Skips heads that only one side has (a new classifier, an omitted language-model head) and tensors inside a layer
    that were fused on loading. A layer on one side only makes the two DIFFERENT. UNKNOWN if no names match.
    """
    pairs = _pairs(declared.samples, loaded.samples)
    for other in loaded.others if len(pairs) < len(declared.samples) else ():
        renamed = {name: other.here[found] for name, found in _pairs(declared.samples, other.here).items()}
        pairs = max(pairs, renamed, key=len)
    if not pairs:
        return BaseComparison(
            verdict=BaseVerdict.UNKNOWN, differences=("no tensor of the model has the name of one in its base",)
        )
    lone = _lone_layers(declared.samples, pairs.keys(), "its base")
    lone += _lone_layers(loaded.samples, set(pairs.values()), "this model")
    values = _compare_values(declared, loaded, pairs)
    if lone:
        return BaseComparison(verdict=BaseVerdict.DIFFERENT, differences=(*lone, values.sentence))
    if not values.seen:
        return BaseComparison(verdict=BaseVerdict.UNKNOWN, differences=(*values.precision, values.sentence))
    if values.apart:
        if _has_same_shapes(declared, loaded, pairs) is False:
            resized = _resized_vocabulary(declared, loaded, pairs)
            if resized is not None:
                return resized
            shapes = "the tensors have the same names, but not all have the same shape"
            return BaseComparison(verdict=BaseVerdict.DIFFERENT, differences=(shapes, values.sentence))
        return BaseComparison(verdict=BaseVerdict.SAME_SHAPES, differences=(values.sentence,))
    verdict = BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION if values.precision else BaseVerdict.SAME_WEIGHTS
    return BaseComparison(verdict=verdict, differences=(*values.precision, values.sentence))


def _resized_vocabulary(
    declared: BaseFingerprint, loaded: LoadedBase, pairs: Mapping[str, str]
) -> BaseComparison | None:
    """The comparison if only tensors with a row for each token have other shapes and values than in the base."""
    others = {name: here for name, here in pairs.items() if not is_vocabulary(name)}
    values = _compare_values(declared, loaded, others)
    if len(others) == len(pairs) or values.apart or not values.seen:
        return None
    differences = (resized_text(pairs.keys() - others.keys(), len(others)), *values.precision)
    return BaseComparison(verdict=BaseVerdict.SAME_WEIGHTS_RESIZED_VOCABULARY, differences=differences)


def identify(loaded: LoadedBase, bases: Bases) -> BaseRecord | None:
    """The registered base that equals the model in memory; one with equal numbers before one in another precision.

    A component of a pipeline goes before the pipeline, and the other way round, by the number of tensors.
    """
    same = (BaseVerdict.SAME_WEIGHTS, BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION)
    found = [(compare_base(record.fingerprint, loaded).verdict, record) for record in bases.list()]
    matching = [(same.index(verdict), record) for verdict, record in found if verdict in same]
    size = len(loaded.samples)
    best = min(matching, key=lambda m: (m[0], abs(len(m[1].fingerprint.samples) - size)), default=None)
    return best[1] if best else None


def _pairs(declared: Mapping[str, object], loaded: Mapping[str, object]) -> dict[str, str]:
    """The name in `loaded` for each name in `declared`; one side may have an extra first part, as with a head."""
    candidates = [{name: name for name in declared if name in loaded}]
    candidates += [{n: part + n for n in declared if part + n in loaded} for part in _first_parts(loaded)]
    candidates += [{part + n: n for n in loaded if part + n in declared} for part in _first_parts(declared)]
    return max(candidates, key=len)


def _first_parts(names: Iterable[str]) -> list[str]:
    return [part for part, _ in Counter(name.partition(".")[0] + "." for name in names).most_common(_PARTS)]


def _lone_layers(names: Iterable[str], matched: Iterable[str], where: str) -> tuple[str, ...]:
    """A sentence if only one side has some of the numbered layers in a part that both have."""
    matched = set(matched)
    layers = {_layer_of(name) for name in matched}
    parts = {name.partition(".")[0] for name in matched}
    lone = {
        layer
        for name in names
        if name not in matched
        and (layer := _layer_of(name))
        and layer not in layers
        and name.partition(".")[0] in parts
    }
    if not lone:
        return ()
    example = min(lone, key=lambda layer: (len(layer), layer))
    return (f"{len(lone)} layers are in {where} only, such as `{shown(example)}`",)


def _layer_of(name: str) -> str:
    """The name up to its first number (`model.layers.3`); "" if it has none."""
    parts = name.split(".")
    return next((".".join(parts[: at + 1]) for at, part in enumerate(parts) if part.isdecimal()), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Values:
    """How many sampled numbers were compared (`seen`), how many of them differ (`apart`), and both in words."""

    seen: int
    apart: int
    precision: tuple[str, ...]
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packed:
    """The same for tensors that are quantised here and not in the base; `unread` could not be compared."""

    seen: int
    apart: int
    tensors: frozenset[str]
    unread: int
    example: str


def _compare_packed(declared: BaseFingerprint, loaded: LoadedBase, pairs: Mapping[str, str]) -> _Packed:
    """Compare the sampled numbers of the base with the intervals of the quantised numbers here."""
    seen = apart = unread = 0
    example = ""
    tensors = [
        n
        for n, h in pairs.items()
        if DTYPES[loaded.samples[h][0]].is_integer and not DTYPES[declared.samples[n][0]].is_integer
    ]
    for name in sorted(tensors):
        (dtype, raw), rooms = declared.samples[name], loaded.packed.get(pairs[name])
        unread += rooms is None
        for number, room in zip(_split(dtype, raw), rooms or (), strict=False):
            seen += 1
            if not _may_lie(dtype, number, room):
                apart += 1
                here = f"between {room[0]:.3g} and {room[1]:.3g} here"
                example = example or f"`{shown(name)}` ({number_text(dtype, number)} in its base, {here})"
    return _Packed(seen=seen, apart=apart, tensors=frozenset(tensors), unread=unread, example=example)


def _compare_values(declared: BaseFingerprint, loaded: LoadedBase, pairs: Mapping[str, str]) -> _Values:
    packed = _compare_packed(declared, loaded, pairs)
    seen, apart, example, is_plain = packed.seen, packed.apart, "", False
    dtypes: Counter[tuple[str, str]] = Counter()
    for name, here in sorted(pairs.items()):
        (dtype, raw), (dtype_here, raw_here) = declared.samples[name], loaded.samples[here]
        if name in packed.tensors:
            continue
        if dtype != dtype_here:
            dtypes[dtype, dtype_here] += 1
        for first, second in zip(_split(dtype, raw), _split(dtype_here, raw_here), strict=False):
            seen += 1
            if not may_be_same(dtype, first, dtype_here, second):
                apart += 1
                theirs, ours = number_text(dtype, first), number_text(dtype_here, second)
                # Prefer an example whose difference shows in six digits.
                if not example or (theirs != ours and not is_plain):
                    example, is_plain = f"`{shown(name)}` ({theirs} in its base, {ours} here)", theirs != ours
    precision = tuple(
        f"{count:,} tensors are {there} in its base and {here} here" for (there, here), count in dtypes.most_common()
    )
    compared = len(packed.tensors) - packed.unread
    if compared:
        precision += (f"{compared:,} tensors are quantised here and were compared within their steps",)
    if packed.unread:
        precision += (f"{packed.unread:,} tensors are quantised here and were not compared",)
    sentence = f"all {seen:,} sampled values of {len(pairs) - packed.unread:,} tensors agree"
    unpaired = len(declared.samples) - len(pairs)
    if unpaired:
        sentence += f" ({unpaired:,} of its base have no counterpart here and were not compared)"
    if apart:
        sentence = f"{apart:,} of {seen:,} sampled values differ, for example in {example or packed.example}"
    elif not seen:
        sentence = "none of its tensors could be compared"
    return _Values(seen=seen, apart=apart, precision=precision, sentence=sentence)


def _may_lie(dtype: str, raw: bytes, room: Interval) -> bool:
    """Whether quantising a stored number can give one in the interval `room`."""
    own = interval(dtype, raw)
    return own is not None and own[0] <= room[1] and room[0] <= own[1]


def _split(dtype: str, raw: bytes) -> list[bytes]:
    width = stored_bytes(dtype)
    return [raw[at : at + width] for at in range(0, len(raw), width)]


def _has_same_shapes(declared: BaseFingerprint, loaded: LoadedBase, pairs: Mapping[str, str]) -> bool | None:
    """Whether the two have the same structure; None if a tensor of the base has no counterpart."""
    if pairs.keys() != declared.samples.keys():
        return None
    listed = [[name, list(loaded.shapes[here])] for name, here in sorted(pairs.items())]
    return digest_of(canonical_json(listed)) == declared.structure


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseCheckResult:
    """How the model compares with the base of one adapter, and the warnings that follow."""

    comparison: BaseComparison
    warnings: tuple[str, ...] = ()


class BaseCheck:
    """Compares the model with the base that each adapter was made for, and with the base that the caller named."""

    def __init__(
        self,
        library: Library,
        loaded: LoadedBase,
        known_base: Callable[[], BaseRecord | None],
        *,
        allow_base_mismatch: bool,
        component: str = "",
    ) -> None:
        self.component = component
        self.library = library
        self.loaded = loaded
        self.known_base = known_base
        self.allow_base_mismatch = allow_base_mismatch
        self._comparisons: list[tuple[BaseFingerprint, BaseComparison]] = []

    def run(self, found: FoundAdapter) -> BaseCheckResult:
        """Compare one adapter's base.

        Raises:
            BaseMismatch: the model is another base.
        """
        named = found.wanted.record if found.wanted else None
        if named and self.component in named.components:
            named = named.part(self.component)
        warnings: list[str] = []
        with_named = self._compare(named.fingerprint) if named else None
        if with_named and named:
            warnings += self._check(found, with_named, lambda: f"was requested for base `{named.label}`")
        if found.base.fingerprint is None:
            hub_id = found.base.hints.hub_id
            config_names = f"; its config names `{shown(hub_id)}`" if hub_id else ""
            warnings.append(f"declares no base fingerprint{config_names}")
            unknown = BaseComparison(verdict=BaseVerdict.UNKNOWN, differences=("it declares no fingerprint",))
            return BaseCheckResult(comparison=with_named or unknown, warnings=tuple(warnings))
        comparison = self._compare(found.base.fingerprint)
        weights = found.base.fingerprint.weights[7:19]
        warnings += self._check(
            found, comparison, lambda: f"was made for base `{shown(self.library.base_label(found.base))}` ({weights})"
        )
        if comparison.verdict is BaseVerdict.SAME_WEIGHTS_RESIZED_VOCABULARY:
            label = self.library.base_label(found.base)
            warnings.append(
                f"was made for base `{shown(label)}` before its vocabulary was resized: {comparison.differences[0]}"
            )
        if comparison.verdict is BaseVerdict.SAME_FAMILY:
            warnings.append(f"runs on another base of its family: {comparison.differences[0]}")
        if comparison.verdict is BaseVerdict.UNKNOWN:
            warnings += [f"could not be compared with its base: {d}" for d in comparison.differences]
        return BaseCheckResult(comparison=comparison, warnings=tuple(warnings))

    def allows(self, found: FoundAdapter) -> bool:
        """Whether the model may be the base that the adapter declares; true when it declares none."""
        return found.base.fingerprint is None or self._compare(found.base.fingerprint).verdict.allows_attach

    def _compare(self, fingerprint: BaseFingerprint) -> BaseComparison:
        """`compare_base`, run once for each fingerprint."""
        # The whole fingerprint is the key: a manifest with false samples must not answer for another one.
        for known, comparison in self._comparisons:
            if known == fingerprint:
                return comparison
        comparison = compare_base(fingerprint, self.loaded)
        actual = self.known_base() if comparison.verdict is BaseVerdict.SAME_SHAPES else None
        if actual is not None:
            comparison = Families(self.library.bases).judged(comparison, fingerprint, actual.fingerprint)
        self._comparisons.append((fingerprint, comparison))
        return comparison

    def _check(self, found: FoundAdapter, comparison: BaseComparison, describe: Callable[[], str]) -> list[str]:
        """Raise unless the verdict permits the attach; a warning if only the caller permits it.

        `describe` gives the adapter's claim, for the message.
        """
        verdict = comparison.verdict
        if verdict.allows_attach:
            return []
        claim = describe()
        actual = self.known_base()
        this = f"`{actual.label}` ({actual.fingerprint.weights[7:19]})" if actual else "not a registered base"
        if verdict is BaseVerdict.SAME_SHAPES and self._is_overridden(found, actual):
            return [f"{claim}, this model is {this}: attached anyway, because a base mismatch is allowed"]
        hint = "load the base that it was made for"
        if verdict is BaseVerdict.SAME_SHAPES:
            hint += f"; {_way_around(found, actual)} (in Python, allow_base_mismatch=True)"
        elif actual:
            hint += f"; `adapt search --base {actual.label}` lists adapters for this one"
        lines = [
            f"`{shown(found.label, 200)}` {claim}, this model is {this}",
            *(f"  {d}" for d in comparison.differences),
        ]
        raise BaseMismatch("\n".join(lines), hint=hint)

    def _is_overridden(self, found: FoundAdapter, actual: BaseRecord | None) -> bool:
        """Whether the caller allows the mismatch now, or the build was installed for this base with that option."""
        if self.allow_base_mismatch or found.build is None or actual is None:
            return self.allow_base_mismatch
        return self.library.mismatch_allowed(found.build, actual.fingerprint)


def _way_around(found: FoundAdapter, actual: BaseRecord | None) -> str:
    """How to put an adapter on another base on purpose, whichever command refused it."""
    if found.build is None or actual is None:
        return "`adapt run --allow-base-mismatch` attaches it anyway"
    command = f"adapt install {shown(found.label, 200)} --base {actual.label} --allow-base-mismatch"
    return f"`{command}` allows this base for it"


def pin(library: Library, found: FoundAdapter, known_base: Callable[[], BaseRecord | None]) -> tuple[str, ...]:
    """Record the base of a build that declares none; returns the outcome as a warning."""
    build = found.build
    if build is None or found.base.fingerprint is not None:
        return ()
    named = found.wanted.record if found.wanted else None
    record = named if named and named.alias else known_base()
    if record is None:
        return ("is not pinned: this model is not a registered base (`adapt base add PATH` registers one)",)
    try:
        library.pin_base(build, record)
    except AdapterHubError as error:
        # The adapter works; a failure to record its base must not take it off again.
        return (f"could not be pinned to base `{record.label}`: {error.message.splitlines()[0]}",)
    return (f"is now pinned to base `{record.label}`, to which it was attached",)
