"""The parts of `adapt serve` that all engines share: the check, the child process and the output."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from adapterhub.cli.options.params import Session
from adapterhub.core.digests import hex_of
from adapterhub.core.disk.files import output_place
from adapterhub.core.errors import AdapterHubError, NotAllowed, UnsupportedAdapter, UsageProblem
from adapterhub.core.extras import require
from adapterhub.projects.session import sources_from

if TYPE_CHECKING:
    from adapterhub.api.steps.contracts.gating import ContractGate
    from adapterhub.core.digests import Progress
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.inference.calling import Calling
    from adapterhub.inference.serving import AdapterProvider, LeasedAdapter, ServeSettings, UnreachableRemotes
    from adapterhub.inference.serving.access.denied import Denied
    from adapterhub.inference.serving.access.gate import Gate
    from adapterhub.inference.serving.aliases import ServedAliases
    from adapterhub.inference.serving.llama_cpp.engine import Address
    from adapterhub.inference.serving.llama_cpp.names import Names, Served
    from adapterhub.inference.serving.llama_cpp.swaps import Running
    from adapterhub.inference.serving.process import EngineProcess
    from adapterhub.inference.serving.provider import BuildGate
    from adapterhub.library.bases.proof import Proof
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
    """Check the adapters, prove that `gguf` holds their base, write them as GGUF, start the server, and wait.

    Raises:
        BaseMismatch, CouldNotTell: the file is not a copy of the base, or nothing proves that it is.
    """
    require("export", "`--engine llama.cpp`")
    from adapterhub.inference.serving import UnreachableRemotes
    from adapterhub.inference.serving.auto import Auto
    from adapterhub.inference.serving.following import Upkeep
    from adapterhub.inference.serving.llama_cpp.engine import find_llama_server
    from adapterhub.inference.serving.llama_cpp.server import Front
    from adapterhub.inference.serving.llama_cpp.swaps import Swaps
    from adapterhub.inference.serving.llama_cpp.turns import CAN_STOP
    from adapterhub.library.bases.proof import proof_of

    if gguf is None or not gguf.is_file():
        raise UsageProblem(
            "`--engine llama.cpp` needs `--gguf` with the base as a GGUF file",
            hint="llama.cpp's `convert_hf_to_gguf.py` makes one from the base's folder",
        )
    program = find_llama_server(llama_server)
    slots = slots or _SLOTS
    count = (engines or (1 if args.settings.tenants is None else _ENGINES)) if CAN_STOP else 1
    with session.library.store.intent("serve llama.cpp") as intent, checked(session, args, ENGINE) as found:
        proof = proof_of(session.library.bases, args.record, gguf, session.out.progress)
        proof.ensure()
        session.out.note(proof.text)
        args, handed, provider = found.args, found.handed, found.provider
        starting = _Starting(
            session=session,
            args=args,
            program=program,
            base=gguf.absolute(),
            folder=intent.folder,
            proof=proof,
            slots=slots,
            count=count,
        )
        loaded = [*{one.digest: one for one in handed}.values()]  # two names may mean one build
        if args.dry_run:
            command = starting.command(loaded)
            document = _document(args, served_name, handed, command, proof)
            session.out.result(document, lambda: say_dry(session, document))
            return
        with contextlib.ExitStack() as stack:
            running = starting.start(loaded)
            stack.callback(running.close)
            document = _document(args, served_name, handed, running.processes[0].command, proof)
            digest = args.record.fingerprint.weights
            names = _names(args, served_name, handed, provider.aliases)
            labels = {one.digest: one.label for one in handed}
            file, follow = args.settings.route, args.settings.follow
            auto = None if file is None else Auto.open(session.library, file, digest)
            places = session.followed_places(args.settings.remote, labels) if follow else None
            front = Front(
                args.host,
                args.port,
                running.where,
                names,
                args.gate,
                auto,
                slots=slots,
                pids=[one.pid for one in running.processes],
            )
            provider.gate = _gate(session, replace(args, test=None))  # a test would load the base here, too
            swaps = Swaps(
                front=front,
                provider=provider,
                gate=args.gate,
                means=found.means,
                running=running,
                start=starting.start,
                served=partial(_served, args),
                program=program,
                note=session.out.note,
                warn=session.out.warn,
                start_timeout_s=args.start_timeout_s,
            )
            stack.pop_all()
            stack.callback(swaps.close)
            upkeep = Upkeep(
                library=session.library,
                denied=args.denied,
                gate=args.gate,
                served=lambda: {one.digest: one.label for one in front.now.names.served.values()},
                find_source=None if args.settings.offline else session.place_source,
                remotes=UnreachableRemotes(),
                places=None if places is None else lambda: places,
                refresh_aliases=swaps.refresh,
                provider=lambda: provider,
            )
            try:
                with front, upkeep.running(), swaps.following():
                    stay(
                        session,
                        swaps.processes,
                        document,
                        drain_s=args.drain_s,
                        drain=lambda: front.drain(args.drain_s),
                        refresh_aliases=swaps.refresh,
                    )
            except OSError as error:
                raise NotAllowed(
                    f"cannot listen on `{args.host}:{args.port}`: {error.strerror}",
                    hint="choose another port with `--port`",
                ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Starting:
    """How engines are started: `count` of `program` on the base, for adapters whose GGUF files lie in `folder`."""

    session: Session
    args: ServeArgs
    program: str
    base: Path
    folder: Path
    proof: Proof
    slots: int
    count: int

    def command(self, adapters: Sequence[LeasedAdapter], where: Address | None = None) -> list[str]:
        """Return the command of one engine; without an address, one that an engine may get."""
        from adapterhub.inference.serving.llama_cpp.engine import addresses, command_of

        with contextlib.ExitStack() as stack:
            where = where or stack.enter_context(addresses(self.program, 1))[0]
            files = [self._file(one) for one in adapters]
            return command_of(self.program, self.base, files, where.words, self.slots, self.args.extra)

    def start(self, adapters: Sequence[LeasedAdapter], while_waiting: Callable[[], None] = lambda: None) -> Running:
        """Write what is not yet written, start the engines, and wait until they answer.

        Raises:
            EngineFailed: one ended, or did not answer in time.
            CouldNotTell: the base's file changed.
        """
        from adapterhub.inference.serving.llama_cpp.engine import addresses, environ_of
        from adapterhub.inference.serving.llama_cpp.swaps import Running

        for one in adapters:
            if not self._file(one).is_file():
                _write(self.session, self.args, one, self._file(one))
        with contextlib.ExitStack() as stack:
            where = stack.enter_context(addresses(self.program, self.count))
            commands = [self.command(adapters, one) for one in where]
            environ = environ_of(os.environ, where[0])
            running = stack.enter_context(started(self.session, self.args, commands, environ))
            for engine, address in zip(running, where, strict=True):
                engine.wait_until_ready(
                    address.answers, within_s=self.args.start_timeout_s, while_waiting=while_waiting
                )
            self.proof.ensure_unchanged()
            for file in {*self.folder.glob("*.gguf")} - {*map(self._file, adapters)}:  # the engines hold copies
                file.unlink()
            return Running(where=where, processes=running, close=stack.pop_all().close)

    def _file(self, one: LeasedAdapter) -> Path:
        return self.folder / f"{hex_of(one.digest)}.gguf"


def _document(
    args: ServeArgs, served_name: str, handed: Sequence[LeasedAdapter], command: Sequence[str], proof: Proof
) -> dict[str, Any]:
    return document_of(args, served_name, handed, command) | {"engine": ENGINE, "proof": proof.to_json()}


def _names(args: ServeArgs, served_name: str, handed: Sequence[LeasedAdapter], aliases: ServedAliases) -> Names:
    """Say what the names in requests mean."""
    from adapterhub.inference.serving.llama_cpp.names import Names

    return Names(
        served_name,
        [_served(args, str(spec), one) for spec, one in zip(args.specs, handed, strict=True)],
        base_digest=args.record.fingerprint.weights,
        denied=args.denied,
        moving=[str(spec) for spec in args.specs if spec.base is not None],  # aliases: the others have no base
        aliases=aliases,
    )


def _served(args: ServeArgs, name: str, one: LeasedAdapter) -> Served:
    """Return an adapter under the name that lists show; a target of an alias has its own."""
    from adapterhub.inference.serving.llama_cpp.names import Served

    return Served(
        name=one.model if "@" in name else name,
        label=one.label,
        digest=one.digest,
        calling=callings(args, [one])[0].to_json(),
        asleep=one.asleep,
    )


def _write(session: Session, args: ServeArgs, one: LeasedAdapter, file: Path) -> None:
    """Write an adapter as a GGUF file, with PEFT's scale folded in."""
    from adapterhub.inference.export import export

    base = args.record.alias or f"./{os.path.relpath(args.model)}"
    spec = f"{one.label}#{one.digest[:19]}"
    for note in export(spec, file, form="gguf", library=session.library, base=base).notes:
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
    """The adapters to serve, in the order of `args.specs`, which are their model names.

    `means` has the adapters of each name that was given: of an alias all targets.
    """

    args: ServeArgs
    handed: list[LeasedAdapter]
    means: dict[str, tuple[LeasedAdapter, ...]]
    provider: AdapterProvider


