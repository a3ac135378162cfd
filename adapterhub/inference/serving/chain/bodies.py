"""The bodies that the routes of a server take: an allow-list, from which each request to the engine is rebuilt.

A field that no model here has is refused by its name, so that a field which a new version of an engine reads cannot
reach it unseen. Bounds keep one request from costing more than its tenant's share.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from adapterhub.core.errors import shown
from adapterhub.inference.serving.access.tenants import TenantDemand
from adapterhub.inference.serving.chain.asgi import MOST_BYTES
from adapterhub.inference.serving.refusal import RequestRefused

MOST_CHOICES: Final = 256
"""Of one request: its prompts times the choices of each."""

MOST_TOKENS: Final = 1 << 20
_MOST_TEXT: Final = MOST_BYTES
_MOST_GRAMMAR: Final = 16_384
_MOST_DEPTH: Final = 16
_MOST_REPEATS: Final = 1000
_NUMBERS: Final = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")
_MOST_PROBLEMS: Final = 5
_WORDS: Final = 512
_BYTES_A_TOKEN: Final = 4
_USUAL_TOKENS: Final = 256
_GRAMMARS: Final = frozenset({"grammar", "structured_outputs", "guided_regex", "guided_grammar"})


def _bounded_grammar(text: str) -> str:
    depth = deepest = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    if deepest > _MOST_DEPTH:
        raise ValueError(f"brackets {deepest} deep, expected at most {_MOST_DEPTH}")
    numbers = [int(one[:9]) for found in _NUMBERS.findall(text) for one in found if one]
    if max(numbers, default=0) > _MOST_REPEATS:
        raise ValueError(f"a repetition above {_MOST_REPEATS}")
    return text


def _bounded_schema(schema: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(schema)) > _MOST_GRAMMAR:
        raise ValueError(f"a schema of more than {_MOST_GRAMMAR:,} characters")
    rest: list[tuple[Any, int]] = [(schema, 1)]
    while rest:
        value, depth = rest.pop()
        if depth > 2 * _MOST_DEPTH:
            raise ValueError(f"a schema more than {2 * _MOST_DEPTH} levels deep")
        if isinstance(value, dict):
            for key, one in value.items():
                if key in {"pattern", "patternProperties"}:
                    raise ValueError(f"`{key}`, which can take an engine's whole time")
                if type(one) is int and one > _MOST_REPEATS and key.startswith(("min", "max")) and key[3:] in _COUNTED:
                    raise ValueError(f"`{key}` above {_MOST_REPEATS}")
            rest += [(one, depth + 1) for one in value.values()]
        elif isinstance(value, list):
            rest += [(one, depth + 1) for one in value]
    return schema


_COUNTED: Final = {"Items", "Length", "Properties", "Contains"}


def _only_data(url: str) -> str:
    if not url.startswith("data:"):
        raise ValueError("expected a `data:` URL: this server fetches nothing for a request")
    return url


Word = Annotated[str, Field(max_length=_WORDS)]
Text = Annotated[str, Field(max_length=_MOST_TEXT)]
Schema = Annotated[dict[str, Any], AfterValidator(_bounded_schema)]
Grammar = Annotated[str, Field(max_length=_MOST_GRAMMAR), AfterValidator(_bounded_grammar)]
Count = Annotated[int, Field(ge=0, le=MOST_TOKENS)]
Number = Annotated[float, Field(ge=-1e4, le=1e4, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(max_length=MOST_TOKENS)]
Prompts = Text | Tokens | Annotated[list[Text | Tokens], Field(min_length=1, max_length=MOST_CHOICES)]


class Strict(BaseModel):
    """A part of a body: no field is converted, and none is passed on that the model lacks."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True, protected_namespaces=())


class Body(Strict):
    """The body of a request."""

    model: Word | None = None
    user: Word | None = None


class StreamOptions(Strict):
    """What a stream tells beside its text."""

    include_usage: bool = False


