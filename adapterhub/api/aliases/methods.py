"""Aliases from Python: `library.set_alias("prod", "legal-qa==1.2")`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adapterhub.api.opened import OpenedLibrary, SpecLike, spec_of
from adapterhub.core.arguments import parsed

if TYPE_CHECKING:
    from adapterhub.api.aliases.servers import Server
    from adapterhub.core.aliases import Alias, Move


@parsed
class WithAliases(OpenedLibrary):
    """Moving names of adapters: `legal-qa@prod`."""

    def set_alias(
        self,
        name: str,
        target: SpecLike | Mapping[SpecLike, float],
        *,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Alias:
        """Point an alias at an installed build, or at several with weights.

        Args:
            name: one word, such as `prod`; the alias belongs to the adapter of the target.
            target: the build, or builds of one adapter each with a weight above 0, which need not sum to 1.
            remote: a registry, whose alias it is instead of the library's; the targets are released versions there.
            token: access token for it.
            offline: refuse to open a connection.

        Raises:
            NotFound: no remote has that name.
            AdapterNotFound, NoCompatibleRelease, AmbiguousSpec: a target is not one installed build.
            SignatureRefused, NamespaceBound: a policy forbids the use of a target.
            Conflict: a base has that name.
            SpecError, UsageProblem: the name or the targets are not usable.

        Example:
            >>> library.set_alias("prod", {"legal-qa==1.2": 0.9, "legal-qa==1.3": 0.1}).text()
            '1.2 90 %, 1.3 10 %'
        """
        from adapterhub.api.aliases import steps

        pairs = target.items() if isinstance(target, Mapping) else [(target, 1.0)]
        targets = [(spec_of(spec), weight) for spec, weight in pairs]
        if remote is not None:
            return self._server(remote, token, offline=offline).set_alias(name, targets)
        return steps.set_alias(self.session, name, targets)

    def _server(self, remote: str, token: str | None, *, offline: bool) -> Server:
        from adapterhub.api.aliases.servers import Server

        return Server(session=self.session, remote=remote, token=token, offline=offline)

    def list_aliases(
        self,
        adapter: SpecLike | None = None,
        *,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> list[Alias]:
        """The aliases of the library, or those of one adapter; with `remote`, those of a repository there."""
        from adapterhub.api.aliases import steps

        if remote is not None and adapter is not None:
            return self._server(remote, token, offline=offline).list_aliases(spec_of(adapter))
        return steps.list_aliases(self.session, None if adapter is None else spec_of(adapter))

    def alias(
        self, spec: SpecLike, *, remote: str | None = None, token: str | None = None, offline: bool = False
    ) -> Alias:
        """What `legal-qa@prod` means: `.targets`, and `.main`, the one with the largest weight.

        Raises:
            NotFound: there is no such alias, or it was removed.
        """
        from adapterhub.api.aliases import steps

        if remote is not None:
            there = self._server(remote, token, offline=offline).find_alias(spec_of(spec))
            return steps.existing_alias(self.session, spec_of(spec), there)
        return steps.existing_alias(self.session, spec_of(spec))

    def remove_alias(
        self, spec: SpecLike, *, remote: str | None = None, token: str | None = None, offline: bool = False
    ) -> Alias:
        """Remove an alias; its builds and its history stay.

        Raises:
            NotFound: there is no such alias.
        """
        from adapterhub.api.aliases import steps

        if remote is not None:
            return self._server(remote, token, offline=offline).remove_alias(spec_of(spec))
        return steps.remove_alias(self.session, spec_of(spec))

    def alias_history(
        self, spec: SpecLike, *, remote: str | None = None, token: str | None = None, offline: bool = False
    ) -> tuple[Move, ...]:
        """The moves of an alias, oldest first: `.at` (Unix time), `.by`, `.action` and the `.targets` since then.

        Raises:
            NotFound: there never was such an alias.
        """
        from adapterhub.api.aliases import steps

        if remote is not None:
            return self._server(remote, token, offline=offline).find_alias(spec_of(spec)).moves
        return steps.find_alias(self.session, spec_of(spec)).moves

    def roll_back_alias(
        self,
        spec: SpecLike,
        *,
        to: int | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Alias:
        """Point an alias at what it meant one step before, or after the move number `to`, counted from 1.

        Raises:
            NotFound: there is no such alias or move, or nothing before.
            AdapterNotFound: what it meant is not installed any more.
        """
        from adapterhub.api.aliases import steps

        if remote is not None:
            return self._server(remote, token, offline=offline).roll_back_alias(spec_of(spec), to=to)
        return steps.roll_back_alias(self.session, spec_of(spec), to=to)