@contextlib.contextmanager
def checked(session: Session, args: ServeArgs, engine: str) -> Iterator[CheckedEngine]:
    """Yield the named adapters, each found, checked and leased during the block.

    An alias with several targets brings all of them: its name stands for the first, and the others follow it.

    Raises:
        AdapterHubError: the error of the only refused adapter.
        UnsupportedAdapter: several adapters are refused; one line each.
    """
    from adapterhub.core.specs import AdapterSpec as Spec

    provider = provider_for(session, args, engine)
    with contextlib.closing(provider):
        groups = [[spec, *map(Spec.parse, provider.targets(str(spec))[1:])] for spec in args.specs]
        handed = _all_of(provider, [spec for group in groups for spec in group], session)
        for one, calling in zip(handed, callings(args, handed), strict=True):
            if calling.warning:
                session.out.warn(f"{one.label}: {calling.warning}; {calling.how} to {calling.route}")
        left = iter(handed)
        names: list[AdapterSpec] = []
        means: dict[str, tuple[LeasedAdapter, ...]] = {}
        for group in groups:  # a model name has no base, which is the served one
            named = [spec if provider.targets(str(spec)) else replace(spec, base=None) for spec in group]
            means[str(named[0])] = tuple(next(left) for _ in group)
            names += named
        args = replace(args, specs=tuple(names))
        yield CheckedEngine(args=args, handed=handed, means=means, provider=provider)


