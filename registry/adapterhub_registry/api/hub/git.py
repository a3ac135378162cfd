"""git over HTTP, for `git clone`, `fetch` and `pull`, and the batches of git-lfs; nothing is written by git.

This is the stateless protocol of git, version 0, which every client speaks: `info/refs` lists the refs, and
`git-upload-pack` answers what a client wants and has with a pack (git's documents gitprotocol-http and -pack). A
refusal is plain text, which git prints. Without a token, a repository that is not there and one that needs a token
answer alike: 401, after which git sends the token that its user gave.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from io import BytesIO
from typing import TYPE_CHECKING, Annotated, Any, Final

import anyio
from anyio import to_thread
from fastapi import Depends, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from sqlalchemy.engine import Connection
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from adapterhub.core.errors import AdapterHubError, shown
from adapterhub_registry.access.callers import Caller
from adapterhub_registry.api.bodies import OPEN_BODY_BYTES, FairSlots, GuardedRoute, hub_router, sent_by
from adapterhub_registry.api.context import BaseUrl, CallerOf, JsonBody, Registry, RegistryOf, RepoOf, caller_of
from adapterhub_registry.api.hub.files import lfs_links
from adapterhub_registry.api.hub.upload import lfs_objects, lfs_uploads
from adapterhub_registry.errors import HttpRefusal, bad_request, gated, too_large
from adapterhub_registry.names import RepoId, known_repo_id
from adapterhub_registry.repos import adapters
from adapterhub_registry.repos.git import HEAD_REF, History, Lacking, Pack, Wanted, history_of, lacking

if TYPE_CHECKING:
    from dulwich.protocol import Protocol

COMPUTED_AT_ONCE: Final = 2
"""How many histories of repositories one server computes at the same time: it is work of the processor alone."""
UNPACKED_BYTES: Final = 8 << 20
MOST_WARNINGS: Final = 5
_SIDE_BAND_BYTES: Final = 65515
_PACK, _WORDS, _ERROR = 1, 2, 3
_CAPABILITIES: Final = (
    b"multi_ack_detailed no-done side-band-64k shallow no-progress include-tag allow-tip-sha1-in-want"
    b" allow-reachable-sha1-in-want object-format=sha1 agent=adapterhub"
).split()
_CLOSED: Final = {HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN, HTTPStatus.UNAUTHORIZED}
_CHALLENGE: Final = {"WWW-Authenticate": 'Basic realm="a token of the registry as the password"'}


class GitSlots(FairSlots):
    """The slots of clones and fetches, and the few threads that compute histories."""

    def __init__(self, total: int) -> None:
        super().__init__(total, "clones and fetches by git")
        self.threads = anyio.CapacityLimiter(COMPUTED_AT_ONCE)


class GitRoute(GuardedRoute):
    """A route for git or git-lfs, which send a token only after status 401; git prints plain text."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Word refusals for git."""
        handle, is_lfs = super().get_route_handler(), "/info/lfs/" in self.path

        async def handle_git(request: Request) -> Response:
            try:
                return await handle(request)
            except HttpRefusal as refusal:
                if refusal.status in _CLOSED and (refusal.status == 401 or "authorization" not in request.headers):
                    refusal.status, refusal.headers = 401, {**refusal.headers, **_CHALLENGE}
                if is_lfs:
                    raise
                answer = refusal.response()
                headers = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
                return PlainTextResponse(f"{refusal.message}\n", status_code=refusal.status, headers=headers)

        return handle_git


router = hub_router(GitRoute)


async def git_repo_of(namespace: str, name: str) -> RepoId:
    """Return the repository in the address of a remote, which may end in `.git`."""
    return known_repo_id(namespace, name.removesuffix(".git"))


GitRepo = Annotated[RepoId, Depends(git_repo_of)]


async def reader(request: Request, registry: Registry) -> int:
    """Return a caller who may read the files of the repository in the path."""
    caller, given = await caller_of(request, registry), request.path_params
    repo_id = await git_repo_of(given["namespace"], given["name"])
    await run_in_threadpool(_check_files, registry, caller, repo_id)
    return OPEN_BODY_BYTES


def _check_files(registry: Registry, caller: Caller, repo_id: RepoId) -> None:
    with registry.db.read() as connection:
        registry.repos.find_files(connection, caller, repo_id)


