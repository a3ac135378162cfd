"""A build as an image that container runtimes mount: one plain tar of its files, beside the image of `_image.py`.

    index      under `TAG-mount`; its subject is the image of the build, its annotations are that image's
    manifests  one for each platform, as a runtime takes only its own; they differ only in the config
    layer      an uncompressed tar: the files in `models/`, where KServe looks, and hard links to them at the top

Runtimes unpack only layers that are tars. The same build gives the same tar.

Sources: OCI image spec v1.1, Kubernetes KEP-4639, KServe's `oci+native://`.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

from adapterhub.core.digests import (
    CHUNK_BYTES,
    Digest,
    Progress,
    canonical_json,
    digest_of,
    digest_of_hash,
    strict_json,
)
from adapterhub.core.disk.held_file import REPAIR_HINT
from adapterhub.core.errors import DigestMismatch
from adapterhub.distribution.oci._image import (
    IMAGE_TYPE,
    INDEX_TYPE,
    MANIFEST_LIMIT_BYTES,
    Blob,
    OciWire,
    Referrers,
    image_bytes,
)

MOUNT: Final = "application/vnd.adapterhub.mount.v1"
"""The artifactType of the index."""
DIGEST_NOTE: Final = "vnd.adapterhub.digest"
_TAR_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"
_CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
_PLATFORMS: Final = ("amd64", "arm64")
_SUFFIX: Final = "-mount"
_FOLDER: Final = "models"
_BLOCK_BYTES: Final = 512


def mount_tag(tag: str) -> str:
    """Return the tag of the image to mount beside the build under `tag`."""
    return f"{tag}{_SUFFIX}"


def without_mounts(tags: Sequence[str]) -> list[str]:
    """Return the tags, without those of images to mount."""
    known = set(tags)
    return [tag for tag in tags if not (tag.endswith(_SUFFIX) and tag.removesuffix(_SUFFIX) in known)]


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of a build, which can be read twice."""

    name: str
    digest: Digest
    size_bytes: int
    open: Callable[[], IO[bytes]]


def file_of(name: str, data: bytes) -> File:
    """Return a file of these bytes."""
    return File(name=name, digest=digest_of(data), size_bytes=len(data), open=lambda: io.BytesIO(data))


def tar_pieces(files: Iterable[File], progress: Progress | None = None) -> Iterator[bytes]:
    """Yield the tar of some files, piece by piece: owned by root, from 1970, sorted by name.

    Raises:
        DigestMismatch: a file holds other bytes than its digest says.
    """
    in_order = sorted(files, key=lambda one: one.name)
    yield _head(_FOLDER, tarfile.DIRTYPE, mode=0o755)
    for file in in_order:
        yield _head(f"{_FOLDER}/{file.name}", tarfile.REGTYPE, size=file.size_bytes)
        yield from _checked(file, progress)
        yield bytes(-file.size_bytes % _BLOCK_BYTES)
    for file in in_order:
        yield _head(file.name, tarfile.LNKTYPE, linkname=f"{_FOLDER}/{file.name}")
    yield bytes(2 * _BLOCK_BYTES)


def _head(name: str, kind: bytes, **facts: Any) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.mode = kind, 0o644
    for key, value in facts.items():
        setattr(member, key, value)
    return member.tobuf(tarfile.PAX_FORMAT)


def _checked(file: File, progress: Progress | None) -> Iterator[bytes]:
    hasher, left = hashlib.sha256(), file.size_bytes
    with file.open() as stream:
        while left and (piece := stream.read(min(CHUNK_BYTES, left))):
            left -= len(piece)
            hasher.update(piece)
            if progress is not None:
                progress(len(piece))
            yield piece
    if (actual := digest_of_hash(hasher)) != file.digest:
        raise DigestMismatch(file.name, expected=file.digest, actual=actual, hint=REPAIR_HINT)


def belongs_to(raw: bytes, image: Digest | None, build: Digest) -> bool:
    """Whether what a tag holds is an image to mount of a build; with `image`, that very image must be its subject."""
    try:
        value = strict_json(raw, limit_bytes=MANIFEST_LIMIT_BYTES)
        kind, subject = value.get("artifactType"), (value.get("subject") or {}).get("digest")
        noted = (value.get("annotations") or {}).get(DIGEST_NOTE)
    except (ValueError, AttributeError):
        return False
    return kind == MOUNT and noted == build and image in (None, subject)


def make_mount(
    wire: OciWire,
    repository: str,
    files: Sequence[File],
    *,
    subject: Blob,
    notes: dict[str, str],
    progress: Progress | None = None,
) -> bytes:
    """Store the image to mount of the build `subject`; returns its index, which `tag_mount` stores last.

    Raises:
        DigestMismatch: a file changed on the disk.
    """
    hasher, size_bytes = hashlib.sha256(), 0
    for piece in tar_pieces(files):
        hasher.update(piece)
        size_bytes += len(piece)
    layer = Blob(digest=digest_of_hash(hasher), size_bytes=size_bytes, media_type=_TAR_TYPE)
    if not wire.has_blob(repository, layer.digest):
        wire.put_blob(repository, layer.digest, size_bytes, tar_pieces(files, progress))
    manifests = [_manifest(wire, repository, layer, platform, notes) for platform in _PLATFORMS]
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "artifactType": MOUNT,
        "manifests": manifests,
        "subject": subject.to_json(),
        "annotations": notes,
    }
    return canonical_json(index)


def tag_mount(wire: OciWire, repository: str, tag: str, raw: bytes, subject: Blob) -> None:
    """Store an index of `make_mount` under its tag, and list it beside its subject."""
    answer = wire.put_manifest(repository, tag, raw, INDEX_TYPE)
    if not answer.headers.get("oci-subject"):
        made = Blob(digest=digest_of(raw), size_bytes=len(raw), media_type=INDEX_TYPE, artifact_type=MOUNT)
        Referrers(wire, repository, subject.digest).list_under_tag([made])


def _manifest(wire: OciWire, repository: str, layer: Blob, platform: str, notes: dict[str, str]) -> dict[str, Any]:
    """Store the manifest for one platform; its entry in the index."""
    config = {
        "architecture": platform,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        "history": [{"created_by": "adapt push"}],
    }
    data = canonical_json(config)
    if not wire.has_blob(repository, digest_of(data)):
        wire.put_blob(repository, digest_of(data), len(data), data)
    held = Blob(digest=digest_of(data), size_bytes=len(data), media_type=_CONFIG_TYPE)
    raw = image_bytes(held, (layer,), annotations=notes)
    wire.put_manifest(repository, digest_of(raw), raw)
    entry = Blob(digest=digest_of(raw), size_bytes=len(raw), media_type=IMAGE_TYPE)
    return entry.to_json() | {"platform": {"architecture": platform, "os": "linux"}}
