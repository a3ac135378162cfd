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
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, NamedTuple, TypeVar

from adapterhub.core.digests import Digest, Json, canonical_json, digest_of, parse_digest
from adapterhub.core.disk.files import digest_of_file, read_json, read_plain
from adapterhub.core.errors import shown
from adapterhub.core.specs import is_hub_id
from adapterhub.formats.documented import Documented
from adapterhub.formats.documents import object_at
from adapterhub.formats.safetensors.header import DTYPE_BITS, DTYPES, SAMPLES, TensorFacts

__all__ = [
    "BaseFingerprint",
    "BaseHints",
    "BaseVerdict",
    "TensorFacts",
    "fingerprint_tensors",
]

Samples = Mapping[str, tuple[str, bytes]]

SAMPLES_OF_MANY: Final = 4
RANGES_OF_MANY: Final = 2
MANY_TENSORS: Final = 4096
"""Models with more tensors than this (large mixtures of experts) keep the first 4 samples of each tensor, not 16, and
copies of these 2 ranges of each: manifests hold at most 2 MiB."""


class BaseVerdict(enum.Enum):
    """How two bases relate."""

    SAME_WEIGHTS = "same-weights"
    SAME_WEIGHTS_OTHER_PRECISION = "same-weights-other-precision"
    SAME_WEIGHTS_RESIZED_VOCABULARY = "same-weights-resized-vocabulary"
    SAME_WEIGHTS_QUANTISED = "same-weights-quantised"
    ACCEPTED_QUANTISED = "accepted-quantised"
    LIKELY_SAME_QUANTISED = "likely-same-quantised"
    SAME_FAMILY = "same-family"
    SAME_SHAPES = "same-shapes"
    DIFFERENT = "different"
    CANNOT_TELL = "cannot-tell"
    UNKNOWN = "unknown"

    @property
    def allows_attach(self) -> bool:
        """Whether an adapter made for one may run on the other; UNKNOWN and SAME_FAMILY may, with a warning.

        SAME_FAMILY is SAME_SHAPES for two bases that the user declared to be one family, and ACCEPTED_QUANTISED is
        LIKELY_SAME_QUANTISED for a copy that the user accepted; `compare` never says these two.

        With a resized vocabulary, one whose tensors have the vocabulary's old size fits no more; their shapes tell.
        """
        return self not in _REFUSED

    @property
    def made_for(self) -> str:
        """The base for which an adapter was made that is refused with this verdict, in words."""
        return _MADE_FOR.get(self, "another base")

    @property
    def is_same_model(self) -> bool:
        """Whether all tensors are the same, in one precision or in two."""
        return self in _SAME

    @property
    def stands_for(self) -> bool:
        """Whether one may take the place of the other where a base is run: the same model, or an accepted copy."""
        return self in _SAME or self is BaseVerdict.ACCEPTED_QUANTISED


