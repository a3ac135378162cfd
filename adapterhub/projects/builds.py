"""Finds locked builds in the library, and resolves bare names as a project means them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adapterhub.core.digests import hex_of
from adapterhub.core.disk.files import digest_of_file
from adapterhub.core.disk.home import LOCK_FILE
from adapterhub.core.errors import AdapterNotFound, Malformed, NotFound, shown
from adapterhub.core.specs import AdapterName, AdapterSpec
from adapterhub.formats.alias import Alias
from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.formats.manifest import MANIFEST_FILE
from adapterhub.library.admission import Admission
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.installed import UNKNOWN_BASE
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.projects.aliases import is_alias_key, locked_alias
from adapterhub.projects.lock.lockfile import read_lock
from adapterhub.projects.project import find_project
from adapterhub.projects.values import SHOWN_DIGEST, Lock, Locked
from adapterhub.trust.signing.policy import SignaturePolicy
from adapterhub.trust.signing.trust import EffectivePolicy

SignatureRequirement = EffectivePolicy | SignaturePolicy | None
"""The signature policy of one run, which comes before the user's policies."""


def namespace_of(entry: Locked) -> str | None:
    """Return the namespace of its full name."""
    return entry.name.rpartition("/")[0] or None


def label_of(entry: Locked) -> str:
    """`acme/legal-qa 1.2.0`."""
    return f"{entry.name} {entry.version}"


def exact_spec(entry: Locked) -> AdapterSpec:
    """Return the spec of the locked name and version."""
    namespace, _, name = entry.name.rpartition("/")
    return AdapterSpec(
        namespace=namespace or None,
        name=AdapterName(name),
        base=None,
        specifiers=f"=={entry.version}",
        digest_prefix=None,
    )


def installed_folder(library: Library, entry: Locked) -> str | None:
    """Return the folder of the locked build in the library; None without one. Costs a few stats and parses nothing.

    Returns text because a sync looks up thousands, and a `Path` costs as much as a stat.
    """
    name = entry.name.replace("/", "--")
    rank = f"-r{entry.rank}" if entry.rank else ""
    bases = [hex_of(entry.base)[:12]] if entry.base else []
    for base in (*bases, UNKNOWN_BASE):  # the lock has a pinned base, the folder's name does not
        folder = f"{library.root}/adapters/{base}/{name}/{entry.version}{rank}"
        if _is_manifest(library, f"{folder}/{MANIFEST_FILE}", entry):
            return folder
    return None


def _is_manifest(library: Library, path: str, entry: Locked) -> bool:
    try:
        here, stored = os.stat(path), os.stat(library.store.manifest_name(entry.digest))  # noqa: PTH116 - for thousands
    except OSError:
        return False
    if (here.st_dev, here.st_ino) == (stored.st_dev, stored.st_ino):
        return True
    return digest_of_file(Path(path))[0] == entry.digest  # a file system without hard links


def has_objects(library: Library, entry: Locked) -> bool:
    """Return whether the store has every object of a locked build, with the right sizes."""
    return library.store.has_manifest(entry.digest) and has_files(library, entry)


def has_files(library: Library, entry: Locked) -> bool:
    """Return whether the store has every file of a locked build, with the right sizes."""
    name_of = library.store.blob_name
    try:
        return all(os.stat(name_of(file.sha256)).st_size == file.size_bytes for file in entry.files)  # noqa: PTH116 - as above
    except OSError:
        return False


def ensure_locked_build(entry: Locked, manifest: Mapping[str, Any]) -> None:
    """Raise unless the lock agrees with the build's manifest, given as a JSON value.

    Raises:
        Malformed: the lock has another name, version, rank, base or other files.
    """
    weights = manifest["base"].get("weights")
    said: dict[str, tuple[object, object]] = {
        "name": (entry.name.rpartition("/")[2], manifest["name"]),
        "version": (entry.version, manifest["version"]),
        "rank": (entry.rank, manifest.get("rank")),
        "base": (entry.base, weights) if weights else (None, None),  # without weights, the base was pinned by the user
    }
    locked = {file.path: (str(file.sha256), file.size_bytes) for file in entry.files}
    files = {file["path"]: (file["sha256"], file["size_bytes"]) for file in manifest["files"]}
    for path in sorted(locked.keys() | files.keys()) if locked != files else ():
        said[path] = _file_text(locked.get(path)), _file_text(files.get(path))
    for what, (here, there) in said.items():
        if here != there:
            raise Malformed(
                f"`{LOCK_FILE}`: `{entry.key}` has `{shown(what)}` as {shown(str(here or 'none'))}; in its manifest "
                f"{entry.digest} it is {shown(str(there or 'none'))}. Nothing was changed",
                hint=f"run `adapt lock --upgrade {entry.key}`",
            )


