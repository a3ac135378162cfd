"""The installed builds, and the index that is kept in step with their folders.

The folders are the truth. While they change, a mark shows that the index is stale. A crash leaves the mark, and the
next reader makes the index again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from adapterhub.core.digests import Digest, parse_digest
from adapterhub.core.disk.root import Claim
from adapterhub.core.display import html_table, size_text
from adapterhub.core.errors import AdapterHubError, NotAllowed, SpecError, StoreLocked
from adapterhub.core.specs import AdapterSpec, version_key
from adapterhub.formats.base.fingerprint import BaseFingerprint, compare
from adapterhub.formats.diffusion.components import COMPONENTS
from adapterhub.formats.manifest import CONTRACT_FILE, BaseRef, Manifest
from adapterhub.library.bases.records import BaseRecord, Bases
from adapterhub.library.store.blobs import Store
from adapterhub.library.store.index import Index, IndexNewer, IndexUnusable
from adapterhub.library.store.index_reader import EmptyIndex, IndexReader, holds_nothing
from adapterhub.library.store.rows import BaseRow, BuildRow, Filters, SketchRow

if TYPE_CHECKING:
    from adapterhub.formats.contract.contract import Contract

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Installed:
    """One installed build. `base` is the one that the manifest declares, or the one pinned for it.

    `label_of` names a base as the library does that the build was read from.
    """

    manifest: Manifest
    namespace: str | None
    folder: Path
    base: BaseRef
    added_at: float
    label_of: Callable[[BaseRef], str] | None = field(default=None, compare=False)

    @property
    def full_name(self) -> str:
        """`acme/legal-qa` or `legal-qa`."""
        return f"{self.namespace}/{self.manifest.name}" if self.namespace else self.manifest.name

    @property
    def spec(self) -> str:
        """A spec that selects exactly this build."""
        return f"{self.full_name}=={self.manifest.version}#{self.manifest.digest[:19]}"

    @property
    def base_name(self) -> str:
        """The base as one types it after `@`: its alias here, else its Hub id or digest; "" if it is unknown."""
        with contextlib.suppress(AdapterHubError, OSError):  # the records of the bases cannot be read
            if self.label_of is not None:
                return self.label_of(self.base)
        fingerprint = self.base.fingerprint
        return self.base.hints.hub_id or (fingerprint.weights[:19] if fingerprint else "")

    def __repr__(self) -> str:
        manifest = self.manifest
        rank = f" rank {manifest.rank}" if manifest.rank else ""
        base = self.base_name or "an unknown base"
        return f"<Adapter {self.full_name} {manifest.version}{rank} for {base}, {size_text(manifest.size_bytes)}>"

    def _repr_html_(self) -> str:
        manifest = self.manifest
        fields = {
            "name": self.full_name,
            "version": manifest.version,
            "base": self.base_name,
            "task": manifest.task,
            "rank": manifest.rank,
            "method": ", ".join(manifest.method).lower(),
            "size": size_text(manifest.size_bytes),
            "digest": manifest.digest,
            "folder": self.folder,
        }
        return html_table((), fields.items())


AdapterLike = str | os.PathLike[str] | AdapterSpec | Installed
"""A spec (`legal-qa@base-7b`), a folder (a path, or text that begins with `.`, `/` or `~`), or an installed build."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """The objects that `gc` deleted, or would delete, and the ones it spared for their youth; sizes in bytes.

    `claims` are the running adds and leases whose objects it kept.
    """

    gone: tuple[tuple[Path, int], ...]
    spared: tuple[tuple[Path, int], ...]
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A folder under `adapters/` that holds no intact build, and the reason."""

    folder: Path
    reason: str


