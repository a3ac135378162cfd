"""Pages about builds: the figures of one, builds beside each other, relatives, and all of a base."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from sqlalchemy import ColumnElement, Row, Select, exists, func, or_, select
from sqlalchemy.engine import Connection

from adapterhub.core.errors import AdapterHubError, shown
from adapterhub.formats.derived.record import DerivedRecord
from adapterhub.formats.manifest import CONFIG_FILE, CONTRACT_FILE
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
from adapterhub.pages.page import PageQuery
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
from adapterhub_registry.access.rights import SEEN, is_seen
from adapterhub_registry.access.tokens import Caller
from adapterhub_registry.api.context import Registry
from adapterhub_registry.database.db import adapters, derived, parents, places, releases, repos, sketches, slices
from adapterhub_registry.database.trees import FileTree
from adapterhub_registry.errors import HttpRefusal, bad_request
from adapterhub_registry.names import known_repo_id
from adapterhub_registry.pages.adapter import contract_of
from adapterhub_registry.pages.files import config_of, url_of
from adapterhub_registry.pages.search import lines
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.repos import commits
from adapterhub_registry.repos.adapters import versions_of
from adapterhub_registry.repos.search import BASE_DIGEST, SHOWN
from adapterhub_registry.worker import DIGITS, FLOOR, files_of, open_build

if TYPE_CHECKING:
    from adapterhub.formats.derived.comparison import Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownBuild:
    """One indexed build: its repository, the version or revision that names it, and its row in `adapters`."""

    repo: Row[Any]
    version: str
    row: Row[Any]
    yanked: str | None = None
    is_release: bool = True

    @property
    def url(self) -> str:
        """The address of its page."""
        return f"/{self.repo.full_name}/{self.version}"

    @property
    def name(self) -> str:
        """`acme/legal-qa==1.0.0`, or `acme/legal-qa@main` for a commit without a release."""
        return f"{self.repo.full_name}{'==' if self.is_release else '@'}{self.version}"


def find_build(registry: Registry, connection: Connection, caller: Caller, repo: str, version: str) -> ShownBuild:
    """A build by its version or a revision; an empty one is the newest version, if possible one that is not yanked.

    Without any version, it is the head of `main`.

    Raises:
        HttpRefusal: 404 unless the caller may read the files, or where there is no adapter; 403 for a gated one.
    """
    namespace, _, name = repo.partition("/")
    found = registry.repos.find_files(connection, caller, known_repo_id(namespace, name))
    rows = versions_of(connection, found.id)
    wanted = version.removeprefix("v")
    rows = rows if version else sorted(rows, key=lambda r: r.yanked_at is not None)
    chosen = next((r for r in rows if r.released_as == wanted or not version), None)
    if chosen is not None:
        yanked = chosen.yanked_reason or "" if chosen.yanked_at is not None else None
        return ShownBuild(repo=found, version=chosen.released_as, row=chosen, yanked=yanked)
    commit_id = commits.find_commit(connection, found, version or "main")
    mine = select(adapters).where(adapters.c.repo_id == found.id, adapters.c.commit_id == commit_id)
    row = connection.execute(mine).one_or_none()
    if row is None:
        raise HttpRefusal(404, "EntryNotFound", "no adapter is indexed at this revision")
    return ShownBuild(repo=found, version=version or "main", row=row, is_release=False)


def record_of(connection: Connection, build: Row[Any]) -> tuple[str, str, DerivedRecord | None]:
    """The state of the record of a build, a row of `adapters`, why it has no figures, and the record."""
    if not is_seen(connection, build.created_at):
        return "waiting", "", None
    row = connection.execute(select(derived).where(derived.c.digest == build.digest)).one_or_none()
    if row is None or row.record is None:
        return ("waiting", "", None) if row is None or row.state == "waiting" else (row.state, row.reason or "", None)
    try:
        return row.state, row.reason or "", DerivedRecord.from_json(json.loads(zlib.decompress(row.record)))
    except ValueError:  # of an older version of this program
        return "waiting", "", None


RELATED = select(
    adapters,
    repos.c.full_name,
    repos.c.private,
    repos.c.card,
    releases.c.version.label("released_as"),
    releases.c.yanked_at,
    releases.c.yanked_reason,
)


def related(
    registry: Registry, connection: Connection, caller: Caller, *where: ColumnElement[bool]
) -> Iterator[ShownBuild]:
    """The readable builds that meet the conditions, one for each digest and repository, newest first, at most 100."""
    same = (releases.c.repo_id == adapters.c.repo_id) & (releases.c.commit_id == adapters.c.commit_id)
    wanted: Select[Any] = RELATED.join(repos, repos.c.id == adapters.c.repo_id).outerjoin(releases, same)
    found = wanted.where(registry.repos.readable(caller), *where).order_by(adapters.c.created_at.desc()).limit(100)
    seen: set[tuple[str, str]] = set()
    for row in connection.execute(found):
        key = (row.digest, row.full_name)
        if key not in seen:
            seen.add(key)
            yanked = row.yanked_reason or "" if row.yanked_at is not None else None
            version = row.released_as or row.commit_id
            yield ShownBuild(repo=row, version=version, row=row, yanked=yanked, is_release=row.released_as is not None)


def license_of(row: Row[Any]) -> str | None:
    """The licence that the card of a repository states."""
    stated = json.loads(row.card).get("license")
    texts: Sequence[object] = stated if isinstance(stated, list) else [stated]
    return ", ".join(text for text in texts if isinstance(text, str))[:200] or None


def build_page(here: Visit, repo: str, version: str) -> BuildPage:
    """The figures of one build."""
    registry, caller = here.registry, here.caller
    with registry.db.read() as connection:
        build = find_build(registry, connection, caller, repo, version)
        state, reason, record = record_of(connection, build.row)
    base = build.row.base_sha256
    links = [
        Link(text="Lineage", url=f"/lineage/{build.repo.full_name}?{urlencode({'version': build.version})}"),
        Link(text="Compare", url=f"/compare?{urlencode({'a': build.name})}"),
        Link(text="Commit", url=url_of(build.repo.full_name, "commit", build.row.commit_id)),
        Link(text="Files", url=url_of(build.repo.full_name, "tree", build.row.commit_id)),
        *([Link(text="Base", url=f"/base/{base}")] if base else []),
    ]
    page = BuildPage(
        repo=build.repo.full_name,
        version=build.version,
        url=build.url,
        commit=build.row.commit_id,
        digest=f"sha256:{build.row.digest}",
        badges=badges_of(build),
        links=tuple(links),
        state=state,
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
        findings=record.findings,
        engines=engine_lines(record.engines),
    )


def badges_of(build: ShownBuild) -> tuple[Badge, ...]:
    """Whether it was yanked, and its licence."""
    yanked = [Badge(text="yanked", detail=build.yanked, tone="bad")] if build.yanked is not None else []
    name = license_of(build.repo)
    return (*yanked, *([Badge(text="licence", detail=name)] if name else []))


MOST_ANCESTORS: Final = 64
MOST_LISTED: Final = 100


def lineage_page(here: Visit, repo: str, version: str) -> LineagePage:
    """The relatives of one build that the caller may see; those that it names and that are hidden have no address."""
    registry, caller = here.registry, here.caller
    with registry.db.read() as connection:
        build = find_build(registry, connection, caller, repo, version)
        seen = _SeenBuilds(registry, connection, caller)
        direct, above = seen.parents_of(build.row.digest), seen.ancestors_of(build.row.digest)
        return LineagePage(
            repo=build.repo.full_name,
            version=build.version,
            url=build.url,
            parents=tuple(direct),
            children=tuple(seen.children_of(build.row.digest)),
            others=tuple(_others(seen, build)),
            inherited=tuple(one for one in above if one.yanked is not None or one.license),
        )


class _SeenBuilds:
    """The builds of one registry, as one caller may see them in one snapshot."""

    def __init__(self, registry: Registry, connection: Connection, caller: Caller) -> None:
        self._registry, self._connection, self._caller = registry, connection, caller

    def builds(self, *where: ColumnElement[bool]) -> list[ShownBuild]:
        return list(related(self._registry, self._connection, self._caller, *where))

    def parents_of(self, digest: str) -> list[Relative]:
        wanted = select(parents).where(parents.c.digest == digest).order_by(parents.c.position)
        rows = self._connection.execute(wanted.limit(MOST_LISTED)).all()
        usual = "merged from" if len(rows) > 1 else "made from"  # until a worker has read the manifest again
        named = {row.parent for row in rows if row.parent}
        known: dict[str, ShownBuild] = {}
        for build in self.builds(adapters.c.digest.in_(named)) if named else ():
            known.setdefault(build.row.digest, build)
        return [self._parent(row, row.relation or usual, known.get(row.parent)) for row in rows]

    def _parent(self, row: Row[Any], relation: str, build: ShownBuild | None) -> Relative:
        found = relative(relation, build) if build is not None else None
        return Relative(
            relation=relation,
            name=found.name if found else row.spec[:200],
            url=found.url if found else None,
            weight=row.weight,
            digest=row.parent,
            license=found.license if found else None,
            yanked=found.yanked if found else None,
        )

    def ancestors_of(self, digest: str) -> list[Relative]:
        """All that the build was made from, however far up, each once."""
        found: dict[str, Relative] = {}
        waiting = [digest]
        while waiting and len(found) < MOST_ANCESTORS:
            for one in self.parents_of(waiting.pop()):
                if one.digest is not None and one.digest != digest and one.digest not in found:
                    found[one.digest] = one
                    waiting.append(one.digest)
        return list(found.values())

    def alike(self, row: Row[Any]) -> list[Relative]:
        """The newest builds for the same base whose update has nearly the same direction, by their sketches."""
        comes = is_seen(self._connection, row.created_at)
        near = (self._registry.sketches.near(self._connection, row.digest, FLOOR) if comes else None) or {}
        others = (adapters.c.base_sha256 == row.base_sha256) & adapters.c.is_listed & SEEN
        others &= adapters.c.weights_sha256 != row.weights_sha256
        builds = [build for some in slices(list(near)) for build in self.builds(others, adapters.c.digest.in_(some))]
        return [
            relative(f"nearly the {'same' if cosine > 0 else 'opposite'} update: cosine about {cosine:.2f}", one)
            for one in builds
            if (cosine := near[one.row.digest])
        ][:MOST_LISTED]

    def children_of(self, digest: str) -> list[Relative]:
        rows = self._connection.execute(select(parents).where(parents.c.parent == digest).limit(MOST_LISTED)).all()
        weights = {row.digest: row.weight for row in rows}
        found = self.builds(adapters.c.digest.in_(list(weights))) if weights else []
        return [relative("made from it", build, weights[build.row.digest]) for build in found]


def _others(seen: _SeenBuilds, build: ShownBuild) -> list[Relative]:
    row, found = build.row, []
    mine = (adapters.c.repo_id == row.repo_id) & (adapters.c.commit_id == row.commit_id)
    if row.weights_sha256:
        holders = select(places.c.repo_id).where(places.c.sha256 == row.weights_sha256)
        same = seen.builds(adapters.c.repo_id.in_(holders), adapters.c.weights_sha256 == row.weights_sha256, ~mine)
        found += [relative("same weights", one) for one in same]
    if row.base_sha256:
        found += seen.alike(row)
        like = [(adapters.c.name, row.name, "name"), (adapters.c.task, row.task, "task")]
        elsewhere = (adapters.c.base_sha256 != row.base_sha256) & releases.c.version.is_not(None)
        for column, value, what in like if row.name else ():
            same = seen.builds(column == value, elsewhere, repos.c.namespace == build.repo.namespace) if value else []
            found += [relative(f"same {what} on another base", one) for one in same]
    return list({one.url: one for one in reversed(found)}.values())[::-1]


def relative(relation: str, build: ShownBuild, weight: float | None = None) -> Relative:
    """A build as a relative of another."""
    return Relative(
        relation=relation,
        name=build.name,
        url=build.url,
        weight=weight,
        digest=build.row.digest,
        license=license_of(build.repo),
        yanked=build.yanked,
    )


MOST_POINTS: Final = 150
MOST_READ: Final = 1000
"""Of the newest adapters for a base, so many are looked at for the map."""
LISTED: Final = 20
MOST_NAMES: Final = 20


def base_page(here: Visit, fingerprint: str) -> BasePage:
    """A base that some adapter of the caller's names.

    Raises:
        HttpRefusal: 404 for a malformed digest, or one without an adapter that the caller may see.
    """
    registry, caller = here.registry, here.caller
    with registry.db.read() as connection:
        visible = registry.repos.visible(caller)
        sha256 = _whole(connection, fingerprint, visible)
        ours = adapters.c.is_listed & (adapters.c.base_sha256 == sha256)
        mine = ours & visible
        joined = SHOWN.join(repos, repos.c.id == adapters.c.repo_id).where(mine)
        newest = joined.order_by(adapters.c.created_at.desc()).limit(LISTED)
        rows = list(connection.execute(newest))
        unseen = exists().where(repos.c.id == adapters.c.repo_id, registry.repos.hidden(caller))
        named = select(adapters.c.base_model, func.count()).where(ours, ~unseen)
        counts = connection.execute(named.group_by(adapters.c.base_model).order_by(func.count().desc())).all()
        names = tuple(row.base_model for row in counts if row.base_model)[:MOST_NAMES]
        points = _points(connection, mine & registry.repos.readable(caller))
        listed = lines(connection, rows)
        related = tuple(_related(connection, sha256, names, visible))
    wanted = urlencode({"base": sha256})
    return BasePage(
        sha256=sha256,
        names=names,
        count=sum(row[1] for row in counts),
        related=related,
        points=_placed(registry, points),
        adapters=tuple(listed),
        search_url=f"/?{wanted}",
        feed_url=f"/feed?{wanted}",
    )


def _whole(connection: Connection, fingerprint: str, visible: ColumnElement[bool]) -> str:
    if not BASE_DIGEST.fullmatch(fingerprint):
        raise HttpRefusal(404, "NotFound", f"base `{shown(fingerprint)}`: expected 8 to 64 lower-case hex digits")
    begin = fingerprint.removeprefix("sha256:")
    same = (adapters.c.base_sha256 >= begin) & (adapters.c.base_sha256 < f"{begin}g")
    wanted = select(adapters.c.base_sha256).join(repos, repos.c.id == adapters.c.repo_id)
    wanted = wanted.where(same, adapters.c.is_listed, visible).order_by(adapters.c.base_sha256)
    found = connection.scalar(wanted.limit(1))
    if found is None:
        raise HttpRefusal(404, "NotFound", "no adapter here is for this base")
    return str(found)


def _points(connection: Connection, mine: ColumnElement[bool]) -> Sequence[Row[Any]]:
    newest = (
        select(repos.c.full_name, adapters.c.digest, adapters.c.created_at)
        .join_from(adapters, repos, repos.c.id == adapters.c.repo_id)
        .where(mine, SEEN)
        .order_by(adapters.c.created_at.desc())
        .limit(MOST_READ)
        .subquery()
    )
    wanted: Select[Any] = (
        select(newest.c.full_name, newest.c.digest, sketches.c.key_id, sketches.c.sketch)
        .join_from(newest, sketches, sketches.c.digest == newest.c.digest)
        .order_by(newest.c.created_at.desc())
        .limit(MOST_POINTS)
    )
    rows = list(connection.execute(wanted))
    return [row for row in rows if row.key_id == rows[0].key_id]  # two keys, while a worker makes them all again


def _placed(registry: Registry, points: Sequence[Row[Any]]) -> tuple[MapPoint, ...]:
    packed = [row.sketch for row in points]
    if not packed:
        return ()

    def make() -> tuple[list[tuple[float, float]], list[tuple[int, float]]]:
        from adapterhub.formats.derived.likeness import nearest, placed

        return placed(packed), nearest(packed)

    places, near = registry.once.result("map", tuple(packed), make)
    return tuple(
        MapPoint(
            name=row.full_name,
            url=f"/{row.full_name}",
            x=x,
            y=y,
            nearest=points[other].full_name if len(points) > 1 else "",
            cosine=round(cosine, DIGITS) if len(points) > 1 else None,
        )
        for row, (x, y), (other, cosine) in zip(points, places, near, strict=True)
    )


def _related(
    connection: Connection, sha256: str, names: Sequence[str], visible: ColumnElement[bool]
) -> Sequence[RelatedBase]:
    """Other bases with the same tensors or files, or with one of the names."""
    facts = (adapters.c.base_tensors, adapters.c.base_files)
    mine = select(*facts).join(repos, repos.c.id == adapters.c.repo_id)
    mine = mine.where(adapters.c.is_listed, adapters.c.base_sha256 == sha256, visible)
    known = connection.execute(mine.limit(1)).one()
    columns = (adapters.c.base_sha256, adapters.c.base_tensors, adapters.c.base_model)
    # both sides of the base in the order of an index: the database passes over its own adapters
    same = [
        (column == value) & side
        for column, values in ((adapters.c.base_tensors, known[:1]), (adapters.c.base_model, names))
        for value in values
        for side in (adapters.c.base_sha256 < sha256, adapters.c.base_sha256 > sha256)
    ]
    seen = select(*columns).join(repos, repos.c.id == adapters.c.repo_id)
    # apart from the limit, for which PostgreSQL would go through all adapters in the order of the groups
    other = seen.where(or_(*same), adapters.c.is_listed, visible).cte("other").prefix_with("MATERIALIZED")
    counted = select(*other.c, func.count().label("adapters")).group_by(*other.c).order_by(func.count().desc())
    rows = connection.execute(counted.limit(LISTED)).all()
    return [
        RelatedBase(
            label=row.base_model or row.base_sha256[:12],
            url=f"/base/{row.base_sha256}",
            relation="same tensors in other files"
            if row.base_tensors == known.base_tensors
            else "same name, other weights",
            adapters=row.adapters,
        )
        for row in rows
    ]


TIME_S: Final = 20.0
_SPEC: Final = "expected NAMESPACE/NAME, NAMESPACE/NAME==VERSION or NAMESPACE/NAME@REVISION"


def compare_page(here: Visit, asked: PageQuery) -> ComparePage:
    """The comparison that the query asks for; the form alone without both builds.

    Raises:
        HttpRefusal: 503 while another comparison of these two runs, or many others.
    """
    registry, caller = here.registry, here.caller
    named = [asked.query.get(key, "").strip() for key in "ab"]
    weights = [weight_of(asked.query.get(key, "")) for key in ("wa", "wb")]
    if not all(named):
        return ComparePage(a=named[0], b=named[1])
    with registry.db.read() as connection:
        builds = [find_build(registry, connection, caller, *_parsed(name)) for name in named]
        files = [files_of(connection, build.row.digest) for build in builds]
        trees = [commits.tree_of(connection, build.repo.id, build.row.commit_id) for build in builds]
        configs = [config_of(registry, tree.find(CONFIG_FILE)) for tree in trees]
        contracts = [_contract(registry, tree) for tree in trees]
        records = [record_of(connection, build.row)[2] for build in builds]
    page = ComparePage(
        a=named[0],
        b=named[1],
        sides=tuple(
            Compared(
                name=build.name,
                url=build.url,
                weight=weight,
                norm=record.norm if record else None,
                contract=contract,
                badges=badges_of(build),
            )
            for build, weight, record, contract in zip(builds, weights, records, contracts, strict=True)
        ),
        config=tuple(changed(configs[0], configs[1])),
    )

    def make() -> ComparePage:
        try:
            return compared(page, _comparison(registry, files, weights))
        except AdapterHubError as error:
            reason = f"{error.message}; `adapt compare` on your own machine says more"
            return replace(page, reason=reason)

    digests = tuple(build.row.digest for build in builds)
    made: ComparePage = registry.once.result(digests, tuple(weights), make)
    # another reader may have other names for the same builds, so the kept page holds none
    named_page = replace(made, a=page.a, b=page.b, sides=page.sides, config=page.config)
    return replace(named_page, forecast=with_commands(made.forecast, page.sides))


def _parsed(name: str) -> tuple[str, str]:
    repo, version = (*re.split("==|@", name, maxsplit=1), "")[:2]
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise bad_request(f"build `{shown(name)}`: {_SPEC}")
    return repo, version


def _comparison(registry: Registry, files: list[dict[str, str]], weights: list[float]) -> Comparison:
    from adapterhub.formats.derived.comparison import Weighted, compare_two
    from adapterhub.formats.derived.reading import AdapterUpdates

    pair = []
    for label, mine, weight in zip(("first", "second"), files, weights, strict=True):
        opened = open_build(mine, registry.blobs)
        updates = AdapterUpdates(opened.config, opened.file, opened.read)
        pair.append(Weighted(label=label, weight=weight, updates=updates))
    return compare_two(pair, time_s=TIME_S)


def _contract(registry: Registry, tree: FileTree) -> tuple[str, ...]:
    """What the contract of a build records, in a few words."""
    if tree.find(CONTRACT_FILE) is None:
        return ()
    contract = contract_of(registry, tree)
    if contract is None:
        return ("its contract cannot be read",)
    return contract_words(contract)
