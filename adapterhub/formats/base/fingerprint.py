"""The identity of a base model by its content, and the comparison of two models.

A name in a config proves nothing: it can be renamed, it can be a path on another machine, and it stays when the weights
change.
"""

from __future__ import annotations

import base64
import binascii
import enum
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Any, Final

from adapterhub.core.arguments import parsed
from adapterhub.core.digests import Digest, Json, canonical_json, digest_of
from adapterhub.core.errors import shown
from adapterhub.formats.base.hints import BaseHints, digest_at
from adapterhub.formats.base.precision import may_be_same, number_text, stored_bytes
from adapterhub.formats.base.vocabulary import is_vocabulary
from adapterhub.formats.documented import Documented
from adapterhub.formats.documents import object_at
from adapterhub.formats.safetensors.dtypes import DTYPE_BITS
from adapterhub.formats.safetensors.facts import SAMPLES, TensorFacts

__all__ = [
    "BaseComparison",
    "BaseFingerprint",
    "BaseHints",
    "BaseVerdict",
    "TensorFacts",
    "compare",
    "fingerprint_tensors",
]

Samples = Mapping[str, tuple[str, bytes]]

SAMPLES_OF_MANY: Final = 4
MANY_TENSORS: Final = 4096
"""Models with more tensors than this (large mixtures of experts) keep the first 4 samples of each tensor, not 16."""

MOST_TIED_COPIES: Final = 4
"""How many tensors one side may hold twice while both still count as the same model.

Libraries drop or keep tied copies of an embedding: at most three in one model (T5: two inputs and one output). A
model that repeats whole layers of another repeats all tensors of a layer, nine or more.
"""


