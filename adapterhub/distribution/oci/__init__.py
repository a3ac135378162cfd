"""A client for registries of container images, which keep adapters beside the images (OCI distribution spec v1.1).

`oci://HOST/PREFIX` has the adapter `acme/legal-qa` in the repository `PREFIX/acme/legal-qa`, and for one base perhaps
in `PREFIX/acme/legal-qa-<base>`. Every tag is a build. Of an image without `adapterhub.json`, as `oras push` makes it,
the files are read as those of a plain folder. All that counts is read at fixed digests, and hashed.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

from adapterhub.core.digests import Digest, strict_json
from adapterhub.core.errors import (
    AdapterHubError,
    DigestMismatch,
    Malformed,
    NotAllowed,
    RemoteUnreachable,
    SpecError,
    UsageProblem,
    no_adapter,
    shown,
)
from adapterhub.core.hosts import is_loopback
from adapterhub.core.specs import AdapterSpec, parse_version
from adapterhub.distribution.http.stream import Contents, ListedFile, RemoteFile, described, read_contents
from adapterhub.distribution.oci._image import (
    MANIFEST_LIMIT_BYTES,
    RESULT,
    SIGNATURE,
    STATEMENT,
    Image,
    OciWire,
    Referrers,
    blob_path,
    credentials_for,
    parse_image,
)
from adapterhub.distribution.oci._mount import without_mounts
from adapterhub.distribution.oci._push import OciRepository, manifest_in, parse_tag, spells, tag_of
from adapterhub.formats.manifest import CONFIG_FILE, MANIFEST_FILE, FileEntry
from adapterhub.formats.release import Provenance, Release
from adapterhub.library.remotes import is_oci_path

if TYPE_CHECKING:
    from adapterhub.distribution.hub import Search, SearchHit

__all__ = ["OciImage", "OciNamespace", "OciRegistry", "OciRepository"]

AT_ONCE: Final = 8
MOST_TAGS: Final = 1000
"""How many tags of a repository are looked at; a version in the spec leaves out the others."""
_DOCKER_HUB: Final = "registry-1.docker.io"
_REFERRERS_TAG: Final = re.compile(r"sha256-[0-9a-f]{64}(\..*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """An image of a repository, under a tag or only by its digest."""

    repository: str
    tag: str
    image: Image


class OciRegistry:
    """One registry, or the part of it below a prefix. Cheap to create; sends no request before the first use."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        label: str = "",
        silence_s: float | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`address` is normal, as `parse_oci_url` writes it. Only loopback is reached unencrypted."""
        self.place = address
        self.label = label or f"registry `{address}`"
        self.host, _, self._prefix = address.removeprefix("oci://").partition("/")
        self._token, self._silence_s, self._variables = token, silence_s, variables or {}
        self._opened: OciWire | None = None
        self._places: dict[Digest, _Place] = {}
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # our errors say the same

    @property
    def _wire(self) -> OciWire:
        if self._opened is None:
            host = _DOCKER_HUB if self.host in ("docker.io", "index.docker.io") else self.host
            scheme = "http" if is_loopback(urlsplit(f"http://{host}").hostname) else "https"
            credentials = credentials_for(self.host, self._token, self._variables)
            self._opened = OciWire(f"{scheme}://{host}", credentials, silence_s=self._silence_s)
        return self._opened

    # ------------------------------------------------------------ source
    def within(self, namespace: str) -> OciNamespace:
        """Return this registry as a source of bare names, which it looks up in `namespace`."""
        return OciNamespace(self, namespace)

    def at(self, repository: str, image: str) -> OciImage:
        """Return this registry as a source of one build."""
        return OciImage(self, repository, image)

    def releases(self, spec: AdapterSpec) -> list[Release]:
        """Return the builds of `org/name`, one for each tag.

        Raises:
            NotAllowed: the registry shows none of the repositories without a token, or with this one.
        """
        if spec.namespace is None:
            return []
        found: dict[Digest, Release] = {}
        refusal: NotAllowed | None = None
        for repository in self._repositories(spec):
            try:
                for release in self._in_repository(repository, spec):
                    found.setdefault(release.digest, release)
            except NotAllowed as error:  # many registries refuse to say that a repository does not exist
                refusal = refusal or error
        if refusal is not None and not found:
            raise refusal
        return list(found.values())

    def _repositories(self, spec: AdapterSpec) -> list[str]:
        names = [spec.full_name]
        if spec.base is not None and spec.base.kind == "alias":
            names.append(f"{spec.full_name}-{spec.base.text}")
        paths = map(self._path_of, names)
        return [path for path in dict.fromkeys(paths) if is_oci_path(path)]

    def _path_of(self, name: str) -> str:
        return f"{self._prefix}/{name}".lower().strip("/")

    def _in_repository(self, repository: str, spec: AdapterSpec) -> Iterator[Release]:
        with self._wire.plainly(f"`{repository}`"):
            tags = self._wanted_tags(repository, spec)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            images = [one for one in pool.map(lambda tag: self._image(repository, tag), tags) if one is not None]
            unique = list({one.image.digest: one for one in images}.values())
            yield from filter(None, pool.map(lambda one: self._release(one, spec), unique))

    def tags(self, repository: str) -> list[str]:
        """Return the tags of a repository that may be builds; none if there is no such repository.

        Raises:
            RemoteUnreachable: there are more than `MOST_TAGS`, or the registry sends no list.
        """
        found: list[str] = []
        for raw in self._wire.pages(f"v2/{repository}/tags/list?n={MOST_TAGS}"):
            try:
                told = strict_json(raw, limit_bytes=MANIFEST_LIMIT_BYTES)["tags"] or []
                found += [parse_tag(tag) for tag in told]
            except (ValueError, KeyError, TypeError, UsageProblem) as error:
                reason = shown(str(error), 160)
                raise RemoteUnreachable(f"`{repository}`: {self.place} sent no valid list of tags: {reason}") from None
            if len(found) > 3 * MOST_TAGS:  # each may have one for its signatures and one for its image to mount
                raise RemoteUnreachable(f"`{repository}` on {self.place} has more than {3 * MOST_TAGS} tags")
        return without_mounts([tag for tag in dict.fromkeys(found) if not _REFERRERS_TAG.fullmatch(tag)])

    def _wanted_tags(self, repository: str, spec: AdapterSpec) -> list[str]:
        tags = self.tags(repository)
        if spec.pinned_version is not None:
            tag = tag_of(spec.pinned_version)
            if exact := [
                one for one in tags if one == tag or one.startswith(f"{tag}-") or spells(one, spec.pinned_version)
            ]:
                return exact
        if len(tags) > MOST_TAGS:
            raise RemoteUnreachable(
                f"`{repository}` on {self.place} has {len(tags)} tags, expected at most {MOST_TAGS}",
                hint=f"name one version, as in `{spec.full_name}==1.0.0`",
            )
        return tags

    def _image(self, repository: str, reference: str) -> _Place | None:
        """Return the adapter under a tag or digest; None if there is none."""
        where = f"{repository}:{reference}"
        with self._wire.plainly(f"`{where}`"):
            found = self._wire.manifest(repository, reference)
        image = parse_image(*found, where) if found is not None else None
        if image is None or CONFIG_FILE not in image.files:
            return None
        return _Place(repository=repository, tag=reference, image=image)

    def _release(self, place: _Place, spec: AdapterSpec) -> Release | None:
        files, repository = place.image.files, place.repository
        origin = f"{self.host}/{repository}:{place.tag}"
        if MANIFEST_FILE in files:
            with self._wire.plainly(f"`{origin}`"):
                manifest = manifest_in(self._wire, repository, files[MANIFEST_FILE])
            self._check(manifest.files, place, origin)
            release = Release(manifest=manifest, namespace=spec.namespace, origin=origin)
        else:
            listed = {
                blob_path(repository, one.digest): ListedFile(path=name, size_bytes=one.size_bytes, sha256=one.digest)
                for name, one in files.items()
            }
            version = _version_in(place.tag) or f"0+{place.image.digest[7:19]}"
            release = described(self._wire, listed, spec, origin=origin, version=version)
        if release.manifest.name != spec.name and not repository.endswith(spec.full_name.lower()):
            return None
        self._places[release.digest] = place
        own = repository == self._path_of(spec.full_name)
        named = spec.full_name if own else repository[len(self._prefix) :].strip("/")
        return replace(release, published_at=place.image.created_at, repository=named, claimed_at=self.place)

    @staticmethod
    def _check(entries: tuple[FileEntry, ...], place: _Place, origin: str) -> None:
        """Raise unless the layers of an image are the files that its manifest of the build lists."""
        for entry in entries:
            held = place.image.files.get(entry.path)
            if held is None:
                raise Malformed(
                    f"`{origin}` lacks the file `{shown(entry.path)}` of its build. Nothing was stored",
                    hint="push the build again, or take another version",
                )
            if (held.digest, held.size_bytes) != (entry.sha256, entry.size_bytes):
                raise DigestMismatch(
                    f"{origin}: {entry.path}", expected=entry.sha256, actual=held.digest, hint="nothing was stored"
                )

    def release_at(self, repository: str, image: str, spec: AdapterSpec) -> Release | None:
        """Return the build of one image, if it has the name in `spec`.

        Raises:
            AdapterNotFound: the repository has no such image.
        """
        place = self._image(repository, image)
        if place is None:
            raise no_adapter(f"{repository}@{image}", self.place, hint="it may be another image; compare the digest")
        if spec.pinned_version is not None:
            place = replace(place, tag=spec.pinned_version)
        return self._release(place, spec)

    def place_of(self, release: Release) -> tuple[str, str]:
        """Return the repository of a build from `releases`, and the digest of its image."""
        place = self._places[release.digest]
        return place.repository, place.image.digest

    def open(self, release: Release, entry: FileEntry) -> IO[bytes]:
        """One file of a build from `releases`, streamed from the registry."""
        repository = self._places[release.digest].repository
        what = f"`{entry.path}` of `{repository}`"
        path = blob_path(repository, entry.sha256)
        return cast("IO[bytes]", RemoteFile(self._wire, path, size_bytes=entry.size_bytes, what=what))

    def provenance(self, release: Release) -> Provenance:
        """Return the latest signature of a build from `releases`."""
        return Provenance(signature=next(iter(self._beside(release).of_kind(SIGNATURE)), None))

    keeps_results: Final = True
    """Every registry keeps signed results of tests."""

    def results(self, release: Release) -> list[bytes]:
        """Return the signed results on a build, unverified; none if the registry fails, as no build needs them."""
        with contextlib.suppress(AdapterHubError):
            return self._beside(release).of_kind(RESULT)
        return []

    def statements(self, release: Release) -> list[bytes]:
        """Return the signed statements about how a build was made, unverified; as `results`."""
        with contextlib.suppress(AdapterHubError):
            return self._beside(release).of_kind(STATEMENT)
        return []

    def _beside(self, release: Release) -> Referrers:
        place = self._places[release.digest]
        return Referrers(self._wire, place.repository, place.image.digest)

    @property
    def received_bytes(self) -> int:
        """Bytes received from the registry so far."""
        return self._wire.received_bytes

    def contents(self, release: Release) -> Contents:
        """Config and tensors of a build, by range requests: no weights are read.

        Raises:
            DigestMismatch: the config differs from the manifest.
        """
        repository, image = self.place_of(release)
        return read_contents(self._wire, release, repository, image, lambda entry: blob_path(repository, entry.sha256))

    def search(self, search: Search) -> list[SearchHit]:
        """Return the adapters whose repositories and annotations match `search`; not checked.

        Raises:
            UsageProblem: the registry lists no repositories, and the text names none in full.
        """
        from adapterhub.distribution.oci._search import hits_in, repositories_for

        def images_of(repository: str) -> Iterator[Image]:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                found = pool.map(lambda tag: self._image(repository, tag), self.tags(repository)[:MOST_TAGS])
                yield from {one.image.digest: one.image for one in found if one is not None}.values()

        return hits_in(repositories_for(self._wire, self._prefix, search.text), images_of, search)

    # ------------------------------------------------------------ destination
    def to(self, repository: str) -> OciRepository:
        """One repository as a destination: `acme/legal-qa`, or `acme/legal-qa:TAG`; without a tag, the version is it.

        Raises:
            UsageProblem: it is not the name of a repository, or not a tag.
        """
        name, colon, tag = repository.partition(":")
        path = f"{self._prefix}/{name}".strip("/")
        if not is_oci_path(path):
            raise UsageProblem(
                f"`{shown(name)}` is not a repository of an OCI registry: expected lower-case words with `._-` "
                "between, separated by `/`"
            )
        return OciRepository(self._wire, self.host, path, parse_tag(tag) if colon else None, self.tags)

    def who(self) -> str:
        """Return whether the registry answers, and as whom.

        Raises:
            NotAllowed: it refuses the token.
        """
        with self._wire.plainly("connection"):
            self._wire.get("v2/")
        return "reachable, signed in" if self._wire.is_signed_in else "reachable, no token"


def _version_in(tag: str) -> str | None:
    with contextlib.suppress(SpecError):
        return parse_version(tag)
    return None


class _ManifestPart:
    """What every part of a registry does as the registry does; see `transfer.Source`."""

    registry: OciRegistry
    keeps_results: Final = True

    @property
    def place(self) -> str:
        """The address of its registry, by which it can be found again."""
        return self.registry.place

    def open(self, release: Release, entry: FileEntry) -> IO[bytes]:
        """See `transfer.Source`."""
        return self.registry.open(release, entry)

    def provenance(self, release: Release) -> Provenance:
        """See `transfer.Source`."""
        return self.registry.provenance(release)

    def results(self, release: Release) -> list[bytes]:
        """Return the signed results on a build, unverified."""
        return self.registry.results(release)

    def statements(self, release: Release) -> list[bytes]:
        """Return the signed statements about how a build was made, unverified."""
        return self.registry.statements(release)


class OciNamespace(_ManifestPart):
    """One namespace of a registry as a source: it looks up bare names in that namespace only."""

    def __init__(self, registry: OciRegistry, namespace: str) -> None:
        self.registry, self._namespace = registry, namespace

    @property
    def label(self) -> str:
        """The place in words."""
        return f"`{self._namespace}` of {self.registry.label}"

    def releases(self, spec: AdapterSpec) -> list[Release]:
        """See `transfer.Source`."""
        if spec.namespace not in (None, self._namespace):
            return []
        return self.registry.releases(replace(spec, namespace=self._namespace))


class OciImage(_ManifestPart):
    """One image of a registry as a source; see `transfer.Source`."""

    def __init__(self, registry: OciRegistry, repository: str, image: str) -> None:
        self.registry, self.repository, self.image = registry, repository, image

    @property
    def label(self) -> str:
        """The place in words."""
        return f"`{self.repository}` at {self.image[7:19]} of {self.registry.label}"

    def releases(self, spec: AdapterSpec) -> list[Release]:
        """Return the one build, when it has the name in `spec`."""
        release = self.registry.release_at(self.repository, self.image, spec)
        return [] if release is None else [release]
