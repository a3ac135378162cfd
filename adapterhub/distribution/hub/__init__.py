"""A client for the Hugging Face Hub, our registry, and any server of the same protocol.

A build is one model repository; a version is a tag `v<version>` on a commit. All reads are at fixed commits, and every
byte is hashed on arrival, because the Hub's own client compares sizes only. Only the store keeps content between runs,
by digest, so two servers may use the same repository name.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, cast

from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from adapterhub.core.digests import Digest, strict_json
from adapterhub.core.errors import (
    AdapterHubError,
    AdapterNotFound,
    DigestMismatch,
    NotAllowed,
    RemoteUnreachable,
    shown,
)
from adapterhub.core.specs import COUNTED, COUNTER, AdapterSpec
from adapterhub.distribution.http.stream import Contents, RemoteFile, read_contents
from adapterhub.distribution.http.wire import Wire, bound_client, bounded_client, file_path, is_missing
from adapterhub.distribution.hub._log import FEATURE as LOG
from adapterhub.distribution.hub._log import RegistryLog
from adapterhub.distribution.hub._push import HubRepository, signature_at, version_tag
from adapterhub.distribution.hub._search import FEATURE as RESULTS
from adapterhub.distribution.hub._search import (
    PAGE,
    AlikeThere,
    RegistryResults,
    Search,
    SearchHit,
    alike_on,
    search_registry,
    search_tags,
)
from adapterhub.distribution.hub._versions import (
    PAGES,
    Kinds,
    Published,
    PublishedVersion,
    dates_of,
    look_ahead,
    newest_last,
    newest_on,
    places_in,
    plain_release,
    published_in,
    refs_of,
    repositories_of,
    repositories_tagged,
    some_on,
    versions_path,
    yanked_on_registry,
)
from adapterhub.distribution.hub._withdrawal import (
    FEATURE,
    LONGEST_WAIT_S,
    Event,
    EventPage,
    RegistryAliases,
    Withdrawal,
    events_since,
)
from adapterhub.formats.alias import Alias
from adapterhub.formats.manifest import MANIFEST_FILE, WEIGHTS_FILE, FileEntry, Manifest
from adapterhub.formats.release import Provenance, Release
from adapterhub.formats.treelog import LogKey, LogSigner
from adapterhub.library.heads import Heads, Logged
from adapterhub.library.remotes import HUB_URL

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = [
    "PAGE",
    "AlikeThere",
    "Contents",
    "Event",
    "EventPage",
    "Hub",
    "HubCommit",
    "HubNamespace",
    "HubRepository",
    "Published",
    "PublishedVersion",
    "Search",
    "SearchHit",
    "Withdrawal",
    "bound_client",
    "version_tag",
]

BASE_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer*", "vocab*", "merges.txt"]
HURRY_S = 3.0
"""How long a hurried server may be silent."""
AT_ONCE = 8
"""How many manifests of one repository are requested at the same time."""


class Hub:
    """One server and its token. Cheap to create; sends no request before the first use."""

    def __init__(
        self,
        *,
        endpoint: str,
        token: str | None,
        version: str = "",
        label: str = "",
        silence_s: float | None = None,
        witness: LogKey | None = None,
    ) -> None:
        """`silence_s`: how long to wait for the server's next byte [default: 30 s].

        `witness`: who must have co-signed the head of the log that proves a release.
        """
        self.endpoint = endpoint.rstrip("/")
        self.label = label or f"hub `{self.endpoint}`"
        self._token, self._version = token or None, version or None
        self._witness = witness
        self._wire = Wire(self.endpoint, self._token, version=self._version, silence_s=silence_s)
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # our errors say the same
        self._places: dict[tuple[Digest, str], PublishedVersion] = {}
        self._features: frozenset[str] | None = None
        self._log_key: str | None = None
        self._feed: Wire | None = None

    @cached_property
    def _api(self) -> HfApi:
        """The Hub's client, made only when needed: its import costs as much as half of an install."""
        from huggingface_hub import HfApi

        # token=False: never fall back on an environment token that is for another server
        return HfApi(
            endpoint=self.endpoint, token=self._token or False, library_name="adapterhub", library_version=self._version
        )

    @property
    def place(self) -> str:
        """The address of the server, by which it can be found again."""
        return self.endpoint

    @property
    def received_bytes(self) -> int:
        """Bytes of files received from the server so far."""
        return self._wire.received_bytes

    @property
    def is_public_hub(self) -> bool:
        """Whether this is huggingface.co, which takes uploads by Xet."""
        return self.endpoint == HUB_URL

    @property
    def features(self) -> frozenset[str]:
        """The features of the server's `/api/adapt/v1`, kept after the first answer; empty if it has none."""
        if self._features is None:  # without a lock: a server that hangs would hold up all threads, one by one
            self._features = frozenset() if self.is_public_hub else self._requested_features()
        return self._features

    def _requested_features(self) -> frozenset[str]:
        with self._wire.plainly("connection"):
            try:
                told = strict_json(self._wire.get("api/adapt/v1/info"))
            except (HfHubHTTPError, ValueError) as error:
                if isinstance(error, HfHubHTTPError) and not is_missing(error):
                    raise
                return frozenset()
        features = told.get("features") if isinstance(told, dict) else None
        key = told.get("log_key") if isinstance(told, dict) else None
        self._log_key = key if isinstance(key, str) and isinstance(features, list) and LOG in features else None
        return frozenset(f for f in features if isinstance(f, str)) if isinstance(features, list) else frozenset()

    # ------------------------------------------------------------ source
    def look_ahead(self, specs: Sequence[AdapterSpec]) -> None:
        """Learn in one request, where the server knows it, what choosing each of these asks, and taking its newest."""
        look_ahead(self._wire, specs, lambda: self.features)

    def within(self, namespace: str) -> HubNamespace:
        """Return this server as a source of bare names, which it looks up in `namespace`."""
        return HubNamespace(self, namespace)

    def at(self, repo: str, commit: str) -> HubCommit:
        """Return this server as a source of one build: that of a repository at one commit."""
        return HubCommit(self, repo, commit)

    def releases(self, spec: AdapterSpec) -> list[Release]:
        """Return builds of `org/name`: there, in `org/name-<base>`, and in repositories tagged with the name.

        In the repository `org/name`, builds of any name count, so that users can name either. A bare name is never
        looked up on a whole hub: a stranger could own it.

        Raises:
            AdapterNotFound: the only build was uploaded, but its version was never tagged.
        """
        return self._releases(spec, self._places_for)

    def newest(self, spec: AdapterSpec) -> tuple[list[Release], bool, bool]:
        """As `releases`, of the newest versions of each repository only; whether these stand for all, and are all.

        They stand for all where no other version is for another base. A server that lists no pages has none.
        """
        if PAGES not in self.features or spec.is_exact:
            return [], False, False
        stand = are_all = True

        def places(repo: str, _spec: AdapterSpec) -> list[PublishedVersion]:
            nonlocal stand, are_all
            if self._wire.ahead.knows(versions_path(repo)):
                return self._places_in(repo)
            found = newest_on(self._wire, repo, below=spec.below)
            stand = stand and (found.is_all or found.is_alike)
            are_all = are_all and spec.below is None and (found.is_all or not found.places)
            return found.places or self._places_in(repo)

        return self._releases(spec, places), stand, are_all

    def _releases(
        self, spec: AdapterSpec, places: Callable[[str, AdapterSpec], list[PublishedVersion]]
    ) -> list[Release]:
        if spec.namespace is None:
            return []
        found: dict[tuple[Digest, str], Release] = {}  # a copy has a signature and a yank of its own
        seen: set[str] = set()
        unfinished: list[str] = []
        for repo, of in repositories_of(self._wire, spec, keeps_names=not self._claimed_at):
            if repo in seen:
                continue
            seen.add(repo)
            for release in self._of_repository(places(repo, spec), spec, of, unfinished):
                found.setdefault((release.digest, repo), release)
        if unfinished and not found:
            raise AdapterNotFound(
                f"`{unfinished[0]}` on {self.endpoint} has an adapter but no version tag: its push was interrupted, or "
                "the version was deleted",
                hint="run `adapt push` again to finish or restore it",
            )
        return list(found.values())

    def _of_repository(
        self, places: list[PublishedVersion], spec: AdapterSpec, of: Kinds, unfinished: list[str]
    ) -> Iterator[Release]:
        has: dict[str, bool] = {}
        for place, manifest in self._with_manifests(places):
            repo = place.repo
            if manifest is not None and place.version is None:
                # Our push tags last: without a tag, the build is not published.
                unfinished.append(repo)
                continue
            if of != "any" and (of == "plain") != (manifest is None):
                continue
            release = self._release(place, manifest, spec)
            if release is not None:
                self._places.setdefault((release.digest, repo), place)
                name = release.manifest.name
                if name not in has:
                    has[name] = name == spec.name or self._may_release(repo, name)
                yield replace(release, lost_name=not has[name])

    def _may_release(self, repo: str, name: str) -> bool:
        """Return whether a repository may release an adapter of that name, as far as the server keeps names."""
        namespace, _, own = repo.partition("/")
        if own == name or self._claimed_at:
            return True
        with self._wire.plainly(f"list adapters of `{namespace}`"):
            return repo in repositories_tagged(self._wire, namespace, f"adapter-name:{name}")

    def _places_for(self, repo: str, spec: AdapterSpec) -> list[PublishedVersion]:
        """Those of `_places_in` that a spec means; where it names none exactly, or one that is not there, all."""
        if PAGES in self.features and not self._wire.ahead.knows(versions_path(repo)):
            found = some_on(self._wire, repo, spec)
            if found:
                return found
        return self._places_in(repo)

    def _places_in(self, repo: str) -> list[PublishedVersion]:
        return places_in(self._wire, repo, self.features)

    def _with_manifests(self, places: list[PublishedVersion]) -> Iterable[tuple[PublishedVersion, Manifest | None]]:
        """Each place with its date, if known, and its manifest."""
        undated = sorted((p for p in places if p.released_at is None), key=newest_last, reverse=True)
        if len(places) + len(undated) <= 1:  # one request needs no threads
            return [(place, self._manifest(place)) for place in places]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            asked = pool.submit(dates_of, self._wire, places[0].repo, [place.commit for place in undated])
            manifests = list(pool.map(self._manifest, places))
            dates = asked.result()
        dated = [
            replace(place, released_at=dates.get(place.commit)) if place.released_at is None else place
            for place in places
        ]
        return list(zip(dated, manifests, strict=True))

    def _manifest(self, place: PublishedVersion) -> Manifest | None:
        """Return the manifest at one commit; None if there is none."""
        origin = _origin(place)
        with self._wire.plainly(f"`{MANIFEST_FILE}` of `{origin}`"):
            try:
                raw = self._wire.get(file_path(place.repo, place.commit, MANIFEST_FILE))
            except EntryNotFoundError:
                return None
        manifest = Manifest.parse(raw, f"{origin}: {MANIFEST_FILE}")
        if place.digest is not None and place.digest != manifest.digest:
            raise DigestMismatch(
                f"{origin}: {MANIFEST_FILE}", expected=place.digest, actual=manifest.digest, hint="nothing was stored"
            )
        return manifest

    def _release(self, place: PublishedVersion, manifest: Manifest | None, spec: AdapterSpec) -> Release | None:
        if manifest is not None:
            release = Release(
                manifest=manifest,
                namespace=spec.namespace,
                origin=_origin(place),
                yanked=place.yanked,
                published_at=place.released_at,
                repository=place.repo,
                claimed_at=self._claimed_at,
            )
            return release if manifest.name == spec.name or place.repo == spec.full_name else None
        plain = plain_release(self._wire, place.repo, place.commit, spec, version=place.version)
        if plain is None:
            return None
        dated = replace(plain, yanked=place.yanked, published_at=place.released_at)
        return replace(dated, repository=place.repo, claimed_at=self._claimed_at)

    @property
    def _claimed_at(self) -> str:
        """This server, unless it keeps the names of adapters itself."""
        return "" if "names" in self.features else self.endpoint

    def release_at(self, repo: str, commit: str, spec: AdapterSpec) -> Release | None:
        """Return the build at one commit, if it has the name in `spec`.

        `spec` also gives the version if its files do not.

        `yanked` is the present state on the server.

        Raises:
            AdapterNotFound: the repository or the commit no longer exists.
        """
        told = next((place for place in self._places_for(repo, spec) if place.commit == commit), None)
        place = replace(told or PublishedVersion(repo=repo, commit=commit, version=None), version=spec.pinned_version)
        release = self._release(place, self._manifest(place), spec)
        if release is not None:
            self._places[release.digest, repo] = place
        return release

    def published(self, namespace: str) -> list[Published]:
        """Every tagged version in a namespace.

        Our registry lists a thousand with one request. Elsewhere it takes one request for each PEFT repository.
        """
        with self._wire.plainly(f"list releases of `{namespace}`"):
            return published_in(self._wire, namespace, is_registry=not self.is_public_hub)

    def open(self, release: Release, entry: FileEntry) -> IO[bytes]:
        """One file of a build from `releases`, streamed from the server."""
        place = self._place_of(release)
        path = file_path(place.repo, place.commit, entry.path)
        if (told := self._wire.ahead.told(path)) is not None:
            return io.BytesIO(told)
        what = f"`{entry.path}` of `{place.repo}`"
        counted = {COUNTER: COUNTED} if entry.path == WEIGHTS_FILE and not self.is_public_hub else None
        return cast("IO[bytes]", RemoteFile(self._wire, path, size_bytes=entry.size_bytes, what=what, first=counted))

    def provenance(self, release: Release) -> Provenance:
        """Return the signature at the commit of a build; other files of the repository are ignored."""
        place = self._place_of(release)
        return Provenance(signature=self.signature_at(place.repo, place.commit))

    def check_logged(self, release: Release, heads: Heads) -> Logged | None:
        """Return the place of a build in the log of the server; see `RegistryLog.check`."""
        return self._log.check(self._place_of(release), release, heads)

    @cached_property
    def _log(self) -> RegistryLog:
        key = self._log_key if self.features else None
        return RegistryLog(self._wire, key, is_anonymous=self._token is None, witness=self._witness)

    def cosign(self, signer: LogSigner, repos: Iterable[str], heads: Heads) -> list[str]:
        """Co-sign, as a witness, the logs that `repos` are in; see `RegistryLog.cosign`."""
        return self._log.cosign(signer, repos, heads)

    def signature_at(self, repo: str, commit: str) -> bytes | None:
        """Return the signature in a repository at one commit; None if there is none, errors as of `provenance`."""
        return signature_at(self._wire, repo, commit)

    def digest_at(self, repo: str, commit: str) -> Digest | None:
        """Return the digest of the build in a repository at one commit; None if it has no manifest."""
        manifest = self._manifest(PublishedVersion(repo=repo, commit=commit, version=None))
        return manifest.digest if manifest is not None else None

    @property
    def tests(self) -> RegistryResults:
        """The signed results of tests on this server."""
        return RegistryResults(self._wire, lambda: RESULTS in self.features)

    @property
    def keeps_results(self) -> bool:
        """Whether this server keeps signed results of tests."""
        return self.tests.is_offered

    def results(self, release: Release) -> list[bytes]:
        """Return the signed results on a build, unverified.

        None if the server does not answer, as no build needs them.
        """
        place = self._place_of(release)
        if place.version is None:  # results are of versions
            return []
        with contextlib.suppress(AdapterHubError):
            return self.tests.on(place.repo, release.manifest.version)
        return []

    # ------------------------------------------------------------ withdrawn
    def versions(self, repo: str) -> list[PublishedVersion]:
        """Return the versions of a repository, yanked ones included, the newest first; none if it has none.

        Raises:
            AdapterNotFound: there is no such repository, or it is private.
        """
        places = self._places_in(repo)
        if not places:
            with self._wire.plainly(f"`{repo}`"):
                refs_of(self._wire, repo)
        return sorted((place for place in places if place.version is not None), key=newest_last, reverse=True)

    def yanked(
        self, builds: Mapping[Digest, AdapterSpec], came_from: Mapping[Digest, str] = MappingProxyType({})
    ) -> dict[Digest, str]:
        """Return the reason of each build that this server has yanked, by its digest.

        `builds` gives the name and version.

        Only the repository that a build came from has a say in it. Where `came_from` lacks it, each that may supply
        the name has. Our registry answers for 50 builds in one request; on other servers, each name takes a few.
        """
        found: dict[Digest, str] = {}
        asked = builds
        if "yanked" in self.features:
            told = list(yanked_on_registry(self._wire, builds))
            found = {digest: reason for digest, repo, reason in told if came_from.get(digest) == repo}
            # its repository has another name now, or is not known, or a stranger holds the same bytes
            asked = {digest: builds[digest] for digest, *_ in told if digest not in found}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            reasons = pool.map(lambda digest: self._reason_of(digest, asked[digest], came_from.get(digest)), asked)
            found |= {digest: reason for digest, reason in zip(asked, reasons, strict=True) if reason is not None}
        return found

    def _reason_of(self, digest: Digest, spec: AdapterSpec, repository: str | None) -> str | None:
        """Return why a build of this version is yanked in its repository, or in one of those that may have it."""
        named = () if repository else repositories_of(self._wire, spec, keeps_names=not self._claimed_at)
        for repo in dict(named) or [repository or spec.full_name]:
            for place in self._places_for(repo, spec):
                if place.yanked is None or place.version is None or not spec.matches(place.version):
                    continue
                manifest = self._manifest(place)
                if manifest is not None and manifest.digest == digest:
                    return place.yanked
        return None

    @property
    def withdrawal(self) -> Withdrawal:
        """Yanks and deletes on this server."""
        return Withdrawal(self._api, self._wire, self.features)

    @property
    def aliases(self) -> RegistryAliases:
        """The aliases of this server."""
        return RegistryAliases(self._wire, is_offered=FEATURE in self.features)

    def alias(self, spec: AdapterSpec) -> Alias | None:
        """Return the alias that the `@word` of a spec is here; see `moving.HasAliases`."""
        found = self.aliases.find(spec)
        if found is None:
            return None
        adapter = found.alias.adapter
        if adapter != spec.full_name and not self._may_release(found.repo, adapter.partition("/")[2]):
            raise NotAllowed(
                f"`{spec}`: `{found.repo}` may not release `{adapter}` on {self.endpoint} any more",
                hint=f"`adapt install {adapter}` takes it from where it is now; a digest names the old build",
            )
        return found.alias

    def hurried(self) -> Hub:
        """Return the same server with a timeout of a few silent seconds, for requests that can be skipped."""
        silence_s = min(HURRY_S, self._wire.silence_s)
        return Hub(
            endpoint=self.endpoint,
            token=self._token,
            label=self.label,
            silence_s=silence_s,
            witness=self._witness,
        )

    def events(self, since: int | None, wait_s: int = 0) -> EventPage:
        """Return the changes after number `since`, at the latest after `wait_s` seconds; with None, the first number.

        Only a server with the feature `events` has this.
        """
        if self._feed is None:
            silence_s = self._wire.silence_s + LONGEST_WAIT_S
            client = bounded_client(silence_s)
            self._feed = Wire(self.endpoint, self._token, version=None, silence_s=silence_s, client=client)
        return events_since(self._feed, since, wait_s)

    # ------------------------------------------------------------ other
    def _place_of(self, release: Release) -> PublishedVersion:
        return self._places[release.digest, release.repository]

    def repository_of(self, release: Release) -> tuple[str, str]:
        """Repository and commit of a build from `releases`."""
        place = self._place_of(release)
        return place.repo, place.commit

    def contents(self, release: Release) -> Contents:
        """Config and tensors of a build, by range requests: no weights are read.

        Raises:
            DigestMismatch: the config differs from the manifest.
        """
        repo, commit = self.repository_of(release)
        return read_contents(self._wire, release, repo, commit, lambda entry: file_path(repo, commit, entry.path))

    def search(self, search: Search) -> list[SearchHit]:
        """Adapters on this server that match `search`, the newest first."""
        with self._wire.plainly("search"):
            if "adapters" in self.features:
                return search_registry(self._wire, search, filters="filters" in self.features)
            return search_tags(self._wire, search)

    def similar(self, spec: AdapterSpec, above: float) -> AlikeThere:
        """Return the builds on this server whose update is like that of a release; errors as of `alike_on`."""
        return alike_on(self._wire, spec, above, self.features, self.versions)

    def who(self) -> str:
        """Return the user of the token; without a token, whether the server is reachable."""
        with self._wire.plainly("connection"):
            if self._token is not None:
                return f"signed in as {self._name()}"
            # not through the Hub's client, which would try five times over 23 s
            self._wire.get("api/models", {"limit": 1})
            return "reachable, no token"

    def _name(self) -> str:
        told = self._wire.json("api/whoami-v2")
        name = told.get("name") if isinstance(told, dict) else None
        if not isinstance(name, str):
            raise RemoteUnreachable(f"{self.endpoint} did not name the user of the token")
        return shown(name)

    def fetch_base(self, repo: str, *, revision: str | None = None, offline: bool = False) -> Path:
        """Folder of a base model with safetensors weights, config and tokenizer.

        Uses the user's Hugging Face cache, so that transformers finds the same files.
        """
        with self._wire.plainly(f"base `{repo}`"):
            return Path(
                self._api.snapshot_download(
                    repo, revision=revision, allow_patterns=BASE_FILES, local_files_only=offline
                )
            )

    def to(self, repo: str, *, private: bool = False, mends: bool = False) -> HubRepository:
        """One repository as a destination; `private` applies only if it is created. For `mends`, see there."""
        return HubRepository(
            self._api,
            self._wire,
            repo,
            private=private,
            by_xet=self.is_public_hub,
            mends=mends,
            features=lambda: self.features,
            tests=self.tests,
        )


