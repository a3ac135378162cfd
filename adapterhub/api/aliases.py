"""Aliases from Python: `library.set_alias("prod", "legal-qa==1.2")`; of the library, of a project, or of a registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adapterhub.api.opened import OpenedLibrary, SpecLike, spec_of
from adapterhub.core.arguments import Count, parsed
from adapterhub.core.errors import NotFound, UsageProblem, shown
from adapterhub.formats.alias import Alias, AliasMove

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.distribution.hub import Hub
    from adapterhub.projects.session import Session

    Targets = Sequence[tuple[AdapterSpec, float | None]]

TargetsLike = SpecLike | Mapping[SpecLike, float] | Sequence[tuple[SpecLike, float | None]]
"""The builds under an alias: one, or several with their weights; None stands for the weight of the only one."""


@parsed
class WithAliases(OpenedLibrary):
    """Moving names of adapters: `legal-qa@prod`."""

    def set_alias(
        self,
        name: str,
        targets: TargetsLike,
        *,
        save: bool = False,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Alias:
        """Point an alias at an installed build, or at several with weights.

        Args:
            name: one word, such as `prod`; the alias belongs to the adapter of the target.
            targets: the build, or builds of one adapter each with a weight above 0, which need not sum to 1.
            save: set it in the project's file instead, lock it and sync.
            remote: a registry, whose alias it is instead of the library's; the targets are released versions there.
            token: access token for it.
            offline: refuse to open a connection.

        Raises:
            NotFound: no remote has that name.
            AdapterNotFound, NoCompatibleRelease, AmbiguousSpec: a target is not one installed build.
            SignatureRefused, NamespaceBound: a policy forbids the use of a target.
            Conflict: a base has that name.
            NotAllowed: the token may not write to the repository.
            SpecError, UsageProblem: the name or the targets are not usable.

        Example:
            >>> library.set_alias("prod", {"legal-qa==1.2": 0.9, "legal-qa==1.3": 0.1}).text()
            '1.2 90 %, 1.3 10 %'
        """
        from adapterhub.distribution.choosing import find_installed
        from adapterhub.library.aliasing import point
        from adapterhub.projects.session import wanted_from

        pairs = targets_of(targets)
        if save:
            if remote is not None:
                raise UsageProblem(
                    "`--save` is for the project, `--remote` for a registry", hint="set one after the other"
                )
            return set_project_alias(self.session, name, pairs, offline=offline)
        if there := _registry(self.session, remote, token, offline=offline):
            return there.set(name, pairs)
        weights = _weights_of(pairs)
        builds = [find_installed(self, spec, wanted=wanted_from(self, spec, None))[0] for spec, _ in pairs]
        return point(self, name, list(zip(builds, weights, strict=True)))

    def list_aliases(
        self,
        adapter: SpecLike | None = None,
        *,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> list[Alias]:
        """The aliases of the library, or those of one adapter; with `remote`, those of a repository there.

        Raises:
            UsageProblem: `remote` without a repository.
            AdapterNotFound: there is no such repository.
        """
        wanted = None if adapter is None else spec_of(adapter)
        if there := _registry(self.session, remote, token, offline=offline):
            if wanted is None:
                raise UsageProblem(
                    "`--remote` needs the name of a repository", hint="`adapt alias list acme/legal-qa --remote …`"
                )
            return there.all(wanted)
        found = self.aliases.all(wanted.full_name if wanted and wanted.namespace else None)
        return [alias for alias in found if wanted is None or alias.adapter.rpartition("/")[2] == wanted.name]

    def alias(
        self, spec: SpecLike, *, remote: str | None = None, token: str | None = None, offline: bool = False
    ) -> Alias:
        """What `legal-qa@prod` means: `.targets`, and `.main`, the one with the largest weight.

        Raises:
            NotFound: there is no such alias, or it was removed.
        """
        there = _registry(self.session, remote, token, offline=offline)
        found = there.find(spec_of(spec)) if there else self._ever(spec_of(spec))
        if not found.targets:
            raise NotFound(f"`{found}` was removed", hint=f"`adapt alias rollback {found}` brings it back")
        return found

    def remove_alias(
        self, spec: SpecLike, *, remote: str | None = None, token: str | None = None, offline: bool = False
    ) -> Alias:
        """Remove an alias; its builds and its history stay.

        Raises:
            NotFound: there is no such alias.
        """
        if there := _registry(self.session, remote, token, offline=offline):
            return there.remove(spec_of(spec))
        return self.aliases.remove(*self._own(spec_of(spec)))

    def alias_history(
        self, spec: SpecLike, *, remote: str | None = None, token: str | None = None, offline: bool = False
    ) -> tuple[AliasMove, ...]:
        """The moves of an alias, oldest first: `.at` (Unix time), `.by`, `.action` and the `.targets` since then.

        Raises:
            NotFound: there never was such an alias.
        """
        there = _registry(self.session, remote, token, offline=offline)
        return (there.find(spec_of(spec)) if there else self._ever(spec_of(spec))).history

    def roll_back_alias(
        self,
        spec: SpecLike,
        *,
        to: Count | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Alias:
        """Point an alias at what it meant one step before, or after the move number `to`, counted from 1.

        Raises:
            NotFound: there is no such alias or move, or nothing before.
            AdapterNotFound: what it meant is not installed any more.
        """
        from adapterhub.library.aliasing import roll_back

        if there := _registry(self.session, remote, token, offline=offline):
            return there.roll_back(spec_of(spec), to=to)
        return roll_back(self, *self._own(spec_of(spec)), to=to)

    def _ever(self, spec: AdapterSpec) -> Alias:
        """The alias that a spec names, of the project or of the library, also after its removal."""
        from adapterhub.library.aliasing import alias_of
        from adapterhub.library.store.aliases import no_alias

        adapter, name = self._parts(spec)
        found = alias_of(self, spec) or self.aliases.ever(adapter, name)
        if found is None:
            raise no_alias(adapter, name, [alias.name for alias in self.aliases.all(adapter)])
        return found

    def _own(self, spec: AdapterSpec) -> tuple[str, str]:
        """The full name and alias of the library's own alias that `spec` means."""
        adapter, name = self._parts(spec)
        found = self.aliases.meant(spec)
        return (found.adapter, name) if found else (adapter, name)

    def _parts(self, spec: AdapterSpec) -> tuple[str, str]:
        """As `_adapter_and_alias`; for the name of an alias alone, the hint says whose it is."""
        try:
            return _adapter_and_alias(spec)
        except UsageProblem as error:
            called = [f"`{alias.adapter}@{alias.name}`" for alias in self.aliases.all() if alias.name == str(spec)]
            if called:
                raise UsageProblem(error.message, hint=f"write {' or '.join(called[:3])}") from None
            raise


