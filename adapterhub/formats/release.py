"""A build that a place offers, and its provenance: the proof of where the build comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adapterhub.core.digests import Digest
from adapterhub.formats.manifest import Facts, Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One build that a place offers. `origin` names its source for people; `yanked` is the reason, or None.

    `published_at` is the Unix time of publication as the place knows it: the release in a registry, the date of the
    commit on another hub, the writing of the manifest in a directory, the arrival in a library. `base_hub_id` is the
    Hub id of the base, where the place knows it and the manifest need not. `repository` is the repository of a server
    that holds it, such as `acme/legal-qa-base-7b`; users may name the build by it. `claimed_at` is a server that
    keeps no names: any repository there may claim the name of this build. `lost_name`: the server keeps names, and
    lets other repositories release this one.
    """

    manifest: Manifest
    namespace: str | None
    origin: str
    yanked: str | None = None
    published_at: float | None = None
    base_hub_id: str = ""
    repository: str = ""
    claimed_at: str = ""
    lost_name: bool = False

    @property
    def facts(self) -> Facts | Manifest:
        """What choosing compares."""
        return self.manifest

    @property
    def digest(self) -> Digest:
        """Identity of the build."""
        return self.facts.digest

    @property
    def full_name(self) -> str:
        """`acme/legal-qa` or `legal-qa`."""
        return f"{self.namespace}/{self.facts.name}" if self.namespace else self.facts.name


class UnreadRelease(Release):
    """A build of many, of which only the facts are read; the place checks the rest when someone wants `manifest`."""

    __slots__ = ("_facts", "_manifest", "_read")
    _facts: Facts | Manifest
    _manifest: Manifest | None
    _read: Callable[[], Manifest]

    def __init__(
        self,
        *,
        facts: Facts | Manifest,
        read: Callable[[], Manifest],
        namespace: str | None,
        origin: str,
        published_at: float | None,
    ) -> None:
        """`read` returns the manifest, checked, or raises."""
        told: dict[str, object] = {
            "_facts": facts,
            "_read": read,
            "_manifest": None,
            "namespace": namespace,
            "origin": origin,
        }
        told |= {"yanked": None, "published_at": published_at, "base_hub_id": "", "repository": "", "claimed_at": ""}
        told["lost_name"] = False
        for name, value in told.items():
            object.__setattr__(self, name, value)

    @property
    def facts(self) -> Facts | Manifest:
        """What choosing compares."""
        return self._facts

    @property
    def manifest(self) -> Manifest:
        """The whole manifest, read on first use.

        Raises:
            MalformedManifest, RefusedAdapter: as the place finds.
        """
        manifest = self._manifest
        if manifest is None:
            manifest = self._read()
            object.__setattr__(self, "_manifest", manifest)
        return manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What a place offers beside a build to prove its origin.

    `signature` holds the bytes of its `model.sig`, of bounded size, or None. `files` gives the kind of each entry
    beside the build, by name: `file`, `link`, `folder` or `other`; None if a place does not list them.
    """

    signature: bytes | None
    files: Mapping[str, str] | None = None
