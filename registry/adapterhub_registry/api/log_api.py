"""The routes of the log of releases: signed heads, tiles, and proofs. Tiles and heads are those of C2SP `tlog-tiles`.

The log of the public repositories is at `tlog`, that of a private one at `tlog/of/{namespace}/{name}`.
"""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Path, Query, Response
from pydantic import BaseModel, Field
from sqlalchemy import Row
from sqlalchemy.engine import Connection

from adapterhub.core.errors import shown
from adapterhub.formats.signature import BUNDLE_TYPE
from adapterhub.formats.treelog import MOST_NOTE_CHARACTERS, Tile
from adapterhub_registry import treelog
from adapterhub_registry.access.callers import Caller
from adapterhub_registry.api.adapt_models import FORBIDDEN, MISSING, AdapterOf, ApiAnswer, ApiQuestion, adapt_router
from adapterhub_registry.api.bodies import anyone, sent_by
from adapterhub_registry.api.context import CallerOf, Registry, RegistryOf
from adapterhub_registry.errors import HttpRefusal, bad_request, forbidden, version_not_found
from adapterhub_registry.names import RepoId, key_of_version, known_repo_id
from adapterhub_registry.treelog import PUBLIC, log_of

MOST_SIZE: Final = 1 << 53

router = adapt_router()

TilePath = Annotated[str, Path(max_length=64, pattern=r"^(entries|[0-9]{1,2})/[0-9xp./]{3,60}$")]


class ConsistencyQuery(BaseModel):
    """The sizes of two trees of a log."""

    old: Annotated[int, Field(ge=0, le=MOST_SIZE)]
    new: Annotated[int, Field(ge=0, le=MOST_SIZE)]


class Cosigned(ApiQuestion):
    """A checkpoint of the public log, or of that of a private `repo`, with the signatures of witnesses."""

    checkpoint: Annotated[str, Field(max_length=MOST_NOTE_CHARACTERS)]
    repo: Annotated[str, Field(max_length=200)] | None = None


class Kept(ApiAnswer):
    """How many of the cosignatures are now the last of their witnesses."""

    kept: int


class LogConsistency(ApiAnswer):
    """The proof that the larger tree begins with the smaller one: hashes in hex, as RFC 6962 orders them."""

    hashes: list[str]


class LoggedRelease(ApiAnswer):
    """That a log has a release: the entry at `index`, and its proof against the head in `checkpoint`.

    `attestation` is the registry's on the job that published it, a bundle as `model.sig` is; null if none did.
    """

    repo: str
    private: bool
    checkpoint: str
    index: int
    entry: str
    hashes: list[str]
    attestation: str | None


@router.get("/tlog/checkpoint", response_class=Response, responses=MISSING)
def checkpoint(registry: RegistryOf, caller: CallerOf) -> Response:
    """Return the signed head of the log of all public repositories."""
    registry.repos.check_may_read(caller)
    with registry.db.read() as connection:
        return _note(registry, connection, PUBLIC)


@router.get("/tlog/tile/{tile:path}", response_class=Response, responses=MISSING)
def tile(registry: RegistryOf, caller: CallerOf, tile: TilePath) -> Response:
    """Return a tile of that log: `0/000`, or `entries/000.p/17`."""
    registry.repos.check_may_read(caller)
    with registry.db.read() as connection:
        return _tile(registry, connection, PUBLIC, tile)


@router.get("/tlog/consistency", responses=MISSING)
def consistency(registry: RegistryOf, caller: CallerOf, query: Annotated[ConsistencyQuery, Query()]) -> LogConsistency:
    """Return the proof that the log of `new` entries begins with that of `old`."""
    registry.repos.check_may_read(caller)
    with registry.db.read() as connection:
        return _consistency(registry, connection, PUBLIC, query)


@router.post("/tlog/cosignatures", responses={**MISSING, **FORBIDDEN})
@sent_by(anyone)
def cosign(registry: RegistryOf, caller: CallerOf, sent: Cosigned) -> Kept:
    """Keep what witnesses, whose keys the registry lists, co-signed of a head of the log."""
    registry.repos.check_may_read(caller)
    log = PUBLIC
    if sent.repo is not None:
        with registry.db.read() as connection:
            log = _private(registry, connection, caller, known_repo_id(*sent.repo.partition("/")[::2]))
    try:
        kept = registry.log.keep_cosignatures(log, sent.checkpoint)
    except ValueError as error:
        raise bad_request(f"the checkpoint {error}; read it again from `/api/adapt/v1/tlog/checkpoint`") from None
    if not kept:
        raise forbidden(
            "no witness that this registry lists has co-signed the checkpoint; list it with `serve --witness KEY`"
        )
    return Kept(kept=kept)


