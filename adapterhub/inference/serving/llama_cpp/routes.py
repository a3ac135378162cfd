"""The routes of llama.cpp's server that its front passes on, and the proof that each reads the choice of an adapter.

llama.cpp ignores the choice where a route does not know it, and applies what was set at the start. So before anyone is
served, each route is asked without an adapter, and with each until an answer differs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field

from adapterhub.inference.serving.chain.bodies import (
    Body,
    Chat,
    Completion,
    Count,
    Detokenize,
    Embedding,
    Grammar,
    Messages,
    Number,
    Rerank,
    Schema,
    Share,
    Text,
)
from adapterhub.inference.serving.effects import COMPLETION, LEAST, Told, apart, told_in
from adapterhub.inference.serving.llama_cpp.engine import Engine
from adapterhub.inference.serving.llama_cpp.names import Names, Served


class Sampling(BaseModel):
    """llama.cpp's own options of sampling."""

    grammar: Grammar | None = None
    json_schema: Schema | None = None
    n_predict: Annotated[int, Field(ge=-1, le=1 << 20)] | None = None
    n_probs: Annotated[int, Field(ge=0, le=20)] | None = None
    cache_prompt: bool | None = None
    return_tokens: bool | None = None
    repeat_penalty: Number | None = None
    repeat_last_n: Count | None = None
    typical_p: Share | None = None
    min_keep: Annotated[int, Field(ge=0, le=1000)] | None = None
    mirostat: Annotated[int, Field(ge=0, le=2)] | None = None
    mirostat_tau: Number | None = None
    mirostat_eta: Number | None = None
    timings_per_token: bool | None = None


class LlamaCompletion(Completion, Sampling):
    """POST /v1/completions."""


class LlamaChat(Chat, Sampling):
    """POST /v1/chat/completions."""

    reasoning_format: Literal["none", "auto", "deepseek", "deepseek-legacy"] | None = None


class Native(Completion, Sampling):
    """POST /completion, which has no choices: each prompt has one answer."""

    n: Literal[1] = 1


class Tokenize(Body):
    """POST /tokenize."""

    content: Text
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRoute:
    """A route: where the engine has it, its body, and whether each prompt and choice is a request of its own there.

    `probe` asks for an answer whose words and numbers show whether the engine reads the choice of an adapter there.
    None: the answer does not depend on an adapter.
    """

    path: str
    body: type[Body]
    parts: Literal["choices", "answers", "whole"] = "whole"
    probe: Mapping[str, Any] | None = field(default=None)


_ASKED: Final[Mapping[str, Any]] = {"temperature": 0, "seed": 1, "cache_prompt": False, "max_tokens": 4}
_TURNS: Final = [{"role": "user", "content": "Say what you are."}]

COMPLETIONS: Final = EngineRoute(
    path="/v1/completions",
    body=LlamaCompletion,
    parts="choices",
    probe={"prompt": "The", "logprobs": 5, **_ASKED},
)
CHAT: Final = EngineRoute(
    path="/v1/chat/completions",
    body=LlamaChat,
    parts="choices",
    probe={"messages": _TURNS, "logprobs": True, "top_logprobs": 5, **_ASKED},
)
NATIVE: Final = EngineRoute(
    path="/completion", body=Native, parts="answers", probe={"prompt": "The", "n_probs": 5, **_ASKED}
)
MESSAGES: Final = EngineRoute(
    path="/v1/messages", body=Messages, probe={"messages": _TURNS, "max_tokens": 16, "temperature": 0}
)
EMBEDDINGS: Final = EngineRoute(path="/v1/embeddings", body=Embedding, probe={"input": "The"})
RERANK: Final = EngineRoute(path="/v1/rerank", body=Rerank, probe={"query": "The", "documents": ["one", "two"]})

ROUTES: Final[Mapping[str, EngineRoute]] = {
    "/v1/completions": COMPLETIONS,
    "/v1/chat/completions": CHAT,
    "/chat/completions": CHAT,
    "/completion": NATIVE,
    "/v1/messages": MESSAGES,
    "/v1/embeddings": EMBEDDINGS,
    "/v1/rerank": RERANK,
    "/rerank": RERANK,
    "/tokenize": EngineRoute(path="/tokenize", body=Tokenize),
    "/detokenize": EngineRoute(path="/detokenize", body=Detokenize),
}
"""By the path of a request. Every other route answers 404."""

PROVED: Final = (COMPLETIONS, CHAT, NATIVE, MESSAGES, EMBEDDINGS, RERANK)
"""The routes whose answer may depend on an adapter."""

CORE: Final = frozenset({COMPLETIONS.path, CHAT.path, NATIVE.path})
"""Those that read the choice in each version of llama.cpp that has it."""


_NOISE: Final = 10.0
_log = logging.getLogger("adapterhub.serving")


async def proved_routes(engine: Engine, names: Names) -> frozenset[str]:
    """Find the paths of the engine on which the choice of an adapter changes the answer.

    If no adapter changes any answer, all of them answer like the base, and the routes that take the choice count.
    """
    found = {route.path for route in PROVED if await _reads_choice(engine, names, route)}
    for route in PROVED:
        if route.path in CORE and found and route.path not in found:
            _log.warning("the engine ignores the adapter at %s; only the base is served there", route.path)
    return frozenset(found or CORE)


async def _reads_choice(engine: Engine, names: Names, route: EngineRoute) -> bool:
    before, again = [await _told(engine, names, route, None) for _ in range(2)]
    if before is None or again is None or before.words != again.words:
        return False  # not a route of this engine, or its answers differ by chance
    noise = apart(before, again)
    for served in names.served.values():
        told = await _told(engine, names, route, served)
        if told is not None and apart(told, before) > max(LEAST, _NOISE * noise):
            return True
    return False


async def _told(engine: Engine, names: Names, route: EngineRoute, served: Served | None) -> Told | None:
    """Return the numbers in an answer; None for a refusal."""
    return await told_by(engine, names, route, route.probe or {}, served, 0)


async def told_by(
    engine: Engine, names: Names, route: EngineRoute, question: Mapping[str, Any], served: Served | None, slot: int
) -> Told | None:
    """Ask the engine in a slot, with an adapter or without one; None for a refusal."""
    status, answer = await engine.ask(route.path, {**question, "lora": names.scales(served), "id_slot": slot})
    return told_in(answer) if status == HTTPStatus.OK else None


def question_for(proved: frozenset[str]) -> tuple[EngineRoute, Mapping[str, Any]]:
    """Return the first route that reads the choice of an adapter, and what it is asked to see the effect of one."""
    route = next(route for route in PROVED if route.path in proved)
    return route, {**COMPLETION, "cache_prompt": False} if route is COMPLETIONS else route.probe or {}
