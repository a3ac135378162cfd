"""Tests of builds: what a namespace asks of a version before it is published, and the signed results that meet it.

A result by a key of the namespace is checked when it comes. Any other is a claim: only those who may write to the
repository may store it, and readers check it against the keys that they trust. A later result of a key on the same
question replaces the earlier one, which cannot come back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple, get_args

from sqlalchemy import ColumnElement, Row, bindparam, delete, exists, insert, select, update
from sqlalchemy.engine import Connection

from adapterhub.core.digests import Digest, canonical_json, digest_of, hex_of
from adapterhub.core.errors import AdapterHubError, Conflict, NotFound, UsageProblem, shown
from adapterhub.formats.administration import Asks, NamespaceRule, TesterKey
from adapterhub.formats.contract.contract import Contract
from adapterhub.formats.contract.reader import MAX_BYTES, claims_contract, parse_contract
from adapterhub.formats.contract.results import CLOCKS_DIFFER_S, RESULT_LIMIT_BYTES, Attested
from adapterhub.formats.manifest import CONTRACT_FILE, MANIFEST_FILE, MEDIA_TYPES, WEIGHTS_FILE
from adapterhub.formats.signature import SIGNATURE_LIMIT_BYTES, Bundle, PublicKey, pre_authentication, read_statement
from adapterhub_registry.access.audit import By, log_change
from adapterhub_registry.database.db import (
    adapters,
    lock_name,
    now_ms,
    releases,
    repos,
    results,
    test_keys,
    test_rules,
)
from adapterhub_registry.database.prepared import PreparedSql
from adapterhub_registry.database.steps import Leftover
from adapterhub_registry.errors import (
    HttpRefusal,
    bad_request,
    build_not_found,
    conflict,
    forbidden,
    out_of_bounds,
    too_large,
)
from adapterhub_registry.names import KEY_NAME, PART, key_of_version
from adapterhub_registry.storage.blobs import BlobStore

ASKS: Final[tuple[Asks, ...]] = get_args(Asks)
MOST_KEYS: Final = 20


def digest_in(hex_digits: str) -> Digest:
    """Return the digest of which a row has the digits."""
    return Digest(f"sha256:{hex_digits}")


def rule_of(connection: Connection, namespace: str) -> NamespaceRule:
    """Return the rule of a namespace; one without a rule asks nothing and knows no key."""
    row = _RULE.first(connection, namespace=namespace)
    return NamespaceRule(
        namespace=namespace,
        asks=row.asks if row else "off",
        keys_only=bool(row and row.keys_only),
        keys=tuple(
            TesterKey(name=key.name, fingerprint=digest_in(key.fingerprint), pem=key.pem)
            for key in _KEYS.rows(connection, namespace=namespace)
        ),
    )


_RULE: Final = PreparedSql(select(test_rules).where(test_rules.c.namespace == bindparam("namespace")))
_KEYS: Final = PreparedSql(
    select(test_keys).where(test_keys.c.namespace == bindparam("namespace")).order_by(test_keys.c.name)
)


def change_rule(
    connection: Connection,
    namespace: str,
    *,
    by: By,
    asks: str | None = None,
    keys_only: bool | None = None,
    trust: Sequence[tuple[str, str]] = (),
    distrust: Sequence[str] = (),
    owners: Mapping[str, str] | None = None,
) -> NamespaceRule:
    """Change the rule of a namespace and return it; None keeps a setting. `trust` has names and PEM texts of keys.

    `owners` has the users of keys by their names: a key ends with the removal of its user.

    Versions that are published already stay, whatever the rule says.

    Raises:
        UsageProblem: an invalid namespace, name or rule, too many keys, or `passed` without a key.
        Malformed: a text is not a public key.
        Conflict: another key has the name.
        NotFound: no key has a name of `distrust`.
    """
    if not PART.fullmatch(namespace):
        raise UsageProblem(f"namespace `{shown(namespace)}`: expected a name such as `acme`; nothing was changed")
    if asks is not None and asks not in ASKS:
        raise UsageProblem(f"tests `{shown(asks)}`: expected one of {', '.join(ASKS)}; nothing was changed")
    lock_name(connection, f"tests of {namespace}")
    rule = rule_of(connection, namespace)
    keys = {key.name: key for key in rule.keys}
    for name in distrust:
        if keys.pop(name, None) is None:
            hint = f"the keys of `{namespace}` are {', '.join(rule_key.name for rule_key in rule.keys) or 'none yet'}"
            raise NotFound(f"`{namespace}` has no key `{shown(name)}`; nothing was changed", hint=hint)
    for name, pem in trust:
        key = _parsed(name, pem)
        if keys.setdefault(name, key) != key:
            hint = "choose another name, or remove that key first: `--distrust NAME`"
            raise Conflict(f"`{namespace}` has another key `{name}`; nothing was changed", hint=hint)
    if len({key.fingerprint for key in keys.values()}) < len(keys):
        raise Conflict(
            f"`{namespace}` has one of these keys under another name; nothing was changed",
            hint=f"`adapt registry tests {namespace}` lists its keys",
        )
    if len(keys) > MOST_KEYS:
        raise UsageProblem(f"`{namespace}` would have {len(keys)} keys, expected at most {MOST_KEYS}")
    wanted = NamespaceRule(
        namespace=namespace,
        asks=rule.asks if asks is None else asks,
        keys_only=rule.keys_only if keys_only is None else keys_only,
        keys=tuple(keys[name] for name in sorted(keys)),
    )
    if wanted.asks == "passed" and not keys:
        raise UsageProblem(
            f"`{namespace}` has no key of a tester, so no version could ever be published; nothing was changed",
            hint="name one as well: `--trust ben=ben.pub`",
        )
    if wanted != rule:
        _write(connection, wanted, by, owners or {})
    return wanted


def _write(connection: Connection, rule: NamespaceRule, by: By, owners: Mapping[str, str]) -> None:
    before = {hex_of(key.fingerprint) for key in rule_of(connection, rule.namespace).keys}
    mine = test_keys.c.namespace == rule.namespace
    connection.execute(delete(test_rules).where(test_rules.c.namespace == rule.namespace))
    row = {"namespace": rule.namespace, "asks": rule.asks, "keys_only": rule.keys_only}
    connection.execute(insert(test_rules).values(row))
    gone = before - {hex_of(key.fingerprint) for key in rule.keys}
    connection.execute(delete(test_keys).where(mine, test_keys.c.fingerprint.in_(gone)))
    for key in rule.keys:
        if hex_of(key.fingerprint) not in before:
            one = {"fingerprint": hex_of(key.fingerprint), "name": key.name, "pem": key.pem, "created_at": now_ms()}
            one["owner"] = owners.get(key.name)
            connection.execute(insert(test_keys).values(namespace=rule.namespace, **one))
            _prove(connection, key)
    keys = ", ".join(key.name for key in rule.keys) or "no key"
    subject = f"{rule.namespace}: {rule.asks}{', known keys only' if rule.keys_only else ''}; {keys}"
    log_change(connection, by, "tests", subject, repo=rule.namespace)


def _prove(connection: Connection, key: TesterKey) -> None:
    """Note the verdicts of the results by a key that a namespace knows from now on; forged ones get none."""
    claimed = select(results.c.id, results.c.body).where(
        results.c.key == hex_of(key.fingerprint), results.c.verdict.is_(None)
    )
    for row in connection.execute(claimed).all():
        bundle = Bundle.parse(row.body)
        if PublicKey(pem=key.pem).verifies(bundle.signature, pre_authentication(bundle.payload)):
            verdict = Attested.parse(bundle.payload).verdict
            connection.execute(update(results).where(results.c.id == row.id).values(verdict=verdict))


def _parsed(name: str, pem: str) -> TesterKey:
    if not KEY_NAME.fullmatch(name):
        raise UsageProblem(
            f"key `{shown(name)}`: expected a name of 1 to 64 letters, digits and `._@-`; nothing was changed"
        )
    key = PublicKey.parse(pem.encode("utf-8", "replace"), f"key {name}")
    return TesterKey(name=name, fingerprint=digest_of(key.pem.encode()), pem=key.pem)


MOST: Final = 100
"""Results on one build."""
MOST_OF_KEY: Final = 20
MOST_CLAIMS: Final = 50
"""Results on one build by keys that the namespace does not know, together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResult:
    """A result, and the file that states it. `signer` is the name of the namespace's key that made it, or None."""

    said: Attested
    sha256: str
    key: str
    signer: str | None
    sent_by: str
    sent_at: int
    body: bytes


