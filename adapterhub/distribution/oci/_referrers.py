"""What lies beside an image: its signature and signed results of tests, as images whose `subject` it is.

A registry lists them by its referrers API. For one without, the spec has a tag, `sha256-<hex>`, on an index that the
clients keep. Anyone who may push can put something there, so all that is read here is a claim until its key is checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from huggingface_hub.errors import HfHubHTTPError

from adapterhub.core.digests import Digest, canonical_json, digest_of, hex_of
from adapterhub.core.errors import Conflict
from adapterhub.distribution.oci._image import (
    EMPTY,
    EMPTY_TYPE,
    IMAGE_TYPE,
    INDEX_TYPE,
    Blob,
    image_bytes,
    parse_image,
    parse_index,
)
from adapterhub.distribution.oci._wire import OciWire
from adapterhub.formats.signed import BUNDLE_TYPE, SIGNATURE_LIMIT_BYTES

SIGNATURE: Final = "application/vnd.adapterhub.signature.v1"
RESULT: Final = "application/vnd.adapterhub.test-result.v1"
STATEMENT: Final = "application/vnd.adapterhub.provenance.v1"
"""The kinds, as artifactType; the layer of each is a sigstore bundle."""

MOST: Final = 200
"""How many of one kind are read."""
_TRIES: Final = 5
_CREATED: Final = "org.opencontainers.image.created"


class Referrers:
    """The referrers of one image."""

    def __init__(self, wire: OciWire, repository: str, image: Digest) -> None:
        self._wire, self._repository, self._image = wire, repository, image

    @property
    def _tag(self) -> str:
        return f"sha256-{hex_of(self._image)}"

    def of_kind(self, kind: str) -> list[bytes]:
        """The bundles of one kind, the latest first by what they say; at most `MOST`."""
        found = [one for one in self._listed() if one.artifact_type == kind]
        found.sort(key=lambda one: (one.annotations.get(_CREATED, ""), one.digest), reverse=True)
        read = (self._bundle(one) for one in {one.digest: one for one in found[:MOST]}.values())
        return [raw for raw in read if raw is not None]

    def _listed(self) -> Iterator[Blob]:
        where = f"{self._repository}: referrers"
        with self._wire.plainly(where):
            is_offered = False
            path = f"v2/{self._repository}/referrers/{self._image}"
            try:
                for page in self._wire.pages(path, INDEX_TYPE):
                    is_offered = True
                    yield from parse_index(page, where)
            except HfHubHTTPError as error:  # some answer 400 or 405 to a path that they do not know
                if is_offered or error.response is None or error.response.status_code not in (400, 405):
                    raise
            if not is_offered:
                yield from self._tagged()

    def _tagged(self) -> list[Blob]:
        """What the fallback tag lists."""
        found = self._wire.manifest(self._repository, self._tag, INDEX_TYPE)
        if found is None:
            return []
        return parse_index(found[0], f"{self._repository}:{self._tag}")

    def _bundle(self, listed: Blob) -> bytes | None:
        """The bundle behind a listed image; None where it is none, or is about another image."""
        with self._wire.plainly(f"{self._repository}: referrer {listed.digest[:19]}…"):
            found = self._wire.manifest(self._repository, listed.digest)
            image = parse_image(*found, listed.digest) if found is not None else None
            if image is None or image.subject != self._image or len(image.layers) != 1:
                return None
            return self._wire.blob(self._repository, image.layers[0], SIGNATURE_LIMIT_BYTES)

    def add(self, kind: str, bundles: Iterable[bytes], subject: Blob, created: str) -> None:
        """Store bundles of one kind, and list them under the fallback tag where the registry has no referrers API.

        Raises:
            Conflict: others kept writing the tag at the same time.
        """
        unlisted = [made for raw in bundles if (made := self._add(kind, raw, subject, created)) is not None]
        for _ in range(_TRIES if unlisted else 0):
            there = self._tagged()
            missing = [one for one in unlisted if one.digest not in {other.digest for other in there}]
            if not missing:
                return
            self._write(there + missing)
        if unlisted and {one.digest for one in unlisted} - {one.digest for one in self._tagged()}:
            raise Conflict(
                f"`{self._repository}:{self._tag}` was written by others at the same time",
                hint="run `adapt push` again; it sends what is missing",
            )

    def _write(self, listed: Sequence[Blob]) -> None:
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [one.to_json() for one in listed]}
        self._wire.put_manifest(self._repository, self._tag, canonical_json(index), INDEX_TYPE)

    def _add(self, kind: str, raw: bytes, subject: Blob, created: str) -> Blob | None:
        """Store one; returns what has to be listed, None where the registry lists it itself."""
        wire, repository = self._wire, self._repository
        for data in (EMPTY, raw):
            if not wire.has_blob(repository, digest_of(data)):
                wire.put_blob(repository, digest_of(data), len(data), data)
        config = Blob(digest=digest_of(EMPTY), size_bytes=len(EMPTY), media_type=EMPTY_TYPE)
        held = Blob(digest=digest_of(raw), size_bytes=len(raw), media_type=BUNDLE_TYPE)
        notes = {_CREATED: created}
        image = image_bytes(config, (held,), artifact_type=kind, annotations=notes, subject=subject)
        answer = wire.put_manifest(repository, digest_of(image), image)
        if answer.headers.get("oci-subject"):
            return None
        return Blob(
            digest=digest_of(image),
            size_bytes=len(image),
            media_type=IMAGE_TYPE,
            artifact_type=kind,
            annotations=notes,
        )
