"""Whether a folder is an adapter that may be stored and loaded. One file per check; checks yield findings, never raise.

`open_subject` reads what every check needs (names, config, header); `verify` runs the checks on it. A new check is a
new file in `checks/` with `check(subject) -> Iterator[Finding]`.
"""

from __future__ import annotations

import importlib
import itertools
import os
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

from adapterhub.core.digests import Digest, Progress
from adapterhub.core.disk.held_file import REPAIR_HINT
from adapterhub.core.errors import (
    DigestMismatch,
    MalformedConfig,
    MalformedManifest,
    MalformedTensorFile,
    RefusedAdapter,
    shown,
)
from adapterhub.core.limits import limits
from adapterhub.formats.base.comparison import Judge, compare
from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.formats.dialects import NAMES
from adapterhub.formats.manifest import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, Manifest
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.keys import AdapterKeys, sort_keys
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub.formats.safetensors.header import TensorFacts
from adapterhub.trust.findings import Finding, Severity, Status
from adapterhub.trust.verify import checks as check_files
from adapterhub.trust.verify.checks.config import read_config_file
from adapterhub.trust.verify.checks.container import read_weights_header
from adapterhub.trust.verify.checks.digests import changed, differing, ensure_undamaged, read_manifest_file
from adapterhub.trust.verify.report import FoundFacts, Report, exit_code_of
from adapterhub.trust.verify.subject import Entry, FolderListing, Subject, list_folder, subject_of, take

__all__ = [
    "AdapterKeys",
    "Finding",
    "FoundFacts",
    "Report",
    "Severity",
    "Status",
    "Subject",
    "check_names",
    "ensure_undamaged",
    "exit_code_of",
    "manifest_in",
    "open_files",
    "open_subject",
    "read_headers",
    "sort_keys",
    "verify",
    "verify_folder",
]

_HASHES: Final = "digests"
"""The check that needs the digest of the weights."""


def open_subject(  # noqa: PLR0913 - what is known of the base, and how to read
    folder: Path,
    *,
    base_tensors: Iterable[TensorFacts] | Mapping[str, TensorFacts] | None = None,
    base_fingerprint: BaseFingerprint | None = None,
    base_type: str | None = None,
    manifest: Manifest | None = None,
    base_named: bool = False,
    in_memory: bool | memoryview = False,
    progress: Progress | None = None,
    scanned: Subject | None = None,
    judge: Judge = compare,
) -> tuple[Subject | None, list[Finding]]:
    """Return the adapter in `folder`, and findings; never raises for the content of the folder.

    Without a subject the findings hold the reason as an error. With `manifest`, the folder's own `adapterhub.json` is
    not read. `base_named`: the caller knows the base, or leaves it open; its tensors or a manifest imply it. `progress`
    gets the number of bytes of the weights that the checks read. `in_memory` reads the weights whole, or those that fit
    into a given memory: later changes to the file have no effect, and `verify` does its other checks while they are
    hashed. `scanned` is an adapter whose numbers were read: if the weights in `folder` are the file that it holds open,
    that pass is enough. `judge` compares the base that a manifest declares with the given one.
    """
    listing = list_folder(folder)
    is_scanned = scanned is not None and scanned.held.is_at(folder / WEIGHTS_FILE)
    if scanned is not None and is_scanned:
        listing = replace(listing, taken={**listing.taken, WEIGHTS_FILE: scanned.listing.taken[WEIGHTS_FILE]})
    findings = list(listing.findings)
    config = weights = None
    if CONFIG_FILE in listing.taken:
        try:
            config = read_config_file(listing.taken[CONFIG_FILE])
        except MalformedConfig as error:
            findings.append(Finding(error.code, error.where, error.reason, hint=error.hint))
    if WEIGHTS_FILE in listing.taken:
        try:
            if in_memory:
                _load(listing.taken[WEIGHTS_FILE], None if in_memory is True else in_memory)
            weights = read_weights_header(listing.taken[WEIGHTS_FILE])
        except MalformedTensorFile as error:
            findings.append(Finding(error.code, error.where, error.reason, hint=error.hint))
    if manifest is None and MANIFEST_FILE in listing.taken:
        try:
            manifest = read_manifest_file(listing.taken[MANIFEST_FILE])
        except MalformedManifest as error:
            findings += [Finding("E_MANIFEST", error.where, problem, hint=error.hint) for problem in error.problems]
    if config is None or weights is None:
        return None, [*findings, *differing(listing, manifest)]
    if base_tensors is not None and not isinstance(base_tensors, Mapping):
        base_tensors = {facts.name: facts for facts in base_tensors}
    # a manifest names the base or leaves it open; while one is being made, `scanned` tells
    is_told = manifest is not None and (scanned is None or scanned.base_named or manifest.base.fingerprint is not None)
    try:
        subject = subject_of(
            folder,
            listing,
            config,
            weights,
            dialect=dialect_in(manifest),
            base_tensors=base_tensors,
            base_fingerprint=base_fingerprint,
            base_type=base_type,
            manifest=manifest,
            base_named=base_named or base_tensors is not None or is_told,
            progress=progress,
            scanned=scanned if is_scanned else None,
            judge=judge,
        )
    except MalformedTensorFile as error:
        findings.append(Finding(error.code, error.where, error.reason, hint=error.hint))
        return None, [*findings, *differing(listing, manifest)]
    return subject, findings


