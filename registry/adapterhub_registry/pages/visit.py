"""The visitor of the pages of a registry, and the address that it uses."""

from __future__ import annotations

from adapterhub.pages.page import PageSource
from adapterhub.pages.values import Link, Viewer
from adapterhub_registry.access.callers import Caller
from adapterhub_registry.access.tokens import BrowserSession
from adapterhub_registry.api.context import Registry


class Visit(PageSource):
    """One caller at a registry that clients reach at `address`; each page is a function of a visit.

    `peer` is the address of the caller.
    """

    def __init__(
        self, registry: Registry, caller: Caller, address: str, session: BrowserSession | None = None, peer: str = ""
    ) -> None:
        self.registry, self.caller, self.address, self.session = registry, caller, address, session
        self.peer = peer
        self.viewer = Viewer(name=caller.user, is_admin=caller.is_admin)

    def menu(self) -> tuple[Link, ...]:
        """As `PageSource`, with the other parts of a registry, and administration for those who may."""
        own = (Link(text="Settings", url="/settings"),) if self.viewer.name else ()
        more = (*own, *((Link(text="Administration", url="/admin"),) if self.viewer.is_admin else ()))
        return (*super().menu(), Link(text="Bases", url="/bases"), Link(text="Compare", url="/compare"), *more)
