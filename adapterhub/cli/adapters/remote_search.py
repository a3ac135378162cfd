"""`adapt search --remote`: search a server and show how its bases relate to the local ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapterhub.api.steps.searching import SERVER_COLUMNS, found_document, method_text, search_server, why_text

if TYPE_CHECKING:
    from adapterhub.api.steps.searching import SearchableSource
    from adapterhub.cli.options.params import Session
    from adapterhub.core.specs import BaseSpec
    from adapterhub.distribution.hub import Search, SearchHit

_SHOWN = ("repository", "name", "version", "base", "fits", "task", "rank")


def search_remote(session: Session, hub: SearchableSource, base: BaseSpec | None, search: Search) -> None:
    """Search the server and print the matches; a registered base is searched by its weights, then by its Hub id."""
    rows = search_server(session, hub, base, search)
    aliases: dict[str, str] = {record.fingerprint.weights: record.alias for record in session.library.bases.list()}
    documents = [_document(found, fits, aliases) for found, fits in rows]
    columns: tuple[str, ...] = SERVER_COLUMNS
    cells: list[tuple[object, ...]] = [(*(d[key] for key in _SHOWN), method_text(d["method"])) for d in documents]
    if any(found.matched for found, _ in rows):
        columns = (*columns, "why")
        cells = [(*those, why_text(found.matched)) for those, (found, _) in zip(cells, rows, strict=True)]
    session.out.result(documents, lambda: session.out.table(columns, cells, right=("rank",)))
    if not rows and not session.out.as_json:
        session.out.hint(f"no adapter on {hub.place} matches; try fewer conditions")


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
        **found_document(found.score, found.matched, found.by),
    }
