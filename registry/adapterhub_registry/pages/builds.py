"""Finds the builds that a page is about, and their records, as far as the caller may read them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import ColumnElement, Row, Select, select
from sqlalchemy.engine import Connection

from adapterhub.formats.derived.record import DerivedRecord
from adapterhub.pages.figures import engine_lines, heats_of, lines_of, spectra_of
from adapterhub.pages.values.common import Badge, Link
from adapterhub.pages.values.weights import BuildPage
from adapterhub_registry.access.seen import is_seen
from adapterhub_registry.access.tokens import Caller
from adapterhub_registry.api.context import Registry
from adapterhub_registry.database.db import adapters, releases, repos
from adapterhub_registry.database.derived_tables import derived
from adapterhub_registry.errors import Refusal
from adapterhub_registry.names import known_repo_id
from adapterhub_registry.pages.files import url_of
from adapterhub_registry.pages.visit import Visit
from adapterhub_registry.repos import adapter_search, commits


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
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


def find_build(registry: Registry, connection: Connection, caller: Caller, repo: str, version: str) -> Build:
    """A build by its version or a revision; an empty one is the newest version, if possible one that is not yanked.

    Without any version, it is the head of `main`.

    Raises:
        Refusal: 404 unless the caller may read the files, or where there is no adapter; 403 for a gated one.
    """
    namespace, _, name = repo.partition("/")
    found = registry.repos.find_files(connection, caller, known_repo_id(namespace, name))
    rows = adapter_search.versions_of(connection, found.id)
    wanted = version.removeprefix("v")
    rows = rows if version else sorted(rows, key=lambda r: r.yanked_at is not None)
    chosen = next((r for r in rows if r.released_as == wanted or not version), None)
    if chosen is not None:
        yanked = chosen.yanked_reason or "" if chosen.yanked_at is not None else None
        return Build(repo=found, version=chosen.released_as, row=chosen, yanked=yanked)
    commit_id = commits.find_commit(connection, found, version or "main")
    mine = select(adapters).where(adapters.c.repo_id == found.id, adapters.c.commit_id == commit_id)
    row = connection.execute(mine).one_or_none()
    if row is None:
        raise Refusal(404, "EntryNotFound", "no adapter is indexed at this revision")
    return Build(repo=found, version=version or "main", row=row, is_release=False)


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


def related(registry: Registry, connection: Connection, caller: Caller, *where: ColumnElement[bool]) -> Iterator[Build]:
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
            yield Build(repo=row, version=version, row=row, yanked=yanked, is_release=row.released_as is not None)


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


def badges_of(build: Build) -> tuple[Badge, ...]:
    """Whether it was yanked, and its licence."""
    yanked = [Badge(text="yanked", detail=build.yanked, tone="bad")] if build.yanked is not None else []
    name = license_of(build.repo)
    return (*yanked, *([Badge(text="licence", detail=name)] if name else []))
