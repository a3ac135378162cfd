"""Pages about builds: the figures of one, builds beside each other, relatives, and all of a base."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlencode

from sqlalchemy import ColumnElement, Integer, Row, Select, String, bindparam, select, tuple_
from sqlalchemy.engine import Connection

from adapterhub.core.digests import hex_of
from adapterhub.core.errors import shown
from adapterhub.formats.manifest import WEIGHTS_FILE
from adapterhub.pages.figures import (
    FoundOutcome,
    outcome_detail,
    outcome_table,
    with_figures,
)
from adapterhub.pages.lists import BasePage
from adapterhub.pages.page import PageQuery
from adapterhub.pages.values import (
    MOST_COUNTED,
    Badge,
    BuildPage,
    LineagePage,
    Link,
    MapPoint,
    OutcomeTable,
    RelatedBase,
    Relative,
)
from adapterhub_registry.access.callers import Caller
from adapterhub_registry.access.rights import SEEN, is_seen
from adapterhub_registry.api.context import Registry
from adapterhub_registry.database.db import adapters, parents, releases, repos, sketches, slices
from adapterhub_registry.database.prepared import PreparedSql
from adapterhub_registry.database.search_tables import among
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.pages.files import repo_of, tabs_of
from adapterhub_registry.pages.head import Top
from adapterhub_registry.pages.search import lines
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.repos import commits
from adapterhub_registry.repos.adapters import RELEASED_BUILD, newest_version, version_in, versions_of
from adapterhub_registry.repos.bases import BASE_DIGEST, counted_names, related_base, related_bases
from adapterhub_registry.repos.listing import of_namespace
from adapterhub_registry.repos.search import SHOWN, few_of
from adapterhub_registry.testing import results_for_base
from adapterhub_registry.worker import DIGITS, FLOOR


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
    """Return a build by its version or a revision.

    An empty one is the newest version, if possible one that is not yanked.

    Without any version, it is the head of `main`.

    Raises:
        HttpRefusal: 404 unless the caller may read the files, or where there is no adapter; 403 for a gated one.
    """
    found = repo_of(registry, connection, caller, repo, files=True)
    if version:
        chosen = version_in(connection, found.id, version.removeprefix("v"))
    else:
        chosen = newest_version(connection, found.id)
    if chosen is not None:
        yanked = chosen.yanked_reason or "" if chosen.yanked_at is not None else None
        return ShownBuild(repo=found, version=chosen.released_as, row=chosen, yanked=yanked)
    commit_id = commits.find_commit(connection, found, version or "main")
    mine = select(adapters).where(adapters.c.repo_id == found.id, adapters.c.commit_id == commit_id)
    row = connection.execute(mine).one_or_none()
    if row is None:
        raise HttpRefusal(404, "EntryNotFound", "no adapter is indexed at this revision; choose another revision")
    return ShownBuild(repo=found, version=version or "main", row=row, is_release=False)


Relation = Literal["digests", "weights", "alike", "name", "task", "name among", "task among", "newest", "repo", "base"]
"""What builds have in common: which condition `related` asks."""


def related(
    registry: Registry, connection: Connection, caller: Caller, by: Relation, *, most: int, **given: object
) -> Iterator[ShownBuild]:
    """Yield readable builds with a relation to the values `given`, one per digest and repository, newest first."""
    seen: set[tuple[str, str]] = set()
    for row in _related_by(by, registry.repos.readable(caller)).rows(connection, most=most, **given):
        key = (row.digest, row.full_name)
        if key not in seen:
            seen.add(key)
            yanked = row.yanked_reason or "" if row.yanked_at is not None else None
            version = row.released_as or row.commit_id
            yield ShownBuild(repo=row, version=version, row=row, yanked=yanked, is_release=row.released_as is not None)


@lru_cache(maxsize=256)
def _related_by(by: Relation, readable: ColumnElement[bool]) -> PreparedSql:
    build = adapters.c
    columns = (build.digest, build.commit_id, repos.c.full_name, repos.c.card)
    of_release = (releases.c.version.label("released_as"), releases.c.yanked_at, releases.c.yanked_reason)
    wanted = select(*columns, *of_release).join_from(adapters, repos, repos.c.id == build.repo_id)
    wanted = wanted.outerjoin(releases, RELEASED_BUILD).where(readable, *_common(by))
    return PreparedSql(wanted.order_by(build.created_at.desc()).limit(bindparam("most", type_=Integer)))


def _common(by: Relation) -> Iterator[ColumnElement[bool]]:
    build, is_release = adapters.c, releases.c.version.is_not(None)
    if by in ("digests", "alike"):
        yield among(build.digest, "digests")
    if by == "weights":
        yield build.weights_sha256 == bindparam("weights")
        yield ~((build.repo_id == bindparam("repo")) & (build.commit_id == bindparam("commit")))
    if by == "alike":
        yield build.is_listed & SEEN & (build.base_sha256 == bindparam("base"))
        yield build.weights_sha256 != bindparam("weights")
    if by.startswith(("name", "task")):
        yield (build.name if by.startswith("name") else build.task) == bindparam("value")
        yield (build.base_sha256 != bindparam("base")) & is_release & build.is_listed
        yield among(build.repo_id, "repos") if by.endswith("among") else repos.c.namespace == bindparam("namespace")
    if by in ("newest", "base"):
        yield build.is_listed
    if by == "base":
        yield build.base_sha256 == bindparam("base")
    if by == "repo":
        yield is_release & (build.repo_id == bindparam("repo"))


def license_of(row: Row[Any]) -> str | None:
    """Return the licence that the card of a repository states."""
    stated = json.loads(row.card).get("license")
    texts: Sequence[object] = stated if isinstance(stated, list) else [stated]
    return ", ".join(text for text in texts if isinstance(text, str))[:200] or None


def build_page(here: Visit, asked: PageQuery) -> BuildPage:
    """Return the figures of one build."""
    registry, caller = here.registry, here.caller
    with registry.db.read() as connection:
        build = find_build(registry, connection, caller, asked.repo, asked.path["version"])
        row, repo = build.row, build.repo
        tree = commits.tree_of(connection, repo.id, row.commit_id)
        newest = newest_version(connection, repo.id)
        top = Top(
            here=here,
            connection=connection,
            repo=repo,
            facts=row,
            newest=newest,
            tree=tree,
            reads=True,
            name=build.version,
        )
        before = None
        if build.is_release:
            before = next(iter(versions_of(connection, repo.id, limit=1, below=build.version)), None)
        head = top.head("weights")
        weights = tree.find(WEIGHTS_FILE)
    full = repo.full_name
    both = {"a": f"{full}=={before.released_as}", "b": build.name} if before is not None else {}
    page = BuildPage(
        repo=full,
        version=build.version,
        url=build.url,
        commit=row.commit_id,
        head=head,
        digests=tuple(digests_of(row)),
        state=top.figures.state,
        reason=top.figures.reason,
        before=None if before is None else Link(text=before.released_as, url=f"/{full}/{before.released_as}"),
        changes=tuple(_changes(before, row)) if before is not None else (),
        compare_url=f"/compare?{urlencode(both)}" if both else "",
        size=None if weights is None else weights.size,
        rank=row.rank,
    )
    record = top.figures.record
    return page if record is None else with_figures(page, record)


def _changes(before: Row[Any], after: Row[Any]) -> Iterator[str]:
    """Yield the differences of two versions, a sentence for each."""
    values = (
        ("Rank", "rank"),
        ("Alpha", "alpha"),
        ("Method", "peft_type"),
        ("Base", "base_model"),
        ("Task", "task"),
        ("Precision", "dtype"),
        ("Parameters", "parameters"),
    )
    for label, column in values:
        old, new = getattr(before, column), getattr(after, column)
        if old != new:
            yield f"{label} {_said(new)}, was {_said(old)}."
    old, new = (set(json.loads(row.target_modules)) for row in (before, after))
    for names, what in ((new - old, "now trained, too"), (old - new, "no longer trained")):
        if names:
            yield f"{', '.join(sorted(names)[:12])}: {what}."
    if before.base_sha256 != after.base_sha256:
        yield "Its base has other weights."
    if before.weights_sha256 == after.weights_sha256:
        yield "The same weights as before."


def _said(value: object) -> str:
    if value is None:
        return "not stated"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def digests_of(row: Row[Any]) -> Iterator[tuple[str, str]]:
    """Yield the digests of a build, a row of `adapters`."""
    yield "Build", f"sha256:{row.digest}"
    if row.weights_sha256:
        yield "Weights", f"sha256:{row.weights_sha256}"
    if row.base_sha256:
        yield "Base", f"sha256:{row.base_sha256}"


def badges_of(build: ShownBuild) -> tuple[Badge, ...]:
    """Return whether it was yanked, and its licence."""
    yanked = [Badge(text="yanked", detail=build.yanked, tone="bad")] if build.yanked is not None else []
    name = license_of(build.repo)
    return (*yanked, *([Badge(text="licence", detail=name)] if name else []))


MOST_ANCESTORS: Final = 64
MOST_LISTED: Final = 100
MOST_ELSEWHERE: Final = 25
"""Of one name or task, so many builds on other bases are listed."""


def lineage_page(here: Visit, asked: PageQuery) -> LineagePage:
    """Return the relatives of one build that the caller may see.

    Those that it names and that are hidden have no address.
    """
    registry, caller = here.registry, here.caller
    with registry.db.read() as connection:
        build = find_build(registry, connection, caller, asked.repo, asked.query.get("version", ""))
        seen = SeenBuilds(registry, connection, caller)
        direct = seen.parents_of(build.row.digest)
        above = seen.ancestors_of(build.row.digest, direct)
        return LineagePage(
            repo=build.repo.full_name,
            version=build.version,
            url=build.url,
            parents=tuple(direct),
            children=tuple(seen.children_of(build.row.digest)),
            others=tuple(_others(seen, build)),
            inherited=tuple(one for one in above if one.yanked is not None or one.license),
            tabs=tabs_of(
                here,
                build.repo.full_name,
                "lineage",
                build=build.version,
                revision=build.row.tag if build.is_release else build.version,
                versions=None if build.is_release else 0,
            ),
        )


class SeenBuilds:
    """The builds of one registry, as one caller may see them in one snapshot."""

    def __init__(self, registry: Registry, connection: Connection, caller: Caller) -> None:
        self._registry, self._connection, self._caller = registry, connection, caller

    def builds(self, by: Relation, most: int = MOST_LISTED, **given: object) -> list[ShownBuild]:
        """Those with a relation, as `related`."""
        return list(related(self._registry, self._connection, self._caller, by, most=most, **given))

    def parents_of(self, digest: str) -> list[Relative]:
        """Return the parents of the build; hidden ones have no address."""
        rows = _PARENTS.rows(self._connection, digest=digest)
        usual = "merged from" if len(rows) > 1 else "made from"  # until a worker has read the manifest again
        named = sorted({row.parent for row in rows if row.parent})
        known: dict[str, ShownBuild] = {}
        for build in self.builds("digests", digests=json.dumps(named)) if named else ():
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

    def ancestors_of(self, digest: str, direct: Sequence[Relative]) -> list[Relative]:
        """All that the build was made from, however far up, each once; `direct` are its parents."""
        found: dict[str, Relative] = {}
        waiting, some = list[str](), direct
        while some or (waiting and len(found) < MOST_ANCESTORS):
            for one in some or self.parents_of(waiting.pop()):
                if one.digest is not None and one.digest != digest and one.digest not in found:
                    found[one.digest] = one
                    waiting.append(one.digest)
            some = ()
        return list(found.values())

    def alike(self, row: Row[Any]) -> list[Relative]:
        """Return the newest builds for the same base whose update has nearly the same direction, by their sketches."""
        comes = is_seen(self._connection, row.created_at)
        near = (self._registry.sketches.near(self._connection, row.digest, FLOOR) if comes else None) or {}
        mine = {"base": row.base_sha256, "weights": row.weights_sha256}
        builds = [one for some in slices(list(near)) for one in self.builds("alike", digests=json.dumps(some), **mine)]
        return [
            relative(f"nearly the {'same' if cosine > 0 else 'opposite'} update: cosine about {cosine:.2f}", one)
            for one in builds
            if (cosine := near[one.row.digest])
        ][:MOST_LISTED]

    def elsewhere(self, by: Literal["name", "task"], row: Row[Any], namespace: str) -> list[ShownBuild]:
        """Return the newest of its name or task for other bases: by its repositories, where a namespace has few."""
        found = of_namespace(namespace).read(self._connection, few_of(self._connection))
        given = {"value": getattr(row, by), "base": row.base_sha256}
        if found is None:
            return self.builds(by, MOST_ELSEWHERE, namespace=namespace, **given)
        return self.builds(f"{by} among", MOST_ELSEWHERE, repos=found.numbers, **given)  # type: ignore[arg-type]

    def children_of(self, digest: str) -> list[Relative]:
        """Return the builds made from the build."""
        rows = _CHILDREN.rows(self._connection, digest=digest)
        weights = {row.digest: row.weight for row in rows}
        found = self.builds("digests", digests=json.dumps(list(weights))) if weights else []
        return [relative("made from it", build, weights[build.row.digest]) for build in found]


_PARENTS: Final = PreparedSql(
    select(parents).where(parents.c.digest == bindparam("digest")).order_by(parents.c.position).limit(MOST_LISTED)
)
_CHILDREN: Final = PreparedSql(select(parents).where(parents.c.parent == bindparam("digest")).limit(MOST_LISTED))


def _others(seen: SeenBuilds, build: ShownBuild) -> list[Relative]:
    row, found = build.row, []
    if row.weights_sha256:
        same = seen.builds("weights", weights=row.weights_sha256, repo=row.repo_id, commit=row.commit_id)
        found += [relative("same weights", one) for one in same]
    if row.base_sha256:
        found += seen.alike(row)
        for by in ("name", "task") if row.name else ():
            same = seen.elsewhere(by, row, build.repo.namespace) if getattr(row, by) else []
            found += [relative(f"same {by} on another base", one) for one in same]
    return list({one.url: one for one in reversed(found)}.values())[::-1]


def relative(relation: str, build: ShownBuild, weight: float | None = None) -> Relative:
    """Return a build as a relative of another."""
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
MOST_READ: Final = 300
"""Of the newest adapters for a base, so many are looked at for the map."""
LISTED: Final = 20
MOST_NAMES: Final = 20


def base_page(here: Visit, asked: PageQuery) -> BasePage:
    """Return a base that some adapter of the caller's names.

    Raises:
        HttpRefusal: 404 for a malformed digest, or one without an adapter that the caller may see.
    """
    registry, caller = here.registry, here.caller
    with registry.db.read() as connection:
        visible, readable = registry.repos.visible(caller), registry.repos.readable(caller)
        sha256, ask = _whole(connection, asked.path["fingerprint"], visible), _asking(visible, readable)
        rows = ask.newest.rows(connection, base=sha256)
        counts = counted_names(connection, sha256, visible)
        names = tuple(name for name, _ in counts if name)[:MOST_NAMES]
        points = _of_one_key(ask.points.rows(connection, base=sha256))
        outcomes = _outcomes(connection, sha256, visible, readable)
        listed = lines(here, connection, rows)
        kin = tuple(related_bases(connection, sha256, visible, readable))
        ((tensors,),) = ask.tensors.tuples(connection, base=sha256)
        others = _related(connection, sha256, tensors, names, visible)
        related = kin + tuple(one for one in others if one.url not in {each.url for each in kin})
    wanted = urlencode({"base": sha256})
    return BasePage(
        sha256=sha256,
        names=names,
        count=(count := sum(number for _, number in counts)),
        more=count == MOST_COUNTED,
        related=related,
        points=_placed(registry, points),
        outcomes=outcomes,
        adapters=tuple(listed),
        search_url=f"/?{wanted}",
        feed_url=f"/feed?{wanted}",
    )


def _whole(connection: Connection, fingerprint: str, visible: ColumnElement[bool]) -> str:
    if not BASE_DIGEST.fullmatch(fingerprint):
        raise HttpRefusal(404, "NotFound", f"base `{shown(fingerprint)}`: expected 8 to 64 lower-case hex digits")
    begin = fingerprint.removeprefix("sha256:")
    found = _next_base("base_sha256", visible).tuples(connection, last=begin, past=f"{begin}g")
    if not found:
        raise HttpRefusal(404, "NotFound", "no adapter here is for this base; search without a base")
    return str(found[0][0])


class _Asking(NamedTuple):
    """What the page of a base asks, with the parameter `base`, for callers that see and read some repositories."""

    newest: PreparedSql
    points: PreparedSql
    tensors: PreparedSql


@lru_cache(maxsize=64)
def _asking(visible: ColumnElement[bool], readable: ColumnElement[bool]) -> _Asking:
    mine = adapters.c.is_listed & (adapters.c.base_sha256 == bindparam("base"))
    joined = SHOWN.join(repos, repos.c.id == adapters.c.repo_id).where(mine, visible)
    tensors = select(adapters.c.base_tensors).join(repos, repos.c.id == adapters.c.repo_id).where(mine, visible)
    return _Asking(
        newest=PreparedSql(joined.order_by(adapters.c.created_at.desc()).limit(LISTED)),
        points=PreparedSql(_points(mine & visible & readable)),
        tensors=PreparedSql(tensors.limit(1)),
    )


@lru_cache(maxsize=256)
def _next_base(column: str, visible: ColumnElement[bool], dialect: str = "") -> PreparedSql:
    """Return the first base from the parameter `last` to `past`.

    By another column, one behind `last` or of a later value.
    """
    seen = select(adapters.c.base_sha256).join(repos, repos.c.id == adapters.c.repo_id)
    seen = seen.where(adapters.c.is_listed, visible).order_by(adapters.c.base_sha256).limit(1)
    digest, last = adapters.c.base_sha256, bindparam("last", type_=String)
    if column == "base_sha256":
        return PreparedSql(seen.where(digest >= last, digest < bindparam("past")))
    seen, of, value = seen.add_columns(adapters.c[column]), adapters.c[column], bindparam("value", type_=String)
    if dialect != "postgresql":
        return PreparedSql(seen.where(of == value, digest > last))
    # by both columns: it would rather go through all bases in their order
    return PreparedSql(seen.where(tuple_(of, digest) > tuple_(value, last)).order_by(None).order_by(of, digest))


def _outcomes(
    connection: Connection, sha256: str, visible: ColumnElement[bool], readable: ColumnElement[bool]
) -> OutcomeTable | None:
    """Return the outcomes of a base's builds, by keys of their namespaces, on this base and on others."""
    found = results_for_base(connection, sha256, readable)
    if not found:
        return None
    builds = list(dict.fromkeys((one.full_name, one.version, f"/{one.full_name}") for one in found))
    places = {build: at for at, build in enumerate(builds)}

    def links(bases: Sequence[str]) -> list[Link]:
        here = select(adapters.c.base_model).join(repos, repos.c.id == adapters.c.repo_id)
        here = here.where(adapters.c.is_listed, adapters.c.base_sha256 == bindparam("base"), visible).limit(1)
        named = [connection.execute(here, {"base": base}).one_or_none() for base in bases]
        return [
            Link(text=(row and row.base_model) or base[:12], url=f"/base/{base}" if row else "")
            for base, row in zip(bases, named, strict=True)
        ]

    outcomes = (
        FoundOutcome(
            places[one.full_name, one.version, f"/{one.full_name}"],
            hex_of(one.said.base),
            one.said.outcome,
            one.said.time,
            outcome_detail(one.said.drift, one.said.load_in or one.said.dtype, one.said.time, f"by {one.signer}"),
        )
        for one in found
    )
    return outcome_table(builds, outcomes, links)


