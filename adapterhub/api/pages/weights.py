"""The pages about the weights of installed builds: one, two beside each other, relatives, and the builds of a base.

Figures are made when a page first asks for them, one build at a time, and kept in the library's cache.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from starlette.exceptions import HTTPException

from adapterhub.api.pages.builds import head_of
from adapterhub.api.pages.source import DIGITS, NO_NAMESPACE
from adapterhub.api.searching import ask
from adapterhub.api.steps.finding import lineage_of
from adapterhub.core.digests import Digest
from adapterhub.core.disk.files import read_json
from adapterhub.core.errors import AdapterHubError, NotFound, UsageProblem, shown
from adapterhub.core.extras import extra_named
from adapterhub.formats.contract.reader import contract_in
from adapterhub.formats.manifest import CONFIG_FILE
from adapterhub.inference.engine_bases import base_facts
from adapterhub.library.passed import derived_record
from adapterhub.library.results import Kept, KeptResults
from adapterhub.library.store.rows import Filters
from adapterhub.pages.figures import (
    FoundOutcome,
    contract_words,
    lists_of,
    names_of,
    outcome_detail,
    outcome_table,
    verdict_badge,
    weights_of,
    with_figures,
)
from adapterhub.pages.figures import compare_page as page_of_both
from adapterhub.pages.lists import BasePage
from adapterhub.pages.values import (
    Badge,
    BuildPage,
    Compared,
    ComparePage,
    LineagePage,
    Link,
    MapPoint,
    OutcomeTable,
    RelatedBase,
    Relative,
)
from adapterhub.trust.verify import open_files, read_headers

if TYPE_CHECKING:
    from adapterhub.api.pages.source import LibrarySource
    from adapterhub.formats.derived.comparison import Comparison
    from adapterhub.formats.derived.record import DerivedRecord, EngineRecord
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.store.rows import BuildRow
    from adapterhub.library.upkeep.lineage import Lineage, Node
    from adapterhub.pages.page import PageQuery

_MOST_POINTS: Final = 60
_LISTED: Final = 20
_MOST_ALIKE: Final = 5
_MOST_LIKE: Final = 120
"""So many of the newest builds of a base are compared with one."""
_MOST_RELATIVES: Final = 100
_OF_A_NAME: Final = 25
_TIME_S: Final = 20.0
_RETRY_S: Final = 2
_BASE: Final = re.compile(r"(?:sha256:)?([0-9a-f]{8,64})")
_SPEC: Final = "expected NAME, NAME==VERSION or NAME@DIGITS of its digest"
_comparing: Final = threading.Lock()
_deriving: Final = threading.Lock()


def build_page(here: LibrarySource, asked: PageQuery) -> BuildPage:
    """Return the figures of one build, by its version or the first digits of its digest."""
    repo = asked.repo
    build = here.build(repo, asked.path["version"])
    digits, record, reason = _digits(build.manifest.digest), None, ""
    try:
        record = _record(here, build)
        reason = record.reason
    except AdapterHubError as error:
        reason = error.message
    page = BuildPage(
        repo=repo,
        version=build.manifest.version,
        url=f"/{repo}/{digits}",
        commit=digits,
        head=head_of(build, "weights"),
        digests=(("Build", build.manifest.digest),),
        rank=build.manifest.rank,
        state="none" if reason else "made",
        reason=reason,
    )
    if record is None:
        return page
    return with_figures(
        page,
        record,
        findings=(*record.findings, *_audited(here, build)),
        looked_at="its files, numbers, signature, lineage, licences and names",
        engines=_engines(here, build) or record.engines,
    )


def compare_page(here: LibrarySource, asked: PageQuery) -> ComparePage:
    """Two installed builds beside each other; one comparison at a time."""
    named, weights = names_of(asked), weights_of(asked)
    known = [_named(here, name) if name else None for name in named]
    lists = tuple(lists_of(known, lambda anchor: _groups(here, anchor), _choice))
    builds = [build for build in known if build is not None]
    if len(builds) < len(known):
        a, b = (_choice(build)[0] if build else "" for build in known)
        return ComparePage(a=a, b=b, lists=lists)
    sides = [_side(here, build, weight) for build, weight in zip(builds, weights, strict=True)]
    configs = [read_json(build.folder / CONFIG_FILE) for build in builds]
    if not _comparing.acquire(blocking=False):
        raise HTTPException(503, "another comparison is running", headers={"Retry-After": str(_RETRY_S)})
    try:
        found: Comparison | str = _compared(builds, weights)
    except AdapterHubError as error:
        found = error.message
    finally:
        _comparing.release()
    return page_of_both(lists, sides, configs, found)


def lineage_page(here: LibrarySource, asked: PageQuery) -> LineagePage:
    """Return the parents of one build, the builds made from it, and the ones like it."""
    repo = asked.repo
    build = here.build(repo, asked.query.get("version", ""))
    digest, lineage = build.manifest.digest, lineage_of(here.library.session)
    node, mine = lineage.near(digest), lineage.row(digest)
    children, more_children = lineage.newest_children(digest, _OF_A_NAME, _MOST_RELATIVES)
    parents, more_parents = node.parents[:_MOST_RELATIVES], max(len(node.parents) - _MOST_RELATIVES, 0)
    kin = [*(row for row, _ in children), *filter(None, (lineage.row(one.digest or "") for one in parents))]
    others, (alike, parts, is_all) = list(_others(here, mine)) if mine else [], _alike(here, build, mine, kin)
    inherited, is_end = _above(here, lineage, digest)
    left_out = {
        f"{more_children:,} more were made from it.": more_children > 0,
        f"It was made from {more_parents:,} more.": more_parents > 0,
        f"Only the nearest {_MOST_RELATIVES} of its ancestors were looked at.": not is_end,
        f"Likeness was looked for among the newest {_MOST_LIKE} for its base; `adapt compare {build.spec}`"
        " looks at all.": not is_all,
    }
    return LineagePage(
        repo=repo,
        version=build.manifest.version,
        url=f"/{repo}/{_digits(digest)}",
        parents=(*(_relative(here, build.manifest.relation, one) for one in parents), *parts),
        children=tuple(_row(row, "made from it", weight) for row, weight in children),
        others=(*others, *(one for one in alike if one.digest not in {other.digest for other in others})),
        inherited=tuple(one for one in inherited if one.license),
        tabs=head_of(build, "lineage").tabs,
        left_out=tuple(text for text, is_so in left_out.items() if is_so),
    )


def base_page(here: LibrarySource, asked: PageQuery) -> BasePage:
    """Return the installed builds for one base, on a map of their updates."""
    fingerprint = asked.path["fingerprint"]
    begin = _BASE.fullmatch(fingerprint)
    session = here.library.session
    per_base = {one.weights: one for one in ask(session, lambda index: index.per_base()) if one.weights}
    bases = {base.weights: base for base in ask(session, lambda index: index.bases())}
    known = sorted({*bases, *per_base})
    sha256 = next((one for one in known if begin and one.startswith(f"sha256:{begin[1]}")), None)
    if sha256 is None:
        raise NotFound(f"no base `{shown(fingerprint, 80)}`", hint="`adapt base list` shows the bases")
    newest = Filters(bases=(sha256,), sort="date", limit=_MOST_POINTS)
    mine, record = ask(session, lambda index: index.search(newest)), bases.get(sha256)
    names = {record.alias: None, record.hub_id: None} if record else {}
    names |= dict.fromkeys(row.base_hub_id for row in mine)
    known_as = here.library.bases.get(record.alias) if record else None
    declared = next(iter(here.library.still_in([here.library.root / row.folder for row in mine[:1]])), None)
    base = known_as.fingerprint if known_as else declared.base.fingerprint if declared else None
    forms = tuple(here.other_forms(base))
    tensors = {row.base_tensors for row in mine if row.base_tensors}
    taken = {sha256, *(f"sha256:{one.url.rpartition('/')[2]}" for one in forms)}
    related = {w: one.builds for w, one in per_base.items() if w not in taken and one.tensors in tensors}
    search = f"/search?{urlencode({'base': sha256})}"
    return BasePage(
        sha256=sha256.removeprefix("sha256:"),
        names=tuple(name for name in names if name),
        count=per_base[sha256].builds if sha256 in per_base else 0,
        related=forms
        + tuple(
            RelatedBase(
                label=bases[one].alias if one in bases else one[7:19],
                url=f"/base/{one.removeprefix('sha256:')}",
                relation="same tensors in other files",
                adapters=count,
            )
            for one, count in list(related.items())[:_LISTED]
        ),
        points=tuple(_points(here, mine)),
        outcomes=outcomes(here, mine[:_LISTED], {one: base.alias for one, base in bases.items()}),
        adapters=tuple(here.lines(mine[:_LISTED])),
        search_url=search,
        feed_url=None,
    )


def outcomes(here: LibrarySource, rows: Sequence[BuildRow], aliases: Mapping[str, str]) -> OutcomeTable | None:
    """Return the outcomes of tests of builds here, on each base."""
    kept = KeptResults(here.library.store)
    builds = [(line.repo, line.version or "", line.url) for line in here.lines(rows)]
    found = (
        FoundOutcome(at, one.result.base_weights, one.result.outcome, one.time, _detail(one))
        for at, row in enumerate(rows)
        for one in kept.all(Digest(row.digest))
    )

    def links(bases: Sequence[str]) -> list[Link]:
        return [Link(text=aliases.get(b, b[7:19]), url=f"/base/{b[7:]}" if b in aliases else "") for b in bases]

    return outcome_table(builds, found, links)


def _detail(kept: Kept) -> str:
    result = kept.result
    return outcome_detail(result.drift, result.load_in or result.dtype, kept.time, "")


def _record(here: LibrarySource, build: Installed) -> DerivedRecord:
    with _deriving, extra_named("the figures of a build"):
        return derived_record(here.library.store, build.folder, build.manifest)


def _engines(here: LibrarySource, build: Installed) -> tuple[EngineRecord, ...]:
    """Return the engines' verdicts on its base, as far as that is registered; empty if a file cannot be read."""
    with suppress(AdapterHubError), extra_named("the figures of a build"):
        from adapterhub.formats.derived.deriving import engine_records

        fingerprint = build.base.fingerprint
        record = here.library.bases.by_fingerprint(fingerprint) if fingerprint else None
        if headers := read_headers(build.folder):
            return engine_records(*headers, base_facts(record))
    return ()


