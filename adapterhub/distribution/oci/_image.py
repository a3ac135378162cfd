"""An adapter as an OCI image, one layer for each file, unpacked, under its own digest; and the registry's protocol.

    manifest   artifactType of ModelPack, the CNCF's model spec; annotations for people and for `oras discover`
    config     ModelPack's description of a model
    layers     the files; ModelPack's types, and for `adapterhub.json` one of ours. The title is the name of the file

So any client of OCI writes the files of the build, and a layer's digest is that of the file in the build's manifest.

Sources: OCI image spec v1.1, ModelPack model-spec.
"""

from __future__ import annotations

import base64
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from huggingface_hub.errors import HfHubHTTPError

from adapterhub.core.dates import parse_time
from adapterhub.core.digests import Digest, canonical_json, digest_of, hex_of, parse_digest, strict_json
from adapterhub.core.disk.files import read_json
from adapterhub.core.errors import Conflict, DigestMismatch, Malformed, NotAllowed, RemoteUnreachable, shown
from adapterhub.core.redaction import keep_secret
from adapterhub.distribution.http.wire import Form, HttpAnswer, Wire, is_missing, origin_of, web_address
from adapterhub.formats.manifest import CARD_FILE, CONFIG_FILE, MANIFEST_FILE, MEDIA_TYPES, WEIGHTS_FILE, Manifest
from adapterhub.formats.signature import BUNDLE_TYPE, SIGNATURE_LIMIT_BYTES, SignedObject

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
    """A descriptor: the facts that a manifest states about bytes that it names by digest."""

    digest: Digest
    size_bytes: int
    media_type: str
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """The name that a layer has in a folder; "" if it has none."""
        return self.annotations.get(_TITLE) or self.annotations.get(_FILE_PATH, "")

    def to_json(self) -> dict[str, Any]:
        """Return the descriptor."""
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
        """The Unix time of its making, as its maker states it; None without one."""
        try:
            return parse_time(self.annotations.get(_CREATED, ""))
        except ValueError:
            return None


