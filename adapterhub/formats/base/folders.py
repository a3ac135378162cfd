"""The fingerprint of a base model from the folder that holds its weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

from adapterhub.core.arguments import parsed
from adapterhub.core.digests import Digest, Progress, canonical_json, digest_of, parse_digest
from adapterhub.core.errors import Malformed, shown
from adapterhub.formats.base.fingerprint import BaseFingerprint, fingerprint_tensors, is_buffer
from adapterhub.formats.base.hints import BaseHints, read_hints
from adapterhub.formats.base.weight_files import INDEX_FILE, index_of, indexed_tensors, weight_files
from adapterhub.formats.base.weight_reader import read_facts
from adapterhub.formats.diffusion.checkpoints import KINDS, split_checkpoint
from adapterhub.formats.diffusion.views import TensorView
from adapterhub.formats.safetensors.facts import TensorFacts
from adapterhub.formats.safetensors.file import TensorFile


@parsed
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
        fingerprint = fingerprint_tensors(facts, files=_digest_of_links(files))
    except ValueError as error:
        raise Malformed(f"`{folder}`: {error}") from None
    hints = read_hints(folder)
    parameters = sum(prod(fact.shape) for fact in facts if not is_buffer(fact.name, fact.shape))
    hints = replace(hints, parameters=parameters, hub_id=hub_id or hints.hub_id, commit=commit or hints.commit)
    return fingerprint, hints, facts


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
            raise Malformed(f"`{path}`: its `{component}` {error}") from None
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
    """The `files` digest if all are links of a Hub cache, which names each blob by the sha256 of its bytes."""
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
