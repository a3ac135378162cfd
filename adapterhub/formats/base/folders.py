"""The fingerprint of a base model from the folder that holds its weights."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, Final

from adapterhub.core.digests import Digest, Progress, canonical_json, digest_of, parse_digest
from adapterhub.core.disk.files import not_read
from adapterhub.core.errors import CouldNotTell, Malformed, shown
from adapterhub.core.extras import extra_named
from adapterhub.formats.base.comparison import samples_agree
from adapterhub.formats.base.fingerprint import (
    BaseFingerprint,
    BaseHints,
    fingerprint_tensors,
    is_buffer,
    read_hints,
    weights_of,
)
from adapterhub.formats.base.weight_files import (
    INDEX_FILE,
    digest_now,
    index_of,
    indexed_tensors,
    read_facts,
    weight_files,
)
from adapterhub.formats.diffusion.checkpoints import KINDS, is_checkpoint, split_checkpoint
from adapterhub.formats.diffusion.components import (
    COMPONENTS,
    DENOISERS,
    PIPELINE_FILE,
    TensorView,
    all_folders,
    component_folders,
)
from adapterhub.formats.gguf.file import read_gguf_model
from adapterhub.formats.safetensors.file import TensorFile, read_header
from adapterhub.formats.safetensors.header import BASE_LIMITS, DTYPES, TensorFacts, may_be_codes


def fingerprint_folder(
    folder: str | os.PathLike[str],
    *,
    cache_folder: Path | None,
    threads: int | None = None,
    progress: Progress | None = None,
    hub_id: str | None = None,
    commit: str | None = None,
) -> tuple[BaseFingerprint, BaseHints, tuple[TensorFacts, ...]]:
    """Fingerprint, hints and every tensor (sorted by name, buffers too) of the model in `folder`.

    Reads all weights once, about as fast as `sha256sum` on each processor, or nothing if `cache_folder` knows the files
    (see `read_facts`, also for `threads` and `progress`). `hub_id` and `commit` override what the folder's path says.

    Raises:
        BaseNotFound: there is no such folder.
        Malformed: the folder holds no complete model in safetensors.
        CouldNotTell: a file cannot be read, or changed while it was read.
    """
    folder = Path(folder)
    files = weight_files(folder)
    read = read_facts(files, cache_folder=cache_folder, threads=threads, progress=progress)
    _check_names(folder, read)
    facts = tuple(sorted((fact for found in read.values() for fact in found), key=lambda fact: fact.name))
    try:
        copied = _copied(folder, facts)
        fingerprint = fingerprint_tensors(facts, files=_digest_of_links(files), **copied)
    except ValueError as error:
        raise Malformed(f"`{folder}`: {error}", hint=_ONE_MODEL) from None
    hints = gguf_hints(files[0]) if files[0].suffix == ".gguf" else read_hints(folder)
    parameters = sum(
        prod(fact.shape) for fact in weights_of(fingerprint, facts) if not is_buffer(fact.name, fact.shape)
    )
    hints = replace(hints, parameters=parameters, hub_id=hub_id or hints.hub_id, commit=commit or hints.commit)
    return fingerprint, hints, facts


def gguf_hints(path: Path) -> BaseHints:
    """Hints from the metadata of a GGUF file; the kind of model is llama.cpp's name for it."""
    model = read_gguf_model(path)
    size, layers = model.value("embedding_length"), model.value("block_count")
    return BaseHints(
        model_type=model.architecture or None,
        hidden_size=size if type(size) is int else None,
        layers=layers if type(layers) is int else None,
    )


def _copied(folder: Path, facts: Iterable[TensorFacts]) -> dict[str, Any]:
    """Return the arguments of `fingerprint_tensors` for a quantised copy; {} for floats, and where numpy is missing."""
    is_gguf = folder.suffix == ".gguf" or not any(fact.dtype in DTYPES for fact in facts)
    is_copy = is_gguf or any(_may_be_codes(fact) for fact in facts)
    if not is_copy or (not is_gguf and find_spec("numpy") is None):
        return {}
    with extra_named("registering a GGUF file"):
        from adapterhub.formats.base.quantised.opening import opened

    model = opened(folder)
    copy = model.facts()
    return {"copy": copy, "parts": model.parts} if copy is not None else {}


def _may_be_codes(fact: TensorFacts) -> bool:
    """Return True if a tensor may hold codes (8 bits, or packed into integers) or the settings to read them."""
    if ".quant_state." in fact.name:  # of bitsandbytes, whose codes may be stored as floats
        return True
    is_number = fact.dtype in DTYPES  # GGML's types are no single numbers
    return may_be_codes(fact.dtype, len(fact.shape)) if is_number else len(fact.shape) > 1


