"""Conditions of a request for a file (RFC 9110, section 13), over the one strong ETag that a file has.

Files have no dates here, and no answer carries Last-Modified: conditions on dates are passed over, as the RFC asks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response

from adapterhub_registry.errors import Refusal

NAMES: Final = ("if-match", "if-none-match", "if-range", "if-modified-since", "if-unmodified-since")
_OPAQUE = r'"[\x21\x23-\x7e\x80-\xff]*"'
_TAG = re.compile(rf"(W/)?({_OPAQUE})")
_ITEM = rf"[ \t]*(?:(?:W/)?{_OPAQUE}[ \t]*)?"  # may be empty; no two repeats side by side, so time is linear
_LIST = re.compile(rf"{_ITEM}(?:,{_ITEM})*")


def is_conditional(headers: Headers) -> bool:
    """Whether a request has a condition, which only this server can answer: a bucket has other ETags, and dates."""
    return any(name in headers for name in NAMES)


def answer_to(headers: Headers, facts: Mapping[str, str]) -> Response | None:
    """304 when the client has the file already; None when it is to be sent. `facts` are its ETag and what goes with it.

    Raises:
        Refusal: 412 when the client wants another file.
    """
    etag = facts["ETag"]
    if "if-match" in headers and not _names(headers, "if-match", etag, weak_too=False):
        raise Refusal(412, "PreconditionFailed", "the file is not the one that If-Match names", headers=facts)
    if "if-none-match" in headers and _names(headers, "if-none-match", etag, weak_too=True):
        return Response(status_code=304, headers=facts)
    return None


def wants_range(headers: Headers, etag: str) -> bool:
    """Whether a Range counts; where If-Range names another file, the whole file is sent."""
    return headers.getlist("if-range") in ([], [etag])


def _names(headers: Headers, name: str, etag: str, *, weak_too: bool) -> bool:
    """Whether the list in the headers `name` names the file; a list that cannot be read names nothing."""
    text = ",".join(headers.getlist(name))
    if text.strip(" \t") == "*":
        return True
    if not _LIST.fullmatch(text):
        return False
    return any(opaque == etag and (weak_too or not weak) for weak, opaque in _TAG.findall(text))
