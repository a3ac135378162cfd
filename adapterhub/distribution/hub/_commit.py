"""One commit of a repository as a source, as a lock file names it."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.manifest import FileEntry
from adapterhub.formats.release import Provenance, Release

if TYPE_CHECKING:
    from adapterhub.distribution.hub import Hub


class HubCommit:
    """The build of `repo` at `commit`; see `transfer.Source`."""

    def __init__(self, hub: Hub, repo: str, commit: str) -> None:
        self.hub, self.repo, self.commit = hub, repo, commit

    @property
    def label(self) -> str:
        """The place in words."""
        return f"`{self.repo}` at {self.commit[:12]} of {self.hub.label}"

    @property
    def place(self) -> str:
        """Where it can be found again."""
        return self.hub.endpoint

    def releases(self, spec: AdapterSpec) -> list[Release]:
        """The one build, when it has the name in `spec`."""
        release = self.hub.release_at(self.repo, self.commit, spec)
        return [] if release is None else [release]

    def open(self, release: Release, entry: FileEntry) -> IO[bytes]:
        """One file of it."""
        return self.hub.open(release, entry)

    def provenance(self, release: Release) -> Provenance:
        """The signature at the commit."""
        return self.hub.provenance(release)
