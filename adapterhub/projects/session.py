"""The starting point of every face: the library's root, the known remotes, tokens, and the places to look in.

The command line, the vLLM plugin and Python programs each make a `Session`. It never reads the environment or prompts
the user: the face passes in its variables, a reporter, and a function that asks about a project's servers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapterhub.core.errors import BaseNotFound, NotFound, RemoteUnreachable, SpecError, UsageProblem, reworded, shown
from adapterhub.projects.reporting import LogReporter, Reporter

if TYPE_CHECKING:
    from adapterhub.core.digests import Digest
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.distribution.hub import Hub
    from adapterhub.formats.alias import Alias
    from adapterhub.formats.contract.reader import Rules
    from adapterhub.formats.contract.standards import Standards
    from adapterhub.library.bases.requested import RequestedBase
    from adapterhub.library.library import Library
    from adapterhub.library.remotes import Remote, Remotes
    from adapterhub.library.transfer import Source
    from adapterhub.projects.values import Project, Servers

_DAY_S: Final = 86_400.0
HUB_NAME, HUB_URL = "hub", "https://huggingface.co"
"""The same as in `library.remotes`, which is imported only when a server is needed."""


@dataclass(frozen=True, slots=True)
class Session:
    """A library and everything needed to find adapters.

    `variables` are the environment variables of the face. `project_dir` overrides the nearest project above the
    working directory, which counts if the session `follows_folder`. `trusts_project` trusts the project's servers for
    this session; otherwise `agree` asks the user before any of them is contacted, and a True is saved. `ask_password`
    asks for the password of a key by its name. Both are None when there is no user to ask.
    """

    root: Path
    out: Reporter = field(default_factory=LogReporter)
    variables: Mapping[str, str] = field(default_factory=dict)
    project_dir: Path | None = None
    follows_folder: bool = True
    trusts_project: bool = False
    agree: Callable[[Project, Servers], bool] | None = None
    ask_password: Callable[[str], str] | None = None
    _opened: dict[tuple[str, str, str | None], Source] = field(default_factory=dict, repr=False, compare=False)
    _noted: set[str] = field(default_factory=set, repr=False, compare=False)
    _libraries: list[Library] = field(default_factory=list, repr=False, compare=False)

    @property
    def library(self) -> Library:
        """The library, the same for the whole session."""
        if not self._libraries:
            self._libraries.append(self._new_library())
        return self._libraries[0]

    def _new_library(self) -> Library:
        from adapterhub.library.library import Library

        library = Library(self.root)
        self.bind(library)
        return library

    def bind(self, library: Library) -> None:
        """Let `library` report to this session, and know the aliases of its project."""
        library.note_choice, library.warn_of_choice = self.note_once, self.warn_once
        library.project_alias = self._project_alias

    def project_rules(self) -> Rules | None:
        """Return the rules that the policy `tests-never` of the project names.

        None without any, and outside a project.
        """
        project = self.project
        if project is None or project.policy.tests_never is None:
            return None
        from adapterhub.formats.contract.reader import read_rules

        return read_rules(project.folder / project.policy.tests_never)

    def project_bounds(self) -> Mapping[str, float]:
        """Return the loosest bounds of any test: the user's own, and those of the project's policy `tests-bounds`."""
        return self.standards.bounds

    @property
    def standards(self) -> Standards:
        """The policy for a build without a PASS, and for which PASS counts, in the project and for its user.

        Raises:
            NotAllowed, Malformed: the user's own settings, or the project file, cannot be used.
        """
        from adapterhub.formats.contract.standards import Standards
        from adapterhub.library.own_settings import OwnSettings

        project = self.project
        return (project.policy.standards if project else Standards()).and_own(OwnSettings(self.root).read())

    def _project_alias(self, spec: AdapterSpec) -> Alias | None:
        """Return the alias of the project that `spec` names; None outside a project."""
        from adapterhub.projects.builds import ProjectNames

        folder = self.project_folder
        return ProjectNames(folder).alias(spec) if folder is not None else None

    def note_once(self, text: str) -> None:
        """Report `text` unless it is empty or this session has reported it."""
        if text and text not in self._noted:
            self._noted.add(text)
            self.out.note(text)

    def warn_once(self, text: str) -> None:
        """Warn of `text` unless this session has reported it."""
        if text not in self._noted:
            self._noted.add(text)
            self.out.warn(text)

    @property
    def project_library(self) -> Library:
        """The library, with bare names resolved by the project's lock file."""
        folder = self.project_folder
        if folder is None:
            return self.library
        from adapterhub.projects.builds import ProjectNames

        library = self._new_library()
        library.resolve_name = ProjectNames(folder, self.out.note).build
        return library

    @property
    def remotes(self) -> Remotes:
        """The named remotes."""
        from adapterhub.library.remotes import Remotes

        return Remotes(self.root)

    @property
    def project_folder(self) -> Path | None:
        """The folder of the project: `project_dir`, or the nearest one upwards; None outside a project.

        Raises:
            NotFound: `project_dir` holds no project.
        """
        from adapterhub.core.disk.files import ensure_there
        from adapterhub.core.disk.home import PROJECT_FILE
        from adapterhub.projects.project import find_project

        named = self.project_dir
        if named is None:
            return find_project(Path.cwd()) if self.follows_folder else None
        hint = f"`adapt init {named}` creates one"
        ensure_there(named, NotFound, what="folder", hint=hint)
        if not (named / PROJECT_FILE).is_file():
            raise NotFound(f"`{named}` has no `{PROJECT_FILE}`", hint=hint)
        return named

    @property
    def project(self) -> Project | None:
        """The project of this session; None outside a project.

        Raises:
            NotFound, Malformed: `project_dir` holds no project, or its file is unusable.
        """
        folder = self.project_folder
        if folder is None:
            return None
        from adapterhub.projects.project import read_project

        return read_project(folder)

    def need_project(self) -> Project:
        """Return the project of this session.

        Raises:
            NotFound, Malformed: there is no project, or its file is unusable.
        """
        project = self.project
        if project is None:
            raise NotFound(
                f"no project: neither `{Path.cwd()}` nor a folder above it has an `adapters.toml`",
                hint="create one here with `adapt init`, or name another with `--project DIR`",
            )
        return project

    def remote(self, named: str | None, *, for_bases: bool = False) -> Remote:
        """Return the remote that `--remote` names, or the default.

        The default for bases is never a remote of adapters.
        """
        remotes = self.remotes
        if named:
            return remotes.get(named)
        configured = self.variables.get("ADAPTERHUB_REMOTE")
        if configured and not for_bases:
            return remotes.get(configured)
        default = None if for_bases else remotes.default()
        return default or remotes.get(self.variables.get("HF_ENDPOINT") or HUB_NAME)

    def open_remote(self, remote: Remote, *, token: str | None = None, offline: bool = False) -> Source:
        """Return the remote as a source; `token` is one that was given for it.

        Raises:
            RemoteUnreachable: `offline` forbids it.
            UsageProblem: this version has no such kind of remote.
        """
        from adapterhub.distribution.kind import RemoteAccess
        from adapterhub.distribution.remote_kinds import kind_named

        kind = kind_named(remote.kind)
        if offline and kind.is_server:
            raise RemoteUnreachable("`--offline` forbids contacting a server", hint="run it again without `--offline`")
        access = RemoteAccess(
            label=f"remote `{remote.name}` ({remote.url})" if remote.name else f"server `{remote.url}`",
            token=token or self._token_for(remote),
            witness=self.remotes.witness_of(remote.url),
            silence_s=_silence_s(self.variables),
            shows_bars=self.out.shows_bars,
            allows_telemetry="HF_HUB_DISABLE_TELEMETRY" in self.variables,
            variables=self.variables,
        )
        key = remote.kind, remote.url, access.token
        if key not in self._opened:  # one for all specs of a command: a server's features are requested once
            self._opened[key] = kind.open(kind.parse_address(remote.url), access)
        return self._opened[key]

    def hub(self, remote: Remote, *, token: str | None = None, offline: bool = False) -> Hub:
        """Return the remote as a server of the Hub's protocol, the only one with write access and search.

        Raises:
            RemoteUnreachable: `offline` forbids it.
            UsageProblem: the remote is of another kind.
        """
        return hub_of(self.open_remote(remote, token=token, offline=offline))

    def project_source(self, remote: Remote) -> Source:
        """Return a remote that a project file names; it sees a token only if the user gave one for this very URL."""
        return self._source_with(remote, None, None)

    def place_source(self, place: str, *, token: str | None = None) -> Source:
        """Return the server that a build was installed from.

        `token` is for the default server, and goes to no other.
        """
        from adapterhub.distribution.remote_kinds import kind_of
        from adapterhub.library.remotes import Remote

        kind = kind_of(place)
        url = kind.parse_address(place)
        known = (remote for remote in self.remotes.all() if remote.url == url)
        return self._source_with(next(known, Remote(name="", url=url, kind=kind.name)), None, token)

    def followed_places(self, named: str | None, builds: Mapping[Digest, str]) -> list[str]:
        """Return the servers that requests are looked up on: `named`, or the remotes.

        And those that `builds` came from.

        `builds` are labels such as `acme/legal-qa==1.2.0` by digest.
        """
        from adapterhub.library.store.origins import is_url

        remotes = [self.remote(named)] if named else self.remotes.all()
        found = [remote.url for remote in remotes]
        for digest, label in builds.items():
            origin = self.library.origins.under(digest, label.rpartition("==")[0])
            found += [origin.place] if origin is not None and origin.is_server else []
        return list(dict.fromkeys(url for url in found if is_url(url)))

    def named_source(self, remote: Remote, named: str | None, *, token: str | None, offline: bool) -> Source:
        """Return a remote opened with the token that the command line or the environment gives for it."""
        return self.open_remote(remote, token=token or self._environment_token(remote, named), offline=offline)

    def has_token(self, remote: Remote, named: str | None) -> bool:
        """Return whether a token for the remote is known, from the environment or a login."""
        return bool(self._environment_token(remote, named) or self._token_for(remote))

    def named_hub(self, named: str | None, *, token: str | None, offline: bool, for_bases: bool = False) -> Hub:
        """Return the server that `--remote` names, or the default one."""
        remote = self.remote(named, for_bases=for_bases)
        return hub_of(self.named_source(remote, named, token=token, offline=offline))

    def sources_of(self, spec: AdapterSpec, named: str | None, *, token: str | None) -> list[Source]:
        """Return the remotes to look up `spec` in, in order.

        A namespace is looked up on the remotes that own it, or on the default one. A bare name is looked up in the
        namespaces of each remote, never on a whole hub. `--remote` restricts the lookup to that remote.
        """
        from adapterhub.distribution.remote_kinds import kind_named

        remotes = self.remotes
        if spec.namespace is not None:
            asked = [] if named else remotes.of_namespace(spec.namespace)
            asked = asked or [self.remote(named)]
            return [self._source_with(remote, named, token) for remote in asked]
        asked = [self.remote(named)] if named else [r for r in remotes.all() if r.namespaces]
        return [
            kind_named(remote.kind).within(self._source_with(remote, named, token), namespace)
            for remote in asked
            for namespace in remote.namespaces
        ]

    def cached_sources(self) -> list[Source]:
        """Return the cache of the Hub's client, for when no server may be contacted; empty if there is none."""
        from adapterhub.distribution.hub_cache import HubCache, cache_folder

        folder = cache_folder(self.variables)
        return [HubCache(folder)] if folder.is_dir() else []

    def _source_with(self, remote: Remote, named: str | None, token: str | None) -> Source:
        # the token belongs to the one server that is named or the default, not to the owner of the namespace
        mine = token if remote.url == self.remote(named).url else None
        return self.open_remote(remote, token=mine or self._environment_token(remote, named))

    def _environment_token(self, remote: Remote, named: str | None) -> str | None:
        """Return ADAPTERHUB_TOKEN if it is for this remote: ADAPTERHUB_REMOTE, or the named or default remote."""
        configured = self.variables.get("ADAPTERHUB_REMOTE")
        owner = self.remotes.get(configured) if configured else self.remote(named)
        return self.variables.get("ADAPTERHUB_TOKEN") if owner.url == remote.url else None

    def _token_for(self, remote: Remote) -> str | None:
        """Return the token of `adapt remote login`, or the one that the Hub's client saved for this server."""
        kept = self.remotes.token(remote.url)
        if kept is not None or remote.url != (self.variables.get("HF_ENDPOINT") or HUB_URL).rstrip("/"):
            return kept
        from huggingface_hub import get_token

        return get_token()


