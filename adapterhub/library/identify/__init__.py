"""Identify an orphan, a file or folder of unknown origin, by its content and then by names.

    digests of its files     the same bytes as a file of an adapter that is, or was, installed
    digests of its tensors   the same numbers in another file: other names, order, metadata or precision
    its update               the same change of the base in other numbers, or one that is near
    names and shapes         which registered base, and which well-known family, has these modules in these sizes

Each match has a degree of certainty. *proven*: the bytes are the same. *likely*: nothing else that is known here fits.
*possible*: it fits, as do others, or only a claim supports it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from adapterhub.core.digests import Digest, Progress
from adapterhub.core.disk.files import digest_of_file, ensure_there, is_own, not_read
from adapterhub.core.errors import AdapterNotFound, CouldNotTell, Malformed, shown
from adapterhub.core.limits import limits
from adapterhub.formats.manifest import MEDIA_TYPES
from adapterhub.library.identify.lora_files import (
    Hashes,
    LoraFile,
    LoraFiles,
    by_origin,
    hashes_of,
    is_hash,
    list_files,
    look_at,
    matches_hash,
)
from adapterhub.library.identify.matching import (
    FAMILIES,
    Identity,
    Match,
    MatchedFamily,
    Orphan,
    Sureness,
    base_matches,
    builds_known,
    by_files,
    by_tensors,
    by_update,
    family_matches,
    read_orphan,
)
from adapterhub.library.library import Library
from adapterhub.trust.verify.subject import list_folder

__all__ = [
    "FAMILIES",
    "Identity",
    "LoraFile",
    "LoraFiles",
    "Match",
    "MatchedFamily",
    "Sureness",
    "holds_several",
    "identify",
    "identify_files",
]


def holds_several(path: Path) -> bool:
    """Return whether a folder is one of many files, and not that of one adapter."""
    is_adapter = any((path / name).exists() for name in ("adapter_config.json", "adapter_model.safetensors"))
    return path.is_dir() and not is_adapter and len(list(islice(path.rglob("*.safetensors"), 2))) > 1


def identify(library: Library, path: Path, progress: Progress | None = None) -> Identity:
    """Match the file or folder at `path` with `library`, the surest match first; offline and without changes.

    Every byte of the files is read once (`progress` gets them); an installed adapter is read whole only when samples of
    its numbers agree.

    What does not exist and looks like a hash is looked up among the originals of installed adapters.

    Raises:
        AdapterNotFound: nothing is at `path`.
        Malformed: it is a link out of its folder.
        CouldNotTell: a file cannot be read, or is larger than the weights of an adapter may be.
    """
    if is_hash(path.name) and not os.path.lexists(path):
        return Identity(path=path, files={}, notes=(), matches=tuple(_of_hash(library, path.name.lower())))
    files, most = _files(path), limits().file_bytes
    try:
        large = [name for name, file in files.items() if file.stat().st_size > most]
        if large:
            raise CouldNotTell(f"`{shown(large[0])}` holds more than {most} bytes, which no adapter's file does here",
                               hint="ADAPTERHUB_LIMITS=file_bytes=… allows more")  # fmt: skip
        digests = {name: digest_of_file(file, progress)[0] for name, file in files.items()}
    except OSError as error:
        raise not_read(error, shown(str(path), 200), CouldNotTell) from None
    orphan = read_orphan(path, files)
    lora = look_at(orphan.weights.path) if orphan.weights is not None and orphan.reading is not None else None
    hashes = hashes_of(lora.path) if lora is not None else None
    found = [*_of_hashes(library, hashes), *_matches(library, orphan, digests)]
    order = {"proven": 0, "likely": 1, "possible": 2}
    kinds = {"adapter": 0, "object": 1, "base": 2, "family": 3}
    found.sort(key=lambda m: (order[m.sure], kinds[m.what]))
    return Identity(path=path, files=digests, notes=orphan.notes, matches=tuple(found), lora=lora, hashes=hashes)


def identify_files(library: Library, paths: Sequence[Path], progress: Progress | None = None) -> LoraFiles:
    """Identify each of many files by its header: program, family, rank, trigger words, and duplicates.

    Args:
        library: the library whose adapters are named where one was made of a file.
        paths: files, and folders with files at any depth.
        progress: called with 1 for each file.

    Raises:
        CouldNotTell: a folder holds too many files.
    """
    return list_files(paths, by_origin(_originals(library)), progress)


def _originals(library: Library) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the installed adapters that were made of another program's file, and what is kept of it."""
    for build in library.installed():
        origin = build.manifest.annotations.get("origin")
        if isinstance(origin, dict):
            yield f"{build.full_name}=={build.manifest.version}", origin


def _of_hash(library: Library, text: str) -> Iterator[Match]:
    """Adapters whose original has a hash that begins with `text`."""
    for name, origin in _originals(library):
        how = matches_hash(text, origin)
        if how:
            yield Match(what="adapter", name=name, sure="proven" if len(text) == 64 else "likely", how=how)


def _of_hashes(library: Library, hashes: Hashes | None) -> Iterator[Match]:
    if hashes is None:
        return
    for name, origin in _originals(library):
        if origin.get("sha256") == f"sha256:{hashes.sha256}":
            yield Match(what="adapter", name=name, sure="proven", how="was made of this very file")
        elif origin.get("data_sha256") == f"sha256:{hashes.data_sha256}":
            yield Match(
                what="adapter", name=name, sure="proven", how="was made of the same numbers under another header"
            )


def _matches(library: Library, orphan: Orphan, digests: dict[str, Digest]) -> Iterator[Match]:
    builds = builds_known(library)
    adapters = list(by_files(library, builds, digests, orphan))
    is_known = any(match.what == "adapter" and match.sure == "proven" for match in adapters)
    if orphan.weights is not None and not is_known:
        adapters += by_tensors(builds, orphan)
        adapters += by_update(library, orphan, {match.digest for match in adapters})
    yield from adapters
    bases = list(base_matches(library, orphan, builds, adapters))
    yield from bases
    if not any(match.sure == "proven" for match in bases):
        yield from family_matches(orphan)


def _files(path: Path) -> dict[str, Path]:
    """Return the plain files to look at, by name: the one file, or what a folder has that could be of an adapter.

    Raises:
        AdapterNotFound: there is no such file or folder.
        Malformed: it is a link out of its folder.
    """
    if path.is_dir():
        taken = {name: file.path for name, file in list_folder(path).taken.items() if name in MEDIA_TYPES}
        weights = [p for p in sorted(path.glob("*.safetensors")) if p.is_file() and is_own(path, p.name)]
        return {**{p.name: p for p in weights[:8]}, **taken}
    if path.is_file() and is_own(path.parent, path.name):
        return {path.name: path}
    if path.is_file():
        raise Malformed(f"`{shown(str(path), 200)}` is a link out of its folder", hint="give the file that it leads to")
    ensure_there(path, hint="give a file or a folder")
    raise AdapterNotFound(f"`{shown(str(path), 200)}` is not a regular file", hint="give a file or a folder")
