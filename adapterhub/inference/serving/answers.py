"""What a server reads off answers in OpenAI's form and writes into them, without parsing what it passes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_EVENT: Final = b"data: {"
_USAGE: Final = b'"usage":'
_NO_CHOICE: Final = (b'"choices":[]', b'"choices": []')
_LONGEST_USAGE: Final = 4096
_DECODER: Final = json.JSONDecoder()
WITH_USAGE: Final[Mapping[str, Any]] = {"stream_options": {"include_usage": True}}


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of a prompt, and of its answer."""

    prompt: int
    generated: int


def usage_in(piece: bytes) -> Usage | None:
    """The last usage in a part of an answer. A quote inside a text is escaped, so no text is taken for one."""
    at = piece.rfind(_USAGE)
    if at < 0:
        return None
    start = at + len(_USAGE)
    try:
        value, _ = _DECODER.raw_decode(piece[start : start + _LONGEST_USAGE].decode("utf-8", "replace").lstrip())
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    prompt = value.get("prompt_tokens", value.get("input_tokens"))
    generated = value.get("completion_tokens", value.get("output_tokens", 0))
    if type(prompt) is not int or type(generated) is not int or min(prompt, generated) < 0:
        return None
    return Usage(prompt, generated)


def lacks_usage(path: str, value: Mapping[str, Any]) -> bool:
    """Whether a request asks for a stream that would not say its usage; `WITH_USAGE` lets it."""
    return value.get("stream") is True and "stream_options" not in value and path.endswith("/completions")


def with_usage(body: bytes) -> bytes:
    """The body of such a request with `WITH_USAGE`, without writing the rest anew."""
    return body[: body.rindex(b"}")] + b"," + json.dumps(WITH_USAGE).encode()[1:]


def says_only_usage(event: bytes) -> bool:
    """Whether a server-sent event is the one that `WITH_USAGE` adds to a stream."""
    return _USAGE in event and any(none in event for none in _NO_CHOICE)


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


def refusal_body(status: int, message: str, kind: str) -> dict[str, Any]:
    """An error as OpenAI's API writes one."""
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}
