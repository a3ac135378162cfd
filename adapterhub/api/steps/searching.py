"""Search: the index of a library, and a server with what its bases mean here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

from adapterhub.api.steps.finding import ask
from adapterhub.core.display import size_text
from adapterhub.core.errors import UsageProblem, shown

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.distribution.hub import Hub, Search, SearchHit
    from adapterhub.formats.relevance import Matched
    from adapterhub.library.store.index import BuildRow, Hit
    from adapterhub.projects.session import Session

COLUMNS = ("name", "version", "base", "task", "rank", "method", "size")
SHOWN_BEST: Final = 10
SERVER_COLUMNS = ("repository", "adapter", "version", "base", "fits", "task", "rank", "method")
BY_WEIGHTS, BY_NAME = "by weights", "by name"


SORTS: Final[Mapping[str, Callable[[BuildRow], Any]]] = {
    "name": lambda row: (row.name, row.namespace),
    "task": lambda row: row.task,
    "rank": lambda row: -(row.rank or 0),
    "size": lambda row: -row.size_bytes,
    "date": lambda row: -row.added_at,
}
"""Orders of a list: texts from a to z, numbers from the largest, dates from the newest; equal ones by name."""

_PATTERNS: Final = ("rank_pattern", "alpha_pattern")


def find_installed(session: Session, base: BaseSpec | None, **filters: Any) -> list[Hit]:  # noqa: ANN401 - Filters' fields
    """The installed builds for `base` that match `filters`, the fields of `Filters`, and why each matches the text.

    Those for a text of several words come by relevance, the best 10 without a `limit`.
    """
    from adapterhub.library.store.index import Filters

    fingerprints, hub_id = (None, "") if base is None else _base_filter(session, base)
    query = Filters(bases=fingerprints, base_hub_id=hub_id, **filters)
    if query.limit is None and is_ranked(query.text, all_words=query.all_words):
        query = replace(query, limit=SHOWN_BEST)
    return ask(session, lambda index: index.find(query))


def is_ranked(text: str, *, all_words: bool = False) -> bool:
    """Whether a search for `text` orders by relevance: one word alone is looked for as the beginning of a word."""
    return len(text.split()) > 1 and not all_words


def search_installed(
    session: Session,
    base: BaseSpec | None,
    *,
    names: Sequence[str] = (),
    sort: str = "name",
    reverse: bool = False,
    **filters: Any,  # noqa: ANN401 - Filters' fields
) -> list[BuildRow]:
    """The builds of `find_installed` that match one of `names`.

    Each of `names` is a pattern for the whole name, such as `legal-*`, or a part of it; without `names`, all match.

    Raises:
        UsageProblem: `sort` is none of `SORTS`.
    """
    if sort not in SORTS:
        raise UsageProblem(f"no order `{shown(sort)}`; expected one of {', '.join(SORTS)}")
    rows = [hit.row for hit in find_installed(session, base, **filters)]
    if names:
        rows = [row for row in rows if any(_has_name(row, name.lower()) for name in names)]
    if sort != "name":  # the index sorts by name
        rows.sort(key=SORTS[sort])
    return rows[::-1] if reverse else rows


def _has_name(row: BuildRow, wanted: str) -> bool:
    if any(mark in wanted for mark in "*?["):
        return fnmatchcase(row.full_name, wanted) or fnmatchcase(row.name, wanted)
    return wanted in row.full_name


def method_text(method: Sequence[str]) -> str:
    """A method for one column: the PEFT type, its first variant, and how many more, such as `lora+rslora+2`.

    Says of a method that nothing here can put on a model.
    """
    from adapterhub.formats.peft.methods import attaches

    kind, *marks = [mark.lower() for mark in method if mark not in _PATTERNS] or [""]
    rest = [str(len(marks) - 1)] if len(marks) > 1 else []
    return "+".join([kind, *marks[:1], *rest]) + ("" if attaches(method) else " (cannot be attached)")


def _base_filter(session: Session, base: BaseSpec) -> tuple[tuple[str, ...] | None, str]:
    """The fingerprints that count as `base`, or its Hub id when only the name is known."""
    known = {row.alias: row.weights for row in ask(session, lambda index: index.bases())}
    if base.kind == "alias" and base.text in known:
        return ask(session, lambda index: index.equivalents(known[base.text])), ""
    from adapterhub.library.bases.requested import requested_base

    library = session.library
    wanted = requested_base(base, library.bases)
    assert wanted is not None
    if wanted.record is not None:
        weights = wanted.record.fingerprint.weights
        if weights in known.values():
            return ask(session, lambda index: index.equivalents(weights)), ""
        return library.catalog.declared_like(wanted.record.fingerprint), ""
    if wanted.digest_prefix is not None:
        declared = ask(session, lambda index: index.declared_bases())
        return tuple(w for w in declared if w.startswith(wanted.digest_prefix)), ""
    return None, wanted.hub_id or ""


def base_name(row: BuildRow, aliases: dict[str, str]) -> str:
    """The base of a build as one types it here, `unknown` without one."""
    return aliases.get(row.base_weights) or row.base_hub_id or row.base_weights[7:19] or "unknown"


def cells_of(row: BuildRow, aliases: dict[str, str]) -> tuple[object, ...]:
    """The cells of a build below `COLUMNS`."""
    method, size = method_text(row.method.split(",")), size_text(row.size_bytes)
    return row.full_name, row.version, base_name(row, aliases), row.task, row.rank, method, size


def why_text(matched: Matched | None) -> str:
    """Why a search found a build, for one column: the part that matched and how it begins."""
    return "" if matched is None else f"{matched.part} “{shown(matched.text, 60)}”"


def found_document(score: float | None, matched: Matched | None) -> dict[str, Any]:
    """What a search adds to the document of a build."""
    return {"score": score, "matched": None if matched is None else {"part": matched.part, "text": matched.text}}


def search_server(session: Session, hub: Hub, base: BaseSpec | None, search: Search) -> list[tuple[SearchHit, str]]:
    """What the server lists, with how its base is known to be `base`: by its weights, then by its Hub id."""
    if base is None:
        return [(found, "") for found in hub.search(search)]
    from adapterhub.library.bases.requested import requested_base

    wanted = requested_base(base, session.library.bases)
    assert wanted is not None  # `base` is given
    record = wanted.record
    weights = record.fingerprint.weights if record else wanted.digest_prefix or ""
    hub_id = (record.hints.hub_id if record else wanted.hub_id) or ""
    rows: dict[str, tuple[SearchHit, str]] = {}
    if weights:
        rows = {found.repo: (found, BY_WEIGHTS) for found in hub.search(replace(search, base_weights=weights))}
    if hub_id:
        for found in hub.search(replace(search, base_hub_id=hub_id)):
            # A build for other weights of the same name does not match.
            if found.repo not in rows and (not weights or found.base_weights is None):
                rows[found.repo] = (found, BY_NAME)
    return list(rows.values())[: search.limit]
