"""The holders of objects in a library (installed builds, projects, running processes), and the space of each.

An object may have several holders; removing a holder frees only the objects that no other one holds.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from adapterhub.core.digests import Digest
from adapterhub.core.disk.root import living
from adapterhub.formats.documented import Documented
from adapterhub.library.intake.staging import signature_objects
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.library.store.roots import KnownProjects

Kind = Literal["installed", "project", "process"]

_OTHER: Final = ("quarantine", "tmp", "cache", "index.db", "bases", "keys", "tests", "made", "published")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceHolder:
    """A holder of objects: an installed build, a project by its folder, or a process by its task."""

    kind: Annotated[Kind, "`installed`, `project` or `process`"]
    name: str
    digests: frozenset[Digest]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldSpace(Documented, keys="kind=holder.kind name=holder.name objects size_bytes alone_bytes"):
    """The space that one holder uses, and the bytes that no other holder uses."""

    holder: SpaceHolder
    objects: int
    size_bytes: Annotated[int, "bytes"]
    alone_bytes: Annotated[int, "bytes that no other holder uses"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Other(Documented):
    """A part of the library outside the store's objects."""

    name: str
    size_bytes: Annotated[int, "bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Space(Documented, keys="root objects size_bytes holders=held unused_objects unused_bytes other"):
    """The space that the library uses."""

    root: Annotated[Path, "a path on this machine"]
    held: Annotated[tuple[HeldSpace, ...], "what uses the objects"]
    objects: int
    size_bytes: Annotated[int, "bytes"]
    unused_objects: Annotated[int, "objects that nothing uses"]
    unused_bytes: int
    other: Annotated[tuple[Other, ...], "parts of the library outside the objects"]


def holders_of(library: Library) -> list[SpaceHolder]:
    """Every holder: installed builds, then projects, then processes at work.

    Raises:
        StoreLocked: a process holds objects, and its claim cannot be read.
    """
    builds = [
        SpaceHolder(
            kind="installed", name=f"{build.full_name} {build.manifest.label}", digests=frozenset(objects_of(build))
        )
        for build in library.installed()
    ]
    return builds + _users_of(library)


def _users_of(library: Library) -> list[SpaceHolder]:
    """Return the holders that are not builds: projects, then processes at work."""
    found = [
        SpaceHolder(kind="project", name=str(project.folder), digests=project.digests)
        for project in KnownProjects(library.root).all()
    ]
    claims = (*living(library.root / "intents"), *living(library.root / "leases"))
    return found + [
        SpaceHolder(kind="process", name=f"{claim.what}: {claim.holder}", digests=claim.digests) for claim in claims
    ]


def objects_of(build: Installed) -> list[Digest]:
    """Everything in the store that an installed build is made of, its signature with it."""
    files = (entry.sha256 for entry in build.manifest.files)
    return [build.manifest.digest, *files, *signature_objects(build.folder)]


def space_of(library: Library) -> Space:
    """Return the space of a library, the largest holders first."""
    sizes = dict(_stored(library.root))
    holders = holders_of(library)
    named = Counter(digest for holder in holders for digest in holder.digests)
    held = [
        HeldSpace(
            holder=holder,
            objects=len(here := [d for d in holder.digests if d in sizes]),
            size_bytes=sum(sizes[d] for d in here),
            alone_bytes=sum(sizes[d] for d in here if named[d] == 1),
        )
        for holder in holders
    ]
    unused = [size for digest, size in sizes.items() if not named[digest]]
    return Space(
        root=library.root,
        held=tuple(sorted(held, key=lambda h: (-h.size_bytes, h.holder.kind, h.holder.name))),
        objects=len(sizes),
        size_bytes=sum(sizes.values()),
        unused_objects=len(unused),
        unused_bytes=sum(unused),
        other=tuple(
            Other(name=name, size_bytes=size) for name in _OTHER if (size := _bytes_below(library.root / name))
        ),
    )


def _stored(root: Path) -> Iterator[tuple[Digest, int]]:
    for place in ("blobs/sha256", "manifests/sha256"):
        for name, size in _files_below(root / place):
            if not name.startswith("."):
                yield Digest(f"sha256:{name.partition('.')[0]}"), size


def _files_below(folder: Path) -> Iterator[tuple[str, int]]:
    """Name and size of the plain files at any depth; one that is deleted meanwhile is passed over."""
    for around, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                facts = Path(around, name).lstat()
                if stat.S_ISREG(facts.st_mode):
                    yield name, facts.st_size


def _bytes_below(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        facts = path.stat()
        return facts.st_size if stat.S_ISREG(facts.st_mode) else sum(size for _, size in _files_below(path))
    return 0


def unused_builds(library: Library) -> list[Installed]:
    """Installed builds that no project, alias or process needs, nor any merge that one of them needs.

    An unused merge does not keep its parents.

    Raises:
        Malformed: an alias or the record of a project is damaged, so that it may need any build.
        NotAllowed: a folder of the library is a link, so that the files behind it are not records of the library.
    """
    library.store.ensure_real_folders()
    installed = list(library.installed())
    builds = {build.manifest.digest: build for build in installed}
    needed: set[str] = set()
    KnownProjects(library.root).all(strict=True)
    todo = [digest for holder in _users_of(library) for digest in holder.digests]
    todo += [Digest(digest) for _, digest in library.aliases.by_build(strict=True)]
    while todo:
        digest = todo.pop()
        if digest in needed:
            continue
        needed.add(digest)
        if (build := builds.get(Digest(digest))) is not None:
            todo += _parents(build)
    return [build for build in installed if build.manifest.digest not in needed]


def _parents(build: Installed) -> Iterable[Digest]:
    return [parent.digest for parent in build.manifest.parents if parent.digest]