def _audited(here: LibrarySource, build: Installed) -> tuple[tuple[str, str], ...]:
    """Return the findings of an audit without the network: signature, strays, lineage, licences, names, withdrawals."""
    [audited] = here.library.audit(build.folder, offline=True)
    return tuple((f.code, f"{f.where}: {f.message}" if f.where else f.message) for f in audited.report.findings)


def _named(here: LibrarySource, name: str) -> Installed:
    repo, version = (*re.split("==|@", name, maxsplit=1), "")[:2]
    if not re.fullmatch(r"(?:[^/]+/)?[^/]+", repo):
        raise UsageProblem(f"build `{shown(name, 200)}`: {_SPEC}")
    return here.build(repo if "/" in repo else f"{NO_NAMESPACE}/{repo}", version)


def _side(here: LibrarySource, build: Installed, weight: float) -> Compared:
    norm: float | None = None
    words: tuple[str, ...] = ()
    try:
        norm = _record(here, build).norm
        contract = contract_in(build.folder)
        words = contract_words(contract) if contract is not None else ()
    except AdapterHubError as error:
        words = (error.message,)
    kept = KeptResults(here.library.store).all(build.manifest.digest)
    choice, label = _choice(build)
    return Compared(
        name=build.spec,
        label=label,
        choice=choice,
        url=_url(build),
        base=build.base.fingerprint.weights if build.base.fingerprint else None,
        weight=weight,
        norm=norm,
        contract=words,
        verdict=verdict_badge(kept[-1].result.verdict) if kept else None,
        badges=_badges(build),
    )


