"""A release: one build that a place offers, and its provenance, the proof of where the build comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapterhub.core.digests import Digest
from adapterhub.formats.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One build that a place offers. `origin` is where it came from, in words; `yanked` is the reason, or None.

    `published_at` is the Unix time by which it was published, as far as the place can tell: when a registry released
    it, how another hub dates its commit, when its manifest was written in a directory, when it came into a library.
    """

    manifest: Manifest
    namespace: str | None
    origin: str
    yanked: str | None = None
    published_at: float | None = None

    @property
    def digest(self) -> Digest:
        """Identity of the build."""
        return self.manifest.digest

    @property
    def full_name(self) -> str:
        """`acme/legal-qa` or `legal-qa`."""
        return f"{self.namespace}/{self.manifest.name}" if self.namespace else self.manifest.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What a place gives beside a build to prove where it is from.

    `signature` holds the bytes of its `model.sig`, of bounded size, or None. `files` says what lies beside it, by
    name: `file`, `link`, `folder` or `other`; None where a place does not list what it was not asked for.
    """

    signature: bytes | None
    files: Mapping[str, str] | None = None