def targets_of(targets: TargetsLike) -> Targets:
    """The builds under an alias as specs, each with its weight; None for the only one."""
    if isinstance(targets, Mapping):
        return [(spec_of(spec), weight) for spec, weight in targets.items()]
    if isinstance(targets, Sequence) and not isinstance(targets, str):
        return [(spec_of(spec), weight) for spec, weight in targets]
    return [(spec_of(targets), None)]


def _weights_of(targets: Targets) -> list[float]:
    """The weight of each target; 1 for the only one.

    Raises:
        UsageProblem: several targets, and one has no weight.
    """
    lacking = [str(spec) for spec, weight in targets if weight is None]
    if lacking and len(targets) > 1:
        raise UsageProblem(
            f"`{lacking[0]}` has no weight; several targets need one each. Nothing was changed",
            hint=f"write `{lacking[0]}=0.1`",
        )
    return [1.0 if weight is None else weight for _, weight in targets]


def _adapter_and_alias(spec: AdapterSpec) -> tuple[str, str]:
    """The full name and the alias in `legal-qa@prod`.

    Raises:
        UsageProblem: the spec names no alias, or more.
    """
    if spec.base is None or spec.base.kind != "alias" or spec.specifiers or spec.digest_prefix:
        raise UsageProblem(f"`{spec}` names no alias", hint=f"write `{spec.full_name}@ALIAS`, as in `legal-qa@prod`")
    return spec.full_name, spec.base.text


