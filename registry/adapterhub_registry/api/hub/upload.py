"""Hub API: uploads, by commits and by LFS, and which files a repository ignores.

A batch of LFS returns signed links to this server or a bucket, and every upload is checked; `xet` receives the others.
`.gitignore` names files by git's rules (gitignore(5)), and no pattern takes more time than its length allows.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from math import ceil
from typing import Any, Final

from anyio import from_thread
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from adapterhub.core.digests import strict_json
from adapterhub.core.errors import shown
from adapterhub.formats.cards.metadata import UnreadableCard, check_metadata, read_metadata
from adapterhub_registry.access.callers import Caller
from adapterhub_registry.access.tokens import BadSignature, check, sign
from adapterhub_registry.api.bodies import Sender, anyone, check_signer, hub_router, in_slot, receive_with, sent_by
from adapterhub_registry.api.context import (
    BaseUrl,
    CallerOf,
    JsonBody,
    JsonObject,
    Registry,
    RegistryOf,
    RepoOf,
    RevisionOf,
)
from adapterhub_registry.database.db import blobs, lock_name, lock_space, slices
from adapterhub_registry.errors import (
    HttpRefusal,
    bad_request,
    busy,
    entry_not_found,
    forbidden,
    not_offered,
    too_large,
)
from adapterhub_registry.names import COMMIT_PREFIX, RepoId, parse_path, parse_sha256
from adapterhub_registry.repos import commits, quotas
from adapterhub_registry.repos.commits import Delete, DeleteFolder, Operation, Proposal, Put
from adapterhub_registry.repos.git_patterns import IGNORE_FILE, MAX_IGNORE_BYTES, Ignored
from adapterhub_registry.settings import ServerLimits
from adapterhub_registry.storage.blobs import PutNext, StoredBlob, StoreUnreachable, UploadId, check_room

router = hub_router()
MAX_PREUPLOAD_FILES: Final = 256
SAMPLE_BYTES: Final = 512
REGULAR_BELOW_BYTES: Final = 1 << 20
LFS_SUFFIXES: Final = tuple(
    f".{suffix}"
    for group in (
        ("safetensors", "bin", "pt", "pth", "ckpt", "gguf", "ggml", "onnx", "h5", "msgpack", "model", "spm"),
        ("npy", "npz", "parquet", "arrow", "zip", "gz", "xz", "bz2", "tar", "7z", "zst"),
        ("png", "jpg", "jpeg", "webp", "gif", "wav", "mp3", "flac", "mp4"),
    )
    for suffix in group
)
"""Files that need LFS at any size, as on the Hub: binary formats, which have no line-by-line diff."""
MOST_LINE_VALUES: Final = 1000
_CONTENT: Final = re.compile(rb'"content"\s*:\s*"([A-Za-z0-9+/]*={0,2})"')
"""The content of a file in a line, as clients write it. Inside of strings nothing matches: quotes are escaped there."""


# ------------------------------------------------------------ before the bytes
@router.post("/api/validate-yaml")
@sent_by(anyone)
def validate_yaml(body: JsonBody) -> JSONResponse:
    """Check the metadata of a README as the Hub does; 400 when it has errors."""
    try:
        wrong, doubtful = check_metadata(read_metadata(body.text("content", limit=1 << 22)))
        errors, warnings = [one.text for one in wrong], [one.text for one in doubtful]
    except UnreadableCard as problem:
        errors, warnings = [str(problem)], []
    answer = {
        "errors": [{"message": text} for text in errors],
        "warnings": [{"message": text} for text in warnings],
    }
    if errors:
        headers = {"X-Error-Code": "BadRequest", "X-Error-Message": "Invalid metadata in README.md."}
        return JSONResponse(answer, status_code=400, headers=headers)
    return JSONResponse(answer)


@router.post("/api/models/{namespace}/{name}/preupload/{rev}")
def preupload(
    registry: RegistryOf,
    caller: CallerOf,
    repo_id: RepoOf,
    revision: RevisionOf,
    body: JsonBody,
    create_pr: str | None = None,
) -> JSONResponse:
    """Return each file's upload mode, whether `.gitignore` names it, and the digest of the present file."""
    check_no_pull_request(create_pr)
    files = body.objects("files", most=MAX_PREUPLOAD_FILES)
    with registry.db.read() as connection:
        row = registry.repos.find_writable(connection, caller, repo_id)
        head = commits.find_commit(connection, row, revision, prefers="branch")
        tree = commits.tree_of(connection, row.id, head)
        paths = [parse_path(file.text("path")) for file in files]
        before = {path: entry for path in paths if (entry := tree.find(path)) is not None}
        damaged = quotas.marked(connection, [entry.sha256 for entry in before.values()])
        rules_file = tree.find(IGNORE_FILE)
    rules = body.text_or_none("gitIgnore", limit=MAX_IGNORE_BYTES)
    if rules is None and rules_file is not None:
        rules = b"".join(registry.blobs.open(rules_file.sha256, 0, MAX_IGNORE_BYTES)).decode("utf-8", "replace")
    ignored = Ignored(rules or "")
    held = registry.blobs.holds({entry.sha256: entry.size for entry in before.values()}) - damaged
    answer, coming = [], 0
    sizes: list[int] = []
    lfs_sizes: list[int] = []
    for file, path in zip(files, paths, strict=True):
        size = file.number("size", most=registry.settings.limits.file_bytes)
        sample = _base64(file.text("sample", "", limit=4 * SAMPLE_BYTES), "sample")
        by_lfs = goes_by_lfs(path, size, sample)
        there = before.get(path)
        oid = there.etag if there is not None and there.sha256 in held else None
        if oid is None and not ignored.has(path):
            coming += 2 * size if by_lfs else size  # with Xet, the disk holds the chunks and the file
            sizes.append(size)
            lfs_sizes += [size] if by_lfs else []
        answer.append(
            {
                "path": path,
                "uploadMode": "lfs" if by_lfs else "regular",
                "shouldIgnore": ignored.has(path),
                "oid": oid,  # a client does not send a file again whose digest it finds here
            }
        )
    # early, as a Xet client retries for a long time, and then hides the reason
    check_room(registry.blobs, coming)
    with registry.db.read() as connection:
        for token_id, some in ((None, sizes), (caller.token_id, lfs_sizes)):
            quotas.check_announced(connection, registry.settings.limits, row, token_id=token_id, sizes=some)
    return JSONResponse({"files": answer})


