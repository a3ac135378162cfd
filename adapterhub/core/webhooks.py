"""Signatures of webhooks, as Standard Webhooks defines them: HMAC-SHA256 over id, time and body of a message.

The registry signs what it sends, and a receiver verifies it. Source: https://www.standardwebhooks.com.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from typing import Final

from adapterhub.core.errors import NotAllowed, UsageProblem

PREFIX: Final = "whsec_"
ID: Final = "webhook-id"
TIMESTAMP: Final = "webhook-timestamp"
SIGNATURE: Final = "webhook-signature"
WINDOW_S: Final = 300.0
_AS_THEY_CAME: Final = "read the headers of the request as they came"
"""How far the time of a message may be from the receiver's clock; the receiver refuses older ones as repeats."""

_SECRET_BYTES: Final = 32
_MOST_SIGNATURES: Final = 16


def new_secret() -> str:
    """Return a secret for one receiver: `whsec_` and 32 random bytes in base64."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode("ascii")


def signed_headers(secret: str, message_id: str, body: bytes, *, at: float) -> dict[str, str]:
    """Return the three headers of a message that is sent at the Unix time `at`."""
    timestamp = str(int(at))
    return {ID: message_id, TIMESTAMP: timestamp, SIGNATURE: f"v1,{_signature(secret, message_id, timestamp, body)}"}


def verify_webhook(headers: Mapping[str, str], body: bytes, secret: str, *, now: float | None = None) -> str:
    """Return the id of a message that the holder of `secret` signed within the last five minutes.

    `headers` may have any case. A receiver keeps the ids of five minutes: one that comes again was delivered twice.

    Raises:
        NotAllowed: a header is missing, the signature is not that of `body`, or the time is out of the window.
        UsageProblem: `secret` is not a secret of a webhook.
    """
    given = {name.lower(): value for name, value in headers.items()}
    missing = [name for name in (ID, TIMESTAMP, SIGNATURE) if not given.get(name)]
    if missing:
        raise NotAllowed(f"the message has no header `{missing[0]}`", hint=_AS_THEY_CAME)
    message_id, timestamp = given[ID], given[TIMESTAMP]
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        raise NotAllowed(f"`{TIMESTAMP}` is not a Unix time in seconds", hint=_AS_THEY_CAME)
    expected = _signature(secret, message_id, timestamp, body).encode()
    offered = [part.partition(",")[2] for part in given[SIGNATURE].split(" ") if part.startswith("v1,")]
    if not any(hmac.compare_digest(one.encode(), expected) for one in offered[:_MOST_SIGNATURES]):
        raise NotAllowed(
            "the message is not signed with this secret",
            hint="compare the secret with the one that `adapt registry webhook add` printed",
        )
    if abs((time.time() if now is None else now) - int(timestamp)) > WINDOW_S:
        raise NotAllowed(
            f"the message is more than {WINDOW_S / 60:.0f} minutes old, or from the future",
            hint="check the clock of this machine",
        )
    return message_id


def _signature(secret: str, message_id: str, timestamp: str, body: bytes) -> str:
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except ValueError:
        key = b""
    if not key:
        raise UsageProblem(
            f"the secret of a webhook is `{PREFIX}` and base64",
            hint="use the one that `adapt registry webhook add` printed",
        )
    content = b".".join([message_id.encode("utf-8", "surrogateescape"), timestamp.encode(), body])
    return base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode("ascii")
