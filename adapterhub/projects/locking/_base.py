"""The base of a project: what builds have to fit, and what the lock records of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adapterhub.core.arguments import path_of
from adapterhub.core.errors import AdapterHubError, BaseNotFound
from adapterhub.core.specs import BaseSpec
from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.bases.requested import RequestedBase, requested_base
from adapterhub.library.library import Library
from adapterhub.projects.lock.conflicts import ProjectClash, conflict, moved_base
from adapterhub.projects.values import Lock, LockedBase, Project


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseChoice:
    """The base that adapters have to fit, the base to lock, and whether that differs from the locked one."""

    wanted: RequestedBase | None
    locked: LockedBase | None
    is_new: bool


def base_choice(library: Library, project: Project, previous: Lock | None, *, takes_new: bool) -> BaseChoice:
    """The base that `project` names; `takes_new` accepts weights other than the locked ones.

    For a base that is not registered here, the lock's record is used.

    Raises:
        BaseNotFound: no base has that name, and none is locked.
        ProjectConflict: its weights differ from the locked ones.
    """
    old = previous.base if previous else None
    if project.base is None:
        return BaseChoice(wanted=None, locked=None, is_new=previous is not None and old is not None)
    text = str(project.base)
    if old is not None and old.spec != text:
        old = None
    is_new = previous is not None and old is None
    try:
        wanted = requested_base(in_project(project.base, project.folder), library.bases)
    except BaseNotFound as error:
        if old is None or old.weights is None:
            raise BaseNotFound(f"the project is for base `{text}`: {error.message}", hint=error.hint) from None
        wanted = None
    record = wanted.record if wanted else None
    if record is None:
        if old is not None and old.weights is not None:
            return BaseChoice(wanted=RequestedBase(text=text, digest_prefix=old.weights), locked=old, is_new=False)
        hub_id = wanted.hub_id if wanted else None
        return BaseChoice(wanted=wanted, locked=LockedBase(spec=text, hub_id=hub_id), is_new=is_new)
    locked = _locked(text, record)
    if previous is not None and old is not None and old.weights != locked.weights:
        moved = moved_base(old, record, _declared(library, previous))
        if moved is not None and not takes_new:
            raise conflict([moved])
        if moved is None and old.weights is not None:
            return BaseChoice(wanted=wanted, locked=old, is_new=False)  # the same base in another precision
        is_new = True
    return BaseChoice(wanted=wanted, locked=locked, is_new=is_new)


def base_moved_since(library: Library, lock: Lock) -> ProjectClash | None:
    """The clash if the locked base's name now stands for other weights in this library. Reads no weight files."""
    if lock.base is None or (spec := BaseSpec.parse(lock.base.spec)).kind == "path":
        return None  # only hashing the folder could tell
    try:
        record = library.bases.find(spec)
    except AdapterHubError:  # not registered here, or ambiguous: nothing to compare with
        return None
    return moved_base(lock.base, record, _declared(library, lock))


def in_project(base: BaseSpec, folder: Path) -> BaseSpec:
    """A base as the project in `folder` means it: paths are relative to that folder."""
    if base.kind != "path":
        return base
    return BaseSpec(kind="path", text=str(folder / path_of(base.text)))


def weights_of(library: Library, project: Project, base: BaseSpec) -> str | None:
    """The weights digest of a known base; None if it is not known."""
    try:
        found = requested_base(in_project(base, project.folder), library.bases)
    except AdapterHubError:
        return None
    return found.record.fingerprint.weights if found and found.record else None


def _locked(text: str, record: BaseRecord) -> LockedBase:
    fingerprint = record.fingerprint
    return LockedBase(
        spec=text,
        weights=fingerprint.weights,
        tensors=fingerprint.tensors,
        structure=fingerprint.structure,
        hub_id=record.hints.hub_id,
    )


def _declared(library: Library, lock: Lock) -> Iterator[BaseFingerprint]:
    """The fingerprints that locked builds in this library declare."""
    for entry in lock.adapters:
        if library.store.has_manifest(entry.digest):
            fingerprint = library.store.read_manifest(entry.digest).base.fingerprint
            if fingerprint is not None:
                yield fingerprint
