"""Whether a quantised copy is the copy of a model: every number of the source lies in the interval of its code.

A code and its scale stand for the numbers that the writer rounds to it. If all sampled numbers of a model lie there, it
is the source, except for changes smaller than a step; a fine-tune leaves the intervals at many places. Formats that
move numbers (GPTQ, AWQ, codebooks) give graded evidence only, and a verdict of its own.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from adapterhub.core.errors import shown
from adapterhub.formats.base.fingerprint import (
    BaseComparison,
    BaseFingerprint,
    BaseVerdict,
    CopyRange,
    Samples,
    interval,
    is_vocabulary,
    may_be_same,
    number_text,
    split_numbers,
)
from adapterhub.formats.base.pairing import absent_parts, lone_layers, paired
from adapterhub.formats.gguf.names import gguf_name
from adapterhub.formats.safetensors.header import DTYPES

_LISTED: Final = 3

_LEAST_OF_ALIKE: Final = 0.5

VAGUE: Final = 16.0
"""How many root mean squares of a source's numbers around 0 an interval holds of which nothing follows."""
_MOST_VAGUE: Final = 0.25

BOTH_QUANTISED: Final = "both are quantised, and neither is the source of the other; compare each with the source"

Sides = tuple[str, str]
"""What messages call the source and the copy."""


class Seen(NamedTuple):
    """One sampled number: what the source has and its rounding, and what the copy says of it."""

    number: float
    source: tuple[float, float]
    copy: tuple[float, float]
    value: float

    @property
    def is_lost(self) -> bool:
        """Whether the copy has no number there."""
        return math.isnan(self.value)

    @property
    def distance(self) -> float:
        """How far the number is from the copy's; infinite where the copy has none."""
        return math.inf if self.is_lost else abs(self.number - self.value)

    @property
    def is_outside(self) -> bool:
        """Whether no rounding of the source explains the code."""
        return not (self.source[0] <= self.copy[1] and self.copy[0] <= self.source[1])


ONE_MORE: Final = "one more"
"""The norms of Gemma multiply by one more than their weight; llm-compressor adds it in bfloat16 and takes it off."""


def _float16(number: float) -> float:
    try:
        return float(struct.unpack("<e", struct.pack("<e", number))[0])
    except OverflowError:
        return math.copysign(math.inf, number)


def _bfloat16(number: float) -> float:
    (code,) = struct.unpack("<I", struct.pack("<f", number))
    rounded = (code + 0x7FFF + (code >> 16 & 1)) & 0xFFFF_0000
    return float(struct.unpack("<f", struct.pack("<I", rounded))[0])


CHANGES: Final[Mapping[str, Callable[[float], float]]] = MappingProxyType(
    {"float16": _float16, "bfloat16": _bfloat16, ONE_MORE: lambda number: _bfloat16(_bfloat16(1 + number) - 1)}
)
"""What writers do to a number of the source before they keep it."""
OF_A_MODEL: Final = ("float16", "bfloat16")


def changes_of(dtype: str, *, is_norm: bool) -> tuple[str, ...]:
    """Return the changes that a writer may make to a tensor of that dtype; `is_norm`: the copy keeps it as floats."""
    return (OF_A_MODEL if dtype in ("F32", "F64") else ()) + ((ONE_MORE,) if is_norm else ())


@dataclass(slots=True, kw_only=True)
class Tally:
    """What the numbers of one tensor say: how many were compared, and how many leave the interval of their code.

    `lost`: numbers that the copy does not have; `unbounded`: those that it has without an interval; `vague`: those
    whose interval is too wide to prove anything, see `VAGUE`. The sums are of squares and products of source and copy.
    `example`: the number that is farthest from its interval. `otherwise`: how many would be outside if the writer had
    changed the source before, by the name of the change in `CHANGES`.
    """

    numbers: int = 0
    outside: int = 0
    lost: int = 0
    unbounded: int = 0
    vague: int = 0
    source: float = 0.0
    copy: float = 0.0
    both: float = 0.0
    example: Seen | None = None
    otherwise: dict[str, int] = field(default_factory=dict)

    def add(self, seen: Seen, changes: Collection[str] = ()) -> None:
        """Count one number, which the writer may have changed before."""
        self.numbers += 1
        for change in changes:
            number = CHANGES[change](seen.number)
            is_inside = seen.copy[0] <= number <= seen.copy[1]
            self.otherwise[change] = self.otherwise.get(change, 0) + (not is_inside)
        self.lost += seen.is_lost
        if not seen.is_lost:
            self.source += seen.number**2
            self.copy += seen.value**2
            self.both += seen.number * seen.value
        if seen.is_outside:
            self.outside += 1
            if self.example is None or seen.distance > self.example.distance:
                self.example = seen

    @property
    def correlation(self) -> float:
        """Of the source with the copy; 0 where one has only zeros."""
        return self.both / (math.sqrt(self.source * self.copy) or math.inf)

    @property
    def is_empty(self) -> bool:
        """True if it proves nothing: a copy of zeros, or of huge steps, agrees with any source that is not zero."""
        is_zero = self.copy == 0 and not self.lost
        return self.source > 0 and (is_zero or self.vague > _MOST_VAGUE * self.numbers)


