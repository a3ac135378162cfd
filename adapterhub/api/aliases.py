"""Aliases from Python: `library.set_alias("prod", "legal-qa==1.2")`; of the library, of a project, or of a registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from adapterhub.api.opened import BaseLike, OpenedLibrary, SpecLike, record_of, spec_of
from adapterhub.core.arguments import Count, Days, Newest, StrPath, parsed
from adapterhub.core.errors import NotFound, UsageProblem, shown
from adapterhub.formats.administration import AliasRetention
from adapterhub.formats.alias import Alias, AliasMove

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.distribution.hub import Hub
    from adapterhub.formats.contract.contract import Contract
    from adapterhub.formats.prompts.form import PromptForm
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.following import Published
    from adapterhub.live.following import Registry
    from adapterhub.live.stream import LiveStream
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
        """Return the aliases of the library, or those of one adapter; with `remote`, those of a repository there.

        `legal-qa@prod` is a list of this alias.

        Raises:
            UsageProblem: `remote` without a repository.
            AdapterNotFound: there is no such repository.
            NotFound: there is no such alias, or it was removed.
        """
        wanted = None if adapter is None else spec_of(adapter)
        if wanted is not None and wanted.base is not None:
            return [self.alias(wanted, remote=remote, token=token, offline=offline)]
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
        """Return the meaning of `legal-qa@prod`: `.targets`, and `.main`, the one with the largest weight.

        Raises:
            NotFound: there is no such alias, or it was removed.
        """
        there = _registry(self.session, remote, token, offline=offline)
        found = there.find(spec_of(spec)) if there else self._ever(spec_of(spec))
        _ensure_there(found)
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
        """Return the moves of an alias, oldest first: `.at` (Unix time), `.by`, `.action` and the `.targets` after it.

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

    def keep_alias(
        self,
        spec: SpecLike,
        newest: Newest | None = None,
        days: Days = 30.0,
        *,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> AliasRetention:
        """Let a repository of a registry keep only the `newest` versions that an alias named, or `all`.

        The others go `days` after the alias left them. Without `newest`, nothing changes. `remote` is the registry, by
        default that of the namespace.

        Returns:
            The rule as set: `.newest`, `.grace_days`, `.set_by` and `.set_at`.

        Raises:
            NotFound: there is no such alias.
            NotAllowed: the token may not write to the repository.

        Example:
            >>> library.keep_alias("acme/agent@current", 20, remote="ours").newest
            20
        """
        change = None if newest is None else {"newest": None if newest == "all" else newest, "grace_days": days}
        return _Registry(self.session, remote, token, offline).retention(spec_of(spec), change)

    def live(
        self,
        adapter: SpecLike,
        *,
        base: BaseLike | None = None,
        alias: str = "live",
        keep: Count | None = 5,
        gate: Contract | StrPath | Callable[[Published], bool | str | None] | None = None,
        remote: str | None = None,
        config: Any = None,
        task: str | None = None,
        description: str = "",
        license: str | None = None,  # noqa: A002 - as in `add`
        prompt: PromptForm | None = None,
        token: str | None = None,
    ) -> LiveStream:
        """Return the stream of an adapter for one base, which a training publishes and others follow.

        Nothing is written yet.

        Args:
            adapter: name and base, such as `agent@base-7b`.
            base: the base, where `adapter` does not name it.
            alias: of the current version: `agent@live`.
            keep: how many versions stay; older ones go when nothing needs them. None keeps all.
            gate: what a version has to pass before the alias moves to it: a contract, a file of one, `own` for the one
                in a published folder, or a function that gets the version and returns True, or the reason to refuse it.
            remote: a registry, to whose repository of that name each version that became current is pushed too.
            config: the adapter's config, of PEFT or as a mapping, for state dicts.
            task: what it is for, such as `legal-qa`.
            description: one sentence for lists and search.
            license: an SPDX expression.
            prompt: how the adapter wants to be asked.
            token: access token for `remote`.

        Returns:
            `.publish(model, step=…)` makes the next version current; `.target()` and `.current()` are the current
            one, `.events()` its history, and `.close()` waits until all is durable.

        Raises:
            BaseNotFound, Malformed: the base is not known here, or cannot be read.
            Conflict: a base has the name of the alias.
            NamespaceBound: the namespace belongs to a remote, and what this library makes in it would not be used.
            UsageProblem, SpecError: the spec names no base, or several, or an argument has an impossible value.
        """
        from adapterhub.library.admission import Admission
        from adapterhub.live.stream import LiveStream

        spec = spec_of(adapter)
        if spec.specifiers or spec.digest_prefix or (spec.base is None) == (base is None):
            raise UsageProblem(
                f"`{spec}` is not a stream, which has one adapter and one base", hint=f"write `{spec.full_name}@BASE`"
            )
        record = record_of(self, base) if base is not None else self.bases.find(cast("BaseSpec", spec.base))
        about = {"task": task, "description": description, "license": license, "prompt": prompt}
        spec = replace(spec, base=None)
        hint = f"publish `{spec.name}`, with `remote=`: its repository is `{spec}`"
        Admission(self).ensure_place_allowed(self.place, spec.namespace, hint=hint)
        return LiveStream(
            self,
            spec,
            record,
            alias=alias,
            keep=keep,
            config=config,
            about=about,
            gate=gate if gate is None or callable(gate) else self._gate(gate, record),
            send=None if remote is None else self._sender(spec, alias, remote, token),
            registry=None if remote is None else self._registry_of(spec, alias, remote, token),
        )

    def _gate(self, tests: Contract | StrPath, base: BaseRecord) -> Callable[[Published], bool | str]:
        """Let a version pass that a contract passes; `own` is the one in its own folder."""
        from adapterhub.api.contracts.testing import WithContracts

        own = None if tests == "own" else tests

        def passes(published: Published) -> bool | str:
            [tested] = WithContracts.test(cast("WithContracts", self), published.build, base=base, tests=own)
            return tested.verdict == "PASS" or f"{tested.verdict}: {tested.detail or '; '.join(tested.broken)}"

        return passes

    def _sender(self, spec: AdapterSpec, alias: str, remote: str, token: str | None) -> Callable[[Published], None]:
        """Push a version to the repository of the adapter's name and move its alias there, both or neither.

        Raises:
            UsageProblem: the name has no namespace, and the remote not exactly one.
            NotFound: no remote has that name.
        """
        from adapterhub.api.publishing import push_as

        full_name = self._name_at(spec, remote)

        def send(published: Published) -> None:
            push_as(self, alias, published.build, to=full_name, remote=remote, token=token)

        return send

    def _name_at(self, spec: AdapterSpec, remote: str) -> str:
        """Return the name of a stream's repository."""
        namespaces = self.session.remote(remote).namespaces
        full_name = spec.full_name if spec.namespace or len(namespaces) != 1 else f"{namespaces[0]}/{spec.name}"
        if "/" not in full_name:
            raise UsageProblem(f"`{spec}` has no namespace, which a repository needs", hint=f"write `ORG/{spec}@BASE`")
        return full_name

    def _registry_of(self, spec: AdapterSpec, alias: str, remote: str, token: str | None) -> Registry:
        """Return what a follower needs of a registry, which is asked only while one follows."""
        from adapterhub.api.installing import WithInstalling
        from adapterhub.core.specs import AdapterSpec
        from adapterhub.distribution.events import EventFeed, feed_of
        from adapterhub.live.following import Registry

        there = AdapterSpec.parse(f"{self._name_at(spec, remote)}@{alias}")

        def bring() -> object:
            return WithInstalling.install(cast("WithInstalling", self), there, remote=remote, token=token)

        def open_feed() -> EventFeed | None:
            session = self.session
            return feed_of(session.named_source(session.remote(remote), remote, token=token, offline=False))

        return Registry(alias=there, bring=bring, open_feed=open_feed)

    def _ever(self, spec: AdapterSpec) -> Alias:
        """Return the alias that a spec names, of the project or of the library, also after its removal."""
        from adapterhub.library.aliasing import alias_of

        adapter, name = self._parts(spec)
        found = alias_of(self, spec) or self.aliases.ever(adapter, name)
        if found is None:
            raise self.aliases.lacking(adapter, name)
        return found

    def _own(self, spec: AdapterSpec) -> tuple[str, str]:
        """Return the full name and alias of the library's own alias that `spec` means."""
        adapter, name = self._parts(spec)
        found = self.aliases.meant(spec)
        return (found.adapter, name) if found else (adapter, name)

    def _parts(self, spec: AdapterSpec) -> tuple[str, str]:
        """Split a spec as `_adapter_and_alias` does; for a bare alias, the hint names the adapters that have it."""
        try:
            return _adapter_and_alias(spec)
        except UsageProblem as error:
            called = [f"`{alias.adapter}@{alias.name}`" for alias in self.aliases.all() if alias.name == str(spec)]
            if called:
                raise UsageProblem(error.message, hint=f"write {' or '.join(called[:3])}") from None
            raise


def _ensure_there(found: Alias) -> None:
    if not found.targets:
        raise NotFound(f"`{found}` was removed", hint=f"`adapt alias rollback {found}` brings it back")


def targets_of(targets: TargetsLike) -> Targets:
    """Return the builds under an alias as specs, each with its weight; None for the only one."""
    if isinstance(targets, Mapping):
        return [(spec_of(spec), weight) for spec, weight in targets.items()]
    if isinstance(targets, Sequence) and not isinstance(targets, str):
        return [(spec_of(spec), weight) for spec, weight in targets]
    return [(spec_of(targets), None)]


def _weights_of(targets: Targets) -> list[float]:
    """Return the weight of each target; 1 for the only one.

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
    """Return the full name and the alias in `legal-qa@prod`.

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
    remote: str | None
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
        """Return the aliases of a repository."""
        spec = self._in_full(repository)
        return [one.alias for one in self._hub(spec).aliases.all(spec.full_name)]

    def find(self, spec: AdapterSpec) -> Alias:
        """Return an alias with its history, also after its removal."""
        hub, repo, name = self._place_of(spec)
        alias = hub.aliases.history(repo, name)
        if not alias.moves:
            raise NotFound(
                f"`{shown(repo)}` has no alias `{shown(name)}` on {hub.endpoint}",
                hint=f"`adapt alias list {repo} --remote {self.remote or hub.endpoint}` lists those that it has",
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

    def retention(self, spec: AdapterSpec, change: dict[str, Any] | None) -> AliasRetention:
        """Return how many versions of an alias the registry keeps, after a `change` if there is one."""
        hub, repo, name = self._place_of(spec)
        if change is None or change["newest"] is not None:
            _ensure_there(self.find(spec))
        return hub.aliases.retention(repo, name, change)

    def _place_of(self, spec: AdapterSpec) -> tuple[Hub, str, str]:
        """Return the server, the repository and the alias that `acme/legal-qa@prod` names."""
        spec = self._in_full(spec)
        repo, name = _adapter_and_alias(spec)
        hub = self._hub(spec)
        found = hub.aliases.find(spec)
        return hub, found.repo if found else repo, name

    def _hub(self, spec: AdapterSpec) -> Hub:
        from adapterhub.api.steps.publishing import server_of

        return server_of(self.session, spec, self.remote, token=self.token, offline=self.offline)

    def _in_full(self, spec: AdapterSpec) -> AdapterSpec:
        """Return the spec with the only namespace of the remote where it names none."""
        namespaces: Sequence[str] = self.session.remote(self.remote).namespaces
        return replace(spec, namespace=namespaces[0]) if spec.namespace is None and len(namespaces) == 1 else spec


def _registry(session: Session, remote: str | None, token: str | None, *, offline: bool) -> _Registry | None:
    """Return the registry that is named; None for the library.

    Raises:
        UsageProblem: a token is for none.
    """
    if remote is None and token is not None:
        raise UsageProblem("`token` is only for a registry", hint="name it with `remote`")
    return None if remote is None else _Registry(session, remote, token, offline)
