"""Signed results of tests on the builds of a repository: taken, superseded, listed.

A result by a key of the namespace is checked when it comes. Any other is a claim: only those who may write to the
repository may store it, and readers check it against the keys that they trust. A later result of a key on the same
question replaces the earlier one, which cannot come back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, delete, exists, insert, select
from sqlalchemy.engine import Connection

from adapterhub.core.digests import canonical_json, digest_of, hex_of
from adapterhub.core.errors import shown
from adapterhub.formats.administration import NamespaceRule, TesterKey
from adapterhub.formats.contract.attested import CLOCKS_DIFFER_S, RESULT_LIMIT_BYTES, Attested
from adapterhub.formats.signed import Bundle, PublicKey, pre_authentication
from adapterhub_registry.database.db import adapters, lock_name, now_ms, releases
from adapterhub_registry.database.result_tables import results
from adapterhub_registry.errors import Refusal, bad_request, conflict, forbidden, out_of_bounds, too_large
from adapterhub_registry.names import key_of_version
from adapterhub_registry.results.rules import digest_in, rule_of

MOST: Final = 100
"""Results on one build."""
MOST_OF_KEY: Final = 20
MOST_CLAIMS: Final = 50
"""Results on one build by keys that the namespace does not know, together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResult:
    """A result, and the file that states it. `signer` is the name of the namespace's key that made it, else None."""

    said: Attested
    sha256: str
    key: str
    signer: str | None
    sent_by: str
    sent_at: int
    body: bytes


def digest_of_version(connection: Connection, repo: Row[Any], version: str) -> str:
    """The digest, 64 hex digits, of the build with this version: a release, or the head of `main` before its tag.

    Raises:
        Refusal: 404.
    """
    key = key_of_version(version)
    mine = (releases.c.repo_id == repo.id) & (releases.c.version_key == key)
    found = connection.scalar(select(releases.c.digest).where(mine))
    if found is None:
        head = (adapters.c.repo_id == repo.id) & adapters.c.version.is_not(None) & adapters.c.is_head
        row = connection.execute(select(adapters.c.version, adapters.c.digest).where(head)).one_or_none()
        found = row.digest if row is not None and key and key_of_version(row.version) == key else None
    if found is None:
        raise Refusal(404, "VersionNotFound", f"`{repo.full_name}` has no build {shown(version)}")
    return str(found)


def take(connection: Connection, repo: Row[Any], version: str, raw: bytes, *, by: str, may_write: bool) -> StoredResult:
    """Store a result on a version; the same one twice is one.

    Raises:
        Refusal: 400 for what is no result, 403 for a forged one or a sender without the right, 404 for an unknown
            version, 409 when a later one is here, 413 for too many or too large, 422 for one about another build or
            from the future.
    """
    if len(raw) > RESULT_LIMIT_BYTES:
        raise too_large(RESULT_LIMIT_BYTES)
    digest = digest_of_version(connection, repo, version)
    bundle, said = _parsed(raw)
    if hex_of(said.manifest) != digest:
        raise out_of_bounds(
            f"the result is about {said.manifest[:19]}…; {version} of `{repo.full_name}` is {digest[:12]}…"
        )
    if said.time > time.time() + CLOCKS_DIFFER_S:
        raise out_of_bounds("the result is dated in the future; check the tester's clock")
    rule, hint = rule_of(connection, repo.namespace), hex_of(bundle.hint)
    known = rule.key_of(digest_in(hint))
    if known is not None and not _is_by(bundle, known):
        raise forbidden(f"the result was not made with the key `{known.name}` that it names: it is forged")
    if known is None and rule.keys_only:
        raise forbidden(f"`{repo.namespace}` stores only results by its own keys, and {hint[:12]}… is none of them")
    if known is None and not may_write:
        raise forbidden(f"{hint[:12]}… is no key of `{repo.namespace}`, and the token cannot change `{repo.full_name}`")
    lock_name(connection, f"results of {repo.id}")
    mine = (results.c.repo_id == repo.id) & (results.c.manifest == digest)
    question = _question(said)
    asked = mine & (results.c.key == hint) & (results.c.question == question)
    before = connection.execute(select(results).where(asked)).one_or_none()
    if before is not None:
        earlier = _stored(before, rule)
        if earlier.sha256 == hex_of(digest_of(raw)):
            return earlier
        # one that was stored before the namespace knew the key may be forged
        if (known is None or earlier.signer is not None) and _order(said) <= _order(earlier.said):
            later = f"the result {earlier.said.sequence} of this key on the same question is here, which is later"
            raise conflict(
                f"{later}; `adapt contract results NAME --fetch` takes it, and the next one that you sign follows"
            )
        connection.execute(delete(results).where(results.c.id == before.id))
    else:
        _check_room(connection.scalars(select(results.c.key).where(mine)).all(), hint, rule)
    connection.execute(
        insert(results).values(
            repo_id=repo.id,
            manifest=digest,
            sha256=hex_of(digest_of(raw)),
            key=hint,
            question=question,
            sent_by=by,
            created_at=now_ms(),
            body=raw,
            verdict=said.verdict if known is not None else None,
        )
    )
    return _stored(connection.execute(select(results).where(asked)).one(), rule)


