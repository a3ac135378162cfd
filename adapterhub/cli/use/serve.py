"""`adapt serve`: check the adapters, run an engine as a child process with the right flags, and stop it cleanly."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from adapterhub.cli.options.params import BASE, SPEC, Session, common, remote_options, signatures_option
from adapterhub.cli.options.testing import test_option
from adapterhub.cli.use.serve_engine import ServeArgs, checked, document_of, requested_name, say_dry, started, stay
from adapterhub.core.display import size_text
from adapterhub.core.errors import UsageProblem
from adapterhub.core.hosts import is_loopback

if TYPE_CHECKING:
    from adapterhub.api.steps.contracts.gating import ContractGate
    from adapterhub.core.arguments import Testing
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.inference.serving import LeasedAdapter
    from adapterhub.inference.serving.vllm import InstalledVllm, VllmOptions
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.library import Library
    from adapterhub.trust.signing.policy import SignaturePolicy

_LEAST_RANK: Final = 16


def max_rank_for(session: Session, args: ServeArgs, handed: Sequence[LeasedAdapter]) -> int:
    """Return the rank to allow: that of the named adapters, or of installed adapters for this base.

    Says on stderr which adapters make every slot larger than all others need.
    """
    from adapterhub.formats.engines.vllm import MAX_RANKS
    from adapterhub.inference.serving.provider import RANK_SETTING
    from adapterhub.inference.serving.vllm import allowed_rank

    if args.settings.max_rank is not None:
        return allowed_rank(args.settings.max_rank)
    needed: dict[str, int] = {
        one.label: rank for one in handed if isinstance(rank := one.verdict.settings.get(RANK_SETTING), int)
    }
    needed = needed or _installed_ranks(session, args)
    allowed = {label: allowed_rank(rank) for label, rank in needed.items() if rank <= MAX_RANKS[-1]}
    most = max([_LEAST_RANK, *allowed.values()])
    _say_what_grows(session, args, allowed, most)
    return most


def _installed_ranks(session: Session, args: ServeArgs) -> dict[str, int]:
    judged, ours = session.library.bases.judged, args.record.fingerprint
    return {
        f"{build.full_name}=={build.manifest.version}": build.manifest.rank
        for build in session.library.installed()
        if build.manifest.rank and judged(build.base.fingerprint, ours).verdict.allows_attach
    }


def _say_what_grows(session: Session, args: ServeArgs, allowed: Mapping[str, int], most: int) -> None:
    from adapterhub.inference.serving.vllm import option_in, slot_bytes

    large = sorted(label for label, rank in allowed.items() if rank == most)
    others = [rank for rank in allowed.values() if rank < most]
    if most == _LEAST_RANK or not others:
        return
    enough = max([_LEAST_RANK, *others])
    item_bytes = 4 if option_in(args.extra, "--dtype") in {"float32", "float"} else 2
    after, before = (size_text(slot_bytes(args.record.weights, rank, item_bytes)) for rank in (most, enough))
    whose = f"`{large[0]}` needs" if len(large) == 1 else f"`{large[0]}` and {len(large) - 1} more need"
    session.out.note(
        f"{whose} rank {most}, so every slot takes {after} of the engine's memory; rank {enough} ({before}) is enough "
        f"for all others. To keep small slots, pass `--max-rank {enough}` and serve it from another server"
    )


def routed_specs(
    library: Library, file: Path, record: BaseRecord, base_name: str, specs: Sequence[AdapterSpec]
) -> tuple[AdapterSpec, ...]:
    """Return the adapters of a routing file, each as exactly the build that it was checked with.

    Raises:
        NotFound, Malformed, BaseMismatch: it cannot be used, or is for another base.
        NotFound, MissingExtra: the model that compares texts is not set up.
        CouldNotTell: it confuses its adapters, and does not say that this is accepted.
        UsageProblem: an adapter or the base is called `auto`.
    """
    from adapterhub.api.steps.routing import check_route
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.formats.route import AUTO
    from adapterhub.inference.serving.auto import route_for
    from adapterhub.library.find.meaning import encoder_of

    if base_name == AUTO or any(spec.full_name == AUTO for spec in specs):
        hint = "`--name` gives the base another one"
        raise UsageProblem(f"`--route` answers the model name `{AUTO}`, which is taken", hint=hint)
    read = route_for(file, record.fingerprint.weights)
    check_route(read).ensure_good("Nothing was started")
    encoder_of(library)
    return tuple(AdapterSpec.parse(one.model) for one in read.adapters)


def _say_new_key(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from adapterhub.inference.serving.access.tenants import new_key

    key, digest = new_key()
    click.echo(f'for the tenant:            {key}\nfor the file of tenants:   keys = ["{digest}"]')
    context.exit()


_SLOTS: Final = 4
_CPU_SLOTS: Final = 32


@click.command()
@click.argument("specs", nargs=-1, type=SPEC, metavar="[SPEC...]")
@click.option(
    "--base",
    type=BASE,
    help="Serve this base: name, Hub id, digest or folder [default: that of --route, or the only one that fits].",
)
@click.option(
    "--engine",
    type=click.Choice(["vllm", "llama.cpp", "sglang"]),
    default="vllm",
    show_default=True,
    help="Run this engine; SGLang only with --sync.",
)
@click.option(
    "--sync",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Start no engine: keep the adapters of a running one equal to the YAML file FILE, read again when it changes.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Listen on this address.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="N",
    help="Listen on this port; 0 picks a free one [default: 8000; with --sync 8080, for /metrics and /health].",
)
@click.option("--name", metavar="TEXT", help="Model name of the base [default: its name, or its folder's].")
@click.option(
    "--max-rank",
    type=click.IntRange(min=1),
    metavar="N",
    help="Accept adapters of at most rank N [default: that of SPEC..., or of installed adapters; at least 16].",
)
@click.option(
    "--slots", type=click.IntRange(min=1), metavar="N", help="Allow N adapters in one batch [default: 4 or fewer]."
)
@click.option(
    "--cpu-slots",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep N adapters in memory [default: 32, or the number of SPECs if larger].",
)
@click.option(
    "--python",
    metavar="FILE",
    help="Python with vLLM and adapterhub installed [default: ADAPTERHUB_VLLM_PYTHON, then this one].",
)
@click.option("--gguf", type=click.Path(path_type=Path), metavar="FILE", help="llama.cpp: the base as a GGUF file.")
@click.option(
    "--llama-server", "llama_server", metavar="FILE", help="llama.cpp: the server [default: `llama-server` on PATH]."
)
@click.option(
    "--engines",
    type=click.IntRange(min=1, max=16),
    metavar="N",
    help="llama.cpp: Run N engines, so that N tenants do not wait for each other [default: 2 with --tenants, or 1].",
)
@click.option("--engine-args", metavar="TEXT", default="", help="Pass more options to the engine, as one text.")
@click.option(
    "--log",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Log the engine's output to FILE [default: stderr].",
)
@click.option(
    "--start-timeout",
    type=click.FloatRange(min=1),
    default=600.0,
    show_default=True,
    metavar="S",
    help="Give up if the engine is not ready after S seconds.",
)
@click.option(
    "--drain",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="S",
    help="When stopped, let running requests finish for at most S seconds.",
)
@click.option(
    "--follow", is_flag=True, help="Follow the events of the registries: a yank stops an adapter within a second."
)
@click.option(
    "--alias-ttl",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="S",
    help="Look up what an alias means again after S seconds; SIGHUP does it at once.",
)
@test_option("Serve an adapter only if it answers as its contract records")
@click.option("--dry-run", is_flag=True, help="Check the adapters and show the engine's command; start nothing.")
@click.option(
    "--route",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Answer the model name `auto` by the routing file FILE, which `adapt route` writes.",
)
@click.option(
    "--pin",
    "pins",
    type=SPEC,
    multiple=True,
    metavar="SPEC",
    help="vLLM: load this adapter at the start and keep it in memory (repeatable).",
)
@click.option(
    "--tenants",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Let in only the tenants in the TOML file FILE; read again when it changes.",
)
@click.option(
    "--new-key",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_say_new_key,
    help="Print a new key for a tenant and its line for the file, and exit.",
)
@click.option(
    "--audit-log",
    metavar="FILE",
    help="Append one JSON line for each request to FILE; `-` is standard error.",
)
@click.option(
    "--deny",
    multiple=True,
    metavar="TEXT",
    help="Refuse an adapter: a spec or digest, then the reason (repeatable).",
)
@click.option(
    "--deny-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Refuse the adapters in FILE, one `--deny` a line; read again when it changes.",
)
@signatures_option
@remote_options
@common
def serve(
    session: Session,
    specs: tuple[AdapterSpec, ...],
    base: BaseSpec | None,
    engine: str,
    sync: Path | None,
    host: str,
    port: int | None,
    name: str | None,
    max_rank: int | None,
    slots: int | None,
    cpu_slots: int | None,
    python: str | None,
    gguf: Path | None,
    llama_server: str | None,
    engines: int | None,
    engine_args: str,
    log: Path | None,
    start_timeout: float,
    drain: float,
    follow: bool,
    alias_ttl: float,
    test: Testing | None,
    dry_run: bool,
    route: Path | None,
    pins: tuple[AdapterSpec, ...],
    tenants: Path | None,
    audit_log: str | None,
    deny: tuple[str, ...],
    deny_file: Path | None,
    signatures: SignaturePolicy | None,
    remote: str | None,
    offline: bool,
) -> None:
    """Start an engine on a base and serve adapters by model name: `"model": "legal-qa"` or `"legal-qa==1.2"`.

    Resolves and checks each SPEC first, and starts nothing if the engine cannot serve one. With vLLM, a request can
    name any other adapter later: the server looks it up in the library, then in the remotes of its namespace, checks it
    and keeps it while it is in use. With llama.cpp, only the given SPECs are served; new engines take over when one
    means another version. Ctrl-C or SIGTERM stops the engine and every process that it started.

    With --route, a request may name `auto`: its text decides which adapter of the routing file answers, or the base.
    These adapters are served beside the SPECs. The header `x-adapterhub-adapter` names the one that answered.

    A request may name an alias: `"model": "legal-qa@prod"`. When the alias moves, new requests get the new build, and
    those that run end with the one they began with.

    With --sync, this command runs beside a vLLM or SGLang that you started: it loads what FILE wants, moves it when an
    alias moves, and unloads what left FILE or was yanked. FILE has the form of Kubernetes' lora-syncer: below
    `vLLMLoRAConfig` are `host`, `port` and, for each adapter, an `id`, its name in requests, and a SPEC as `source`.

    --test runs each SPEC's contract on the served base first, and serves only adapters that pass, including those that
    requests name later. The policy `tests` of the project and of the user does that without running a model.

    \b
    Examples:
      adapt serve legal-qa
      adapt serve --base base-7b
      adapt serve legal-qa 'summarize>=1.2' --base base-7b --port 8000
      adapt serve legal-qa@prod --base base-7b --alias-ttl 2
      adapt serve legal-qa --base base-7b --dry-run
      adapt serve --base base-7b --route route.json
      adapt serve legal-qa --base base-7b --test
      adapt serve --base base-7b --tenants tenants.toml --audit-log audit.jsonl
      adapt serve legal-qa --base base-7b --engine llama.cpp --gguf base-7b.gguf
      adapt serve --base base-7b --engine sglang --sync adapters.yaml
    """
    from adapterhub.cli.use import serve_sync
    from adapterhub.inference.serving import ServeSettings
    from adapterhub.inference.serving.access.denied import Denied
    from adapterhub.inference.serving.access.gate import Gate
    from adapterhub.inference.serving.process import free_port
    from adapterhub.inference.serving.vllm import option_in, without_option

    followed = serve_sync.followed(click.get_current_context(), specs)
    split_args = tuple(_split(engine_args))
    library = session.library
    record = _base_of(session, serve_sync.base_of(base, followed), [*specs, *pins], route)
    port = serve_sync.port_of(port, followed)
    served_name = name or record.alias or (record.path.name if record.path else "")
    if engine == "llama.cpp" and record.path is not None and record.path.suffix == ".gguf":
        gguf, record = gguf or record.path, _source_of(session, record)
    if record.path is None or not record.path.is_dir():
        hint = f"register its folder with `adapt base add PATH --as {record.alias or 'NAME'}`"
        if record.path is not None and record.path.suffix == ".gguf":
            hint = "it is a GGUF file, which `--engine llama.cpp` serves"
        raise UsageProblem(f"base `{record.label}` is registered without an existing folder", hint=hint)
    if route is not None:
        specs = (*specs, *routed_specs(library, route, record, served_name, specs))
    settings = ServeSettings(
        root=session.root.absolute(),
        max_rank=max_rank,
        remote=remote,
        offline=offline,
        signatures=signatures,
        follow=follow and not offline,
        deny=deny,
        deny_file=deny_file,
        alias_ttl_s=alias_ttl,
        tenants=tenants,
        audit_log=audit_log,
        preload=tuple(map(requested_name, specs)),
        pins=tuple(map(requested_name, pins)),
        tested=test == "keep",
        route=route,
    )
    key = option_in(split_args, "--api-key") or os.environ.get("VLLM_API_KEY", "")
    has_key = bool(key)
    if engine == "llama.cpp":  # its front asks for the key
        split_args = without_option(split_args, "--api-key")
    gate = Gate(tenants, None if dry_run else audit_log, key if engine == "llama.cpp" else "")
    if tenants is not None and has_key:
        raise UsageProblem(
            "`--tenants` has the keys of this server; unset VLLM_API_KEY and `--api-key`",
            hint="the keys stand in the file of `--tenants`",
        )
    args = ServeArgs(
        specs=tuple(dict.fromkeys((*specs, *pins))),
        record=record,
        model=record.path.absolute(),
        host=host,
        port=free_port(host, port) if not dry_run else port,
        settings=settings,
        denied=Denied(deny, deny_file),
        gate=gate,
        extra=split_args,
        log=log,
        start_timeout_s=start_timeout,
        drain_s=drain,
        dry_run=dry_run,
        test=_test_of(session, record, [*specs, *pins], test),
    )
    if followed is not None:
        serve_sync.serve_beside(session, args, engine, followed)
        return
    if not is_loopback(host) and not has_key and tenants is None:
        session.out.warn(
            f"anyone who reaches `{host}` can use this server; `--tenants` or VLLM_API_KEY makes it require a key"
        )
    if engine == "llama.cpp":
        from adapterhub.cli.use.serve_engine import serve_llama

        _ensure_llama(cpu_slots, pins)
        serve_llama(session, args, served_name, gguf=gguf, llama_server=llama_server, slots=slots, engines=engines)
        return
    if gguf is not None or llama_server is not None or engines is not None:
        raise UsageProblem(
            "`--gguf`, `--llama-server` and `--engines` need `--engine llama.cpp`",
            hint="add `--engine llama.cpp`, or drop them",
        )
    _serve_vllm(session, args, served_name, python=python, slots=slots, cpu_slots=cpu_slots)


def _ensure_llama(cpu_slots: int | None, pins: Sequence[AdapterSpec]) -> None:
    """Refuse what llama.cpp has no use for."""
    if cpu_slots is not None:
        raise UsageProblem("`--cpu-slots` is for vLLM; llama.cpp keeps every SPEC in memory", hint="drop `--cpu-slots`")
    if pins:
        raise UsageProblem("`--pin` is for vLLM; llama.cpp keeps every SPEC in memory", hint="drop `--pin`")


def _base_of(session: Session, base: BaseSpec | None, specs: Sequence[AdapterSpec], route: Path | None) -> BaseRecord:
    """Return the base that was named, or that of the routing file, or the only one that fits."""
    from adapterhub.api.steps.finding import fitting_base
    from adapterhub.core.specs import BaseSpec
    from adapterhub.formats.route import read_route

    if base is None and route is not None:
        base = BaseSpec.parse(read_route(route).base)
    if base is not None:
        return session.library.bases.find(base)
    record = fitting_base(session.library, specs)
    session.out.note(f"base: {record.label}, the only one that fits")
    return record


def _source_of(session: Session, copy: BaseRecord) -> BaseRecord:
    """Return the base of which a GGUF file is the copy: it has the settings and names that adapters are written by.

    Raises:
        BaseNotFound: none is registered with its folder here.
    """
    from adapterhub.core.errors import BaseNotFound

    found = session.library.bases.with_settings(copy)
    if found == copy:
        raise BaseNotFound(
            f"base `{copy.label}` is a GGUF file, and the base that it was made from is not here",
            hint="`adapt base add FOLDER` registers that one, whose settings define how adapters are written",
        )
    return found


def _test_of(
    session: Session, record: BaseRecord, specs: Sequence[AdapterSpec], testing: Testing | None
) -> ContractGate | None:
    """Return the test of the served adapters; None if no test is requested."""
    if testing is None:
        return None
    if not specs:
        raise UsageProblem(
            "`--test` needs a SPEC: what only a request names is not tested",
            hint="name the adapters to test before the server starts",
        )
    from adapterhub.api.steps.contracts.gating import ContractGate
    from adapterhub.api.steps.contracts.testing import TestQuestion
    from adapterhub.core.specs import BaseSpec

    question = TestQuestion(on=BaseSpec.parse(record.alias or str(record.path)))
    return ContractGate(session, testing, question)


def _split(text: str) -> Sequence[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageProblem(
            f"--engine-args: {error}", hint="close every quote, as in `--engine-args '--max-num-seqs 8'`"
        ) from None


# ---------------------------------------------------------------- vLLM
def _serve_vllm(
    session: Session,
    args: ServeArgs,
    served_name: str,
    *,
    python: str | None,
    slots: int | None,
    cpu_slots: int | None,
) -> None:
    from adapterhub.inference.serving.refusal import ensure_unlike_base
    from adapterhub.inference.serving.vllm import VllmOptions, command_of, ensure_room, find_vllm

    vllm = find_vllm(python or os.environ.get("ADAPTERHUB_VLLM_PYTHON") or sys.executable)
    with checked(session, args, f"vllm@{vllm.version}") as found:
        args, handed = found.args, found.handed
        for spec, one in zip(args.specs, handed, strict=True):
            ensure_unlike_base(served_name, str(spec), one.label)
        max_rank = max_rank_for(session, args, handed)
        slots = slots or min(_SLOTS, max(1, len(handed) or _SLOTS))
        shares = tenants.loaded if (tenants := args.gate.tenants) else int(bool(args.settings.pins))
        needed = shares + len(args.settings.pins)
        cpu_slots = max(cpu_slots or max(_CPU_SLOTS, len(handed), needed), slots)
        ensure_room(cpu_slots, shares, len(args.settings.pins))
        options = VllmOptions(
            model=args.model,
            served_name=served_name,
            host=args.host,
            port=args.port,
            max_rank=max_rank,
            slots=slots,
            cpu_slots=cpu_slots,
            extra=(*_other_flags(handed), *args.extra),
        )
    # From here on the engine's process checks and leases; the checked adapters are in the library by now.
    command = command_of(vllm, options)
    document = document_of(args, served_name, handed, command) | {
        "engine": f"vllm {vllm.version}",
        "max_rank": max_rank,
        "slots": options.slots,
        "cpu_slots": options.cpu_slots,
    }
    if args.dry_run:
        session.out.result(document, lambda: say_dry(session, document))
        return
    run_vllm(session, args, vllm, options, document)


def run_vllm(
    session: Session, args: ServeArgs, vllm: InstalledVllm, options: VllmOptions, document: dict[str, Any]
) -> None:
    """Start the server, which loads the named adapters before it answers, and wait until it ends."""
    from adapterhub.inference.serving.control import CONTROL_KEY, REFRESH_S, new_key, refresh_aliases
    from adapterhub.inference.serving.control import drain as ask_to_drain
    from adapterhub.inference.serving.vllm import command_of, environ_of

    control_key = new_key()
    ours = replace(args.settings, max_rank=options.max_rank).to_environ() | {CONTROL_KEY: control_key}
    with started(session, args, [command_of(vllm, options)], environ_of(vllm, os.environ, ours)) as engines:
        engines[0].wait_until_ready(f"{document['url']}/health", within_s=args.start_timeout_s)
        stay(
            session,
            engines,
            document,
            drain_s=args.drain_s,
            drain=lambda: ask_to_drain(document["url"], control_key, args.drain_s),
            refresh_aliases=lambda: refresh_aliases(document["url"], control_key, REFRESH_S),
        )


def _other_flags(handed: Sequence[LeasedAdapter]) -> tuple[str, ...]:
    """Return the other server flags that the named adapters need."""
    from adapterhub.formats.engines import as_flags, joined
    from adapterhub.inference.serving.provider import RANK_SETTING

    return as_flags(
        {
            key: value
            for key, value in joined(h.verdict.settings for h in handed).items()
            if key not in {RANK_SETTING, "enable-lora"}
        }
    )