# ------------------------------------------------------------ refs
@router.get("/models/{namespace}/{name}/info/refs")
@router.get("/{namespace}/{name}/info/refs")
async def refs(
    request: Request, registry: RegistryOf, caller: CallerOf, repo_id: GitRepo, base: BaseUrl, service: str = ""
) -> Response:
    """Return the refs of a repository, with what this server can do.

    501 for `git push`, with the commands that push.
    """
    if service == "git-receive-pack":
        return _no_push(base, repo_id)
    await run_in_threadpool(_check_files, registry, caller, repo_id)
    if service != "git-upload-pack":
        raise bad_request("expected `?service=git-upload-pack`, which git has sent since version 1.6.6")
    slots: GitSlots = request.app.state.git_slots
    with slots.hold(caller.token_id):
        listed = await to_thread.run_sync(partial(_refs, registry, caller, repo_id), limiter=slots.threads)
    headers = {"Cache-Control": "no-cache, max-age=0, must-revalidate"}
    return Response(listed, headers=headers, media_type="application/x-git-upload-pack-advertisement")


def _refs(registry: Registry, caller: Caller, repo_id: RepoId) -> bytes:
    from dulwich.protocol import format_ref_line, pkt_line, symref_capabilities

    history, _ = _history(registry, caller, repo_id)
    found = [(b"HEAD", history.refs[HEAD_REF])] if HEAD_REF in history.refs else []
    for name, git in history.refs.items():
        found.append((name, git))
        if git in history.tags:
            found.append((name + b"^{}", history.tags[git].target))
    known = [*_CAPABILITIES, *symref_capabilities([(b"HEAD", HEAD_REF)])]
    lines = (pkt_line(format_ref_line(*one, None if at else known)) for at, one in enumerate(found))
    return b"".join([pkt_line(b"# service=git-upload-pack\n"), pkt_line(None), *lines, pkt_line(None)])


def _history(registry: Registry, caller: Caller, repo_id: RepoId) -> tuple[History, str]:
    with registry.db.read() as connection:
        row = registry.repos.find_files(connection, caller, repo_id)
        return history_of(connection, registry.blobs, row, registry.settings.limits, registry.git), row.full_name


@router.post("/models/{namespace}/{name}/git-receive-pack")
@router.post("/{namespace}/{name}/git-receive-pack")
async def receive_pack(repo_id: GitRepo, base: BaseUrl) -> Response:
    """501: git pushes nothing; the body is not read."""
    return _no_push(base, repo_id)


def _no_push(base: str, repo_id: RepoId) -> Response:
    commands = f"  adapt push NAME --to {repo_id}\n  HF_ENDPOINT={base} hf upload {repo_id} FOLDER\n"
    words = "this registry takes no `git push`; release an adapter, or upload the files:"
    return PlainTextResponse(f"{words}\n{commands}", status_code=501)


# ------------------------------------------------------------ packs
@router.post("/models/{namespace}/{name}/git-upload-pack")
@router.post("/{namespace}/{name}/git-upload-pack")
@sent_by(reader)
async def upload_pack(request: Request, registry: RegistryOf, caller: CallerOf, repo_id: GitRepo) -> Response:
    """Negotiate which commits a client lacks, then send them as a pack."""
    body = _unpacked(await request.body(), request.headers.get("content-encoding"))
    slots: GitSlots = request.app.state.git_slots
    with contextlib.ExitStack() as held:
        held.enter_context(slots.hold(caller.token_id))
        work = partial(_answer, registry, caller, repo_id, body)
        content = await to_thread.run_sync(work, limiter=slots.threads)
        return _Held(content, held.pop_all())


