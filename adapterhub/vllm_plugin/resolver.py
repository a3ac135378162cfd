"""The resolver that vLLM's API server calls for every unknown model name."""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final

from adapterhub.core.errors import (
    AdapterHubError,
    AdapterNotFound,
    BaseNotFound,
    SpecError,
    UnsupportedAdapter,
    shown,
)
from adapterhub.vllm_plugin.cpu_rows import vllm_version
from adapterhub.vllm_plugin.names import LOGGER, NAME

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

    from adapterhub.core.digests import Digest
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.inference.serving import AdapterProvider, LeasedAdapter, ServeSettings, UnreachableRemotes
    from adapterhub.inference.serving.access.denied import Denied
    from adapterhub.inference.serving.auto import Auto
    from adapterhub.inference.serving.following import Followers
    from adapterhub.inference.serving.metrics import LookUp, ServingMetrics
    from adapterhub.library.library import Library
    from adapterhub.library.transfer import Source
    from adapterhub.projects.session import Session

AT_ONCE: Final = 4
"""The number of installed adapters that are looked up and checked at the same time; vLLM's own threads stay free."""

FETCHES_AT_ONCE: Final = 8
"""The number of names that are looked up on remotes at the same time. They have threads of their own, so that a slow
remote does not hold up an installed adapter."""

TIMEOUT_S: Final = 5.0
"""How long to wait for a remote's next byte while clients wait; ADAPTERHUB_TIMEOUT_S sets another time."""

FAULT: Final = "`{name}` could not be resolved; the server's log shows the reason"
"""What a client gets after a fault of ours."""

_DEFAULT_MAX_RANK: Final = 16

_log = logging.getLogger(LOGGER)
_registered: list[AdapterHubResolver] = []


def register_resolver(environ: Mapping[str, str]) -> None:
    """Add the resolver to vLLM's registry, unless it is there already."""
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    if NAME in LoRAResolverRegistry.get_supported_resolvers():
        return
    resolver = AdapterHubResolver(environ)
    LoRAResolver.register(AdapterHubResolver)
    LoRAResolverRegistry.register_resolver(NAME, resolver)
    _registered.append(resolver)


def registered_resolver() -> AdapterHubResolver | None:
    """The resolver of this process, if `register_resolver` added one."""
    return _registered[0] if _registered else None