def _file_text(file: tuple[str, int] | None) -> str:
    return f"{file[0]} of {file[1]:,} bytes" if file else "no file"


def locked_build(library: Library, entry: Locked) -> Installed | None:
    """Return the locked build as an installed one; None if it is not installed."""
    folder = installed_folder(library, entry)
    return None if folder is None else library.read_build(Path(folder))


def ensure_admissible(
    library: Library,
    entries: Iterable[Locked],
    policy: Callable[[Locked], SignatureRequirement] = lambda _: None,
    *,
    folders: Mapping[AdapterName, Path] = MappingProxyType({}),
) -> None:
    """Raise if any locked build may not be used, with all of them in one error; missing builds are skipped.

    A build that no policy concerns is not read. `policy` returns the signature policy of this run for a build.
    `folders`, by key, replace builds that the library lost.

    Raises:
        SignatureRefused, NamespaceBound: as `Admission.ensure_usable`.
    """
    admission = Admission(library)

    def asked() -> Iterator[tuple[Installed, SignatureRequirement]]:
        for entry in entries:
            namespace, given = namespace_of(entry), policy(entry)
            if not admission.restricts(namespace, given):
                continue
            build = locked_build(library, entry)
            folder = folders.get(entry.key)
            if build is None and folder is not None and folder.is_dir():
                build = replace(library.read_build(folder), namespace=namespace)
            if build is not None:
                yield build, given

    admission.ensure_all_usable(asked())


class ProjectNames:
    """Resolves bare names by the lock file of the project around a folder, which is read on first use.

    `note` is called once for each name that is resolved.
    """

    def __init__(self, start: Path, note: Callable[[str], None] | None = None) -> None:
        self._start, self._note = start, note
        self._folder: Path | None = None
        self._entries: Mapping[AdapterName, Locked] | None = None
        self._told: set[str] = set()

    def entries(self) -> Mapping[AdapterName, Locked]:
        """Every locked entry; none outside a project, or if the project is not locked yet."""
        if self._entries is None:
            self._folder = find_project(self._start)
            try:
                self._entries = read_lock(self._folder).entries if self._folder else {}
            except NotFound:
                self._entries = {}
        return self._entries

    def alias(self, spec: AdapterSpec) -> Alias | None:
        """Return the alias that `spec` names in the lock: of the project's name, or of that adapter's only name."""
        if spec.base is None or spec.base.kind != "alias":
            return None
        entries = self.entries()
        keys = [spec.name] if spec.namespace is None else []
        keys += [key for key, entry in entries.items() if spec.namespace and entry.name == spec.full_name]
        found = (locked_alias(entries, key, spec.base.text) for key in keys if not is_alias_key(key))
        return next(filter(None, found), None)

    def build(self, library: Library, spec: AdapterSpec) -> Installed | None:
        """Return the locked build that `spec` means; None unless `spec` is a bare name of the project.

        Raises:
            AdapterNotFound: it is locked, but not in this library.
            Malformed: the lock file is damaged.
        """
        if spec.namespace or spec.base or spec.specifiers or spec.digest_prefix:
            return None
        entry = self.entries().get(spec.name)
        if entry is None:
            return None
        build = locked_build(library, entry)
        if build is None:
            raise AdapterNotFound(
                f"`{spec.name}` is locked as {label_of(entry)} ({entry.digest[:SHOWN_DIGEST]}) in "
                f"`{self._folder}/{LOCK_FILE}`, but is not in this library",
                hint="run `adapt sync`",
            )
        if self._note is not None and spec.name not in self._told:
            self._told.add(spec.name)
            self._note(f"`{spec.name}` is {label_of(entry)}, as {LOCK_FILE} says")
        return build


def base_here(library: Library, lock: Lock) -> BaseRecord | None:
    """Return the registered base with the locked weights, under any name, or a copy that stands for it where it is run.

    The builds of the lock that are here declare the base; without them, only a link shows that a base is a copy.
    """
    weights = lock.base.weights if lock.base else None
    if weights is None or (found := library.bases.standing_for(weights)) is not None:
        return None if weights is None else found
    declared = next((one for one in declared_by(library, lock) if one.weights == weights), None)
    return library.bases.by_fingerprint(declared) if declared is not None else None


def declared_by(library: Library, lock: Lock) -> Iterator[BaseFingerprint]:
    """Yield the fingerprints that locked builds in this library declare."""
    for entry in lock.adapters:
        if library.store.has_manifest(entry.digest):
            fingerprint = library.store.read_manifest(entry.digest).base.fingerprint
            if fingerprint is not None:
                yield fingerprint
