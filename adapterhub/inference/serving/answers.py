"""What a server reads off answers in OpenAI's form and writes into them, without parsing what it passes on."""

from __future__ import annotations

import json
from typing import Any, Final

_EVENT: Final = b"data: {"


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
