"""Hub API: uploads by LFS. A batch returns signed links to this server or a bucket; every upload is checked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from math import ceil
from typing import Any, Final

from anyio import from_thread
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select

from adapterhub_registry.access.signing import BadSignature, check, sign
from adapterhub_registry.access.tokens import Caller
from adapterhub_registry.api.bodies import Sender, check_signer, hub_router, in_slot, receive_with, sent_by
from adapterhub_registry.api.context import BaseUrl, CallerOf, JsonBody, Registry, RegistryOf, RepoOf
from adapterhub_registry.database.db import blobs, lock_space, slices
from adapterhub_registry.errors import Refusal, bad_request, entry_not_found, forbidden
from adapterhub_registry.names import RepoId, parse_sha256
from adapterhub_registry.repos import quotas
from adapterhub_registry.settings import Limits
from adapterhub_registry.storage.blobs import StoredBlob, UploadId

router = hub_router()
MAX_LFS_OBJECTS: Final = 1000
HASH_NAMES: Final = ("sha256", "sha_256")  # the second is that of huggingface.js
MAX_PARTS: Final = 10_000
MAX_LINKS: Final = 4000
"""The most parts of all objects in one batch: the more bytes a batch announces, the larger its parts."""
DIRECT_BYTES: Final = 5 << 30  # the largest PUT of S3
LARGEST_NUMBER: Final = (1 << 53) - 1  # the largest integer that every JSON reader represents exactly
_CLOCKS_DIFFER_S: Final = 3600
_LOOK_EVERY: Final = 32  # objects between two checks that the client is still connected


@router.post("/{namespace}/{name}.git/info/lfs/objects/batch")
def lfs_batch(
    request: Request, registry: RegistryOf, caller: CallerOf, repo_id: RepoOf, body: JsonBody, base: BaseUrl
) -> JSONResponse:
    """The signed upload links of each object; none when the object is stored and the caller may use it."""
    if body.text("operation") != "upload":
        raise bad_request("operation: expected upload; download files from /resolve")
    if body.text("hash_algo", "sha256") not in HASH_NAMES:
        raise bad_request("hash_algo: expected sha256")
    can_split = "multipart" in body.texts("transfers", most=20)
    limits = registry.settings.limits
    objects: list[dict[str, Any]] = []
    wanted = [
        (parse_sha256(item.text("oid")), item.number("size", most=LARGEST_NUMBER))
        for item in body.objects("objects", most=MAX_LFS_OBJECTS)
    ]
    with registry.db.read() as connection:
        row = registry.repos.find_writable(connection, caller, repo_id)
    stored = usable_blobs(registry, caller, row.id, [oid for oid, _ in wanted])
    if stored:
        with registry.db.begin() as connection:
            kept = registry.repos.keep(connection, row.id, str(caller.user), stored)
        stored = {oid: blob for oid, blob in stored.items() if oid in kept}
    for oid, size in wanted:
        known = stored.get(oid)
        answer: dict[str, Any] = {"oid": oid, "size": size}
        if size > limits.file_bytes:
            answer["error"] = {"code": 422, "message": f"{oid} has {size} bytes, the limit is {limits.file_bytes}"}
        elif known is not None and known.size != size:
            answer["error"] = {"code": 422, "message": f"{oid} has {known.size} bytes, not {size}"}
        elif known is None:
            answer["actions"] = {}
        objects.append(answer)
    sent = [answer for answer in objects if "actions" in answer]
    if quotas.is_limited(limits):
        with registry.db.begin() as connection:
            counted = quotas.sent_before(connection, row.id, [answer["oid"] for answer in sent])
            sizes = {answer["oid"]: answer["size"] for answer in sent if answer["oid"] not in counted}
            quotas.reserve(connection, limits, row, token_id=caller.token_id, sizes=sizes)
    part_bytes = _part_bytes(limits, [answer["size"] for answer in sent]) if can_split else None
    for number, answer in enumerate(sent):
        if number % _LOOK_EVERY == 0 and from_thread.run(request.is_disconnected):
            raise bad_request("the client has disconnected")
        claims = {"user": caller.user, "repo": row.id, "token": caller.token_id}
        claims |= {"oid": answer["oid"], "size": answer["size"], "upload": secrets.token_hex(8)}
        answer["actions"] = _Links(registry, base, claims).actions(part_bytes=part_bytes, repo_id=repo_id)
    split = any("chunk_size" in answer["actions"]["upload"]["header"] for answer in sent)
    return JSONResponse({"transfer": "multipart" if split else "basic", "objects": objects})


def usable_blobs(registry: Registry, caller: Caller, repo_number: int, digests: Iterable[str]) -> dict[str, StoredBlob]:
    """The blobs of `digests` that are stored and that the caller may use in a repository, by digest.

    It looks up each blob in the store: a row of the database alone proves nothing.
    """
    with registry.db.read() as connection:
        known = [registry.repos.known_blob(connection, caller, repo_number, digest) for digest in set(digests)]
    held = registry.blobs.holds({blob.sha256: blob.size for blob in known if blob is not None})
    return {blob.sha256: blob for blob in known if blob is not None and blob.sha256 in held}


def _part_bytes(limits: Limits, sizes: list[int]) -> int:
    """The size of the parts in a batch, so that it has at most `MAX_LINKS` parts and a final one for each object.

    Raises:
        Refusal: 413 when a part would exceed the limit of a bucket.
    """
    split = sum(size for size in sizes if size >= limits.multipart_from_bytes)
    needed = ceil(split / MAX_LINKS)
    if needed > DIRECT_BYTES:
        raise Refusal(
            413,
            "TooLarge",
            f"the batch announces {split} bytes in large files, the limit is {MAX_LINKS * DIRECT_BYTES};"
            " send fewer files in a batch",
        )
    return max(limits.part_bytes, needed)


class _Links:
    """Signed links for one object. A link to this server accepts exactly the announced bytes.

    With blobs in a bucket, the links lead there, and the server checks the upload when the client reports it.
    """

    def __init__(self, registry: Registry, base: str, claims: dict[str, Any]) -> None:
        self._settings = registry.settings
        self._blobs = registry.blobs
        self._base = base
        self._claims = claims

    def _link(self, place: str, purpose: str, **more: int) -> str:
        ttl_s = self._settings.limits.href_ttl_s
        token = sign({**self._claims, **more, "purpose": purpose}, self._settings.secret, ttl_s)
        return f"{self._base}/_lfs/{place}/{token}"

    def actions(self, *, part_bytes: int | None, repo_id: RepoId) -> dict[str, Any]:
        """The member `actions`: one upload, or parts of `part_bytes` for a large object."""
        limits, size = self._settings.limits, int(self._claims["size"])
        verify = {"href": f"{self._base}/{repo_id}.git/info/lfs/verify"}
        upload = _upload(self._claims)
        if part_bytes is None or size < limits.multipart_from_bytes:
            direct = self._blobs.upload_link(upload) if size <= DIRECT_BYTES else None
            return {"upload": {"href": direct or self._link("object", "lfs-object"), "header": {}}, "verify": verify}
        header = {"chunk_size": str(part_bytes)}
        for number in range(1, ceil(size / part_bytes) + 1):
            length = min(part_bytes, size - (number - 1) * part_bytes)
            direct = self._blobs.upload_link(upload, number)
            header[str(number)] = direct or self._link("part", "lfs-part", part=number, length=length)
        return {"upload": {"href": self._link("complete", "lfs-complete"), "header": header}, "verify": verify}


def _claims(registry: Registry, token: str, purpose: str) -> dict[str, Any]:
    try:
        return check(token, registry.settings.secret, purpose=purpose)
    except BadSignature as problem:
        raise forbidden(f"upload link: {problem}") from None


def _upload(claims: Mapping[str, Any]) -> UploadId:
    return UploadId(_sent(claims), str(claims.get("upload")))


def _sent(claims: Mapping[str, Any]) -> str:
    """What is sent: the same object of the same user for the same repository always has the same name."""
    facts = json.dumps([claims[name] for name in ("repo", "user", "oid", "size")])
    return hashlib.sha256(facts.encode()).hexdigest()[:48]


def _holder(purpose: str) -> Sender:
    """The holder of a signed link of this purpose, while the token works for which it was signed."""

    async def check_link(request: Request, registry: Registry) -> None:
        await check_signer(registry, _claims(registry, request.path_params["token"], purpose)["token"])

    return check_link


@router.put("/_lfs/object/{token}")
@sent_by(_holder("lfs-object"))
async def put_object(request: Request, registry: RegistryOf, token: str) -> Response:
    """Receive a whole object; 400, and nothing is kept, unless it matches the announcement."""
    claims = _claims(registry, token, "lfs-object")

    def work(chunks: Iterator[bytes]) -> None:
        _record(registry, claims, registry.blobs.put(chunks, claims["oid"], claims["size"]))

    await receive_with(request, claims["token"], work)
    return Response()


@router.put("/_lfs/part/{token}")
@sent_by(_holder("lfs-part"))
async def put_part(request: Request, registry: RegistryOf, token: str) -> Response:
    """Receive one part; the completion must name its ETag."""
    claims = _claims(registry, token, "lfs-part")
    part, length = claims["part"], claims["length"]

    def work(chunks: Iterator[bytes]) -> str:
        return registry.blobs.put_part(_upload(claims), part, chunks, length, claims["size"])

    etag = await receive_with(request, claims["token"], work)
    return Response(headers={"ETag": f'"{etag}"'})


@router.post("/_lfs/complete/{token}")
@sent_by(_holder("lfs-complete"))
async def complete(request: Request, registry: RegistryOf, token: str, body: JsonBody) -> JSONResponse:
    """Join the parts; 400 unless the object matches the announcement."""
    claims = _claims(registry, token, "lfs-complete")
    listed = body.objects("parts", most=MAX_PARTS)
    parts = [(part.number("partNumber", least=1, most=MAX_PARTS), part.text("etag").strip('"')) for part in listed]
    if [number for number, _ in parts] != list(range(1, len(parts) + 1)):
        raise bad_request("parts: expected each part once, in order")

    def work() -> None:
        blob = registry.blobs.complete(_upload(claims), parts, claims["oid"], claims["size"])
        _record(registry, claims, blob)

    await in_slot(request, claims["token"], work)
    return JSONResponse({"success": True})


@contextlib.contextmanager
def dropping_refused(registry: Registry, digests: Iterable[str]) -> Iterator[None]:
    """Remove these stored bytes when what would name them is refused, unless something else names them."""
    try:
        yield
    except Refusal:
        with registry.db.begin() as connection:
            lock_space(connection, shared=False)  # another sender finds them gone, and sends them again
            unnamed = set(digests)
            for some in slices(sorted(unnamed)):
                unnamed -= set(connection.scalars(select(blobs.c.sha256).where(blobs.c.sha256.in_(some))))
            registry.blobs.remove(sorted(unnamed), time.time() + _CLOCKS_DIFFER_S)
        raise


def _record(registry: Registry, claims: dict[str, Any], blob: StoredBlob) -> None:
    with dropping_refused(registry, [blob.sha256]), registry.db.begin() as connection:
        registry.repos.record_upload(connection, claims["repo"], claims["user"], blob, token_id=claims["token"])


def record_sent(registry: Registry, caller: Caller, repo_number: int, oid: str, size: int) -> None:
    """Check and record an object that the caller may have sent to a bucket."""
    claims = {"user": caller.user, "repo": repo_number, "oid": oid, "size": size, "token": caller.token_id}
    blob = registry.blobs.take(_sent(claims), oid, size)
    if blob is not None:
        _record(registry, claims, blob)


@router.post("/{namespace}/{name}.git/info/lfs/verify")
async def verify(
    request: Request, registry: RegistryOf, caller: CallerOf, repo_id: RepoOf, body: JsonBody
) -> JSONResponse:
    """200 when the object is stored with that size. An object that was sent to a bucket is checked first."""
    oid, size = parse_sha256(body.text("oid")), body.value("size")
    await in_slot(request, caller.token_id, lambda: _verify(registry, caller, repo_id, oid, size))
    return JSONResponse({"ok": True})


def _verify(registry: Registry, caller: Caller, repo_id: RepoId, oid: str, size: object) -> None:
    with registry.db.read() as connection:
        row = registry.repos.find_writable(connection, caller, repo_id)
    for is_last in (False, True):
        known = usable_blobs(registry, caller, row.id, [oid]).get(oid)
        if known is not None or is_last or type(size) is not int or size < 0:
            break
        record_sent(registry, caller, row.id, oid, size)
    if known is None or known.size != size:
        raise entry_not_found(oid)
