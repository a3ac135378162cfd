"""Reads values from answers in OpenAI's form and writes others into them, without parsing the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

_EVENT: Final = b"data: {"
_USAGE: Final = b'"usage":'
_NO_CHOICE: Final = (b'"choices":[]', b'"choices": []')
_LONGEST_USAGE: Final = 4096
_OF_PROMPT: Final = ("prompt_tokens", "input_tokens")
_OF_ANSWER: Final = ("completion_tokens", "output_tokens")
_DECODER: Final = json.JSONDecoder()
STREAMS_WITHOUT_USAGE: Final = frozenset(
    {"/v1/completions", "/v1/chat/completions", "/completions", "/chat/completions"}
)
"""Routes whose streams tell the tokens only on demand."""


class Usage(NamedTuple):
    """The tokens of a prompt, and of its answer."""

    prompt: int
    generated: int


def usage_in(piece: bytes) -> Usage | None:
    """Return the last usage in a part of an answer; None without one.

    Costs one search. A text of the answer cannot look like it, since JSON escapes its quotes.
    """
    at = piece.rfind(_USAGE)
    if at < 0:
        return None
    start = at + len(_USAGE)
    try:
        value, _ = _DECODER.raw_decode(piece[start : start + _LONGEST_USAGE].decode("utf-8", "replace").lstrip())
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not value.keys() & {*_OF_PROMPT, *_OF_ANSWER}:
        return None
    found = [next((value[key] for key in keys if key in value), 0) for keys in (_OF_PROMPT, _OF_ANSWER)]
    return Usage(*found) if all(type(count) is int and count >= 0 for count in found) else None


def asking_for_usage(route: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that make the end of a stream report its usage; {} if it does so anyway."""
    if value.get("stream") is not True or route not in STREAMS_WITHOUT_USAGE:
        return {}
    options = value.get("stream_options")
    if (options is not None and not isinstance(options, dict)) or (options or {}).get("include_usage") is True:
        return {}
    return {"stream_options": {"include_usage": True}}  # a usage in every event, too, would not be for us alone


def says_only_usage(event: bytes) -> bool:
    """Return whether a server-sent event is the one that `asking_for_usage` adds to a stream."""
    return _USAGE in event and any(none in event for none in _NO_CHOICE)


def described(name: str, digest: str, base: str) -> bytes:
    """Return the field `adapter` of a stream's first event."""
    return b'"adapter": ' + json.dumps({"name": name, "digest": digest, "base": base}).encode()


def with_field(event: bytes, field: bytes) -> bytes | None:
    """Return a server-sent event whose object has one more field; None for an event without an object."""
    at = 0 if event.startswith(_EVENT) else event.find(b"\n" + _EVENT) + 1
    if not at and not event.startswith(_EVENT):
        return None
    at += len(_EVENT)
    return event[:at] + field + (b"" if event[at : at + 1] == b"}" else b", ") + event[at:]


def refusal_body(status: int, message: str, kind: str, param: str | None = None) -> dict[str, Any]:
    """Return an error as OpenAI's API writes one."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def kind_in(error: bytes) -> str | None:
    """Return the `type` of an error in OpenAI's form; None in another form."""
    try:
        kind = json.loads(error)["error"]["type"]
    except (ValueError, KeyError, TypeError):
        return None
    return kind if isinstance(kind, str) else None
