"""The base as files: the place of each tensor, the config, and the tensors that are tied once it is loaded."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from adapterhub.core.disk.files import NO_LINK, LeadsOut, inside, not_read, read_json
from adapterhub.core.errors import CouldNotTell, Malformed, shown
from adapterhub.formats.base.fingerprint import CONFIG_LIMIT_BYTES, OUTPUT_HEADS, is_buffer
from adapterhub.formats.base.weight_files import INDEX_LIMIT_BYTES, TOKENIZER_FILES, index_of
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub.formats.safetensors.header import TensorFacts, TensorSpec
from adapterhub.library.bases.records import BaseRecord
from adapterhub.weights.dtypes import TORCH_DTYPES
from adapterhub.weights.lowrank.algebra import MATRIX_NDIM
from adapterhub.weights.model_files import TOKEN_EMBEDDINGS, model_files

CONFIG_FILE: Final = "config.json"

_VOCABULARY: Final = frozenset({*TOKEN_EMBEDDINGS, "embeddings", "shared", *OUTPUT_HEADS})
_WITH_HEAD: Final = ("ForCausalLM", "LMHead", "ForMaskedLM", "ForConditionalGeneration", "ForPreTraining")
"""Parts of the names of classes with an output head, which may use the embedding a second time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredBase:
    """A base's folder: its weight files in order, the facts of every tensor by name, its `config.json` ({} if none).

    `stamps` holds the size and time of each file when its header was read.
    """

    record: BaseRecord
    folder: Path
    files: tuple[TensorFile, ...]
    facts: Mapping[str, TensorFacts]
    config: Mapping[str, Any]
    stamps: Mapping[Path, tuple[int, int]]

    @classmethod
    def of(cls, record: BaseRecord) -> StoredBase:
        """Return the model of `record`, which must match the current files (`Bases.look`).

        Raises:
            Malformed: the config is not JSON; otherwise what `model_files` raises.
        """
        folder, files, facts = model_files(record)
        return cls(
            record=record,
            folder=folder,
            files=files,
            facts=facts,
            config=_read_config(folder),
            stamps=MappingProxyType({file.path: _stamp(file.path) for file in files}),
        )

    def ensure_unchanged(self, file: TensorFile) -> None:
        """Raise unless a weight file is unchanged since its header was read.

        Raises:
            CouldNotTell: the file changed.
        """
        if _stamp(file.path) != self.stamps[file.path]:
            raise CouldNotTell(
                f"`{file.path}` changed while it was read", hint="wait until the file is written, then try again"
            )

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The tensors with a row for each token, sorted."""
        return tuple(name for name in sorted(self.facts) if self.is_vocabulary(name))

    @cached_property
    def places(self) -> Mapping[str, tuple[TensorFile, TensorSpec]]:
        """Every tensor's file and its place there, by name."""
        return MappingProxyType({spec.name: (file, spec) for file in self.files for spec in file.tensors})

    @cached_property
    def modules(self) -> frozenset[str]:
        """Names of the modules with a tensor."""
        return frozenset(name.rpartition(".")[0] for name in self.facts)

    @cached_property
    def main_dtype(self) -> str:
        """The dtype of most numbers; "" for a model without plain floating point numbers."""
        counts: Counter[str] = Counter()
        for file in self.files:
            for spec in file.tensors:
                if spec.dtype in TORCH_DTYPES and not is_buffer(spec.name, spec.shape):
                    counts[spec.dtype] += spec.elements
        return counts.most_common(1)[0][0] if counts else ""

    @property
    def is_quantised(self) -> bool:
        """Whether the config declares quantised weights."""
        return bool(self.config.get("quantization_config"))

    @property
    def model_type(self) -> str:
        """The architecture's name; "" if the config names none."""
        value = self.config.get("model_type")
        return value if isinstance(value, str) else ""

    # ------------------------------------------------------------ tied tensors
    def is_vocabulary(self, name: str) -> bool:
        """Return whether a tensor has a row for each token: a token embedding or an output head."""
        fact = self.facts[name]
        module, _, leaf = name.rpartition(".")
        if len(fact.shape) != MATRIX_NDIM or leaf != "weight":
            return False
        is_as_long = fact.shape[0] == self._vocabulary_size and not _is_inside_layer(module)
        return module.rpartition(".")[2] in _VOCABULARY or is_as_long

    def twins(self, name: str) -> tuple[str, ...]:
        """Other tensors in the files that are tied to `name` once the model is loaded."""
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
        """Return whether the loaded model may use this tensor in a second place that is not in its files."""
        if not self.is_vocabulary(name):
            return False
        if self.is_shared_by_encoder(name):
            return True
        others = [n for n in self.vocabulary if n != name and self.facts[n].shape == self.facts[name].shape]
        return self._has_head and self._ties is not False and not others

    def is_shared_by_encoder(self, name: str) -> bool:
        """Return whether a token embedding serves an encoder and a decoder, as T5's `shared` does."""
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] == "shared":
            return True
        return self.config.get("is_encoder_decoder") is True and not (self.is_head(module) and not self.twins(name))

    def twin_of_absent(self, module: str, shape: tuple[int, ...] | None) -> str:
        """Return the tensor that a module without its own tensor shares, given the `shape` of its weight.

        "" if none.
        """
        if module in self.modules:
            return ""
        leaf = module.rpartition(".")[2]
        if leaf not in _VOCABULARY and (self._ties is False or shape is None or _is_inside_layer(module)):
            return ""
        return next((name for name in self.vocabulary if shape in (None, self.facts[name].shape)), "")

    def sharer_of_absent(self, module: str, shape: tuple[int, ...]) -> str:
        """`twin_of_absent`, where these two are known to be all places that use the tensor; otherwise ""."""
        twin = self.twin_of_absent(module, shape)
        is_pair = twin and self.is_used_twice(twin) and not self.is_shared_by_encoder(twin)
        return twin if is_pair else ""

    def is_head(self, module: str) -> bool:
        """Return whether the name of a module is that of an output head."""
        return module.rpartition(".")[2] in OUTPUT_HEADS

    @cached_property
    def _ties(self) -> bool | None:
        """Whether the config ties embeddings; None if it does not say, and transformers then ties them."""
        values = [holder.get("tie_word_embeddings") for holder in self._configs()]
        return True if True in values else False if False in values else None

    @cached_property
    def _vocabulary_size(self) -> int | None:
        sizes = (holder.get("vocab_size") for holder in self._configs())
        return next((size for size in sizes if type(size) is int), None)

    @cached_property
    def _has_head(self) -> bool:
        """Whether the model's class has an output head; true if the config names no class."""
        named = self.config.get("architectures")
        classes = [c for c in named if isinstance(c, str)] if isinstance(named, list) else []
        return not classes or any(part in name for name in classes for part in _WITH_HEAD)

    def _configs(self) -> Iterator[Mapping[str, Any]]:
        """Yield the config, and the config of the language model inside a multimodal one."""
        yield self.config
        inner = self.config.get("text_config")
        if isinstance(inner, dict):
            yield inner


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise not_read(error, path, CouldNotTell) from None
    return status.st_size, status.st_mtime_ns


