"""Places on disk other than a library: a directory of published builds, and a plain PEFT folder.

A published directory holds one folder per build, `<name>/<version>[-r<rank>]/`, with the adapter's files and its
`adapterhub.json`; so does a clone or download of a hub repository. Any file share can hold one.
"""

from __future__ import annotations

import contextlib
import glob
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from adapterhub.core.digests import Progress, copy_hashed, hex_of
from adapterhub.core.disk.files import (
    LeadsOut,
    inside,
    not_written,
    open_plain,
    output_place,
    sync_folder,
    sync_tree,
    write_durably,
)
from adapterhub.core.disk.held_file import REPAIR_HINT
from adapterhub.core.disk.root import absolute
from adapterhub.core.errors import (
    AdapterNotFound,
    Conflict,
    DigestMismatch,
    NotAllowed,
    RefusedAdapter,
    ReleaseExists,
    shown,
)
from adapterhub.core.specs import AdapterSpec, parse_version
from adapterhub.formats.cards.card import Card, make_card
from adapterhub.formats.contract.contract import Contract
from adapterhub.formats.manifest import (
    CARD_FILE,
    CONFIG_FILE,
    LIMIT_BYTES,
    MANIFEST_FILE,
    MEDIA_TYPES,
    SIGNATURE_FILE,
    WEIGHTS_FILE,
    Facts,
    FactsReader,
    FileEntry,
    Manifest,
)
from adapterhub.formats.release import Provenance, Release, UnreadRelease
from adapterhub.library.intake.description import Description, describe
from adapterhub.library.intake.staging import ensure_no_errors, refused
from adapterhub.library.intake.statements import files_beside
from adapterhub.library.library import Library
from adapterhub.library.results import ResultFiles
from adapterhub.library.store.catalog import folder_of_version
from adapterhub.library.transfer import Source
from adapterhub.trust.signing.appraisal import provenance_of, read_signature
from adapterhub.trust.verify import open_subject, verify_folder
from adapterhub.trust.verify.subject import list_folder

DEPTH = 4
"""How many folders below the root a build may lie."""

_LEFTOVER_S = 24 * 3600.0


class _Found(NamedTuple):
    """One build in a directory: its folder, the bytes of its manifest, what is read of them, and their date."""

    folder: str
    raw: bytes
    facts: Facts | Manifest
    written_at: float

    def manifest(self) -> Manifest:
        """Return the manifest of a build whose folder passes the checks.

        Raises:
            MalformedManifest: as `Manifest.parse`.
            RefusedAdapter: the folder holds what no adapter may.
        """
        manifest = Manifest.parse(self.raw, f"{self.folder}/{MANIFEST_FILE}")
        listed = {entry.path for entry in manifest.files}  # `open` follows their links, inside the directory
        seen = [f for f in list_folder(Path(self.folder)).findings if f.code != "E_LINK" or f.where not in listed]
        ensure_no_errors(self.folder, seen)
        return manifest


