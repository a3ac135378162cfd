"""Withdraw from Python: yank a published version, take that back, delete a version or a repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.api.opened import OpenedLibrary, SpecLike, spec_of
from adapterhub.core.arguments import parsed
from adapterhub.projects.session import wanted_from

if TYPE_CHECKING:
    from collections.abc import Callable

    from adapterhub.core.specs import AdapterSpec
    from adapterhub.distribution.hub import Hub
    from adapterhub.distribution.withdrawal import Withdrawn
    from adapterhub.library.bases.requested import RequestedBase


@parsed
class WithWithdrawal(OpenedLibrary):
    """Everything that takes back what was published."""

    def yank(
        self,
        spec: SpecLike,
        *,
        reason: str = "",
        dry_run: bool = False,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Withdrawn:
        """Yank a published version: nothing new installs it, what is locked goes on, and users see the reason.

        Args:
            spec: the version, by its repository or its adapter: `acme/legal-qa==1.1.0`.
            reason: one line of at most 500 characters.
            dry_run: find the version and change nothing.
            remote: the server; default: the one that has the namespace, then the default one.
            token: access token for it.
            offline: refuse to open a connection.

        Raises:
            UsageProblem: `spec` names no namespace or no version.
            AmbiguousSpec: several repositories have this version; the choices name them.
            AdapterNotFound: the server has no such version.
            RemoteUnreachable, NotAllowed: the server does not answer, or not to you.
        """
        from adapterhub.distribution import withdrawal

        hub, asked, wanted = self._asked(spec, remote, token, offline=offline)
        return withdrawal.yank(hub, self, asked, wanted, reason, dry_run=dry_run)

    def unyank(
        self,
        spec: SpecLike,
        *,
        dry_run: bool = False,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Withdrawn:
        """Take a yank back; arguments and errors are those of `yank`."""
        from adapterhub.distribution import withdrawal

        hub, asked, wanted = self._asked(spec, remote, token, offline=offline)
        return withdrawal.unyank(hub, self, asked, wanted, dry_run=dry_run)

    def delete(
        self,
        spec: SpecLike,
        *,
        dry_run: bool = False,
        agree: Callable[[Withdrawn], None] | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Withdrawn:
        """Delete a published version, or without a version the whole repository, without asking.

        A locked install of what was deleted fails on a machine that does not have it; `yank` avoids that.
        `agree` is called with what will be deleted, before it is, and may raise. Other arguments and errors are those
        of `yank`.
        """
        from adapterhub.distribution import withdrawal

        hub, asked, wanted = self._asked(spec, remote, token, offline=offline)
        plan = withdrawal.plan_deletion(hub, self, asked, wanted)
        if dry_run:
            return plan
        if agree is not None:
            agree(plan)
        return withdrawal.delete(hub, asked, plan)

    def _asked(
        self, spec: SpecLike, remote: str | None, token: str | None, *, offline: bool
    ) -> tuple[Hub, AdapterSpec, RequestedBase | None]:
        from adapterhub.api.steps.publishing import server_of

        asked = spec_of(spec)
        hub = server_of(self.session, asked, remote, token=token, offline=offline)
        return hub, asked, wanted_from(self, asked, None)