class BaseVerdict(enum.Enum):
    """How two bases relate."""

    SAME_WEIGHTS = "same-weights"
    SAME_WEIGHTS_OTHER_PRECISION = "same-weights-other-precision"
    SAME_WEIGHTS_RESIZED_VOCABULARY = "same-weights-resized-vocabulary"
    SAME_FAMILY = "same-family"
    SAME_SHAPES = "same-shapes"
    DIFFERENT = "different"
    UNKNOWN = "unknown"

    @property
    def allows_attach(self) -> bool:
        """Whether an adapter made for one may run on the other; UNKNOWN and SAME_FAMILY may, with a warning.

        SAME_FAMILY is SAME_SHAPES for two bases that the user declared to be one family; `compare` never says it.

        With a resized vocabulary, one whose tensors have the vocabulary's old size fits no more; their shapes tell.
        """
        return self not in (BaseVerdict.SAME_SHAPES, BaseVerdict.DIFFERENT)

    @property
    def is_same_model(self) -> bool:
        """Whether all tensors are the same, in one precision or in two."""
        return self in (BaseVerdict.SAME_WEIGHTS, BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFingerprint:
    """The identity of a base, independent of its name and of how its files are split.

    Digests are sha256 over canonical JSON (RFC 8785) of lists in code point order, buffers (see `is_buffer`) left out.
    `weights`: of each tensor's [name, dtype, shape, sha256 hex]. `tensors`: of the distinct [dtype, shape, sha256 hex].
    `structure`: of every [name, shape]. `samples`: dtype and a few numbers as stored, by name (see `sample_offsets`).
    `files`: digest over the weight files as a hub lists them (see `files_digest`), when known.
    """

    weights: Digest
    tensors: Digest
    structure: Digest
    samples: Samples = field(hash=False, repr=False)
    files: Digest | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON value; samples are written `<dtype>:<base64>`."""
        value: dict[str, Any] = {"weights": self.weights, "tensors": self.tensors, "structure": self.structure}
        write = _kept_texts if _are_usual(self.samples) else _samples_to_json
        value["samples"] = dict(write(tuple(self.samples.items())))
        return value | ({"files": self.files} if self.files else {})

    @classmethod
    def from_json(cls, value: Json, path: str = "base") -> BaseFingerprint:
        """Read the value strictly; other keys are ignored, since hints stand beside these.

        Raises:
            ValueError: with the path of the first wrong value.
        """
        value = object_at(value, path)
        samples = object_at(value.get("samples"), f"{path}.samples")
        is_usual = _are_usual(samples) and all(isinstance(item, str) for item in samples.values())
        read = (_kept_samples if is_usual else _samples_from_json)(tuple(samples.items()), path)
        return cls(
            weights=digest_at(value.get("weights"), f"{path}.weights"),
            tensors=digest_at(value.get("tensors"), f"{path}.tensors"),
            structure=digest_at(value.get("structure"), f"{path}.structure"),
            samples=read,
            files=digest_at(value["files"], f"{path}.files") if value.get("files") is not None else None,
        )


def _samples_from_json(samples: tuple[tuple[str, object], ...], path: str) -> Samples:
    read = {name: _sample_from_json(item, f"{path}.samples[{shown(name)}]") for name, item in samples}
    return MappingProxyType(read)


def _samples_to_json(samples: tuple[tuple[str, tuple[str, bytes]], ...]) -> dict[str, str]:
    return {name: f"{dtype}:{base64.b64encode(raw).decode('ascii')}" for name, (dtype, raw) in samples}


def _are_usual(samples: Mapping[str, Any]) -> bool:
    return sum(map(len, samples)) < _KEPT_CHARACTERS


_KEPT_CHARACTERS: Final = 1 << 19
_kept_samples = lru_cache(maxsize=8)(_samples_from_json)
"""The builds of one base hold the same samples: read once, and once in memory."""
_kept_texts = lru_cache(maxsize=8)(_samples_to_json)


def _sample_from_json(item: object, path: str) -> tuple[str, bytes]:
    dtype, colon, text = item.partition(":") if isinstance(item, str) else ("", "", "")
    if not colon or dtype not in DTYPE_BITS:
        raise ValueError(f"{path}: expected <dtype>:<base64>, got {shown(item)}")
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{path}: not base64: {error}") from None
    count, rest = divmod(len(raw), stored_bytes(dtype))
    if rest or count > SAMPLES:
        raise ValueError(f"{path}: expected at most {SAMPLES} numbers of {dtype}, got {len(raw)} bytes")
    return dtype, raw


def fingerprint_tensors(facts: Iterable[TensorFacts], *, files: Digest | None = None) -> BaseFingerprint:
    """The fingerprint of a model with exactly these tensors, in any order; buffers are left out.

    Raises:
        ValueError: there are no weights, or two have one name.
    """
    weights = sorted((f for f in facts if not is_buffer(f.name, f.shape)), key=lambda f: f.name)
    names = Counter(fact.name for fact in weights)
    if not names:
        raise ValueError("holds no weights")
    if len(names) != len(weights):
        raise ValueError(f"tensor `{shown(names.most_common(1)[0][0])}` is given twice")
    keep = SAMPLES if len(weights) <= MANY_TENSORS else SAMPLES_OF_MANY
    values = {(f.dtype, f.shape, f.sha256) for f in weights}
    return BaseFingerprint(
        weights=digest_of(canonical_json([[f.name, f.dtype, list(f.shape), f.sha256] for f in weights])),
        tensors=digest_of(canonical_json([[d, list(shape), sha256] for d, shape, sha256 in sorted(values)])),
        structure=digest_of(canonical_json([[f.name, list(f.shape)] for f in weights])),
        samples=MappingProxyType({f.name: (f.dtype, f.samples[: keep * stored_bytes(f.dtype)]) for f in weights}),
        files=files,
    )


def is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is not a weight but a constant that libraries drop or add when they save a model.

    - `*.rotary_emb.inv_freq`: frequencies that the config determines
    - `*.position_ids`: 0, 1, 2, …
    - `*.attn.bias` and `*.attention.bias` of shape [1, 1, n, n]: causal masks of GPT-2, GPT-J, GPT-Neo and GPT-NeoX
    - `*.attn.masked_bias` and `*.attention.masked_bias`: the value of masked entries
    """
    dotted = f".{name}"
    if dotted.endswith((".rotary_emb.inv_freq", ".position_ids", ".attn.masked_bias", ".attention.masked_bias")):
        return True
    mask = len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]  # noqa: PLR2004 - [1, 1, n, n]
    return mask and dotted.endswith((".attn.bias", ".attention.bias"))


# ---------------------------------------------------------------- compare
@dataclass(frozen=True, slots=True, kw_only=True)
class BaseComparison(
    Documented, keys="verdict allows_attach=verdict.allows_attach differences", title="BaseComparison"
):
    """A verdict, and the differences between the first and the second base as sentences."""

    verdict: BaseVerdict
    differences: Annotated[tuple[str, ...], "one sentence per difference"] = ()


