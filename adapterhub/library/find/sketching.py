"""The sketches of installed builds: made at `add`, or when something first compares updates; kept in the index."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapterhub.core.digests import Digest, Progress
from adapterhub.core.errors import AdapterHubError, shown
from adapterhub.library.installed import InstalledBuilds
from adapterhub.library.store.rows import BuildRow, Filters, SketchRow
from adapterhub.trust.verify import Subject, open_files

if TYPE_CHECKING:
    from adapterhub.formats.derived.reading import AdapterUpdates

PARTIAL: Final = "partial"
"""The flag of a sketch of the factors of DoRA and its like, whose update is more than their product."""
_DAMAGED: Final = "not read: "
_AT_ONCE: Final = 256
_REASON_LENGTH: Final = 300


@contextlib.contextmanager
def updates_of(folder: Path, digests: Mapping[str, Digest] | None = None) -> Iterator[AdapterUpdates]:
    """Provide the updates of an adapter in a folder; files other than `digests` are refused.

    Raises:
        DigestMismatch, Malformed: a file is not what is expected, or cannot be read.
        UnsupportedAdapter, RefusedAdapter: it has no updates of the form `scale * B A`.
    """
    subject = open_files(folder, digests)
    with contextlib.closing(subject.held):
        yield _updates(subject)


def _updates(subject: Subject) -> AdapterUpdates:
    from adapterhub.formats.derived.reading import AdapterUpdates

    return AdapterUpdates(subject.config, subject.weights, subject.held.read, as_lora=True)


def sketched(digest: Digest, subject: Subject) -> SketchRow:
    """Return the sketch of an adapter whose files are open; without one the row holds the reason.

    Never raises for its content.
    """
    from adapterhub.formats.derived.likeness import sketch_of

    try:
        updates = _updates(subject)
        sketch = sketch_of(updates)
    except AdapterHubError as error:
        return _without(digest, error)
    if packed := sketch.packed():
        return SketchRow(digest, sketch.norm, PARTIAL if updates.partial else "", packed)
    does = "its update is zero: it does nothing" if sketch.norm == 0 else "its numbers are not finite"
    return SketchRow(digest, 0.0, does if updates.modules else "it holds no low-rank updates", b"")


def _without(digest: Digest, error: AdapterHubError) -> SketchRow:
    return SketchRow(digest, 0.0, shown(error.message.splitlines()[0], _REASON_LENGTH), b"")


def sketches(
    library: InstalledBuilds, progress: Progress | None = None, *, most_made: int | None = None
) -> tuple[dict[str, SketchRow], dict[str, list[BuildRow]]]:
    """Return the sketches of all installed builds by digest, and the rows of the builds; makes those that are missing.

    `progress` gets 1 for each that is made, at most `most_made`.
    """
    rows: dict[str, list[BuildRow]] = {}
    for row in library.catalog.search(Filters()):
        rows.setdefault(row.digest, []).append(row)
    return sketches_of(library, [same[0] for same in rows.values()], progress, most_made=most_made), rows


def sketches_of(
    library: InstalledBuilds,
    rows: Sequence[BuildRow],
    progress: Progress | None = None,
    *,
    most_made: int | None = None,
) -> dict[str, SketchRow]:
    """As `sketches`, of some builds."""
    wanted = {row.digest: row for row in rows}
    some = None if len(wanted) > _AT_ONCE else list(wanted)
    found = {
        one.digest: one for one in library.catalog.read(lambda index: index.sketches(some)) if one.digest in wanted
    }
    made: list[SketchRow] = []
    for digest in sorted(wanted.keys() - found.keys())[:most_made]:
        made.append(_made(library, wanted[digest]))
        if progress is not None:
            progress(1)
        if len(made) == _AT_ONCE:
            _keep(library, found, made)
    _keep(library, found, made)
    return found


def _keep(library: InstalledBuilds, found: dict[str, SketchRow], made: list[SketchRow]) -> None:
    found.update((one.digest, one) for one in made)
    if made:
        library.catalog.put_sketches([one for one in made if not one.flags.startswith(_DAMAGED)])
    made.clear()


def _made(library: InstalledBuilds, row: BuildRow) -> SketchRow:
    try:
        build = library.read_build(library.root / row.folder)
        subject = open_files(build.folder, build.manifest.digests)
    except (AdapterHubError, OSError) as error:  # `verify` says more; once it is mended, it gets its sketch
        text = error.message if isinstance(error, AdapterHubError) else str(error.strerror)
        return SketchRow(row.digest, 0.0, f"{_DAMAGED}{shown(text.splitlines()[0], _REASON_LENGTH)}", b"")
    with contextlib.closing(subject.held):
        return sketched(build.manifest.digest, subject)


def remake(library: InstalledBuilds, progress: Progress | None = None) -> None:
    """Make the sketches that are missing; without numpy, the first command that compares updates makes them."""
    if find_spec("numpy") is not None:
        sketches(library, progress)