class AdapterHubResolver:
    """Resolves a name to a checked and leased folder; see `vllm.lora.resolver.LoRAResolver`.

    Opens nothing before the first request: each process of vLLM creates a resolver, but only the API server uses its
    own. All work runs in threads, because hashing and downloads on the event loop would block every client.
    """

    def __init__(self, environ: Mapping[str, str], argv: Sequence[str] = ()) -> None:
        self._environ = environ
        self.argv = list(argv) or sys.argv
        self.local = ThreadPoolExecutor(AT_ONCE, thread_name_prefix=NAME)  # starts threads when it needs them
        self.remote = ThreadPoolExecutor(FETCHES_AT_ONCE, thread_name_prefix=f"{NAME}-fetch")
        self._pending: dict[str, asyncio.Future[tuple[LeasedAdapter, LookUp]]] = {}
        self.aliases = MovingNames(self)
        self._provider: AdapterProvider | None = None
        self._session: Session | None = None
        self._auto: Auto | None = None
        self._opening = Lock()

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The request for vLLM, or None if another resolver may know the name.

        Raises:
            GracefulHTTPError: the refusal, with its HTTP status and message.
        """
        from vllm.exceptions import GracefulHTTPError
        from vllm.lora.request import LoRARequest

        try:
            await self._ensure_no_alias(base_model_name, lora_name)
            leased = await self.leased(base_model_name, lora_name)
        except AdapterHubError as error:
            note_refusal(lora_name, error)
            if isinstance(error, SpecError | AdapterNotFound) and _others_may_know():
                return None
            from adapterhub.inference.serving import refusal_of

            refusal = refusal_of(error, lora_name)
            self.count_refusal(refusal.status)
            raise GracefulHTTPError(refusal.message, refusal.status) from None
        except Exception:  # noqa: BLE001 - after any failure the client gets an answer and the server goes on
            note_fault(lora_name)
            words = FAULT.format(name=shown(lora_name))
            self.count_refusal(HTTPStatus.FAILED_DEPENDENCY)
            raise GracefulHTTPError(words, HTTPStatus.FAILED_DEPENDENCY) from None  # see `refusal`: never a 5xx
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(leased.folder))

    async def _ensure_no_alias(self, base_model_name: str, name: str) -> None:
        """Raise for an alias, which vLLM would never look up again; the middleware lets none come here."""
        if await self.aliases.exact(base_model_name, name) != name:
            raise UnsupportedAdapter(
                f"`{shown(name)}` is an alias, and this server runs without adapterhub's middleware",
                hint="start it with `adapt serve`, or with `--middleware adapterhub.vllm_plugin.guard.Guard`",
            )

    def count_refusal(self, status: int) -> None:
        """Count a request for an adapter that gets none."""
        self.metrics.looked_up("refused")
        self.metrics.refused(status)

    async def leased(self, base_model_name: str, name: str) -> LeasedAdapter:
        """The adapter for `name`, a spec without an alias, checked and leased.

        Raises:
            AdapterHubError: the refusal.
        """
        return (await self.found(base_model_name, name))[0]

    async def found(self, base_model_name: str, name: str) -> tuple[LeasedAdapter, LookUp]:
        """The same, and how it was found."""
        known = self.known(name)
        if known is not None:
            return known, "hit"
        if name not in self._pending:  # simultaneous requests for a name share one lookup
            self._pending[name] = asyncio.ensure_future(self._look_up(base_model_name, name))
            self._pending[name].add_done_callback(lambda _: self._pending.pop(name))
        return await asyncio.shield(self._pending[name])  # a client that leaves does not end it for the others

    async def _look_up(self, base_model_name: str, name: str) -> tuple[LeasedAdapter, LookUp]:
        loop = asyncio.get_running_loop()
        provider = await self.provider(base_model_name)
        leased = await loop.run_in_executor(self.local, provider.find_installed, name)
        found: LookUp = "installed"
        if leased is None:
            leased, found = await loop.run_in_executor(self.remote, provider.fetch, name), "fetched"
        _log.info("%s is %s, %s", shown(name), leased.label, leased.digest)
        for warning in leased.warnings:
            _log.warning("%s: %s", shown(name), warning)
        return leased, found

    async def provider(self, base_model_name: str) -> AdapterProvider:
        """The provider for the served model; the first call opens it in a thread."""
        if self._provider is not None:
            return self._provider
        return await asyncio.get_running_loop().run_in_executor(self.local, self._opened, base_model_name)

    def known(self, name: str) -> LeasedAdapter | None:
        """The adapter that `name` is by the last lookup; see `AdapterProvider.known`."""
        if self._provider is None:
            return None
        return self._provider.known(next(iter(self._provider.aliases.specs(name)), name))

    def release(self, leased: LeasedAdapter) -> None:
        """End a lease; see `AdapterProvider.release`."""
        if self._provider:
            self._provider.release(leased.digest)

    def base_digest(self) -> str:
        """The digest of the served base's weights; "" before the first lookup."""
        return self._provider.base.fingerprint.weights if self._provider else ""

    @functools.cached_property
    def settings(self) -> ServeSettings:
        """The settings of this process; raises `UsageProblem` for bad ones."""
        from adapterhub.inference.serving import ServeSettings

        return ServeSettings.from_environ(self._environ)

    @functools.cached_property
    def metrics(self) -> ServingMetrics:
        """What this process has done with adapters."""
        from adapterhub.inference.serving.metrics import metrics_of_process

        return metrics_of_process()

    @functools.cached_property
    def denied(self) -> Denied:
        """What this server does not serve any more; raises as `Denied`."""
        from adapterhub.inference.serving.access.denied import Denied

        return Denied(self.settings.deny, self.settings.deny_file)

    async def auto(self, base_model_name: str) -> Auto | None:
        """What answers the model name `auto`; None without a routing file. The first call opens it in a thread."""
        if self._auto is None and self.settings.route is not None:
            provider = await self.provider(base_model_name)
            weights = provider.base.fingerprint.weights
            self._auto = await asyncio.get_running_loop().run_in_executor(
                self.local, self._auto_for, provider.library, self.settings.route, weights
            )
        return self._auto

    def _auto_for(self, library: Library, route: Path, base_weights: str) -> Auto:
        from adapterhub.inference.serving.auto import Auto

        return Auto.open(library, route, base_weights)

    @functools.cached_property
    def _remotes(self) -> UnreachableRemotes:
        from adapterhub.inference.serving import UnreachableRemotes

        return UnreachableRemotes()

    def look_for_yanks(self) -> None:
        """Deny what its server has yanked; see `access.denied`. Blocks."""
        from adapterhub.inference.serving.access.denied import look_for_yanks

        if self._provider is not None and self._session is not None:
            find_source = None if self.settings.offline else self._session.place_source
            look_for_yanks(self._provider.library, self._provider.leased(), self.denied, find_source, self._remotes)

    def followers(self, refresh_aliases: Callable[[], None]) -> Followers:
        """The threads that follow the events of the registries that adapters come from; see `Followers`."""
        from adapterhub.inference.serving.following import Followers, Reactions, Renewals, feed_of

        renewals = Renewals(lambda: self._provider)
        heard = Reactions(
            served=lambda: {*self._served(), *self.denied.withdrawn()},
            look_for_yanks=self.look_for_yanks,
            refresh_aliases=refresh_aliases,
            renew=renewals.renew,
        )
        return Followers(
            self._places,
            lambda place: feed_of(self._of_session().place_source(place)),
            heard,
            self._remotes,
            renewals.retry,
        )

    def _served(self) -> dict[Digest, str]:
        return self._provider.leased() if self._provider else {}

    def _of_session(self) -> Session:
        assert self._session is not None  # `_places` names none before
        return self._session

    def _places(self) -> list[str]:
        """The registries that adapters come from; none before the first request for one."""
        return self._session.followed_places(self.settings.remote, self._served()) if self._session else []

    def _opened(self, base_model_name: str) -> AdapterProvider:
        """The provider for the served model, whose files are read once."""
        with self._opening:
            if self._provider is None:
                self._provider = self._open(base_model_name)
                atexit.register(self._provider.close)
            return self._provider

    def _open(self, base_model_name: str) -> AdapterProvider:
        from adapterhub.core.specs import BaseSpec
        from adapterhub.inference.serving.vllm import option_in

        folder = folder_of_model(base_model_name, option_in(self.argv, "--revision"))
        return self.open_provider(BaseSpec(kind="path", text=str(folder)))

    def open_provider(self, base: BaseSpec) -> AdapterProvider:
        """A provider of adapters for `base`, with the places and limits of the environment and the command line."""
        from adapterhub.inference.serving import AdapterProvider
        from adapterhub.inference.serving.provider import PassGate
        from adapterhub.library.bases.records import Bases
        from adapterhub.projects.reporting import LogReporter
        from adapterhub.projects.session import Session

        settings = self.settings
        variables = {"ADAPTERHUB_TIMEOUT_S": str(TIMEOUT_S), **self._environ}
        session = Session(root=settings.root, out=LogReporter(LOGGER), variables=variables)
        self._session = session
        library = session.library
        bases: Bases = library.bases
        record = bases.find(base)

        def sources(spec: AdapterSpec) -> Sequence[Source]:
            return _sources(session, spec, settings, self._remotes)

        return AdapterProvider(
            library,
            record,
            engine=f"vllm@{vllm_version() or ''}".rstrip("@"),
            sources=sources,
            max_rank=settings.max_rank or _max_rank_in(self.argv),
            signatures=settings.signatures,  # type: ignore[arg-type]  # one of the policies, or None
            alias_ttl_s=settings.alias_ttl_s,
            denied=self.denied,
            gate=PassGate(
                library=library,
                base=record,
                standards=replace(session.standards, policy="require") if settings.tested else session.standards,
                rules=session.project_rules,
            ),
            progress=self.metrics.fetched,
        )