def digest_of_version(connection: Connection, repo: Row[Any], version: str) -> str:
    """Return the digest (64 hex digits) of the build with this version: a release, or untagged, `main`'s head.

    Raises:
        HttpRefusal: 404.
    """
    key = key_of_version(version)
    found = next((digest for (digest,) in _RELEASED.tuples(connection, repo=repo.id, key=key)), None)
    if found is None:
        head = (adapters.c.repo_id == repo.id) & adapters.c.version.is_not(None) & adapters.c.is_head
        row = connection.execute(select(adapters.c.version, adapters.c.digest).where(head)).one_or_none()
        found = row.digest if row is not None and key and key_of_version(row.version) == key else None
    if found is None:
        raise build_not_found(repo.full_name, version)
    return str(found)


_RELEASED: Final = PreparedSql(
    select(releases.c.digest).where(releases.c.repo_id == bindparam("repo"), releases.c.version_key == bindparam("key"))
)


def take(connection: Connection, repo: Row[Any], version: str, raw: bytes, *, by: str, may_write: bool) -> StoredResult:
    """Store a result on a version; the same one twice is one.

    Raises:
        HttpRefusal: 400 if it is not a result, 403 for a forged one or a sender without the right, 404 for an unknown
            version, 409 when a later one is here, 413 for too many or too large, 422 for one about another build or
            from the future.
    """
    if len(raw) > RESULT_LIMIT_BYTES:
        raise too_large(RESULT_LIMIT_BYTES)
    digest = digest_of_version(connection, repo, version)
    bundle, said = _parsed_result(raw)
    if hex_of(said.manifest) != digest:
        raise out_of_bounds(
            f"the result is about {said.manifest[:19]}…, expected {digest[:12]}…, as {version} of `{repo.full_name}`"
        )
    if said.time > time.time() + CLOCKS_DIFFER_S:
        raise out_of_bounds("the result is dated in the future; check the tester's clock")
    rule, hint = rule_of(connection, repo.namespace), hex_of(bundle.hint)
    known = rule.key_of(digest_in(hint))
    if known is not None and not _is_by(bundle, known):
        raise forbidden(
            f"the result was not made with the key `{known.name}` that it names: it is forged;"
            " make one with `adapt test --sign`"
        )
    if known is None and rule.keys_only:
        raise forbidden(
            f"`{repo.namespace}` stores only results by its own keys, and key {hint[:12]}… is not one of them; "
            f"an owner of `{repo.namespace}` can add it"
        )
    if known is None and not may_write:
        raise forbidden(
            f"{hint[:12]}… is not a key of `{repo.namespace}`, and the token cannot change `{repo.full_name}`;"
            f" wait until an owner of `{repo.namespace}` adds the key"
        )
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
    """Return the results on a build, the newest first; `rule` names the keys that count."""
    found = [_stored(row, rule) for row in _ON_BUILD.rows(connection, repo=repo.id, manifest=digest)]
    return sorted(found, key=lambda one: (one.said.time, one.sha256), reverse=True)