@dataclass(kw_only=True)
class Evidence:
    """What the numbers of two models say, by the source's name of each tensor.

    `rounded`: tensors whose codes are intervals; `graded`: those whose writer moves numbers; `kept`: those that the
    copy keeps as floats. `is_full`: every number was compared. `notes`: what the writer did to the source before.
    """

    rounded: dict[str, Tally] = field(default_factory=dict)
    graded: dict[str, Tally] = field(default_factory=dict)
    kept: dict[str, Tally] = field(default_factory=dict)
    is_full: bool = False
    notes: tuple[str, ...] = ()

    def settle(self) -> Evidence:
        """Take what a change explains as inside: one of all tensors together, or one of a norm."""
        compared = (self.rounded | self.kept).values()
        for change in OF_A_MODEL:
            left = [tally for tally in compared if tally.outside]
            if left and all(tally.otherwise.get(change) == 0 for tally in left):
                for tally in left:
                    tally.outside = 0
                self.notes += (f"the source was rounded to {change} before it was quantised",)
        norms = [tally for tally in self.kept.values() if tally.outside and tally.otherwise.get(ONE_MORE) == 0]
        for tally in norms:
            tally.outside = 0
        if norms:
            self.notes += (f"{len(norms):,} norms differ as after one was added, rounded and taken off again",)
        return self

    @property
    def is_moved(self) -> bool:
        """Whether a writer or a tuning moved numbers: they have no intervals, or leave them."""
        return bool(self.graded) or any(tally.outside for tally in self.rounded.values())

    @property
    def is_alike(self) -> bool:
        """Whether more than half of the quantised tensors correlate with the source, so that it is no other model."""
        tallies = (self.rounded | self.graded).values()
        return 2 * sum(tally.correlation > _LEAST_OF_ALIKE for tally in tallies) > len(tallies)

    @property
    def values(self) -> str:
        """What was compared, for sentences."""
        return "values" if self.is_full else "sampled values"


def compare_copies(a: BaseFingerprint, b: BaseFingerprint) -> BaseComparison | None:
    """Return how two models relate of which one is quantised, or both; None for two models in floats."""
    if a.copy is not None and b.copy is not None:
        if a.copy.structure != b.copy.structure:
            return None
        return BaseComparison(verdict=BaseVerdict.CANNOT_TELL, differences=(BOTH_QUANTISED,))
    if b.copy is not None:
        return compare_copy(a, b, ("first", "second"))
    return None if a.copy is None else compare_copy(b, a, ("second", "first"))


def compare_copy(source: BaseFingerprint, copy: BaseFingerprint, sides: Sides) -> BaseComparison:
    """Return whether a quantised model is the copy of `source`; `sides` is what the sentences call the two."""
    facts = copy.copy
    assert facts is not None  # the caller asks of quantised models
    if facts.unknown:
        return unknown_format(facts.unknown, facts.form, sides)
    names = copy.samples.keys() | facts.ranges.keys()
    pairs = _by_gguf_names(source.samples, names, facts.naming) if facts.naming else paired(source.samples, names)
    paired_samples = {source.samples[name] for name in pairs}
    lone = absent(source.samples, pairs, names, sides, lambda name: source.samples[name] in paired_samples)
    if lone.of_another:
        return BaseComparison(verdict=BaseVerdict.DIFFERENT, differences=lone.of_another)
    found = verdict_of(evidence_of(source.samples, copy.samples, facts.ranges, pairs), facts.form, sides)
    return found.doubted(lone.unseen)


def _by_gguf_names(source: Collection[str], copy: Collection[str], naming: str) -> dict[str, str]:
    """Return the name in the copy for each name of the source: both are one tensor of GGUF, or one expert in it."""
    architecture = naming.removeprefix("gguf:")
    here = {place: name for name in copy if (place := _gguf_place(architecture, name))}
    pairs = {name: name for name in source if name in copy}
    for name in source:
        if name not in pairs and (place := _gguf_place(architecture, name)) in here and place:
            pairs[name] = here[place]
    return pairs