def _silence_s(variables: Mapping[str, str]) -> float | None:
    """ADAPTERHUB_TIMEOUT_S: how long to wait for a server's next byte; None means the default."""
    text = variables.get("ADAPTERHUB_TIMEOUT_S", "")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _DAY_S:  # also refuses NaN
        raise UsageProblem(f"ADAPTERHUB_TIMEOUT_S is `{shown(text)}`, expected seconds above 0")
    return seconds


def hub_of(source: Source) -> Hub:
    """Return the server of the Hub's protocol that a source is, or is a part of.

    Raises:
        UsageProblem: the source is of another kind.
    """
    from adapterhub.distribution.kinds.hub import hub_behind

    hub = hub_behind(source)
    if hub is None:
        raise UsageProblem(
            f"{source.label} does not speak the Hugging Face Hub's protocol, which this needs. Nothing was changed",
            hint="`adapt remote list` shows the remotes; `--remote NAME` names another",
        )
    return hub


def wanted_from(library: Library, spec: AdapterSpec, base: BaseSpec | None) -> RequestedBase | None:
    """Return the requested base: the one in the spec after `@`, or `base` (`--base`). An alias after `@` is not a base.

    Raises:
        SpecError: the two differ.
        BaseNotFound: no such base is known.
    """
    from adapterhub.library.aliasing import alias_of
    from adapterhub.library.bases.requested import requested_base

    if alias_of(library, spec) is not None:
        return requested_base(base, library.bases)
    if spec.base is not None and base is not None and spec.base != base:
        raise SpecError(str(spec), f"names base `{spec.base}`, but --base names `{base}`", hint="name it once")
    try:
        return requested_base(spec.base or base, library.bases, spec)
    except BaseNotFound as error:
        if spec.base is None or spec.base.kind != "alias":
            raise
        raise reworded(error, hint=f"{error.hint}; `adapt alias list` shows the aliases of adapters") from None


def sources_from(session: Session, places: tuple[Path, ...]) -> list[Source]:
    """Return the places on disk to look in: `places` (`--from`), then those of ADAPTERHUB_SOURCES (divided by `:`)."""
    from adapterhub.library.directory import open_source

    configured = map(Path, filter(None, session.variables.get("ADAPTERHUB_SOURCES", "").split(os.pathsep)))
    return [open_source(path) for path in (*places, *configured) if path.resolve() != session.root.resolve()]
