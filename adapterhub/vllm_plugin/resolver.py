"""The resolver that vLLM's API server asks for every model name it does not know."""

from __future__ import annotations

import asyncio
import atexit
import logging
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.errors import AdapterHubError, AdapterNotFound, BaseNotFound, SpecError, shown
from adapterhub.vllm_plugin.cpu_rows import vllm_version
from adapterhub.vllm_plugin.names import LOGGER, NAME

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.inference.serving import AdapterProvider, Handed, ServeSettings
    from adapterhub.library.transfer import Source
    from adapterhub.projects.session import Session

AT_ONCE: Final = 4
"""Adapters that are fetched and checked at the same time; vLLM's own threads stay free."""

_DEFAULT_MAX_RANK: Final = 16

_log = logging.getLogger(LOGGER)


def register_resolver(environ: Mapping[str, str]) -> None:
    """Put a resolver into vLLM's registry, unless ours is there."""
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    if NAME in LoRAResolverRegistry.get_supported_resolvers():
        return
    LoRAResolver.register(AdapterHubResolver)
    LoRAResolverRegistry.register_resolver(NAME, AdapterHubResolver(environ))


class AdapterHubResolver:
    """A name in, a checked and leased folder out; see `vllm.lora.resolver.LoRAResolver`.

    Nothing is opened before the first request, since each process of vLLM makes one and only the API server uses it.
    All work is done in threads: hashing and downloads on the event loop would hold up every client.
    """

    def __init__(self, environ: Mapping[str, str], argv: Sequence[str] = ()) -> None:
        self._environ = environ
        self._argv = list(argv) or sys.argv
        self._threads: ThreadPoolExecutor | None = None
        self._counter: AdapterProvider | None = None
        self._opening = Lock()

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:  # noqa: ANN401 - a LoRARequest of vLLM
        """The request for vLLM, or None where another resolver may know the name.

        Raises:
            GracefulHTTPError: our refusal, with its status, in our words.
        """
        from vllm.exceptions import GracefulHTTPError
        from vllm.lora.request import LoRARequest

        if self._threads is None:
            self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix=NAME)
        loop = asyncio.get_running_loop()
        try:
            handed = await loop.run_in_executor(self._threads, self._find, base_model_name, lora_name)
        except AdapterHubError as error:
            _log.warning("%s: %s", shown(lora_name), f"{error.message} ({error.hint})" if error.hint else error.message)
            if isinstance(error, SpecError | AdapterNotFound) and _others_may_know():
                return None
            from adapterhub.inference.serving import refusal_of

            refusal = refusal_of(error)
            raise GracefulHTTPError(refusal.message, refusal.status) from None
        except Exception:  # noqa: BLE001 - whatever it is, a client gets an answer and the server lives
            _log.exception("%s: could not be resolved", shown(lora_name))
            words = f"`{shown(lora_name)}` could not be resolved; the log of the server says why"
            raise GracefulHTTPError(words, HTTPStatus.INTERNAL_SERVER_ERROR) from None
        return LoRARequest(
            lora_name=lora_name, lora_int_id=1, lora_path=str(handed.folder), base_model_name=base_model_name
        )

    def _find(self, base_model_name: str, name: str) -> Handed:
        handed = self._opened(base_model_name).find(name)
        _log.info("%s is %s, %s", shown(name), handed.label, handed.digest)
        for warning in handed.warnings:
            _log.warning("%s: %s", shown(name), warning)
        return handed

    def _settings(self) -> ServeSettings:
        from adapterhub.inference.serving import ServeSettings

        return ServeSettings.from_environ(self._environ)

    def _opened(self, base_model_name: str) -> AdapterProvider:
        """The counter for the served model, whose files are looked at once."""
        with self._opening:
            if self._counter is None:
                self._counter = self._open(base_model_name)
                atexit.register(self._counter.close)
            return self._counter

    def _open(self, base_model_name: str) -> AdapterProvider:
        from adapterhub.core.specs import BaseSpec
        from adapterhub.inference.serving import AdapterProvider
        from adapterhub.library.bases.records import Bases
        from adapterhub.projects.session import LogReporter, Session

        settings = self._settings()
        session = Session(root=settings.root, out=LogReporter(LOGGER), variables=self._environ)
        library = session.library
        folder = folder_of_model(base_model_name, option_in(self._argv, "--revision"))
        bases: Bases = library.bases
        record = bases.find(BaseSpec(kind="path", text=str(folder)))

        def sources(spec: AdapterSpec) -> Sequence[Source]:
            return _sources(session, spec, settings)

        return AdapterProvider(
            library,
            record,
            engine=f"vllm@{vllm_version() or ''}".rstrip("@"),
            sources=sources,
            max_rank=settings.max_rank or _max_rank_in(self._argv),
            signatures=settings.signatures,  # type: ignore[arg-type]  # one of the policies, or None
        )


def _sources(session: Session, spec: AdapterSpec, settings: ServeSettings) -> Sequence[Source]:
    """Folders of ADAPTERHUB_SOURCES, then the servers that may be asked.

    Whoever may send a request must not choose whose adapters this machine fetches: a namespace is asked of the remotes
    that were given it, and of no others, unless one server was named for all.
    """
    from adapterhub.projects.session import sources_from

    found = list(sources_from(session, ()))
    known = spec.namespace is None or settings.remote or session.remotes.of_namespace(spec.namespace)
    if not settings.offline and known:
        found += session.sources_of(spec, settings.remote, token=None)
    return found


def folder_of_model(name: str, revision: str | None = None) -> Path:
    """The folder of the served model: `name` itself, or its snapshot in the Hub's cache.

    Raises:
        BaseNotFound: neither is there, so nothing tells which base is served.
    """
    if Path(name).is_dir():
        return Path(name).absolute()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        raise BaseNotFound(
            f"the served model `{shown(name)}` is no folder, and the Hub's cache has no snapshot of it",
            hint="serve it from a folder",
        ) from None


def option_in(argv: Sequence[str], name: str) -> str | None:
    """The value of a command line option of vLLM, None where it is not given."""
    for at, word in enumerate(argv):
        if word == name and at + 1 < len(argv):
            return argv[at + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def _max_rank_in(argv: Sequence[str]) -> int | None:
    """The limit that vLLM was started with; None where a file or a program says it, not the command line."""
    if option_in(argv, "--config") is not None or "--enable-lora" not in argv:
        return None
    text = option_in(argv, "--max-lora-rank") or str(_DEFAULT_MAX_RANK)
    return int(text) if text.isascii() and text.isdigit() else None


def _others_may_know() -> bool:
    from vllm.lora.resolver import LoRAResolverRegistry

    return len(LoRAResolverRegistry.get_supported_resolvers()) > 1
