"""`adapt search --remote`: what a server's index says, with what its base means here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapterhub.cli.options.params import Session
    from adapterhub.core.specs import BaseSpec
    from adapterhub.distribution.hub import Hub, Search, SearchHit

_COLUMNS = ("repository", "version", "base", "fits", "task", "rank", "method")
BY_WEIGHTS, BY_NAME = "by weights", "by name"


def search_remote(session: Session, hub: Hub, base: BaseSpec | None, search: Search) -> None:
    """Ask the server and print. A base that is known here is asked for by its weights, then by its Hub id."""
    rows = _rows(session, hub, base, search)
    aliases: dict[str, str] = {record.fingerprint.weights: record.alias for record in session.library.bases.list()}
    documents = [_document(found, fits, aliases) for found, fits in rows]
    cells = [
        (d["repository"], d["version"], d["base"], d["fits"], d["task"], d["rank"], ",".join(d["method"]).lower())
        for d in documents
    ]
    session.out.result(documents, lambda: session.out.table(_COLUMNS, cells, right=("rank",)))
    if not rows and not session.out.as_json:
        session.out.hint(f"nothing matches on {hub.endpoint}; fewer conditions find more")


def _rows(session: Session, hub: Hub, base: BaseSpec | None, search: Search) -> list[tuple[SearchHit, str]]:
    if base is None:
        return [(found, "") for found in hub.search(search)]
    from adapterhub.library.bases.requested import requested_base

    wanted = requested_base(base, session.library.bases)
    assert wanted is not None  # a base was given
    record = wanted.record
    weights = record.fingerprint.weights if record else wanted.digest_prefix or ""
    hub_id = (record.hints.hub_id if record else wanted.hub_id) or ""
    rows: dict[str, tuple[SearchHit, str]] = {}
    if weights:
        rows = {found.repo: (found, BY_WEIGHTS) for found in hub.search(replace(search, base_weights=weights))}
    if hub_id:
        for found in hub.search(replace(search, base_hub_id=hub_id)):
            # declared for other weights under the same name: not what was asked for
            if found.repo not in rows and (not weights or found.base_weights is None):
                rows[found.repo] = (found, BY_NAME)
    return list(rows.values())[: search.limit]


def _document(found: SearchHit, fits: str, aliases: dict[str, str]) -> dict[str, Any]:
    base = aliases.get(found.base_weights or "") or found.base_hub_id or (found.base_weights or "")[7:19] or "unknown"
    return {
        "repository": found.repo,
        "name": found.name,
        "version": found.version,
        "base": base,
        "base_weights": found.base_weights,
        "base_hub_id": found.base_hub_id,
        "fits": fits,
        "task": found.task,
        "rank": found.rank,
        "method": list(found.method),
        "description": found.description or None,
        "digest": found.digest,
    }
