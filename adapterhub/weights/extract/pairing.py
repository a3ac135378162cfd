"""A model folder as named tensors, with the facts of its config; reads no weights."""

from __future__ import annotations

import bisect
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, final

import torch
from torch import Tensor

from adapterhub.core.disk.files import not_read, read_json
from adapterhub.core.errors import CouldNotTell, MalformedTensorFile, shown
from adapterhub.formats.base.fingerprint import CONFIG_LIMIT_BYTES, is_buffer
from adapterhub.formats.peft.pairs import FactorLayout
from adapterhub.formats.safetensors.header import DTYPE_BITS, TensorSpec
from adapterhub.library.bases.records import BaseRecord
from adapterhub.weights.dtypes import TORCH_DTYPES
from adapterhub.weights.lowrank.algebra import MATRIX_NDIM, LowRank
from adapterhub.weights.lowrank.factors import is_finite
from adapterhub.weights.model_files import CONV1D, CONV1D_TYPES, TOKEN_EMBEDDINGS, model_files

_HEADS: Final[Mapping[str, str]] = {"gpt_neox": "embed_out"}
_CAUSAL: Final = ("ForCausalLM", "LMHeadModel")
_HEADLESS: Final = ("Model", "Classification", "QuestionAnswering", "MultipleChoice")

_TASKS: Final = (
    ("ForCausalLM", "CAUSAL_LM"),
    ("LMHeadModel", "CAUSAL_LM"),
    ("ForSequenceClassification", "SEQ_CLS"),
    ("ForTokenClassification", "TOKEN_CLS"),
    ("ForQuestionAnswering", "QUESTION_ANS"),
)

_INSIDE: Final[Mapping[str, str]] = {"gpt2": "transformer.", "bloom": "transformer."}
"""The prefix of the layers in models of this type, which files on the Hub leave out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedWeight:
    """A tensor in a file; `sha256` is the hex digest of its bytes."""

    path: Path
    spec: TensorSpec
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model folder: its weights by name (buffers left out) and its `config.json` (empty when there is none)."""

    record: BaseRecord
    weights: Mapping[str, PairedWeight]
    config: Mapping[str, Any]

    @classmethod
    def of(cls, record: BaseRecord) -> StoredModel:
        """Return the model of `record`, which must match the current files. Raises what `model_files` raises."""
        folder, files, facts = model_files(record)
        weights = {
            spec.name: PairedWeight(path=file.path, spec=spec, sha256=facts[spec.name].sha256)
            for file in files
            for spec in file.tensors
            if not is_buffer(spec.name, spec.shape)
        }
        return cls(record=record, weights=weights, config=_read_config(folder))

    @property
    def label(self) -> str:
        """The model in messages."""
        return self.record.label

    @property
    def model_type(self) -> str:
        """The architecture's name; "" if the config names none."""
        return self._text("model_type")

    @property
    def task_type(self) -> str | None:
        """PEFT's name for the task of the model's class."""
        return next((task for end, task in _TASKS if self._class.endswith(end)), None)

    @property
    def embedding(self) -> str | None:
        """The tensor of the token embedding: the candidate with most rows."""
        candidates = [
            name
            for name, weight in self.weights.items()
            if name.removesuffix(".weight").rpartition(".")[2] in TOKEN_EMBEDDINGS
            and len(weight.spec.shape) == MATRIX_NDIM
        ]
        return max(candidates, key=lambda name: self.weights[name].spec.shape[0], default=None)

    @property
    def head(self) -> str | None:
        """The output head, if the class of the model has one.

        Unknown for models like BERT, whose heads have several names.
        """
        is_like_bert = (self.embedding or "").endswith("embeddings.word_embeddings.weight")
        return _HEADS.get(self.model_type, "lm_head") if self._class.endswith(_CAUSAL) and not is_like_bert else None

    @property
    def shares_embedding(self) -> bool:
        """Whether the token embedding serves as the output head that the files lack, by the class or the config."""
        return self.head is not None or self.config.get("tie_word_embeddings") is True

    @property
    def may_share_embedding(self) -> bool:
        """Whether layers outside the files may use the weight of the token embedding."""
        if self._class.endswith(_HEADLESS) and not self._class.endswith(_CAUSAL):
            return False
        return self.config.get("tie_word_embeddings") is not False  # transformers shares by default

    @property
    def inside(self) -> str:
        """The prefix that the names in the files lack for the class in the config; mostly ""."""
        part = _INSIDE.get(self.model_type, "")
        is_bare = not self._class or (self._class.endswith("Model") and not self._class.endswith(_CAUSAL))
        return "" if is_bare or any(name.startswith(part) for name in self.weights) else part

    @property
    def _class(self) -> str:
        names = self.config.get("architectures")
        return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""

    def _text(self, key: str) -> str:
        value = self.config.get(key)
        return value if isinstance(value, str) else ""


