"""The installed builds, and the index that is kept in step with their folders.

The folders are the truth. While they change, a mark shows that the index is stale. A crash leaves the mark, and the
next reader makes the index again.

A name may have a hundred thousand versions, so the index proposes the folders that matter to a look-up, and the
manifests in these decide. It also holds when each folder that it follows changed last: if another program has changed
one since, builds in it that are not in the index are proposed as well.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from adapterhub.core.digests import Digest, parse_digest
from adapterhub.core.disk.root import Claim
from adapterhub.core.display import html_table, size_text
from adapterhub.core.errors import AdapterHubError, NotAllowed, SpecError, StoreLocked
from adapterhub.core.specs import AdapterSpec, version_order
from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.formats.diffusion.components import COMPONENTS
from adapterhub.formats.manifest import CONTRACT_FILE, WEIGHTS_FILE, BaseRef, Manifest
from adapterhub.library.bases.records import BaseRecord, Bases
from adapterhub.library.store.blobs import Store
from adapterhub.library.store.index import Differences, Index, IndexNewer, IndexUnusable, lasting_of
from adapterhub.library.store.index_reader import EmptyIndex, IndexReader, holds_nothing
from adapterhub.library.store.named import NamedBuilds
from adapterhub.library.store.rows import BaseRow, BuildRow, Filters, PlaceChange, PlaceRow, SketchRow

if TYPE_CHECKING:
    from adapterhub.formats.contract.contract import Contract

_T = TypeVar("_T")
_FEW_NAMES = 100  # of folders, which are looked up one by one


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
        """The base as one types it after `@`: its name here, its Hub id or its digest; "" if it is unknown."""
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

    def __init__(self, store: Store, bases: Bases, installed: Callable[..., Iterable[Installed]]) -> None:
        self._store = store
        self._bases = bases
        self._installed = installed
        self.index = Index(store.root / "index.db")
        self._unwritten = False
        self._before: dict[str, int | None] = {}

    # ------------------------------------------------------------ read
    def folders(
        self, name: str, namespace: str | None, *, version: str | None = None, digest: str = "", newest: int = 1
    ) -> tuple[Path, ...]:
        """Return the folders of the builds with a name that may have this version, or whose digest may begin like this.

        And in any case those of the `newest` newest builds for each namespace and base; if there are fewer in all than
        that, they are all with the name. More may be among them, which only costs time. Without a namespace those of
        all are meant; "" stands for none.
        """
        root, own = self._store.root, f"{namespace}--{name}" if namespace else name
        names = [own, *([f"*--{name}"] if namespace is None else [])]
        if namespace is not None and not build_places(root, own):
            return ()
        if self.index.path.exists() and not self.index.is_current:
            with contextlib.suppress(StoreLocked, NotAllowed, IndexUnusable):
                self.rebuild(wait_s=0.0)
        with contextlib.suppress(IndexUnusable):
            if not self.index.may_be_torn:  # a stale one serves, as folders that changed since are listed
                with self.index.looking() as look:
                    if namespace is None and all(self._knows(look, base) for base in _inside_real(root / "adapters")):
                        names = [f"{one}--{name}" if one else name for one in look.namespaces(name)]
                    places = build_places(root, *names) if names else []
                    return tuple(self._proposed(look, name, places, version, digest, newest))
        return tuple(build_folders(root, *names))

    def _proposed(
        self, look: NamedBuilds, name: str, places: Sequence[Path], version: str | None, digest: str, newest: int
    ) -> Iterator[Path]:
        """As `folders`, of those in `places`."""
        root, order = self._store.root, None if version is None else version_order(version)
        found = look.of_digest(name, digest) if digest else []
        for namespace in {place.name.rpartition("--")[0] for place in places}:
            found += [] if order is None else look.of_version(name, namespace, order)
            found += look.newest(name, namespace, newest)
        for place in places:
            if not self._knows(look, place):
                known = look.within(place.relative_to(root).as_posix())
                found += {path.relative_to(root).as_posix() for path in _inside_real(place)}.difference(known)
        proposed = (root / folder for folder in sorted(set(found)))
        return (path for path in proposed if path.parent in places)

    def _knows(self, look: NamedBuilds, place: Path) -> bool:
        """Return whether no other program has changed a folder since the index got all that is in it."""
        return look.changed_ns(place.relative_to(self._store.root).as_posix()) == _changed_ns(place)

    def with_weights(self, build: Installed, most: int) -> list[tuple[str, str, str]]:
        """Return the namespace, name and version of some other builds that have the very file of weights of a build."""
        weights = build.manifest.file(WEIGHTS_FILE)
        with contextlib.suppress(IndexUnusable):
            if weights is not None and self.index.is_current:
                with self.index.looking() as look:
                    return look.with_weights(weights.sha256, build.manifest.digest, most)
        return []

    def search(self, filters: Filters) -> list[BuildRow]:
        """Installed builds that match."""
        return self.read(lambda index: index.search(filters))

    def read(self, question: Callable[[IndexReader], _T]) -> _T:
        """Return the answer to `question`; a missing, damaged or stale index is made again first.

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
                self._mend()
            except (NotAllowed, IndexUnusable):  # read-only, or the disk is full
                return self._read_folders(question)
            return question(self.index)

    def _mend(self) -> None:
        """Bring an index of an older schema to the current one in place, or make it again."""
        with self._store.lock("publish", exclusive=True), self._store.os_errors_as_refusals():
            if self.index.stale_mark.exists() or not self.index.upgrade():
                self._rebuild_locked()
                self.index.stale_mark.unlink(missing_ok=True)

    def _read_folders(self, question: Callable[[IndexReader], _T]) -> _T:
        from tempfile import TemporaryDirectory  # rarely needed, and 4 ms of each start

        with TemporaryDirectory(prefix="adapterhub-") as folder:
            index = Index(Path(folder, "index.db"), self._store.root)
            index.rebuild(*self._rows())
            return question(index)

    def _matches(self, registered: BaseFingerprint, declared: Iterable[BaseFingerprint]) -> list[tuple[str, str]]:
        judged = self._bases.judged
        return [(registered.weights, one.weights) for one in declared if judged(one, registered).verdict.allows_attach]

    def declared_like(self, fingerprint: BaseFingerprint) -> tuple[str, ...]:
        """Return the fingerprints that installed builds declare for the base `fingerprint`, in any precision."""
        examples = self.read(lambda index: index.declared_bases())
        found = [self._store.read_manifest(parse_digest(d)) for w, d in examples.items() if w != fingerprint.weights]
        others = [m.base.fingerprint for m in found if m.base.fingerprint]
        return (fingerprint.weights, *(declared for _, declared in self._matches(fingerprint, others)))

    # ------------------------------------------------------------ write; the caller holds the lock `publish`
    @contextlib.contextmanager
    def changing(self, *places: Path) -> Iterator[None]:
        """Mark the index as stale while folders change; the mark stays after a failure, until a rebuild takes it.

        `places` are the folders of names in which builds come or go.
        """
        self._unwritten = self.index.stale_mark.exists()
        self._before = {
            one.relative_to(self._store.root).as_posix(): _changed_ns(one)
            for one in dict.fromkeys(each for place in places for each in (place, place.parent))
        }
        with self._store.os_errors_as_refusals():
            self.index.stale_mark.touch(0o644)
        yield
        if not self._unwritten:
            with self._store.os_errors_as_refusals():
                self.index.stale_mark.unlink(missing_ok=True)

    def put(self, build: Installed) -> None:
        """Index a build, and the registered bases that match its base."""
        with self._writing():
            fingerprint = build.base.fingerprint
            pairs: list[tuple[str, str]] = []
            if fingerprint is not None and not self.index.declares(fingerprint.weights):
                pairs = [p for record in self._bases.list() for p in self._matches(record.fingerprint, [fingerprint])]
            self.index.upsert_builds([row_of(build, self._store.root)], pairs, places=self._changes())

    def forget(self, builds: Iterable[Installed]) -> None:
        """Remove builds from the index."""
        folders = [folder_below(self._store.root, build) for build in builds]
        with self._writing():
            self.index.remove_builds(folders, self._changes())

    def _changes(self) -> list[PlaceChange]:
        root = self._store.root
        return [PlaceChange(folder, before, _changed_ns(root / folder)) for folder, before in self._before.items()]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Make the index again if the block cannot write it: the folders hold the same facts."""
        try:
            yield
        except IndexNewer:
            self._unwritten = True  # the newer version sees the mark and rebuilds its index
        except IndexUnusable:
            try:
                self._rebuild_locked()
            except (IndexUnusable, OSError):  # the disk is full; the folders, which count, are complete
                self._unwritten = True

    # ------------------------------------------------------------ write; these take the lock
    def put_base(self, record: BaseRecord) -> None:
        """Index a registered base, its components, its copies, and the builds that are for them."""
        with self._store.lock("publish", exclusive=True), self.changing():
            declared = {b.base.fingerprint.weights: b.base.fingerprint for b in self._installed() if b.base.fingerprint}
            for each in (record, *record.parts(), *self._bases.copies_of(record.fingerprint.weights)):
                row, pairs = base_row_of(each), self._matches(each.fingerprint, declared.values())
                with self._writing():
                    self.index.upsert_base(row, pairs)

    def keep_vectors(self, model: str, rows: Iterable[tuple[str, str, bytes]]) -> None:
        """Keep `(folder, digest, vectors)` of the builds that are still there; see `Index.put_vectors`."""
        with self._store.lock("publish", exclusive=True), self._store.os_errors_as_refusals():
            if self.index.path.exists():  # an index that another process takes away comes back with every build
                self.index.put_vectors(model, rows)

    def forget_base(self, alias: str) -> None:
        """Remove a base from the index, and the components of a pipeline."""
        with self._store.lock("publish", exclusive=True), self.changing():
            for name in (alias, *(f"{alias}/{component}" for component in COMPONENTS)):
                with self._writing():
                    self.index.remove_base(name)

    def put_sketches(self, rows: Sequence[SketchRow]) -> None:
        """Keep sketches of installed builds; where the index cannot be written, they are made again another time."""
        unwritten = contextlib.suppress(NotAllowed, IndexUnusable, StoreLocked)
        with unwritten, self._store.lock("publish", exclusive=True, wait_s=1.0):
            self.index.upsert_builds((), sketches=rows)

    def rebuild(
        self,
        wait_s: float = 30.0,
        *,
        set_newer_aside: bool = False,
        keep_sketches: bool = True,
        steps: Callable[[int, int], None] | None = None,
    ) -> int:
        """Make the index again from the folders, and return how many builds it holds.

        `steps` gets how many of how many folders were read. The sketches of the old one are kept where it can be read,
        unless `keep_sketches` is False.

        Raises:
            IndexNewer: a newer version wrote the index, and `set_newer_aside`, which moves it away, is not set.
        """
        with self._store.lock("publish", exclusive=True, wait_s=wait_s), self._store.os_errors_as_refusals():
            count = self._rebuild_locked(steps, set_newer_aside=set_newer_aside, keep_sketches=keep_sketches)
            self.index.stale_mark.unlink(missing_ok=True)
        return count

    def _rebuild_locked(
        self,
        steps: Callable[[int, int], None] | None = None,
        *,
        set_newer_aside: bool = False,
        keep_sketches: bool = True,
    ) -> int:
        sketches: Sequence[SketchRow] = ()
        try:
            sketches = self.index.sketches(of_older=True)
        except IndexNewer:
            if not set_newer_aside:
                raise
            self.index.set_aside()
        except IndexUnusable:
            pass
        changed = {
            place: _changed_ns(place)
            for base in _inside_real(self._store.root / "adapters")
            for place in (base, *_inside_real(base))
        }
        builds, bases, matches = self._rows(steps)
        return self.index.rebuild(
            builds, bases, matches, sketches if keep_sketches else (), self._followed(changed, builds)
        )

    def _followed(self, changed: Mapping[Path, int | None], builds: Iterable[BuildRow]) -> Iterator[PlaceRow]:
        """Yield the folders whose every build has a row; `changed` tells when each changed last, before it was read."""
        root = self._store.root
        there = {root / row.folder for row in builds}
        lacking = {
            folder
            for place in changed
            if place.parent.parent == root / "adapters"
            for folder in (place, place.parent)
            if not there.issuperset(_inside_real(place))
        }
        for place, changed_ns in changed.items():
            if changed_ns is not None and place not in lacking:
                yield PlaceRow(place.relative_to(root).as_posix(), changed_ns)

    def differences(self, installed: Iterable[RowOf] | None = None) -> list[str]:
        """Problems in the index, compared with the folders; none for a missing or newer one.

        `installed` are the rows of all builds, read while this runs. Writers go on meanwhile: what differs is looked at
        again while none of them works. An index with the stale mark is passed over: it differs, and the next reader
        makes it again.
        """
        if not self.index.path.exists():
            return []
        declared: dict[str, BaseFingerprint] = {}

        def rows() -> Iterator[BuildRow]:
            root = self._store.root
            for one in RowOf.each(self._installed(), root) if installed is None else installed:
                if one.base is not None:
                    declared[one.base.weights] = one.base
                yield one.row

        try:
            if self.index.stale_mark.exists():
                list(rows())
                return []
            found = self.index.differences(rows(), lambda: self._others(declared))
            if found == ([], set(), set()):
                return []
            with self._store.lock("publish", exclusive=False):
                if self.index.stale_mark.exists():
                    return []
                return self._still_differing(found, declared)
        except (IndexNewer, NotAllowed):
            return []
        except IndexUnusable as error:
            return [error.message]

    def _still_differing(self, found: Differences, declared: Mapping[str, BaseFingerprint]) -> list[str]:
        """Return the problems that are left once no writer works."""
        folders = found.differing | found.left
        here = {row.folder: lasting_of(row) for row in self._rows_in(self._store.root / one for one in folders)}
        known = self.index.lasting(folders)
        missing = sum(known.get(folder) != row for folder, row in here.items())
        wrong = sum(here.get(folder) != row for folder, row in known.items())
        again = self.index.differences((), lambda: self._others(declared)).problems if found.problems else []
        return again + ([f"`builds`: {missing} rows missing, {wrong} wrong"] if missing or wrong else [])

    def _rows_in(self, folders: Iterable[Path]) -> Iterator[BuildRow]:
        wanted = set(folders)
        names = {folder.parent.name for folder in wanted}
        among = self._installed(*names) if len(names) <= _FEW_NAMES else self._installed()
        return (row_of(build, self._store.root) for build in among if build.folder in wanted)

    def _others(self, declared: Mapping[str, BaseFingerprint]) -> tuple[list[BaseRow], list[tuple[str, str]]]:
        """Return the rows of the bases that the index should hold, and their pairs with those that builds declare."""
        records = self._bases.list()
        pairs = [pair for record in records for pair in self._matches(record.fingerprint, declared.values())]
        return [base_row_of(record) for record in records], pairs

    def _rows(
        self, steps: Callable[[int, int], None] | None = None
    ) -> tuple[list[BuildRow], list[BaseRow], list[tuple[str, str]]]:
        """Every row that the index should hold."""
        rows: list[BuildRow] = []
        declared: dict[str, BaseFingerprint] = {}
        total = len(build_folder_names(self._store.root)) if steps else 0
        for build in self._installed():
            rows.append(row_of(build, self._store.root))
            if steps is not None:
                steps(len(rows), total)
            if build.base.fingerprint:
                declared[build.base.fingerprint.weights] = build.base.fingerprint
        return rows, *self._others(declared)


@dataclass(frozen=True, slots=True)
class RowOf:
    """The row of a build, and the base that it declares."""

    row: BuildRow
    base: BaseFingerprint | None

    @classmethod
    def each(cls, builds: Iterable[Installed], root: Path) -> Iterator[RowOf]:
        """Those of builds in the library under `root`."""
        return (cls(row_of(build, root), build.base.fingerprint) for build in builds)


def build_folders(root: Path, *names: str, links: bool = False) -> list[Path]:
    """Return the folders of builds in the library `root`, sorted; `names` are patterns that limit them to some names.

    Links are not followed; with `links`, the links themselves are returned instead. Whole names list no other names,
    however many builds there are. `glob` is not used, because it fails when a folder disappears while it lists.
    """
    return [Path(name) for name in build_folder_names(root, *names, links=links)]


def build_folder_names(root: Path, *names: str, links: bool = False) -> list[str]:
    """Return the same as text, for a hundred thousand of them."""
    found, strange = [f"{root}/adapters"], list[str]()
    for level in range(3):
        folders, found = found, []
        for folder in folders:
            for path, is_link in _inside(folder, names if level == 1 else ()):
                (strange if is_link else found).append(path)
    return sorted(strange if links else found, key=lambda path: path.split("/"))


def build_places(root: Path, *names: str) -> list[Path]:
    """Return the folders in the library `root` that hold the builds of some names, for each base.

    As `build_folders`.
    """
    inside = (_inside(base, names) for base in _inside_real(root / "adapters"))
    return sorted(Path(path) for found in inside for path, is_link in found if not is_link)


def folder_of_version(
    parent: Path, version: str, rank: int | None, among: Callable[[], Iterable[Path]] | None = None
) -> Path:
    """Return the folder below `parent` for a version and rank: the one that is there, however it spells the version.

    `among` gives the folders that may be it; default: all that is in `parent`.
    """
    tail = f"-r{rank}" if rank else ""
    own = parent / f"{version}{tail}"
    if os.path.lexists(own):
        return own
    key = version_order(version)
    for path in sorted(Path(path) for path, _ in _inside(parent)) if among is None else among():
        with contextlib.suppress(SpecError):  # no folder of a build
            is_it = path.name.endswith(tail) and version_order(path.name.removesuffix(tail)) == key
            if is_it and path.parent == parent and os.path.lexists(path):
                return path
    return own


def _inside_real(folder: Path) -> list[Path]:
    """Return the entries of a folder that are not links."""
    return [Path(path) for path, is_link in _inside(folder) if not is_link]


def _changed_ns(folder: Path) -> int | None:
    """When something in a folder came or went last; None if there is no such folder."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return None


