"""`adapt serve --engine llama.cpp`: adapters as GGUF files, one server that has them all, and a front with names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapterhub.cli.options.params import Session
from adapterhub.cli.use.serve_engine import Asked, checked, document_of, model_of, say_dry, started, stay
from adapterhub.core.errors import NotAllowed, UsageProblem
from adapterhub.core.extras import require

if TYPE_CHECKING:
    from adapterhub.inference.serving import Handed

ENGINE: Final = "llama.cpp"
_SLOTS: Final = 4


def serve_llama(
    session: Session, asked: Asked, served_name: str, *, gguf: Path | None, llama_server: str | None, slots: int | None
) -> None:
    """Check, write the adapters as GGUF, start the server and its front, and stay.

    Nothing proves that `gguf` holds the base: its numbers may be packed. llama.cpp compares architecture and shapes.
    """
    from adapterhub.inference.serving.front import free_port
    from adapterhub.inference.serving.llama_cpp import Names, command_of, find_llama_server, front

    if gguf is None or not gguf.is_file():
        raise UsageProblem(
            "`--engine llama.cpp` needs the base as GGUF, and `--gguf` names no file",
            hint="llama.cpp's `convert_hf_to_gguf.py` makes one of the base's folder",
        )
    if not asked.dry_run:
        require("export", "`--engine llama.cpp`")
    program = find_llama_server(llama_server)
    engine_port = free_port("127.0.0.1")
    extra = ["--parallel", str(slots or _SLOTS), *asked.extra]
    with session.library.store.intent("serve llama.cpp") as intent:
        with checked(session, asked, ENGINE) as handed:
            files = [intent.folder / f"{at}-{one.digest[7:19]}.gguf" for at, one in enumerate(handed)]
            if not asked.dry_run:
                _write(session, asked, handed, files)
        command = command_of(program, gguf.absolute(), files, engine_port, extra)
        document = document_of(asked, served_name, handed, command) | {"engine": ENGINE}
        if asked.dry_run:
            session.out.result(document, lambda: say_dry(session, document))
            return
        names = Names(served_name, [model_of(spec) for spec in asked.specs])
        with started(session, asked, command, dict(os.environ)) as engine:
            engine.wait_until_ready(f"http://127.0.0.1:{engine_port}/health", within_s=asked.start_timeout_s)
            try:
                answering = front(asked.host, asked.port, engine_port, names)
                with answering:
                    stay(session, engine, document)
            except OSError as error:
                raise NotAllowed(f"cannot listen on `{asked.host}:{asked.port}`: {error.strerror}") from None


def _write(session: Session, asked: Asked, handed: Sequence[Handed], files: Sequence[Path]) -> None:
    """One GGUF file for each adapter, PEFT's scale folded in."""
    from adapterhub.inference.export import export

    base = asked.record.alias or f"./{os.path.relpath(asked.model)}"
    for one, path in zip(handed, files, strict=True):
        spec = f"{one.label}#{one.digest[:19]}"
        for note in export(spec, path, form="gguf", library=session.library, base=base).notes:
            session.out.warn(f"{one.label}: {note}")
