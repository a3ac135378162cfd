"""Seals short-lived claims: the content of a link or a Xet token, bound to one user, repository and object.

Its holder can neither read nor change the claims: they hold numbers, from which one could count what is hidden.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

MAX_TOKEN_CHARACTERS = 4096
LONGEST_TTL_S = 3600
_STEP_CHARACTERS = 64
"""The length of what is sealed is a multiple, so that the length of a token counts nothing either."""


class BadSignature(Exception):
    """This server did not make the token, someone changed it, or it has expired; the text says which."""


def sign(claims: Mapping[str, Any], secret: bytes, ttl_s: int) -> str:
    """A token for `claims` that expires in `ttl_s` seconds, at most an hour; adds the claim `exp` (Unix seconds).

    Raises:
        ValueError: unless 1 <= `ttl_s` <= 3600.
    """
    if not 1 <= ttl_s <= LONGEST_TTL_S:
        raise ValueError(f"a signed token lives 1 to {LONGEST_TTL_S} seconds, not {ttl_s}")
    text = json.dumps({**claims, "exp": int(time.time()) + ttl_s}, separators=(",", ":"))
    return seal(text.ljust(-len(text) // _STEP_CHARACTERS * -_STEP_CHARACTERS), secret).rstrip("=")


def check(token: str, secret: bytes, *, purpose: str | None = None) -> dict[str, Any]:
    """The claims of a valid token; with `purpose`, the claim `purpose` must match.

    Raises:
        BadSignature: the token was not made with `secret`, changed, expired, or has another purpose.
    """
    if len(token) > MAX_TOKEN_CHARACTERS or not token.isascii():
        raise BadSignature("the signature is not valid")
    sealed = token + "=" * (-len(token) % 4)
    try:
        is_exact = base64.urlsafe_b64encode(base64.urlsafe_b64decode(sealed)).decode().rstrip("=") == token
        claims: dict[str, Any] = json.loads(unseal(sealed if is_exact else "", secret))
    except (BadSignature, ValueError):
        raise BadSignature("the signature is not valid") from None
    if claims["exp"] < time.time():
        raise BadSignature("the link has expired")
    if purpose is not None and claims.get("purpose") != purpose:
        raise BadSignature("the link has another purpose")
    return claims


def seal(text: str, secret: bytes) -> str:
    """Encrypt `text`: only a server with `secret` can read or make the result."""
    return _box(secret).encrypt(text.encode()).decode("ascii")


def unseal(sealed: str, secret: bytes) -> str:
    """Decrypt a sealed text.

    Raises:
        BadSignature: the text was not sealed with `secret`, or was changed.
    """
    from cryptography.fernet import InvalidToken

    try:
        return _box(secret).decrypt(sealed.encode()).decode()
    except (InvalidToken, ValueError):
        raise BadSignature("does not come from this server") from None


def _box(secret: bytes) -> Fernet:
    from cryptography.fernet import Fernet

    return Fernet(base64.urlsafe_b64encode(hashlib.sha256(b"sealed by a registry " + secret).digest()))
