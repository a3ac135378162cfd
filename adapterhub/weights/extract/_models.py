"""A model folder as named tensors, with the facts of its config; reads no weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapterhub.core.disk.files import read_json
from adapterhub.formats.base.fingerprint import is_buffer
from adapterhub.formats.base.hints import CONFIG_LIMIT_BYTES
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.library.bases.records import BaseRecord
from adapterhub.weights.lowrank.algebra import MATRIX_NDIM
from adapterhub.weights.model_files import model_files

TOKEN_EMBEDDINGS: Final = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "tokens_embed")
"""Last names of the token embedding, whose weight an output head may share."""

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
class Weight:
    """A tensor in a file; `sha256` is the hex digest of its bytes."""

    path: Path
    spec: TensorSpec
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model folder: its weights by name (buffers left out) and its `config.json` (empty when there is none)."""

    record: BaseRecord
    weights: Mapping[str, Weight]
    config: Mapping[str, Any]

    @classmethod
    def of(cls, record: BaseRecord) -> Model:
        """The model of `record`, which must match the current files. Raises what `model_files` raises."""
        folder, files, facts = model_files(record)
        weights = {
            spec.name: Weight(path=file.path, spec=spec, sha256=facts[spec.name].sha256)
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


def aligned(base: Model, tuned: Model) -> tuple[dict[str, Weight], dict[str, Weight]]:
    """The weights of both models under common names: those of a model with its head.

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


def _is_head(name: str, model: Model) -> bool:
    return model.head is not None and name.startswith(f"{model.head}.")


def _prefix(names: Iterable[str], longer: Mapping[str, Weight]) -> str:
    """The prefix with which most of `names` are in `longer`; "" if none finds more than the plain names."""
    names = list(names)
    best, most = "", sum(name in longer for name in names)
    for part, _ in Counter(name.partition(".")[0] + "." for name in longer).most_common(2):
        count = sum(part + name in longer for name in names)
        if count > most:
            best, most = part, count
    return best


def _under(prefix: str, weights: Mapping[str, Weight], longer: Mapping[str, Weight]) -> dict[str, Weight]:
    return {prefix + name if prefix + name in longer else name: weight for name, weight in weights.items()}


def _read_config(folder: Path) -> Mapping[str, Any]:
    """The model's config; empty if it is missing or damaged, as in `hints`."""
    try:
        value = read_json(folder / "config.json", CONFIG_LIMIT_BYTES)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