_REFUSED: Final = frozenset(
    {BaseVerdict.SAME_SHAPES, BaseVerdict.DIFFERENT, BaseVerdict.LIKELY_SAME_QUANTISED, BaseVerdict.CANNOT_TELL}
)
_MADE_FOR: Final = {
    BaseVerdict.LIKELY_SAME_QUANTISED: "a base of which this is likely a copy, which is no proof",
    BaseVerdict.CANNOT_TELL: "a base that cannot be compared with this one",
}
_SAME: Final = frozenset(
    {BaseVerdict.SAME_WEIGHTS, BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION, BaseVerdict.SAME_WEIGHTS_QUANTISED}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseComparison(
    Documented, keys="verdict allows_attach=verdict.allows_attach form? differences", title="BaseComparison"
):
    """A verdict, and the differences between the first and the second base as sentences.

    `hint` names the command to type if the user can change the verdict.
    """

    verdict: BaseVerdict
    differences: Annotated[tuple[str, ...], "one sentence per difference"] = ()
    form: Annotated[str | None, "the format of a quantised copy, such as `fp8-block`"] = None
    hint: str = ""

    @property
    def label(self) -> str:
        """The verdict's name, with the format of a copy: `SAME_WEIGHTS_QUANTISED (fp8-block)`."""
        return f"{self.verdict.name} ({self.form})" if self.form else self.verdict.name

    def doubted(self, reasons: tuple[str, ...]) -> BaseComparison:
        """Return the same, or CANNOT_TELL instead of a verdict that allows adapters if there are `reasons` to doubt."""
        if not reasons or not (self.verdict.allows_attach or self.verdict is BaseVerdict.LIKELY_SAME_QUANTISED):
            return self
        return replace(self, verdict=BaseVerdict.CANNOT_TELL, differences=(*reasons, *self.differences))


class CopyRange(NamedTuple):
    """One quantised tensor: its form, the shape that the source has, and `raw`.

    `raw` has three float32 for each sampled place: the least and the largest number that the source may have had, and
    the one that the copy computes with. The first two are NaN where a format does not round (GPTQ), all three where the
    copy has no number.
    """

    form: str
    shape: tuple[int, ...]
    raw: bytes

    def to_json(self, usual: str) -> str:
        """`<form>:<shape>:<ranges in base64>`, without the form if it is the `usual` one: `:4096x11008:3q2+…`.

        One text each: a mixture has ten thousands, and manifests hold few values.
        """
        shape = "x".join(map(str, self.shape))
        return f"{'' if self.form == usual else self.form}:{shape}:{base64.b64encode(self.raw).decode('ascii')}"

    @classmethod
    def from_json(cls, value: Json, path: str, usual: str) -> CopyRange:
        """Read the value strictly.

        Raises:
            ValueError: with the path of the wrong value.
        """
        match = _RANGE_TEXT.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f"{path}: expected <form>:<shape>:<base64>, got {shown(value)}")
        form, shape, text = match.groups()
        try:
            raw = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise ValueError(f"{path}: not base64: {error}") from None
        count, rest = divmod(len(raw), RANGE.size)
        if rest or count > SAMPLES:
            raise ValueError(f"{path}: expected at most {SAMPLES} ranges of {RANGE.size} bytes, got {len(raw)} bytes")
        return cls(form or usual, tuple(map(int, shape.split("x"))) if shape else (), raw)

    @property
    def triples(self) -> list[tuple[float, float, float]]:
        """For each sampled place the lower end, the upper end and the value."""
        return list(RANGE.iter_unpack(self.raw))


_RANGE_TEXT: Final = re.compile(r"([^\n]{0,64}):((?:[0-9]{1,12}(?:x[0-9]{1,12}){0,15})?):([A-Za-z0-9+/=]*)")

RANGE: Final = struct.Struct("<3f")
"""The lower end, the upper end and the value of one place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyFacts:
    """What the files of a quantised copy say about its source.

    `form`: the format of most of its weights, such as `fp8-block`. `structure`: as in a fingerprint, of the shapes that
    the source has. `ranges`: by the source's name of each quantised tensor.
    `naming`: how the names are made of those of the source; "" for the same names. `unknown`: the format of tensors
    that cannot be read here; "" for none.
    """

    form: str
    structure: Digest
    ranges: Mapping[str, CopyRange] = field(hash=False, repr=False)
    naming: str = ""
    unknown: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        ranges = {name: one.to_json(self.form) for name, one in self.ranges.items()}
        value = {"form": self.form, "structure": self.structure, "ranges": ranges}
        return value | {key: told for key in ("naming", "unknown") if (told := getattr(self, key))}

    @classmethod
    def from_json(cls, value: Json, path: str) -> CopyFacts:
        """Read the value strictly.

        Raises:
            ValueError: with the path of the first wrong value.
        """
        value = object_at(value, path)
        texts = {key: value.get(key, "") for key in ("form", "naming", "unknown")}
        if wrong := next((key for key, text in texts.items() if not isinstance(text, str)), ""):
            raise ValueError(f"{path}.{wrong}: expected text, got {shown(texts[wrong])}")
        ranges = object_at(value.get("ranges"), f"{path}.ranges")
        return cls(
            structure=digest_at(value.get("structure"), f"{path}.structure"),
            ranges=MappingProxyType(
                {
                    name: CopyRange.from_json(item, f"{path}.ranges[{shown(name)}]", texts["form"])
                    for name, item in ranges.items()
                }
            ),
            **texts,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFingerprint:
    """The identity of a base, independent of its name and of how its files are split.

    Digests are sha256 over canonical JSON (RFC 8785) of lists in code point order, buffers (see `is_buffer`) left out.
    `weights`: of each tensor's [name, dtype, shape, sha256 hex]. `tensors`: of the distinct [dtype, shape, sha256 hex].
    `structure`: of every [name, shape]. `samples`: dtype and a few numbers as stored, by name (see `sample_offsets`).
    `files`: digest over the weight files as a hub lists them (see `files_digest`), when known.
    `copy`: for files that keep weights as codes and scales; `samples` then has the other tensors only.
    """

    weights: Digest
    tensors: Digest
    structure: Digest
    samples: Samples = field(hash=False, repr=False)
    files: Digest | None = None
    copy: CopyFacts | None = field(default=None, hash=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value; samples are written `<dtype>:<base64>`."""
        value: dict[str, Any] = {"weights": self.weights, "tensors": self.tensors, "structure": self.structure}
        write = _kept_texts if _are_usual(self.samples) else _samples_to_json
        value["samples"] = dict(write(tuple(self.samples.items())))
        value |= {"files": self.files} if self.files else {}
        return value | ({"copy": self.copy.to_json()} if self.copy else {})

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
            copy=CopyFacts.from_json(value["copy"], f"{path}.copy") if value.get("copy") is not None else None,
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