def _sources(
    session: Session, spec: AdapterSpec, settings: ServeSettings, remotes: UnreachableRemotes
) -> Sequence[Source]:
    """The folders of ADAPTERHUB_SOURCES, then the servers to search.

    A client must not choose from whom this machine fetches adapters. So a namespace is looked up only in remotes that
    have it, unless one server was named for all requests.
    """
    from adapterhub.projects.session import sources_from

    found = list(sources_from(session, ()))
    known = spec.namespace is None or settings.remote or session.remotes.of_namespace(spec.namespace)
    if not settings.offline and known:
        found += map(remotes.guard, session.sources_of(spec, settings.remote, token=None))
    return found


def folder_of_model(name: str, revision: str | None = None) -> Path:
    """The folder of the served model: `name` itself, or its snapshot in the Hub's cache.

    Raises:
        BaseNotFound: neither exists, so the served base is unknown.
    """
    if Path(name).is_dir():
        return Path(name).absolute()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        raise BaseNotFound(
            f"the served model `{shown(name)}` is not a folder, and the Hub's cache has no snapshot of it",
            hint="serve the model from a folder",
        ) from None


def _max_rank_in(argv: Sequence[str]) -> int | None:
    """The rank limit on vLLM's command line; None if a config file or a program sets it."""
    from adapterhub.inference.serving.vllm import option_in

    if option_in(argv, "--config") is not None or "--enable-lora" not in argv:
        return None
    text = option_in(argv, "--max-lora-rank") or str(_DEFAULT_MAX_RANK)
    return int(text) if text.isascii() and text.isdigit() else None


