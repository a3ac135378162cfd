"""Documents of inference engines: what they would make of adapters, what is written for them, and servers."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from adapterhub.cli.documents._parts import Digest, Finding, NotRequired, Size


# ---------------------------------------------------------------- would it be read
class EngineReason(TypedDict):
    """Why an engine is no place for an adapter."""

    feature: Annotated[str, "the row of the table in [engines](engines.md)"]
    effect: Annotated[str, "`refuses`, or `misreads`: it is taken, and answers as another adapter"]
    detail: Annotated[str, "where it was seen"]
    says: Annotated[str, "what the engine does with it"]
    source: Annotated[str, "where in the engine's source; may be empty"]


class EngineVerdict(TypedDict):
    """What one engine would make of an adapter."""

    target: Annotated[str, "as it was named"]
    engine: str
    version: Annotated[str | None, "as it was named; null: none was"]
    ok: Annotated[bool, "read, and meant as PEFT means it, and sound"]
    reasons: list[EngineReason]
    notes: Annotated[list[str], "what was not judged, and what is worth knowing"]
    settings: Annotated[dict[str, Any], "options that a server needs, by name; a number is the least that will do"]
    flags: Annotated[list[str], "the same as words of a command line"]


class Judged(TypedDict):
    """What engines would make of one adapter."""

    adapter: Annotated[str, "the folder as it was named, or name and version"]
    status: Annotated[str, "of `adapt verify`: `ok`, `failed` or `unknown`"]
    errors: Annotated[list[Finding], "what makes it unsound for every engine"]
    verdicts: Annotated[list[EngineVerdict], "one for each target, in their order"]


# ---------------------------------------------------------------- in another form
class Exported(TypedDict):
    """An adapter that was written for another program."""

    format: Annotated[str, "`gguf`, `merged`, `ollama`, `peft` or `vllm`"]
    adapter: Annotated[str, "name and version, or the folder"]
    paths: Annotated[list[str], "every file that was written"]
    size_bytes: Size
    notes: list[str]
    flags: Annotated[list[str], "what the engine needs, as words of a command line"]


# ---------------------------------------------------------------- servers
class ServedAdapter(TypedDict):
    """An adapter that a server was started with."""

    model: Annotated[str, "what requests call it"]
    adapter: Annotated[str, "name and version"]
    digest: Digest
    rank: int | None


class ServePlan(TypedDict):
    """A server as it would be started."""

    url: Annotated[str, "without `/v1`"]
    base: Annotated[str, "alias, else Hub id, else 12 hex digits"]
    model: Annotated[str, "what requests call the base alone"]
    adapters: Annotated[list[ServedAdapter], "those that were named, in their order"]
    command: Annotated[list[str], "the engine's own words"]
    engine: Annotated[str, "`vllm` and its version, or `llama.cpp`"]
    max_rank: NotRequired[Annotated[int, "vLLM: the largest that can be asked for later"]]
    slots: NotRequired[Annotated[int, "vLLM: different adapters in one batch"]]
    cpu_slots: NotRequired[Annotated[int, "vLLM: adapters kept in memory"]]


class Served(ServePlan):
    """A server that answers, said as soon as it does."""

    pid: Annotated[int, "of the engine"]


ENGINES = {
    "check": list[Judged],
    "export.format": Exported,
    "serve": Served,
    "serve.dry-run": ServePlan,
}