def provider_for(
    session: Session,
    args: ServeArgs,
    engine: str,
    *,
    remotes: UnreachableRemotes | None = None,
    progress: Progress | None = None,
) -> AdapterProvider:
    """Return the provider of adapters for `engine`, such as `vllm@0.32`.

    With `remotes`, one that is away is left alone.
    """
    from adapterhub.inference.serving import AdapterProvider

    def sources(spec: AdapterSpec) -> Sequence[Source]:
        found = _sources(session, args.settings, spec)
        return found if remotes is None else [*map(remotes.guard, found)]

    return AdapterProvider(
        session.project_library,
        args.record,
        engine=engine,
        sources=sources,
        max_rank=args.settings.max_rank,
        signatures=args.settings.signatures,  # type: ignore[arg-type]  # one of the policies, or None
        alias_ttl_s=args.settings.alias_ttl_s,
        denied=args.denied,
        gate=_gate(session, args),
        progress=progress,
    )


def _gate(session: Session, args: ServeArgs) -> BuildGate:
    """Return the requested test, or the policy `tests` of the project and of the user, which runs nothing."""
    from adapterhub.inference.serving.provider import PassGate

    is_tested = args.settings.tested and args.test is None  # once it serves
    passes = PassGate(
        library=session.library,
        base=args.record,
        standards=replace(session.standards, policy="require") if is_tested else session.standards,
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
    """Return its name in requests: without a base by path, which no request may name."""
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
    """Provide the running engines, which write to the log; they and their processes end with the block.

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
    on_hangup(session, refresh_aliases)
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


def on_hangup(session: Session, refresh_aliases: Callable[[], bool]) -> None:
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
    """Return the JSON document of the result."""
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
    """Describe how to prompt each of the adapters."""
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