@router.get("/tlog/releases/{namespace}/{name}/{version}", responses=MISSING)
def logged(
    registry: RegistryOf,
    caller: CallerOf,
    repo_id: AdapterOf,
    version: Annotated[str, Path(max_length=64)],
    witness: Annotated[str | None, Query(max_length=200)] = None,
) -> LoggedRelease:
    """Return a release in the log, with the proof, also one that was deleted.

    One that is in none yet is recorded now. The checkpoint is the last that the `witness` of this name co-signed, if
    that one has the release.
    """
    return _logged(registry, caller, repo_id, version, witness)


@router.get("/adapters/{namespace}/{name}/versions/{version}/attestation", response_class=Response, responses=MISSING)
def attestation(
    registry: RegistryOf, caller: CallerOf, repo_id: AdapterOf, version: Annotated[str, Path(max_length=64)]
) -> Response:
    """Return the registry's signed statement which job of a CI published a version; 404 where none did."""
    found = _logged(registry, caller, repo_id, version)
    if found.attestation is None:
        raise HttpRefusal(
            404,
            "AttestationNotFound",
            f"no job of a CI published `{found.repo}` {shown(version)}; choose a version that one published",
        )
    return Response(found.attestation, media_type=BUNDLE_TYPE)


def _logged(
    registry: Registry, caller: Caller, repo_id: RepoId, version: str, witness: str | None = None
) -> LoggedRelease:
    with registry.db.read() as connection:
        repo = registry.repos.find(connection, caller, repo_id)
        found = proof_of(registry, connection, repo, repo_id, version, witness)
    if found is None:
        treelog.complete(registry.db, repo.id)
        with registry.db.read() as connection:
            repo = registry.repos.find(connection, caller, repo_id)
            found = proof_of(registry, connection, repo, repo_id, version, witness)
    if found is None:
        raise version_not_found(repo.full_name, version)
    return found


def proof_of(
    registry: Registry,
    connection: Connection,
    repo: Row[tuple[object, ...]],
    asked: str,
    version: str,
    witness: str | None = None,
) -> LoggedRelease | None:
    """Return a release in its log; None if it is in none."""
    found = registry.log.proof(connection, repo, asked, key_of_version(version), witness)
    if found is None:
        return None
    return LoggedRelease(
        repo=repo.full_name,
        private=found.private,
        checkpoint=found.checkpoint,
        index=found.index,
        entry=found.entry,
        hashes=[one.hex() for one in found.hashes],
        attestation=None if found.attestation is None else found.attestation.decode(),
    )


@router.get("/tlog/of/{namespace}/{name}/checkpoint", response_class=Response, responses=MISSING)
def checkpoint_of(registry: RegistryOf, caller: CallerOf, repo_id: AdapterOf) -> Response:
    """Return the signed head of the log of a private repository."""
    with registry.db.read() as connection:
        return _note(registry, connection, _private(registry, connection, caller, repo_id))


@router.get("/tlog/of/{namespace}/{name}/tile/{tile:path}", response_class=Response, responses=MISSING)
def tile_of(registry: RegistryOf, caller: CallerOf, repo_id: AdapterOf, tile: TilePath) -> Response:
    """Return a tile of that log."""
    with registry.db.read() as connection:
        return _tile(registry, connection, _private(registry, connection, caller, repo_id), tile)


@router.get("/tlog/of/{namespace}/{name}/consistency", responses=MISSING)
def consistency_of(
    registry: RegistryOf, caller: CallerOf, repo_id: AdapterOf, query: Annotated[ConsistencyQuery, Query()]
) -> LogConsistency:
    """As `tlog/consistency`, of that log."""
    with registry.db.read() as connection:
        return _consistency(registry, connection, _private(registry, connection, caller, repo_id), query)


def _private(registry: Registry, connection: Connection, caller: Caller, repo_id: RepoId) -> int:
    repo = registry.repos.find(connection, caller, repo_id)
    if not repo.private:
        raise HttpRefusal(404, "LogNotFound", f"`{repo.full_name}` is public: see the log of the registry")
    return log_of(repo)


def _note(registry: Registry, connection: Connection, log: int) -> Response:
    return Response(registry.log.checkpoint(connection, log), media_type="text/plain; charset=utf-8")


def _tile(registry: Registry, connection: Connection, log: int, path: str) -> Response:
    try:
        body = registry.log.tile(connection, log, Tile.parse(path))
    except ValueError as error:
        raise HttpRefusal(
            404, "TileNotFound", f"tile `{shown(path)}`: {error}; expected a path of c2sp.org/tlog-tiles"
        ) from None
    if body is None:
        raise HttpRefusal(404, "TileNotFound", f"the log has no tile `{shown(path)}` yet; read its checkpoint first")
    return Response(body, media_type="application/octet-stream")


def _consistency(registry: Registry, connection: Connection, log: int, query: ConsistencyQuery) -> LogConsistency:
    found = registry.log.consistency(connection, log, query.old, query.new)
    if found is None:
        raise HttpRefusal(404, "TreeNotFound", f"the log has fewer than {query.new} entries; read its checkpoint first")
    return LogConsistency(hashes=[one.hex() for one in found])
