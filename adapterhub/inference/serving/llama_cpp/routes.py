"""The routes of llama.cpp's server that its front passes on, each with the model of its body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    Number,
    Rerank,
    Schema,
    Share,
    Text,
)
from adapterhub.inference.serving.chain.messages import Messages


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
class Route:
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

COMPLETIONS: Final = Route(
    path="/v1/completions",
    body=LlamaCompletion,
    parts="choices",
    probe={"prompt": "The", "logprobs": 5, **_ASKED},
)
CHAT: Final = Route(
    path="/v1/chat/completions",
    body=LlamaChat,
    parts="choices",
    probe={"messages": _TURNS, "logprobs": True, "top_logprobs": 5, **_ASKED},
)
NATIVE: Final = Route(path="/completion", body=Native, parts="answers", probe={"prompt": "The", "n_probs": 5, **_ASKED})
MESSAGES: Final = Route(
    path="/v1/messages", body=Messages, probe={"messages": _TURNS, "max_tokens": 16, "temperature": 0}
)
EMBEDDINGS: Final = Route(path="/v1/embeddings", body=Embedding, probe={"input": "The"})
RERANK: Final = Route(path="/v1/rerank", body=Rerank, probe={"query": "The", "documents": ["one", "two"]})

ROUTES: Final[Mapping[str, Route]] = {
    "/v1/completions": COMPLETIONS,
    "/v1/chat/completions": CHAT,
    "/chat/completions": CHAT,
    "/completion": NATIVE,
    "/v1/messages": MESSAGES,
    "/v1/embeddings": EMBEDDINGS,
    "/v1/rerank": RERANK,
    "/rerank": RERANK,
    "/tokenize": Route(path="/tokenize", body=Tokenize),
    "/detokenize": Route(path="/detokenize", body=Detokenize),
}
"""By the path of a request. Every other route answers 404."""

PROVED: Final = (COMPLETIONS, CHAT, NATIVE, MESSAGES, EMBEDDINGS, RERANK)
"""The routes whose answer may depend on an adapter."""

CORE: Final = frozenset({COMPLETIONS.path, CHAT.path, NATIVE.path})
"""Those that read the choice in each version of llama.cpp that has it."""