class Catalog:
    """The index of the library under `store.root`; `installed` reads its folders."""

    def __init__(self, store: Store, bases: Bases, installed: Callable[[], Iterable[Installed]]) -> None:
        self._store = store
        self._bases = bases
        self._installed = installed
        self.index = Index(store.root / "index.db")
        self._unwritten = False

    # ------------------------------------------------------------ read
    def search(self, filters: Filters) -> list[BuildRow]:
        """Installed builds that match."""
        return self.read(lambda index: index.search(filters))

    def read(self, question: Callable[[IndexReader], _T]) -> _T:
        """The answer to `question`; a missing, damaged or stale index is made again first.

        If the index cannot be written, or a newer version wrote it, a temporary index of the folders answers.
        """
        if holds_nothing(self._store.root):
            return question(EmptyIndex())
        if self.index.path.exists() and not self.index.is_current:
            try:
                self.rebuild(wait_s=0.0)
            except StoreLocked:  # a writer is at work: the rows still hold
                pass
            except (NotAllowed, IndexUnusable):  # read-only, or the disk is full
                if self.index.stale_mark.exists():
                    return self._read_folders(question)
        try:
            return question(self.index)
        except IndexNewer:
            return self._read_folders(question)
        except IndexUnusable:
            try:
                self.rebuild()
            except (NotAllowed, IndexUnusable):  # read-only, or the disk is full
                return self._read_folders(question)
            return question(self.index)

    def _read_folders(self, question: Callable[[IndexReader], _T]) -> _T:
        from tempfile import TemporaryDirectory  # rarely needed, and 4 ms of each start

        with TemporaryDirectory(prefix="adapterhub-") as folder:
            index = Index(Path(folder, "index.db"), self._store.root)
            index.rebuild(*self._rows())
            return question(index)

    def declared_like(self, fingerprint: BaseFingerprint) -> tuple[str, ...]:
        """Base fingerprints that installed builds declare for the base `fingerprint`, in any precision."""
        examples = self.read(lambda index: index.declared_bases())
        found = [self._read_manifest(parse_digest(d)) for w, d in examples.items() if w != fingerprint.weights]
        others = [m.base.fingerprint for m in found if m.base.fingerprint]
        return (fingerprint.weights, *(declared for _, declared in _matches(fingerprint, others)))

    def _read_manifest(self, digest: Digest) -> Manifest:
        return self._store.read_manifest(digest)

    # ------------------------------------------------------------ write; the caller holds the lock `publish`
    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Mark the index as stale while folders change; the mark stays after a failure, until a rebuild takes it."""
        self._unwritten = self.index.stale_mark.exists()
        with self._store.os_errors_as_refusals():
            self.index.stale_mark.touch(0o644)
        yield
        if not self._unwritten:
            with self._store.os_errors_as_refusals():
                self.index.stale_mark.unlink(missing_ok=True)

    def put(self, build: Installed, sketches: Iterable[SketchRow] = ()) -> None:
        """Index a build, the registered bases that match its base, and its sketch where that is known."""

        def write() -> None:
            fingerprint = build.base.fingerprint
            pairs: list[tuple[str, str]] = []
            if fingerprint is not None and not self.index.declares(fingerprint.weights):
                pairs = [p for record in self._bases.list() for p in _matches(record.fingerprint, [fingerprint])]
            self.index.upsert_builds([row_of(build, self._store.root)], pairs, sketches)

        self._write(write)

    def forget(self, builds: Iterable[Installed]) -> None:
        """Remove builds from the index."""
        folders = [folder_below(self._store.root, build) for build in builds]
        self._write(lambda: self.index.remove_builds(folders))

    def _write(self, write: Callable[[], None]) -> None:
        try:
            write()
        except IndexNewer:
            self._unwritten = True  # the newer version sees the mark and rebuilds its index
        except IndexUnusable:
            try:
                self._rebuild_locked()
            except (IndexUnusable, OSError):  # the disk is full; the folders, which count, are complete
                self._unwritten = True

    # ------------------------------------------------------------ write; these take the lock
    def put_base(self, record: BaseRecord) -> None:
        """Index a registered base, its components, and the builds that are for them."""
        with self._store.lock("publish", exclusive=True), self.changing():
            declared = {b.base.fingerprint.weights: b.base.fingerprint for b in self._installed() if b.base.fingerprint}
            for each in (record, *record.parts()):
                row, pairs = base_row_of(each), _matches(each.fingerprint, declared.values())
                self._write(partial(self.index.upsert_base, row, pairs))

    def keep_vectors(self, model: str, rows: Iterable[tuple[str, str, bytes]]) -> None:
        """Keep `(folder, digest, vectors)` of the builds that are still there; see `Index.put_vectors`."""
        with self._store.lock("publish", exclusive=True), self._store.os_errors_as_refusals():
            if self.index.path.exists():  # an index that another process takes away comes back with every build
                self.index.put_vectors(model, rows)

    def forget_base(self, alias: str) -> None:
        """Remove a base from the index, and the components of a pipeline."""
        with self._store.lock("publish", exclusive=True), self.changing():
            for name in (alias, *(f"{alias}/{component}" for component in COMPONENTS)):
                self._write(partial(self.index.remove_base, name))

    def put_sketches(self, rows: Sequence[SketchRow]) -> None:
        """Keep sketches of installed builds; where the index cannot be written, they are made again another time."""
        unwritten = contextlib.suppress(NotAllowed, IndexUnusable, StoreLocked)
        with unwritten, self._store.lock("publish", exclusive=True, wait_s=1.0):
            self.index.upsert_builds((), sketches=rows)

    def rebuild(self, wait_s: float = 30.0, *, set_newer_aside: bool = False, keep_sketches: bool = True) -> int:
        """Make the index again from the folders, and return how many builds it holds.

        The sketches of the old one are kept where it can be read, unless `keep_sketches` is False.

        Raises:
            IndexNewer: a newer version wrote the index, and `set_newer_aside`, which moves it away, is not set.
        """
        with self._store.lock("publish", exclusive=True, wait_s=wait_s), self._store.os_errors_as_refusals():
            count = self._rebuild_locked(set_newer_aside=set_newer_aside, keep_sketches=keep_sketches)
            self.index.stale_mark.unlink(missing_ok=True)
        return count

    def _rebuild_locked(self, *, set_newer_aside: bool = False, keep_sketches: bool = True) -> int:
        sketches: Sequence[SketchRow] = ()
        try:
            sketches = self.index.sketches()
        except IndexNewer:
            if not set_newer_aside:
                raise
            self.index.set_aside()
        except IndexUnusable:
            pass
        return self.index.rebuild(*self._rows(), sketches if keep_sketches else ())

    def differences(self) -> list[str]:
        """Problems in the index, compared with the folders; none for a missing or newer one.

        An index with the stale mark is passed over: it differs, and the next reader makes it again.
        """
        if not self.index.path.exists():
            return []
        try:
            with self._store.lock("publish", exclusive=False):
                if self.index.stale_mark.exists():
                    return []
                return self.index.differences(*self._rows())
        except (IndexNewer, NotAllowed):
            return []
        except IndexUnusable as error:
            return [error.message]

    def _rows(self) -> tuple[list[BuildRow], list[BaseRow], list[tuple[str, str]]]:
        """Every row that the index should hold."""
        rows: list[BuildRow] = []
        declared: dict[str, BaseFingerprint] = {}
        for build in self._installed():
            rows.append(row_of(build, self._store.root))
            if build.base.fingerprint:
                declared[build.base.fingerprint.weights] = build.base.fingerprint
        records = self._bases.list()
        pairs = [pair for record in records for pair in _matches(record.fingerprint, declared.values())]
        return rows, [base_row_of(record) for record in records], pairs


def build_folders(root: Path, *names: str, links: bool = False) -> list[Path]:
    """The folders of builds in the library `root`, sorted; `names` are patterns that limit them to some names.

    Links are not followed; with `links`, the links themselves are returned instead. Whole names list no other names,
    however many builds there are. `glob` is not used, because it fails when a folder disappears while it lists.
    """
    found, strange = [root / "adapters"], []
    for level in range(3):
        entries = [entry for folder in found for entry in _inside(folder, names if level == 1 else ())]
        strange += [path for path, is_link in entries if is_link]
        found = [path for path, is_link in entries if not is_link]
    return sorted(strange) if links else sorted(found)


def folder_of_version(parent: Path, version: str, rank: int | None) -> Path:
    """The folder below `parent` for a version and rank: the one that is there, however it spells the version."""
    tail = f"-r{rank}" if rank else ""
    own = parent / f"{version}{tail}"
    if os.path.lexists(own):
        return own
    key = version_key(version)
    for name in sorted(path.name for path, _ in _inside(parent)):
        with contextlib.suppress(SpecError):  # no folder of a build
            if name.endswith(tail) and version_key(name.removesuffix(tail)) == key:
                return parent / name
    return own


def _inside(folder: Path, names: Sequence[str] = ()) -> list[tuple[Path, bool]]:
    """What is in a folder, each with whether it is a link; `names` are patterns that limit it."""
    if names and not any("*" in name for name in names):
        there = [folder / name for name in names if os.path.lexists(folder / name)]
        return [(path, path.is_symlink()) for path in there]
    try:
        with os.scandir(folder) as listed:
            entries = list(listed)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return []
        raise
    wanted = (e for e in entries if not names or any(fnmatchcase(e.name, name) for name in names))
    return [(Path(entry.path), entry.is_symlink()) for entry in wanted]


def objects_of(manifest: Manifest) -> list[Digest]:
    """Everything in the store that a build is made of, without its signature."""
    return [manifest.digest, *(entry.sha256 for entry in manifest.files)]


def folder_below(root: Path, build: Installed) -> str:
    """The folder of an installed build as a path below the library's root, which names it in the index and leases."""
    return build.folder.relative_to(root).as_posix()


