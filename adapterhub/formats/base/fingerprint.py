"""The identity of a base model by its content, and the comparison of two models.

A name in a config proves nothing: it can be renamed, it can be a path on another machine, and it stays when the weights
change.
"""

from __future__ import annotations

import base64
import binascii
import enum
import math
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, TypeVar

from adapterhub.core.arguments import parsed
from adapterhub.core.digests import Digest, Json, canonical_json, digest_of, parse_digest
from adapterhub.core.disk.files import digest_of_file, read_json, read_plain
from adapterhub.core.errors import shown
from adapterhub.core.specs import is_hub_id
from adapterhub.formats.documented import Documented
from adapterhub.formats.documents import object_at
from adapterhub.formats.safetensors.header import DTYPE_BITS, DTYPES, SAMPLES, TensorFacts

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
    mask = len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
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


Interval = tuple[float, float]


def stored_bytes(dtype: str) -> int:
    """Bytes of one number of `dtype`; 1 for dtypes that pack several numbers in a byte or across bytes."""
    return max(1, DTYPES[dtype].bits // 8)


def interval(dtype: str, raw: bytes) -> Interval | None:
    """The closed interval of reals that a number of `dtype` stands for; `(nan, nan)` for a NaN.

    The interval reaches half a unit in the last place to each side, so both neighbours contain a tie. Infinity begins
    where overflow begins; without infinity, the interval of the largest number has no end, since conversion saturates.
    A float64 stands for itself, as no dtype is finer. None for dtypes that are compared exactly: integers, complex
    numbers, scales and dtypes below 8 bits.
    """
    if dtype == "F64":
        (value,) = struct.unpack("<d", raw)
        return value, value
    layout = DTYPES[dtype].layout
    if layout is None:
        return None
    code = int.from_bytes(raw, "little")
    sign_bit = layout.sign_bit
    sign, code = code & sign_bit, code & (sign_bit - 1)
    if layout.is_nan(sign, code):
        return math.nan, math.nan
    here = layout.magnitude(code)
    low = (layout.magnitude(code - 1) + here) / 2 if code else -layout.magnitude(1) / 2
    open_ended = code > layout.largest or (code == layout.largest and not layout.infinity)
    high = math.inf if open_ended else (here + layout.magnitude(code + 1)) / 2
    return (-high, -low) if sign else (low, high)


def may_be_same(a_dtype: str, a: bytes, b_dtype: str, b: bytes) -> bool:
    """Whether two stored numbers can be roundings of one number.

    In one dtype, the bytes must be equal. Across dtypes, the intervals of floats must meet, and integers must be equal;
    other pairs never match.
    """
    if a_dtype == b_dtype:
        return a == b
    if DTYPES[a_dtype].is_integer and DTYPES[b_dtype].is_integer:
        return _integer(a_dtype, a) == _integer(b_dtype, b)
    first, second = interval(a_dtype, a), interval(b_dtype, b)
    if first is None or second is None:
        return False
    if math.isnan(first[0]) or math.isnan(second[0]):
        return math.isnan(first[0]) and math.isnan(second[0])
    return first[0] <= second[1] and second[0] <= first[1]


def number_text(dtype: str, raw: bytes) -> str:
    """A stored number as text: six digits, or the hex of its bytes for dtypes without a plain number."""
    if DTYPES[dtype].is_integer:
        return str(_integer(dtype, raw))
    if dtype == "F64":
        return f"{struct.unpack('<d', raw)[0]:.6g}"
    layout = DTYPES[dtype].layout
    if layout is None:
        return f"0x{raw[::-1].hex()}"
    code = int.from_bytes(raw, "little")
    sign_bit = layout.sign_bit
    sign, code = code & sign_bit, code & (sign_bit - 1)
    if layout.is_nan(sign, code):
        return "nan"
    size = math.inf if code > layout.largest else layout.magnitude(code)
    return f"{-size if sign else size:.6g}"


def _integer(dtype: str, raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=dtype.startswith("I"))


OUTPUT_HEADS: Final = ("lm_head", "embed_out", "output")

EMBEDDINGS: Final = frozenset(
    {"embed_tokens", "wte", "word_embeddings", "embed_in", "shared", "tok_embeddings", *OUTPUT_HEADS}
)
"""Names of input embeddings and output heads, which PEFT may copy into an adapter (`save_embedding_layers`)."""

_INNER: Final = ("lm_head.decoder.weight", "lm_head.decoder.bias", "predictions.decoder.weight")
_INNER_BIASES: Final = ("predictions.decoder.bias", "predictions.bias")


def is_vocabulary(tensor: str) -> bool:
    """Whether `tensor`, by its name, has one row for each token, so that its shape changes with the vocabulary."""
    return is_embedding(tensor.rpartition(".")[0]) or f".{tensor}".endswith(
        tuple(f".{end}" for end in (*_INNER, *_INNER_BIASES))
    )


def is_embedding(module: str) -> bool:
    """Whether `module`, by the last part of its name, is an input embedding or an output head."""
    return module.rpartition(".")[2] in EMBEDDINGS


COPY_HINT: Final = (
    "PEFT copies the embeddings of a base whose vocabulary was resized: save the adapter again with"
    " `save_embedding_layers=False`, or use the resized base (`adapt base add` registers it)"
)
"""The remedy for a copy of an embedding in an adapter that has another shape than in the base."""


def resize_hint(module: str, needed: tuple[int, ...], found: tuple[int, ...]) -> str:
    """The remedy for a tensor of shape `found` for `module`, whose shape must be `needed`.

    Empty unless `module` is an embedding and the shapes differ in one dimension, the number of tokens.
    """
    if len(needed) != len(found) or not is_embedding(module):
        return ""
    apart = [pair for pair in zip(needed, found, strict=True) if pair[0] != pair[1]]
    if len(apart) != 1:
        return ""
    here, there = apart[0]
    return (
        f"it was trained with {there:,} tokens, and this base has {here:,}: use the base after"
        f" `model.resize_token_embeddings({there})` (`adapt base add` registers it once it is saved)"
    )


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseHints:
    """Names and counts to show beside a fingerprint; they prove nothing. None: unknown."""

    hub_id: str | None = None
    commit: str | None = None
    model_type: str | None = None
    dtype: str | None = None
    parameters: int | None = None
    hidden_size: int | None = None
    layers: int | None = None
    tokenizer_sha256: Digest | None = None
    chat_template_sha256: Digest | None = None

    def to_json(self) -> dict[str, Any]:
        """The known hints as a JSON value."""
        return {key: value for key in _HINT_KINDS if (value := getattr(self, key)) is not None}

    @classmethod
    def from_json(cls, value: Json, path: str = "hints") -> BaseHints:
        """Read the known keys strictly; other keys are ignored.

        Raises:
            ValueError: with the path of the first wrong value.
        """
        value = object_at(value, path)
        known: dict[str, Any] = {}
        for key, kind in _HINT_KINDS.items():
            item = value.get(key)
            if item is None:
                continue
            if type(item) is not kind:
                raise ValueError(f"{path}.{key}: expected {'text' if kind is str else 'integer'}, got {shown(item)}")
            known[key] = digest_at(item, f"{path}.{key}") if key.endswith("_sha256") else item
            if key == "hub_id" and not is_hub_id(str(item)):
                raise ValueError(f"{path}.hub_id: expected a Hub id such as org/model, got {shown(item)}")
        return cls(**known)


_HINT_KINDS: Final[Mapping[str, type]] = MappingProxyType(
    {f.name: int if f.name in ("parameters", "hidden_size", "layers") else str for f in fields(BaseHints)}
)
CONFIG_LIMIT_BYTES: Final = 64 << 20  # tokenizer_config.json of large vocabularies runs to megabytes
_SNAPSHOT: Final = re.compile(r"models--(?P<org>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})")
_HIDDEN_SIZE_KEYS: Final = ("hidden_size", "n_embd", "d_model", "dim")
_LAYERS_KEYS: Final = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_VOCABULARIES: Final = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("spiece.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
)


def read_hints(folder: Path) -> BaseHints:
    """Hints from the files beside the weights: config, tokenizer, chat template, and the path in a Hub cache.

    `parameters` stays unknown, as it takes reading the weights.
    """
    config = _object(folder / "config.json")
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else {}  # multimodal models keep those of the language model here
    dtype = _first(str, config, inner, keys=("dtype", "torch_dtype"))
    place = _SNAPSHOT.search(folder.absolute().as_posix()) or _SNAPSHOT.search(folder.resolve().as_posix())
    named = f"{place['org']}/{place['name']}" if place else ""
    return BaseHints(
        hub_id=named if is_hub_id(named) else None,
        commit=place["commit"] if place else None,
        model_type=_first(str, config, keys=("model_type", "_class_name")),  # the second is of diffusers
        dtype=dtype.removeprefix("torch.") if dtype else None,
        hidden_size=_first(int, config, inner, keys=_HIDDEN_SIZE_KEYS),
        layers=_first(int, config, inner, keys=_LAYERS_KEYS),
        tokenizer_sha256=_tokenizer_digest(folder),
        chat_template_sha256=_chat_template_digest(folder),
    )


def _object(path: Path) -> Mapping[str, Any]:
    try:
        value = read_json(path, CONFIG_LIMIT_BYTES)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _first(kind: type[_T], *holders: Mapping[str, Any], keys: tuple[str, ...]) -> _T | None:
    values = (holder.get(key) for holder in holders for key in keys)
    return next((value for value in values if type(value) is kind), None)


def _tokenizer_digest(folder: Path) -> Digest | None:
    """Digest of the tokenizer's file; for several files, the digest over their names and digests."""
    for names in _VOCABULARIES:
        try:
            digests = [digest_of_file(folder / name)[0] for name in names]
        except OSError:
            continue
        return (
            digests[0]
            if len(names) == 1
            else digest_of(canonical_json([list(pair) for pair in zip(names, digests, strict=True)]))
        )
    return None


def _chat_template_digest(folder: Path) -> Digest | None:
    """Digest of the template's text, in whichever file; for several named templates, of their canonical JSON."""
    try:
        raw = read_plain(folder / "chat_template.jinja", CONFIG_LIMIT_BYTES)
        return digest_of(raw) if len(raw) <= CONFIG_LIMIT_BYTES else None
    except OSError:
        template = _object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, str):
        return digest_of(template.encode("utf-8", "surrogatepass"))
    return digest_of(canonical_json(template)) if isinstance(template, list) and template else None


def digest_at(value: object, path: str) -> Digest:
    """The digest that `value` spells; a ValueError names `path`."""
    try:
        return parse_digest(value)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
