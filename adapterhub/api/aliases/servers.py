"""Aliases that a registry keeps: set, list, move back and remove them there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adapterhub.api.aliases.steps import Targets, adapter_and_alias, weights_of
from adapterhub.api.steps.publishing import server_of
from adapterhub.core.errors import NotFound, UsageProblem, shown
from adapterhub.distribution.withdrawal import find_version
from adapterhub.projects.session import wanted_from

if TYPE_CHECKING:
    from adapterhub.core.aliases import Alias
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.distribution.hub import Hub
    from adapterhub.projects.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The registry that `--remote`, `--token` and `--offline` name."""

    session: Session
    remote: str
    token: str | None = None
    offline: bool = False

    def set_alias(self, name: str, targets: Targets) -> Alias:
        """Point an alias of a repository at released versions.

        Raises:
            UsageProblem: a target names no version, or the targets are in several repositories.
            AdapterNotFound, AmbiguousSpec: no repository has a target, or several do.
            NotAllowed: the token may not write to the repository.
        """
        weights, library = weights_of(targets), self.session.library
        specs = [self._in_full(spec) for spec, _ in targets]
        hub = self._hub(specs[0])
        found = [find_version(hub, library, spec, wanted_from(library, spec, None)) for spec in specs]
        repos = sorted({one.repo for one in found})
        if len(repos) > 1:
            raise UsageProblem(
                f"the targets are in several repositories: {', '.join(repos)}. Nothing was changed",
                hint="an alias of a registry belongs to one repository",
            )
        pairs = [(one.version or "", weight) for one, weight in zip(found, weights, strict=True)]
        return hub.aliases.set(repos[0], name, pairs)

    def list_aliases(self, repository: AdapterSpec) -> list[Alias]:
        """The aliases of a repository.

        Raises:
            AdapterNotFound: there is no such repository.
        """
        spec = self._in_full(repository)
        return [one.alias for one in self._hub(spec).aliases.all(spec.full_name)]

    def find_alias(self, spec: AdapterSpec) -> Alias:
        """An alias with its history, also after its removal.

        Raises:
            NotFound: there never was such an alias.
        """
        hub, repo, name = self._place_of(spec)
        alias = hub.aliases.history(repo, name)
        if not alias.moves:
            raise NotFound(
                f"`{shown(repo)}` has no alias `{shown(name)}` on {hub.endpoint}",
                hint=f"`adapt alias list {repo} --remote {self.remote}` lists those that it has",
            )
        return alias

    def roll_back_alias(self, spec: AdapterSpec, *, to: int | None = None) -> Alias:
        """Point an alias at what it meant before, or after the move number `to`; raises the server's own errors."""
        hub, repo, name = self._place_of(spec)
        return hub.aliases.roll_back(repo, name, to)

    def remove_alias(self, spec: AdapterSpec) -> Alias:
        """Remove an alias; its history stays."""
        hub, repo, name = self._place_of(spec)
        return hub.aliases.remove(repo, name)

    def _place_of(self, spec: AdapterSpec) -> tuple[Hub, str, str]:
        """The server, the repository and the alias that `acme/legal-qa@prod` names."""
        spec = self._in_full(spec)
        repo, name = adapter_and_alias(spec)
        hub = self._hub(spec)
        found = hub.aliases.find(spec)
        return hub, found.repo if found else repo, name

    def _hub(self, spec: AdapterSpec) -> Hub:
        return server_of(self.session, spec, self.remote, token=self.token, offline=self.offline)

    def _in_full(self, spec: AdapterSpec) -> AdapterSpec:
        """The spec with the only namespace of the remote where it names none."""
        namespaces: Sequence[str] = self.session.remote(self.remote).namespaces
        return replace(spec, namespace=namespaces[0]) if spec.namespace is None and len(namespaces) == 1 else spec