def _points(mine: ColumnElement[bool]) -> Select[Any]:
    newest = (
        select(repos.c.full_name, adapters.c.digest, adapters.c.created_at)
        .join_from(adapters, repos, repos.c.id == adapters.c.repo_id)
        .where(mine, SEEN)
        .order_by(adapters.c.created_at.desc())
        .limit(MOST_READ)
        .subquery()
    )
    return (
        select(newest.c.full_name, newest.c.digest, sketches.c.key_id, sketches.c.sketch)
        .join_from(newest, sketches, sketches.c.digest == newest.c.digest)
        .order_by(newest.c.created_at.desc())
        .limit(MOST_POINTS)
    )


def _of_one_key(rows: Sequence[Row[Any]]) -> Sequence[Row[Any]]:
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
    connection: Connection, sha256: str, tensors: str | None, names: Sequence[str], visible: ColumnElement[bool]
) -> Sequence[RelatedBase]:
    """Other bases with the same tensors or files, or with one of the names."""
    same = [("base_tensors", tensors, "same tensors in other files")]
    same += [("base_model", name, "same name, other weights") for name in names]
    found: dict[str, str] = {sha256: ""}
    for column, value, relation in same:
        last: str | None = ""
        # from one base to the next in the order of an index, past all adapters of each
        while value and last is not None and len(found) <= LISTED:
            after = _next_base(column, visible, connection.dialect.name)
            rows = after.tuples(connection, value=value, last=last)
            last = rows[0][0] if rows and rows[0][1] == value else None
            if last is not None:
                found.setdefault(last, relation)
    del found[sha256]
    others = (related_base(connection, one, relation, visible) for one, relation in found.items())
    return sorted(others, key=lambda one: -one.adapters)
