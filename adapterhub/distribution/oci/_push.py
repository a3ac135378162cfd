"""Publishes to one repository of an OCI registry: blobs and images by their digests, the tag last."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Final

from adapterhub.core.dates import time_text
from adapterhub.core.digests import Digest, Progress, digest_of, digest_of_hash
from adapterhub.core.disk.held_file import REPAIR_HINT
from adapterhub.core.errors import AdapterHubError, DigestMismatch, ReleaseExists, SpecError, UsageProblem, shown
from adapterhub.core.specs import version_of
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
from adapterhub.formats.manifest import CARD_FILE, CONTRACT_FILE, LIMIT_BYTES, MANIFEST_FILE, FileEntry, Manifest
from adapterhub.formats.release import Release

_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def tag_of(version: str) -> str:
    """The tag of a version: itself, with `_` for the characters that a tag cannot have."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", version)


def spells(tag: str, version: str) -> bool:
    """Whether a tag is this version, however it spells it."""
    with contextlib.suppress(SpecError):  # a tag that is no version
        return version_of(tag) == version_of(version)
    return False


def parse_tag(text: str) -> str:
    """A tag.

    Raises:
        UsageProblem: `text` is none.
    """
    if not _TAG.fullmatch(text):
        raise UsageProblem(f"`{shown(text)}` is no tag: expected 1 to 128 of a-z, A-Z, 0-9 and `._-`")
    return text


def manifest_in(wire: OciWire, repository: str, held: Blob) -> Manifest:
    """The build's manifest, `adapterhub.json`, in an image.

    Raises:
        DigestMismatch, RemoteUnreachable: its bytes are others, or too many.
        MalformedManifest: it is none.
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
        self._wire, self._host = wire, host

    def address_of(self, tag: str, image: Digest) -> str:
        """Where other programs find an image."""
        return f"oci://{self._host}/{self.repository}:{tag}@{image}"

    def tag_of(self, manifest: Manifest) -> str:
        """The tag that a build gets."""
        return self.tag or tag_of(manifest.version)

    def card_of(self, release: Release, contract: Contract | None = None) -> Card:
        """The card that the image holds."""
        return make_card(release.manifest, base_hub_id=release.base_hub_id, contract=contract)

    @contextlib.contextmanager
    def receive(self, release: Release) -> Iterator[_OciUpload]:
        """See `transfer.Destination`.

        Raises:
            ReleaseExists: the tag is on another build, or on something else.
        """
        tag = self.tag_of(release.manifest)
        with self._wire.plainly(f"push to `{self.repository}:{tag}`"):
            there = self.image_of(release, tag)
            if there is None and self.tag is None:
                self._ensure_unspelled(release.manifest.version)
            yield _OciUpload(self._wire, self, release, tag, there)

    def _ensure_unspelled(self, version: str) -> None:
        """Raise where a tag names the same version in another spelling."""
        same = next((tag for tag in self._tags(self.repository) if spells(tag, version)), None)
        if same is not None:
            raise ReleaseExists(
                f"`{self.repository}:{same}` is the same version as {version}; a release never changes. Nothing was "
                "sent",
                hint="push it under a new version",
            )

    def image_of(self, release: Release, tag: str) -> Blob | None:
        """The image of a release under a tag; None where the tag is free.

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
    def __init__(self, wire: OciWire, place: OciRepository, release: Release, tag: str, there: Blob | None) -> None:
        self._wire, self._place, self._release, self._tag, self._there = wire, place, release, tag, there
        self._signature: bytes | None = None
        self._results: Sequence[bytes] = ()
        self._statements: Sequence[bytes] = ()

    def has(self, entry: FileEntry) -> bool:  # noqa: ARG002 - `put` asks for each digest
        """Whether the tag is on this very build."""
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
        """Take the signature; an image that is there gets it, too, unless it has it."""
        if self._there is not None and signature in self._beside(self._there).of_kind(SIGNATURE):
            return False
        self._signature = signature
        return True

    def take_results(self, results: Sequence[bytes]) -> None:
        """Take signed results of tests."""
        self._results = results

    def take_statements(self, statements: Sequence[bytes]) -> None:
        """Take signed statements about how the build was made."""
        self._statements = statements

    def _beside(self, image: Blob) -> Referrers:
        return Referrers(self._wire, self._place.repository, image.digest)

    def publish(self) -> None:
        """The image by its digest, what is signed about it, and the tag; each is there before the next names it."""
        created = time_text(time.time())
        is_new = self._there is None
        image, raw = (self._there, b"") if self._there is not None else self._image(created)
        beside = self._beside(image)
        signed = [(SIGNATURE, [self._signature] if self._signature is not None else [])]
        signed += [(RESULT, list(self._results)), (STATEMENT, list(self._statements))]
        for kind, bundles in signed:
            known = beside.of_kind(kind) if bundles and not is_new else []
            beside.add(kind, [one for one in bundles if one not in known], image, created)
        # the spec has no way to claim a tag: of two pushes at one moment the later one has it
        if is_new and self._place.image_of(self._release, self._tag) is None:
            self._wire.put_manifest(self._place.repository, self._tag, raw)
        self._place.commit_url = self._place.address_of(self._tag, image.digest)

    def _image(self, created: str) -> tuple[Blob, bytes]:
        wire, repository, release = self._wire, self._place.repository, self._release
        manifest = release.manifest
        files = {entry.path: layer(entry.path, entry.sha256, entry.size_bytes) for entry in manifest.files}
        card = make_card(manifest, base_hub_id=release.base_hub_id, contract=self._contract(files.get(CONTRACT_FILE)))
        texts = {MANIFEST_FILE: manifest.to_bytes(), CARD_FILE: card.text.encode()}
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

    def _contract(self, held: Blob | None) -> Contract | None:
        """The contract that was sent, for the card; None without a sound one, which other checks refuse."""
        if held is None or held.size_bytes > MAX_BYTES:
            return None
        with contextlib.suppress(AdapterHubError):
            return parse_contract(self._wire.blob(self._place.repository, held, MAX_BYTES))
        return None
