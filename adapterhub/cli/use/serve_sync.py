"""`adapt serve --sync FILE`: keep the adapters of an engine that somebody else started equal to a file."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from adapterhub.cli.options.params import Session
from adapterhub.cli.use.serve_engine import ServeArgs, on_hangup, provider_for
from adapterhub.core.errors import AdapterHubError, EngineFailed, UsageProblem, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adapterhub.core.specs import BaseSpec
    from adapterhub.inference.serving import AdapterProvider, LeasedAdapter
    from adapterhub.inference.serving.access.watched import WatchedFile
    from adapterhub.inference.serving.sync.engines import EngineAbout, RunningEngine
    from adapterhub.inference.serving.sync.reconciler import Reconciler, SyncChange
    from adapterhub.inference.serving.sync.wanted import WantedAdapters

ENGINE_PORT: Final = 8000
PORT: Final = 8080
"""Of `/metrics` and `/health`, beside an engine that has its usual port."""

_LOGGERS: Final = ("adapterhub", "vllm.adapterhub")
_TURN_S: Final = 1.0
_POLL_S: Final = 0.5
_OF_STARTED: Final = frozenset(
    {"name", "slots", "cpu_slots", "python", "gguf", "llama_server", "engines", "engine_args", "log", "drain"}
    | {"test", "route", "pins", "tenants"}
)


def followed(context: click.Context, specs: Sequence[object]) -> WatchedFile[WantedAdapters] | None:
    """Return the file of `--sync`, read once; None without one.

    Raises:
        UsageProblem: SGLang without it, or what is for an engine that this command starts itself.
        NotFound, Malformed: it cannot be used.
    """
    path, engine = context.params["sync"], context.params["engine"]
    if path is None:
        if engine == "sglang":
            hint = "start SGLang with `python -m sglang.launch_server --enable-lora …`"
            raise UsageProblem(
                "this command starts no SGLang; `--sync FILE` loads adapters into one that runs", hint=hint
            )
        return None
    if engine == "llama.cpp":
        raise UsageProblem(
            "`--sync` is for vLLM and SGLang; llama.cpp keeps every SPEC in memory",
            hint="name the adapters on the command line instead",
        )
    if specs:
        raise UsageProblem("`--sync` takes its adapters from FILE; write each SPEC there, as the `source` of an `id`")
    for one in context.command.params:
        if one.name in _OF_STARTED and context.get_parameter_source(one.name) is not ParameterSource.DEFAULT:
            raise UsageProblem(
                f"`{one.opts[0]}` is for an engine that this command starts; `--sync` starts none",
                hint=f"drop `{one.opts[0]}`",
            )
    from adapterhub.inference.serving.access.watched import WatchedFile
    from adapterhub.inference.serving.sync.wanted import WantedAdapters

    return WatchedFile(path, WantedAdapters.parse)


def base_of(base: BaseSpec | None, file: WatchedFile[WantedAdapters] | None) -> BaseSpec | None:
    """Return the base that was named, or that of the file; None without both.

    Raises:
        UsageProblem: the file names none.
    """
    from adapterhub.core.specs import BaseSpec

    if base is not None or file is None:
        return base
    if not file.value.base:
        raise UsageProblem(
            f"`{shown(str(file.path), 200)}` names no `defaultBaseModel`", hint="`--base` names the base of the engine"
        )
    return BaseSpec.parse(file.value.base)


def port_of(port: int | None, file: WatchedFile[WantedAdapters] | None) -> int:
    """Return the port that was named, or the usual one."""
    if port is not None:
        return port
    return ENGINE_PORT if file is None else PORT


def serve_beside(session: Session, args: ServeArgs, kind: str, file: WatchedFile[WantedAdapters]) -> None:
    """Wait for the engine, then make it equal to the file again and again, until a signal ends it."""
    from adapterhub.inference.serving import UnreachableRemotes
    from adapterhub.inference.serving.access.gate import AuditLog
    from adapterhub.inference.serving.following import Upkeep
    from adapterhub.inference.serving.metrics import SyncMetrics, own_metrics
    from adapterhub.inference.serving.sync.engines import KINDS, RunningEngine
    from adapterhub.inference.serving.sync.exposed import exposed
    from adapterhub.inference.serving.sync.reconciler import Reconciler

    made = KINDS[kind]
    key = os.environ.get(made.key_variable, "")

    def engine_at(url: str) -> RunningEngine:
        return RunningEngine(made, url, key)

    remotes = UnreachableRemotes()
    registry, metrics = own_metrics()
    running: list[Reconciler] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(_shown_log())
        if not args.dry_run:  # before the engine answers: what watches this process must not wait for the engine
            stack.enter_context(exposed(args.host, args.port, registry, lambda: _health(running, file)))
        about = _met(session, engine_at(file.value.url), args.start_timeout_s)
        provider = provider_for(session, args, f"{kind}@{about.version}", remotes=remotes, progress=metrics.fetched)
        stack.enter_context(contextlib.closing(provider))
        if args.dry_run:
            _say_dry(session, provider, file, about, kind)
            return
        audit = None if args.settings.audit_log is None else stack.enter_context(AuditLog(args.settings.audit_log))

        def told(change: SyncChange) -> None:
            if audit is not None:
                audit.write(change.record())

        wakes = threading.Event()
        links = stack.enter_context(session.library.store.intent("serve sync")).folder.absolute()
        reconciler = Reconciler(file, provider, links, engine_at, metrics, SyncMetrics(registry), told)
        args.denied.on_change(wakes.set)

        def refresh_aliases() -> bool:
            provider.aliases.forget()
            wakes.set()
            return bool(provider.aliases.names())

        settings, served = args.settings, provider.leased
        upkeep = Upkeep(
            library=session.library,
            denied=args.denied,
            gate=args.gate,
            served=served,
            find_source=None if settings.offline else session.place_source,
            remotes=remotes,
            places=(lambda: session.followed_places(settings.remote, served())) if settings.follow else None,
            refresh_aliases=refresh_aliases,
            provider=lambda: provider,
        )
        stack.enter_context(upkeep.running())
        running.append(reconciler)
        on_hangup(session, refresh_aliases)
        try:
            _run(session, reconciler, file, _document(args, kind, about, file), wakes)
        except (KeyboardInterrupt, SystemExit):  # the normal end
            session.out.note("stopping; the engine keeps what it has in memory")


@contextlib.contextmanager
def _shown_log() -> Iterator[None]:
    """Write on stderr what is done while a block runs, as an engine writes its log."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    earlier = [(log.handlers, log.propagate, log.level) for log in loggers]
    for log in loggers:
        log.handlers, log.propagate = [handler], False
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        for log, (handlers, propagate, level) in zip(loggers, earlier, strict=True):
            log.handlers, log.propagate = handlers, propagate
            log.setLevel(level)


