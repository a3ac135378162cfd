"""The cache of the Hugging Face Hub's client as a source: what `hf download` brought installs without a network.

    models--acme--json-smol/refs/main               the commit of a branch or tag
    models--acme--json-smol/snapshots/<commit>/…    its files, links to `blobs/`

Layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache. The cache does not record which server it was
filled from, so it counts as a place of its own, and nothing in it is believed before it is hashed.
"""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Final

from adapterhub.core.arguments import path_of
from adapterhub.core.disk.files import is_own
from adapterhub.core.disk.root import absolute
from adapterhub.core.errors import AdapterHubError, SpecError
from adapterhub.core.specs import AdapterSpec, parse_version
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE, FileEntry
from adapterhub.formats.release import Provenance, Release
from adapterhub.library.directory import PlainFolder, PublishedDirectory
from adapterhub.library.transfer import Source
from adapterhub.trust.verify import manifest_in

_REF_LIMIT_BYTES: Final = 100


class HubCache:
    """The model repositories under `root` that hold an adapter; partial downloads are passed over."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._sources: dict[str, Source] = {}

    @property
    def label(self) -> str:
        """The place in words, for messages."""
        return f"the Hugging Face cache `{self.root}`"

    @property
    def place(self) -> str:
        """The absolute path of the cache."""
        return absolute(self.root)

    def releases(self, spec: AdapterSpec) -> list[Release]:
        """Return builds of `org/name` in the repositories of `org`, as `Hub.releases` names them; none for a bare name.

        Raises:
            AdapterHubError: the repository `org/name` is there, and its adapter cannot be read.
        """
        found: dict[str, Release] = {}
        if spec.namespace is None:
            return []
        for folder in sorted(self.root.glob(f"models--{glob.escape(spec.namespace)}--*")):
            repo = "/".join(folder.name.split("--")[1:])
            with contextlib.nullcontext() if repo == spec.full_name else contextlib.suppress(AdapterHubError, OSError):
                for release in self._of_repository(folder, repo, spec):
                    found.setdefault(release.digest, release)
        return list(found.values())

    def _of_repository(self, folder: Path, repo: str, spec: AdapterSpec) -> Iterator[Release]:
        versions = _versions(folder)
        for snapshot in sorted((folder / "snapshots").glob("*")):
            is_whole = all((snapshot / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE))
            if not is_whole or not is_own(folder, f"snapshots/{snapshot.name}"):
                continue
            commit, manifest = snapshot.name, manifest_in(snapshot)
            source: Source
            if manifest is not None and (manifest.name == spec.name or repo == spec.full_name):
                source, wanted = PublishedDirectory(snapshot), replace(spec, name=manifest.name)
            elif manifest is None and repo == spec.full_name:
                version = versions.get(commit) or f"0+{commit[:12]}"
                source, wanted = PlainFolder(snapshot, version=version), spec
            else:
                continue
            for release in source.releases(wanted):
                self._sources[release.digest] = source
                yield Release(
                    manifest=release.manifest,
                    namespace=release.namespace,
                    origin=f"{repo} at {commit[:12]} in {self.label}",
                    published_at=release.published_at,
                    repository=repo,
                    claimed_at=self.place,
                )

    def open(self, release: Release, entry: FileEntry) -> IO[bytes]:
        """One file of a build from `releases`."""
        return self._sources[release.digest].open(release, entry)

    def provenance(self, release: Release) -> Provenance:
        """Return the signature beside a build, and what else lies there."""
        return self._sources[release.digest].provenance(release)


def _versions(folder: Path) -> Mapping[str, str]:
    """Return the version of each commit that was downloaded by its tag."""
    found: dict[str, str] = {}
    for path in sorted((folder / "refs").glob("v*")):
        with contextlib.suppress(SpecError, OSError, UnicodeDecodeError):
            with path.open("rb") as stream:
                commit = stream.read(_REF_LIMIT_BYTES).decode("ascii").strip()
            found[commit] = parse_version(path.name[1:])
    return found


def cache_folder(variables: Mapping[str, str]) -> Path:
    """Return the folder where the Hub's client keeps its downloads, by the environment variables that it reads."""
    given = variables.get("HF_HUB_CACHE") or variables.get("HUGGINGFACE_HUB_CACHE")
    if given:
        return path_of(given)
    caches = variables.get("XDG_CACHE_HOME") or "~/.cache"
    return path_of(variables.get("HF_HOME") or f"{caches}/huggingface") / "hub"
