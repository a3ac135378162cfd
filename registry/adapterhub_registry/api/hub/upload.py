"""Hub API: the requests before an upload, and the commit that names it. `lfs` and `xet` receive the bytes."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from collections.abc import Iterator
from typing import Final

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from adapterhub.core.digests import strict_json
from adapterhub.core.errors import shown
from adapterhub.formats.cards.metadata import UnreadableCard, check_metadata, read_metadata
from adapterhub_registry.access.tokens import Caller
from adapterhub_registry.api.bodies import anyone, hub_router, receive_with, sent_by
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
from adapterhub_registry.api.hub.ignore import IGNORE_FILE, MAX_IGNORE_BYTES, Ignored
from adapterhub_registry.api.hub.lfs import dropping_refused, record_sent, usable_blobs
from adapterhub_registry.database.db import lock_name, lock_space
from adapterhub_registry.errors import Refusal, bad_request, busy, not_offered, too_large
from adapterhub_registry.names import COMMIT_PREFIX, RepoId, parse_path, parse_sha256
from adapterhub_registry.repos import commits, damage, quotas
from adapterhub_registry.repos.changes import Delete, DeleteFolder, Operation, Put
from adapterhub_registry.repos.commits import Proposal
from adapterhub_registry.storage.blobs import StoredBlob, check_room

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
    """The upload mode of each file, whether `.gitignore` names it, and the digest of the file that is there now."""
    check_no_pull_request(create_pr)
    files = body.objects("files", most=MAX_PREUPLOAD_FILES)
    with registry.db.read() as connection:
        row = registry.repos.find_writable(connection, caller, repo_id)
        head = commits.find_commit(connection, row, revision, prefers="branch")
        tree = commits.tree_of(connection, row.id, head)
        paths = [parse_path(file.text("path")) for file in files]
        before = {path: entry for path in paths if (entry := tree.find(path)) is not None}
        damaged = damage.marked(connection, [entry.sha256 for entry in before.values()])
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
        by_lfs = _goes_by_lfs(path, size, sample)
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


def _goes_by_lfs(path: str, size: int, sample: bytes) -> bool:
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
            for line in _lines(chunks, limit_bytes=_line_limit(registry)):
                draft.take(line)
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

    def take(self, line: bytearray) -> None:
        """Read one line."""
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
            raise Refusal(
                413, "TooLarge", f"a commit has at most {self._registry.settings.limits.operations} operations"
            )
        self._operations.append(
            self._operation(key, content, None if found is None else memoryview(line)[slice(*found.span(1))])
        )

    def _operation(self, key: str, content: JsonObject, encoded: memoryview | None) -> Operation:
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
            blob = self._registry.blobs.put([data], size=len(data))
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
            )
            oids = {oid for _, oid, _, _ in self._named}
            known = {oid: registry.repos.known_blob(connection, self._caller, row.id, oid) for oid in oids}
            for path, oid, size, place in self._named:
                blob = self._stored.get(oid)
                if blob is None or known[oid] is None or (size is not None and size != blob.size):
                    raise bad_request(f"{path}: LFS object {oid} is missing or has another size; upload it again")
                self._operations[place] = Put(path=path, blob=blob, lfs=True)
            damage.unmark(connection, list(self.regular))
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
    """The bytes; a view holds characters of base64 only, and is not copied."""
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
