"""Publishes a version in one request: its files, the commit, the tag and the move of an alias to it, all or none.

A push by the Hub's API takes nine requests, and half of their cost is a check of each file whether it is there. The
body is a line of JSON, then the bytes of the files, in their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final

from fastapi import Request
from pydantic import Field, StringConstraints, ValidationError

from adapterhub.core.digests import strict_json
from adapterhub.core.errors import shown
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, MEDIA_TYPES, SIGNATURE_FILE, WEIGHTS_FILE
from adapterhub_registry import names
from adapterhub_registry.access.audit import log_change
from adapterhub_registry.access.callers import Caller
from adapterhub_registry.access.trusted import origin_of
from adapterhub_registry.api.adapt_models import (
    FORBIDDEN,
    MISSING,
    AdapterOf,
    ApiAnswer,
    ApiQuestion,
    adapt_router,
    problems,
    whole,
)
from adapterhub_registry.api.bodies import receive_with
from adapterhub_registry.api.context import CallerOf, Registry, RegistryOf
from adapterhub_registry.api.hub.upload import dropping_refused
from adapterhub_registry.database.db import lock_name, lock_space
from adapterhub_registry.errors import bad_request, busy, too_large
from adapterhub_registry.names import RepoId
from adapterhub_registry.repos import adapters, aliases, commits, quotas
from adapterhub_registry.repos.commits import Delete, Operation, Proposal, Put
from adapterhub_registry.repos.repos import MAIN
from adapterhub_registry.storage.blobs import StoredBlob, check_room

MOST_LINE_BYTES: Final = 1 << 16
_FIRST_LINE: Final = "expected the version and its files as JSON"
FILES: Final = frozenset({*MEDIA_TYPES, SIGNATURE_FILE, CARD_FILE, MANIFEST_FILE})
"""What a version may hold; of these, the head of the branch keeps none that the version lacks."""

router = adapt_router()


class SentFile(ApiQuestion):
    """A file whose bytes follow."""

    path: Annotated[str, StringConstraints(max_length=96)]
    size: Annotated[int, Field(ge=0, le=(1 << 53) - 1)]
    sha256: Annotated[str, StringConstraints(pattern=whole(names.SHA256))]


class SentVersion(ApiQuestion):
    """The first line of a body: the version, the title of its commit, and its files in the order of their bytes.

    `alias` shall mean the version then, and no other.
    """

    version: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[0-9A-Za-z.!+_-]+$")]
    title: Annotated[str, StringConstraints(min_length=1, max_length=300)]
    files: Annotated[list[SentFile], Field(min_length=1, max_length=len(FILES))]
    alias: Annotated[str, StringConstraints(min_length=1, max_length=96)] | None = None


class PublishedFacts(ApiAnswer):
    """What was published: the commit, which its tag names."""

    repo: str
    version: str
    tag: str
    commit: str


@router.post(
    "/adapters/{namespace}/{name}/versions",
    responses={
        **MISSING,
        **FORBIDDEN,
        **problems({409: "The version or the name of the alias is taken", 413: "A file is too large"}),
        **problems({422: "The version is local, or does not meet the rule of its namespace"}),
    },
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {}}}},
)
async def publish(request: Request, registry: RegistryOf, caller: CallerOf, repo_id: AdapterOf) -> PublishedFacts:
    """Publish a version on `main` in one request: a line of JSON (`SentVersion`), then the bytes of its files.

    Either the version is there with its commit and its tag, and the alias means it, or nothing is. The repository has
    to exist. The answer comes when a power cut cannot take it back.
    """
    return await receive_with(request, caller.token_id, lambda chunks: _publish(registry, caller, repo_id, chunks))


def _publish(registry: Registry, caller: Caller, repo_id: RepoId, chunks: Iterator[bytes]) -> PublishedFacts:
    body = _Body(chunks)
    sent = _parsed(body.line())
    limits = registry.settings.limits
    for file in sent.files:
        most = limits.file_bytes if file.path == WEIGHTS_FILE else limits.regular_file_bytes
        if file.size > most:
            raise too_large(most)
    total = sum(file.size for file in sent.files)
    check_room(registry.blobs, total)
    with registry.db.read() as connection:
        row = registry.repos.find_writable(connection, caller, repo_id, "release")
        registry.repos.check_may(caller, row.full_name, "write")
        sizes = [file.size for file in sent.files]
        quotas.check_announced(connection, limits, row, token_id=caller.token_id, sizes=sizes)
    stored: dict[str, StoredBlob] = {}
    with dropping_refused(registry, stored):
        with registry.blobs.together() as put:
            for file in sent.files:
                blob = put(body.exactly(file.size), file.sha256, file.size)
                stored[blob.sha256] = blob
            body.check_end()
        return _commit(registry, caller, repo_id, sent, stored)


def _commit(
    registry: Registry, caller: Caller, repo_id: RepoId, sent: SentVersion, stored: dict[str, StoredBlob]
) -> PublishedFacts:
    tag, limits = f"v{sent.version}", registry.settings.limits
    with registry.db.begin() as connection:
        lock_space(connection)
        row = registry.repos.find_writable(connection, caller, repo_id, "release")
        registry.repos.check_may(caller, row.full_name, "write")
        lock_name(connection, f"quota of {row.namespace}")
        if sent.alias is not None:
            aliases.lock(connection, row)  # before the refs, as all do that move one
        here = {file.path: stored[file.sha256] for file in sent.files}
        small = {blob.sha256: blob.size for path, blob in here.items() if path != WEIGHTS_FILE}
        if set(small) - registry.blobs.holds(small):
            raise busy("the server removed an unused file with the same bytes at this moment; push again")
        quotas.check_upload(
            connection,
            registry.settings.limits,
            namespace=row.namespace,
            token_id=None,
            more_bytes=sum(small.values()),
            writes=True,
        )
        quotas.unmark(connection, list(small))
        if (weights := here.get(WEIGHTS_FILE)) is not None:
            registry.repos.record_upload(connection, row.id, str(caller.user), weights, token_id=caller.token_id)
        tree = commits.locked_head(connection, row, MAIN)
        changes: list[Operation] = [Put(path=path, blob=blob, lfs=path == WEIGHTS_FILE) for path, blob in here.items()]
        changes += [Delete(path=path) for path in sorted(FILES - here.keys()) if tree.find(path) is not None]
        proposal = Proposal(
            branch=MAIN,
            title=sent.title,
            message="",
            author=str(caller.user),
            parent=None,
            operations=tuple(changes),
            writes=caller.writes,
            tag=adapters.NewTag(name=tag, publisher=origin_of(connection, caller)),
        )
        made = commits.commit(connection, registry.blobs, row, proposal, max_files=limits.files, most_refs=limits.refs)
        if not adapters.record_release(connection, row, "version.published", tag=tag):
            raise bad_request("files: expected an adapter with its `adapter_config.json`; nothing was published")
        log_change(connection, caller.by, "release", f"tag {tag}", repo=row.full_name)
        if sent.alias is not None:
            wanted = [(sent.version, 1.0)]
            aliases.set_alias(connection, row, sent.alias, wanted, by=caller.actor, most_refs=limits.refs)
    return PublishedFacts(repo=row.full_name, version=sent.version, tag=tag, commit=made)


def _parsed(line: bytes) -> SentVersion:
    """Return the first line.

    Raises:
        HttpRefusal: 400.
    """
    try:
        sent = SentVersion.model_validate(strict_json(line, limit_bytes=MOST_LINE_BYTES))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise bad_request(f"first line: {shown(where, 80)}: {first['msg']}; {_FIRST_LINE}") from None
    except ValueError as error:
        raise bad_request(f"first line: {shown(str(error), 160)}; {_FIRST_LINE}") from None
    paths = [file.path for file in sent.files]
    strange = next((path for path in paths if path not in FILES), None)
    if strange is not None:
        raise bad_request(f"file `{shown(strange)}`: a version holds only {', '.join(sorted(FILES))}")
    if len(set(paths)) < len(paths):
        raise bad_request("files: expected each path once")
    if MANIFEST_FILE not in paths:
        raise bad_request(f"files: expected `{MANIFEST_FILE}`, the manifest of the version")
    return sent


class _Body:
    """The pieces of a body, cut again: one line, then each file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def line(self) -> bytes:
        """Return the text before the first end of a line.

        Raises:
            HttpRefusal: 400 where it is too long, or there is no end of a line.
        """
        begun = b""
        while b"\n" not in begun and len(begun) <= MOST_LINE_BYTES:
            more = next(self._chunks, b"")
            if not more:
                break
            begun += more
        line, end, rest = begun.partition(b"\n")
        if not end or len(line) > MOST_LINE_BYTES:
            raise bad_request(f"body: expected a first line of JSON with at most {MOST_LINE_BYTES} bytes")
        self._rest = memoryview(rest)
        return line

    def exactly(self, size: int) -> Iterator[bytes]:
        """Yield the next bytes; fewer where the body ends, which the store finds."""
        while size > 0:
            if not self._rest:
                more = next(self._chunks, b"")
                if not more:
                    return
                self._rest = memoryview(more)
            piece, self._rest = self._rest[:size], self._rest[size:]
            size -= len(piece)
            yield bytes(piece)

    def check_end(self) -> None:
        """Raise 400 where more bytes follow than the files have."""
        if self._rest or any(self._chunks):
            raise bad_request("body: expected no byte after the last file")