def aligned(base: StoredModel, tuned: StoredModel) -> tuple[dict[str, PairedWeight], dict[str, PairedWeight]]:
    """Return the weights of both models under common names: those of a model with its head.

    A model that was saved without its head lacks the first part of the names (`h.0…` for `transformer.h.0…`); this adds
    it again.
    """
    ours, theirs = dict(base.weights), dict(tuned.weights)
    into_base, into_tuned = _prefix(ours, theirs), _prefix(theirs, ours)
    if into_base:
        ours = _under(into_base, ours, theirs)
    elif into_tuned:
        theirs = _under(into_tuned, theirs, ours)
    elif base.inside:
        names = {name: base.inside + name for name in {*ours, *theirs} if not _is_head(name, base)}
        ours = {names.get(name, name): weight for name, weight in ours.items()}
        theirs = {names.get(name, name): weight for name, weight in theirs.items()}
    return ours, theirs


def _is_head(name: str, model: StoredModel) -> bool:
    return model.head is not None and name.startswith(f"{model.head}.")


def _prefix(names: Iterable[str], longer: Mapping[str, PairedWeight]) -> str:
    """Return the prefix with which most of `names` are in `longer`; "" if none finds more than the plain names."""
    names = list(names)
    best, most = "", sum(name in longer for name in names)
    for part, _ in Counter(name.partition(".")[0] + "." for name in longer).most_common(2):
        count = sum(part + name in longer for name in names)
        if count > most:
            best, most = part, count
    return best


def _under(
    prefix: str, weights: Mapping[str, PairedWeight], longer: Mapping[str, PairedWeight]
) -> dict[str, PairedWeight]:
    return {prefix + name if prefix + name in longer else name: weight for name, weight in weights.items()}


def _read_config(folder: Path) -> Mapping[str, Any]:
    """Return the model's config; empty if it is missing or damaged, as in `hints`."""
    try:
        value = read_json(folder / "config.json", CONFIG_LIMIT_BYTES)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


