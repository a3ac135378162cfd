"""Short-lived signed claims: what a link or a Xet token says, bound to one user, repository and object.

A token is `<base64url of JSON claims>.<base64url of HMAC-SHA256>`. It is no secret store: claims can be read by its
holder, they cannot be changed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

MAX_TOKEN_CHARACTERS = 4096
LONGEST_TTL_S = 3600


class BadSignature(Exception):
    """A token that was not signed here, was changed, or has expired; the text says which."""


def sign(claims: Mapping[str, Any], secret: bytes, ttl_s: int) -> str:
    """A token for `claims` that ends `ttl_s` seconds from now, at most an hour; `exp` (Unix seconds) is added.

    Raises:
        ValueError: `ttl_s` is not within 1 and 3600.
    """
    if not 1 <= ttl_s <= LONGEST_TTL_S:
        raise ValueError(f"a signed token lives 1 to {LONGEST_TTL_S} seconds, not {ttl_s}")
    body = _encode(json.dumps({**claims, "exp": int(time.time()) + ttl_s}, separators=(",", ":")).encode())
    return f"{body}.{_encode(_mac(body, secret))}"


def check(token: str, secret: bytes, *, purpose: str | None = None) -> dict[str, Any]:
    """The claims of `token`; with `purpose`, only when its claim `purpose` is the same.

    Raises:
        BadSignature: not signed with `secret`, changed, expired, or for another purpose.
    """
    if len(token) > MAX_TOKEN_CHARACTERS or not token.isascii():
        raise BadSignature("the signature is not valid")
    body, _, mac = token.partition(".")
    if not hmac.compare_digest(_encode(_mac(body, secret)), mac):
        raise BadSignature("the signature is not valid")
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    if claims["exp"] < time.time():
        raise BadSignature("the link has expired")
    if purpose is not None and claims.get("purpose") != purpose:
        raise BadSignature("the link is for something else")
    return claims


def seal(text: str, secret: bytes) -> str:
    """`text` so that only a server with `secret` reads it, or makes another."""
    return _box(secret).encrypt(text.encode()).decode("ascii")


def unseal(sealed: str, secret: bytes) -> str:
    """The text that was sealed.

    Raises:
        BadSignature: not sealed with `secret`, or changed.
    """
    from cryptography.fernet import InvalidToken

    try:
        return _box(secret).decrypt(sealed.encode()).decode()
    except (InvalidToken, ValueError):
        raise BadSignature("was not given by this server") from None


def _box(secret: bytes) -> Fernet:
    from cryptography.fernet import Fernet

    return Fernet(base64.urlsafe_b64encode(hashlib.sha256(b"sealed by a registry " + secret).digest()))


def _mac(body: str, secret: bytes) -> bytes:
    return hmac.new(secret, body.encode("ascii"), hashlib.sha256).digest()


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