def _groups(here: LibrarySource, anchor: Installed | None) -> dict[str, list[tuple[str, str]]]:
    """Return the builds to compare one with: those like it, its versions, and others of its base."""
    if anchor is None:
        return {"Newest": _choices(here, Filters(sort="date", limit=_MOST_POINTS))}
    own = Filters(name=anchor.manifest.name, namespace=anchor.namespace or "", sort="date", limit=_LISTED)
    mates, near = _mates(here, anchor)
    return {
        "Same base, most alike": [_row_choice(row) for row in near],
        "Other versions": _choices(here, own),
        "Same base": [_row_choice(row) for row in mates],
    }


def _mates(here: LibrarySource, build: Installed) -> tuple[list[BuildRow], list[BuildRow]]:
    """Return the newest builds for the same base, and those of them whose update is most like that of `build`."""
    base = build.base.fingerprint
    if base is None:
        return [], []
    newest = Filters(bases=(base.weights,), sort="date", limit=_MOST_POINTS)
    rows = ask(here.library.session, lambda index: index.search(newest))
    digests = [row.digest for row in rows]
    found = {one.digest: one.sketch for one in ask(here.library.session, lambda index: index.sketches(digests))}
    sketched = [row for row in rows if found.get(row.digest) and row.digest != build.manifest.digest]
    mine = found.get(build.manifest.digest)
    if not mine or not sketched:
        return rows, []
    with extra_named("like updates"):
        from adapterhub.formats.derived.likeness import Sketches

        cosines = Sketches([found[row.digest] for row in sketched]).cosines(mine).tolist()
    order = sorted(zip(cosines, sketched, strict=True), key=lambda one: -abs(one[0]))
    return rows, [row for _, row in order[:_MOST_ALIKE]]