_EXPERT: Final = re.compile(r"(?P<front>.+\.experts)\.(?P<number>\d+)\.(?P<rest>.+)")


def _gguf_place(architecture: str, name: str) -> tuple[str, str] | None:
    """GGUF's tensor for a name in a text model or its wrapper, and the number of the expert in it."""
    bare = name.replace("language_model.", "")
    expert = _EXPERT.fullmatch(bare)
    found = gguf_name(architecture, f"{expert['front']}.{expert['rest']}" if expert else bare)
    return (found, expert["number"] if expert else "") if found else None


def unknown_format(name: str, form: str, sides: Sides) -> BaseComparison:
    """Return the verdict on a copy of which some tensors cannot be read here."""
    reason = f"the {sides[1]} is quantised in a format that is not known here: {shown(name)}"
    return BaseComparison(verdict=BaseVerdict.CANNOT_TELL, form=form or None, differences=(reason,))


class Absent(NamedTuple):
    """Sentences on tensors that only one side has: those of another model, and those that could not be compared."""

    of_another: tuple[str, ...]
    unseen: tuple[str, ...]


def absent(
    source: Collection[str],
    pairs: Mapping[str, str],
    copy: Collection[str],
    sides: Sides,
    is_tied: Callable[[str], bool],
    left_out: Collection[str] = (),
) -> Absent:
    """Return the tensors that only one side has.

    A tied copy of an embedding may be on one side only, and so may a whole part, such as a vision tower. `is_tied`:
    whether a tensor of the source is such a copy; `left_out`: those that no copy of this kind has.
    """
    if not pairs:
        return Absent(("no tensor of one has the name of a tensor of the other",), ())
    left = [name for name in source if name not in pairs and name not in left_out]
    lone = lone_layers(left, pairs.keys(), f"the {sides[0]}") + lone_layers(copy, pairs.values(), f"the {sides[1]}")
    outside = absent_parts(left, pairs)
    left = [name for name in left if name not in outside and not is_tied(name)]
    heads = [name for name in left if is_vocabulary(name)]
    others = [name for name in left if name not in heads]
    unseen = (
        f"{len(others):,} tensors of the {sides[0]} could not be compared, such as `{shown(min(others))}`"
        if others
        else ""
    )
    return Absent(
        lone + tuple(f"`{shown(name)}` is in the {sides[0]} only" for name in heads[:_LISTED]),
        (unseen,) if unseen else (),
    )


def evidence_of(source: Samples, plain: Samples, ranges: Mapping[str, CopyRange], pairs: Mapping[str, str]) -> Evidence:
    """Compare the sampled numbers of each pair of tensors."""
    found = Evidence()
    for name, here in pairs.items():
        dtype, raw = source[name]
        if here not in ranges:
            found.kept[name] = _kept(source[name], plain[here])
            continue
        is_kept = ranges[here].form in DTYPES
        both = zip(split_numbers(dtype, raw), ranges[here].triples, strict=False)
        all_seen = [_seen(dtype, number, *triple) for number, triple in both]
        is_graded = any(math.isnan(seen.copy[0]) and not seen.is_lost for seen in all_seen)
        tally = (found.kept if is_kept else found.graded if is_graded else found.rounded)[name] = Tally()
        changes = changes_of(dtype, is_norm=is_kept and len(ranges[here].shape) == 1)
        for seen in all_seen:
            tally.add(seen, changes)
        far = VAGUE * math.sqrt(tally.source / max(1, tally.numbers))
        tally.vague = sum(seen.copy[0] < -far and far < seen.copy[1] for seen in all_seen)
    return found.settle()


def _kept(source: tuple[str, bytes], copy: tuple[str, bytes]) -> Tally:
    found = Tally()
    changes = changes_of(source[0], is_norm=True)
    for first, second in zip(split_numbers(*source), split_numbers(*copy), strict=False):
        here = interval(copy[0], second) or (math.nan, math.nan)
        seen = _seen(source[0], first, *here, float(number_text(copy[0], second)))
        is_same = may_be_same(source[0], first, copy[0], second)
        found.add(seen if is_same else seen._replace(source=(math.nan, math.nan)), () if is_same else changes)
    return found


def _seen(dtype: str, raw: bytes, low: float, high: float, value: float) -> Seen:
    own = interval(dtype, raw) or (math.nan, math.nan)
    return Seen(number=float(number_text(dtype, raw)), source=own, copy=(low, high), value=value)


