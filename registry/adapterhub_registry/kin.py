"""Compares the bases that adapters declare, once for each two of them, so that no request has to.

A manifest only claims its base; the key of a claim is its digest, because samples and intervals decide as much as the
digest of the weights does. A push waits for nothing: a build without a row is due. Several workers may compare the same
bases; of two that add a claim at once, the later one compares again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import lru_cache
from threading import Event
from typing import Any, Final

from sqlalchemy import delete, exists, func, insert, select
from sqlalchemy.engine import Connection

from adapterhub.core.digests import canonical_json, digest_of, hex_of
from adapterhub.core.errors import AdapterHubError, shown
from adapterhub.formats.base.comparison import compare
from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub_registry.database.db import Database, adapters, base_claims, base_pairs, insert_new, lock_name
from adapterhub_registry.database.steps import Leftover, drop
from adapterhub_registry.repos.adapter_facts import manifest_of
from adapterhub_registry.repos.bases import METHOD
from adapterhub_registry.storage.blobs import BlobStore, StoreUnreachable
from adapterhub_registry.worker import files_of

log = logging.getLogger("adapterhub_registry")

AT_ONCE: Final = 32
MAX_FORM_CHARACTERS: Final = 64
_KEPT: Final = 32
_CURRENT: Final = base_claims.c.method == METHOD
DUE: Final = (
    adapters.c.is_listed
    & adapters.c.base_sha256.is_not(None)
    & ~exists().where(base_claims.c.digest == adapters.c.digest, _CURRENT)
)
"""The builds whose base waits to be compared."""

Claims = Mapping[str, tuple[str, str]]
"""By claim, the digest of the base's weights and of a manifest that says it."""


def make(database: Database, blob_store: BlobStore, *, stopped: Event | None = None, since_ms: int = 0) -> int:
    """Compare the bases of the builds that are due, until `stopped` is set; the number of builds.

    With `since_ms`, of the builds that were pushed since.
    """
    wanted = select(adapters.c.digest).where(DUE, adapters.c.created_at >= since_ms).order_by(adapters.c.created_at)

    @lru_cache(maxsize=_KEPT)
    def read(digest: str) -> BaseFingerprint | None:
        with database.read() as connection:
            files = files_of(connection, digest)
        try:
            manifest = manifest_of(files, blob_store)
        except AdapterHubError:  # its bytes are lost
            return None
        return manifest.base.fingerprint if manifest else None

    done = 0
    while stopped is None or not stopped.is_set():
        with database.read() as connection:
            rows = connection.execute(wanted.limit(AT_ONCE)).all()
        if not rows:
            break
        digests = {row.digest for row in rows}
        for digest in digests:
            _add(database, digest, read)
        done += len(digests)
    return done


def _add(database: Database, digest: str, read: Any) -> None:
    """Store the claim of a manifest, and how its base relates to the others."""
    mine: BaseFingerprint | None = read(digest)
    claim = "" if mine is None else claim_of(mine)
    row = {"digest": digest, "base_sha256": hex_of(mine.weights) if mine else "", "claim": claim, "method": METHOD}
    found: dict[str, list[dict[str, Any]]] = {}
    with database.read() as connection:
        others = _claims(connection, claim)
    if mine is not None and others:
        for leftover in unneeded():  # so that one that comes back is due, and compared with this one
            drop(database, leftover)
    while True:
        if mine is not None:
            new = {one: others[one] for one in others.keys() - found.keys()}
            found |= _pairs(mine, claim, new, read)
        with database.begin() as connection:
            lock_name(connection, "base claims")
            others = _claims(connection, claim)
            if mine is None or not others.keys() - found.keys():
                connection.execute(delete(base_claims).where(base_claims.c.digest == digest))
                connection.execute(insert(base_claims).values(**row))
                pairs = [pair for one in others for pair in found[one]] if mine else []
                insert_new(connection, base_pairs, pairs)
                return


def _claims(connection: Connection, claim: str) -> Claims:
    """Return the claims to compare one with: none if that was done already, or the claim is empty."""
    if not claim or connection.scalar(select(base_claims.c.digest).where(base_claims.c.claim == claim, _CURRENT)):
        return {}
    columns = (base_claims.c.claim, base_claims.c.base_sha256)
    wanted = select(*columns, func.min(base_claims.c.digest).label("digest")).group_by(*columns)
    rows = connection.execute(wanted.where(_CURRENT, base_claims.c.claim != "")).all()
    return {row.claim: (row.base_sha256, row.digest) for row in rows}


def claim_of(base: BaseFingerprint) -> str:
    """Return the digest of all that decides how the base relates to others."""
    told = {name: value for name, value in base.to_json().items() if name != "files"}
    return hex_of(digest_of(canonical_json(told)))


def _pairs(mine: BaseFingerprint, claim: str, others: Claims, read: Any) -> dict[str, list[dict[str, Any]]]:
    """Return, by other claim, the rows that relate the two, one for each direction; none for another model."""
    found: dict[str, list[dict[str, Any]]] = {}
    for other, (sha256, digest) in others.items():
        theirs = read(digest) if sha256 != hex_of(mine.weights) else None
        found[other] = []
        if theirs is None:
            continue
        try:
            told = compare(mine, theirs)
        except (StoreUnreachable, MemoryError):
            raise
        except Exception:  # whatever is wrong with one claim, the next one is compared
            log.warning("two bases could not be compared", exc_info=True)
            continue
        if told.verdict.is_same_model:
            said = {"verdict": told.verdict.value, "form": shown(told.form or "", MAX_FORM_CHARACTERS)}
            ends = ((hex_of(mine.weights), claim, mine), (sha256, other, theirs))
            for first, second in (ends, ends[::-1]):
                told_of = {"first_sha256": first[0], "first_claim": first[1], "is_copy": second[2].copy is not None}
                found[other].append({**told_of, "second_sha256": second[0], "second_claim": second[1], **said})
    return found


def unneeded() -> Iterator[Leftover]:
    """Yield the claims of builds that no commit has any more, then the comparisons that only these needed."""
    yield Leftover(base_claims, ~exists().where(adapters.c.digest == base_claims.c.digest))
    for end in (base_pairs.c.first_claim, base_pairs.c.second_claim):
        yield Leftover(base_pairs, ~exists().where(base_claims.c.claim == end))


def rebuild(database: Database) -> int:
    """Let every base wait to be compared again; the number of builds."""
    with database.begin() as connection:
        connection.execute(delete(base_pairs))
        return connection.execute(delete(base_claims)).rowcount
