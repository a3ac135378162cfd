"""The readable parts of an orphan: its header, its config, and its LoRA pairs in PEFT's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from adapterhub.core.disk.files import read_plain
from adapterhub.core.errors import MalformedConfig, MalformedManifest, MalformedTensorFile
from adapterhub.formats.foreign.conversion import planned
from adapterhub.formats.foreign.foreign_file import foreign
from adapterhub.formats.foreign.reading import Reading
from adapterhub.formats.manifest import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, Manifest
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.keys import PREFIX, AdapterKeys, KeyPair, sort_keys
from adapterhub.formats.safetensors.file import TensorFile, read_header
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.trust.verify.checks.digests import read_manifest_file
from adapterhub.trust.verify.subject import list_folder

_FACTOR: Final = re.compile(r"\.lora_(?:embedding_)?[AB](?:\.|$)")
_IN_MEMORY: Final = re.compile(r"(\.lora_(?:embedding_)?[AB])\.(?!weight$|bias$)[A-Za-z0-9_-]+(?=\.weight$|\.bias$|$)")
"""The adapter's name in memory, which PEFT leaves out when it saves and other writers do not."""
_PLAIN: Final = b'{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": "all-linear"}'
_CONFIG_LIMIT_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """What could be read. `weights` has the names of the file, `pairs` those of PEFT; `config` is None for a lone file.

    `manifest` is one that lies beside the files; it may say anything. `reading` is another program's file, understood.
    """

    path: Path
    weights: TensorFile | None = None
    config: AdapterConfig | None = None
    manifest: Manifest | None = None
    keys: AdapterKeys | None = None
    reading: Reading | None = None
    notes: tuple[str, ...] = ()

    @property
    def pairs(self) -> tuple[KeyPair, ...]:
        """Its LoRA pairs that are whole."""
        return tuple(pair for pair in self.keys.pairs if pair.whole) if self.keys else ()

    @property
    def plain(self) -> TensorFile | None:
        """The weights file as if it held the pairs alone, in PEFT's names."""
        if self.weights is None:
            return None
        specs = tuple(spec for pair in self.pairs for spec in (pair.a, pair.b) if spec is not None)
        return replace(self.weights, tensors=specs) if specs else None


def read_orphan(path: Path, files: Mapping[str, Path]) -> Orphan:
    """The readable parts of `files`; `notes` list the others."""
    notes: list[str] = []
    weights = _weights(files, notes)
    config = _config(files, notes)
    folder = path if path.is_dir() else path.parent
    keys = None
    reading, refusal = _reading(weights) if weights is not None else (None, "")
    if weights is not None:
        own = [spec for spec, _ in planned(reading)] if reading else [_in_peft_names(spec) for spec in weights.tensors]
        named = replace(weights, tensors=tuple(own))
        keys = sort_keys(named, config or AdapterConfig.parse(_PLAIN, CONFIG_FILE))
        if not keys.pairs:
            notes.append(f"`{weights.path.name}` {refusal}" if refusal else "it holds no LoRA pairs")
    return Orphan(
        path=path,
        weights=weights,
        config=config,
        manifest=_manifest(folder) if path.is_dir() else None,
        keys=keys,
        reading=reading,
        notes=tuple(notes),
    )


def _reading(weights: TensorFile) -> tuple[Reading | None, str]:
    """Another program's file as its reader understands it, or why it is not taken."""
    try:
        with foreign(weights.path) as found:
            return (found.reading, "") if found is not None else (None, "")
    except MalformedTensorFile as error:
        return None, error.reason


def plain_tensor_name(name: str) -> str:
    """A tensor's name without what writers differ in: PEFT's prefix and the adapter's name in memory."""
    return _IN_MEMORY.sub(r"\1", name).removeprefix(PREFIX)


def _in_peft_names(spec: TensorSpec) -> TensorSpec:
    if not _FACTOR.search(spec.name):
        return spec
    return spec._replace(name=PREFIX + plain_tensor_name(spec.name))


def _weights(files: Mapping[str, Path], notes: list[str]) -> TensorFile | None:
    named = [WEIGHTS_FILE] if WEIGHTS_FILE in files else [n for n in files if n.endswith(".safetensors")]
    if not named and len(files) == 1:  # a lone file under any name; the header says what it is
        named = [name for name in files if name != CONFIG_FILE]
    for name in named[:1]:
        try:
            return read_header(files[name])
        except MalformedTensorFile as error:
            notes.append(f"`{name}`: {error.reason}")
    return None


def _config(files: Mapping[str, Path], notes: list[str]) -> AdapterConfig | None:
    path = files.get(CONFIG_FILE)
    if path is None:
        return None
    try:
        return AdapterConfig.parse(read_plain(path, _CONFIG_LIMIT_BYTES), CONFIG_FILE)
    except MalformedConfig as error:
        notes.append(f"`{CONFIG_FILE}`: {error.reason}")
    except OSError as error:
        notes.append(f"`{CONFIG_FILE}`: {error.strerror}")
    return None


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest_file(list_folder(folder).taken[MANIFEST_FILE])
    except (KeyError, MalformedManifest):
        return None