def _origin(place: PublishedVersion) -> str:
    return f"{place.repo} at {place.commit[:12]}"


class _PartOfHub:
    """What every part of a server does as the server does; see `transfer.Source`."""

    hub: Hub

    @property
    def place(self) -> str:
        """The address of its server, by which it can be found again."""
        return self.hub.endpoint

    def open(self, release: Release, entry: FileEntry) -> IO[bytes]:
        """See `transfer.Source`."""
        return self.hub.open(release, entry)

    def provenance(self, release: Release) -> Provenance:
        """See `transfer.Source`."""
        return self.hub.provenance(release)

    def check_logged(self, release: Release, heads: Heads) -> Logged | None:
        """See `Hub.check_logged`."""
        return self.hub.check_logged(release, heads)

    @property
    def keeps_results(self) -> bool:
        """Whether the server keeps signed results of tests."""
        return self.hub.keeps_results

    def results(self, release: Release) -> list[bytes]:
        """Return the signed results on a build, unverified."""
        return self.hub.results(release)


class HubNamespace(_PartOfHub):
    """One namespace of a server as a source: it looks up bare names in that namespace only."""

    def __init__(self, hub: Hub, namespace: str) -> None:
        self.hub, self._namespace = hub, namespace

    @property
    def label(self) -> str:
        """The place in words."""
        return f"`{self._namespace}` of {self.hub.label}"

    def look_ahead(self, specs: Sequence[AdapterSpec]) -> None:
        """See `Hub.look_ahead`."""
        asked = [spec for spec in specs if spec.namespace in (None, self._namespace)]
        self.hub.look_ahead([replace(spec, namespace=self._namespace) for spec in asked])

    def releases(self, spec: AdapterSpec) -> list[Release]:
        """See `transfer.Source`."""
        if spec.namespace not in (None, self._namespace):
            return []
        return self.hub.releases(replace(spec, namespace=self._namespace))

    def newest(self, spec: AdapterSpec) -> tuple[list[Release], bool, bool]:
        """See `Hub.newest`."""
        if spec.namespace not in (None, self._namespace):
            return [], False, False
        return self.hub.newest(replace(spec, namespace=self._namespace))

    def alias(self, spec: AdapterSpec) -> Alias | None:
        """See `moving.HasAliases`."""
        if spec.namespace not in (None, self._namespace):
            return None
        return self.hub.alias(replace(spec, namespace=self._namespace))


class HubCommit(_PartOfHub):
    """The build of `repo` at `commit`; see `transfer.Source`."""

    def __init__(self, hub: Hub, repo: str, commit: str) -> None:
        self.hub, self.repo, self.commit = hub, repo, commit

    @property
    def label(self) -> str:
        """The place in words."""
        return f"`{self.repo}` at {self.commit[:12]} of {self.hub.label}"

    def releases(self, spec: AdapterSpec) -> list[Release]:
        """Return the one build, when it has the name in `spec`."""
        release = self.hub.release_at(self.repo, self.commit, spec)
        return [] if release is None else [release]