def results_on(connection: Connection, repo: Row[Any], digest: str, rule: NamespaceRule) -> list[StoredResult]:
    """The results on a build, the newest first; `rule` names the keys that count."""
    mine = (results.c.repo_id == repo.id) & (results.c.manifest == digest)
    found = [_stored(row, rule) for row in connection.execute(select(results).where(mine)).all()]
    return sorted(found, key=lambda one: (one.said.time, one.sha256), reverse=True)


def passes(found: Sequence[StoredResult], *, contract: str, base: str) -> bool:
    """Whether one of the results is a PASS by a key of the namespace, by this contract and on this base.

    One that did not measure the base alone does not count where one that did says CHANGED.
    """
    counted = [one.said for one in found if one.signer is not None]
    return any(
        said.verdict == "PASS"
        and (hex_of(said.contract), hex_of(said.base)) == (contract, base)
        and not any(map(said.is_outweighed_by, counted))
        for said in counted
    )


def forget(connection: Connection, before_ms: int) -> None:
    """Remove the results on builds that were never released and that no commit shows any more."""
    shown_now = exists().where(adapters.c.repo_id == results.c.repo_id, adapters.c.digest == results.c.manifest)
    released = exists().where(releases.c.repo_id == results.c.repo_id, releases.c.digest == results.c.manifest)
    connection.execute(delete(results).where(results.c.created_at < before_ms, ~shown_now, ~released))


def _parsed(raw: bytes) -> tuple[Bundle, Attested]:
    try:
        bundle = Bundle.parse(raw)
        return bundle, Attested.parse(bundle.payload)
    except ValueError as error:
        raise bad_request(f"the result {shown(str(error), 200)}") from None


def _is_by(bundle: Bundle, key: TesterKey) -> bool:
    return PublicKey(pem=key.pem).verifies(bundle.signature, pre_authentication(bundle.payload))


def _question(said: Attested) -> str:
    return hex_of(digest_of(canonical_json(list(said.question))))


def _order(said: Attested) -> tuple[int, bool]:
    # of two with one number, the CHANGED one counts
    return said.sequence, said.verdict == "CHANGED"


def _check_room(there: Sequence[str], hint: str, rule: NamespaceRule) -> None:
    """Raise 413 when a build, which has results by the keys `there`, has too many for one more."""
    claims = [key for key in there if rule.key_of(digest_in(key)) is None]
    bounds: Mapping[str, tuple[int, int]] = {
        "by this key": (there.count(hint), MOST_OF_KEY),
        "by keys that the namespace does not know": (
            len(claims) if rule.key_of(digest_in(hint)) is None else 0,
            MOST_CLAIMS,
        ),
        "in all": (len(there), MOST),
    }
    for which, (count, most) in bounds.items():
        if count >= most:
            raise Refusal(413, "TooMany", f"this build has {count} results {which}, which is the most; none was stored")


def _stored(row: Row[Any], rule: NamespaceRule) -> StoredResult:
    bundle, said = _parsed(row.body)
    key = rule.key_of(digest_in(row.key))
    return StoredResult(
        said=said,
        sha256=row.sha256,
        key=row.key,
        signer=key.name if key is not None and _is_by(bundle, key) else None,
        sent_by=row.sent_by,
        sent_at=row.created_at,
        body=row.body,
    )
