"""Publishes to one repository of an OCI registry: blobs and images by their digests, the tag last."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import IO, TYPE_CHECKING, Final

from adapterhub.core.dates import time_text
from adapterhub.core.digests import Digest, Progress, digest_of, digest_of_hash
from adapterhub.core.disk.held_file import REPAIR_HINT
from adapterhub.core.errors import AdapterHubError, DigestMismatch, ReleaseExists, SpecError, UsageProblem, shown
from adapterhub.core.specs import version_of
from adapterhub.distribution.oci import _mount
from adapterhub.distribution.oci._image import (
    IMAGE_TYPE,
    MODEL_CONFIG_TYPE,
    MODEL_TYPE,
    RESULT,
    SIGNATURE,
    STATEMENT,
    Blob,
    OciWire,
    Referrers,
    image_bytes,
    layer,
    model_config,
    notes_of,
    parse_image,
)
from adapterhub.formats.cards.card import Card, make_card
from adapterhub.formats.contract.contract import Contract
from adapterhub.formats.contract.reader import MAX_BYTES, parse_contract
from adapterhub.formats.manifest import (
    CARD_FILE,
    CONTRACT_FILE,
    LIMIT_BYTES,
    MANIFEST_FILE,
    SIGNATURE_FILE,
    FileEntry,
    Manifest,
)
from adapterhub.formats.release import Release

if TYPE_CHECKING:
    from adapterhub.library.transfer import Source

_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def tag_of(version: str) -> str:
    """Return the tag of a version: itself, with `_` for the characters that a tag cannot have."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", version)


def spells(tag: str, version: str) -> bool:
    """Return whether a tag is this version, however it spells it."""
    with contextlib.suppress(SpecError):  # a tag that is no version
        return version_of(tag) == version_of(version)
    return False


def parse_tag(text: str) -> str:
    """Return a tag.

    Raises:
        UsageProblem: `text` is not a tag.
    """
    if not _TAG.fullmatch(text):
        raise UsageProblem(f"`{shown(text)}` is not a tag: expected 1 to 128 of a-z, A-Z, 0-9 and `._-`")
    return text


def manifest_in(wire: OciWire, repository: str, held: Blob) -> Manifest:
    """Return the build's manifest, `adapterhub.json`, in an image.

    Raises:
        DigestMismatch, RemoteUnreachable: its bytes are others, or too many.
        MalformedManifest: it is not a manifest.
    """
    return Manifest.parse(wire.blob(repository, held, LIMIT_BYTES), f"{repository}: {MANIFEST_FILE}")