@parsed
def compare(
    a: BaseFingerprint | None,
    b: BaseFingerprint | None,
    *,
    hints: tuple[BaseHints, BaseHints] | None = None,
) -> BaseComparison:
    """How base `a` relates to base `b`; `hints` only add detail to the sentences.

    Equal digests are proof. Two precisions are compared by samples, so between them a change goes unnoticed that is
    smaller than the rounding of the coarser dtype, or that misses all samples of every tensor.
    """
    if a is None or b is None:
        both = "neither base has a known fingerprint"
        if a is not b:
            both = f"the {'second' if b is None else 'first'} base has no known fingerprint"
        return BaseComparison(verdict=BaseVerdict.UNKNOWN, differences=(both,))
    if a.weights == b.weights:
        return BaseComparison(verdict=BaseVerdict.SAME_WEIGHTS)
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
    facts = _hint_differences(*hints) if hints else ()
    return BaseComparison(verdict=BaseVerdict.DIFFERENT, differences=(*facts, *naming, *shapes, *values))


def samples_agree(a: BaseFingerprint, b: BaseFingerprint, names: Mapping[str, str]) -> bool:
    """Whether the samples of each tensor of `a` may be those of the one that `names` gives it in `b`."""
    return not _value_differences(a.samples, b.samples, names)[1]


def _resized_vocabulary(a: Samples, b: Samples) -> BaseComparison | None:
    """The comparison of two models of different structure if only the number of their tokens differs.

    Another shape moves the sampled places of a tensor, so the embeddings themselves are not compared.
    """
    others = {name: name for name in a if not is_vocabulary(name)}
    if a.keys() != b.keys() or len(others) == len(a) or _value_differences(a, b, others)[1]:
        return None
    differences = (resized_text(a.keys() - others.keys(), len(others)), *_dtype_differences(a, b, others))
    return BaseComparison(verdict=BaseVerdict.SAME_WEIGHTS_RESIZED_VOCABULARY, differences=differences)


def resized_text(vocabulary: Iterable[str], others: int) -> str:
    """The difference between two models whose `vocabulary` tensors alone have different shapes, in words."""
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
    """The name in `b` for each name in `a`, if they name the same places; tied copies on one side have none.

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
    """The two most frequent first parts of dotted names, with the dot."""
    return [part for part, _ in Counter(name.partition(".")[0] + "." for name in names).most_common(2)]


def _are_tied_copies(spare: Samples, others: Iterable[tuple[str, bytes]]) -> bool:
    """Whether a library may have kept or dropped these: few, each present a second time, none constant."""
    is_constant = any(len(set(_numbers(dtype, raw))) == 1 for dtype, raw in spare.values())
    return len(spare) <= MOST_TIED_COPIES and set(spare.values()) <= set(others) and not is_constant


def _dtype_differences(a: Samples, b: Samples, pairs: Mapping[str, str]) -> tuple[str, ...]:
    changed = Counter((a[x][0], b[y][0]) for x, y in pairs.items() if a[x][0] != b[y][0])
    return tuple(
        f"{count:,} of {len(pairs):,} tensors are {first} in the first and {second} in the second"
        for (first, second), count in changed.most_common()
    )


def _value_differences(a: Samples, b: Samples, pairs: Mapping[str, str]) -> tuple[tuple[str, ...], bool]:
    """A sentence on the sampled numbers, and whether some pair of them must differ (or none were compared)."""
    apart = seen = 0
    example = ""
    for x, y in sorted(pairs.items()):
        (a_dtype, a_raw), (b_dtype, b_raw) = a[x], b[y]
        for first, second in zip(_numbers(a_dtype, a_raw), _numbers(b_dtype, b_raw), strict=False):
            seen += 1
            if not may_be_same(a_dtype, first, b_dtype, second):
                apart += 1
                texts = number_text(a_dtype, first), number_text(b_dtype, second)
                example = example or f"`{shown(x)}` ({texts[0]} in the first, {texts[1]} in the second)"
    if apart:
        return (f"{apart:,} of {seen:,} sampled values differ, for example in {example}",), True
    if not seen:
        return (), True
    return (f"all {seen:,} sampled values agree, but the digests do not: others differ",), False


def _numbers(dtype: str, raw: bytes) -> list[bytes]:
    width = stored_bytes(dtype)
    return [raw[at : at + width] for at in range(0, len(raw), width)]


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