def _load(entry: Entry, room: memoryview | None = None) -> None:
    try:
        if entry.held.size_bytes > limits().file_bytes:
            return  # the reader refuses it unread
        if room is None:
            entry.held.load()
        else:
            entry.held.load_ahead(room)
    except OSError as error:
        raise MalformedTensorFile(entry.name, f"cannot be read: {error.strerror}") from None


def open_files(
    folder: Path,
    expected: Mapping[str, Digest] | None = None,
    *,
    opened: Mapping[str, Entry] = MappingProxyType({}),
    in_memory: bool = False,
) -> Subject:
    """Config and weights in `folder`, opened once and hashed; no other file is read, and no check runs.

    For callers that check an adapter's numbers themselves. `expected` are digests that files must have, by
    name; None stands for those in the folder's own manifest, if it has one. Files in `opened` are not opened again.
    Errors name the files by their paths. `in_memory` reads the weights whole, for callers that keep them anyway.

    Raises:
        DigestMismatch: a file is not what is expected.
        MalformedConfig, MalformedTensorFile: a file that is missing, leads out of the folder or breaks its format.
        MalformedManifest: the folder's own manifest cannot be read.
    """
    manifest = manifest_in(folder)
    if expected is None:
        expected = manifest.digests if manifest else {}
    config = opened.get(CONFIG_FILE) or _plain_file(folder, CONFIG_FILE, MalformedConfig, expected)
    weights = opened.get(WEIGHTS_FILE) or _plain_file(folder, WEIGHTS_FILE, MalformedTensorFile, expected)
    taken = {CONFIG_FILE: config, WEIGHTS_FILE: weights}
    for name in sorted(expected.keys() - taken.keys()):
        _hold(_plain_file(folder, name, MalformedConfig, expected), expected)
    try:
        _hold(config, expected)
        settings = read_config_file(config, str(folder / CONFIG_FILE))
        if in_memory:
            _load(weights)
        try:
            header = read_weights_header(weights, str(folder / WEIGHTS_FILE))
        finally:
            _hold(weights, expected)  # a changed file is reported as changed, whatever it breaks
        _ = weights.held.digest  # from here on only these bytes are read
    except OSError as error:
        raise MalformedTensorFile(str(folder / WEIGHTS_FILE), f"cannot be read: {error.strerror}") from None
    subject = subject_of(folder, FolderListing(taken=taken), settings, header, dialect=dialect_in(manifest))
    if subject.inner is not None and subject.inner.unclear:
        raise RefusedAdapter(
            f"`{shown(str(folder), 200)}` has no one meaning",
            [("E_DIALECT", f"it {subject.inner.problem}")],
            hint="add it to the library with its base, or with `--dialect`",
        )
    return subject


def read_headers(folder: Path) -> tuple[AdapterConfig, TensorFile] | None:
    """Return the config and the tensor header in `folder`, without the numbers; None if either file is missing.

    Raises:
        MalformedConfig, MalformedTensorFile: one breaks its format.
    """
    taken = list_folder(folder).taken
    if not {CONFIG_FILE, WEIGHTS_FILE} <= taken.keys():
        return None
    return read_config_file(taken[CONFIG_FILE]), read_weights_header(taken[WEIGHTS_FILE])