BLOCK_BYTES: Final = 8 << 20
"""Bytes read of each model at once: large enough for the disk, small beside the weights."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightDifference:
    """The difference between one weight of the tuned model and of the base.

    `matrix` is float32 [rows, columns], trailing dimensions flattened; None if only the norm was computed.
    `is_rounding` is true if the models have two precisions and the numbers are equal in the coarser one.
    """

    matrix: Tensor | None
    norm: float
    is_finite: bool
    is_rounding: bool

    @property
    def is_nothing(self) -> bool:
        """Whether the weight is equal in both models, up to rounding."""
        return self.is_rounding or self.norm == 0


@final
class WeightReader:
    """Reads the files of models; a context manager that closes them."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._streams: dict[Path, IO[bytes]] = {}

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def data(self, weight: PairedWeight, start: int = 0, count: int | None = None) -> bytearray:
        """`count` bytes of the weight from its byte `start` on, by default all.

        Raises:
            CouldNotTell: the file cannot be read.
            MalformedTensorFile: the file became shorter after its header was read.
        """
        buffer = bytearray(weight.spec.size_bytes if count is None else count)
        stream = self._streams.get(weight.path)
        try:
            if stream is None:
                # unbuffered, since each read is megabytes
                stream = self._streams[weight.path] = self._stack.enter_context(weight.path.open("rb", buffering=0))
            stream.seek(weight.spec.start + start)
            view, filled = memoryview(buffer), 0
            while filled < len(buffer):
                got = stream.readinto(view[filled:])  # type: ignore[attr-defined]  # a raw file has it
                if not got:
                    raise MalformedTensorFile(str(weight.path), f"ends inside tensor `{shown(weight.spec.name)}`")
                filled += got
        except OSError as error:
            raise not_read(error, weight.path, CouldNotTell) from None
        return buffer

    def difference(self, base: PairedWeight, tuned: PairedWeight, *, with_matrix: bool = True) -> WeightDifference:
        """Return the tuned weight minus the base's, each entry rounded once to float32; both floating, of one shape."""
        rows = tuned.spec.shape[0] if tuned.spec.shape else 1
        columns = tuned.spec.elements // rows if rows else 0
        matrix = torch.empty(rows, columns) if with_matrix else None
        widest = max(DTYPE_BITS[w.spec.dtype] for w in (base, tuned)) // 8
        step = max(1, BLOCK_BYTES // max(1, columns * widest))
        squares, finite = 0.0, True
        is_rounding = base.spec.dtype != tuned.spec.dtype
        for first in range(0, rows, step):
            last = min(first + step, rows)
            old, new = (self._rows(w, first, last, columns) for w in (base, tuned))
            is_rounding = is_rounding and _equal_when_rounded(old, new)
            block = _minus(new, old)
            finite = finite and is_finite(block)
            squares += float(torch.linalg.vector_norm(block, dtype=torch.float64)) ** 2
            if matrix is not None:
                matrix[first:last] = block
        return WeightDifference(matrix=matrix, norm=math.sqrt(squares), is_finite=finite, is_rounding=is_rounding)

    def _rows(self, weight: PairedWeight, first: int, last: int, columns: int) -> Tensor:
        dtype = TORCH_DTYPES[weight.spec.dtype]
        data = self.data(weight, first * columns * dtype.itemsize, (last - first) * columns * dtype.itemsize)
        return torch.frombuffer(data, dtype=dtype).reshape(last - first, columns)


def error_of(stored: LowRank, matrix: Tensor) -> float:
    """‖matrix - b a‖, Frobenius, block by block; `stored` has scale 1 and any dtype. Floor: 1e-7 of ‖matrix‖."""
    a, b = stored.a.float(), stored.b.float()
    step = max(1, BLOCK_BYTES // (4 * matrix.shape[1]))
    squares = 0.0
    for first in range(0, matrix.shape[0], step):
        gap = torch.addmm(matrix[first : first + step], b[first : first + step], a, alpha=-1)
        squares += float(torch.linalg.vector_norm(gap, dtype=torch.float64)) ** 2
    return math.sqrt(squares)


def _minus(new: Tensor, old: Tensor) -> Tensor:
    """Return the difference in float32, by way of float64 if one side is float64."""
    wide = torch.float64 if torch.float64 in (new.dtype, old.dtype) else torch.float32
    return torch.sub(new.to(wide), old.to(wide)).float()


def _equal_when_rounded(old: Tensor, new: Tensor) -> bool:
    """Return whether the numbers are equal after rounding to the coarser dtype."""
    coarse = max(old.dtype, new.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    return torch.equal(old.to(coarse), new.to(coarse))


_MOST_DIMENSIONS: Final = 5

_EMBEDDING: Final = re.compile(
    r"(?!patch_)(?:\w+_)?embeddings?|embed_(?:tokens|in|positions)|tokens_embed|positions_embed|shared|emb|wte|wpe"
    r"|relative_attention_bias"
)
"""Last names of modules whose weight is a table of vectors [entries, width]; `patch_embedding` is a projection."""

_TASK_HEADS: Final[Mapping[str, tuple[str, ...]]] = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
NEW_HEADS: Final = frozenset({"classifier", "score", "qa_outputs", "lm_head", "embed_out"})
_OUTPUT_HEADS: Final = ("lm_head", "embed_out")

KEPT_NUMBERS: Final = 1 << 20
"""The most numbers in a module that is carried whole; a LoRA of one layer has about as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A module that gets factors; if turned, its B A is the transpose of the stored matrix (Conv1D, embeddings)."""

    module: str
    layout: FactorLayout
    is_turned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractTarget:
    """A weight that differs; `sites` holds the one module that uses it, or two that share it."""

    name: str
    base: PairedWeight
    tuned: PairedWeight
    sites: tuple[Site, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherTensor:
    """A tensor that differs and gets no factors; `base` or `tuned` is None if that model lacks it."""

    name: str
    reason: str
    base: PairedWeight | None
    tuned: PairedWeight | None

    @property
    def is_comparable(self) -> bool:
        """Whether both models have it in one shape and as plain numbers."""
        if self.base is None or self.tuned is None or self.base.spec.shape != self.tuned.spec.shape:
            return False
        return self.base.spec.dtype in TORCH_DTYPES and self.tuned.spec.dtype in TORCH_DTYPES

    @property
    def elements(self) -> int:
        """The number of elements of the tuned model's tensor, or of the base's."""
        weight = self.tuned or self.base
        assert weight is not None  # one model has it
        return weight.spec.elements


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """The differences between two models, each list sorted by name.

    `others` have equal shapes but do not fit a LoRA; `unequal` are in one model only, or have two shapes; `unreadable`
    are not stored as plain numbers. `weights` are all weights of the tuned model, under common names.
    """

    targets: tuple[ExtractTarget, ...]
    others: tuple[OtherTensor, ...]
    unequal: tuple[OtherTensor, ...]
    unreadable: tuple[str, ...]
    unchanged: int
    weights: Mapping[str, PairedWeight]
    paths: frozenset[str]

    @property
    def without_factors(self) -> tuple[OtherTensor, ...]:
        """The differing tensors that get no factors, sorted by name."""
        return tuple(sorted((*self.others, *self.unequal), key=lambda other: other.name))


def pair(base: StoredModel, tuned: StoredModel) -> Pairing:
    """Compare two models by the digests of their tensors."""
    return _Pairing(base, tuned).run()


class _Pairing:
    """A comparison in progress."""

    def __init__(self, base: StoredModel, tuned: StoredModel) -> None:
        self.base, self.tuned = base, tuned
        self.ours, self.theirs = aligned(base, tuned)
        self.names = sorted({*self.ours, *self.theirs})
        self.paths = frozenset(path for name in self.names for path in _paths_above(name))
        self.targets: list[ExtractTarget] = []
        self.others: list[OtherTensor] = []
        self.unequal: list[OtherTensor] = []
        self.unreadable: list[str] = []
        self.unchanged = 0
        self.embeddings = {
            name
            for model, weights in ((base, self.ours), (tuned, self.theirs))
            for name, weight in weights.items()
            if model.embedding is not None and weight is model.weights[model.embedding]
        }

    def run(self) -> Pairing:
        """Compare every tensor."""
        for name in self.names:
            base, tuned = self.ours.get(name), self.theirs.get(name)
            if base is None or tuned is None:
                self._one_sided(name, base, tuned)
            elif base.spec.shape != tuned.spec.shape:
                reason = f"{list(base.spec.shape)} in the base, {list(tuned.spec.shape)} in the tuned model"
                self.unequal.append(OtherTensor(name=name, reason=reason, base=base, tuned=tuned))
            else:
                self._two_sided(name, base, tuned)
        return Pairing(
            targets=self._shared_once(),
            others=tuple(self.others),
            unequal=tuple(self.unequal),
            unreadable=tuple(self.unreadable),
            unchanged=self.unchanged,
            weights=self.theirs,
            paths=self.paths,
        )

    def _one_sided(self, name: str, base: PairedWeight | None, tuned: PairedWeight | None) -> None:
        """Sort a tensor of one model: a head that the other model shares with its embedding, or one with no partner."""
        lacking, weights = (self.base, self.ours) if base is None else (self.tuned, self.theirs)
        present = base or tuned
        assert present is not None  # the name is from one of the models
        shared = next((weights[n] for n in self.embeddings if n in weights), None)
        if _is_output_head(name) and lacking.shares_embedding and shared and shared.spec.shape == present.spec.shape:
            self._two_sided(name, base or shared, tuned or shared)
            return
        which, other = ("base", "tuned model") if tuned is None else ("tuned model", "base")
        reason = f"{list(present.spec.shape)} in the {which}, not in the {other}"
        self.unequal.append(OtherTensor(name=name, reason=reason, base=base, tuned=tuned))

    def _two_sided(self, name: str, base: PairedWeight, tuned: PairedWeight) -> None:
        """Sort a tensor that both models have in one shape."""
        if base.sha256 == tuned.sha256 and base.spec.dtype == tuned.spec.dtype:
            self.unchanged += 1
            return
        odd = sorted({w.spec.dtype for w in (base, tuned)} - set(TORCH_DTYPES))
        if odd and len(tuned.spec.shape) >= MATRIX_NDIM:
            self.unreadable.append(f"`{shown(name)}` is stored as {', '.join(odd)}")
            return
        sites = self._sites(name, tuned)
        if isinstance(sites, str):
            self.others.append(OtherTensor(name=name, reason=sites, base=base, tuned=tuned))
        else:
            self.targets.append(ExtractTarget(name=name, base=base, tuned=tuned, sites=sites))

    def _sites(self, name: str, weight: PairedWeight) -> tuple[Site, ...] | str:
        """Return the modules that get factors, or the reason against factors."""
        module, _, _parameter = name.rpartition(".")
        leaf, shape = module.rpartition(".")[2], weight.spec.shape
        reason = self._reason(name, shape)
        if reason is not None:
            return reason
        if len(shape) > MATRIX_NDIM:
            return (
                Site(module=module, layout=FactorLayout(kind="conv", out=shape[0], a_shape=shape[1:]), is_turned=False),
            )
        if _EMBEDDING.fullmatch(leaf):
            return self._embedding_sites(name, module, shape)
        is_turned = leaf in CONV1D and self.base.model_type in CONV1D_TYPES
        return (Site(module=module, layout=_linear(*(shape[::-1] if is_turned else shape)), is_turned=is_turned),)

    def _reason(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Return the reason against factors from the name and the shape, if any."""
        module, _, parameter = name.rpartition(".")
        above, _, leaf = module.rpartition(".")
        if len(shape) < MATRIX_NDIM:
            return "a bias" if parameter == "bias" else "a vector"
        if not module or parameter != "weight" or len(shape) > _MOST_DIMENSIONS:
            return "a parameter that is not the weight of a layer"
        if unit_of(name).rpartition(".")[2] in _TASK_HEADS.get(self.tuned.task_type or "", ()):
            return "in the task head, which PEFT keeps whole"
        if len(shape) == MATRIX_NDIM + 1 and "conv" not in leaf:
            return "a stack of matrices"
        if len(shape) > MATRIX_NDIM and shape[1] == 1:
            return "a convolution in groups"
        if leaf in ("gate", "router") and f"{above}.experts" in self.paths:
            return "the router of a mixture of experts"
        return None

    def _embedding_sites(self, name: str, module: str, shape: tuple[int, ...]) -> tuple[Site, ...] | str:
        """Return the sites of an embedding: itself, and the output head if that has no weight of its own."""
        layout = FactorLayout(kind="embedding", out=shape[1], a_shape=(shape[0],))
        own = Site(module=module, layout=layout, is_turned=True)
        if module.rpartition(".")[2] == "shared":
            return "an embedding that the encoder and the decoder share under other names"
        if name not in self.embeddings or any(map(_is_output_head, self.names)):
            return (own,)
        if self.base.head is not None:
            return own, Site(module=self.base.head, layout=_linear(*shape), is_turned=False)
        if self.base.may_share_embedding:
            return "an embedding whose weight an output layer outside the files may share"
        return (own,)

    def _shared_once(self) -> tuple[ExtractTarget, ...]:
        """Return the targets, joined where contents are equal, such as a head saved beside its shared embedding."""
        contents: dict[tuple[str, str, tuple[int, ...]], list[ExtractTarget]] = {}
        for target in self.targets:
            key = (target.base.sha256, target.tuned.sha256, target.base.spec.shape)
            contents.setdefault(key, []).append(target)
        groups = contents.values()
        return tuple(replace(same[0], sites=tuple(site for t in same for site in t.sites)) for same in groups)


def kept_whole(pairing: Pairing) -> dict[str, tuple[str, ...]]:
    """Return the differing modules without factors that can be carried whole (`modules_to_save`), with their tensors.

    A module qualifies if it is small, has no factors inside, and no other module's name ends with its name (PEFT
    compares the ends of names). Of the tensors without a partner, only a new head of the tuned model qualifies.
    """
    inside: defaultdict[str, list[str]] = defaultdict(list)
    for name in pairing.weights:
        for path in _paths_above(name):
            inside[path].append(name)
    targeted = {site.module for target in pairing.targets for site in target.sites}
    holding = targeted.union(*(_paths_above(module) for module in targeted))
    units: dict[str, tuple[str, ...]] = {}
    for unit in dict.fromkeys(unit_of(other.name) for other in pairing.without_factors):
        size = sum(pairing.weights[name].spec.elements for name in inside[unit])
        if inside[unit] and size <= KEPT_NUMBERS and unit not in holding and not _is_misshapen(unit, pairing):
            units[unit] = tuple(inside[unit])
    while True:
        reached = (path for path in pairing.paths if units.keys().isdisjoint({path, *_paths_above(path)}))
        backwards = sorted(path[::-1] for path in reached)
        loose = [unit for unit in units if _begins_one(unit[::-1], backwards)]
        if not loose:
            return dict(sorted(units.items()))
        for unit in loose:
            del units[unit]


def unit_of(name: str) -> str:
    """Return the module that is carried with the tensor `name`: the whole head of a task, otherwise the layer."""
    parts = name.split(".")[:-1]
    head = next((count for count, part in enumerate(parts, 1) if part in NEW_HEADS), len(parts))
    return ".".join(parts[:head])


def _is_misshapen(unit: str, pairing: Pairing) -> bool:
    """Return whether a tensor of the module has no partner of its shape in the base; a new head may."""
    wrong = [other for other in pairing.unequal if unit_of(other.name) == unit]
    is_new_head = unit.rpartition(".")[2] in NEW_HEADS and all(other.base is None for other in wrong)
    return bool(wrong) and not is_new_head


def _begins_one(start: str, ordered: list[str]) -> bool:
    """Return whether one of the sorted texts starts with `start`."""
    at = bisect.bisect_left(ordered, start)
    return at < len(ordered) and ordered[at].startswith(start)


def _is_output_head(name: str) -> bool:
    return name.endswith(tuple(f"{head}.weight" for head in _OUTPUT_HEADS))


def _paths_above(name: str) -> Iterator[str]:
    """Yield the modules that contain the tensor `name`, innermost first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _linear(out: int, width: int) -> FactorLayout:
    return FactorLayout(kind="linear", out=out, a_shape=(width,))
