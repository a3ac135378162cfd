"""Parts of a server as sources: one namespace, for bare names, and one commit, as a lock file names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import IO, TYPE_CHECKING

from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.alias import Alias
from adapterhub.formats.manifest import FileEntry
from adapterhub.formats.release import Provenance, Release

if TYPE_CHECKING:
    from adapterhub.distribution.hub import Hub


class _PartOfHub:
    """What every part of a server does as the server does; see `transfer.Source`."""

    hub: Hub

    @property
    def place(self) -> str:
        """Where it can be found again."""
        return self.hub.endpoint

    def open(self, release: Release, entry: FileEntry) -> IO[bytes]:
        """See `transfer.Source`."""
        return self.hub.open(release, entry)

    def provenance(self, release: Release) -> Provenance:
        """See `transfer.Source`."""
        return self.hub.provenance(release)

    @property
    def keeps_results(self) -> bool:
        """Whether the server keeps signed results of tests."""
        return self.hub.keeps_results

    def results(self, release: Release) -> list[bytes]:
        """The signed results on a build, unverified."""
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
        """The one build, when it has the name in `spec`."""
        release = self.hub.release_at(self.repo, self.commit, spec)
        return [] if release is None else [release]