_ON_BUILD: Final = PreparedSql(
    select(results).where(results.c.repo_id == bindparam("repo"), results.c.manifest == bindparam("manifest"))
)
MOST_SHOWN: Final = 400
_MOST_BUILDS: Final = 1000


class ProvenResult(NamedTuple):
    """A result by a key that the namespace of the repository knows, on the listed build of the repository."""

    full_name: str
    version: str
    said: Attested
    signer: str


def results_for_base(connection: Connection, sha256: str, readable: ColumnElement[bool]) -> list[ProvenResult]:
    """Return the newest 400 proven results on those of the newest 1,000 builds for a base that `readable` admits."""
    return [
        ProvenResult(row.full_name, row.version or "", _parsed_result(row.body)[1], row.name)
        for row in _proven(readable).rows(connection, base=sha256)
    ]


@lru_cache(maxsize=64)
def _proven(readable: ColumnElement[bool]) -> PreparedSql:
    mine = adapters.c.is_listed & (adapters.c.base_sha256 == bindparam("base")) & readable
    # without the version, an index has all of it
    columns = (repos.c.id, repos.c.full_name, repos.c.namespace, adapters.c.digest)
    newest = select(*columns).join_from(adapters, repos, repos.c.id == adapters.c.repo_id).where(mine)
    builds = newest.order_by(adapters.c.created_at.desc()).limit(_MOST_BUILDS).subquery()
    is_on = (results.c.repo_id == builds.c.id) & (results.c.manifest == builds.c.digest)
    is_known = (test_keys.c.namespace == builds.c.namespace) & (test_keys.c.fingerprint == results.c.key)
    proven = select(results.c.id, builds.c.full_name, adapters.c.version, test_keys.c.name)
    is_listed = (adapters.c.repo_id == builds.c.id) & adapters.c.is_listed
    proven = proven.join_from(builds, results, is_on).join(test_keys, is_known).join(adapters, is_listed)
    proven = proven.where(results.c.verdict.is_not(None))
    shown_now = proven.order_by(results.c.id.desc()).limit(MOST_SHOWN).subquery()
    return PreparedSql(select(shown_now, results.c.body).join_from(shown_now, results, results.c.id == shown_now.c.id))


def passes(found: Sequence[StoredResult], *, contract: str, base: str) -> bool:
    """Return whether one of the results is a PASS by a key of the namespace, by this contract and on this base.

    One that did not measure the plain base does not count if one that did is CHANGED.
    """
    counted = [one.said for one in found if one.signer is not None]
    return any(
        said.verdict == "PASS"
        and (hex_of(said.contract), hex_of(said.base)) == (contract, base)
        and not any(map(said.is_outweighed_by, counted))
        for said in counted
    )