def row_of(build: Installed, root: Path) -> BuildRow:
    """The index row of a build that is installed in the library under `root`."""
    from adapterhub.formats.cards.card import examples_of, own_words

    manifest, fingerprint = build.manifest, build.base.fingerprint
    return BuildRow(
        digest=manifest.digest,
        namespace=build.namespace or "",
        name=manifest.name,
        version=manifest.version,
        base_weights=fingerprint.weights if fingerprint else "",
        base_tensors=fingerprint.tensors if fingerprint else "",
        base_hub_id=build.base.hints.hub_id or "",
        task=manifest.task or "",
        description=manifest.description,
        method=",".join(manifest.method),
        rank=manifest.rank,
        alpha=manifest.alpha,
        dtype=manifest.dtype,
        parameters=manifest.parameters,
        size_bytes=manifest.size_bytes,
        target_modules=",".join(manifest.target_modules),
        parents=len(manifest.parents),
        folder=folder_below(root, build),
        added_at=build.added_at,
        prompts="\n".join(examples_of(manifest, _contract_of(build))),
        told="" if manifest.description else own_words(manifest.card),
        license=(manifest.license or "").lower(),
        has_tests=int(manifest.file(CONTRACT_FILE) is not None),
    )


def _contract_of(build: Installed) -> Contract | None:
    """The contract of a build, for the examples in it; None without a sound one, which other checks refuse."""
    if build.manifest.file(CONTRACT_FILE) is None:
        return None
    from adapterhub.formats.cards.card import contract_shown

    return contract_shown(build.folder)


def base_row_of(record: BaseRecord) -> BaseRow:
    """The index row of a registered base."""
    hints = record.hints
    return BaseRow(
        alias=record.alias,
        weights=record.fingerprint.weights,
        hub_id=hints.hub_id or "",
        model_type=hints.model_type or "",
        dtype=hints.dtype or "",
        parameters=hints.parameters or 0,
        path=os.fspath(record.path) if record.path else "",
    )


def _matches(registered: BaseFingerprint, declared: Iterable[BaseFingerprint]) -> list[tuple[str, str]]:
    return [
        (registered.weights, other.weights) for other in declared if compare(other, registered).verdict.allows_attach
    ]
