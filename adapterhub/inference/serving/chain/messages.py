"""The body of Anthropic's API of messages, of text."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from adapterhub.inference.serving.chain.bodies import Body, Count, Share, Text, Word


class Block(BaseModel):
    """A part of a message of Anthropic's API."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: Text


class Said(BaseModel):
    """A message of Anthropic's API."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["user", "assistant"]
    content: Text | Annotated[list[Block], Field(max_length=1024)]


class Messages(Body):
    """POST /v1/messages."""

    messages: Annotated[list[Said], Field(min_length=1, max_length=4096)]
    max_tokens: Count | None = None
    system: Text | Annotated[list[Block], Field(max_length=64)] | None = None
    stop_sequences: Annotated[list[Word], Field(max_length=16)] | None = None
    stream: bool | None = None
    metadata: dict[Word, Word] | None = None
    temperature: Share | None = None
    top_p: Share | None = None
    top_k: Count | None = None
