"""The base as files: which tensor lies where, what its config says, and which tensors are one once it is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from adapterhub.core.disk.files import read_json
from adapterhub.core.errors import BaseNotFound, CouldNotTell, Malformed, shown
from adapterhub.formats.base.fingerprint import is_buffer
from adapterhub.formats.base.hints import CONFIG_LIMIT_BYTES
from adapterhub.formats.base.weight_files import weight_files
from adapterhub.formats.safetensors.facts import TensorFacts
from adapterhub.formats.safetensors.file import TensorFile, read_header
from adapterhub.formats.safetensors.header import BASE_LIMITS, TensorSpec
from adapterhub.library.bases.records import BaseRecord
from adapterhub.weights.dtypes import TORCH_DTYPES

CONFIG_FILE: Final = "config.json"
_MATRIX: Final = 2

_HEADS: Final = frozenset({"lm_head", "embed_out", "output"})
_TOKENS: Final = frozenset(
    {"embed_tokens", "wte", "word_embeddings", "embed_in", "embeddings", "shared", "tok_embeddings", "tokens_embed"}
)
_WITH_HEAD: Final = ("ForCausalLM", "LMHead", "ForMaskedLM", "ForConditionalGeneration", "ForPreTraining")
"""Parts of the names of classes that turn vectors back into tokens, which is where an embedding may be used twice."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A base's folder: its weight files in order, facts of every tensor by name, its `config.json` ({}: none).

    `stamps` are size and time of each file as it was looked at.
    """

    record: BaseRecord
    folder: Path
    files: tuple[TensorFile, ...]
    facts: Mapping[str, TensorFacts]
    config: Mapping[str, Any]
    stamps: Mapping[Path, tuple[int, int]]

    @classmethod
    def of(cls, record: BaseRecord) -> Model:
        """The model that `record` describes, which must be of the files as they are now (`Bases.look`).

        Raises:
            BaseNotFound: the record names no folder.
            Malformed, MalformedTensorFile: no complete model in safetensors, or a config that is not JSON.
            CouldNotTell: the files have changed since.
        """
        if record.path is None:
            raise BaseNotFound(f"`{shown(record.label)}` is known without a folder")
        files = tuple(read_header(path, limits=BASE_LIMITS) for path in weight_files(record.path))
        facts = {fact.name: fact for fact in record.tensors}
        for file in files:
            for spec in file.tensors:
                known = facts.get(spec.name)
                if known is None or (known.dtype, known.shape) != (spec.dtype, spec.shape):
                    raise CouldNotTell(f"`{file.path}` changed since it was fingerprinted: `{shown(spec.name)}`")
        config = _read_config(record.path)
        return cls(
            record=record,
            folder=record.path,
            files=files,
            facts=MappingProxyType(facts),
            config=config,
            stamps=MappingProxyType({file.path: _stamp(file.path) for file in files}),
        )

    def ensure_unchanged(self, file: TensorFile) -> None:
        """Whether a weight file is still the one that was looked at.

        Raises:
            CouldNotTell: it is not.
        """
        if _stamp(file.path) != self.stamps[file.path]:
            raise CouldNotTell(
                f"`{file.path}` changed while it was read", hint="wait until it is written and try again"
            )

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The tensors that have a row for each token, sorted."""
        return tuple(name for name in sorted(self.facts) if self.is_vocabulary(name))

    @cached_property
    def places(self) -> Mapping[str, tuple[TensorFile, TensorSpec]]:
        """The file and the place there of every tensor, by name."""
        return MappingProxyType({spec.name: (file, spec) for file in self.files for spec in file.tensors})

    @cached_property
    def modules(self) -> frozenset[str]:
        """Names of the modules that hold a tensor."""
        return frozenset(name.rpartition(".")[0] for name in self.facts)

    @cached_property
    def main_dtype(self) -> str:
        """What most numbers are stored as; "" for a model without plain floating point numbers."""
        counts: Counter[str] = Counter()
        for file in self.files:
            for spec in file.tensors:
                if spec.dtype in TORCH_DTYPES and not is_buffer(spec.name, spec.shape):
                    counts[spec.dtype] += spec.elements
        return counts.most_common(1)[0][0] if counts else ""

    @property
    def is_quantised(self) -> bool:
        """Whether the config says that weights are stored in a form of their own."""
        return bool(self.config.get("quantization_config"))

    @property
    def model_type(self) -> str:
        """The architecture's name; "" when the config does not say."""
        value = self.config.get("model_type")
        return value if isinstance(value, str) else ""

    # ------------------------------------------------------------ tied tensors
    def is_vocabulary(self, name: str) -> bool:
        """Whether a tensor has a row for each token: a token embedding or an output head."""
        fact = self.facts[name]
        module, _, leaf = name.rpartition(".")
        if len(fact.shape) != _MATRIX or leaf != "weight":
            return False
        is_as_long = fact.shape[0] == self._vocabulary_size and not _is_inside_layer(module)
        return module.rpartition(".")[2] in _HEADS | _TOKENS or is_as_long

    def twins(self, name: str) -> tuple[str, ...]:
        """Other tensors of the files that are the same tensor as `name` once the model is loaded."""
        if not self.is_vocabulary(name) or self._ties is False:
            return ()
        fact = self.facts[name]
        same = (fact.dtype, fact.shape, fact.sha256)
        return tuple(
            other
            for other in self.vocabulary
            if other != name and (self.facts[other].dtype, self.facts[other].shape, self.facts[other].sha256) == same
        )

    def is_used_twice(self, name: str) -> bool:
        """Whether the loaded model may use this tensor in a second place that its files do not name."""
        if not self.is_vocabulary(name):
            return False
        if self.is_shared_by_encoder(name):
            return True
        others = [n for n in self.vocabulary if n != name and self.facts[n].shape == self.facts[name].shape]
        return self._has_head and self._ties is not False and not others

    def is_shared_by_encoder(self, name: str) -> bool:
        """Whether a token embedding serves an encoder and a decoder, as T5's `shared` does."""
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] == "shared":
            return True
        return self.config.get("is_encoder_decoder") is True and not (self.is_head(module) and not self.twins(name))

    def twin_of_absent(self, module: str, shape: tuple[int, ...] | None) -> str:
        """The tensor that a module of weight `shape` shares, where the files have none of its own; "" if none."""
        if module in self.modules:
            return ""
        leaf = module.rpartition(".")[2]
        if leaf not in _HEADS | _TOKENS and (self._ties is False or shape is None or _is_inside_layer(module)):
            return ""
        return next((name for name in self.vocabulary if shape in (None, self.facts[name].shape)), "")

    def is_head(self, module: str) -> bool:
        """Whether a module is an output head by its name."""
        return module.rpartition(".")[2] in _HEADS

    @cached_property
    def _ties(self) -> bool | None:
        """What the config says of tying embeddings; None when it does not, and transformers then ties."""
        values = [holder.get("tie_word_embeddings") for holder in self._configs()]
        return True if True in values else False if False in values else None

    @cached_property
    def _vocabulary_size(self) -> int | None:
        sizes = (holder.get("vocab_size") for holder in self._configs())
        return next((size for size in sizes if type(size) is int), None)

    @cached_property
    def _has_head(self) -> bool:
        """Whether the model's class has an output head; taken to be so where the config names no class."""
        named = self.config.get("architectures")
        classes = [c for c in named if isinstance(c, str)] if isinstance(named, list) else []
        return not classes or any(part in name for name in classes for part in _WITH_HEAD)

    def _configs(self) -> Iterator[Mapping[str, Any]]:
        """The config, and that of the language model inside a model that also sees or hears."""
        yield self.config
        inner = self.config.get("text_config")
        if isinstance(inner, dict):
            yield inner


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise CouldNotTell(f"`{path}` cannot be read: {error.strerror}") from None
    return found.st_size, found.st_mtime_ns


def _is_inside_layer(module: str) -> bool:
    return any(part.isdecimal() for part in module.split("."))


def _read_config(folder: Path) -> Mapping[str, Any]:
    """The model's config, which may hold `Infinity` as Mamba's does."""
    path = folder / CONFIG_FILE
    try:
        value = read_json(path, CONFIG_LIMIT_BYTES, finite=False)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CouldNotTell(f"`{path}` cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise Malformed(f"{path}: {shown(str(error), 200)}") from None
    if not isinstance(value, dict):
        raise Malformed(f"{path}: expected an object")
    return value
