"""Decides from a few numbers of each tensor whether the model in memory is the base that a fingerprint describes.

Hashing a model costs as much as reading it. The sampled numbers of a fingerprint cost milliseconds, and every tensor of
another training run differs in them. A change that misses the samples of all tensors goes unseen; so does one smaller
than rounding, between two precisions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from adapterhub.core.errors import AdapterHubError, BaseMismatch, shown
from adapterhub.distribution.finding import FoundAdapter
from adapterhub.formats.base.comparison import resized_text
from adapterhub.formats.base.copies import BOTH_QUANTISED, evidence_of, unknown_format, verdict_of
from adapterhub.formats.base.fingerprint import (
    BaseComparison,
    BaseFingerprint,
    BaseVerdict,
    CopyRange,
    Interval,
    interval,
    is_buffer,
    is_vocabulary,
    may_be_same,
    number_text,
    split_numbers,
    stored_bytes,
    structure_of,
)
from adapterhub.formats.base.pairing import lone_layers, paired
from adapterhub.formats.safetensors.header import TensorSpec, sample_offsets
from adapterhub.inference.loader.base import BaseModel
from adapterhub.inference.loader.file_names import FileTensor, FileTensors
from adapterhub.inference.loader.packed import PackedModules, packed_in
from adapterhub.library.bases.records import BaseRecord, Bases
from adapterhub.library.library import Library
from adapterhub.weights.dtypes import FORMAT_DTYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBase:
    """The model in memory as a fingerprint sees it: dtype and sampled numbers of each tensor in floats, and all shapes.

    `packed`: the weights that are quantised here, by the names of their source, whose shapes they have. `files` finds
    the tensors of weight files, which may have other names and be cut otherwise.
    """

    samples: Mapping[str, tuple[str, bytes]]
    shapes: Mapping[str, tuple[int, ...]]
    packed: Mapping[str, CopyRange]
    files: FileTensors
    base: BaseModel

    def part(self, component: str) -> LoadedBase:
        """One component of a pipeline, under the names that it has itself."""
        samples, shapes = _inside(self.samples, component), _inside(self.shapes, component)
        packed = _inside(self.packed, component)
        files = FileTensors(self.base, component, packed)
        return LoadedBase(samples=samples, shapes=shapes, packed=packed, files=files, base=self.base)

    def as_in(self, declared: BaseFingerprint) -> LoadedBase:
        """Return the same under the names of a file, `declared`; tensors that such a file lacks keep theirs.

        Tensors that were stacked, joined, cut or turned on loading are sampled where the file has its samples.
        """
        samples: dict[str, tuple[str, bytes]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        packed: dict[str, CopyRange] = {}
        own: set[str] = set()

        def take(name: str, place: str) -> None:
            shapes[name] = self.shapes[place]
            if place in self.packed:
                packed[name] = self.packed[place]
            else:
                samples[name] = self.samples[place]

        for name, place in self.files.places(_numbers_of(declared)).items():
            if isinstance(place, str):
                if place in self.shapes:
                    take(name, place)
                    own.add(place)
                continue
            made = [(tensor, sample) for tensor in place if (sample := _sample(name, tensor)) is not None]
            if made:
                agreeing = (pair for pair in made if _agrees(declared, name, pair[1]))
                tensor, samples[name] = next(agreeing, made[0])
                shapes[name] = tensor.shape
        for name in self.shapes.keys() - own - shapes.keys():
            take(name, name)
        return replace(self, samples=samples, shapes=shapes, packed=packed)


_T = TypeVar("_T")


def _inside(named: Mapping[str, _T], component: str) -> dict[str, _T]:
    front = f"{component}."
    return {name[len(front) :]: one for name, one in named.items() if name.startswith(front)}


def sample_base(base: BaseModel) -> LoadedBase:
    """Return the sampled numbers of every tensor that a weight file of the base would hold; reads no others.

    Codes that the first forward would write out as floats are floats afterwards, see `BaseModel.write_out`.
    """
    packed = packed_in(base)
    if base.write_out():
        _written[base.model] = packed
    samples: dict[str, tuple[str, bytes]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor, is_kept in base.tensors():
        shape = tuple(tensor.shape)
        dtype = FORMAT_DTYPES.get(tensor.dtype)
        if not is_kept or dtype is None or is_buffer(name, shape) or name in packed.parts or name in packed.ranges:
            continue
        samples[name] = (dtype, _bytes_of(FileTensor((tensor,)).take(_places(TensorSpec.planned(name, dtype, shape)))))
        shapes[name] = shape
    before = _written.get(base.model)
    if before and all(name in samples and _is_written_out(one, samples[name]) for name, one in before.ranges.items()):
        packed = before
    shapes |= {name: one.shape for name, one in packed.ranges.items()}
    samples = {name: sample for name, sample in samples.items() if name not in packed.ranges}
    files = FileTensors(base, packed=packed.ranges)
    return LoadedBase(samples=samples, shapes=shapes, packed=packed.ranges, files=files, base=base)


_written: Final[WeakKeyDictionary[nn.Module, PackedModules]] = WeakKeyDictionary()
"""What the codes of models said before they were written out; the next attach needs it again."""


def _numbers_of(declared: BaseFingerprint) -> Mapping[str, object]:
    """Return the tensors of a model whose numbers its fingerprint knows, by name: those of the source of a copy."""
    return {**declared.samples, **(declared.copy.ranges if declared.copy else {})}


def _agrees(declared: BaseFingerprint, name: str, sample: tuple[str, bytes]) -> bool:
    if declared.copy is not None and name in declared.copy.ranges:
        return _is_written_out(declared.copy.ranges[name], sample)
    return sample[1].startswith(declared.samples[name][1])


def _sample(name: str, tensor: FileTensor) -> tuple[str, bytes] | None:
    dtype = FORMAT_DTYPES.get(tensor.pieces[0].dtype)
    if dtype is None:
        return None
    return dtype, _bytes_of(tensor.take(_places(TensorSpec.planned(name, dtype, tensor.shape))))


def _places(spec: TensorSpec) -> list[int]:
    """Return the indices of the sampled elements in the flattened tensor; the same in every dtype."""
    width = stored_bytes(spec.dtype)
    return [offset // width for offset in sample_offsets(spec)]


def _bytes_of(numbers: Tensor) -> bytes:
    return numbers.cpu().contiguous().view(torch.uint8).numpy().tobytes() if len(numbers) else b""


def compare_base(declared: BaseFingerprint, loaded: LoadedBase) -> BaseComparison:
    """Return how the base `declared` relates to the model in memory.

    Skips heads that only one side has (a new classifier, an omitted language-model head) and tensors that were joined
    on loading in a way that cannot be looked through. A layer on one side only makes the two DIFFERENT. UNKNOWN if no
    names match.
    """
    names = _numbers_of(declared)
    pairs = paired(names, loaded.shapes)
    comparison = _compare(declared, loaded, pairs)
    if comparison.verdict.is_same_model and len(pairs) == len(names):
        return comparison
    loaded = loaded.as_in(declared)
    return _compare(declared, loaded, paired(names, loaded.shapes))


def _compare(declared: BaseFingerprint, loaded: LoadedBase, pairs: Mapping[str, str]) -> BaseComparison:
    if not pairs:
        return BaseComparison(
            verdict=BaseVerdict.UNKNOWN, differences=("no tensor of the model has the name of one in its base",)
        )
    lone = lone_layers(_numbers_of(declared), pairs.keys(), "its base")
    lone += lone_layers(loaded.shapes, set(pairs.values()), "this model")
    found = _compare_values(declared, loaded, pairs)
    if lone:
        is_apart = found.verdict is BaseVerdict.SAME_SHAPES
        rest = found.differences[-1] if is_apart else "the tensors that both have agree in all sampled values"
        return BaseComparison(verdict=BaseVerdict.DIFFERENT, differences=(*lone, rest))
    if found.verdict is BaseVerdict.SAME_SHAPES and _has_same_shapes(declared, loaded, pairs) is False:
        resized = _resized_vocabulary(declared, loaded, pairs)
        if resized is not None:
            return resized
        shapes = "the tensors have the same names, but not all have the same shape"
        return BaseComparison(verdict=BaseVerdict.DIFFERENT, differences=(shapes, found.differences[-1]))
    return found


def _resized_vocabulary(
    declared: BaseFingerprint, loaded: LoadedBase, pairs: Mapping[str, str]
) -> BaseComparison | None:
    """Return the comparison if only tensors with a row for each token have other shapes and values than in the base."""
    others = {name: here for name, here in pairs.items() if not is_vocabulary(name)}
    found = _compare_values(declared, loaded, others)
    if len(others) == len(pairs) or not found.verdict.is_same_model:
        return None
    differences = (resized_text(pairs.keys() - others.keys(), len(others)), *found.differences[:-1])
    return BaseComparison(verdict=BaseVerdict.SAME_WEIGHTS_RESIZED_VOCABULARY, differences=differences)


def identify(loaded: LoadedBase, bases: Bases) -> BaseRecord | None:
    """Return the registered base that equals the model in memory.

    One with equal numbers before one in another precision.

    A quantised copy of the model, and a model of which this is a copy, come last. A component of a pipeline goes before
    the pipeline, and the other way round, by the number of tensors.
    """
    same = (
        BaseVerdict.SAME_WEIGHTS,
        BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION,
        BaseVerdict.SAME_WEIGHTS_QUANTISED,
    )
    found = [(compare_base(record.fingerprint, loaded).verdict, record) for record in bases.list()]
    matching = [(same.index(verdict), record) for verdict, record in found if verdict in same]
    size = len(loaded.shapes)
    best = min(matching, key=lambda m: (m[0], abs(len(m[1].fingerprint.samples) - size)), default=None)
    return best[1] if best else None


_SIDES: Final = ("base", "model in memory")


def _compare_values(declared: BaseFingerprint, loaded: LoadedBase, pairs: Mapping[str, str]) -> BaseComparison:
    """Compare the sampled numbers; the last difference sums up. UNKNOWN if there are none to compare.

    Either side may be quantised: the numbers of the other then lie in the intervals of its codes. The floats in memory
    may also be the numbers that a copy computes with, or those of the same copy.
    """
    copy = declared.copy
    read = {name: here for name, here in pairs.items() if here not in loaded.packed or loaded.packed[here].raw}
    unread = len(pairs) - len(read)
    lacking = len(_numbers_of(declared)) - len(pairs)
    notes: tuple[str, ...] = (f"{unread:,} tensors are quantised here and were not compared",) if unread else ()
    codes = {name for name in read if copy is not None and name in copy.ranges}
    packed = {here for here in read.values() if here in loaded.packed}
    if copy is not None and (codes or copy.unknown):
        is_same = all(_is_same_code(copy.ranges[name], loaded, read[name]) for name in codes)
        if copy.unknown and (not is_same or unread or lacking):
            return unknown_format(copy.unknown, copy.form, _SIDES[::-1])
        if is_same:
            written = f"{len(codes):,} tensors are codes in its base, and here the numbers that these stand for"
            plain = {name: here for name, here in read.items() if name not in codes}
            notes = notes if packed or not codes else (*notes, written)
            return _in_floats(declared, loaded, plain, notes, agreeing=len(codes), lacking=lacking)
        if packed:
            return BaseComparison(verdict=BaseVerdict.CANNOT_TELL, differences=(*notes, BOTH_QUANTISED))
        back = {here: name for name, here in read.items()}
        found = verdict_of(evidence_of(loaded.samples, declared.samples, copy.ranges, back), copy.form, _SIDES[::-1])
    elif packed:
        form = Counter(loaded.packed[here].form for here in packed).most_common(1)[0][0]
        found = verdict_of(evidence_of(declared.samples, loaded.samples, loaded.packed, read), form, _SIDES)
    else:
        return _in_floats(declared, loaded, read, notes, agreeing=0, lacking=lacking)
    if lacking:
        notes += (f"{lacking:,} tensors of its base have no counterpart here and were not compared",)
    return replace(found, differences=(*notes, *found.differences))


def _is_same_code(code: CopyRange, loaded: LoadedBase, here: str) -> bool:
    if here in loaded.packed:
        own = [value for _, _, value in loaded.packed[here].triples]
        return _is_near(code, [(value, value) for value in own])
    return _is_written_out(code, loaded.samples[here])


def _is_written_out(code: CopyRange, sample: tuple[str, bytes]) -> bool:
    """Return whether sampled floats are the numbers that the codes stand for."""
    dtype, raw = sample
    return _is_near(code, [interval(dtype, one) or (math.nan, math.nan) for one in split_numbers(dtype, raw)])


_ERROR: Final = 1e-5
"""Of computing a number from code and scale in float32, as part of the largest one."""


def _is_near(code: CopyRange, rooms: list[Interval]) -> bool:
    """Whether each value lies in its interval, or at most as much outside as the interval is wide (rounded twice)."""
    values = [value for _, _, value in code.triples]
    slack = _ERROR * max(map(abs, values), default=0.0)
    near = (
        low - (high - low) - slack <= value <= high + (high - low) + slack
        for value, (low, high) in zip(values, rooms, strict=False)
    )
    return bool(values and rooms) and all(near)


def _in_floats(
    declared: BaseFingerprint,
    loaded: LoadedBase,
    pairs: Mapping[str, str],
    notes: tuple[str, ...],
    *,
    agreeing: int,
    lacking: int,
) -> BaseComparison:
    """Compare tensors that are floats on both sides; `agreeing` others are the same, and this model lacks `lacking`."""
    seen = apart = 0
    examples: list[tuple[int, str]] = []
    dtypes: Counter[tuple[str, str]] = Counter()
    for name, here in sorted(pairs.items()):
        (dtype, raw), (dtype_here, raw_here) = declared.samples[name], loaded.samples[here]
        dtypes[dtype, dtype_here] += dtype != dtype_here
        for first, second in zip(split_numbers(dtype, raw), split_numbers(dtype_here, raw_here), strict=False):
            seen += 1
            if not may_be_same(dtype, first, dtype_here, second):
                apart += 1
                theirs, ours = number_text(dtype, first), number_text(dtype_here, second)
                examples.append((int(theirs == ours), f"`{shown(name)}` ({theirs} in its base, {ours} here)"))
    precision = notes + tuple(
        f"{count:,} tensors are {there} in its base and {here} here"
        for (there, here), count in dtypes.most_common()
        if count
    )
    if apart:
        _, example = min(examples, key=lambda one: one[0])  # one whose difference shows in six digits, if there is one
        sentence = f"{apart:,} of {seen:,} sampled values differ, for example in {example}"
        return BaseComparison(verdict=BaseVerdict.SAME_SHAPES, differences=(sentence,))
    if not seen and not agreeing:
        sentence = "none of its tensors could be compared"
        return BaseComparison(verdict=BaseVerdict.UNKNOWN, differences=(*precision, sentence))
    others = "other " if agreeing else ""
    sentence = f"all {seen:,} sampled values of {len(pairs):,} {others}tensors agree"
    if lacking:
        sentence += f" ({lacking:,} of its base have no counterpart here and were not compared)"
    verdict = BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION if precision else BaseVerdict.SAME_WEIGHTS
    return BaseComparison(verdict=verdict, differences=(*precision, *([sentence] if seen else [])))


def _has_same_shapes(declared: BaseFingerprint, loaded: LoadedBase, pairs: Mapping[str, str]) -> bool | None:
    """Return whether the two have the same structure; None if a tensor of the base has no counterpart."""
    if pairs.keys() != _numbers_of(declared).keys():
        return None
    structure = declared.copy.structure if declared.copy else declared.structure
    return structure_of((name, loaded.shapes[here]) for name, here in pairs.items()) == structure


_MAY_BE_COPY: Final = (BaseVerdict.SAME_SHAPES, BaseVerdict.CANNOT_TELL, BaseVerdict.LIKELY_SAME_QUANTISED)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseCheckResult:
    """How the model compares with the base of one adapter, and the warnings that follow."""

    comparison: BaseComparison
    warnings: tuple[str, ...] = ()


_DECIDED = frozenset({BaseVerdict.SAME_FAMILY, BaseVerdict.SAME_WEIGHTS_QUANTISED, BaseVerdict.ACCEPTED_QUANTISED})
"""What a library knows of two bases beyond the numbers in memory."""


class BaseCheck:
    """Compares the model with the base that each adapter was made for, and with the base that the caller named.

    `to_test` permits every other base: its modules and their shapes decide, when the adapter is read.
    """

    def __init__(
        self,
        library: Library,
        loaded: LoadedBase,
        known_base: Callable[[], BaseRecord | None],
        *,
        allow_base_mismatch: bool,
        component: str = "",
        to_test: bool = False,
    ) -> None:
        self.component, self.to_test = component, to_test
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
        if comparison.verdict is BaseVerdict.ACCEPTED_QUANTISED:
            said = comparison.differences[0]
            warnings.append(f"runs on what is likely a copy of its base, which you accepted: {said}")
        if comparison.verdict is BaseVerdict.UNKNOWN:
            warnings += [f"could not be compared with its base: {d}" for d in comparison.differences]
        return BaseCheckResult(comparison=comparison, warnings=tuple(warnings))

    def allows(self, found: FoundAdapter) -> bool:
        """Return whether the model may be the base that the adapter declares; true when it declares none."""
        return found.base.fingerprint is None or self._compare(found.base.fingerprint).verdict.allows_attach

    def _compare(self, fingerprint: BaseFingerprint) -> BaseComparison:
        """`compare_base`, run once for each fingerprint."""
        # The whole fingerprint is the key: a manifest with false samples must not answer for another one.
        for known, comparison in self._comparisons:
            if known == fingerprint:
                return comparison
        comparison = compare_base(fingerprint, self.loaded)
        actual = self.known_base() if comparison.verdict in _MAY_BE_COPY else None
        if actual is not None:
            comparison = self._through(actual, fingerprint) or comparison
        self._comparisons.append((fingerprint, comparison))
        return comparison

    def _through(self, actual: BaseRecord, declared: BaseFingerprint) -> BaseComparison | None:
        """Return the library's record of the base that this model is, and of the declared one; None if that is gone.

        It may be a quantised copy, proven or accepted, or of the same family.
        """
        same = (BaseVerdict.SAME_WEIGHTS, BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION)
        found = self.library.bases.judged(declared, actual.fingerprint)
        if actual.fingerprint.copy is None:
            return found if found.verdict in _DECIDED or found.hint else None
        is_it = compare_base(actual.fingerprint, self.loaded).verdict in same
        if not is_it or found.verdict is BaseVerdict.DIFFERENT:
            return None
        return replace(found, differences=(f"this model is the copy `{actual.label}` of it", *found.differences))

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
        if self.to_test:
            return [f"{claim}, this model is {this}: attached to be tested"]
        if verdict is BaseVerdict.SAME_SHAPES and self._is_overridden(found, actual):
            return [f"{claim}, this model is {this}: attached anyway, because a base mismatch is allowed"]
        hint = comparison.hint or "load the base that it was made for"
        if verdict is BaseVerdict.SAME_SHAPES:
            hint += (
                "; if it was loaded from a quantised copy, `adapt base add COPY` proves that" if actual is None else ""
            )
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
    """Return how to put an adapter on another base on purpose, whichever command refused it."""
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
