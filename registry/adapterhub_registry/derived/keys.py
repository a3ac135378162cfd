"""The key of the signs of all sketches in one database: who does not have it cannot forge a sketch.

Workers have no secret of a server, so the key lies beside the sketches. It is random, and a rebuild makes a new one.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

from sqlalchemy import delete, select

from adapterhub_registry.database.db import Database, facts, insert_new

_NAME: Final = "sketch_secret"
_BYTES: Final = 32


def sketch_key(database: Database) -> str:
    """The key, made when it is first asked for; of all who ask at once, one decides."""
    wanted = select(facts.c.value).where(facts.c.name == _NAME)
    with database.read() as connection:
        found = connection.scalar(wanted)
    if found is None:
        with database.begin() as connection:
            insert_new(connection, facts, [{"name": _NAME, "value": secrets.token_hex(_BYTES)}])
            found = connection.scalar(wanted)
    return hmac.new(bytes.fromhex(str(found)), b"sketch/1", hashlib.sha256).hexdigest()


def id_of(key: str) -> str:
    """What tells one key from another and says nothing of it."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def forget(database: Database) -> None:
    """Let the next sketch have a new key."""
    with database.begin() as connection:
        connection.execute(delete(facts).where(facts.c.name == _NAME))
