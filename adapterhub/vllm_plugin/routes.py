"""The routes of vLLM that the middleware passes on, each with the model of its body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field

from adapterhub.inference.serving.chain.bodies import (
    MOST_CHOICES,
    Body,
    Chat,
    ChatTurn,
    Completion,
    Count,
    Detokenize,
    Embedding,
    Grammar,
    Messages,
    Number,
    Rerank,
    Schema,
    Strict,
    Text,
    Tokens,
    Word,
)


class StructuredOutputs(Strict):
    """vLLM's own form of a constraint that an answer must match."""

    json_form: Schema | None = Field(default=None, alias="json")
    regex: Word | None = None
    choice: Annotated[list[Word], Field(max_length=1024)] | None = None
    grammar: Grammar | None = None
    json_object: bool | None = None


class Sampling(BaseModel):
    """vLLM's own options of sampling and of its answer."""

    add_special_tokens: bool | None = None
    allowed_token_ids: Tokens | None = None
    bad_words: Annotated[list[Word], Field(max_length=1024)] | None = None
    include_stop_str_in_output: bool | None = None
    length_penalty: Number | None = None
    min_tokens: Count | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    repetition_penalty: Number | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    stop_token_ids: Tokens | None = None
    structured_outputs: StructuredOutputs | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=1 << 20)] | None = None
    truncation_side: Literal["left", "right"] | None = None


class Routed(BaseModel):
    """Fields of another engine that vllm-router adds to each body, at their usual values. vLLM does not get them."""

    no_stop_trim: Literal[False] | None = Field(default=None, exclude=True)
    return_hidden_states: Literal[False] | None = Field(default=None, exclude=True)
    separate_reasoning: Literal[True] | None = Field(default=None, exclude=True)
    stream_reasoning: Literal[True] | None = Field(default=None, exclude=True)


class VllmCompletion(Completion, Sampling, Routed):
    """POST /v1/completions."""

    echo: bool | None = None


class VllmChat(Chat, Sampling, Routed):
    """POST /v1/chat/completions."""

    echo: bool | None = None
    include_reasoning: bool | None = None
    thinking_token_budget: Count | None = None
    documents: Annotated[list[dict[Word, Text]], Field(max_length=MOST_CHOICES)] | None = None


class Reply(Body, Sampling):
    """POST /v1/responses. Nothing is stored: other keys could name what one has stored."""

    input: Text | Annotated[list[ChatTurn], Field(min_length=1, max_length=4096)]
    instructions: Text | None = None
    max_output_tokens: Count | None = None
    store: Literal[False] = False
    stream: bool | None = None
    temperature: Annotated[Number, Field(ge=0)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    seed: int | None = None
    stop: Word | Annotated[list[Word], Field(max_length=16)] | None = None
    ignore_eos: bool | None = None


class Pooling(Embedding):
    """POST /v1/embeddings, /pooling and /classify."""

    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=1 << 20)] | None = None
    add_special_tokens: bool | None = None
    use_activation: bool | None = None


class Score(Body):
    """POST /score, in the words of several versions."""

    text_1: Text | Annotated[list[Text], Field(max_length=MOST_CHOICES)] | None = None
    text_2: Text | Annotated[list[Text], Field(max_length=MOST_CHOICES)] | None = None
    queries: Text | Annotated[list[Text], Field(max_length=MOST_CHOICES)] | None = None
    documents: Text | Annotated[list[Text], Field(max_length=MOST_CHOICES)] | None = None


class VllmRerank(Rerank):
    """POST /rerank, with what vllm-router writes into the body beside."""

    rid: None = Field(default=None, exclude=True)
    top_k: None = Field(default=None, exclude=True)
    return_documents: Literal[True] | None = Field(default=None, exclude=True)


class Tokenize(Body):
    """POST /tokenize."""

    prompt: Text | None = None
    messages: Annotated[list[ChatTurn], Field(max_length=4096)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


ROUTES: Final[Mapping[str, type[Body]]] = {
    "/v1/completions": VllmCompletion,
    "/v1/chat/completions": VllmChat,
    "/v1/responses": Reply,
    "/v1/messages": Messages,
    "/v1/messages/count_tokens": Messages,
    "/v1/embeddings": Pooling,
    "/pooling": Pooling,
    "/classify": Pooling,
    "/score": Score,
    "/v1/score": Score,
    "/rerank": VllmRerank,
    "/v1/rerank": VllmRerank,
    "/v2/rerank": VllmRerank,
    "/tokenize": Tokenize,
    "/detokenize": Detokenize,
}
"""By the path of a request. By the `model` of each, vLLM chooses the adapter. Every other route answers 404."""

SALTED: Final = frozenset(
    {
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
        "/pooling",
        "/classify",
    }
    | {"/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"}
)
"""Those whose body takes `cache_salt`, by which vLLM keeps the cached prompts of tenants apart."""

OPEN: Final = frozenset({"/health", "/ping", "/metrics", "/version", "/v1/models"})
"""What a GET may read."""
