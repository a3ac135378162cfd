"""An adapter as an OCI image: one layer for each file, unpacked, under its own digest.

    manifest   artifactType of ModelPack, the CNCF's model spec; annotations for people and for `oras discover`
    config     ModelPack's description of a model
    layers     the files; ModelPack's types, and for `adapterhub.json` one of ours. The title is the name of the file

So any client of OCI writes the files of the build, and a layer's digest is that of the file in the build's manifest.

Sources: OCI image spec v1.1, ModelPack model-spec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from adapterhub.core.dates import parse_time
from adapterhub.core.digests import Digest, canonical_json, parse_digest, strict_json
from adapterhub.core.errors import Malformed, shown
from adapterhub.formats.manifest import CARD_FILE, CONFIG_FILE, MANIFEST_FILE, MEDIA_TYPES, WEIGHTS_FILE, Manifest
from adapterhub.formats.signed import SignedObject

IMAGE_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
ACCEPTED: Final = f"{IMAGE_TYPE}, {INDEX_TYPE}, application/vnd.docker.distribution.manifest.v2+json"
MODEL_TYPE: Final = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG_TYPE: Final = "application/vnd.cncf.model.config.v1+json"
OUR_MANIFEST_TYPE: Final = "application/vnd.adapterhub.manifest.v1+json"
LAYER_TYPES: Final[Mapping[str, str]] = {
    WEIGHTS_FILE: "application/vnd.cncf.model.weight.v1.raw",
    CONFIG_FILE: "application/vnd.cncf.model.weight.config.v1.raw",
    "evals.jsonl": "application/vnd.cncf.model.dataset.v1.raw",
    MANIFEST_FILE: OUR_MANIFEST_TYPE,
}
"""By the name of the file; every other one is documentation."""
DOC_TYPE: Final = "application/vnd.cncf.model.doc.v1.raw"

MANIFEST_LIMIT_BYTES: Final = 4 << 20
MOST_LISTED: Final = 1000
"""Layers of an image, or manifests of an index."""
_TITLE: Final = "org.opencontainers.image.title"
_FILE_PATH: Final = "org.cncf.model.filepath"
_CREATED: Final = "org.opencontainers.image.created"
_UNPACK: Final = "io.deis.oras.content.unpack"
_MODEL_LAYER: Final = "application/vnd.cncf.model."
_LARGEST: Final = 1 << 53
EMPTY: Final = b"{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A descriptor: what one manifest says of bytes that it names by digest."""

    digest: Digest
    size_bytes: int
    media_type: str
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """The name that a layer has in a folder; "" where it has none."""
        return self.annotations.get(_TITLE) or self.annotations.get(_FILE_PATH, "")

    def to_json(self) -> dict[str, Any]:
        """The descriptor."""
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size_bytes}
        value |= {"artifactType": self.artifact_type} if self.artifact_type else {}
        return value | ({"annotations": dict(self.annotations)} if self.annotations else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A manifest: the files of an adapter by their names, other layers left out, or a statement about `subject`."""

    digest: Digest
    layers: tuple[Blob, ...]
    files: Mapping[str, Blob]
    annotations: Mapping[str, str]
    subject: Digest | None

    @property
    def created_at(self) -> float | None:
        """The Unix time of its making, as its maker says; None where it says none."""
        try:
            return parse_time(self.annotations.get(_CREATED, ""))
        except ValueError:
            return None


def parse_image(raw: bytes, digest: Digest, where: str) -> Image | None:
    """An image; None for an index of images, and anything else that is no single image.

    Raises:
        Malformed: it is no manifest, or names a file that no adapter may have.
    """
    try:
        top = SignedObject(strict_json(raw, limit_bytes=MANIFEST_LIMIT_BYTES), "")
        if "layers" not in top.value:
            if "manifests" in top.value or "fsLayers" in top.value:
                return None
            raise ValueError("layers: missing")  # noqa: TRY301 - one refusal for all
        layers = _blobs(top, "layers")
        subject = _blob(top.inner("subject")).digest if "subject" in top.value else None
        return Image(
            digest=digest,
            layers=layers,
            files=_files(layers),
            annotations=_texts(top),
            subject=subject,
        )
    except ValueError as error:
        raise _refused(where, error) from None


def parse_index(raw: bytes, where: str) -> list[Blob]:
    """The manifests that an index lists.

    Raises:
        Malformed: it is no index.
    """
    try:
        return list(_blobs(SignedObject(strict_json(raw, limit_bytes=MANIFEST_LIMIT_BYTES), ""), "manifests"))
    except ValueError as error:
        raise _refused(where, error) from None


def _refused(where: str, error: ValueError) -> Malformed:
    reason = shown(str(error), 200)
    return Malformed(f"`{shown(where, 200)}` is no image of an adapter: {reason}. Nothing was stored")


def _blobs(holder: SignedObject, key: str) -> tuple[Blob, ...]:
    items = holder.value.get(key)
    if isinstance(items, list) and len(items) > MOST_LISTED:
        raise ValueError(f"{key}: expected at most {MOST_LISTED}, got {len(items)}")
    return tuple(_blob(item) for item in holder.items(key))


def _blob(item: SignedObject) -> Blob:
    size = item.value.get("size")
    if type(size) is not int or not 0 <= size <= _LARGEST:
        raise ValueError(f"size: expected a number of bytes, got {shown(size)}")
    artifact_type = item.value.get("artifactType", "")
    return Blob(
        digest=parse_digest(item.text("digest")),
        size_bytes=size,
        media_type=item.text("mediaType"),
        artifact_type=artifact_type if isinstance(artifact_type, str) else "",
        annotations=_texts(item),
    )


def _texts(holder: SignedObject) -> dict[str, str]:
    if holder.value.get("annotations") is None:
        return {}
    found = holder.inner("annotations").value
    if not all(isinstance(text, str) for text in found.values()):
        raise ValueError("annotations: expected texts")
    return found


def _files(layers: tuple[Blob, ...]) -> dict[str, Blob]:
    """The layers that are files of an adapter, by name."""
    known = {*MEDIA_TYPES, CARD_FILE, MANIFEST_FILE}
    found: dict[str, Blob] = {}
    for layer in layers:
        name = layer.file_name
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
            raise ValueError(f"names the file `{shown(name)}`, which is no path inside a folder")
        name = name.removeprefix("./")
        if name not in known:
            continue
        if name in found:
            raise ValueError(f"names the file `{name}` twice")
        is_model_archive = layer.media_type.startswith(_MODEL_LAYER) and not layer.media_type.endswith(".raw")
        if is_model_archive or layer.annotations.get(_UNPACK) == "true":
            raise ValueError(f"packs the file `{name}` (`{shown(layer.media_type)}`); push the file itself")
        found[name] = layer
    return found


# ---------------------------------------------------------------- making
def layer(name: str, digest: Digest, size_bytes: int) -> Blob:
    """The layer of one file."""
    return Blob(
        digest=digest,
        size_bytes=size_bytes,
        media_type=LAYER_TYPES.get(name, DOC_TYPE),
        annotations={_TITLE: name, _FILE_PATH: name},
    )


def model_config(manifest: Manifest, layers: tuple[Blob, ...]) -> bytes:
    """ModelPack's description of a build: names, licence and format, and the digest of each layer."""
    descriptor: dict[str, Any] = {"name": manifest.name, "version": manifest.version}
    descriptor |= {"description": manifest.description} if manifest.description else {}
    descriptor |= {"licenses": [manifest.license]} if manifest.license else {}
    descriptor |= {"family": manifest.base.hints.hub_id} if manifest.base.hints.hub_id else {}
    config: dict[str, Any] = {"format": "safetensors", "architecture": manifest.base.hints.model_type or ""}
    config |= {"precision": manifest.dtype} if manifest.dtype else {}
    config["paramSize"] = str(manifest.parameters)
    files = {"type": "layers", "diffIds": [one.digest for one in layers]}
    return canonical_json({"descriptor": descriptor, "config": config, "modelfs": files})


def notes_of(manifest: Manifest, hub_id: str, created: str) -> dict[str, str]:
    """The annotations of an image: what it is, and for which base."""
    base = manifest.base
    value = {
        _CREATED: created,
        _TITLE: manifest.name,
        "org.opencontainers.image.version": manifest.version,
        "org.opencontainers.image.description": manifest.description,
        "org.opencontainers.image.licenses": manifest.license or "",
        "vnd.adapterhub.digest": manifest.digest,
        "vnd.adapterhub.base": base.fingerprint.weights if base.fingerprint else "",
        "vnd.adapterhub.base.hub-id": base.hints.hub_id or hub_id,
        "vnd.adapterhub.method": ",".join(manifest.method).lower(),
        "vnd.adapterhub.rank": str(manifest.rank or ""),
        "vnd.adapterhub.task": manifest.task or "",
    }
    return {key: text for key, text in value.items() if text}


def image_bytes(
    config: Blob,
    layers: tuple[Blob, ...],
    *,
    artifact_type: str,
    annotations: Mapping[str, str],
    subject: Blob | None = None,
) -> bytes:
    """The manifest of an image."""
    value: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": IMAGE_TYPE,
        "artifactType": artifact_type,
        "config": config.to_json(),
        "layers": [one.to_json() for one in layers],
        "annotations": dict(annotations),
    }
    return canonical_json(value | ({"subject": subject.to_json()} if subject else {}))
