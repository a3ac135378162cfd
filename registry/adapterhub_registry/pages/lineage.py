"""The relatives of a build: what it was made from, what was made from it, its copies, and its like on other bases."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, Row, select
from sqlalchemy.engine import Connection

from adapterhub.pages.values.weights import LineagePage, Relative
from adapterhub_registry.access.seen import SEEN, is_seen
from adapterhub_registry.access.tokens import Caller
from adapterhub_registry.api.context import Registry
from adapterhub_registry.database.db import adapters, places, releases, repos, slices
from adapterhub_registry.database.derived_tables import parents
from adapterhub_registry.derived.alike import FLOOR
from adapterhub_registry.pages.builds import Build, find_build, license_of, related
from adapterhub_registry.pages.visit import Visit

MOST_ANCESTORS: Final = 64
MOST_LISTED: Final = 100


def lineage_page(here: Visit, repo: str, version: str) -> LineagePage:
    """The relatives of one build that the caller may see; those that it names and that are hidden have no address."""
    registry, caller = here.registry, here.caller
    with registry.db.read() as connection:
        build = find_build(registry, connection, caller, repo, version)
        seen = _Seen(registry, connection, caller)
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


class _Seen:
    """The builds of one registry, as one caller may see them in one snapshot."""

    def __init__(self, registry: Registry, connection: Connection, caller: Caller) -> None:
        self._registry, self._connection, self._caller = registry, connection, caller

    def builds(self, *where: ColumnElement[bool]) -> list[Build]:
        return list(related(self._registry, self._connection, self._caller, *where))

    def parents_of(self, digest: str) -> list[Relative]:
        wanted = select(parents).where(parents.c.digest == digest).order_by(parents.c.position)
        rows = self._connection.execute(wanted.limit(MOST_LISTED)).all()
        usual = "merged from" if len(rows) > 1 else "made from"  # until a worker has read the manifest again
        named = {row.parent for row in rows if row.parent}
        known: dict[str, Build] = {}
        for build in self.builds(adapters.c.digest.in_(named)) if named else ():
            known.setdefault(build.row.digest, build)
        return [self._parent(row, row.relation or usual, known.get(row.parent)) for row in rows]

    def _parent(self, row: Row[Any], relation: str, build: Build | None) -> Relative:
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


def _others(seen: _Seen, build: Build) -> list[Relative]:
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


def relative(relation: str, build: Build, weight: float | None = None) -> Relative:
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
