"""One namespace of a server as a source, for bare names."""

from __future__ import annotations

from dataclasses import replace
from typing import IO, TYPE_CHECKING

from adapterhub.core.aliases import Alias
from adapterhub.core.specs import AdapterSpec
from adapterhub.formats.manifest import FileEntry
from adapterhub.formats.release import Provenance, Release

if TYPE_CHECKING:
    from adapterhub.distribution.hub import Hub


class HubNamespace:
    """One namespace of a server as a source: it looks up bare names in that namespace only."""

    def __init__(self, hub: Hub, namespace: str) -> None:
        self.hub, self._namespace = hub, namespace

    @property
    def label(self) -> str:
        """The place in words."""
        return f"`{self._namespace}` of {self.hub.label}"

    @property
    def place(self) -> str:
        """Where it can be found again."""
        return self.hub.endpoint

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

    def open(self, release: Release, entry: FileEntry) -> IO[bytes]:
        """See `transfer.Source`."""
        return self.hub.open(release, entry)

    def provenance(self, release: Release) -> Provenance:
        """See `transfer.Source`."""
        return self.hub.provenance(release)
