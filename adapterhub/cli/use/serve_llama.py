"""`adapt serve --engine llama.cpp`: adapters as GGUF files, one server that loads them all, and a front with names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapterhub.cli.options.params import Session
from adapterhub.cli.use.serve_engine import ServeArgs, checked, document_of, say_dry, started, stay
from adapterhub.core.errors import NotAllowed, UsageProblem
from adapterhub.core.extras import require

if TYPE_CHECKING:
    from adapterhub.inference.serving import LeasedAdapter

ENGINE: Final = "llama.cpp"
_SLOTS: Final = 4


def serve_llama(
    session: Session,
    args: ServeArgs,
    served_name: str,
    *,
    gguf: Path | None,
    llama_server: str | None,
    slots: int | None,
) -> None:
    """Check the adapters, write them as GGUF, start the server and its front, and wait.

    Nothing proves that `gguf` holds the base, since it may be quantised; llama.cpp compares architecture and shapes.
    """
    require("export", "`--engine llama.cpp`")
    from adapterhub.inference.serving import UnreachableRemotes
    from adapterhub.inference.serving.access.watched import LOOK_S, Upkeep
    from adapterhub.inference.serving.access.yanks import YANKS_S, look_for_yanks
    from adapterhub.inference.serving.auto import Auto
    from adapterhub.inference.serving.following import Followers, Reactions, feed_of
    from adapterhub.inference.serving.llama_cpp.engine import address, command_of, environ_of, find_llama_server
    from adapterhub.inference.serving.llama_cpp.names import Names, Served
    from adapterhub.inference.serving.llama_cpp.server import front

    if gguf is None or not gguf.is_file():
        raise UsageProblem(
            "`--engine llama.cpp` needs `--gguf` with the base as a GGUF file",
            hint="llama.cpp's `convert_hf_to_gguf.py` makes one from the base's folder",
        )
    program = find_llama_server(llama_server)
    slots = slots or _SLOTS
    with address(program) as where, session.library.store.intent("serve llama.cpp") as intent:
        with checked(session, args, ENGINE) as found:
            args, handed, aliases = found.args, found.handed, found.aliases
            loaded = {one.digest: one for one in handed}  # two names may mean one build
            files = [intent.folder / f"{at}-{digest[7:19]}.gguf" for at, digest in enumerate(loaded)]
            if not args.dry_run:
                _write(session, args, [*loaded.values()], files)
        command = command_of(program, gguf.absolute(), files, where.words, slots, args.extra)
        document = document_of(args, served_name, handed, command) | {"engine": ENGINE}
        if args.dry_run:
            session.out.result(document, lambda: say_dry(session, document))
            return
        moving = [str(spec) for spec in args.specs if spec.base is not None]  # aliases: the others have no base
        served = [one.model if spec.base else str(spec) for spec, one in zip(args.specs, handed, strict=True)]
        said = [one["calling"] for one in document["adapters"]]
        digest = args.record.fingerprint.weights
        names = Names(
            served_name,
            [
                Served(name=name, label=one.label, digest=one.digest, calling=calling)
                for name, one, calling in zip(served, handed, said, strict=True)
            ],
            base_digest=digest,
            denied=args.denied,
            moving=moving,
            aliases=aliases,
        )
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

        with started(session, args, command, environ_of(os.environ, where)) as engine:
            engine.wait_until_ready(where.answers, within_s=args.start_timeout_s)
            try:
                upkeep = Upkeep([(LOOK_S, args.denied.refresh), (LOOK_S, args.gate.refresh), (YANKS_S, look)])
                following = follow() if args.settings.follow else contextlib.nullcontext()
                open_front = front(args.host, args.port, where, names, args.gate, auto, slots=slots)
                with upkeep, following, open_front as server:
                    stay(
                        session,
                        engine,
                        document,
                        drain_s=args.drain_s,
                        drain=lambda: server.drain(args.drain_s),
                        refresh_aliases=names.refresh,
                    )
            except OSError as error:
                raise NotAllowed(f"cannot listen on `{args.host}:{args.port}`: {error.strerror}") from None


def _write(session: Session, args: ServeArgs, handed: Sequence[LeasedAdapter], files: Sequence[Path]) -> None:
    """Write one GGUF file for each adapter, with PEFT's scale folded in."""
    from adapterhub.inference.export import export

    base = args.record.alias or f"./{os.path.relpath(args.model)}"
    for one, path in zip(handed, files, strict=True):
        spec = f"{one.label}#{one.digest[:19]}"
        for note in export(spec, path, form="gguf", library=session.library, base=base).notes:
            if note not in one.warnings:  # the check has printed those
                session.out.warn(f"{one.label}: {note}")