class _Held(StreamingResponse):
    """An answer that holds a slot until it has been sent."""

    def __init__(self, content: Iterator[bytes], held: contextlib.ExitStack) -> None:
        headers = {"Cache-Control": "no-cache, max-age=0, must-revalidate"}
        super().__init__(content, headers=headers, media_type="application/x-git-upload-pack-result")
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, then give the slot back."""
        with self._held:
            await super().__call__(scope, receive, send)


def _unpacked(body: bytes, encoding: str | None) -> bytes:
    """Return the body of a request, which git compresses when it is long.

    Raises:
        HttpRefusal: 413 when it unpacks to more than `UNPACKED_BYTES`, 400 or 415 if it is not gzip.
    """
    if encoding is None:
        return body
    if encoding.lower() not in {"gzip", "x-gzip"}:
        raise HttpRefusal(415, "BadRequest", "Content-Encoding: expected gzip")
    stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        found = stream.decompress(body, UNPACKED_BYTES + 1)
    except zlib.error:
        raise bad_request("body: not gzip, expected gzip as its header states") from None
    if len(found) > UNPACKED_BYTES:
        raise too_large(UNPACKED_BYTES)
    if not stream.eof:
        raise bad_request("body: the gzip stream is cut off; send it again")
    return found


@dataclass
class _Asked:
    """One request for a pack; `ends` where a flush follows the last commit that the client has, `done` after all."""

    wants: list[bytes] = field(default_factory=list)
    shallow: set[bytes] = field(default_factory=set)
    haves: list[bytes] = field(default_factory=list)
    capabilities: frozenset[bytes] = frozenset()
    depth: int = 0
    done: bool = False
    ends: bool = False


def _asked(body: bytes) -> _Asked:
    """Parse a request.

    Raises:
        HttpRefusal: 400.
    """
    from dulwich.errors import GitProtocolError
    from dulwich.protocol import Protocol

    try:
        return _parsed(Protocol(BytesIO(body).read, len))
    except (GitProtocolError, ValueError) as error:
        raise bad_request(f"not a request of git: {shown(str(error), 200)}; use `git clone` or `git fetch`") from None


def _parsed(lines: Protocol) -> _Asked:
    """Raise `GitProtocolError` or `ValueError` for anything but a request."""
    from dulwich.protocol import extract_want_line_capabilities

    asked = _Asked()
    while line := lines.read_pkt_line():
        if not asked.wants:
            line, given = extract_want_line_capabilities(line)
            asked.capabilities = frozenset(given)
        word, _, value = line.rstrip(b"\n").partition(b" ")
        if word == b"want":
            asked.wants.append(_id(value))
        elif word == b"shallow":
            asked.shallow.add(_id(value))
        elif word == b"deepen" and value.isdigit() and 0 < len(value) <= 10 and int(value):
            asked.depth = int(value)
        else:
            raise ValueError(f"`{line[:40]!r}` among what is wanted")
    while not asked.done and not asked.ends and not lines.eof():
        line = lines.read_pkt_line()
        if line is None:
            asked.ends = True
        elif line.rstrip(b"\n") == b"done":
            asked.done = True
        else:
            word, _, value = line.rstrip(b"\n").partition(b" ")
            if word != b"have":
                raise ValueError(f"`{line[:40]!r}` among what the client has")
            asked.haves.append(_id(value))
    return asked


def _id(value: bytes) -> bytes:
    from dulwich.objects import valid_hexsha

    if len(value) != 40 or not valid_hexsha(value):
        raise ValueError(f"`{value[:40]!r}` is not the id of an object")
    return value.lower()


def _answer(registry: Registry, caller: Caller, repo_id: RepoId, body: bytes) -> Iterator[bytes]:
    """Return the answer to a request for a pack, which is made while it is sent.

    Raises:
        HttpRefusal: the caller may not read the repository, or the request is malformed. All later refusals are lines
            of the answer, which git prints.
    """
    from dulwich.protocol import pkt_line

    asked = _asked(body)
    try:
        history, full_name = _history(registry, caller, repo_id)
        for git in asked.wants:
            if history.commit_of(git) is None:
                raise bad_request(
                    f"`{full_name}` has no commit {git.decode()} that a branch or a tag reaches; fetch one of these"
                )
        wanted = Wanted(asked.wants, asked.haves, asked.shallow, asked.depth)
        found = lacking(history, wanted)
        lines, sends = _negotiated(history, asked, found)
        if not sends:
            return iter(lines)
        limits = registry.settings.limits
        pack = Pack(registry.blobs, full_name, history, found, _tags(history, asked, found), limits)
        with registry.db.read() as connection:
            pack.count(connection)
            warnings = _warnings(connection, history, asked) if b"no-progress" not in asked.capabilities else []
    except HttpRefusal as refusal:
        if refusal.status in _CLOSED:
            raise
        return iter([pkt_line(b"ERR " + refusal.message.encode())])
    if not asked.haves:
        registry.downloads.count(history.repo_id)
    chunks = pack.chunks(registry.db)
    return _joined(lines, _in_bands(chunks, warnings) if b"side-band-64k" in asked.capabilities else chunks)


def _negotiated(history: History, asked: _Asked, found: Lacking) -> tuple[list[bytes], bool]:
    """Return the lines before a pack, and whether the pack follows them."""
    from dulwich.protocol import format_ack_line, format_shallow_line, format_unshallow_line, pkt_line

    lines: list[bytes] = []
    if asked.depth:
        lines += [pkt_line(format_shallow_line(git)) for git in found.shallow]
        lines += [pkt_line(format_unshallow_line(git)) for git in found.unshallow]
        lines.append(pkt_line(None))
    if not asked.wants or not (asked.done or asked.ends):
        return lines, False
    common = [git for git in dict.fromkeys(asked.haves) if history.commit_of(git) is not None]
    in_detail = b"multi_ack_detailed" in asked.capabilities
    ready = in_detail and found.ready and bool(common)
    if in_detail:
        lines += [pkt_line(format_ack_line(git, b"common")) for git in common]
    elif common and not asked.done:
        lines.append(pkt_line(format_ack_line(common[0])))
    if asked.ends:
        if ready:
            lines.append(pkt_line(format_ack_line(common[-1], b"ready")))
        if in_detail or not common:
            lines.append(pkt_line(b"NAK\n"))
        if not (ready and b"no-done" in asked.capabilities):
            return lines, False
    lines.append(pkt_line(format_ack_line(common[-1]) if common else b"NAK\n"))
    return lines, True


def _tags(history: History, asked: _Asked, found: Lacking) -> list[bytes]:
    """Return the objects of tags for the client: those that it wants, and if it asks, those of its commits."""
    wanted, sent = set(asked.wants), set(found.send)
    also = sent if b"include-tag" in asked.capabilities else frozenset()
    had = set(asked.haves)
    return [git for git, tag in history.tags.items() if git not in had and (git in wanted or tag.target in also)]


def _warnings(connection: Connection, history: History, asked: _Asked) -> list[str]:
    """Return the warnings about yanked versions among the commits that the client wants."""
    of_commit = adapters.warnings_of(connection, history.repo_id)
    wanted = dict.fromkeys(history.commit_of(git) for git in asked.wants) if of_commit else ()
    ids = (history.commits[git].id for git in wanted if git is not None)
    found = [of_commit[commit_id] for commit_id in ids if commit_id in of_commit]
    more = len(found) - MOST_WARNINGS
    return found if more <= 0 else [*found[:MOST_WARNINGS], f"and {more} more yanked versions"]


def _in_bands(chunks: Iterable[bytes], warnings: Sequence[str]) -> Iterator[bytes]:
    """Yield a pack in packets of the side band; an error on the way becomes words that git prints."""
    from dulwich.protocol import pkt_line

    for words in warnings:
        yield pkt_line(bytes([_WORDS]) + f"{words}\n".encode())
    try:
        for some in _pieces(chunks, _SIDE_BAND_BYTES):
            yield pkt_line(bytes([_PACK]) + some)
    except (AdapterHubError, HttpRefusal, KeyError) as error:  # removed meanwhile
        words = "a part of the repository was removed meanwhile; try again"
        yield pkt_line(bytes([_ERROR]) + f"{getattr(error, 'message', words)}\n".encode())
        return
    yield pkt_line(None)


def _joined(lines: Iterable[bytes], rest: Iterable[bytes]) -> Iterator[bytes]:
    yield b"".join(lines)
    yield from _pieces(rest, _SIDE_BAND_BYTES)


def _pieces(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the same bytes in pieces of `size`, the last one shorter: many small objects make many small packets."""
    waiting = bytearray()
    for chunk in chunks:
        waiting += chunk
        while len(waiting) >= size:
            yield bytes(waiting[:size])
            del waiting[:size]
    if waiting:
        yield bytes(waiting)