def fingerprint_checkpoint(
    path: Path,
    *,
    cache_folder: Path | None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, tuple[BaseFingerprint, BaseHints, tuple[TensorFacts, ...]]]:
    """As `fingerprint_folder`, for each component of a pipeline in one file, under the names of a diffusers folder.

    Raises:
        Malformed: the file holds no pipeline of a kind that has a table.
        CouldNotTell: it cannot be read, or changed while it was read.
    """

    def views(header: TensorFile) -> list[TensorView]:
        found = split_checkpoint(header, path).views
        return [replace(view, name=f"{name}/{view.name}") for name, each in found.items() for view in each]

    read = read_facts((path,), cache_folder=cache_folder, threads=threads, progress=progress, views=views)[path]
    parts: dict[str, list[TensorFacts]] = {}
    for fact in read:
        component, _, name = fact.name.partition("/")
        parts.setdefault(component, []).append(replace(fact, name=name))
    found = {}
    for component, facts in parts.items():
        try:
            fingerprint = fingerprint_tensors(facts)
        except ValueError as error:
            raise Malformed(f"`{path}`: its `{component}` {error}", hint=_ONE_MODEL) from None
        parameters = sum(prod(fact.shape) for fact in facts if not is_buffer(fact.name, fact.shape))
        hints = replace(read_hints(path), parameters=parameters, model_type=KINDS.get(component))
        found[component] = (fingerprint, hints, tuple(sorted(facts, key=lambda fact: fact.name)))
    return found


def _check_names(folder: Path, read: Mapping[Path, tuple[TensorFacts, ...]]) -> None:
    """Raise for a tensor in two files, and for a tensor of the index that no file holds."""
    place: dict[str, Path] = {}
    for path, facts in read.items():
        for fact in facts:
            if fact.name in place:
                raise Malformed(
                    f"`{folder}`: tensor `{shown(fact.name)}` is in `{place[fact.name].name}` and in `{path.name}`",
                    hint=f"keep the files of one model there, or add the `{INDEX_FILE}` that names them",
                )
            place[fact.name] = path
    index = index_of(folder)
    if index is None:
        return
    absent = sorted(indexed_tensors(index).keys() - place.keys())
    if absent:
        raise Malformed(
            f"`{folder}` is incomplete: {len(absent):,} tensors that `{index.name}` names are in none of its files,"
            f" such as `{shown(absent[0])}`",
            hint="download the folder again: its files are of different versions",
        )


def _digest_of_links(files: Iterable[Path]) -> Digest | None:
    """Return the `files` digest if all are links of a Hub cache, which names each blob by the sha256 of its bytes."""
    blobs = [(path.name, Path(path.readlink()) if path.is_symlink() else Path()) for path in files]
    if not all(blob.parent.name == "blobs" for _, blob in blobs):
        return None
    try:
        return files_digest((name, blob.name) for name, blob in blobs)
    except ValueError:
        return None  # a blob that is no LFS file is named by its git hash


