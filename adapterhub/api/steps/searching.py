"""Search: the index of a library, and a server with what its bases mean here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, get_args

from adapterhub.api.steps.finding import ask
from adapterhub.core.arguments import By
from adapterhub.core.display import size_text
from adapterhub.core.errors import NotFound, UsageProblem, shown

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.distribution.hub import Search, SearchHit
    from adapterhub.formats.relevance import Matched
    from adapterhub.library.find.meaning import Meaning, Steps
    from adapterhub.library.store.rows import BuildRow, Hit
    from adapterhub.projects.session import Session

COLUMNS = ("name", "version", "base", "task", "rank", "method", "size")
SHOWN_BEST: Final = 10
SERVER_COLUMNS = ("repository", "adapter", "version", "base", "fits", "task", "rank", "method")
BY_WEIGHTS, BY_NAME = "by weights", "by name"


class Hits(NamedTuple):
    """What a search found, and what the scores compare: `words` or `meaning`; None where names give the order."""

    found: list[Hit]
    by: Literal["words", "meaning"] | None


SORTS: Final[Mapping[str, Callable[[BuildRow], Any]]] = {
    "name": lambda row: (row.name, row.namespace),
    "task": lambda row: row.task,
    "rank": lambda row: -(row.rank or 0),
    "size": lambda row: -row.size_bytes,
    "date": lambda row: -row.added_at,
}
"""Orders of a list: texts from a to z, numbers from the largest, dates from the newest; equal ones by name."""

_PATTERNS: Final = ("rank_pattern", "alpha_pattern")


def find_installed(
    session: Session,
    base: BaseSpec | None,
    *,
    by: By = "auto",
    far: bool = False,
    steps: Steps | None = None,
    **filters: Any,  # noqa: ANN401 - Filters' fields
) -> Hits:
    """The installed builds for `base` that match `filters`, the fields of `Filters`, and why each matches the text.

    Those for a text of several words come by relevance, the best 10 without a `limit`: by meaning where the model for
    it is here, else by words. `far` is for search by meaning, which calls `steps` while it makes vectors.

    Raises:
        UsageProblem: `by` is not one of `By`, or the options do not go together.
        NotFound, MissingExtra: `by` is `meaning`, and the model or the packages for it are not here.
        Conflict: the registered base that is the model has other files now.
    """
    from adapterhub.library.store.rows import Filters

    fingerprints, hub_id = (None, "") if base is None else _base_filter(session, base)
    query = Filters(bases=fingerprints, base_hub_id=hub_id, **filters)
    check_ways(query.text, by=by, all_words=query.all_words, far=far)
    several = is_ranked(query.text, all_words=query.all_words)
    if query.limit is None and (several or by == "meaning"):
        query = replace(query, limit=SHOWN_BEST)
    if by == "meaning" or (by == "auto" and several):
        meaning = _meaning(session, needed=by == "meaning")
        if meaning is not None:
            limit = query.limit or SHOWN_BEST
            return Hits(meaning.search(query.text, query, limit=limit, far=far, steps=steps), "meaning")
    if far:
        raise UsageProblem("`--far` is for search by meaning, whose model is not here", hint="`adapt search --setup`")
    hits = ask(session, lambda index: index.find(query))
    return Hits(hits, "words" if any(hit.score is not None for hit in hits) else None)


def check_ways(text: str, *, by: str, all_words: bool, far: bool) -> None:
    """Raise unless these ways to search go together.

    Raises:
        UsageProblem: they do not, or there is no way `by`.
    """
    if by not in get_args(By):
        raise UsageProblem(f"no search by `{shown(by)}`; expected one of {', '.join(get_args(By))}")
    if all_words and by == "meaning":
        raise UsageProblem("`--all-words` looks for words, `--meaning` does not; give one of them")
    if far and (all_words or by == "words"):
        raise UsageProblem("`--far` is for search by meaning; leave out `--words` and `--all-words`")
    if (far or by == "meaning") and not text.strip():
        raise UsageProblem(
            "search by meaning needs a text", hint='for example `adapt search --meaning "who pays for the damage"`'
        )


def _meaning(session: Session, *, needed: bool) -> Meaning | None:
    """Search by meaning, where its model is; looking for it imports no numpy."""
    from adapterhub.core.extras import missing
    from adapterhub.library.find.meaning import Meaning, model_folder

    folder = model_folder(session.root, ask(session, lambda index: index.bases()))
    if folder is None and needed:
        raise NotFound(
            "search by meaning needs the model all-MiniLM-L6-v2, which is not here",
            hint="`adapt search --setup` gets it once (84 MB); `--words` searches without it",
        )
    if folder is None or (missing("find") and not needed):
        return None
    return Meaning(session.library, folder)


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
    rows = [hit.row for hit in find_installed(session, base, **filters).found]
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
    size = size_text(row.size_bytes)
    return row.full_name, row.version, base_name(row, aliases), row.task, row.rank, _method_cell(row.method), size


@cache
def _method_cell(method: str) -> str:
    return method_text(method.split(","))  # a thousand adapters have a few methods


def why_text(matched: Matched | None) -> str:
    """Why a search found a build, for one column: the part that matched and how it begins."""
    return "" if matched is None else f"{matched.part} “{shown(matched.text, 60)}”"


def near_text(score: float | None, by: str | None) -> tuple[str, ...]:
    """The score of a search by meaning, for one column, and whether that is far."""
    if by != "meaning" or score is None:
        return ()
    from adapterhub.formats.meaning.texts import FAR

    return (f"{score:.2f}" + (" far" if score < FAR else ""),)


def found_document(score: float | None, matched: Matched | None, by: str | None) -> dict[str, Any]:
    """What a search adds to the document of a build."""
    why = None if matched is None else {"part": matched.part, "text": matched.text}
    return {"score": score, "by": by, "matched": why}


class SearchableSource(Protocol):
    """A server that can be searched."""

    @property
    def place(self) -> str:
        """Its URL."""

    def search(self, search: Search) -> list[SearchHit]:
        """What it lists for `search`."""


def searchable(session: Session, remote: str | None, token: str | None) -> SearchableSource:
    """The server that `--remote` names, else the default one.

    Raises:
        UsageProblem: it is a place that cannot be searched.
    """
    from adapterhub.projects.session import hub_of

    source: Any = session.named_source(session.remote(remote), remote, token=token, offline=False)
    found: SearchableSource = source if hasattr(source, "search") else hub_of(source)
    return found


def search_server(
    session: Session, hub: SearchableSource, base: BaseSpec | None, search: Search
) -> list[tuple[SearchHit, str]]:
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