def parse_image(raw: bytes, digest: Digest, where: str) -> Image | None:
    """Return an image; None for an index of images, and anything else that is not a single image.

    Raises:
        Malformed: it is not a manifest, or names a file that no adapter may have.
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
    """Return the manifests that an index lists.

    Raises:
        Malformed: it is not an index.
    """
    try:
        return list(_blobs(SignedObject(strict_json(raw, limit_bytes=MANIFEST_LIMIT_BYTES), ""), "manifests"))
    except ValueError as error:
        raise _refused(where, error) from None


def _refused(where: str, error: ValueError) -> Malformed:
    reason = shown(str(error), 200)
    return Malformed(
        f"`{shown(where, 200)}` is no image of an adapter: {reason}. Nothing was stored",
        hint="`adapt push` writes such images",
    )


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
    """Return the layers that are files of an adapter, by name."""
    known = {*MEDIA_TYPES, CARD_FILE, MANIFEST_FILE}
    found: dict[str, Blob] = {}
    for layer in layers:
        name = layer.file_name
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
            raise ValueError(f"names the file `{shown(name)}`, which is not a path inside a folder")
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
    """Return the layer of one file."""
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
    """Return the annotations of an image: what it is, and for which base."""
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
    artifact_type: str = "",
    annotations: Mapping[str, str],
    subject: Blob | None = None,
) -> bytes:
    """Return the manifest of an image; one without an `artifact_type` is for container runtimes."""
    value: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": IMAGE_TYPE,
        **({"artifactType": artifact_type} if artifact_type else {}),
        "config": config.to_json(),
        "layers": [one.to_json() for one in layers],
        "annotations": dict(annotations),
    }
    return canonical_json(value | ({"subject": subject.to_json()} if subject else {}))


SIGNATURE: Final = "application/vnd.adapterhub.signature.v1"
RESULT: Final = "application/vnd.adapterhub.test-result.v1"
STATEMENT: Final = "application/vnd.adapterhub.provenance.v1"
"""The kinds, as artifactType; the layer of each is a sigstore bundle."""

MOST: Final = 200
"""How many of one kind are read."""
_TRIES: Final = 5


class Referrers:
    """The referrers of one image."""

    def __init__(self, wire: OciWire, repository: str, image: Digest) -> None:
        self._wire, self._repository, self._image = wire, repository, image

    @property
    def _tag(self) -> str:
        return f"sha256-{hex_of(self._image)}"

    def of_kind(self, kind: str) -> list[bytes]:
        """Return the bundles of one kind, the latest first by what they say; at most `MOST`."""
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
        """Return the manifests that the index at the fallback tag lists."""
        found = self._wire.manifest(self._repository, self._tag, INDEX_TYPE)
        if found is None:
            return []
        return parse_index(found[0], f"{self._repository}:{self._tag}")

    def _bundle(self, listed: Blob) -> bytes | None:
        """Return the bundle behind a listed image; None if it has none, or is about another image."""
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
        made = (self._add(kind, raw, subject, created) for raw in bundles)
        self.list_under_tag([one for one in made if one is not None])

    def list_under_tag(self, unlisted: Sequence[Blob]) -> None:
        """List what the registry does not list itself, as it has no referrers API, under the fallback tag.

        Raises:
            Conflict: others kept writing the tag at the same time.
        """
        for _ in range(_TRIES if unlisted else 0):
            there = self._tagged()
            missing = [one for one in unlisted if one.digest not in {other.digest for other in there}]
            if not missing:
                return
            self._write(there + missing)
        if unlisted and {one.digest for one in unlisted} - {one.digest for one in self._tagged()}:
            raise Conflict(
                f"`{self._repository}:{self._tag}` was written by others at the same time",
                hint="run `adapt push` again; it sends the missing parts",
            )

    def _write(self, listed: Sequence[Blob]) -> None:
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [one.to_json() for one in listed]}
        self._wire.put_manifest(self._repository, self._tag, canonical_json(index), INDEX_TYPE)

    def _add(self, kind: str, raw: bytes, subject: Blob, created: str) -> Blob | None:
        """Store one; returns what has to be listed, None if the registry lists it itself."""
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


_REPOSITORY: Final = re.compile(r"/v2/(.+)/(?:blobs|manifests|tags|referrers)/")
_PARAMETER: Final = re.compile(r'([a-z_]+)="([^"\\]*)"')
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,65536}")
_NEXT: Final = re.compile(r'\s*<([^<>]*)>\s*;.*\brel="?next\b')
_CLIENT: Final = "adapterhub"
MOST_PAGES: Final = 100


class OciWire(Wire):
    """Requests to one registry. `endpoint` is its URL."""

    def __init__(self, endpoint: str, credentials: Credentials, *, silence_s: float | None = None) -> None:
        super().__init__(endpoint, None, version=None, silence_s=silence_s)
        keep_secret(f"{credentials.user}:{credentials.password}" if credentials.user else None)
        keep_secret(credentials.password, credentials.bearer, credentials.refresh)
        self._credentials = credentials
        self._granted: dict[tuple[str, bool], str] = {}

    @property
    def is_signed_in(self) -> bool:
        """Whether there are credentials."""
        return self._credentials != Credentials()

    # ------------------------------------------------------------ tokens
    def open(
        self, url: str, headers: Mapping[str, str] | None = None, form: Form | None = None, method: str = ""
    ) -> HttpAnswer:
        """As `Wire.open`, with a token where the registry wants one; a file is sent once, so its token comes before."""
        found = _REPOSITORY.search(url)
        what = found[1] if found else "", form is not None or method not in ("", "GET", "HEAD")
        granted = self._granted.get(what) or self._granted.get((what[0], True), "")
        sent = dict(headers or {})
        answer = super().open(url, sent | ({"authorization": granted} if granted else {}), form, method)
        is_own = origin_of(answer.url) == origin_of(self.endpoint)
        if answer.status != HTTPStatus.UNAUTHORIZED or not is_own or (form and not isinstance(form, bytes)):
            return answer
        granted = self._grant(answer.headers.get("www-authenticate", ""), what[0], writes=what[1])
        if not granted:
            return answer
        answer.close()
        self._granted[what] = granted
        return super().open(url, sent | {"authorization": granted}, form, method)

    def _grant(self, challenge: str, repository: str, *, writes: bool) -> str:
        """Return the header that answers a challenge; "" if nothing does.

        Raises:
            RemoteUnreachable: the challenge cannot be followed, or its place gives no token.
            NotAllowed: its place refuses the user.
        """
        own = self._credentials
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            return own.basic
        if scheme.lower() != "bearer":
            return ""
        if own.bearer:
            return f"Bearer {own.bearer}"
        told = dict(_PARAMETER.findall(rest))
        realm = web_address(self.endpoint, told.get("realm", ""))
        if not realm or "realm" not in told or "@" in realm.partition("://")[2].partition("/")[0]:
            raise RemoteUnreachable(
                f"{self.endpoint} asks for a token from `{shown(told.get('realm'))}`, which is not an http(s) URL"
            )
        if self.endpoint.startswith("https:") and not realm.startswith("https:"):
            raise RemoteUnreachable(
                f"{self.endpoint} wants a token from `{shown(realm)}`, unencrypted. Nothing was sent"
            )
        scope = f"repository:{repository}:{'pull,push' if writes else 'pull'}" if repository else told.get("scope", "")
        asked = {"service": told.get("service", ""), "scope": scope}
        asked = {key: value for key, value in asked.items() if value}
        with self.plainly(f"token for `{repository or self.endpoint}`"):
            return f"Bearer {self._token(realm, asked)}"

    def _token(self, realm: str, asked: dict[str, str]) -> str:
        own, form = self._credentials, None
        if own.refresh:
            form = {**asked, "grant_type": "refresh_token", "client_id": _CLIENT, "refresh_token": own.refresh}
            answer = super().open(realm, form=form)
        else:
            url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(asked)}"
            answer = super().open(url, {"authorization": own.basic} if own.basic else {})
        try:
            answer.raise_for_status()
            raw = self.whole(answer, "token")
        finally:
            answer.close()
        try:
            told = strict_json(raw)
            token = told.get("token") or told.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise RemoteUnreachable(f"`{shown(realm)}` sent no token")
        keep_secret(token)
        return token

    # ------------------------------------------------------------ manifests and blobs
    def manifest(self, repository: str, reference: str, accept: str = ACCEPTED) -> tuple[bytes, Digest] | None:
        """Return the bytes of a manifest by its tag or digest, and their digest; None if there is none.

        Raises:
            DigestMismatch: the bytes are not those of the digest.
            RemoteUnreachable: they are more than any manifest has.
        """
        what = f"{repository}: manifest `{reference}`"
        try:
            with self.answering(f"{self.endpoint}/v2/{repository}/manifests/{reference}", {"accept": accept}) as answer:
                raw, told = self.whole(answer, what), answer.headers.get("docker-content-digest")
        except HfHubHTTPError as error:
            if is_missing(error):
                return None
            raise
        if len(raw) > MANIFEST_LIMIT_BYTES:
            raise RemoteUnreachable(f"{what}: {self.endpoint} sent more than {MANIFEST_LIMIT_BYTES:,} bytes")
        actual = digest_of(raw)
        expected = reference if reference.startswith("sha256:") else told or actual
        if expected.startswith("sha256:") and actual != expected:
            raise DigestMismatch(what, expected=shown(expected), actual=actual, hint="nothing was stored")
        return raw, actual

    def put_manifest(self, repository: str, reference: str, raw: bytes, media_type: str = IMAGE_TYPE) -> HttpAnswer:
        """Store a manifest under a tag or its digest; the answer, without its body."""
        url = f"{self.endpoint}/v2/{repository}/manifests/{reference}"
        with self.answering(url, {"content-type": media_type}, raw, "PUT") as answer:
            return answer

    def blob(self, repository: str, blob: Blob, limit_bytes: int) -> bytes:
        """Return a small blob, whole.

        Raises:
            DigestMismatch: its bytes are others.
            RemoteUnreachable: it has more than `limit_bytes`.
        """
        what = f"{repository}: blob {blob.digest[:19]}…"
        if blob.size_bytes > limit_bytes:
            raise RemoteUnreachable(f"{what}: has {blob.size_bytes:,} bytes, expected at most {limit_bytes:,}")
        raw = self.get(blob_path(repository, blob.digest))
        if digest_of(raw) != blob.digest:
            raise DigestMismatch(what, expected=blob.digest, actual=digest_of(raw), hint="nothing was stored")
        return raw

    def has_blob(self, repository: str, digest: Digest) -> bool:
        """Return whether the repository has a blob."""
        answer = self.open(f"{self.endpoint}/{blob_path(repository, digest)}", method="HEAD")
        answer.close()
        return answer.status == HTTPStatus.OK

    def put_blob(self, repository: str, digest: Digest, size_bytes: int, body: Form) -> None:
        """Send a blob that the repository lacks, in one request; the registry checks its digest.

        Raises:
            RemoteUnreachable: the registry names no place to send it to, or an unencrypted one.
        """
        begin = f"{self.endpoint}/v2/{repository}/blobs/uploads/"
        with self.answering(begin, {"content-length": "0"}, b"", "POST") as answer:
            place = answer.headers.get("location", "")
        target = web_address(begin, place) if place else ""
        if not target or (begin.startswith("https:") and not target.startswith("https:")):
            raise RemoteUnreachable(f"{self.endpoint} names `{shown(place)}` to upload to. Nothing was sent there")
        headers = {"content-type": "application/octet-stream", "content-length": str(size_bytes)}
        url = f"{target}{'&' if '?' in target else '?'}{urlencode({'digest': digest})}"
        # another origin is a storage with a signed address: the token stays here
        send = self.open if origin_of(target) == origin_of(self.endpoint) else super().open
        answer = send(url, headers, body, "PUT")
        try:
            answer.raise_for_status()
        finally:
            answer.close()

    # ------------------------------------------------------------ lists
    def pages(self, path: str, accept: str = "application/json") -> Iterator[bytes]:
        """Each page of a list, at most `MOST_PAGES`; ends where there is no such list."""
        url = f"{self.endpoint}/{path}"
        for _ in range(MOST_PAGES):
            try:
                with self.answering(url, {"accept": accept}) as answer:
                    raw, link = self.whole(answer, path), answer.headers.get("link", "")
            except HfHubHTTPError as error:
                if is_missing(error):
                    return
                raise
            yield raw
            found = _NEXT.match(link)
            if found is None:
                return
            url = web_address(url, found[1])
            if not url or origin_of(url) != origin_of(self.endpoint):
                raise RemoteUnreachable(f"`{shown(path)}`: {self.endpoint} continues at `{shown(found[1])}`, elsewhere")
        raise RemoteUnreachable(f"`{shown(path)}`: {self.endpoint} sent more than {MOST_PAGES} pages")


def blob_path(repository: str, digest: Digest) -> str:
    """Return the URL path of a blob."""
    return f"v2/{repository}/blobs/{parse_digest(digest)}"


_LIMIT_BYTES: Final = 4 << 20
_HELPER: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HELPER_S: Final = 30
_DOCKER_HUB: Final = ("docker.io", "index.docker.io", "registry-1.docker.io")
_REFRESHES: Final = "<token>"
"""The user name under which a program keeps a token that gets others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A user with a password; or a token: `bearer` is sent unchanged, `refresh` gets others."""

    user: str = ""
    password: str = ""
    bearer: str = ""
    refresh: str = ""

    @property
    def basic(self) -> str:
        """The header `Authorization` of user and password; "" without them."""
        pair = f"{self.user}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}" if self.user else ""


def credentials_for(host: str, token: str | None, variables: Mapping[str, str]) -> Credentials:
    """Return the credentials for `host`, empty if there are none; `token` is `USER:PASSWORD`, or a bearer token.

    Raises:
        NotAllowed: a file or a program that should have them does not give them.
    """
    if token:
        user, colon, password = token.partition(":")
        return Credentials(user=user, password=password) if colon else Credentials(bearer=token)
    names = _DOCKER_HUB if host in _DOCKER_HUB else (host,)
    for path in _files_of_docker(variables):
        if not path.is_file():
            continue
        try:
            held = read_json(path, _LIMIT_BYTES)
            found = _in_file(held if isinstance(held, dict) else {}, names, variables)
        except (OSError, ValueError) as error:
            raise NotAllowed(
                f"`{path}` has no credentials for {host} that can be read: {shown(str(error), 160)}",
                hint="`docker login` writes the file, `adapt remote login` stores a token without it",
            ) from None
        if found is not None:
            return found
    return Credentials()


def _files_of_docker(variables: Mapping[str, str]) -> Iterator[Path]:
    if named := variables.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
    if folder := variables.get("DOCKER_CONFIG"):
        yield Path(folder) / "config.json"
    elif home := variables.get("HOME"):
        yield Path(home) / ".docker" / "config.json"
    if folder := variables.get("XDG_RUNTIME_DIR"):
        yield Path(folder) / "containers" / "auth.json"


def _in_file(held: Mapping[str, Any], names: tuple[str, ...], variables: Mapping[str, str]) -> Credentials | None:
    helpers, entries = held.get("credHelpers", {}), held.get("auths", {})
    for name in names:
        if isinstance(helpers, dict) and isinstance(helper := helpers.get(name), str):
            return _from_helper(helper, name, variables)
    for key, entry in entries.items() if isinstance(entries, dict) else ():
        if isinstance(entry, dict) and _host_of(key) in names and (entry.get("auth") or entry.get("identitytoken")):
            user, _, password = base64.b64decode(str(entry.get("auth") or ""), validate=True).decode().partition(":")
            return Credentials(user=user, password=password, refresh=str(entry.get("identitytoken") or ""))
    if isinstance(store := held.get("credsStore"), str) and store:
        return _from_helper(store, "https://index.docker.io/v1/" if "docker.io" in names else names[0], variables)
    return None


def _host_of(key: str) -> str:
    return key.partition("://")[2].partition("/")[0] if "://" in key else key


def _from_helper(helper: str, key: str, variables: Mapping[str, str]) -> Credentials | None:
    """Return the output of `docker-credential-HELPER get` for `key`; None if it has nothing."""
    if not _HELPER.fullmatch(helper):
        raise ValueError(f"`{shown(helper)}` is not the name of a program")
    try:
        done = subprocess.run(  # noqa: S603 - the user's own file names it, as for Docker
            [f"docker-credential-{helper}", "get"],
            input=key.encode(),
            capture_output=True,
            check=False,
            timeout=_HELPER_S,
            env=dict(variables),
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"`docker-credential-{helper}` does not answer") from None
    if done.returncode:
        return None  # as Docker takes it: there are none
    told = strict_json(done.stdout)
    if not isinstance(told, dict):
        raise ValueError(f"`docker-credential-{helper}` printed no object")
    user, secret = str(told.get("Username", "")), str(told.get("Secret", ""))
    return Credentials(refresh=secret) if user == _REFRESHES else Credentials(user=user, password=secret)
