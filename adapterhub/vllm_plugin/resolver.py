"""The resolver that vLLM's API server calls for every unknown model name."""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
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
    from adapterhub.inference.serving.access.gate import Gate
    from adapterhub.inference.serving.aliases import MovingNames, ServedAliases
    from adapterhub.inference.serving.auto import Auto
    from adapterhub.inference.serving.following import Upkeep
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
    """Return the resolver of this process, if `register_resolver` added one."""
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
        self.base_model = ""
        """The name that vLLM has for the served model, once it is known."""
        self._provider: AdapterProvider | None = None
        self._auto: Auto | None = None
        self._opening = Lock()
        self.passed: Callable[[Collection[Digest]], object] = lambda _: None
        """Called, on the event loop, with the digests that an alias does not mean any more."""

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """Return the request for vLLM, or None if another resolver may know the name.

        Raises:
            GracefulHTTPError: the refusal, with its HTTP status and message.
        """
        from vllm.exceptions import GracefulHTTPError
        from vllm.lora.request import LoRARequest

        self.base_model = base_model_name
        try:
            await self._ensure_no_alias(lora_name)
            leased = await self.leased(lora_name)
        except AdapterHubError as error:
            note_refusal(lora_name, error)
            if isinstance(error, SpecError | AdapterNotFound) and _others_may_know():
                return None
            from adapterhub.inference.serving import refusal_of

            refusal = refusal_of(error, lora_name)
            self.count_refusal(refusal.status)
            raise GracefulHTTPError(refusal.message, HTTPStatus(refusal.status)) from None
        except Exception:  # noqa: BLE001 - after any failure the client gets an answer and the server goes on
            note_fault(lora_name)
            words = FAULT.format(name=shown(lora_name))
            self.count_refusal(HTTPStatus.FAILED_DEPENDENCY)
            raise GracefulHTTPError(words, HTTPStatus.FAILED_DEPENDENCY) from None  # see `refusal`: never a 5xx
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(leased.folder))

    async def _ensure_no_alias(self, name: str) -> None:
        """Raise for an alias, which vLLM would never look up again; the middleware lets none come here."""
        if await self.aliases.exact(name) != name:
            raise UnsupportedAdapter(
                f"`{shown(name)}` is an alias, and this server runs without adapterhub's middleware",
                hint="start it with `adapt serve`, or with `--middleware adapterhub.vllm_plugin.guard.Guard`",
            )

    def count_refusal(self, status: int) -> None:
        """Count a request for an adapter that gets none."""
        self.metrics.looked_up("refused")
        self.metrics.refused(status)

    async def leased(self, name: str) -> LeasedAdapter:
        """Return the adapter for `name`, a spec without an alias, checked and leased.

        Raises:
            AdapterHubError: the refusal.
        """
        return (await self.found(name))[0]

    async def found(self, name: str) -> tuple[LeasedAdapter, LookUp]:
        """Return the same, and how it was found."""
        known = self.known(name)
        if known is not None:
            return known, "hit"
        if name not in self._pending:  # simultaneous requests for a name share one lookup
            self._pending[name] = asyncio.ensure_future(self._look_up(name))
            self._pending[name].add_done_callback(lambda _: self._pending.pop(name))
        return await asyncio.shield(self._pending[name])  # a client that leaves does not end it for the others

    async def _look_up(self, name: str) -> tuple[LeasedAdapter, LookUp]:
        loop = asyncio.get_running_loop()
        provider = await self.provider()
        leased = await loop.run_in_executor(self.local, provider.find_installed, name)
        found: LookUp = "installed"
        if leased is None:
            leased, found = await loop.run_in_executor(self.remote, provider.fetch, name), "fetched"
        _log.info("%s is %s, %s", shown(name), leased.label, leased.digest)
        for warning in leased.warnings:
            _log.warning("%s: %s", shown(name), warning)
        return leased, found

    async def provider(self) -> AdapterProvider:
        """Return the provider for the served model; the first call opens it in a thread."""
        if self._provider is not None:
            return self._provider
        return await asyncio.get_running_loop().run_in_executor(self.local, self._opened)

    def known(self, name: str) -> LeasedAdapter | None:
        """Return the adapter that `name` is by the last lookup; see `AdapterProvider.known`."""
        if self._provider is None:
            return None
        return self._provider.known(next(iter(self._provider.aliases.specs(name)), name))

    def release(self, leased: LeasedAdapter) -> None:
        """End a lease; see `AdapterProvider.release`."""
        if self._provider:
            self._provider.release(leased.digest)

    def release_digest(self, digest: Digest) -> None:
        """End the lease of an adapter that vLLM has not loaded."""
        if self._provider:
            self._provider.release(digest)

    def leases(self, leased: LeasedAdapter) -> bool:
        """Return whether vLLM may still read the folder of an adapter."""
        return self._provider is not None and self._provider.is_leased(leased.digest)

    def is_meant(self, digest: Digest) -> bool:
        """Return whether an alias that requests have named has this build as a target."""
        return self._provider is not None and digest in self._provider.aliases.meant()

    def base_digest(self) -> str:
        """Return the digest of the served base's weights; "" before the first lookup."""
        return self._provider.base.fingerprint.weights if self._provider else ""

    @functools.cached_property
    def aliases(self) -> MovingNames:
        """The aliases that requests have named."""
        from adapterhub.inference.serving.aliases import MovingNames

        async def known() -> ServedAliases:
            return (await self.provider()).aliases

        async def ensure(specs: Sequence[str]) -> None:  # fetched and checked before an alias moves
            await asyncio.gather(*map(self.leased, specs))

        def passed(digests: Collection[Digest]) -> None:
            self.passed(digests)

        return MovingNames(known, ensure, self.local, self.remote, passed)

    @functools.cached_property
    def settings(self) -> ServeSettings:
        """The settings of this process; raises `UsageProblem` for bad ones."""
        from adapterhub.inference.serving import ServeSettings

        return ServeSettings.from_environ(self._environ)

    @functools.cached_property
    def metrics(self) -> ServingMetrics:
        """Counts of this process's work with adapters."""
        from adapterhub.inference.serving.metrics import metrics_of_process

        return metrics_of_process()

    @functools.cached_property
    def denied(self) -> Denied:
        """What this server does not serve any more; raises as `Denied`."""
        from adapterhub.inference.serving.access.denied import Denied

        return Denied(self.settings.deny, self.settings.deny_file)

    async def auto(self) -> Auto | None:
        """Return the router for the model name `auto`; None without a routing file. The first call opens it."""
        if self._auto is None and self.settings.route is not None:
            provider = await self.provider()
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

    def upkeep(self, gate: Gate) -> Upkeep:
        """Return the work of the server beside its requests."""
        from adapterhub.inference.serving.following import Upkeep

        settings, session = self.settings, self._session

        def served() -> dict[Digest, str]:
            return self._provider.leased() if self._provider else {}

        return Upkeep(
            library=session.library,
            denied=self.denied,
            gate=gate,
            served=served,
            find_source=None if settings.offline else session.place_source,
            remotes=self._remotes,
            places=(lambda: session.followed_places(settings.remote, served())) if settings.follow else None,
            refresh_aliases=self.aliases.refresh_from_thread,
            refresh_moved=self.aliases.refresh_from_thread,
            provider=lambda: self._provider,
        )

    @functools.cached_property
    def _session(self) -> Session:
        from adapterhub.projects.reporting import LogReporter
        from adapterhub.projects.session import Session

        variables = {"ADAPTERHUB_TIMEOUT_S": str(TIMEOUT_S), **self._environ}
        return Session(root=self.settings.root, out=LogReporter(LOGGER), variables=variables)

    def _opened(self) -> AdapterProvider:
        """Return the provider for the served model, whose files are read once."""
        from adapterhub.core.specs import BaseSpec
        from adapterhub.inference.serving.vllm import option_in

        with self._opening:
            if self._provider is None:
                folder = folder_of_model(self.base_model, option_in(self.argv, "--revision"))
                self._provider = self.open_provider(BaseSpec(kind="path", text=str(folder)))
                atexit.register(self._provider.close)
            return self._provider

    def open_provider(self, base: BaseSpec) -> AdapterProvider:
        """Return a provider of adapters for `base`, with the places and limits of environment and command line."""
        from adapterhub.inference.serving import AdapterProvider
        from adapterhub.inference.serving.provider import PassGate
        from adapterhub.library.bases.records import Bases

        settings, session = self.settings, self._session
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
    """Return the folders of ADAPTERHUB_SOURCES, then the servers to search.

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
    """Return the folder of the served model: `name` itself, or its snapshot in the Hub's cache.

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
    """Return the rank limit on vLLM's command line; None if a config file or a program sets it."""
    from adapterhub.inference.serving.vllm import number_in, option_in

    if option_in(argv, "--config") is not None or "--enable-lora" not in argv:
        return None
    return number_in(argv, "--max-lora-rank", _DEFAULT_MAX_RANK)


def note_refusal(name: str, error: AdapterHubError) -> None:
    """Log why a name is refused, with what only the operator may see."""
    _log.warning("%s: %s", shown(name), f"{error.message} ({error.hint})" if error.hint else error.message)


def note_fault(name: str) -> None:
    """Log the fault that is being handled, which kept a name from being found."""
    _log.exception("%s: could not be resolved", shown(name))


def _others_may_know() -> bool:
    from vllm.lora.resolver import LoRAResolverRegistry

    return len(LoRAResolverRegistry.get_supported_resolvers()) > 1