# ------------------------------------------------------------ git-lfs
async def reader_or_writer(request: Request, registry: Registry) -> int | None:
    """Return a caller who may change the repository in the path, or read its files, whose body is smaller."""
    caller, given = await caller_of(request, registry), request.path_params
    repo_id = known_repo_id(given["namespace"], given["name"])

    def look() -> int | None:
        with registry.db.read() as connection:
            row = registry.repos.find(connection, caller, repo_id)
            if caller.writes(row.full_name):
                return None
            if not registry.repos.reads(connection, caller, row):
                raise gated(row.full_name)
        return OPEN_BODY_BYTES

    return await run_in_threadpool(look)


@router.post("/models/{namespace}/{name}.git/info/lfs/objects/batch")
@router.post("/{namespace}/{name}.git/info/lfs/objects/batch")
@sent_by(reader_or_writer)
def lfs_batch(
    request: Request, registry: RegistryOf, caller: CallerOf, repo_id: RepoOf, body: JsonBody, base: BaseUrl
) -> JSONResponse:
    """Return the signed links by which a client uploads or downloads objects."""
    operation = body.text("operation")
    if operation == "upload":
        return lfs_uploads(request, registry, caller, repo_id, body, base)
    if operation != "download":
        raise bad_request("operation: expected upload or download")
    wanted = lfs_objects(body)
    links = lfs_links(registry, caller, repo_id, base, [oid for oid, _ in wanted])
    objects: list[dict[str, Any]] = []
    for oid, size in wanted:
        answer: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
        if oid in links:
            found, href = links[oid]
            ttl_s = registry.settings.limits.href_ttl_s
            answer |= {"size": found, "actions": {"download": {"href": href, "expires_in": ttl_s}}}
        else:
            answer["error"] = {"code": 404, "message": f"`{repo_id}` has no file {oid}"}
        objects.append(answer)
    return JSONResponse({"transfer": "basic", "hash_algo": "sha256", "objects": objects})