class Generation(Body):
    """What completions and chats share. `n` is the choices of each prompt."""

    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Word | Annotated[list[Word], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    temperature: Annotated[Number, Field(ge=0)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    min_p: Share | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: Annotated[dict[Annotated[str, Field(max_length=12)], Number], Field(max_length=1024)] | None = None
    ignore_eos: bool | None = None


class JsonSchema(Strict):
    """The schema of a format; see OpenAI's structured outputs."""

    name: Word = ""
    description: Word | None = None
    json_schema: Schema | None = Field(default=None, alias="schema")
    strict: bool | None = None


class Format(Strict):
    """The form that the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    bare_schema: Schema | None = Field(default=None, alias="schema")  # llama.cpp's own spelling


class Url(Strict):
    """A picture in the request itself."""

    url: Annotated[str, Field(max_length=_MOST_TEXT), AfterValidator(_only_data)]
    detail: Word | None = None


class MessagePart(Strict):
    """A part of a message."""

    type: Literal["text", "image_url"]
    text: Text | None = None
    image_url: Url | None = None


class Function(Strict):
    """A function that the answer may call, or calls."""

    name: Word
    description: Text | None = None
    parameters: Schema | None = None
    arguments: Text | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool, or the call of one."""

    type: Literal["function"] = "function"
    id: Word | None = None
    index: Count | None = None
    function: Function | None = None
    name: Word | None = None


class ChatTurn(Strict):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[MessagePart], Field(max_length=1024)] | None = None
    name: Word | None = None
    reasoning_content: Text | None = None
    refusal: Text | None = None
    tool_calls: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_call_id: Word | None = None


class Completion(Generation):
    """POST /v1/completions."""

    prompt: Prompts
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Format | None = None


class Chat(Generation):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatTurn], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Format | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | Tool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Word | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[Word, Word | bool | int | float | None], Field(max_length=16)] | None = None


class Embedding(Body):
    """POST /v1/embeddings."""

    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None


class Rerank(Body):
    """POST /v1/rerank."""

    query: Text
    documents: Annotated[list[Text], Field(min_length=1, max_length=MOST_CHOICES)]
    top_n: Count | None = None


class Detokenize(Body):
    """POST /detokenize."""

    tokens: Tokens


def parsed(model: type[Body], data: bytes, *, may_write_grammars: bool = True) -> dict[str, Any]:
    """Read a body by its model; the fields that it has, without those that are null.

    Raises:
        RequestRefused: 400, with each wrong field.
    """
    try:
        body = model.model_validate_json(data)
    except ValidationError as error:
        raise RequestRefused(400, _worded(error)) from None
    value = body.model_dump(mode="json", exclude_unset=True, exclude_none=True, by_alias=True)
    if not may_write_grammars and (found := _GRAMMARS & value.keys()):
        raise RequestRefused(403, f"`{min(found)}` is closed to this key: a grammar can take an engine's whole time")
    return value


def _worded(error: ValidationError) -> str:
    """Return the problems of a body, each with its place; a union tells only its first."""
    told: dict[str, str] = {}
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        names = [str(one) for one in problem["loc"] if isinstance(one, int) or str(one).isidentifier()]
        place = ".".join(names[:4])
        if problem["type"] == "extra_forbidden":
            text = "is not a field that this server passes on"
        elif problem["type"] == "json_invalid":
            return "the body is not JSON"
        elif problem["type"] == "model_type" and not place:
            return "the body is not a JSON object"
        else:
            text = problem["msg"].removeprefix("Value error, ")
            text = text[:1].lower() + text[1:]
        told.setdefault(place, text)
    listed = [f"`{shown(place, 100)}`: {shown(text, 200)}" for place, text in told.items()]
    more = f"; and {len(listed) - _MOST_PROBLEMS} more" if len(listed) > _MOST_PROBLEMS else ""
    return "; ".join(listed[:_MOST_PROBLEMS]) + more


def demand_of(value: Mapping[str, Any], body_bytes: int) -> TenantDemand:
    """Estimate the demand of a body: a token for each four bytes of prompt and each token that may be generated."""
    choices = choices_of(value)
    limits = [value.get(key) for key in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")]
    generates = "prompt" in value or "messages" in value
    each = max([one for one in limits if type(one) is int and one > 0], default=_USUAL_TOKENS if generates else 0)
    n = value.get("n") or 1
    return TenantDemand(choices, body_bytes // _BYTES_A_TOKEN * (n if type(n) is int else 1) + each * choices)


def choices_of(value: Mapping[str, Any]) -> int:
    """Return how many answers a body asks for: its prompts, inputs or documents, times the choices of each."""
    many = next((value[key] for key in ("prompt", "input", "documents") if key in value), None)
    prompts = len(many) if isinstance(many, list) and many and not isinstance(many[0], int) else 1
    each = value.get("n") or 1
    return prompts * each if type(each) is int and each > 0 else prompts


class ContentBlock(Strict):
    """A part of a message of Anthropic's API."""

    type: Literal["text"]
    text: Text


class Said(Strict):
    """A message of Anthropic's API."""

    role: Literal["user", "assistant"]
    content: Text | Annotated[list[ContentBlock], Field(max_length=1024)]


class Messages(Body):
    """POST /v1/messages."""

    messages: Annotated[list[Said], Field(min_length=1, max_length=4096)]
    max_tokens: Count | None = None
    system: Text | Annotated[list[ContentBlock], Field(max_length=64)] | None = None
    stop_sequences: Annotated[list[Word], Field(max_length=16)] | None = None
    stream: bool | None = None
    metadata: dict[Word, Word] | None = None
    temperature: Share | None = None
    top_p: Share | None = None
    top_k: Count | None = None
