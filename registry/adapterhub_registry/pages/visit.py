"""Who looks at the pages of a registry, and where."""

from __future__ import annotations

from adapterhub.pages.page import PageSource
from adapterhub.pages.values import Link, Viewer
from adapterhub_registry.access.tokens import BrowserSession, Caller
from adapterhub_registry.api.context import Registry


class Visit(PageSource):
    """One caller at a registry that clients reach at `address`; each page is a function of a visit."""

    def __init__(self, registry: Registry, caller: Caller, address: str, session: BrowserSession | None = None) -> None:
        self.registry, self.caller, self.address, self.session = registry, caller, address, session
        self.viewer = Viewer(name=caller.user, is_admin=caller.is_admin)

    def menu(self) -> tuple[Link, ...]:
        """As `PageSource`, and the way to administration for those who may."""
        more = (Link(text="Administration", url="/admin"),) if self.viewer.is_admin else ()
        return (*super().menu(), *more)