class PublishedDirectory:
    """A folder of published builds. Its manifests are read only once, for many names in a row."""

    kind = "directory"
    commit_url = ""
    refused_results = ()

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[str, str] = {}
        self._reading = threading.Lock()
        self._read: dict[str, list[_Found]] | None = None

    @property
    def label(self) -> str:
        """The place in words, for messages."""
        return f"directory `{self.root}`"

    @property
    def place(self) -> str:
        """The absolute path of the root."""
        return absolute(self.root)

    def tag_of(self, manifest: Manifest) -> str:
        """Return the tag that a repository would have of the build."""
        return f"v{manifest.version}"

    def card_of(self, release: Release, contract: Contract | None = None) -> Card:
        """Return the card that the folder holds."""
        return make_card(release.manifest, base_hub_id=release.base_hub_id, contract=contract)

    def releases(self, spec: AdapterSpec) -> list[Release]:
        """Return builds with that name in any subfolder; they count as builds of the namespace in `spec`.

        Only what choosing needs is read of them; each is checked when its `manifest` is.
        """
        named = self._named(spec.name)
        for one in named:
            self._folders[one.facts.digest] = one.folder
        return [
            UnreadRelease(
                facts=one.facts,
                read=one.manifest,
                namespace=spec.namespace,
                origin=f"`{one.folder}`",
                published_at=one.written_at,
            )
            for one in named
        ]

    def _named(self, name: str) -> list[_Found]:
        """Every build with that name."""
        with self._reading:
            if self._read is None:
                by_name: dict[str, list[_Found]] = {}
                reader = FactsReader()
                for folder in _build_folders(self.root):
                    raw, written_at = _manifest_bytes(folder, self.root)
                    facts = reader.read(raw) or Manifest.parse(raw, f"{folder}/{MANIFEST_FILE}")
                    by_name.setdefault(facts.name, []).append(_Found(folder, raw, facts, written_at))
                self._read = by_name
            return self._read.get(name, [])

    def open(self, release: Release, entry: FileEntry) -> IO[bytes]:
        """Open one file of a build; links are followed only inside the directory."""
        return _open_inside(self._folders[release.digest], entry.path, self.root)

    def provenance(self, release: Release) -> Provenance:
        """Return the signature of a build, and what lies beside it."""
        return provenance_of(Path(self._folders[release.digest]))

    def results(self, release: Release) -> list[bytes]:
        """Return the signed results beside a build, unverified."""
        folder = Path(self._folders[release.digest])
        return [] if folder == self.root else ResultFiles.beside(folder, release.digest).read()

    def statements(self, release: Release) -> list[bytes]:
        """Return the signed statements beside a build, unverified."""
        folder = Path(self._folders[release.digest])
        return [] if folder == self.root else files_beside(folder, release.digest).read()

    @contextlib.contextmanager
    def receive(self, release: Release) -> Iterator[_DirectoryReceiver]:
        """Provide this directory as a destination."""
        manifest = release.manifest
        root = output_place(self.root / "_").parent
        final = folder_of_version(root / manifest.name, manifest.version, manifest.rank)
        if final.parent.is_symlink():
            raise NotAllowed(
                f"`{final.parent}` is a link; builds are published in real folders of `{self.root}`. "
                "Nothing was written",
                hint="remove the link, or publish to the directory that it names",
            )
        with _receiving(release, final) as receiver:
            yield receiver
        self._read = None