def goes_by_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether clients send a file by LFS: a large one, one with an ending of binary files, or with a zero byte."""
    return size > 0 and (size >= REGULAR_BELOW_BYTES or path.lower().endswith(LFS_SUFFIXES) or b"\0" in sample)


# ------------------------------------------------------------ commit
@router.post("/api/models/{namespace}/{name}/commit/{rev}")
async def make_commit(
    request: Request,
    registry: RegistryOf,
    caller: CallerOf,
    repo_id: RepoOf,
    revision: RevisionOf,
    base: BaseUrl,
    create_pr: str | None = None,
) -> JSONResponse:
    """Apply the lines of the body to a branch, all or none."""
    check_no_pull_request(create_pr)

    def may_write() -> None:
        with registry.db.read() as connection:
            row = registry.repos.find_writable(connection, caller, repo_id)
            commits.find_commit(connection, row, revision, prefers="branch")

    await run_in_threadpool(may_write)  # before the server stores a byte of the body
    branch = revision.removeprefix("refs/heads/")

    def work(chunks: Iterator[bytes]) -> str:
        draft = _Draft(registry, caller, repo_id)
        with dropping_refused(registry, draft.regular):
            with registry.blobs.together() as put:
                for line in _lines(chunks, limit_bytes=_line_limit(registry)):
                    draft.take(line, put)
            return draft.commit(branch)

    made = await receive_with(request, caller.token_id, work)
    return JSONResponse({"success": True, "commitOid": made, "commitUrl": f"{base}/{repo_id}/commit/{made}"})


def _line_limit(registry: Registry) -> int:
    return registry.settings.limits.regular_file_bytes * 4 // 3 + (1 << 16)


def _lines(chunks: Iterator[bytes], *, limit_bytes: int) -> Iterator[bytearray]:
    rest = bytearray()
    for chunk in chunks:
        *whole, last = chunk.split(b"\n")
        for line in whole:
            rest += line
            if len(rest) > limit_bytes:
                raise too_large(limit_bytes)
            yield rest
            rest = bytearray()
        rest += last
        if len(rest) > limit_bytes:
            raise too_large(limit_bytes)
    yield rest


class _Draft:
    """A commit while the server reads it, line by line. It stores contents at once, so memory holds one line."""

    def __init__(self, registry: Registry, caller: Caller, repo_id: RepoId) -> None:
        self._registry, self._caller, self._repo_id = registry, caller, repo_id
        self._header: JsonObject | None = None
        self._operations: list[Operation] = []
        self._regular_bytes = self._checked_bytes = 0
        self.regular: dict[str, int] = {}  # the sizes of the files that came with the lines, by sha256
        self._stored: dict[str, StoredBlob] = {}  # the LFS files that the store has
        self._named: list[tuple[str, str, object, int]] = []  # LFS files: path, oid, size, place among the operations

    def take(self, line: bytearray, put: PutNext) -> None:
        """Read one line, and store its content with `put`."""
        if not line or line.isspace():
            return
        # the content of a file is not parsed, as text would take four times its memory
        found = _CONTENT.search(line)
        about = line if found is None else line[: found.start(1)] + line[found.end(1) :]
        try:
            value = strict_json(
                bytes(about), limit_bytes=self._registry.settings.limits.json_body_bytes, most_values=MOST_LINE_VALUES
            )
        except ValueError as error:
            raise bad_request(f"commit line {len(self._operations) + 1}: {error}") from None
        if not isinstance(value, dict):
            raise bad_request("commit: expected a JSON object on each line")
        item = JsonObject(value)
        key, content = item.text("key"), item.child("value")
        if key == "header":
            self._header = content
            return
        if len(self._operations) >= self._registry.settings.limits.operations:
            raise HttpRefusal(
                413, "TooLarge", f"a commit has at most {self._registry.settings.limits.operations} operations"
            )
        self._operations.append(
            self._operation(key, content, None if found is None else memoryview(line)[slice(*found.span(1))], put)
        )

    def _operation(self, key: str, content: JsonObject, encoded: memoryview | None, put: PutNext) -> Operation:
        path = parse_path(content.text("path").rstrip("/") if key == "deletedFolder" else content.text("path"))
        if key == "file":
            limit = self._registry.settings.limits.regular_file_bytes
            if content.text("encoding", "base64") != "base64":
                raise bad_request("encoding: expected base64")
            most = limit * 4 // 3 + 4
            if encoded is not None and len(encoded) > most:
                raise bad_request(f"content: expected at most {most} characters, got {len(encoded)}")
            data = _base64(encoded or content.text("content", limit=most), f"content of {path}")
            self._regular_bytes += len(data)
            self._check_quota()
            blob = put([data], None, len(data))
            self.regular[blob.sha256] = blob.size
            return Put(path=path, blob=blob, lfs=False)
        if key == "lfsFile":
            if content.text("algo", "sha256") != "sha256":
                raise bad_request("algo: expected sha256")
            oid = parse_sha256(content.text("oid"))
            self._named.append((path, oid, content.value("size"), len(self._operations)))
            return Put(path=path, blob=StoredBlob(oid, "", 0), lfs=True)  # `commit` looks it up
        if key == "deletedFile":
            return Delete(path=path)
        if key == "deletedFolder":
            return DeleteFolder(path=path)
        raise bad_request(f"key `{shown(key)}`: expected header, file, lfsFile, deletedFile or deletedFolder")

    def _check_quota(self) -> None:
        """Refuse early what cannot fit: before the first file is stored, and whenever twice as much has come."""
        limits = self._registry.settings.limits
        if not limits.namespace_bytes or self._regular_bytes < 2 * self._checked_bytes:
            return
        with self._registry.db.read() as connection:
            row = self._registry.repos.find_writable(connection, self._caller, self._repo_id)
            namespace, more = row.namespace, self._regular_bytes
            quotas.check_upload(connection, limits, namespace=namespace, token_id=None, more_bytes=more)
        self._checked_bytes = self._regular_bytes

    def _take_unchecked(self) -> None:
        """Find the stored LFS files; check those that the caller sent to a bucket without calling `verify`."""
        registry = self._registry
        with registry.db.read() as connection:
            row = registry.repos.find_writable(connection, self._caller, self._repo_id)
        named = {oid: size for _, oid, size, _ in self._named}
        self._stored = usable_blobs(registry, self._caller, row.id, named)
        missing = {oid: size for oid, size in named.items() if oid not in self._stored}
        for oid, size in missing.items():
            if type(size) is int and size >= 0:
                record_sent(registry, self._caller, row.id, oid, size)
        self._stored |= usable_blobs(registry, self._caller, row.id, missing)

    def commit(self, branch: str) -> str:
        """Make the commit and return its id."""
        if self._header is None:
            raise bad_request("commit: no line with the key `header`")
        header, registry = self._header, self._registry
        parent = header.text_or_none("parentCommit")
        if parent is not None and not COMMIT_PREFIX.fullmatch(parent):
            raise bad_request(f"parentCommit `{shown(parent)}`: expected 7 to 40 lower-case hex digits")
        self._take_unchecked()
        with registry.db.begin() as connection:
            lock_space(connection)
            row = registry.repos.find_writable(connection, self._caller, self._repo_id)
            lock_name(connection, f"quota of {row.namespace}")
            if set(self.regular) - registry.blobs.holds(self.regular):
                raise busy("the server removed an unused file with the same bytes at this moment; commit again")
            quotas.check_upload(
                connection,
                registry.settings.limits,
                namespace=row.namespace,
                token_id=None,
                more_bytes=self._regular_bytes,
                writes=True,
            )
            oids = {oid for _, oid, _, _ in self._named}
            known = {oid: registry.repos.known_blob(connection, self._caller, row.id, oid) for oid in oids}
            for path, oid, size, place in self._named:
                blob = self._stored.get(oid)
                if blob is None or known[oid] is None or (size is not None and size != blob.size):
                    raise bad_request(f"{path}: LFS object {oid} is missing or has another size; upload it again")
                self._operations[place] = Put(path=path, blob=blob, lfs=True)
            quotas.unmark(connection, list(self.regular))
            proposal = Proposal(
                branch=branch,
                title=header.text("summary", "", limit=10_000) or "commit",
                message=header.text("description", "", limit=1 << 20),
                author=str(self._caller.user),
                parent=parent,
                operations=tuple(self._operations),
                writes=self._caller.writes,
            )
            return commits.commit(connection, registry.blobs, row, proposal, max_files=registry.settings.limits.files)


def _base64(text: str | memoryview, what: str) -> bytes:
    """Return the bytes; a view holds characters of base64 only, and is not copied."""
    with contextlib.suppress(binascii.Error, ValueError):
        if isinstance(text, str):
            return base64.b64decode(text, validate=True)
        if len(text) % 4 == 0:
            return binascii.a2b_base64(text)
    raise bad_request(f"{shown(what)}: expected base64")


def check_no_pull_request(create_pr: str | None) -> None:
    """Raise 501 for a commit that would open a pull request."""
    if create_pr in {"1", "true", "True"}:
        raise not_offered("this registry has no pull requests; commit to a branch")


MAX_LFS_OBJECTS: Final = 1000
HASH_NAMES: Final = ("sha256", "sha_256")  # the second is that of huggingface.js
MAX_PARTS: Final = 10_000
MAX_LINKS: Final = 4000
"""The most parts of all objects in one batch: the more bytes a batch announces, the larger its parts."""
DIRECT_BYTES: Final = 5 << 30  # the largest PUT of S3
LARGEST_NUMBER: Final = (1 << 53) - 1  # the largest integer that every JSON reader represents exactly
_CLOCKS_DIFFER_S: Final = 3600
_LOOK_EVERY: Final = 32  # objects between two checks that the client is still connected


def lfs_objects(body: JsonObject) -> list[tuple[str, int]]:
    """Return the digests and sizes in a batch of LFS.

    Raises:
        HttpRefusal: 400.
    """
    if body.text("hash_algo", "sha256") not in HASH_NAMES:
        raise bad_request("hash_algo: expected sha256")
    listed = body.objects("objects", most=MAX_LFS_OBJECTS)
    return [(parse_sha256(item.text("oid")), item.number("size", most=LARGEST_NUMBER)) for item in listed]


def lfs_uploads(
    request: Request, registry: Registry, caller: Caller, repo_id: RepoId, body: JsonObject, base: str
) -> JSONResponse:
    """Return the signed upload links of each object; none when the object is stored and the caller may use it."""
    can_split = "multipart" in body.texts("transfers", most=20)
    limits = registry.settings.limits
    objects: list[dict[str, Any]] = []
    wanted = lfs_objects(body)
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
            raise bad_request("the client has disconnected; send the file again")
        claims = {"user": caller.user, "repo": row.id, "token": caller.token_id}
        claims |= {"oid": answer["oid"], "size": answer["size"], "upload": secrets.token_hex(8)}
        answer["actions"] = _Links(registry, base, claims).actions(part_bytes=part_bytes, repo_id=repo_id)
    split = any("chunk_size" in answer["actions"]["upload"]["header"] for answer in sent)
    return JSONResponse({"transfer": "multipart" if split else "basic", "objects": objects})


def usable_blobs(registry: Registry, caller: Caller, repo_number: int, digests: Iterable[str]) -> dict[str, StoredBlob]:
    """Return the blobs of `digests` that are stored and that the caller may use in a repository, by digest.

    It looks up each blob in the store: a row of the database proves nothing.
    """
    with registry.db.read() as connection:
        known = [registry.repos.known_blob(connection, caller, repo_number, digest) for digest in set(digests)]
    held = registry.blobs.holds({blob.sha256: blob.size for blob in known if blob is not None})
    return {blob.sha256: blob for blob in known if blob is not None and blob.sha256 in held}


def _part_bytes(limits: ServerLimits, sizes: list[int]) -> int:
    """Return the size of a batch's parts: at most `MAX_LINKS` of them, with a final one for each object.

    Raises:
        HttpRefusal: 413 when a part would exceed the limit of a bucket.
    """
    split = sum(size for size in sizes if size >= limits.multipart_from_bytes)
    needed = ceil(split / MAX_LINKS)
    if needed > DIRECT_BYTES:
        raise HttpRefusal(
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
        """Return the member `actions`: one upload, or parts of `part_bytes` for a large object."""
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
    """Name the upload: the same object of the same user for the same repository always has the same name."""
    facts = json.dumps([claims[name] for name in ("repo", "user", "oid", "size")])
    return hashlib.sha256(facts.encode()).hexdigest()[:48]


def _holder(purpose: str) -> Sender:
    """Return the holder of a signed link of this purpose, while the token works for which it was signed."""

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
    except HttpRefusal:
        with registry.db.begin() as connection:
            lock_space(connection, shared=False)  # another sender finds them gone, and sends them again
            unnamed = set(digests)
            for some in slices(sorted(unnamed)):
                unnamed -= set(connection.scalars(select(blobs.c.sha256).where(blobs.c.sha256.in_(some))))
            with contextlib.suppress(StoreUnreachable):  # then `gc` removes them
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
