"""Documents about inference engines: whether they read an adapter, exports for them, and servers."""
# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.

from __future__ import annotations

from typing import Annotated, Any

from adapterhub.api.steps import exporting
from adapterhub.cli.documents._contracts import Tested
from adapterhub.cli.documents._parts import Digest, NotRequired, TypedDict
from adapterhub.cli.documents._values import document_of
from adapterhub.inference import export
from adapterhub.trust.explaining import Explanation


# ---------------------------------------------------------------- in another form
class Calling(TypedDict):
    """How clients ask an adapter; engines apply no prompt form."""

    route: Annotated[str, "`/v1/completions` or `/v1/chat/completions`"]
    how: Annotated[str, "what to send there, as text"]
    prompt_form: Annotated[dict[str, Any] | None, "the build's [prompt form](manifest.md#the-prompt-form)"]


class ServedAdapter(TypedDict):
    """An adapter of a server, given at its start."""

    model: Annotated[str, "its name in requests"]
    adapter: Annotated[str, "name and version"]
    digest: Digest
    rank: int | None
    calling: Calling


class ServePlan(TypedDict):
    """A server that would be started."""

    url: Annotated[str, "without `/v1`"]
    base: Annotated[str, "alias, else Hub id, else 12 hex digits"]
    model: Annotated[str, "name of the plain base in requests"]
    adapters: Annotated[list[ServedAdapter], "the adapters given, in their order"]
    command: Annotated[list[str], "the engine's command line, as words"]
    engine: Annotated[str, "`vllm` and its version, or `llama.cpp`"]
    max_rank: NotRequired[Annotated[int, "vLLM: largest rank that can be requested later"]]
    slots: NotRequired[Annotated[int, "vLLM: how many adapters fit in one batch"]]
    cpu_slots: NotRequired[Annotated[int, "vLLM: how many adapters stay in memory"]]
    tests: NotRequired[Annotated[list[Tested], "with --test: how each adapter does by its contract"]]


class Served(ServePlan):
    """A running server, printed as soon as it answers requests."""

    pid: Annotated[int, "process id of the engine"]


class Ui(TypedDict):
    """The pages of a library, printed as soon as they are served."""

    url: Annotated[str, "with the token that lets its reader in"]


ENGINES = {
    "explain": list[document_of(Explanation)],
    "export.format": document_of(export.Exported),
    "export.router": document_of(exporting.ExportedRouter),
    "serve": Served,
    "serve.dry-run": ServePlan,
    "ui": Ui,
}
