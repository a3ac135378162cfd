"""What a namespace asks of a version before it is published, and the keys of its testers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, get_args

from sqlalchemy import delete, insert, select, update
from sqlalchemy.engine import Connection

from adapterhub.core.digests import Digest, digest_of, hex_of
from adapterhub.core.errors import Conflict, NotFound, UsageProblem, shown
from adapterhub.formats.administration import Asks, NamespaceRule, TesterKey
from adapterhub.formats.contract.attested import Attested
from adapterhub.formats.signed import Bundle, PublicKey, pre_authentication
from adapterhub_registry.database.db import lock_name, now_ms, records
from adapterhub_registry.database.result_tables import results, test_keys, test_rules
from adapterhub_registry.names import KEY_NAME, PART

ASKS: Final[tuple[Asks, ...]] = get_args(Asks)
MOST_KEYS: Final = 20


def digest_in(hex_digits: str) -> Digest:
    """The digest of which a row has the digits."""
    return Digest(f"sha256:{hex_digits}")


def rule_of(connection: Connection, namespace: str) -> NamespaceRule:
    """The rule of a namespace; one without a rule asks nothing and knows no key."""
    row = connection.execute(select(test_rules).where(test_rules.c.namespace == namespace)).one_or_none()
    mine = select(test_keys).where(test_keys.c.namespace == namespace).order_by(test_keys.c.name)
    return NamespaceRule(
        namespace=namespace,
        asks=row.asks if row else "off",
        keys_only=bool(row and row.keys_only),
        keys=tuple(
            TesterKey(name=key.name, fingerprint=digest_in(key.fingerprint), pem=key.pem)
            for key in connection.execute(mine).all()
        ),
    )


def change_rule(
    connection: Connection,
    namespace: str,
    *,
    by: str,
    asks: str | None = None,
    keys_only: bool | None = None,
    trust: Sequence[tuple[str, str]] = (),
    distrust: Sequence[str] = (),
) -> NamespaceRule:
    """Change the rule of a namespace and return it; None keeps a setting. `trust` has names and PEM texts of keys.

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
        raise Conflict(f"`{namespace}` has one of these keys under another name; nothing was changed")
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
        _write(connection, wanted, by)
    return wanted


def _write(connection: Connection, rule: NamespaceRule, by: str) -> None:
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
            connection.execute(insert(test_keys).values(namespace=rule.namespace, **one))
            _prove(connection, key)
    keys = ", ".join(key.name for key in rule.keys) or "no key"
    subject = f"{rule.namespace}: {rule.asks}{', known keys only' if rule.keys_only else ''}; {keys}"
    connection.execute(insert(records).values(created_at=now_ms(), actor=by, action="tests", subject=subject))


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
