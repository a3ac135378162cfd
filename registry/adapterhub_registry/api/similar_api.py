"""The route for builds whose updates are alike. Sketches are neither sent nor accepted."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import Path, Query
from pydantic import BaseModel, Field
from sqlalchemy import select

from adapterhub_registry.access import seen
from adapterhub_registry.api.adapt_models import NAME, Answer, Problem
from adapterhub_registry.api.adapt_router import adapt_router
from adapterhub_registry.api.context import RegistryOf, SeekerOf
from adapterhub_registry.database.db import adapters, releases, repos, slices
from adapterhub_registry.database.derived_tables import derived
from adapterhub_registry.derived.alike import FLOOR
from adapterhub_registry.errors import Refusal
from adapterhub_registry.names import known_repo_id
from adapterhub_registry.repos import adapter_search

MOST_LISTED: Final = 100

_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    403: {"model": Problem, "description": "The repository is gated"},
    404: {"model": Problem, "description": "Not found"},
    429: {"model": Problem, "description": "Too many requests for like updates"},
}

router = adapt_router()

NamePart = Annotated[str, Path(pattern=NAME)]


class SimilarQuery(BaseModel):
    """The least cosine to list."""

    above: Annotated[float, Field(ge=FLOOR, le=1)] = FLOOR


class SimilarBuild(Answer):
    """A build whose update is alike. `cosine` is an estimate, negative for an opposite update.

    `version` is null for a commit without a release. `same_base`: both declare one base.
    """

    repo: str
    version: str | None
    commit: str
    digest: str
    cosine: float
    same_base: bool


class SimilarBuilds(Answer):
    """The builds whose update is like that of one. `state`: `made`, `waiting` for a worker, or `none` to compare."""

    digest: str
    state: Literal["made", "waiting", "none"]
    similar: list[SimilarBuild]


@router.get("/adapters/{namespace}/{name}/{version}/similar", responses=_PROBLEMS)
def similar(
    registry: RegistryOf,
    caller: SeekerOf,
    namespace: NamePart,
    name: NamePart,
    version: Annotated[str, Path(max_length=64)],
    query: Annotated[SimilarQuery, Query()],
) -> SimilarBuilds:
    """The builds whose update is like that of a release, the most alike first, among what the caller may read."""
    with registry.db.read() as connection:
        repo = registry.repos.find_files(connection, caller, known_repo_id(namespace, name))
        rows = adapter_search.versions_of(connection, repo.id)
        mine = next((row for row in rows if row.released_as == version.removeprefix("v")), None)
        if mine is None:
            raise Refusal(404, "RevisionNotFound", f"`{repo.full_name}` has no such version")
        is_seen = seen.is_seen(connection, mine.created_at)
        near = registry.sketches.near(connection, mine.digest, query.above) if is_seen else None
        if near is None:
            state = connection.scalar(select(derived.c.state).where(derived.c.digest == mine.digest))
            waits = not is_seen or state == "waiting"
            return SimilarBuilds(digest=f"sha256:{mine.digest}", state="waiting" if waits else "none", similar=[])
        of_a_release = (releases.c.repo_id == adapters.c.repo_id) & (releases.c.commit_id == adapters.c.commit_id)
        wanted = (
            select(adapters, repos.c.full_name, releases.c.version.label("released_as"))
            .join_from(adapters, repos, repos.c.id == adapters.c.repo_id)
            .outerjoin(releases, of_a_release)
            .where(registry.repos.readable(caller), seen.SEEN, adapters.c.is_listed | releases.c.version.is_not(None))
        )
        near[mine.digest] = 1.0  # the same build in other repositories
        found = {
            (row.digest, row.full_name): SimilarBuild(
                repo=row.full_name,
                version=row.released_as,
                commit=row.commit_id,
                digest=f"sha256:{row.digest}",
                cosine=near[row.digest],
                same_base=row.base_sha256 is not None and row.base_sha256 == mine.base_sha256,
            )
            for some in slices(list(near))
            for row in connection.execute(wanted.where(adapters.c.digest.in_(some)))
            if (row.repo_id, row.digest) != (repo.id, mine.digest)
        }
    ordered = sorted(found.values(), key=lambda one: (-abs(one.cosine), one.cosine < 0, one.repo, one.digest))
    return SimilarBuilds(digest=f"sha256:{mine.digest}", state="made", similar=ordered[:MOST_LISTED])
