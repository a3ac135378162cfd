"""What a server reads off answers in OpenAI's form and writes into them, without parsing what it passes on."""

from __future__ import annotations

import json
from typing import Any, Final

_EVENT: Final = b"data: {"
_USAGE: Final = b'"usage":'
_USAGE_BYTES: Final = 4096
_OF_PROMPT: Final = ("prompt_tokens", "input_tokens")
_OF_ANSWER: Final = ("completion_tokens", "output_tokens")
_DECODER: Final = json.JSONDecoder()


def described(name: str, digest: str, base: str) -> bytes:
    """The field `adapter` of a stream's first event."""
    return b'"adapter": ' + json.dumps({"name": name, "digest": digest, "base": base}).encode()


def with_field(event: bytes, field: bytes) -> bytes | None:
    """A server-sent event whose object has one more field; None for an event without an object."""
    at = 0 if event.startswith(_EVENT) else event.find(b"\n" + _EVENT) + 1
    if not at and not event.startswith(_EVENT):
        return None
    at += len(_EVENT)
    return event[:at] + field + (b"" if event[at : at + 1] == b"}" else b", ") + event[at:]


def refusal_body(status: int, message: str, kind: str, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's API writes one."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def kind_in(error: bytes) -> str | None:
    """The `type` of an error in OpenAI's form; None in another form."""
    try:
        kind = json.loads(error)["error"]["type"]
    except (ValueError, KeyError, TypeError):
        return None
    return kind if isinstance(kind, str) else None


def usage_in(data: bytes) -> tuple[int, int] | None:
    """The tokens of the prompt and of the answer, as an answer or an event tells them; None if it does not.

    Costs one search. A text of the answer cannot look like it, since JSON escapes its quotes.
    """
    at = data.rfind(_USAGE)
    if at < 0:
        return None
    try:
        value, _ = _DECODER.raw_decode(data[at + len(_USAGE) : at + _USAGE_BYTES].decode("utf-8", "replace").lstrip())
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    prompt, completion = (
        next((value[key] for key in keys if type(value.get(key)) is int), 0) for keys in (_OF_PROMPT, _OF_ANSWER)
    )
    return prompt, completion
