"""Uploads by Xet, which the hub client has used since 1.20 for every large file, whatever the server supports.

Xet serves uploads only: files arrive as xorbs and shards, the server rebuilds them into ordinary blobs, and clients
download those like any other file. Nothing is deduplicated across repositories. Each upload space has its own address,
which changes daily (`storage/xet.py` explains why) and after a loss of chunks, and its own short-lived token, bound to
the user and the repository.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final

from fastapi import Depends, Request
from fastapi.responses import JSONResponse
from sqlalchemy import Row, select
from starlette.concurrency import run_in_threadpool

from adapterhub.core.errors import DigestMismatch, DiskFull
from adapterhub_registry.access import tokens
from adapterhub_registry.api.bodies import check_signer, hub_router, receive_with, sent_by
from adapterhub_registry.api.context import BaseUrl, CallerOf, Registry, RegistryOf, RepoOf
from adapterhub_registry.api.hub.upload import dropping_refused
from adapterhub_registry.database.db import facts, now_ms, repos
from adapterhub_registry.errors import HttpRefusal, forbidden, too_large, unauthorized
from adapterhub_registry.repos import quotas
from adapterhub_registry.storage.blobs import StoredBlob, StoreUnreachable, check_room
from adapterhub_registry.storage.xet import (
    MAX_SHARD_BYTES,
    MAX_XORB_BODY_BYTES,
    Ingest,
    MalformedXet,
    XorbPlace,
    XorbStore,
    epoch_at,
    is_open,
    parse_shard,
    parse_xet_hash,
)

PURPOSE: Final = "xet"
SPACE: Final = "/_xet/{scope}/{epoch}"
_SCOPE = re.compile(r"([0-9a-f]{32})(-[0-9]{1,20})?")
_EPOCH = re.compile(r"[0-9]{1,9}")

router = hub_router()


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadSpace:
    """One upload space: a repository, an epoch, and the user of the token.

    `repository` identifies the repository permanently; `scope` begins with it and names the folder of its xorbs.
    """

    repo_id: int
    repository: str
    scope: str
    epoch: int
    user: str
    token_id: int | None


def space_of(request: Request, registry: RegistryOf, scope: str, epoch: str) -> UploadSpace:
    """Return the upload space of a request, after a check of its token.

    Raises:
        HttpRefusal: 401 without a valid token, 403 for a token of another space, 404 for a closed epoch.
    """
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not token:
        raise unauthorized("an upload needs a token from xet-write-token")
    try:
        claims = tokens.check(token, registry.settings.secret, purpose=PURPOSE)
    except tokens.BadSignature as error:
        raise unauthorized(f"{error}; get a new xet-write-token") from None
    found = _SCOPE.fullmatch(scope)
    if found is None or _named(registry, claims["scope"]) != found[1]:
        raise forbidden("this token is for another repository; get an xet-write-token for this repository")
    if not _EPOCH.fullmatch(epoch) or not is_open(int(epoch), time.time()):
        raise _not_here("upload space")
    return UploadSpace(
        repo_id=claims["repo"],
        repository=claims["scope"],
        scope=f"{claims['scope']}{found[2] or ''}",
        epoch=int(epoch),
        user=claims["user"],
        token_id=claims.get("token"),
    )


SpaceOf = Annotated[UploadSpace, Depends(space_of)]


async def holder(request: Request, registry: Registry) -> None:
    """Require the holder of an upload space's token, while the token works for which it was signed."""
    space = space_of(request, registry, request.path_params["scope"], request.path_params["epoch"])
    await check_signer(registry, space.token_id)


def xorbs_of(registry: RegistryOf) -> XorbStore:
    """Return the xorb store of this registry."""
    return registry.xorbs


XorbsOf = Annotated[XorbStore, Depends(xorbs_of)]


def _repository(repo: Row[Any]) -> str:
    # a database may reuse the number of a removed repository; together with the time it stays unique
    return f"{repo.id}-{repo.created_at}"


def _named(registry: Registry, repository: str) -> str:
    """Return a repository in addresses, where its number would count the others."""
    return hmac.new(registry.settings.secret, f"xet {repository}".encode(), hashlib.sha256).hexdigest()[:32]


