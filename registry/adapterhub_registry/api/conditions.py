"""Evaluates the conditions of a request for a file (RFC 9110, section 13) against the file's strong ETag.

Files have no dates here and no response carries Last-Modified, so conditions on dates are ignored, as the RFC requires.
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
_ITEM = rf"[ \t]*(?:(?:W/)?{_OPAQUE}[ \t]*)?"  # may be empty; no two adjacent repeats, so matching takes linear time
_LIST = re.compile(rf"{_ITEM}(?:,{_ITEM})*")


def is_conditional(headers: Headers) -> bool:
    """Whether a request has a condition. Only this server can evaluate it: a bucket has other ETags, and dates."""
    return any(name in headers for name in NAMES)


def answer_to(headers: Headers, facts: Mapping[str, str]) -> Response | None:
    """304 when the client has the file; None when the server must send it. `facts` holds the ETag and other headers.

    Raises:
        Refusal: 412 when If-Match names another file.
    """
    etag = facts["ETag"]
    if "if-match" in headers and not _names(headers, "if-match", etag, weak_too=False):
        raise Refusal(412, "PreconditionFailed", "If-Match names another file", headers=facts)
    if "if-none-match" in headers and _names(headers, "if-none-match", etag, weak_too=True):
        return Response(status_code=304, headers=facts)
    return None


def wants_range(headers: Headers, etag: str) -> bool:
    """Whether a Range header applies: when If-Range names another file, the client gets the whole file."""
    return headers.getlist("if-range") in ([], [etag])


def _names(headers: Headers, name: str, etag: str, *, weak_too: bool) -> bool:
    """Whether the list in the headers `name` contains the ETag; a malformed list contains nothing."""
    text = ",".join(headers.getlist(name))
    if text.strip(" \t") == "*":
        return True
    if not _LIST.fullmatch(text):
        return False
    return any(opaque == etag and (weak_too or not weak) for weak, opaque in _TAG.findall(text))