def _met(session: Session, engine: RunningEngine, within_s: float) -> EngineAbout:
    """Return the engine at the address, once it answers."""
    from adapterhub.inference.serving.sync.engines import EngineAway

    end = time.monotonic() + within_s
    is_told = False
    while True:
        try:
            return engine.about()
        except EngineAway as error:
            if time.monotonic() > end:
                words = f"{error.message}; waited {within_s:g} s"
                raise EngineFailed(words, hint="`host` and `port` of the file name its address") from None
            if not is_told:
                session.out.note(f"{error.message}; waiting for it")
                is_told = True
        time.sleep(_POLL_S)


def _run(
    session: Session,
    reconciler: Reconciler,
    file: WatchedFile[WantedAdapters],
    document: dict[str, Any],
    wakes: threading.Event,
) -> None:
    said: WantedAdapters | None = None
    is_first = True
    while True:
        if file.value is not said:
            said = file.value
            for problem in said.problems:
                session.out.warn(f"{shown(str(file.path), 200)}: {problem}; what the engine has under that id stays")
        reconciler.turn()
        if is_first:
            document["adapters"] = [_told(name, one) for name, one in reconciler.loaded.items()]
            session.out.result(document, lambda: _say_ready(session, document))
            sys.stdout.flush()
            is_first = False
        wakes.wait(_TURN_S)
        wakes.clear()


def _health(running: Sequence[Reconciler], file: WatchedFile[WantedAdapters]) -> dict[str, Any]:
    """Return whether the last look at the engine succeeded, and which ids it has and lacks."""
    loaded = running[0].loaded if running else {}
    return {
        "ok": bool(running) and not running[0].is_away,
        "loaded": {name: one.label for name, one in loaded.items()},
        "missing": [one.id for one in file.value.adapters if one.id not in loaded],
    }


# ---------------------------------------------------------------- what it says
def _document(args: ServeArgs, kind: str, about: EngineAbout, file: WatchedFile[WantedAdapters]) -> dict[str, Any]:
    from adapterhub.inference.serving.process import reachable

    return {
        "url": file.value.url,
        "base": args.record.label,
        "engine": f"{kind} {about.version}",
        "metrics": f"http://{reachable(args.host)}:{args.port}/metrics",
        "adapters": [],
        "problems": list(file.value.problems),
    }


def _told(name: str, one: LeasedAdapter) -> dict[str, Any]:
    return {"model": name, "adapter": one.label, "digest": one.digest, "rank": one.rank}


def _say_ready(session: Session, document: dict[str, Any]) -> None:
    session.out.line(f"the adapters of {document['engine']} at {document['url']} follow the file")
    for one in document["adapters"]:
        session.out.line(f"  {one['model']} is {one['adapter']}, {one['digest']}")


def _say_dry(
    session: Session, provider: AdapterProvider, file: WatchedFile[WantedAdapters], about: EngineAbout, kind: str
) -> None:
    """Print what would be loaded. A refused entry is a problem of the file."""
    adapters, problems = [], list(file.value.problems)
    for one in file.value.adapters:
        try:
            adapters.append(_told(one.id, provider.find(one.source)))
        except AdapterHubError as error:
            problems.append(f"`{shown(one.id)}`: {error.message}")
    document = {
        "url": file.value.url,
        "base": provider.base.label,
        "engine": f"{kind} {about.version}",
        "adapters": adapters,
        "problems": problems,
    }

    def say() -> None:
        for one in adapters:
            session.out.line(f"would load {one['model']}: {one['adapter']}, rank {one['rank']}, {one['digest']}")

    session.out.result(document, say)
    for problem in problems:
        session.out.warn(problem)