def files_digest(entries: Iterable[tuple[str, str]]) -> Digest:
    """Digest over the weight files of a base as a hub lists them: `(path, sha256 hex)` each, in any order.

    With it, two sides can identify a base that neither has read.

    Raises:
        ValueError: there are no entries, or a sha256 that is not 64 lower-case hex digits.
    """
    listed = sorted((path, parse_digest(f"sha256:{sha256}")[7:]) for path, sha256 in entries)
    if not listed:
        raise ValueError("no weight files are listed")
    return digest_of(canonical_json([[path, sha256] for path, sha256 in listed]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """A model, or a pipeline, whose tensors then have their component in front; `components` has the hints of each."""

    fingerprint: BaseFingerprint
    hints: BaseHints
    tensors: tuple[TensorFacts, ...]
    components: Mapping[str, BaseHints]


Part = tuple[BaseFingerprint, BaseHints, tuple[TensorFacts, ...]]


def all_weight_files(place: Path) -> tuple[Path, ...]:
    """Return the weight files of the model or pipeline at `place`; raises as `look_at`."""
    if not (place / PIPELINE_FILE).is_file():
        return weight_files(place)
    return tuple(file for folder in component_folders(place).values() for file in weight_files(folder))


def look_at(
    place: str | os.PathLike[str],
    *,
    cache_folder: Path | None,
    threads: int | None = None,
    progress: Progress | None = None,
    hub_id: str | None = None,
    commit: str | None = None,
) -> Looked:
    """As `fingerprint_folder`; a folder with a `model_index.json`, or an original checkpoint, is read by components.

    Raises:
        BaseNotFound: there is no such folder or file.
        Malformed: no complete model or pipeline in safetensors, or a checkpoint of a kind that has no table.
        CouldNotTell: a file cannot be read, or changed while it was read.
    """
    place = Path(place)
    if (place / PIPELINE_FILE).is_file():
        parts = {
            name: fingerprint_folder(folder, cache_folder=cache_folder, threads=threads, progress=progress)
            for name, folder in component_folders(place).items()
        }
    elif place.suffix == ".safetensors" and is_checkpoint(read_header(weight_files(place)[0], limits=BASE_LIMITS)):
        parts = fingerprint_checkpoint(place, cache_folder=cache_folder, threads=threads, progress=progress)
    else:
        fingerprint, hints, tensors = fingerprint_folder(
            place, cache_folder=cache_folder, threads=threads, progress=progress, hub_id=hub_id, commit=commit
        )
        return Looked(fingerprint=fingerprint, hints=hints, tensors=tensors, components={})
    return _joined(place, parts, hub_id, commit)


def is_pipeline(base: BaseFingerprint) -> bool:
    """Return whether every tensor has a component of a pipeline in front of its name."""
    return all(name.partition(".")[0] in COMPONENTS for name in base.samples)


def component_in(part: BaseFingerprint, whole: BaseFingerprint) -> str:
    """Return the component of the pipeline `whole` that the model `part` is, in any precision; "" for none, or several.

    By the sampled numbers of all tensors, as `compare` tells two precisions of one model.
    """
    sizes = Counter(name.partition(".")[0] for name in whole.samples)
    found = []
    for component in COMPONENTS:
        names = {name: pipeline_name(component, name) for name in part.samples}
        is_complete = len(names) == sizes[component] and whole.samples.keys() >= set(names.values())
        if is_complete and samples_agree(part, whole, names):
            found.append(component)
    return found[0] if len(found) == 1 else ""


def pipeline_name(component: str, name: str) -> str:
    """Return a component's tensor or module as a pipeline names it.

    The names are those of published files: transformers 5 saves CLIP's text encoder without `text_model.`.
    """
    is_bare = name.startswith(("embeddings.", "encoder.layers.", "final_layer_norm."))
    return f"{component}.text_model.{name}" if is_bare and component not in DENOISERS else f"{component}.{name}"


def _joined(place: Path, parts: Mapping[str, Part], hub_id: str | None, commit: str | None) -> Looked:
    named = [
        replace(fact, name=pipeline_name(name, fact.name)) for name, (_, _, facts) in parts.items() for fact in facts
    ]
    hints = read_hints(place)
    known = {name: parts[name][1] for name in COMPONENTS if name in parts}
    return Looked(
        fingerprint=fingerprint_tensors(named),
        hints=replace(
            hints,
            parameters=sum(each.parameters or 0 for each in known.values()),
            hub_id=hub_id or hints.hub_id,
            commit=commit or hints.commit,
            model_type="pipeline",
        ),
        tensors=tuple(sorted(named, key=lambda fact: fact.name)),
        components=known,
    )


_ONE_MODEL: Final = "check that its files are one complete model, and download what is missing"
_TEMPLATES: Final = "additional_chat_templates"
"""The only folder below a model in which transformers looks."""

_OTHER_WEIGHTS: Final = frozenset(
    {".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".safetensors"}
)
"""Weights in formats that are never read, and tensor files that are not the model's."""


def state_digest(place: Path, *, cache_folder: Path | None, progress: Progress | None = None) -> Digest:
    """Digest each tensor and buffer, and each file beside them: settings, tokenizer, chat templates.

    Whatever lies there counts, since no list of names is complete; names that begin with a dot and weights that are
    never read do not. Files that `cache_folder` knows are not read again.

    Raises:
        BaseNotFound, Malformed, CouldNotTell: as `weight_files` and `read_facts`.
    """
    is_pipeline = (place / PIPELINE_FILE).is_file()
    folders = all_folders(place) if is_pipeline else [place] if place.is_dir() else []
    weights = [file for folder in folders if any(folder.glob("*.safetensors")) for file in weight_files(folder)]
    read = read_facts(weights if folders else [place], cache_folder=cache_folder, progress=progress)
    found: list[list[object]] = [
        [_name(path, place), fact.name, fact.dtype, list(fact.shape), fact.sha256]
        for path, facts in read.items()
        for fact in facts
    ]
    beside = [place, *folders] if is_pipeline else [*folders, *(folder / _TEMPLATES for folder in folders)]
    try:
        files = {file for folder in beside if folder.is_dir() for file in folder.iterdir() if _counts(file)}
    except OSError as error:
        raise not_read(error, shown(str(place), 200), CouldNotTell) from None
    found += [[_name(path, place), digest_now(path, cache_folder=cache_folder)] for path in sorted(files)]
    return digest_of(canonical_json(found))


def _counts(path: Path) -> bool:
    """Whether a file beside the weights may decide an answer; an adapter there does, as transformers loads it."""
    is_other = path.suffix in _OTHER_WEIGHTS and not path.name.startswith("adapter")
    return not path.name.startswith(".") and not is_other and path.is_file()


def _name(path: Path, place: Path) -> str:
    return "" if path == place else path.relative_to(place).as_posix()