def _is_inside_layer(module: str) -> bool:
    return any(part.isdecimal() for part in module.split("."))


def _read_config(folder: Path) -> Mapping[str, Any]:
    """Return the model's config, which may contain `Infinity` like Mamba's."""
    path = folder / CONFIG_FILE
    try:
        value = read_json(path, CONFIG_LIMIT_BYTES, finite=False)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise not_read(error, path, CouldNotTell) from None
    except ValueError as error:
        raise Malformed(f"{path}: {shown(str(error), 200)}", hint="download the file again") from None
    if not isinstance(value, dict):
        raise Malformed(f"{path}: expected an object")
    return value


_COPIED: Final = (
    "config.json",
    "generation_config.json",
    *TOKENIZER_FILES,
    "source.spm",
    "target.spm",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "*.tiktoken",
    # chat template
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    # pictures and sound
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    # terms, which also apply to a model made from the base
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
"""Files to copy from a base. No others, because loading the result could run a pickle or a Python file."""

_NAMING_CODE: Final = (CONFIG_FILE, "tokenizer_config.json", "processor_config.json")
_DTYPE_KEYS: Final = ("dtype", "torch_dtype")


def side_files(model: StoredBase) -> list[Path]:
    """Return the files besides the weights to copy, relative to the base's folder."""
    paths = {path for pattern in _COPIED for path in model.folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(model.folder) for path in paths)


def copy_side_files(model: StoredBase, folder: Path, dtype: str | None) -> None:
    """Copy the side files; `dtype` (torch's name) replaces the dtype in the config.

    Raises:
        Malformed: one is a link out of the base's folder.
    """
    for name in side_files(model):
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(_inside(model.folder, str(name)), target)
    if dtype is not None and (folder / CONFIG_FILE).exists():
        text = json.dumps(_with_dtype(model.config, dtype), indent=2, sort_keys=True)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def copy_index(model: StoredBase, folder: Path, size_bytes: int | None) -> None:
    """Copy the index of a sharded base; `size_bytes` is the new size of the weights, if it changed."""
    path = index_of(model.folder)
    if path is None:
        return
    if size_bytes is None:
        shutil.copyfile(_inside(path.parent, path.name), folder / path.name)
        return
    index = read_json(_inside(path.parent, path.name), INDEX_LIMIT_BYTES)
    metadata = index.get("metadata")
    index["metadata"] = (metadata if isinstance(metadata, dict) else {}) | {"total_size": size_bytes}
    (folder / path.name).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _inside(folder: Path, name: str) -> Path:
    try:
        return inside(folder, name)
    except LeadsOut as error:
        raise Malformed(f"`{shown(str(error.filename), 200)}` {error.strerror}", hint=NO_LINK) from None


def code_remarks(model: StoredBase) -> Sequence[str]:
    """Return a remark on code that the base's configs name, since it is not copied."""
    files = sorted({file for name in _NAMING_CODE for file in _code_files(model.folder / name)})
    if not files:
        return ()
    listed = ", ".join(f"`{shown(file)}`" for file in files)
    return (
        f"the base's config names code ({listed}), which was not copied; if the model needs it, review and copy it",
    )


def _code_files(path: Path) -> Iterator[str]:
    try:
        named = read_json(path, CONFIG_LIMIT_BYTES, finite=False).get("auto_map")
    except (OSError, ValueError, AttributeError):
        return
    values = named.values() if isinstance(named, dict) else ()
    for value in [item for group in values for item in (group if isinstance(group, list) else [group])]:
        if isinstance(value, str) and "--" not in value:  # `repo--file` names code in another repository
            yield value.partition(".")[0] + ".py"


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the config with `dtype` in place of every dtype, also in nested configs."""
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if key in _DTYPE_KEYS and isinstance(value, str):
            changed[key] = dtype
        else:
            changed[key] = _with_dtype(value, dtype) if isinstance(value, dict) else value
    return changed
