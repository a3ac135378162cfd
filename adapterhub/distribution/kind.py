"""The properties of a kind of remote; `distribution/kinds/` has one file per kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adapterhub.core.errors import UsageProblem, shown

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.formats.release import Release
    from adapterhub.formats.treelog import LogKey
    from adapterhub.library.transfer import Place, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteAccess:
    """What a session gives for opening a place. A relative path begins at `folder`.

    `variables` are the environment variables of the face, in which other programs name their files.
    """

    label: str = ""
    token: str | None = None
    witness: LogKey | None = None  # who must have co-signed the server's log
    silence_s: float | None = None
    allows_telemetry: bool = False
    shows_bars: bool = False
    folder: Path = Path()
    variables: Mapping[str, str] = field(default_factory=dict)


class Kind(ABC):
    """One kind of place. An address is text that `parse_address` has passed."""

    name: ClassVar[str]
    address_key: ClassVar[str] = "url"
    """The key of the address in a project file and in a lock."""
    pin_keys: ClassVar[tuple[str, ...]] = ()
    """The keys that fix one build in a lock, in their order there."""
    is_server: ClassVar[bool] = True
    """Whether it is reached over a network: a project needs the user's agreement for it, `--offline` forbids it."""

    @abstractmethod
    def parse_address(self, text: str) -> str:
        """Return the one spelling of an address.

        Raises:
            UsageProblem: `text` is not an address of this kind.
        """

    @abstractmethod
    def open(self, address: str, access: RemoteAccess) -> Source:
        """Return the place as a source. Nothing is requested from a server yet.

        Raises:
            AdapterNotFound: a folder that is not there.
        """

    @abstractmethod
    def claims(self, place: str) -> bool:
        """Return whether `place`, as `Source.place` writes it, is of this kind."""

    def destination(self, source: Source, repository: str, *, private: bool, signs_again: bool) -> Place:
        """Return a repository of a server as a place to publish to; no request is sent.

        With `signs_again`, a signature may take the place of that of a published version.

        Raises:
            UsageProblem: nothing can be published there, or not so.
        """
        raise UsageProblem(f"{source.label} takes nothing from `push` as a remote; name the directory itself")

    def within(self, source: Source, namespace: str) -> Source:
        """Return the source to look up a bare name in `namespace`."""
        return source

    def pin(self, source: Source, release: Release) -> Mapping[str, str]:
        """Return the keys that pin a build of `source`, by `pin_keys`."""
        return {}

    def pinned(self, source: Source, pin: Mapping[str, str], spec: AdapterSpec) -> Iterable[Source]:
        """Return the sources that can still have a locked build, the most exact one first."""
        return [source]

    def problems(self, address: str, pin: Mapping[str, str]) -> list[str]:
        """Return the faults of a locked source, each as `key: reason`; empty when there are none."""
        try:
            normal = self.parse_address(address)
        except UsageProblem as error:
            return [f"{self.address_key}: {error.message}"]
        found = [] if normal == address else [f"{self.address_key}: expected `{normal}`, got `{shown(address)}`"]
        return found + [f"{key}: missing" for key in self.pin_keys if key not in pin]

    def publisher(self, pin: Mapping[str, str]) -> str:
        """Return the namespace that a pinned build belongs to; "" when the pin does not show it."""
        return ""

    def describe(self, address: str, pin: Mapping[str, str]) -> str:
        """Return a locked source in words."""
        return address

    def is_at(self, address: str, place: str, folder: Path) -> bool:
        """Return whether `address`, in a file in `folder`, leads to `place`."""
        return address == place

    def address_of(self, place: str, folder: Path) -> str:
        """Return how a lock in `folder` writes `place`; "" when another machine could not find it by that."""
        return place