# ---------------------------------------------------------------- of a project
def set_project_alias(
    session: Session, name: str, targets: Targets, *, syncs: bool = True, offline: bool = False
) -> Alias:
    """Set an alias of the session's project, lock it, and sync unless `syncs` is false.

    Raises:
        NotFound: there is no project, or it has no such adapter.
        UsageProblem, SpecError: a target names no version, or the name or the targets are not usable.
        AdapterHubError: the versions cannot be locked; the project file is as before.
    """
    from adapterhub.formats.alias import parse_alias
    from adapterhub.projects.aliases import locked_alias
    from adapterhub.projects.file import project_of, text_of_project, with_alias
    from adapterhub.projects.lock.lockfile import previous_lock, read_lock
    from adapterhub.projects.places import ProjectSources, Where, editing, lock_now
    from adapterhub.projects.saving import Saving, key_of, save
    from adapterhub.projects.syncing import Syncing, sync_project

    project, name, weights = session.need_project(), parse_alias(name), _weights_of(targets)
    keys = sorted({key_of(project, spec) for spec, _ in targets})
    if len(keys) > 1:
        raise UsageProblem(
            f"an alias belongs to one adapter, and these are {', '.join(keys)}. Nothing was changed",
            hint="set it for each adapter by itself",
        )
    versions = {spec.pinned_version: weight for (spec, _), weight in zip(targets, weights, strict=True)}
    wanted = {version: weight for version, weight in versions.items() if version is not None}
    if len(wanted) < len(targets):
        raise UsageProblem(
            "a project's alias means exact versions, each named once. Nothing was changed",
            hint=f"write `{keys[0]}==VERSION`",
        )
    with editing(session.library, project.folder) as now:
        text = with_alias(text_of_project(now.folder), keys[0], name, wanted)
        project, previous = project_of(text, now.folder), previous_lock(now)
        sources = ProjectSources(session, project, Where(offline=offline))
        sources.settle(previous)
        outcome = lock_now(session, project, sources, previous=previous)
        save(session, Saving(project=project, text=text, outcome=outcome))
    for warning in outcome.warnings:
        session.out.warn(warning)
    if syncs:
        sync_project(session, project, Syncing(offline=offline))
    alias = locked_alias(read_lock(project.folder).entries, keys[0], name)
    assert alias is not None  # it was just locked
    return alias


# ---------------------------------------------------------------- of a registry
@dataclass(frozen=True, slots=True)
class _Registry:
    """The registry whose aliases are meant."""

    session: Session
    remote: str
    token: str | None
    offline: bool

    def set(self, name: str, targets: Targets) -> Alias:
        """Point an alias of a repository at released versions.

        Raises:
            UsageProblem: a target names no version, or the targets are in several repositories.
            AdapterNotFound, AmbiguousSpec: no repository has a target, or several do.
        """
        from adapterhub.distribution.withdrawal import find_version
        from adapterhub.projects.session import wanted_from

        weights, library = _weights_of(targets), self.session.library
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

    def all(self, repository: AdapterSpec) -> list[Alias]:
        """The aliases of a repository."""
        spec = self._in_full(repository)
        return [one.alias for one in self._hub(spec).aliases.all(spec.full_name)]

    def find(self, spec: AdapterSpec) -> Alias:
        """An alias with its history, also after its removal."""
        hub, repo, name = self._place_of(spec)
        alias = hub.aliases.history(repo, name)
        if not alias.moves:
            raise NotFound(
                f"`{shown(repo)}` has no alias `{shown(name)}` on {hub.endpoint}",
                hint=f"`adapt alias list {repo} --remote {self.remote}` lists those that it has",
            )
        return alias

    def roll_back(self, spec: AdapterSpec, *, to: int | None) -> Alias:
        """Point an alias at what it meant before; raises the server's own errors."""
        hub, repo, name = self._place_of(spec)
        return hub.aliases.roll_back(repo, name, to)

    def remove(self, spec: AdapterSpec) -> Alias:
        """Remove an alias; its history stays."""
        hub, repo, name = self._place_of(spec)
        return hub.aliases.remove(repo, name)

    def _place_of(self, spec: AdapterSpec) -> tuple[Hub, str, str]:
        """The server, the repository and the alias that `acme/legal-qa@prod` names."""
        spec = self._in_full(spec)
        repo, name = _adapter_and_alias(spec)
        hub = self._hub(spec)
        found = hub.aliases.find(spec)
        return hub, found.repo if found else repo, name

    def _hub(self, spec: AdapterSpec) -> Hub:
        from adapterhub.api.steps.publishing import server_of

        return server_of(self.session, spec, self.remote, token=self.token, offline=self.offline)

    def _in_full(self, spec: AdapterSpec) -> AdapterSpec:
        """The spec with the only namespace of the remote where it names none."""
        namespaces: Sequence[str] = self.session.remote(self.remote).namespaces
        return replace(spec, namespace=namespaces[0]) if spec.namespace is None and len(namespaces) == 1 else spec


def _registry(session: Session, remote: str | None, token: str | None, *, offline: bool) -> _Registry | None:
    """The registry that is named; None for the library.

    Raises:
        UsageProblem: a token is for none.
    """
    if remote is None and token is not None:
        raise UsageProblem("`--token` is for a registry", hint="name it with `--remote`")
    return None if remote is None else _Registry(session, remote, token, offline)