def fingerprint_tensors(
    facts: Iterable[TensorFacts],
    *,
    files: Digest | None = None,
    copy: CopyFacts | None = None,
    parts: Collection[str] = (),
) -> BaseFingerprint:
    """Return the fingerprint of a model with exactly these tensors, in any order; buffers are left out.

    `parts`: the tensors of a copy that hold codes and scales. `copy` has the numbers that they stand for, so the
    fingerprint keeps no samples of them.

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
        structure=structure_of((f.name, f.shape) for f in weights),
        samples=MappingProxyType(
            {
                f.name: (f.dtype, f.samples[: keep * stored_bytes(f.dtype)])
                for f in weights
                if f.name not in parts and f.dtype in DTYPES
            }
        ),
        files=files,
        copy=copy,
    )


def structure_of(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> Digest:
    """Return the digest of names and shapes, buffers left out."""
    listed = sorted([name, list(shape)] for name, shape in shapes if not is_buffer(name, shape))
    return digest_of(canonical_json(listed))


def weights_of(fingerprint: BaseFingerprint, tensors: Iterable[TensorFacts]) -> tuple[TensorFacts, ...]:
    """Return the tensors that the source of a copy has, by name; for a model in floats, all of its own `tensors`.

    A quantised tensor has the source's shape, the copy's form as its dtype, and neither digest nor samples.
    """
    tensors = tuple(tensors)
    if fingerprint.copy is None:
        return tensors
    kept = (fact for fact in tensors if fact.name in fingerprint.samples or is_buffer(fact.name, fact.shape))
    quantised = (
        TensorFacts(name=name, dtype=one.form, shape=one.shape, sha256="", samples=b"")
        for name, one in fingerprint.copy.ranges.items()
    )
    return tuple(sorted((*kept, *quantised), key=lambda fact: fact.name))


def is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor is not a weight but a constant that libraries drop or add when they save a model.

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


Interval = tuple[float, float]


def stored_bytes(dtype: str) -> int:
    """Bytes of one number of `dtype`; 1 for dtypes that pack several numbers in a byte or across bytes."""
    return max(1, DTYPES[dtype].bits // 8)


def split_numbers(dtype: str, raw: bytes) -> list[bytes]:
    """Return the numbers of `dtype` that lie end to end in `raw`."""
    width = stored_bytes(dtype)
    return [raw[at : at + width] for at in range(0, len(raw), width)]


def interval(dtype: str, raw: bytes) -> Interval | None:
    """Return the closed interval of reals that a number of `dtype` stands for; `(nan, nan)` for a NaN.

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
    """Return whether two stored numbers can be roundings of one number.

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
    """Return a stored number as text: six digits, or the hex of its bytes for dtypes without a plain number."""
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
    """Return whether `module`, by the last part of its name, is an input embedding or an output head."""
    return module.rpartition(".")[2] in EMBEDDINGS


COPY_HINT: Final = (
    "PEFT copies the embeddings of a base whose vocabulary was resized: save the adapter again with"
    " `save_embedding_layers=False`, or use the resized base (`adapt base add` registers it)"
)
"""The remedy for a copy of an embedding in an adapter that has another shape than in the base."""


def resize_hint(module: str, needed: tuple[int, ...], found: tuple[int, ...]) -> str:
    """Return the remedy for a tensor of shape `found` for `module`, whose shape must be `needed`.

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
        """Return the known hints as a JSON value."""
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
    """Return the digest that `value` spells; a ValueError names `path`."""
    try:
        return parse_digest(value)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
