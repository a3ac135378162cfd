"""The parts of `adapt serve` that all engines share: the check, the child process and the output."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from adapterhub.cli.options.params import Session
from adapterhub.core.disk.output_place import output_place
from adapterhub.core.errors import AdapterHubError, UnsupportedAdapter
from adapterhub.projects.session import sources_from

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.inference.serving import AdapterProvider, LeasedAdapter, ServeSettings
    from adapterhub.inference.serving.access.denied import Denied
    from adapterhub.inference.serving.access.gate import Gate
    from adapterhub.inference.serving.calling import Calling
    from adapterhub.inference.serving.process import EngineProcess
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.transfer import Source


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


@contextlib.contextmanager
def checked(session: Session, args: ServeArgs, engine: str) -> Iterator[list[LeasedAdapter]]:
    """Yield the named adapters, each found, checked and leased during the block.

    Raises:
        AdapterHubError: the error of the only refused adapter.
        UnsupportedAdapter: several adapters are refused; one line each.
    """
    from adapterhub.inference.serving import AdapterProvider

    provider = AdapterProvider(
        session.project_library,
        args.record,
        engine=engine,
        sources=lambda spec: _sources(session, args.settings, spec),
        max_rank=args.settings.max_rank,
        signatures=args.settings.signatures,  # type: ignore[arg-type]  # one of the policies, or None
        denied=args.denied,
    )
    with contextlib.closing(provider):
        handed = _all_of(provider, args.specs, session)
        for one, calling in zip(handed, callings(args, handed), strict=True):
            if calling.warning:
                session.out.warn(f"{one.label}: {calling.warning}; {calling.how} to {calling.route}")
        yield handed


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
    session: Session, args: ServeArgs, command: Sequence[str], environ: dict[str, str]
) -> Iterator[EngineProcess]:
    """The running engine, which writes to the log; it and its processes end with the block."""
    from adapterhub.inference.serving.process import EngineProcess

    with contextlib.ExitStack() as stack:
        output: IO[bytes] | int = (
            sys.stderr.fileno() if args.log is None else stack.enter_context(output_place(args.log).open("ab"))
        )
        session.out.note(f"starting `{shlex.join(command)}`")
        yield stack.enter_context(EngineProcess(command, environ, output=output))


def stay(
    session: Session, engine: EngineProcess, document: dict[str, Any], *, drain_s: float, drain: Callable[[], bool]
) -> None:
    """Print that the server is ready, and return when it should stop and `drain` has let running requests finish.

    Raises:
        EngineFailed: the engine ended by itself.
    """
    document |= {"pid": engine.pid}
    try:
        session.out.result(document, lambda: say_ready(session, document))
        sys.stdout.flush()
        engine.wait()
    except (KeyboardInterrupt, SystemExit):  # the normal end of a server
        if drain_s:
            session.out.note(
                f"finishing the requests that run, for at most {drain_s:g} s; a second Ctrl-C stops at once"
            )
            with contextlib.suppress(KeyboardInterrupt, SystemExit):
                if not drain():
                    session.out.warn(f"some requests still ran after {drain_s:g} s")
        session.out.note("stopping the engine")


def document_of(
    args: ServeArgs, served_name: str, handed: Sequence[LeasedAdapter], command: Sequence[str]
) -> dict[str, Any]:
    """The JSON document of the result."""
    from adapterhub.inference.serving.front import reachable

    return {
        "url": f"http://{reachable(args.host)}:{args.port}",
        "base": args.record.label,
        "model": served_name,
        "adapters": [
            {"model": model_of(spec), "adapter": h.label, "digest": h.digest, "rank": h.rank, "calling": one.to_json()}
            for spec, h, one in zip(args.specs, handed, callings(args, handed), strict=True)
        ],
        "command": list(command),
    }


def callings(args: ServeArgs, handed: Sequence[LeasedAdapter]) -> list[Calling]:
    """How to ask each of the adapters."""
    from adapterhub.inference.serving.calling import calling_of

    return [calling_of(one.prompt, args.record.hints.chat_template_sha256) for one in handed]


def model_of(spec: AdapterSpec) -> str:
    """The model name in requests: the spec without its base, which is the served one."""
    return str(replace(spec, base=None))


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
    from adapterhub.inference.serving.calling import calling_from, calling_of

    first = next(iter(document["adapters"]), None)
    calling = calling_from(first["calling"]) if first else calling_of(None, None)
    body = shlex.quote(calling.example(first["model"] if first else document["model"]))
    session.out.hint(f"`curl {document['url']}{calling.route} -H 'Content-Type: application/json' -d {body}`")


def _call_line(adapter: dict[str, Any]) -> str:
    return f"ask it at {adapter['calling']['route']}: {adapter['calling']['how']}"
