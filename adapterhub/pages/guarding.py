"""What protects a page from other sites: its headers, its cookies, and the token of its forms."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from types import MappingProxyType
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

HEADERS: Final = MappingProxyType(
    {
        "Content-Security-Policy": (
            "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
            "frame-ancestors 'none'"
        ),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
)
"""On every answer. `data:` is for the signs in Pico's style sheet; no template has such an address."""
FORM_FIELD: Final = "form_token"


class Cookies:
    """The two cookies of one home: the session, and a random number that forms of visitors without one rely on.

    Cookies reach every port of a host. Their names depend on the home's secret, so that two homes on one machine do
    not overwrite each other's.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.session = f"adapt_session_{self._digest('session cookie')[:8]}"
        self.visitor = f"adapt_visitor_{self._digest('visitor cookie')[:8]}"

    def visitor_of(self, request: Request) -> str:
        """The visitor's number, a new one on the first visit."""
        return request.cookies.get(self.visitor) or secrets.token_urlsafe(24)

    def form_token(self, request: Request, visitor: str) -> str:
        """The token that a form of this visitor must send back."""
        return self._digest(f"form {request.cookies.get(self.session, '')} {visitor}")

    def check_form(self, request: Request, sent: str, address: str) -> None:
        """Raise 403 unless the form comes from a page that this home showed to this visitor.

        Raises:
            HTTPException: 403.
        """
        origin, visitor = request.headers.get("origin"), request.cookies.get(self.visitor, "")
        is_own = origin in {None, address} and request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
        if not (is_own and visitor and hmac.compare_digest(self.form_token(request, visitor), sent)):
            raise HTTPException(403, "the form is out of date, or comes from another site; load the page again")

    def put(self, response: Response, name: str, value: str, *, lasts_s: int | None, is_secure: bool) -> None:
        """Set a cookie for this host alone, which no script reads and no other site sends."""
        response.set_cookie(name, value, max_age=lasts_s, path="/", httponly=True, samesite="strict", secure=is_secure)

    def _digest(self, text: str) -> str:
        return hmac.new(self._secret, f"pages: {text}".encode(), hashlib.sha256).hexdigest()