class BuildFolder:
    """One folder as a destination for one build: plain files, `adapterhub.json` and a card, written all at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def label(self) -> str:
        """The place in words, for messages."""
        return f"folder `{self.folder}`"

    @contextlib.contextmanager
    def receive(self, release: Release) -> Iterator[_DirectoryReceiver]:
        """See `transfer.Destination`.

        Raises:
            Conflict: the folder holds other files.
            NotAllowed: the folder lies in a library, or a link in its path leads out of a project.
        """
        final = output_place(self.folder)
        manifest_file = final / MANIFEST_FILE
        if self.folder.is_symlink() or (final.exists() and not final.is_dir()):
            raise Conflict(f"`{self.folder}` is not a folder", hint="give a folder that does not exist yet")
        if final.is_dir() and any(final.iterdir()) and not manifest_file.is_file():
            raise Conflict(f"`{self.folder}` is not empty. Nothing was written", hint="give a new or empty folder")
        with _receiving(release, final, check=True) as receiver:
            yield receiver


@contextlib.contextmanager
def _receiving(release: Release, final: Path, *, check: bool = False) -> Iterator[_DirectoryReceiver]:
    import shutil  # a sync, which only reads here, starts without it

    temp = final.parent / f".{final.name}.{os.getpid()}-{os.urandom(4).hex()}"
    absent = [path for path in final.parents if not os.path.lexists(path)]
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(final)
        temp.mkdir()
        yield _DirectoryReceiver(release, temp, final, check=check)
    except OSError as error:
        raise not_written(error, final) from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)
        for path in absent:  # removes only folders that stayed empty
            with contextlib.suppress(OSError):
                path.rmdir()


def _clear_leftovers(final: Path) -> None:
    """Delete the temporary folders of writers of the same folder that were killed a day ago or more."""
    import shutil

    for path in final.parent.glob(f".{glob.escape(final.name)}.*-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime > _LEFTOVER_S:
                shutil.rmtree(path, ignore_errors=True)


class _DirectoryReceiver:
    def __init__(self, release: Release, temp: Path, final: Path, *, check: bool) -> None:
        self._release, self._temp, self._final, self._check = release, temp, final, check
        self._signature: bytes | None = None
        self._results: Sequence[bytes] = ()
        self._statements: Sequence[bytes] = ()

    def has(self, entry: FileEntry) -> bool:
        """Return whether the same build is there already."""
        there = self._final / MANIFEST_FILE
        return there.is_file() and (self._final / entry.path).is_file() and self._same(there)

    def _same(self, there: Path) -> bool:
        return Manifest.read(there).digest == self._release.digest

    def put(self, entry: FileEntry, stream: IO[bytes], progress: Progress | None = None) -> None:
        """Write one file, hashed while it flows."""
        with (self._temp / entry.path).open("xb") as sink:
            digest, _ = copy_hashed(stream, sink, progress)
        if digest != entry.sha256:
            raise DigestMismatch(entry.path, expected=entry.sha256, actual=digest, hint=REPAIR_HINT)

    def sign(self, signature: bytes) -> bool:
        """Store the signature; it replaces an earlier one."""
        self._signature = signature
        return read_signature(self._final / SIGNATURE_FILE) != signature

    def take_results(self, results: Sequence[bytes]) -> None:
        """Take signed results of tests, which lie beside the build."""
        self._results = results

    def take_statements(self, statements: Sequence[bytes]) -> None:
        """Take signed statements of how the build was made, which lie beside it."""
        self._statements = statements

    def publish(self) -> None:
        """Rename the finished folder into place, then write what lies beside it."""
        self._publish()
        digest = self._release.digest
        places = (ResultFiles.beside, self._results), (files_beside, self._statements)
        for files, beside in places:
            for raw in beside:
                files(self._final, digest).add(raw)

    def _publish(self) -> None:
        there = self._final / MANIFEST_FILE
        if there.is_file():
            if self._same(there):
                if self._signature is not None:
                    write_durably(self._final / SIGNATURE_FILE, self._signature)
                return
            raise ReleaseExists(
                f"`{self._final}` holds another build of that version and rank; a release never changes",
                hint="publish under a new version",
            )
        manifest = self._release.manifest
        (self._temp / MANIFEST_FILE).write_bytes(manifest.to_bytes())
        from adapterhub.formats.cards.card import contract_shown

        contract = contract_shown(self._temp)
        card = make_card(manifest, base_hub_id=self._release.base_hub_id, contract=contract).text
        (self._temp / CARD_FILE).write_text(card, encoding="utf-8")
        if self._signature is not None:
            (self._temp / SIGNATURE_FILE).write_bytes(self._signature)
        if self._check:  # builds of a library were checked before, those of a server were not
            ensure_no_errors(self._release.origin, verify_folder(self._temp, manifest=manifest).findings)
        sync_tree(self._temp)
        self._temp.rename(self._final)
        sync_folder(self._final.parent)


class PlainFolder:
    """One PEFT output folder without a manifest, offered under any requested name.

    Its version is the one the spec pins with `==`, or `0+<first 12 hex of its weights' sha256>`; its base is a hint
    taken from the config.
    """

    def __init__(
        self,
        folder: Path,
        *,
        version: str | None = None,
        origin: str = "",
        known: Mapping[str, FileEntry] | None = None,
    ) -> None:
        """`known` are files with a digest that the caller vouches for; they are not hashed again."""
        self.folder = folder
        self._version = version
        self._origin = origin or f"`{folder}`"
        self._known = known or {}

    @property
    def label(self) -> str:
        """The place in words, for messages."""
        return f"folder {self._origin}"

    @property
    def place(self) -> str:
        """The absolute path of the root."""
        return absolute(self.folder)

    def releases(self, spec: AdapterSpec) -> list[Release]:
        """Return the one build."""
        subject, findings = open_subject(self.folder, base_named=spec.base is not None)
        if subject is None:
            raise refused(self._origin, findings)
        ensure_no_errors(self._origin, findings)
        entries, written_at = [], 0.0
        for name in sorted(subject.listing.taken.keys() & MEDIA_TYPES.keys()):
            if name in self._known:
                entries.append(self._known[name])
                continue
            with subject.listing.taken[name].open() as stream:
                digest, size = copy_hashed(stream, None)
                written_at = max(written_at, os.fstat(stream.fileno()).st_mtime)
            entries.append(FileEntry(path=name, sha256=digest, size_bytes=size, media_type=MEDIA_TYPES[name]))
        weights = next(e for e in entries if e.path == WEIGHTS_FILE)
        version = self._version or spec.pinned_version or f"0+{hex_of(weights.sha256)[:12]}"
        manifest = describe(subject, entries, Description(name=spec.name, version=parse_version(version)), None)
        written = written_at or None  # with `known`, the folder is a view of a server
        return [Release(manifest=manifest, namespace=spec.namespace, origin=self._origin, published_at=written)]

    def open(self, release: Release, entry: FileEntry) -> IO[bytes]:  # noqa: ARG002 - the Source protocol
        """One file of the folder."""
        return list_folder(self.folder).taken[entry.path].open()

    def provenance(self, release: Release) -> Provenance:  # noqa: ARG002 - the Source protocol
        """Return the signature in the folder; other tools make such signatures, which name no adapter.

        Links are followed as for the files: this may be a folder of the hub's cache.
        """
        return provenance_of(self.folder, follow_links=True)


def open_source(path: Path, *, plain: bool = True) -> Source:
    """Open the source at `path`: a library, a plain PEFT folder unless excluded, or a folder of published builds.

    Raises:
        AdapterNotFound: the path is not one of them.
    """
    if (path / "manifests" / "sha256").is_dir():
        return Library(path)
    if plain and (path / CONFIG_FILE).is_file() and not (path / MANIFEST_FILE).is_file():
        return PlainFolder(path)
    if next(_build_folders(path), None) is not None:
        return PublishedDirectory(path)
    raise AdapterNotFound(
        f"`{path}` holds no library, no published builds (`{MANIFEST_FILE}`) and no PEFT folder (`{CONFIG_FILE}`)",
        hint="`adapt push NAME --to DIR` publishes to a directory",
    )


def _build_folders(root: Path) -> Iterator[str]:
    """Folders at or below `root` that hold a manifest; dot folders are skipped, links are not followed."""
    todo = [(os.fspath(root), 0)]
    while todo:
        folder, depth = todo.pop()
        if os.path.isfile(f"{folder}/{MANIFEST_FILE}"):  # noqa: PTH113 - ten thousand of them
            yield folder
        elif depth < DEPTH and os.path.isdir(folder):  # noqa: PTH112 - as above
            with os.scandir(folder) as entries:
                inside = [e.path for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
            todo += [(path, depth + 1) for path in sorted(inside, reverse=True)]


def _manifest_bytes(folder: str, root: Path) -> tuple[bytes, float]:
    """Return the manifest in a folder, at most one byte more than it may have, and the date of its file."""
    with _open_inside(folder, MANIFEST_FILE, root) as stream:
        facts = os.fstat(stream.fileno())
        return stream.read(min(facts.st_size, LIMIT_BYTES) + 1), facts.st_mtime


def _open_inside(folder: str, name: str, root: Path) -> IO[bytes]:
    """Open a plain file of a build; links are followed only inside `root` and into the blobs of a hub's cache."""
    try:
        return open_plain(inside(Path(folder), name, within=root))
    except OSError as error:
        code = "E_LINK" if isinstance(error, LeadsOut) else "E_KIND"
        finding = code, f"{name}: {shown(error.strerror or str(error))}"
        raise RefusedAdapter(f"refused `{shown(f'{folder}/{name}', 200)}`. Nothing was stored", [finding]) from None