class OciRepository:
    """One repository that builds are published to, under `tag`, or under their versions."""

    kind = "repository"
    refused_results = ()

    def __init__(
        self, wire: OciWire, host: str, repository: str, tag: str | None, tags: Callable[[str], list[str]]
    ) -> None:
        self.repository, self.tag, self._tags = repository, tag, tags
        self.label = f"`{host}/{repository}`"
        self.commit_url = ""
        self.sent_mount = False
        self._wire, self._host = wire, host

    def address_of(self, tag: str, image: Digest) -> str:
        """Return the address under which other programs find an image."""
        return f"oci://{self._host}/{self.repository}:{tag}@{image}"

    def tag_of(self, manifest: Manifest) -> str:
        """Return the tag that a build gets."""
        return self.tag or tag_of(manifest.version)

    def mount_of(self, manifest: Manifest) -> str:
        """Return the name of the image to mount, as container runtimes take it: `HOST/REPOSITORY:TAG-mount`."""
        return f"{self._host}/{self.repository}:{_mount.mount_tag(self.tag_of(manifest))}"

    def card_of(self, release: Release, contract: Contract | None = None) -> Card:
        """Return the card that the image holds."""
        return make_card(release.manifest, base_hub_id=release.base_hub_id, contract=contract)

    @contextlib.contextmanager
    def receive(self, release: Release) -> Iterator[_OciUpload]:
        """See `transfer.Destination`.

        Raises:
            ReleaseExists: the tag, or that of the image to mount, is on another build, or on something else.
            UsageProblem: no tag can be so long.
        """
        tag = self.tag_of(release.manifest)
        parse_tag(_mount.mount_tag(tag))
        with self._wire.plainly(f"push to `{self.repository}:{tag}`"):
            there = self.image_of(release, tag)
            if there is None and self.tag is None:
                self._ensure_unspelled(release.manifest.version)
            is_mountable = self._is_mountable(release, _mount.mount_tag(tag), there)
            yield _OciUpload(self._wire, self, release, tag, there, is_mountable=is_mountable)

    def _is_mountable(self, release: Release, tag: str, there: Blob | None) -> bool:
        """Return whether the image to mount of the image that is `there` is under `tag`.

        Raises:
            ReleaseExists: the tag is on something else.
        """
        found = self._wire.manifest(self.repository, tag)
        if found is None:
            return False
        if not _mount.belongs_to(found[0], None, release.digest):
            raise ReleaseExists(
                f"`{self.repository}:{tag}` is something else than the image to mount of this build. Nothing was sent",
                hint="push it under another tag (`oci://…/NAME:TAG`), or to its own repository",
            )
        return there is not None and _mount.belongs_to(found[0], there.digest, release.digest)

    def _ensure_unspelled(self, version: str) -> None:
        """Raise if a tag names the same version in another spelling."""
        same = next((tag for tag in self._tags(self.repository) if spells(tag, version)), None)
        if same is not None:
            raise ReleaseExists(
                f"`{self.repository}:{same}` is the same version as {version}; a release never changes. Nothing was "
                "sent",
                hint="push it under a new version",
            )

    def image_of(self, release: Release, tag: str) -> Blob | None:
        """Return the image of a release under a tag; None if the tag is free.

        Raises:
            ReleaseExists: the tag is on something else.
        """
        found = self._wire.manifest(self.repository, tag)
        if found is None:
            return None
        image = parse_image(*found, f"{self.repository}:{tag}")
        held = image.files.get(MANIFEST_FILE) if image is not None else None
        if held is None or manifest_in(self._wire, self.repository, held).digest != release.digest:
            raise ReleaseExists(
                f"`{self.repository}:{tag}` is another build; a release never changes. Nothing was sent",
                hint="push it under a new version, another tag (`oci://…/NAME:TAG`), or to its own repository",
            )
        return Blob(digest=found[1], size_bytes=len(found[0]), media_type=IMAGE_TYPE)


class _Hashed:
    """A stream that hashes what is read of it, and never gives more bytes than `size_bytes`."""

    def __init__(self, stream: IO[bytes], size_bytes: int, progress: Progress | None) -> None:
        self._stream, self._left, self._progress = stream, size_bytes, progress
        self._hasher = hashlib.sha256()
        self.is_read = False

    def __iter__(self) -> Iterator[bytes]:
        while self._left and (piece := self._stream.read(min(1 << 20, self._left))):
            self._left -= len(piece)
            self._hasher.update(piece)
            if self._progress is not None:
                self._progress(len(piece))
            yield piece
        self.is_read = True

    @property
    def digest(self) -> Digest:
        return digest_of_hash(self._hasher)


