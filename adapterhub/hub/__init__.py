"""The remote end: the Hugging Face Hub, and any server that speaks its protocol.

A build is one model repository; a version is a tag `v<version>` on a commit. Everything is read at fixed commits, and
every byte is checked against the manifest afterwards: the hub client itself compares sizes only.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from huggingface_hub import CommitOperationAdd, HfApi, get_session
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from adapterhub.cards import card_for
from adapterhub.digests import Progress, copy_hashed
from adapterhub.directory import PlainFolder
from adapterhub.errors import (
    AdapterHubError,
    AdapterNotFound,
    DigestMismatch,
    NotAllowed,
    ReleaseExists,
    RemoteUnreachable,
    SpecError,
    shown,
)
from adapterhub.manifest import CARD_FILE, CONFIG_FILE, MANIFEST_FILE, MEDIA_TYPES, FileEntry, Manifest
from adapterhub.specs import AdapterSpec, parse_version
from adapterhub.transfer import Release

_HttpError: type[BaseException] = HfHubHTTPError.__mro__[1]
"""The root error of the HTTP library that the installed hub client uses: requests, httpx or httpx2, by its version."""

REACH_S = 5.0
DEFAULT_ENDPOINT = "https://huggingface.co"
BASE_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer*", "vocab*", "merges.txt"]
_UNAUTHORIZED, _FORBIDDEN, _TOO_MANY = 401, 403, 429


class Hub:
    """One server. `cache_folder` keeps downloads of this server only: two servers may use one repository name."""

    def __init__(self, *, endpoint: str | None, token: str | None, cache_folder: Path, version: str = "") -> None:
        self.endpoint = (endpoint or DEFAULT_ENDPOINT).rstrip("/")
        # token=False: never fall back on a token of the environment that was meant for another server
        self._api = HfApi(
            endpoint=self.endpoint, token=token or False, library_name="adapterhub", library_version=version or None
        )
        self._cache = cache_folder
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what it warns of, our errors say
        self._places: dict[str, tuple[str, str]] = {}

    @property
    def label(self) -> str:
        """The server in words."""
        return f"hub `{self.endpoint}`"

    # ------------------------------------------------------------ source
    def releases(self, spec: AdapterSpec) -> list[Release]:
        """Builds named `org/name`: those of the repository itself, of `org/name-<base>`, and tagged with the name.

        A bare name is never looked up on a hub: a stranger could own it.
        """
        if spec.namespace is None:
            return []
        found: dict[str, Release] = {}
        seen: set[str] = set()
        for repo in self._repositories(spec):
            if repo in seen:
                continue
            seen.add(repo)
            for release in self._of_repository(repo, spec):
                found.setdefault(release.digest, release)
        return list(found.values())

    def _repositories(self, spec: AdapterSpec) -> Iterator[str]:
        # The repository by that name is asked before the listing: that call fails at once where a server is out of
        # reach, while the client tries a listing five times.
        yield spec.full_name
        if spec.base is not None and spec.base.kind == "alias":
            yield f"{spec.full_name}-{spec.base.text}"
        with self._plainly(f"list adapters of `{spec.namespace}`"):
            tagged = self._api.list_models(author=spec.namespace, filter=f"adapter-name:{spec.name}")
            yield from [model.id for model in tagged if model.id.partition("/")[0] == spec.namespace]

    def _of_repository(self, repo: str, spec: AdapterSpec) -> Iterator[Release]:
        try:
            with self._plainly(f"`{repo}`"):
                refs = self._api.list_repo_refs(repo)
        except AdapterNotFound:
            return
        tags = [(tag.name[1:], tag.target_commit) for tag in refs.tags if _is_version_tag(tag.name)]
        heads = [(None, branch.target_commit) for branch in refs.branches if branch.name == "main"]
        for version, commit in tags or heads:
            release = self._at_commit(repo, commit, version, spec)
            if release is not None:
                self._places[release.digest] = (repo, commit)
                yield release

    def _at_commit(self, repo: str, commit: str, version: str | None, spec: AdapterSpec) -> Release | None:
        origin = f"{repo} at {commit[:12]}"
        with self._plainly(f"`{origin}`"):
            names = {item.rfilename for item in self._api.model_info(repo, revision=commit).siblings or []}
        if MANIFEST_FILE in names:
            raw = self._download(repo, commit, MANIFEST_FILE).read_bytes()
            manifest = Manifest.parse(raw, f"{origin}: {MANIFEST_FILE}")
            same = manifest.name == spec.name
            return Release(manifest=manifest, namespace=spec.namespace, origin=origin) if same else None
        if CONFIG_FILE not in names:
            return None
        for name in sorted(names & {*MEDIA_TYPES, CARD_FILE}):
            folder = self._download(repo, commit, name).parent
        plain = PlainFolder(folder, version=version or f"0+{commit[:12]}", origin=origin)
        return plain.releases(spec)[0]

    def _download(self, repo: str, commit: str, name: str) -> Path:
        with self._plainly(f"`{name}` of `{repo}`"):
            return Path(self._api.hf_hub_download(repo, name, revision=commit, cache_dir=self._cache))

    def open(self, release: Release, entry: FileEntry) -> IO[bytes]:
        """One file of a build that `releases` gave."""
        repo, commit = self._places[release.digest]
        return self._download(repo, commit, entry.path).open("rb")

    # ------------------------------------------------------------ other
    def who(self) -> str:
        """Whom the server takes us for; asks for nothing that needs a token when there is none."""
        with self._plainly("connection"):
            if isinstance(self._api.token, str):
                return f"signed in as {self._api.whoami()['name']}"
            # not through the client, which would try five times and take 23 s
            get_session().get(f"{self.endpoint}/api/models", params={"limit": 1}, timeout=REACH_S).raise_for_status()
            return "reachable, no token"

    def fetch_base(self, repo: str, *, revision: str | None = None, offline: bool = False) -> Path:
        """Folder of a base model: its safetensors weights, config and tokenizer, from the user's Hugging Face cache.

        The user's own cache is used (not ours), so that transformers finds the same files.
        """
        with self._plainly(f"base `{repo}`"):
            return Path(
                self._api.snapshot_download(
                    repo,
                    revision=revision,
                    allow_patterns=BASE_FILES,
                    local_files_only=offline,
                )
            )

    # ------------------------------------------------------------ destination
    def to(self, repo: str, *, private: bool = False) -> HubRepository:
        """One repository as a destination; `private` matters only where it has to be made first."""
        return HubRepository(self, repo, private=private)

    @contextlib.contextmanager
    def _plainly(self, what: str) -> Iterator[None]:
        """Turn what the client raises into one plain line."""
        try:
            yield
        except GatedRepoError:
            raise NotAllowed(f"{what}: access to it must be requested at {self.endpoint}") from None
        except (RepositoryNotFoundError, EntryNotFoundError):
            raise AdapterNotFound(
                f"{what}: not found on {self.endpoint}, or private and no token given",
                hint="`--token` or ADAPTERHUB_TOKEN gives a token",
            ) from None
        except HFValidationError as error:
            raise SpecError(what, shown(str(error), 160)) from None
        except OfflineModeIsEnabled:
            raise RemoteUnreachable(f"{what}: the hub client is in offline mode (HF_HUB_OFFLINE)") from None
        except HfHubHTTPError as error:
            raise self._answered(what, error) from None
        except (_HttpError, OSError) as error:
            raise RemoteUnreachable(
                f"{what}: {self.endpoint} could not be reached: {shown(str(error), 160)}",
                hint="`--offline` uses what is here; `adapt doctor` checks the connection",
            ) from None

    def _answered(self, what: str, error: HfHubHTTPError) -> AdapterHubError:
        status = error.response.status_code if error.response is not None else 0
        text = f"{what}: {self.endpoint} answered {status}: {shown(error.server_message or str(error), 160)}"
        if status in (_UNAUTHORIZED, _FORBIDDEN):
            return NotAllowed(text, hint="`--token` or ADAPTERHUB_TOKEN gives a token with write access")
        wait = "; wait and try again" if status == _TOO_MANY else ""
        return RemoteUnreachable(text + wait)


class HubRepository:
    """One model repository that builds are published to."""

    def __init__(self, hub: Hub, repo: str, *, private: bool) -> None:
        self.hub = hub
        self.repo = repo
        self.private = private
        self.commit_url = ""

    @property
    def label(self) -> str:
        """The repository in words."""
        return f"`{self.repo}` on {self.hub.endpoint}"

    @contextlib.contextmanager
    def receive(self, release: Release) -> Iterator[_Upload]:
        """Files are staged in a temporary folder and sent in one commit."""
        with tempfile.TemporaryDirectory(prefix="adapt-push-") as folder:
            yield _Upload(self, release, Path(folder))


class _Upload:
    def __init__(self, place: HubRepository, release: Release, folder: Path) -> None:
        self._place, self._release, self._folder = place, release, folder

    def has(self, entry: FileEntry) -> bool:  # noqa: ARG002 - the client asks the server for each digest itself
        """Never: the upload protocol skips what the server holds."""
        return False

    def put(self, entry: FileEntry, stream: IO[bytes], progress: Progress | None = None) -> None:
        """Stage one file, hashed while it flows."""
        with (self._folder / entry.path).open("xb") as sink:
            digest, _ = copy_hashed(stream, sink, progress)
        if digest != entry.sha256:
            raise DigestMismatch(entry.path, expected=entry.sha256, actual=digest)

    def publish(self) -> None:
        """One commit with everything, then the version tag; a version that exists is never moved."""
        api, hub, repo = self._place.hub._api, self._place.hub, self._place.repo  # noqa: SLF001 - one module, two ends
        manifest = self._release.manifest
        tag = version_tag(manifest)
        with hub._plainly(f"push to `{repo}`"):  # noqa: SLF001
            api.create_repo(repo, private=self._place.private or None, exist_ok=True)
            existing = {t.name: t.target_commit for t in api.list_repo_refs(repo).tags}
        if tag in existing:
            raw = hub._download(repo, existing[tag], MANIFEST_FILE).read_bytes()  # noqa: SLF001
            if Manifest.parse(raw).digest == manifest.digest:
                return
            raise ReleaseExists(
                f"`{repo}` has another build tagged `{tag}`; a release never changes",
                hint="push it under a new version or to its own repository",
            )
        with contextlib.ExitStack() as files, hub._plainly(f"push to `{repo}`"):  # noqa: SLF001
            contents: dict[str, IO[bytes]] = {name: io.BytesIO(data) for name, data in texts_of(manifest).items()}
            for entry in manifest.files:
                contents[entry.path] = files.enter_context((self._folder / entry.path).open("rb"))
            operations = [CommitOperationAdd(name, data) for name, data in sorted(contents.items())]  # type: ignore[arg-type]
            done = api.create_commit(repo, operations, commit_message=f"{manifest.name} {manifest.version}")
            api.create_tag(repo, tag=tag, revision=done.oid)
        self._place.commit_url = str(done.commit_url)


def version_tag(manifest: Manifest) -> str:
    """The tag that marks this version in a repository."""
    return f"v{manifest.version}"


def texts_of(manifest: Manifest) -> dict[str, bytes]:
    """The files of a repository that are written from the manifest: itself and the card."""
    return {MANIFEST_FILE: manifest.to_bytes(), CARD_FILE: card_for(manifest).encode()}


def _is_version_tag(name: str) -> bool:
    if not name.startswith("v"):
        return False
    try:
        parse_version(name[1:])
    except SpecError:
        return False
    return True
