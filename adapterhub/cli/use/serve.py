"""`adapt serve`: preflight, an engine with the right flags as a child, adapters by name, and a clean stop."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from adapterhub.cli.options.params import BASE, SPEC, Session, common, remote_options, signatures_option
from adapterhub.cli.use.serve_engine import Asked, checked, document_of, model_of, say_dry, started, stay
from adapterhub.core.errors import EngineFailed, UsageProblem

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.inference.serving import LeasedAdapter
    from adapterhub.inference.serving.vllm import InstalledVllm, VllmOptions
    from adapterhub.trust.signing.policy import SignaturePolicy

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_LEAST_RANK: Final = 16
_SLOTS: Final = 4
_CPU_SLOTS: Final = 32


@click.command()
@click.argument("specs", nargs=-1, type=SPEC, metavar="[SPEC...]")
@click.option("--base", type=BASE, required=True, help="The base to serve: alias, Hub id, digest or folder.")
@click.option(
    "--engine", type=click.Choice(["vllm", "llama.cpp"]), default="vllm", show_default=True, help="What answers."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, metavar="N", help="0 takes a free one."
)
@click.option(
    "--name", metavar="TEXT", help="What requests call the base alone [default: its alias, else its folder's name]."
)
@click.option(
    "--max-rank",
    type=click.IntRange(min=1),
    metavar="N",
    help="Largest rank that can be asked for later [default: that of SPEC..., else of what is installed; 16 or more].",
)
@click.option(
    "--slots", type=click.IntRange(min=1), metavar="N", help="Different adapters in one batch [default: 4 or fewer]."
)
@click.option(
    "--cpu-slots",
    type=click.IntRange(min=1),
    metavar="N",
    help="Adapters kept in memory [default: 32, or as many as SPEC...].",
)
@click.option(
    "--python",
    metavar="FILE",
    help="The interpreter that has vLLM and adapterhub [default: ADAPTERHUB_VLLM_PYTHON, then this one].",
)
@click.option("--gguf", type=click.Path(path_type=Path), metavar="FILE", help="llama.cpp: the base as GGUF.")
@click.option(
    "--llama-server", "llama_server", metavar="FILE", help="llama.cpp: its server [default: `llama-server` in PATH]."
)
@click.option("--engine-args", metavar="TEXT", default="", help="More options for the engine, as one text.")
@click.option(
    "--log", type=click.Path(path_type=Path), metavar="FILE", help="Where the engine writes [default: stderr]."
)
@click.option(
    "--start-timeout", type=click.FloatRange(min=1), default=600.0, show_default=True, metavar="S", help="Seconds."
)
@click.option("--dry-run", is_flag=True, help="Check the adapters and show what would be started; start nothing.")
@signatures_option
@remote_options
@common
def serve(
    session: Session,
    specs: tuple[AdapterSpec, ...],
    base: BaseSpec,
    engine: str,
    host: str,
    port: int,
    name: str | None,
    max_rank: int | None,
    slots: int | None,
    cpu_slots: int | None,
    python: str | None,
    gguf: Path | None,
    llama_server: str | None,
    engine_args: str,
    log: Path | None,
    start_timeout: float,
    dry_run: bool,
    signatures: SignaturePolicy | None,
    remote: str | None,
    token: str | None,
    offline: bool,
) -> None:
    """Start an engine on a base and answer with adapters by name: `"model": "legal-qa"` or `"legal-qa==1.2"`.

    Each SPEC is resolved, checked and judged first; if the engine cannot serve one, nothing is started. With vLLM any
    other adapter can be named later: it is looked up in the library, then in the remotes that have its namespace,
    checked and leased. With llama.cpp the adapters are those of SPEC. Ctrl-C or SIGTERM ends the engine and all that
    it started.

    \b
    Examples:
      adapt serve --base base-7b
      adapt serve legal-qa 'summarize>=1.2' --base base-7b --port 8000
      adapt serve legal-qa --base base-7b --dry-run
      adapt serve legal-qa --base base-7b --engine llama.cpp --gguf base-7b.gguf
    """
    from adapterhub.inference.serving import ServeSettings
    from adapterhub.inference.serving.front import free_port

    if token is not None:
        raise UsageProblem("--token is not handed to an engine", hint="`adapt remote login` keeps it where it is read")
    library = session.library
    record = library.bases.find(base)
    if record.path is None or not record.path.is_dir():
        raise UsageProblem(
            f"the base `{record.label}` is known here, but its folder is not",
            hint=f"`adapt base add PATH --as {record.alias or 'NAME'}` says where it is",
        )
    settings = ServeSettings(
        root=session.root.absolute(), max_rank=max_rank, remote=remote, offline=offline, signatures=signatures
    )
    asked = Asked(
        specs=specs,
        record=record,
        model=record.path.absolute(),
        host=host,
        port=free_port(host, port) if not dry_run else port,
        settings=settings,
        extra=tuple(_split(engine_args)),
        log=log,
        start_timeout_s=start_timeout,
        dry_run=dry_run,
    )
    if host not in LOOPBACK and not os.environ.get("VLLM_API_KEY") and "--api-key" not in asked.extra:
        session.out.warn(f"`{host}` may be reached by others, and nothing asks them who they are (VLLM_API_KEY does)")
    served_name = name or record.alias or asked.model.name
    if engine == "llama.cpp":
        from adapterhub.cli.use.serve_llama import serve_llama

        if cpu_slots is not None:
            raise UsageProblem("--cpu-slots is for vLLM; llama.cpp keeps every adapter of SPEC... in memory")
        serve_llama(session, asked, served_name, gguf=gguf, llama_server=llama_server, slots=slots)
        return
    if gguf is not None or llama_server is not None:
        raise UsageProblem("--gguf and --llama-server are for `--engine llama.cpp`")
    _serve_vllm(session, asked, served_name, python=python, slots=slots, cpu_slots=cpu_slots)


def _split(text: str) -> Sequence[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageProblem(f"--engine-args: {error}") from None


# ---------------------------------------------------------------- vLLM
def _serve_vllm(
    session: Session, asked: Asked, served_name: str, *, python: str | None, slots: int | None, cpu_slots: int | None
) -> None:
    from adapterhub.inference.serving.vllm import VllmOptions, command_of, find_vllm

    vllm = find_vllm(python or os.environ.get("ADAPTERHUB_VLLM_PYTHON") or sys.executable)
    with checked(session, asked, f"vllm@{vllm.version}") as handed:
        max_rank = _max_rank(session, asked, handed)
        slots = slots or min(_SLOTS, max(1, len(handed) or _SLOTS))
        options = VllmOptions(
            model=asked.model,
            served_name=served_name,
            host=asked.host,
            port=asked.port,
            max_rank=max_rank,
            slots=slots,
            cpu_slots=max(cpu_slots or max(_CPU_SLOTS, len(handed)), slots),
            extra=(*_other_flags(handed), *asked.extra),
        )
    # from here on the engine's own process checks and leases; what was looked at is in the library by now
    command = command_of(vllm, options)
    document = document_of(asked, served_name, handed, command) | {
        "engine": f"vllm {vllm.version}",
        "max_rank": max_rank,
        "slots": options.slots,
        "cpu_slots": options.cpu_slots,
    }
    if asked.dry_run:
        session.out.result(document, lambda: say_dry(session, document))
        return
    run_vllm(session, asked, vllm, options, document)


def run_vllm(
    session: Session, asked: Asked, vllm: InstalledVllm, options: VllmOptions, document: dict[str, Any]
) -> None:
    """Start the server, load the adapters that were named, and stay until it ends."""
    from dataclasses import replace

    from adapterhub.inference.serving.front import message_in, post
    from adapterhub.inference.serving.vllm import command_of, environ_of

    ours = replace(asked.settings, max_rank=options.max_rank).to_environ()
    with started(session, asked, command_of(vllm, options), environ_of(vllm, os.environ, ours)) as engine:
        engine.wait_until_ready(f"{document['url']}/health", within_s=asked.start_timeout_s)
        for spec in asked.specs:
            body = {"model": model_of(spec), "prompt": "a", "max_tokens": 1}
            status, answer = post(f"{document['url']}/v1/completions", body, key=os.environ.get("VLLM_API_KEY"))
            if status != 200:  # noqa: PLR2004 - HTTP's OK
                raise EngineFailed(f"vLLM did not load `{model_of(spec)}` ({status}): {message_in(answer)}")
        stay(session, engine, document)


def _max_rank(session: Session, asked: Asked, handed: Sequence[LeasedAdapter]) -> int:
    """The allowed rank for what was named, else for what is installed for this base and could be named."""
    from adapterhub.formats.base.fingerprint import compare
    from adapterhub.inference.engines.vllm import MAX_RANKS
    from adapterhub.inference.serving.provider import RANK_SETTING
    from adapterhub.inference.serving.vllm import allowed_rank

    if asked.settings.max_rank is not None:
        return allowed_rank(asked.settings.max_rank)
    if handed:
        needed = [rank for h in handed if isinstance(rank := h.verdict.settings.get(RANK_SETTING), int)]
        return allowed_rank(max([_LEAST_RANK, *needed]))
    ours = asked.record.fingerprint
    ranks = [
        build.manifest.rank
        for build in session.library.installed()
        if build.manifest.rank and compare(build.base.fingerprint, ours).verdict.allows_attach
    ]
    return allowed_rank(max([_LEAST_RANK, *(rank for rank in ranks if rank <= MAX_RANKS[-1])]))


def _other_flags(handed: Sequence[LeasedAdapter]) -> tuple[str, ...]:
    """What else the named adapters need of the server."""
    from adapterhub.inference.engines import as_flags, joined
    from adapterhub.inference.serving.provider import RANK_SETTING

    return as_flags(
        {
            key: value
            for key, value in joined(h.verdict.settings for h in handed).items()
            if key not in {RANK_SETTING, "enable-lora"}
        }
    )