def _lost(repo_id: int) -> str:
    """Return the name of the fact that records when chunks of a repository were last found missing."""
    return f"xet chunks of {repo_id}"


def _not_here(what: str) -> HttpRefusal:
    return HttpRefusal(404, "NotFound", f"no such {what}; start the upload again")


@router.get("/api/models/{namespace}/{name}/xet-write-token/{revision:path}")
def write_token(registry: RegistryOf, caller: CallerOf, repo_id: RepoOf, base: BaseUrl) -> JSONResponse:
    """Return the address and the token of an upload to this repository.

    The client requests a new one before it expires.
    """
    with registry.db.read() as connection:
        repo = registry.repos.find_writable(connection, caller, repo_id)
        quotas.check_upload(
            connection,
            registry.settings.limits,
            namespace=repo.namespace,
            token_id=caller.token_id,
            more_bytes=1,
        )
        lost = connection.scalar(select(facts.c.value).where(facts.c.name == _lost(repo.id)))
    now = time.time()
    check_room(registry.blobs, 1)  # clients give up here at once, but send a refused xorb again and again
    ttl_s = min(registry.settings.limits.href_ttl_s, tokens.LONGEST_TTL_S)
    claims = {
        "purpose": PURPOSE,
        "user": caller.user,
        "repo": repo.id,
        "scope": _repository(repo),
        "token": caller.token_id,
    }
    token = tokens.sign(claims, registry.settings.secret, ttl_s)
    named = _named(registry, _repository(repo))
    scope = f"{named}-{lost}" if lost else named
    address = f"{base}/_xet/{scope}/{epoch_at(now)}"
    expires = int(now) + ttl_s
    headers = {
        "X-Xet-Access-Token": token,
        "X-Xet-Token-Expiration": str(expires),
        "X-Xet-Cas-Url": address,
        "Cache-Control": "no-store",
    }
    return JSONResponse({"accessToken": token, "exp": expires, "casUrl": address}, headers=headers)


@router.get(SPACE + "/v1/chunks/{prefix}/{chunk}", dependencies=[Depends(space_of)])
def find_chunk() -> JSONResponse:
    """Answer 404: other uploads stay secret, and the client knows its own chunks."""
    raise _not_here("chunk")


@router.post(SPACE + "/v1/xorb-grants/{prefix}/{xorb}", dependencies=[Depends(space_of)])
def grant_xorb() -> JSONResponse:
    """Answer 404, so that the client sends the xorb. After any other response it assumes that the server has it."""
    raise _not_here("grant")


@router.post(SPACE + "/v1/xorbs/{prefix}/{xorb}")
@sent_by(holder)
async def put_xorb(request: Request, space: SpaceOf, registry: RegistryOf, xorbs: XorbsOf, xorb: str) -> JSONResponse:
    """Store a xorb for the shard that will name it."""
    _check_announced(request, MAX_XORB_BODY_BYTES)
    check_room(registry.blobs, _announced(request) or 1)
    place = XorbPlace(scope=space.scope, epoch=space.epoch, hash=parse_xet_hash(xorb))

    def is_known() -> bool:
        with registry.db.read() as connection:
            quotas.check_chunks(connection, registry.settings.limits, space.user, space.epoch)
        return xorbs.chunks(place) is not None

    # chunks that came before take no more room, so that no quota counts them again
    counts = not (quotas.is_limited(registry.settings.limits) and await run_in_threadpool(is_known))

    def keep(blocks: Iterator[bytes]) -> None:
        size = 0
        with xorbs.writer(place) as writer:
            for block in _bounded(blocks, MAX_XORB_BODY_BYTES):
                writer.write(block)
                size += len(block)
            writer.keep()
        if counts:
            with registry.db.begin() as connection:
                quotas.record_chunks(connection, space.user, space.epoch, size)

    await receive_with(request, space.token_id, keep)
    return JSONResponse({"was_inserted": True})