class _OciUpload:
    def __init__(
        self,
        wire: OciWire,
        place: OciRepository,
        release: Release,
        tag: str,
        there: Blob | None,
        *,
        is_mountable: bool,
    ) -> None:
        self._wire, self._place, self._release, self._tag, self._there = wire, place, release, tag, there
        self._is_mountable = is_mountable
        self._source: Source | None = None
        self._progress: Progress | None = None
        self._signature: bytes | None = None
        self._beside_files: dict[str, bytes] = {}
        self._results: Sequence[bytes] = ()
        self._statements: Sequence[bytes] = ()

    def has(self, entry: FileEntry) -> bool:  # noqa: ARG002 - `put` asks for each digest
        """Return whether the tag is on this very build."""
        return self._there is not None

    def put(self, entry: FileEntry, stream: IO[bytes], progress: Progress | None = None) -> None:
        """Send one file unless the repository has its digest, hashed while it flows."""
        wire, repository = self._wire, self._place.repository
        if wire.has_blob(repository, entry.sha256):
            return
        body = _Hashed(stream, entry.size_bytes, progress)
        try:
            wire.put_blob(repository, entry.sha256, entry.size_bytes, body)
        finally:  # the registry refuses them, too, in its own words
            if body.is_read and body.digest != entry.sha256:
                raise DigestMismatch(entry.path, expected=entry.sha256, actual=body.digest, hint=REPAIR_HINT)

    def sign(self, signature: bytes) -> bool:
        """Take the signature; an image that is already there also gets it, unless it has it."""
        self._beside_files = {SIGNATURE_FILE: signature}
        if self._there is not None and signature in self._beside(self._there).of_kind(SIGNATURE):
            return False
        self._signature = signature
        return True

    def take_source(self, source: Source, progress: Progress | None) -> None:
        """Take the place that the files come from, which are read again for the image to mount."""
        self._source, self._progress = source, progress

    def take_results(self, results: Sequence[bytes]) -> None:
        """Take signed results of tests."""
        self._results = results

    def take_statements(self, statements: Sequence[bytes]) -> None:
        """Take signed statements about how the build was made."""
        self._statements = statements

    def _beside(self, image: Blob) -> Referrers:
        return Referrers(self._wire, self._place.repository, image.digest)

    def publish(self) -> None:
        """Push the image by its digest, its signatures and the tag; each is there before the next names it.

        The image to mount gets its tag after the build has: of two pushes at one moment, the first tag decides.
        """
        created = time_text(time.time())
        is_new = self._there is None
        image, raw = (self._there, b"") if self._there is not None else self._image(created)
        beside = self._beside(image)
        signed = [(SIGNATURE, [self._signature] if self._signature is not None else [])]
        signed += [(RESULT, list(self._results)), (STATEMENT, list(self._statements))]
        for kind, bundles in signed:
            known = beside.of_kind(kind) if bundles and not is_new else []
            beside.add(kind, [one for one in bundles if one not in known], image, created)
        mount = b"" if self._is_mountable else self._made_mount(image)
        # the spec has no way to claim a tag: of two pushes at one moment the later one has it
        if is_new and self._place.image_of(self._release, self._tag) is None:
            self._wire.put_manifest(self._place.repository, self._tag, raw)
        if mount:
            _mount.tag_mount(self._wire, self._place.repository, _mount.mount_tag(self._tag), mount, image)
            self._place.sent_mount = True
        self._place.commit_url = self._place.address_of(self._tag, image.digest)

    def _image(self, created: str) -> tuple[Blob, bytes]:
        wire, repository, release = self._wire, self._place.repository, self._release
        manifest = release.manifest
        files = {entry.path: layer(entry.path, entry.sha256, entry.size_bytes) for entry in manifest.files}
        texts = self._texts()
        made = (layer(name, digest_of(data), len(data)) for name, data in texts.items())
        layers = (*files.values(), *made)
        config = model_config(manifest, layers)
        for data in (*texts.values(), config):
            if not wire.has_blob(repository, digest_of(data)):
                wire.put_blob(repository, digest_of(data), len(data), data)
        raw = image_bytes(
            Blob(digest=digest_of(config), size_bytes=len(config), media_type=MODEL_CONFIG_TYPE),
            layers,
            artifact_type=MODEL_TYPE,
            annotations=notes_of(manifest, release.base_hub_id, created),
        )
        wire.put_manifest(repository, digest_of(raw), raw)
        return Blob(digest=digest_of(raw), size_bytes=len(raw), media_type=IMAGE_TYPE), raw

    def _texts(self) -> dict[str, bytes]:
        """Return the files that are made for the image."""
        manifest = self._release.manifest
        held = next((one for one in manifest.files if one.path == CONTRACT_FILE), None)
        contract = self._contract(layer(held.path, held.sha256, held.size_bytes) if held is not None else None)
        card = make_card(manifest, base_hub_id=self._release.base_hub_id, contract=contract)
        return {MANIFEST_FILE: manifest.to_bytes(), CARD_FILE: card.text.encode()}

    def _made_mount(self, image: Blob) -> bytes:
        """Return the index of the image to mount; empty if the caller offers no second reading."""
        source, release = self._source, self._release
        if source is None:
            return b""
        files = [_mount.file_of(name, data) for name, data in (self._texts() | self._beside_files).items()]
        files += [
            _mount.File(
                name=entry.path,
                digest=entry.sha256,
                size_bytes=entry.size_bytes,
                open=partial(source.open, release, entry),
            )
            for entry in release.manifest.files
        ]
        return _mount.make_mount(
            self._wire,
            self._place.repository,
            files,
            subject=image,
            notes=notes_of(release.manifest, release.base_hub_id, ""),
            progress=self._progress,
        )

    def _contract(self, held: Blob | None) -> Contract | None:
        """Return the contract that was sent, for the card; None without a sound one, which other checks refuse."""
        if held is None or held.size_bytes > MAX_BYTES:
            return None
        with contextlib.suppress(AdapterHubError):
            return parse_contract(self._wire.blob(self._place.repository, held, MAX_BYTES))
        return None
