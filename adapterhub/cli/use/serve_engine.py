"""The parts of `adapt serve` that all engines share: the check, the child process and the output."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from adapterhub.cli.options.params import Session
from adapterhub.core.disk.files import output_place
from adapterhub.core.errors import AdapterHubError, NotAllowed, UnsupportedAdapter, UsageProblem
from adapterhub.core.extras import require
from adapterhub.projects.session import sources_from

if TYPE_CHECKING:
    from adapterhub.api.steps.contracts.gating import ContractGate
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.inference.calling import Calling
    from adapterhub.inference.serving import AdapterProvider, LeasedAdapter, ServeSettings
    from adapterhub.inference.serving.access.denied import Denied
    from adapterhub.inference.serving.access.gate import Gate
    from adapterhub.inference.serving.aliases import ServedAliases
    from adapterhub.inference.serving.llama_cpp.names import Names
    from adapterhub.inference.serving.process import EngineProcess
    from adapterhub.inference.serving.provider import BuildGate
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.transfer import Source

ENGINE: Final = "llama.cpp"
_SLOTS: Final = 4
_ENGINES: Final = 2
"""Of a server with tenants: one tenant that is always busy leaves the other to the rest."""


def serve_llama(
    session: Session,
    args: ServeArgs,
    served_name: str,
    *,
    gguf: Path | None,
    llama_server: str | None,
    slots: int | None,
    engines: int | None,
) -> None:
    """Check the adapters, write them as GGUF, start the server and its front, and wait.

    Nothing proves that `gguf` holds the base, since it may be quantised; llama.cpp compares architecture and shapes.
    """
    require("export", "`--engine llama.cpp`")
    from adapterhub.inference.serving import UnreachableRemotes
    from adapterhub.inference.serving.access.denied import YANKS_S, look_for_yanks
    from adapterhub.inference.serving.access.watched import LOOK_S, Upkeep
    from adapterhub.inference.serving.auto import Auto
    from adapterhub.inference.serving.following import Followers, Reactions, feed_of
    from adapterhub.inference.serving.llama_cpp.engine import addresses, command_of, environ_of, find_llama_server
    from adapterhub.inference.serving.llama_cpp.server import front
    from adapterhub.inference.serving.llama_cpp.turns import CAN_STOP

    if gguf is None or not gguf.is_file():
        raise UsageProblem(
            "`--engine llama.cpp` needs `--gguf` with the base as a GGUF file",
            hint="llama.cpp's `convert_hf_to_gguf.py` makes one from the base's folder",
        )
    program = find_llama_server(llama_server)
    slots = slots or _SLOTS
    count = (engines or (1 if args.settings.tenants is None else _ENGINES)) if CAN_STOP else 1
    with addresses(program, count) as reached, session.library.store.intent("serve llama.cpp") as intent:
        with checked(session, args, ENGINE) as found:
            args, handed, aliases = found.args, found.handed, found.aliases
            loaded = {one.digest: one for one in handed}  # two names may mean one build
            files = [intent.folder / f"{at}-{digest[7:19]}.gguf" for at, digest in enumerate(loaded)]
            if not args.dry_run:
                _write(session, args, [*loaded.values()], files)
        commands = [command_of(program, gguf.absolute(), files, where.words, slots, args.extra) for where in reached]
        document = document_of(args, served_name, handed, commands[0]) | {"engine": ENGINE}
        if args.dry_run:
            session.out.result(document, lambda: say_dry(session, document))
            return
        digest = args.record.fingerprint.weights
        names = _names(args, served_name, handed, document, aliases)
        labels = {one.digest: one.label for one in handed}
        find_source = None if args.settings.offline else session.place_source
        remotes = UnreachableRemotes()
        file = args.settings.route
        auto = None if file is None else Auto.open(session.library, file, digest)

        def look() -> None:
            look_for_yanks(session.library, labels, args.denied, find_source, remotes)

        def follow() -> Followers:
            places = session.followed_places(args.settings.remote, labels)
            heard = Reactions(served=labels.keys, look_for_yanks=look, refresh_aliases=names.refresh)
            return Followers(lambda: places, lambda place: feed_of(session.place_source(place)), heard, remotes)

        with started(session, args, commands, environ_of(os.environ, reached[0])) as running:
            for engine, where in zip(running, reached, strict=True):
                engine.wait_until_ready(where.answers, within_s=args.start_timeout_s)
            try:
                upkeep = Upkeep([(LOOK_S, args.denied.refresh), (LOOK_S, args.gate.refresh), (YANKS_S, look)])
                following = follow() if args.settings.follow else contextlib.nullcontext()
                open_front = front(
                    args.host,
                    args.port,
                    reached,
                    names,
                    args.gate,
                    auto,
                    slots=slots,
                    pids=[one.pid for one in running],
                )
                with upkeep, following, open_front as server:
                    stay(
                        session,
                        running,
                        document,
                        drain_s=args.drain_s,
                        drain=lambda: server.drain(args.drain_s),
                        refresh_aliases=names.refresh,
                    )
            except OSError as error:
                raise NotAllowed(f"cannot listen on `{args.host}:{args.port}`: {error.strerror}") from None


def _names(
    args: ServeArgs,
    served_name: str,
    handed: Sequence[LeasedAdapter],
    document: Mapping[str, Any],
    aliases: ServedAliases,
) -> Names:
    """Say what the names in requests mean."""
    from adapterhub.inference.serving.llama_cpp.names import Names, Served

    named = zip(args.specs, handed, document["adapters"], strict=True)
    return Names(
        served_name,
        [
            Served(
                name=one.model if spec.base else str(spec), label=one.label, digest=one.digest, calling=told["calling"]
            )
            for spec, one, told in named
        ],
        base_digest=args.record.fingerprint.weights,
        denied=args.denied,
        moving=[str(spec) for spec in args.specs if spec.base is not None],  # aliases: the others have no base
        aliases=aliases,
    )


def _write(session: Session, args: ServeArgs, handed: Sequence[LeasedAdapter], files: Sequence[Path]) -> None:
    """Write one GGUF file for each adapter, with PEFT's scale folded in."""
    from adapterhub.inference.export import export

    base = args.record.alias or f"./{os.path.relpath(args.model)}"
    for one, path in zip(handed, files, strict=True):
        spec = f"{one.label}#{one.digest[:19]}"
        for note in export(spec, path, form="gguf", library=session.library, base=base).notes:
            if note not in one.warnings:  # the check has printed those
                session.out.warn(f"{one.label}: {note}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeArgs:
    """The arguments that both engines need."""

    specs: tuple[AdapterSpec, ...]
    record: BaseRecord
    model: Path
    host: str
    port: int
    settings: ServeSettings
    denied: Denied
    gate: Gate
    extra: tuple[str, ...]
    log: Path | None
    start_timeout_s: float
    drain_s: float
    dry_run: bool
    test: ContractGate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedEngine:
    """The adapters to serve, in the order of `args.specs`, which are their model names; `aliases` tells what moves."""

    args: ServeArgs
    handed: list[LeasedAdapter]
    aliases: ServedAliases


@contextlib.contextmanager
def checked(session: Session, args: ServeArgs, engine: str) -> Iterator[CheckedEngine]:
    """Yield the named adapters, each found, checked and leased during the block.

    An alias with several targets brings all of them: its name stands for the first, and the others follow it.

    Raises:
        AdapterHubError: the error of the only refused adapter.
        UnsupportedAdapter: several adapters are refused; one line each.
    """
    from adapterhub.core.specs import AdapterSpec as Spec
    from adapterhub.inference.serving import AdapterProvider

    provider = AdapterProvider(
        session.project_library,
        args.record,
        engine=engine,
        sources=lambda spec: _sources(session, args.settings, spec),
        max_rank=args.settings.max_rank,
        signatures=args.settings.signatures,  # type: ignore[arg-type]  # one of the policies, or None
        alias_ttl_s=args.settings.alias_ttl_s,
        denied=args.denied,
        gate=_gate(session, args),
    )
    with contextlib.closing(provider):
        specs: list[AdapterSpec] = []
        for spec in args.specs:
            specs += [spec, *map(Spec.parse, provider.targets(str(spec))[1:])]
        handed = _all_of(provider, specs, session)
        for one, calling in zip(handed, callings(args, handed), strict=True):
            if calling.warning:
                session.out.warn(f"{one.label}: {calling.warning}; {calling.how} to {calling.route}")
        # a model name has no base, which is the served one
        names = [spec if provider.targets(str(spec)) else replace(spec, base=None) for spec in specs]
        yield CheckedEngine(args=replace(args, specs=tuple(names)), handed=handed, aliases=provider.aliases)


def _gate(session: Session, args: ServeArgs) -> BuildGate:
    """The test that was asked for, then the policy `tests` of the project and of the user, which runs nothing."""
    from adapterhub.inference.serving.provider import PassGate

    passes = PassGate(
        library=session.library,
        base=args.record,
        standards=session.standards,
        rules=session.project_rules,
    )
    test = args.test
    if test is None:
        return passes

    def admit(build: Installed) -> tuple[str, ...]:
        test.admit(build, undone="It is not served", merges=True)
        return passes(build)

    return admit


def requested_name(spec: AdapterSpec) -> str:
    """What a request would call it: without a base by path, which no request may name."""
    return str(spec if spec.base is not None and spec.base.kind == "alias" else replace(spec, base=None))


def _sources(session: Session, settings: ServeSettings, spec: AdapterSpec) -> Sequence[Source]:
    places = list(sources_from(session, ()))
    return places if settings.offline else [*places, *session.sources_of(spec, settings.remote, token=None)]


def _all_of(provider: AdapterProvider, specs: Sequence[AdapterSpec], session: Session) -> list[LeasedAdapter]:
    found: list[LeasedAdapter] = []
    refused: list[AdapterHubError] = []
    for spec in specs:
        try:
            found.append(provider.find(str(spec)))
        except AdapterHubError as error:
            refused.append(error)
            continue
        for warning in found[-1].warnings:
            session.out.warn(f"{found[-1].label}: {warning}")
    if len(refused) == 1:
        raise refused[0]
    if refused:
        listed = [error.message.replace("\n", "\n  ") for error in refused]
        hint = next((error.hint for error in refused if error.hint), "")
        raise UnsupportedAdapter(f"{len(refused)} of {len(specs)} adapters cannot be served", listed, hint=hint)
    return found


@contextlib.contextmanager
def started(
    session: Session, args: ServeArgs, commands: Sequence[Sequence[str]], environ: dict[str, str]
) -> Iterator[list[EngineProcess]]:
    """The running engines, which write to the log; they and their processes end with the block.

    Several engines take turns, so that one may be stopped when this process is killed.
    """
    from adapterhub.inference.serving.process import EngineProcess

    with contextlib.ExitStack() as stack:
        output: IO[bytes] | int = (
            sys.stderr.fileno() if args.log is None else stack.enter_context(output_place(args.log).open("ab"))
        )
        ends_by = signal.SIGTERM if len(commands) == 1 else signal.SIGKILL
        engines = []
        for command in commands:
            session.out.note(f"starting `{shlex.join(command)}`")
            engines.append(stack.enter_context(EngineProcess(command, environ, output=output, ends_by=ends_by)))
        yield engines


def stay(
    session: Session,
    engines: Sequence[EngineProcess],
    document: dict[str, Any],
    *,
    drain_s: float,
    drain: Callable[[], bool],
    refresh_aliases: Callable[[], bool],
) -> None:
    """Print that the server is ready, and return when it should stop and `drain` has let running requests finish.

    SIGHUP calls `refresh_aliases`.

    Raises:
        EngineFailed: an engine ended by itself.
    """
    from adapterhub.inference.serving.process import wait_for

    document |= {"pid": engines[0].pid}
    _refresh_on_hangup(session, refresh_aliases)
    try:
        session.out.result(document, lambda: say_ready(session, document))
        sys.stdout.flush()
        wait_for(engines)
    except (KeyboardInterrupt, SystemExit):  # the normal end of a server
        if drain_s:
            session.out.note(
                f"finishing the requests that run, for at most {drain_s:g} s; a second Ctrl-C stops at once"
            )
            with contextlib.suppress(KeyboardInterrupt, SystemExit):
                if not drain():
                    session.out.warn(f"some requests still ran after {drain_s:g} s")
        session.out.note("stopping the engine")


def _refresh_on_hangup(session: Session, refresh_aliases: Callable[[], bool]) -> None:
    """Call `refresh_aliases` on SIGHUP; where the terminal is gone, the server stops as it would without this."""
    has_terminal = sys.stdin is not None and sys.stdin.isatty()

    def refresh() -> None:
        session.out.note("looked every alias up again" if refresh_aliases() else "no alias was looked up again")

    def hang_up(*_: object) -> None:
        if has_terminal and not sys.stdin.isatty():
            raise SystemExit
        threading.Thread(target=refresh, daemon=True).start()

    signal.signal(signal.SIGHUP, hang_up)


def document_of(
    args: ServeArgs, served_name: str, handed: Sequence[LeasedAdapter], command: Sequence[str]
) -> dict[str, Any]:
    """The JSON document of the result."""
    from adapterhub.inference.serving.process import reachable

    return {
        "url": f"http://{reachable(args.host)}:{args.port}",
        "base": args.record.label,
        "model": served_name,
        "adapters": [
            {"model": str(spec), "adapter": h.label, "digest": h.digest, "rank": h.rank, "calling": one.to_json()}
            for spec, h, one in zip(args.specs, handed, callings(args, handed), strict=True)
        ],
        "command": list(command),
    } | ({} if args.test is None else {"tests": [one.to_json() for one in args.test.results]})


def callings(args: ServeArgs, handed: Sequence[LeasedAdapter]) -> list[Calling]:
    """How to ask each of the adapters."""
    from adapterhub.inference.calling import calling_of

    return [calling_of(one.prompt, args.record.hints.chat_template_sha256) for one in handed]


def say_dry(session: Session, document: dict[str, Any]) -> None:
    """Print the adapters and the command that would run."""
    for adapter in document["adapters"]:
        session.out.line(f"{adapter['model']} is {adapter['adapter']}, rank {adapter['rank']}, {adapter['digest']}")
        session.out.line(f"  {_call_line(adapter)}")
    session.out.line(f"would start: {shlex.join(document['command'])}")


def say_ready(session: Session, document: dict[str, Any]) -> None:
    """Print the address, the model names and an example request."""
    session.out.line(f"serving {document['model']} at {document['url']}/v1")
    for adapter in document["adapters"]:
        session.out.line(f"  {adapter['model']} is {adapter['adapter']}, {adapter['digest']}")
        session.out.line(f"    {_call_line(adapter)}")
    from adapterhub.inference.calling import calling_from, calling_of

    first = next(iter(document["adapters"]), None)
    calling = calling_from(first["calling"]) if first else calling_of(None, None)
    body = shlex.quote(calling.example(first["model"] if first else document["model"]))
    session.out.hint(f"`curl {document['url']}{calling.route} -H 'Content-Type: application/json' -d {body}`")


def _call_line(adapter: dict[str, Any]) -> str:
    return f"ask it at {adapter['calling']['route']}: {adapter['calling']['how']}"