def _inside(folder: str | Path, names: Sequence[str] = ()) -> list[tuple[str, bool]]:
    """Return the entries of a folder, each with whether it is a link; `names` are patterns that limit them."""
    if names and "*" not in "".join(names):
        paths = (f"{folder}/{name}" for name in names)
        return [(path, os.path.islink(path)) for path in paths if os.path.lexists(path)]  # noqa: PTH114 - as text
    try:
        with os.scandir(folder) as listed:
            entries = list(listed)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return []
        raise
    if names:
        entries = [entry for entry in entries if any(fnmatchcase(entry.name, name) for name in names)]
    return [(entry.path, entry.is_symlink()) for entry in entries]


def objects_of(manifest: Manifest) -> list[Digest]:
    """Everything in the store that a build is made of, without its signature."""
    return [manifest.digest, *map(attrgetter("sha256"), manifest.files)]


def folder_below(root: Path, build: Installed) -> str:
    """Return the folder of an installed build as a path below the library's root, its name in index and leases."""
    return build.folder.relative_to(root).as_posix()


def row_of(build: Installed, root: Path) -> BuildRow:
    """Return the index row of a build that is installed in the library under `root`."""
    from adapterhub.formats.cards.card import examples_of, own_words
    from adapterhub.formats.foreign.reading import ImageAbout

    manifest, fingerprint, contract = build.manifest, build.base.fingerprint, _contract_of(build)
    has_examples = contract is not None or manifest.behaviour
    about = ImageAbout.of(manifest.annotations)
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
        prompts="\n".join(examples_of(manifest, contract)) if has_examples else "",
        told="" if manifest.description else own_words(manifest.card) if manifest.card else about.title,
        license=(manifest.license or "").lower(),
        has_tests=int(manifest.file(CONTRACT_FILE) is not None),
        family=about.family,
        triggers="\n".join(about.triggers),
        weights_file=weights.sha256 if (weights := manifest.file(WEIGHTS_FILE)) else "",
        made_from="\n".join(dict.fromkeys(parent.digest for parent in manifest.parents if parent.digest)),
    )


def _contract_of(build: Installed) -> Contract | None:
    """Return the contract of a build, for the examples in it; None without a sound one, which other checks refuse."""
    if build.manifest.file(CONTRACT_FILE) is None:
        return None
    from adapterhub.formats.cards.card import contract_shown

    return contract_shown(build.folder)


def base_row_of(record: BaseRecord) -> BaseRow:
    """Return the index row of a registered base."""
    hints, facts = record.hints, record.fingerprint.copy if record.is_copy else None
    return BaseRow(
        alias=record.alias,
        weights=record.fingerprint.weights,
        hub_id=hints.hub_id or "",
        model_type=hints.model_type or "",
        dtype=hints.dtype or "",
        parameters=hints.parameters or 0,
        path=os.fspath(record.path) if record.path else "",
        form=facts.form or "unknown format" if facts else "",
        copied=record.standing,
        sources=",".join(link.source for link in record.links_that_count),
    )