def _choice(build: Installed) -> tuple[str, str]:
    return f"{build.full_name}@{_digits(build.manifest.digest)}", f"{build.full_name} {build.manifest.version}"


def _choices(here: LibrarySource, filters: Filters) -> list[tuple[str, str]]:
    return [_row_choice(row) for row in ask(here.library.session, lambda index: index.search(filters))]


def _row_choice(row: BuildRow) -> tuple[str, str]:
    return f"{row.full_name}@{_digits(row.digest)}", f"{row.full_name} {row.version}"


def _compared(builds: Sequence[Installed], weights: Sequence[float]) -> Comparison:
    from contextlib import ExitStack, closing

    with extra_named("a comparison"), ExitStack() as stack:
        from adapterhub.formats.derived.comparison import Weighted, compare_two
        from adapterhub.formats.derived.reading import AdapterUpdates

        pair = []
        for label, build, weight in zip(("first", "second"), builds, weights, strict=True):
            subject = open_files(build.folder, build.manifest.digests)
            held = stack.enter_context(closing(subject.held))
            updates = AdapterUpdates(subject.config, subject.weights, held.read)
            pair.append(Weighted(label=label, weight=weight, updates=updates))
        return compare_two(pair, time_s=_TIME_S)


def _relative(here: LibrarySource, relation: str, node: Node) -> Relative:
    row = ask(here.library.session, lambda index: index.of_digest(node.digest or ""))
    license_ = None
    for build in here.library.still_in([here.library.root / row.folder] if row is not None else []):
        license_ = build.manifest.license
    url = None if row is None else _row(row, "").url
    return Relative(
        relation=relation, name=node.label, url=url, weight=node.weight, digest=node.digest, license=license_
    )


def _above(here: LibrarySource, lineage: Lineage, digest: str) -> tuple[list[Relative], bool]:
    """Return the ancestors, the nearest first and each once, and whether they are all."""
    found: dict[str, Relative] = {}
    waiting = [digest]
    for one in waiting:
        for parent in lineage.near(one).parents:
            key = parent.digest or parent.label
            if key in found:
                continue
            if len(found) == _MOST_RELATIVES:
                return [*found.values()], False
            found[key] = _relative(here, "made from", parent)
            waiting += [parent.digest] if parent.digest else []
    return [*found.values()], True


