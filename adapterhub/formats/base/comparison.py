"""How two bases relate: by digests where these are equal, otherwise by a few numbers of each tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Final

from adapterhub.core.errors import shown
from adapterhub.formats.base.copies import compare_copies
from adapterhub.formats.base.fingerprint import (
    BaseComparison,
    BaseFingerprint,
    BaseHints,
    BaseVerdict,
    Samples,
    is_vocabulary,
    may_be_same,
    number_text,
    split_numbers,
)

MOST_TIED_COPIES: Final = 4
"""How many tensors one side may hold twice while both still count as the same model.

Libraries drop or keep tied copies of an embedding: at most three in one model (T5: two inputs and one output). A
model that repeats whole layers of another repeats all tensors of a layer, nine or more.
"""


Judge = Callable[[BaseFingerprint | None, BaseFingerprint | None], BaseComparison]
"""Says how two bases relate: `compare`, or `Bases.judged`, which knows the proofs and the decisions of a library."""


def compare(
    a: BaseFingerprint | None,
    b: BaseFingerprint | None,
    *,
    hints: tuple[BaseHints, BaseHints] | None = None,
) -> BaseComparison:
    """Return how base `a` relates to base `b`; `hints` only add detail to the sentences.

    Equal digests are proof. A quantised copy and its source are compared as `compare_copies` says, two precisions by
    samples: between them a change goes unnoticed that is smaller than the rounding of the coarser dtype, or that misses
    all samples of every tensor.
    """
    if a is None or b is None:
        both = "neither base has a known fingerprint"
        if a is not b:
            both = f"the {'second' if b is None else 'first'} base has no known fingerprint"
        return BaseComparison(verdict=BaseVerdict.UNKNOWN, differences=(both,))
    if a.weights == b.weights:
        return BaseComparison(verdict=BaseVerdict.SAME_WEIGHTS)
    return _compared(a, b, hints)


@lru_cache(maxsize=512)
def _compared(a: BaseFingerprint, b: BaseFingerprint, hints: tuple[BaseHints, BaseHints] | None) -> BaseComparison:
    """Compare bases with other weights; all are values, so that equal ones have the same answer."""
    if (copied := compare_copies(a, b)) is not None:
        return copied
    naming = _naming_differences(a.samples, b.samples)
    if a.tensors == b.tensors:
        if not _is_rearranged(a.samples, b.samples):
            return BaseComparison(verdict=BaseVerdict.SAME_WEIGHTS, differences=naming)
        naming += ("every tensor occurs on both sides, but under other names or another number of times",)
    same_structure = a.structure == b.structure
    pairs = _pairs(a.samples, b.samples) if same_structure or a.samples.keys() != b.samples.keys() else None
    dtypes = _dtype_differences(a.samples, b.samples, pairs or {})
    values, is_apart = _value_differences(a.samples, b.samples, pairs or {})
    if dtypes and not is_apart:
        verdict = BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION
        return BaseComparison(verdict=verdict, differences=(*dtypes, *naming))
    if same_structure:
        return BaseComparison(verdict=BaseVerdict.SAME_SHAPES, differences=(*values, *dtypes))
    resized = _resized_vocabulary(a.samples, b.samples)
    if resized is not None:
        return resized
    shapes = () if naming else ("the tensors have the same names, but not all have the same shape",)
    values = values if is_apart else ()  # it is the names or shapes that differ
    facts = _hint_differences(*hints) if hints else ()
    return BaseComparison(verdict=BaseVerdict.DIFFERENT, differences=(*facts, *naming, *shapes, *values))


def samples_agree(a: BaseFingerprint, b: BaseFingerprint, names: Mapping[str, str]) -> bool:
    """Return whether the samples of each tensor of `a` may be those of the one that `names` gives it in `b`."""
    return not _value_differences(a.samples, b.samples, names)[1]


def _resized_vocabulary(a: Samples, b: Samples) -> BaseComparison | None:
    """Return the comparison of two models of different structure if only the number of their tokens differs.

    Another shape moves the sampled places of a tensor, so the embeddings themselves are not compared.
    """
    others = {name: name for name in a if not is_vocabulary(name)}
    if a.keys() != b.keys() or len(others) == len(a) or _value_differences(a, b, others)[1]:
        return None
    if not _value_differences(a, b, {name: name for name in a if is_vocabulary(name)})[1]:
        return None  # it is another tensor whose shape differs
    differences = (resized_text(a.keys() - others.keys(), len(others)), *_dtype_differences(a, b, others))
    return BaseComparison(verdict=BaseVerdict.SAME_WEIGHTS_RESIZED_VOCABULARY, differences=differences)


def resized_text(vocabulary: Iterable[str], others: int) -> str:
    """Return the difference between two models of which only `vocabulary` tensors differ in shape, in words."""
    listed = " and ".join(f"`{shown(name)}`" for name in sorted(vocabulary))
    return f"another number of tokens in {listed}; the samples of all {others:,} other tensors agree"


def _is_rearranged(a: Samples, b: Samples) -> bool:
    """Whether two models with the same set of tensors differ in their places: layers were repeated or swapped."""
    moved = any(_starts(a[name], b[name]) != _starts(b[name], a[name]) for name in a.keys() & b.keys())
    if moved or abs(len(a) - len(b)) > MOST_TIED_COPIES:
        return True
    larger, smaller = (a, b) if len(a) > len(b) else (b, a)
    spare = {name: sample for name, sample in larger.items() if name not in smaller}
    # If both sides have names of their own, it is a renaming, and the copies cannot be identified.
    return smaller.keys() < larger.keys() and not _are_tied_copies(spare, smaller.values())


def _starts(sample: tuple[str, bytes], other: tuple[str, bytes]) -> tuple[str, bytes]:
    """`sample` cut to the length of `other`: a model of many tensors keeps fewer numbers of each."""
    return sample[0], sample[1][: len(other[1])]


def _pairs(a: Samples, b: Samples) -> dict[str, str] | None:
    """Return the name in `b` for each name in `a`, if they name the same places; tied copies on one side have none.

    Names are equal, or those of one side have one more prefix: a model saved with its head has `transformer.h.0…`, and
    without it `h.0…`.
    """
    candidates = [{name: name for name in a if name in b}]
    candidates += [{name: part + name for name in a if part + name in b} for part in _leading_parts(b)]
    candidates += [{part + name: name for name in b if part + name in a} for part in _leading_parts(a)]
    pairs = max(candidates, key=len)
    matched = set(pairs.values())
    spare_a = {name: sample for name, sample in a.items() if name not in pairs}
    spare_b = {name: sample for name, sample in b.items() if name not in matched}
    copied = _are_tied_copies(spare_a, [a[name] for name in pairs]) and _are_tied_copies(
        spare_b, [b[name] for name in matched]
    )
    return pairs if pairs and copied else None


def _leading_parts(names: Iterable[str]) -> list[str]:
    """Return the two most frequent first parts of dotted names, with the dot."""
    return [part for part, _ in Counter(name.partition(".")[0] + "." for name in names).most_common(2)]


def _are_tied_copies(spare: Samples, others: Iterable[tuple[str, bytes]]) -> bool:
    """Return whether a library may have kept or dropped these: few, each present a second time, none constant."""
    is_constant = any(len(set(split_numbers(dtype, raw))) == 1 for dtype, raw in spare.values())
    return len(spare) <= MOST_TIED_COPIES and set(spare.values()) <= set(others) and not is_constant


def _dtype_differences(a: Samples, b: Samples, pairs: Mapping[str, str]) -> tuple[str, ...]:
    changed = Counter((a[x][0], b[y][0]) for x, y in pairs.items() if a[x][0] != b[y][0])
    return tuple(
        f"{count:,} of {len(pairs):,} tensors are {first} in the first and {second} in the second"
        for (first, second), count in changed.most_common()
    )


def _value_differences(a: Samples, b: Samples, pairs: Mapping[str, str]) -> tuple[tuple[str, ...], bool]:
    """Return a sentence on the sampled numbers, and whether some pair of them must differ (or none were compared)."""
    apart = seen = 0
    example = ""
    for x, y in sorted(pairs.items()):
        (a_dtype, a_raw), (b_dtype, b_raw) = a[x], b[y]
        for first, second in zip(split_numbers(a_dtype, a_raw), split_numbers(b_dtype, b_raw), strict=False):
            seen += 1
            if not may_be_same(a_dtype, first, b_dtype, second):
                apart += 1
                if not example:
                    texts = number_text(a_dtype, first), number_text(b_dtype, second)
                    example = f"`{shown(x)}` ({texts[0]} in the first, {texts[1]} in the second)"
    if apart:
        return (f"{apart:,} of {seen:,} sampled values differ, for example in {example}",), True
    if not seen:
        return (), True
    return (f"all {seen:,} sampled values agree, but the digests do not: others differ",), False


def _naming_differences(a: Samples, b: Samples) -> tuple[str, ...]:
    sentences = [f"{len(a):,} tensors in the first, {len(b):,} in the second"] if len(a) != len(b) else []
    for which, names in (("first", a.keys() - b.keys()), ("second", b.keys() - a.keys())):
        if names:
            example = min(names, key=lambda name: (len(name), name))
            sentences.append(f"{len(names):,} tensor names only in the {which}, such as `{shown(example)}`")
    return tuple(sentences)


def _hint_differences(a: BaseHints, b: BaseHints) -> tuple[str, ...]:
    facts = (
        ("model_type", a.model_type, b.model_type),
        ("parameters", a.parameters, b.parameters),
        ("hidden_size", a.hidden_size, b.hidden_size),
        ("layers", a.layers, b.layers),
    )
    return tuple(
        f"{name} is {_plain(first)} in the first, {_plain(second)} in the second"
        for name, first, second in facts
        if first is not None and second is not None and first != second
    )


def _plain(value: str | int) -> str:
    return f"{value:,}" if isinstance(value, int) else shown(value)
