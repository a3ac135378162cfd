"""Refuses to publish a version that does not meet the rule of its namespace."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Row
from sqlalchemy.engine import Connection

from adapterhub.core.errors import AdapterHubError
from adapterhub.formats.administration import NamespaceRule
from adapterhub.formats.contract.contract import Contract
from adapterhub.formats.contract.reader import MAX_BYTES
from adapterhub.formats.contract.reading import claims_contract, parse_contract
from adapterhub.formats.manifest import CONTRACT_FILE
from adapterhub_registry.errors import Refusal
from adapterhub_registry.results.results import passes, results_on
from adapterhub_registry.results.rules import rule_of
from adapterhub_registry.storage.blobs import BlobStore

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
        Refusal: 422, with the reason and what is missing.
    """
    rule = rule_of(connection, namespace or repo.namespace)
    if rule.asks == "off":
        return
    version, digest, base = build
    reason = _problem(connection, blobs, repo, rule, digest=digest, base=base, evals=evals)
    if reason is not None:
        asked = "a contract" if rule.asks == "contract" else "a PASS by one of its keys"
        raise Refusal(
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
    """The contract in a file of the store; None where it is none that this version can read."""
    if evals is None or blobs.size(evals) > MAX_BYTES:
        return None
    raw = b"".join(blobs.open(evals, 0, MAX_BYTES))
    try:
        return parse_contract(raw, CONTRACT_FILE) if claims_contract(raw) else None
    except AdapterHubError:
        return None