def unneeded(before_ms: int) -> Leftover:
    """Return the results from before a time on builds that were never released and that no commit shows any more."""
    shown_now = exists().where(adapters.c.repo_id == results.c.repo_id, adapters.c.digest == results.c.manifest)
    released = exists().where(releases.c.repo_id == results.c.repo_id, releases.c.digest == results.c.manifest)
    return Leftover(results, (results.c.created_at < before_ms) & ~shown_now & ~released)


def _parsed_result(raw: bytes) -> tuple[Bundle, Attested]:
    try:
        bundle = Bundle.parse(raw)
        return bundle, Attested.parse(bundle.payload)
    except ValueError as error:
        raise bad_request(f"the result {shown(str(error), 200)}; make it with `adapt test --sign`") from None


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
            raise HttpRefusal(
                413, "TooMany", f"this build has {count} results {which}, expected at most {most}; none was stored"
            )


def _stored(row: Row[Any], rule: NamespaceRule) -> StoredResult:
    bundle, said = _parsed_result(row.body)
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


CODE: Final = "TestsRequired"
"""`X-Error-Code` of a refusal."""


def check_version(
    connection: Connection,
    blobs: BlobStore,
    repo: Row[Any],
    build: tuple[str, str, str | None],
    evals: str | None,
    *,
    namespace: str | None = None,
) -> None:
    """Raise unless a version meets the rule of its namespace, or of `namespace`, to which it moves.

    `build` has the version, the digest of the manifest and that of the base's weights; `evals` is the sha256 of the
    file that may be its contract.

    Raises:
        HttpRefusal: 422, with the reason and what is missing.
    """
    rule = rule_of(connection, namespace or repo.namespace)
    if rule.asks == "off":
        return
    version, digest, base = build
    reason = _problem(connection, blobs, repo, rule, digest=digest, base=base, evals=evals)
    if reason is not None:
        asked = "a contract" if rule.asks == "contract" else "a PASS by one of its keys"
        raise HttpRefusal(
            422,
            CODE,
            f"`{rule.namespace}` publishes only versions with {asked}: {version} {reason}; it was not published",
        )


def _problem(
    connection: Connection,
    blobs: BlobStore,
    repo: Row[Any],
    rule: NamespaceRule,
    *,
    digest: str,
    base: str | None,
    evals: str | None,
) -> str | None:
    contract = _contract(blobs, evals)
    if contract is None:
        return "has no contract"
    if contract.bounds.loose:
        return f"has a contract that is too loose: {contract.bounds.loose}"
    if rule.asks == "contract":
        return None
    if base is None:
        return "names no base by its digest"
    if passes(results_on(connection, repo, digest, rule), contract=contract.digest.removeprefix("sha256:"), base=base):
        return None
    names = ", ".join(f"`{key.name}`" for key in rule.keys)
    return f"has no PASS by {names} on its base {base[:12]}…"


def _contract(blobs: BlobStore, evals: str | None) -> Contract | None:
    """Return the contract in a file of the store; None if this version cannot read one there."""
    if evals is None or blobs.size(evals) > MAX_BYTES:
        return None
    raw = b"".join(blobs.open(evals, 0, MAX_BYTES))
    try:
        return parse_contract(raw, CONTRACT_FILE) if claims_contract(raw) else None
    except AdapterHubError:
        return None


COVERED = (*MEDIA_TYPES, MANIFEST_FILE)
"""The files that a signature must name where a build has them."""


def signer_of(raw: bytes, files: Mapping[str, str], rule: NamespaceRule) -> str | None:
    """Return the name of the namespace's key that signed these files (path to sha256), in the bytes of a `model.sig`.

    None for a signature that does not hold, does not cover the build, was made for another namespace, or is by a key
    that the namespace does not know.
    """
    if len(raw) > SIGNATURE_LIMIT_BYTES:
        return None
    try:
        bundle = Bundle.parse(raw)
        known = rule.key_of(bundle.hint)
        if known is None or not PublicKey(pem=known.pem).verifies(bundle.signature, pre_authentication(bundle.payload)):
            return None
        said = read_statement(bundle.payload)
    except ValueError:
        return None
    mine = {path: files[path] for path in COVERED if path in files}
    signed = {path: hex_of(digest) for path, digest in said.files.items()}
    elsewhere = said.identity is not None and said.identity.namespace not in {None, rule.namespace}
    return known.name if WEIGHTS_FILE in mine and mine.items() <= signed.items() and not elsewhere else None
