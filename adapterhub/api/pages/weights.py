"""The pages about the weights of installed builds: one, two beside each other, relatives, and the builds of a base.

Figures are made when a page first asks for them, one build at a time, and kept in the library's cache.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from starlette.exceptions import HTTPException

from adapterhub.api.pages.addresses import DIGITS, NO_NAMESPACE
from adapterhub.api.pages.builds import WithBuilds
from adapterhub.api.searching import ask, search_installed
from adapterhub.api.steps.finding import lineage_of
from adapterhub.core.disk.files import read_json
from adapterhub.core.errors import AdapterHubError, NotFound, UsageProblem, shown
from adapterhub.core.extras import extra_named
from adapterhub.formats.contract.reader import contract_in
from adapterhub.formats.manifest import CONFIG_FILE
from adapterhub.inference.engine_bases import base_facts
from adapterhub.library.passed import derived_record
from adapterhub.pages.changes import changed
from adapterhub.pages.figures import (
    compared,
    contract_words,
    engine_lines,
    heats_of,
    lines_of,
    spectra_of,
    weight_of,
    with_commands,
)
from adapterhub.pages.values import (
    Badge,
    BasePage,
    BuildPage,
    Compared,
    ComparePage,
    LineagePage,
    Link,
    MapPoint,
    RelatedBase,
    Relative,
)
from adapterhub.trust.verify import open_files, read_headers

if TYPE_CHECKING:
    from adapterhub.formats.derived.record import DerivedRecord, EngineRecord
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.store.rows import BuildRow
    from adapterhub.library.upkeep.lineage import Node
    from adapterhub.pages.page import PageQuery

_MOST_POINTS: Final = 60
_LISTED: Final = 20
_TIME_S: Final = 20.0
_RETRY_S: Final = 2
_BASE: Final = re.compile(r"(?:sha256:)?([0-9a-f]{8,64})")
_SPEC: Final = "expected NAME, NAME==VERSION or NAME@DIGITS of its digest"


class WithFigures(WithBuilds):
    """The pages of the weights in one library."""

    _comparing = threading.Lock()
    _deriving = threading.Lock()

    def build(self, repo: str, version: str) -> BuildPage:
        """The figures of one build, by its version or the first digits of its digest."""
        build = self._chosen(self._builds(repo), version)
        digits, record, reason = _digits(build.manifest.digest), None, ""
        try:
            record = self._record(build)
            reason = record.reason
        except AdapterHubError as error:
            reason = error.message
        base = build.base.fingerprint
        page = BuildPage(
            repo=repo,
            version=build.manifest.version,
            url=f"/{repo}/{digits}",
            commit=digits,
            digest=build.manifest.digest,
            badges=_badges(build),
            links=(
                Link(text="Lineage", url=f"/lineage/{repo}?{urlencode({'version': digits})}"),
                Link(text="Compare", url=f"/compare?{urlencode({'a': f'{build.full_name}@{digits}'})}"),
                Link(text="Files", url=f"/{repo}/tree/{digits}"),
                *([Link(text="Base", url=f"/base/{base.weights.removeprefix('sha256:')}")] if base else []),
            ),
            state="none" if reason else "made",
            reason=reason,
        )
        if record is None:
            return page
        return replace(
            page,
            norm=record.norm,
            others=record.others,
            heats=heats_of(record),
            spectra=spectra_of(record),
            modules=lines_of(record),
            findings=(*record.findings, *self._audited(build)),
            looked_at="its files, numbers, signature, lineage, licences and names",
            engines=engine_lines(self._engines(build) or record.engines),
        )

    def compare(self, asked: PageQuery) -> ComparePage:
        """Two installed builds beside each other; one comparison at a time."""
        named = [asked.query.get(key, "").strip() for key in "ab"]
        weights = [weight_of(asked.query.get(key, "")) for key in ("wa", "wb")]
        page = ComparePage(a=named[0], b=named[1])
        if not all(named):
            return page
        builds = [self._named(name) for name in named]
        sides = tuple(self._side(build, weight) for build, weight in zip(builds, weights, strict=True))
        before, after = (read_json(build.folder / CONFIG_FILE) for build in builds)
        page = replace(page, sides=sides, config=tuple(changed(before, after)))
        if not self._comparing.acquire(blocking=False):
            raise HTTPException(503, "another comparison is running", headers={"Retry-After": str(_RETRY_S)})
        try:
            page = self._compared(page, builds, weights)
        except AdapterHubError as error:
            return replace(page, reason=error.message)
        finally:
            self._comparing.release()
        return replace(page, forecast=with_commands(page.forecast, sides))

    def lineage(self, repo: str, version: str) -> LineagePage:
        """What one build was made from, what was made from it, and what is like it."""
        build = self._chosen(self._builds(repo), version)
        digest, lineage = build.manifest.digest, lineage_of(self._library.session)
        node = lineage.node(digest)
        mine = next(row for row in lineage.rows if row.digest == digest)
        others, (alike, parts) = list(self._others(build, mine, lineage.rows)), self._alike(build)
        return LineagePage(
            repo=repo,
            version=build.manifest.version,
            url=f"/{repo}/{_digits(digest)}",
            parents=(*(self._relative(build.manifest.relation, one) for one in node.parents), *parts),
            children=tuple(_row(row, "made from it", weight) for row, weight in lineage.children(digest)),
            others=(*others, *(one for one in alike if one.digest not in {other.digest for other in others})),
            inherited=tuple(one for one in self._above(node) if one.license),
        )

    def base(self, fingerprint: str) -> BasePage:
        """The installed builds for one base, on a map of their updates."""
        begin = _BASE.fullmatch(fingerprint)
        rows = [row for row in search_installed(self._library.session, None, sort="date") if row.base_weights]
        bases = {base.weights: base for base in ask(self._library.session, lambda index: index.bases())}
        known = sorted({*bases, *(row.base_weights for row in rows)})
        sha256 = next((one for one in known if begin and one.startswith(f"sha256:{begin[1]}")), None)
        if sha256 is None:
            raise NotFound(f"no base `{shown(fingerprint, 80)}`")
        mine, record = [row for row in rows if row.base_weights == sha256], bases.get(sha256)
        names = {record.alias: None, record.hub_id: None} if record else {}
        names |= dict.fromkeys(row.base_hub_id for row in mine)
        tensors = {row.base_tensors for row in mine if row.base_tensors}
        related: dict[str, int] = {}
        for row in rows:
            if row.base_weights != sha256 and row.base_tensors in tensors:
                related[row.base_weights] = related.get(row.base_weights, 0) + 1
        search = f"/?{urlencode({'base': sha256})}"
        return BasePage(
            sha256=sha256.removeprefix("sha256:"),
            names=tuple(name for name in names if name),
            count=len(mine),
            related=tuple(
                RelatedBase(
                    label=bases[one].alias if one in bases else one[7:19],
                    url=f"/base/{one.removeprefix('sha256:')}",
                    relation="same tensors in other files",
                    adapters=count,
                )
                for one, count in list(related.items())[:_LISTED]
            ),
            points=tuple(self._points(mine[:_MOST_POINTS])),
            adapters=tuple(self._lines(mine[:_LISTED])),
            search_url=search,
            feed_url=None,
        )

    # ------------------------------------------------------------ inside
    def _record(self, build: Installed) -> DerivedRecord:
        with self._deriving, extra_named("the figures of a build"):
            return derived_record(self._library.store, build.folder, build.manifest)

    def _engines(self, build: Installed) -> tuple[EngineRecord, ...]:
        """What engines do with it on its base, as far as that is registered; empty if a file cannot be read."""
        with suppress(AdapterHubError), extra_named("the figures of a build"):
            from adapterhub.formats.derived.deriving import engine_records

            fingerprint = build.base.fingerprint
            record = self._library.bases.by_fingerprint(fingerprint) if fingerprint else None
            if headers := read_headers(build.folder):
                return engine_records(*headers, base_facts(record))
        return ()

    def _audited(self, build: Installed) -> tuple[tuple[str, str], ...]:
        """What an audit finds without the network: signature, strays, lineage, licences, names, withdrawals."""
        [audited] = self._library.audit(build.folder, offline=True)
        return tuple((f.code, f"{f.where}: {f.message}" if f.where else f.message) for f in audited.report.findings)

    def _named(self, name: str) -> Installed:
        repo, version = (*re.split("==|@", name, maxsplit=1), "")[:2]
        if not re.fullmatch(r"(?:[^/]+/)?[^/]+", repo):
            raise UsageProblem(f"build `{shown(name, 200)}`: {_SPEC}")
        return self._chosen(self._builds(repo if "/" in repo else f"{NO_NAMESPACE}/{repo}"), version)

    def _side(self, build: Installed, weight: float) -> Compared:
        norm: float | None = None
        words: tuple[str, ...] = ()
        try:
            norm = self._record(build).norm
            contract = contract_in(build.folder)
            words = contract_words(contract) if contract is not None else ()
        except AdapterHubError as error:
            words = (error.message,)
        return Compared(
            name=build.spec, url=_url(build), weight=weight, norm=norm, contract=words, badges=_badges(build)
        )

    def _compared(self, page: ComparePage, builds: Sequence[Installed], weights: Sequence[float]) -> ComparePage:
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
            return compared(page, compare_two(pair, time_s=_TIME_S))

    def _relative(self, relation: str, node: Node) -> Relative:
        row = next((row for row in search_installed(self._library.session, None) if row.digest == node.digest), None)
        license_ = None
        for build in self._library.still_in([self._library.root / row.folder] if row is not None else []):
            license_ = build.manifest.license
        url = None if row is None else _row(row, "").url
        return Relative(
            relation=relation, name=node.label, url=url, weight=node.weight, digest=node.digest, license=license_
        )

    def _above(self, node: Node) -> Iterator[Relative]:
        for parent in node.parents:
            yield self._relative("made from", parent)
            yield from self._above(parent)

    def _others(self, build: Installed, mine: BuildRow, rows: Sequence[BuildRow]) -> Iterator[Relative]:
        """Builds with the same weights under another name, and those for the same task on another base."""
        digests = build.manifest.digests
        for row in rows:
            if row.digest == mine.digest:
                continue
            if (row.parameters, row.rank) == (mine.parameters, mine.rank):
                others = [one.manifest.digests for one in self._library.still_in([self._library.root / row.folder])]
                if digests["adapter_model.safetensors"] in [one.get("adapter_model.safetensors") for one in others]:
                    yield _row(row, "same weights")
                    continue
            if mine.task and row.task == mine.task and row.base_weights != mine.base_weights:
                yield _row(row, "same task on another base")

    def _alike(self, build: Installed) -> tuple[list[Relative], list[Relative]]:
        """Builds whose update is the same, negated or near, and those that it is a sum of and does not declare."""
        from adapterhub.formats.derived.likeness import NEAR
        from adapterhub.library.find.likeness import similar_to

        try:
            with self._deriving, extra_named("like updates"):
                found = similar_to(self._library, build, above=NEAR, most_made=_MOST_POINTS)
        except AdapterHubError:  # it has no update to compare
            return [], []
        alike = [_row(one.build, f"{one.kind}: cosine {one.cosine:.4f}") for one in found.similar]
        undeclared = [one for one in found.parents if not one.declared]
        return alike, [_row(one.build, "a part of it by its weights, not declared", one.weight) for one in undeclared]

    def _points(self, rows: Sequence[BuildRow]) -> Iterator[MapPoint]:
        from adapterhub.formats.derived.likeness import nearest, placed
        from adapterhub.library.find.sketching import sketches_of

        with self._deriving, extra_named("the map of a base"):
            known = sketches_of(self._library, rows)
        records = [(row, known[row.digest].sketch) for row in rows if known[row.digest].sketch]
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