def note_refusal(name: str, error: AdapterHubError) -> None:
    """Log why a name is refused, with what only the operator may see."""
    _log.warning("%s: %s", shown(name), f"{error.message} ({error.hint})" if error.hint else error.message)


def note_fault(name: str) -> None:
    """Log the fault that is being handled, which kept a name from being found."""
    _log.exception("%s: could not be resolved", shown(name))


def _others_may_know() -> bool:
    from vllm.lora.resolver import LoRAResolverRegistry

    return len(LoRAResolverRegistry.get_supported_resolvers()) > 1


class MovingNames:
    """The aliases of one resolver, on its event loop; `AdapterProvider.aliases` knows what they mean."""

    def __init__(self, resolver: AdapterHubResolver) -> None:
        self._resolver = resolver
        self._pending: dict[str, asyncio.Future[None]] = {}
        self._base_model_name = ""

    async def exact(self, base_model_name: str, name: str, key: str | None = None) -> str:
        """The exact spec that `name` means for a request key, if it is an alias; else `name`.

        An alias that was looked up long ago is looked up again meanwhile, and the request does not wait for that.

        Raises:
            AdapterHubError: it could be an alias, and what it means is unknown.
        """
        if "@" not in name:
            return name
        self._base_model_name = base_model_name
        aliases = (await self._resolver.provider(base_model_name)).aliases
        if aliases.is_due(name) and not aliases.may_be(name):
            aliases.adopt(name, None)
        if aliases.is_due(name):
            look_up = self._looked_up(name)
            if aliases.chosen(name) is None:
                await asyncio.shield(look_up)
        return aliases.chosen(name, key) or name

    async def targets(self, base_model_name: str, name: str) -> list[str]:
        """The exact specs of all targets of an alias; for any other name, that name.

        Raises:
            AdapterHubError: as `exact`.
        """
        if await self.exact(base_model_name, name) == name:
            return [name]
        return (await self._resolver.provider(base_model_name)).aliases.specs(name)

    async def refresh(self, name: str | None = None) -> list[str]:
        """Look up now every alias that requests have named, or one; return their names. Requests go on meanwhile."""
        if not self._base_model_name:
            return []
        aliases = (await self._resolver.provider(self._base_model_name)).aliases
        names = [one for one in aliases.names() if name in (None, one)]
        await asyncio.gather(*(self._looked_up_afresh(one) for one in names), return_exceptions=True)
        return names

    async def _looked_up_afresh(self, name: str) -> None:
        """Look an alias up after the look-up that runs, which may have begun before the alias moved."""
        if name in self._pending:
            await asyncio.wait([self._pending[name]])
        await asyncio.shield(self._looked_up(name))

    def _looked_up(self, name: str) -> asyncio.Future[None]:
        """The look-up of an alias, which simultaneous requests share."""
        if name not in self._pending:
            self._pending[name] = asyncio.ensure_future(self._look_up(name))
            self._pending[name].add_done_callback(lambda done: self._done(name, done))
        return self._pending[name]

    def _done(self, name: str, done: asyncio.Future[None]) -> None:
        self._pending.pop(name)
        if not done.cancelled():
            done.exception()  # read, or asyncio complains about one that no request waited for

    async def _look_up(self, name: str) -> None:
        from adapterhub.inference.serving.aliases import specs_of

        resolver, loop = self._resolver, asyncio.get_running_loop()
        aliases = (await resolver.provider(self._base_model_name)).aliases
        is_known = aliases.chosen(name) is not None
        try:
            alias, is_final = await loop.run_in_executor(resolver.local, aliases.here, name)
            if not is_final:
                alias = await loop.run_in_executor(resolver.remote, aliases.there, name, alias)
            if is_known and alias is not None:  # fetched and checked first: it moves only to what can be served
                targets = specs_of(name, alias).values()
                await asyncio.gather(*(resolver.leased(self._base_model_name, spec) for spec in targets))
        except Exception as error:  # after any failure, requests go on under what it meant
            if not is_known:
                raise
            aliases.keep(name, error)
        else:
            aliases.adopt(name, alias)