def _others(here: LibrarySource, mine: BuildRow) -> Iterator[Relative]:
    """Yield builds with the same weights under another name, and the newest for the same task on another base."""
    same = Filters(weights_file=mine.weights_file, limit=_LISTED)
    task = Filters(task=mine.task, sort="date", limit=10 * _LISTED)
    for filters, relation in ((same, "same weights"), (task, "same task on another base")):
        if not (filters.weights_file or filters.task):
            continue
        for row in ask(here.library.session, lambda index: index.search(filters)):  # noqa: B023 - called at once
            is_other = filters is same or (row.base_weights, row.weights_file) != (mine.base_weights, mine.weights_file)
            if row.digest != mine.digest and is_other and (filters is same or row.base_weights != mine.base_weights):
                yield _row(row, relation)


def _alike(
    here: LibrarySource, build: Installed, mine: BuildRow | None, kin: Sequence[BuildRow]
) -> tuple[list[Relative], list[Relative], bool]:
    """Return builds whose update is the same, negated or near, and those that it is a sum of and does not declare.

    They are looked for in `kin` and the newest of its base; the last value is whether these are all.
    """
    from adapterhub.formats.derived.likeness import NEAR
    from adapterhub.library.find.likeness import proposed_by_sketches, similar_to

    newest = Filters(sort="date", limit=_MOST_LIKE + 1)
    if build.base.fingerprint is not None:
        newest = replace(newest, bases=(build.base.fingerprint.weights,))
    rows = ask(here.library.session, lambda index: index.search(newest))
    among = [*{row.digest: row for row in (*kin, *rows[:_MOST_LIKE])}.values()]
    is_all = len(rows) <= _MOST_LIKE
    try:
        with _deriving, extra_named("like updates"):
            if mine is not None:
                among = proposed_by_sketches(here.library, mine, among, above=NEAR, most_made=_MOST_POINTS)
            if not among:
                return [], [], is_all
            found = similar_to(here.library, build, above=NEAR, most_made=_MOST_POINTS, among=among, most=_LISTED)
    except AdapterHubError:  # it has no update to compare
        return [], [], True
    alike = [_row(one.build, f"{one.kind}: cosine {one.cosine:.4f}") for one in found.similar]
    undeclared = [one for one in found.parents if not one.declared]
    parts = [_row(one.build, "a part of it by its weights, not declared", one.weight) for one in undeclared]
    return alike, parts, is_all


def _points(here: LibrarySource, rows: Sequence[BuildRow]) -> Iterator[MapPoint]:
    from adapterhub.formats.derived.likeness import nearest, placed
    from adapterhub.library.find.sketching import sketches_of

    with _deriving, extra_named("the map of a base"):
        known = sketches_of(here.library, rows)
    records = [(row, known[row.digest].sketch) for row in rows if known[row.digest].sketch]
    if not records:
        return
    packed = [sketch for _, sketch in records]
    for (row, _), (x, y), (other, cosine) in zip(records, placed(packed), nearest(packed), strict=True):
        is_alone = len(records) == 1
        yield MapPoint(
            name=row.full_name,
            url=_row(row, "").url or "",
            x=x,
            y=y,
            nearest="" if is_alone else records[other][0].full_name,
            cosine=None if is_alone else cosine,
        )


def _digits(digest: str) -> str:
    return digest.removeprefix("sha256:")[:DIGITS]


def _url(build: Installed) -> str:
    return f"/{build.namespace or NO_NAMESPACE}/{build.manifest.name}/{_digits(build.manifest.digest)}"


def _row(row: BuildRow, relation: str, weight: float | None = None) -> Relative:
    url = f"/{row.namespace or NO_NAMESPACE}/{row.name}/{_digits(row.digest)}"
    name = f"{row.full_name} {row.version}"
    return Relative(relation=relation, name=name, url=url, weight=weight, digest=row.digest)


def _badges(build: Installed) -> tuple[Badge, ...]:
    return (Badge(text="licence", detail=build.manifest.license),) if build.manifest.license else ()