@router.post(SPACE + "/v2/shards", dependencies=[Depends(space_of)])
def put_shard_v2() -> JSONResponse:
    """Answer 404, so that the client falls back to version 1."""
    raise _not_here("shard route")


@router.post(SPACE + "/v1/shards")
@router.post(SPACE + "/shards")  # hf-xet 1.5.0 and 1.5.1
@sent_by(holder)
async def put_shard(request: Request, space: SpaceOf, registry: RegistryOf, xorbs: XorbsOf) -> JSONResponse:
    """Rebuild and store the files of a shard; after the response, commits may name them."""
    _check_announced(request, MAX_SHARD_BYTES)

    def ingest(blocks: Iterator[bytes]) -> None:
        _ingest(registry, xorbs, space, b"".join(_bounded(blocks, MAX_SHARD_BYTES)))

    await receive_with(request, space.token_id, ingest)
    return JSONResponse({"result": 1})


@router.api_route("/v1/telemetry", methods=["POST", "PUT"])
def telemetry() -> JSONResponse:
    """Accept and discard a client's telemetry."""
    return JSONResponse({})


def _ingest(registry: Registry, xorbs: XorbStore, space: UploadSpace, raw: bytes) -> None:
    named = {file.sha256: file for file in parse_shard(raw, limit_bytes=registry.settings.limits.file_bytes)}
    with registry.db.read() as connection:
        counted = quotas.sent_before(connection, space.repo_id, named)
        damaged = quotas.marked(connection, list(counted))
    here = registry.blobs.holds({sha256: named[sha256].size_bytes for sha256 in counted}) - damaged
    if here:
        with registry.db.begin() as connection:
            here = registry.repos.keep(connection, space.repo_id, space.user, here)
    new = [file for file in named.values() if file.sha256 not in here]
    with registry.db.read() as connection:
        namespace = connection.scalar(select(repos.c.namespace).where(repos.c.id == space.repo_id))
        quotas.check_upload(
            connection,
            registry.settings.limits,
            namespace=str(namespace),
            token_id=space.token_id,
            more_bytes=sum(file.size_bytes for file in new if file.sha256 not in counted),
        )

    def on_stored(blob: StoredBlob) -> None:
        named = dropping_refused(registry, [blob.sha256])
        with named, registry.db.begin() as connection:
            # someone may have removed the repository meanwhile, and a new one may have its number
            row = connection.execute(select(repos).where(repos.c.id == space.repo_id)).one_or_none()
            if row is None or _repository(row) != space.repository:
                raise _not_here("repository")
            registry.repos.record_upload(connection, space.repo_id, space.user, blob, token_id=space.token_id)

    total = sum(file.size_bytes for file in new)
    check_room(registry.blobs, total)
    take = partial(quotas.count_unpacking, limits=registry.settings.limits, user=space.user, epoch=space.epoch)
    with registry.db.begin() as connection:
        take(connection, more_bytes=total)
    try:
        ingest = Ingest(xorbs=xorbs, blobs=registry.blobs, scope=space.scope, epoch=space.epoch)
        ingest.store(new, on_stored=on_stored)
    except (
        DiskFull,
        StoreUnreachable,
    ):  # not the client's fault; other refusals stay counted, as they cost as much work
        with registry.db.begin() as connection:
            take(connection, more_bytes=-total)
        raise
    except (MalformedXet, DigestMismatch):
        # the client assumes chunks that are missing or damaged here; at a new address it sends them again
        registry.db.agree(_lost(space.repo_id), str(now_ms()), replace=True)
        raise


def _check_announced(request: Request, limit_bytes: int) -> None:
    """Raise 413 when the announced body exceeds `limit_bytes`."""
    if _announced(request) > limit_bytes:
        raise too_large(limit_bytes)


def _announced(request: Request) -> int:
    announced = request.headers.get("content-length", "")
    return int(announced) if announced.isdecimal() else 0


def _bounded(blocks: Iterator[bytes], limit_bytes: int) -> Iterator[bytes]:
    size = 0
    for block in blocks:
        size += len(block)
        if size > limit_bytes:
            raise too_large(limit_bytes)
        yield block