def verdict_of(found: Evidence, stated: str, sides: Sides) -> BaseComparison:
    """Return the verdict on a copy in the format `stated`, whose tensors all have a counterpart in the source."""
    form = stated or None
    kept = (*_kept_text(found, sides), *found.notes)
    if any(tally.outside for tally in (found.rounded | found.kept).values()):
        left = _left_text(found, sides)
        return BaseComparison(verdict=BaseVerdict.SAME_SHAPES, form=form, differences=(*left, *kept))
    numbers = sum(tally.numbers for tally in found.rounded.values())
    text = f"{len(found.rounded):,} tensors are quantised in the {sides[1]}; all {numbers:,} {found.values} of the"
    inside = (f"{text} {sides[0]} lie in the intervals of their codes",) if found.rounded else ()
    if found.graded:
        return _graded(found, form, inside, kept, sides)
    if empty := [name for name, tally in found.rounded.items() if tally.is_empty]:
        reason = f"`{shown(empty[0])}` is zeros or steps so wide in the {sides[1]} that any numbers would lie inside"
        return BaseComparison(verdict=BaseVerdict.CANNOT_TELL, form=form, differences=(reason, *inside))
    is_copy = bool(found.rounded)
    verdict = BaseVerdict.SAME_WEIGHTS_QUANTISED if is_copy else BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION
    return BaseComparison(verdict=verdict, form=form if is_copy else None, differences=(*inside, *kept))


def _left_text(found: Evidence, sides: Sides) -> tuple[str, ...]:
    """Return a sentence if numbers leave the intervals of their codes, with the one that is farthest."""
    left = {name: tally for name, tally in found.rounded.items() if tally.outside}
    if not left:
        return ()
    numbers = sum(tally.numbers for tally in found.rounded.values())
    outside = sum(tally.outside for tally in left.values())
    text = f"{outside:,} of {numbers:,} {found.values} in {len(left):,} tensors leave the intervals of their codes"
    return (f"{text}, {_example(left, sides)}",)


def _kept_text(found: Evidence, sides: Sides) -> tuple[str, ...]:
    """Return a sentence on the tensors that both keep as floats."""
    if not found.kept:
        return ()
    numbers = sum(tally.numbers for tally in found.kept.values())
    left = {name: tally for name, tally in found.kept.items() if tally.outside}
    if not left:
        return (f"{len(found.kept):,} tensors are floats in both, and agree in {numbers:,} {found.values}",)
    outside = sum(tally.outside for tally in left.values())
    return (f"{outside:,} of {numbers:,} {found.values} kept as floats differ, {_example(left, sides)}",)


def _example(left: Mapping[str, Tally], sides: Sides) -> str:
    told = [(tally.example.distance, name, tally.example) for name, tally in left.items() if tally.example]
    _, name, seen = max(told, key=lambda one: one[0])
    room = "no number" if seen.is_lost else f"between {seen.copy[0]:.4g} and {seen.copy[1]:.4g}"
    return f"for example in `{shown(name)}` ({seen.number:.4g} in the {sides[0]}, {room} in the {sides[1]})"


_LEAST_CORRELATION: Final = 0.8
_LEAST_SHARE: Final = 0.9


def _graded(
    found: Evidence, form: str | None, inside: tuple[str, ...], kept: tuple[str, ...], sides: Sides
) -> BaseComparison:
    """Judge numbers that a writer moved: likely if the tensors, each on its own, correlate with the source.

    Of 16 samples a tensor. SmolLM2-135M by GPTQ 0.95 or more in each, by AWQ 0.87, IQ2 and IQ3 types 0.81, IQ1 0.73;
    another model and rows in another order stay below 0.65. All tensors together, AWQ has 0.88: large columns weigh
    most. A tuned model correlates as well; `quantised.graded` detects one from whole rows of both files.
    """
    each = sorted(tally.correlation for tally in found.graded.values())
    least = each[int((1 - _LEAST_SHARE) * len(each))]
    text = f"{len(found.graded):,} tensors were quantised by moving numbers; {_LEAST_SHARE:.0%} of them correlate with"
    is_likely = least >= _LEAST_CORRELATION
    return BaseComparison(
        verdict=BaseVerdict.LIKELY_SAME_QUANTISED if is_likely else BaseVerdict.SAME_SHAPES,
        form=form,
        differences=(f"{text} the {sides[0]} by {least:.3f} or more", *inside, *kept),
    )