def dialect_in(manifest: Manifest | None) -> str:
    """Return the dialect that was recorded when the adapter was added; "" for none."""
    found = manifest.annotations.get("dialect") if manifest is not None else None
    return found if found in NAMES else ""


def manifest_in(folder: Path) -> Manifest | None:
    """Return the manifest in `folder`; None if there is none.

    Raises:
        MalformedManifest: it cannot be read, or breaks its format.
    """
    if not os.path.lexists(folder / MANIFEST_FILE):
        return None
    found = take(folder, MANIFEST_FILE)
    if isinstance(found, Entry):
        return read_manifest_file(found)
    raise MalformedManifest(str(folder / MANIFEST_FILE), [found.message], hint=found.hint)


def _plain_file(
    folder: Path, name: str, refusal: type[MalformedConfig | MalformedTensorFile], expected: Mapping[str, Digest]
) -> Entry:
    try:
        (folder / name).lstat()
        found = take(folder, name)
        if isinstance(found, Entry):
            _ = found.held
            return found
    except OSError as error:
        digest = expected.get(name)
        if digest is not None:
            actual = f"no file ({error.strerror})"
            raise DigestMismatch(str(folder / name), expected=digest, actual=actual, hint=REPAIR_HINT) from None
        raise refusal(str(folder / name), f"cannot be opened: {error.strerror}") from None
    raise refusal(str(folder / name), found.message, hint=found.hint)


def _hold(entry: Entry, expected: Mapping[str, Digest]) -> None:
    if entry.held.size_bytes <= limits().file_bytes:  # the reader refuses a larger file unread
        entry.held.hold_to(expected.get(entry.name))


@cache
def check_names() -> tuple[str, ...]:
    """Names of the checks, which are the files of `checks/`."""
    return tuple(m.name for m in pkgutil.iter_modules(check_files.__path__))


def verify(subject: Subject | None, *, seen: Iterable[Finding] = (), with_facts: bool = True) -> Report:
    """Run every check; `seen` are findings to report with theirs, and all there are of a folder without a subject.

    They are those of `open_subject`.
    """
    if subject is None:
        return Report.of(seen)
    found: dict[str, list[Finding]] = {name: [] for name in check_names()}
    last = [_HASHES] if subject.held.is_loaded else []  # hashed still: the other checks need not wait for that
    for name in sorted(found, key=last.count):
        module = importlib.import_module(f"{check_files.__name__}.{name}")
        try:
            found[name].extend(module.check(subject))
        except MalformedConfig as error:  # patterns that ran out of time, in whichever check
            found[name].append(Finding(error.code, CONFIG_FILE, error.reason, hint=error.hint))
        except MalformedTensorFile as error:  # a file that changed under us
            found[name].append(Finding(error.code, WEIGHTS_FILE, error.reason, hint=error.hint))
        except DigestMismatch as error:  # the same, after it was hashed
            found[name].append(changed(error))
    try:
        facts = subject.facts if with_facts else None
    except MalformedConfig:  # reported above
        facts = None
    return Report.of(itertools.chain(seen, *found.values()), facts)


def verify_folder(  # noqa: PLR0913 - as `open_subject`
    folder: str | os.PathLike[str],
    *,
    base_tensors: Iterable[TensorFacts] | Mapping[str, TensorFacts] | None = None,
    base_fingerprint: BaseFingerprint | None = None,
    base_type: str | None = None,
    manifest: Manifest | None = None,
    base_named: bool = False,
    progress: Progress | None = None,
    scanned: Subject | None = None,
    judge: Judge = compare,
) -> Report:
    """Check a folder by `open_subject` and `verify`; return a report whatever the folder contains."""
    subject, findings = open_subject(
        Path(folder),
        base_tensors=base_tensors,
        base_fingerprint=base_fingerprint,
        base_type=base_type,
        manifest=manifest,
        base_named=base_named,
        progress=progress,
        scanned=scanned,
        judge=judge,
    )
    return verify(subject, seen=findings)
