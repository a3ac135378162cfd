"""`adapt serve --engine llama.cpp`: adapters as GGUF files, one server that loads them all, and a front with names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterhub.cli.options.params import Session
from adapterhub.cli.use.serve_engine import ServeArgs, checked, document_of, say_dry, started, stay
from adapterhub.core.errors import NotAllowed, UsageProblem
from adapterhub.core.extras import require

if TYPE_CHECKING:
    from adapterhub.inference.serving import LeasedAdapter
    from adapterhub.inference.serving.aliases import ServedAliases
    from adapterhub.inference.serving.llama_cpp.names import Names

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
