"""What a client asks to choose a build: the versions of an adapter, and ahead, for many adapters, all that follows."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Annotated, Any, Final
from urllib.parse import quote, urlencode

from fastapi import Path, Query
from pydantic import BaseModel, Field, StringConstraints
from sqlalchemy import Row, select
from sqlalchemy.engine import Connection

from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, MEDIA_TYPES, SIGNATURE_FILE, WEIGHTS_FILE
from adapterhub.formats.safetensors.file import LENGTH_BYTES
from adapterhub_registry.access.tokens import Caller
from adapterhub_registry.api.adapt_models import NAME, Answer, Info, Problem, Release, Releases, Yanked
from adapterhub_registry.api.adapt_router import adapt_router
from adapterhub_registry.api.context import CallerOf, Registry, RegistryOf, dumped
from adapterhub_registry.api.hub.files import SMALL_BYTES, file_facts
from adapterhub_registry.api.hub.model_info import iso_time
from adapterhub_registry.api.hub.routes import branches_and_tags
from adapterhub_registry.api.tests_api import ResultQuery, results_of, rule_seen
from adapterhub_registry.database.db import commits as commits_table
from adapterhub_registry.database.db import repos
from adapterhub_registry.database.trees.nodes import FileEntry
from adapterhub_registry.errors import Refusal
from adapterhub_registry.names import PART, known_repo_id
from adapterhub_registry.repos import adapter_search as found
from adapterhub_registry.repos import adapters as index
from adapterhub_registry.repos import commits
from adapterhub_registry.repos.search import MAX_PAGE, Listing, list_repos

FEATURES: Final = (
    *("adapters", "blobs", "versions", "yank", "yanked", "tokens", "tags", "users", "releases", "aliases"),
    *("events", "webhooks", "tests", "similar", "filters", "ahead", "names", "moving-tags"),
)
UPLOAD_MODES: Final = ("regular", "lfs", "multipart", "xet")
MOST_AHEAD: Final = 50
MOST_REPOSITORIES: Final = 200
MOST_VERSIONS: Final = 20
MOST_COMMITS: Final = 200
MOST_BYTES: Final = 8 << 20

router = adapt_router()

NamePart = Annotated[str, Path(pattern=NAME)]
FullName = Annotated[str, StringConstraints(max_length=200, pattern=rf"^{PART.pattern}/{PART.pattern}$")]


@router.get("/adapters/{namespace}/{name}/versions", responses={404: {"model": Problem, "description": "Not found"}})
def versions(registry: RegistryOf, caller: CallerOf, namespace: NamePart, name: NamePart) -> Releases:
    """Every version of an adapter, newest first; yanked versions are marked."""
    with registry.db.read() as connection:
        repo = registry.repos.find(connection, caller, known_repo_id(namespace, name))
        return releases_of(connection, repo)


def releases_of(connection: Connection, repo: Row[Any]) -> Releases:
    """The versions of a repository."""
    versions = [_release(row) for row in found.versions_of(connection, repo.id)]
    return Releases(repo=repo.full_name, versions=versions)


def _release(row: Row[Any]) -> Release:
    facts = index.facts_json(row) | {"version": row.released_as}
    why = None if row.yanked_at is None else why_yanked(row)
    return Release(
        **facts,
        tag=row.tag,
        commit=row.commit_id,
        released_at=iso_time(row.released_at),
        yanked=why,
        unyanked=row.yanked_reason if why is None else None,
    )


def why_yanked(row: Row[Any]) -> Yanked:
    """Why, by whom and when a release was yanked."""
    return Yanked(reason=row.yanked_reason, by=row.yanked_by, at=iso_time(row.yanked_at))


# ------------------------------------------------------------ ahead
class AheadQuery(BaseModel):
    """Full names of adapters, and further repositories that may hold them, or that a push goes to."""

    adapter: Annotated[list[FullName], Field(max_length=MOST_AHEAD)] = []
    repo: Annotated[list[FullName], Field(max_length=MOST_AHEAD)] = []


class Ahead(Answer):
    """The answer to one request: its body in base64, or the code of its error.

    `path` is its path and query. After `#head`, the body is the length and the header of a safetensors file.
    """

    path: str
    body: str | None = None
    error: str | None = None


class AheadPage(Answer):
    """The answers that a client would get to its next requests, as far as the server has them at hand."""

    answers: list[Ahead]


def info_of(registry: Registry) -> Info:
    """The version and the features of this server."""
    return Info(
        version=version("adapterhub"),
        features=list(FEATURES),
        upload_modes=list(UPLOAD_MODES),
        anonymous_read=registry.settings.anonymous_read,
    )


@router.get("/ahead")
def ahead(registry: RegistryOf, caller: CallerOf, query: Annotated[AheadQuery, Query()]) -> AheadPage:
    """The answers to what a client asks next of each adapter: repositories, versions, commits, small files.

    What is missing here, each request still answers: large files, gated repositories, names of another time.
    """
    registry.repos.check_may_read(caller)
    with registry.db.read() as connection:
        return AheadPage(answers=list(_Looking(registry, caller, connection).answers(query)))


class _Looking:
    """One request for many adapters, in one transaction."""

    def __init__(self, registry: Registry, caller: Caller, connection: Connection) -> None:
        self._registry, self._caller, self._connection = registry, caller, connection
        self._left = MOST_BYTES
        self._commits_left = MOST_COMMITS

    def answers(self, query: AheadQuery) -> Iterator[Ahead]:
        yield _answer("api/adapt/v1/info", info_of(self._registry).model_dump_json().encode())
        wanted = dict.fromkeys([*query.adapter, *query.repo])
        for full_name in dict.fromkeys(query.adapter):
            namespace, _, name = full_name.partition("/")
            asked = {"author": namespace, "filter": f"adapter-name:{name}", "limit": MAX_PAGE}
            names = self._tagged(namespace, str(asked["filter"]))
            if names is not None and len(wanted) + len(names) <= MOST_REPOSITORIES:
                wanted |= dict.fromkeys(names)
                yield _json(f"api/models?{urlencode(asked, quote_via=quote)}", [{"id": one} for one in names])
        seen = self._registry.repos.visible(self._caller)
        for row in self._connection.execute(select(repos).where(repos.c.full_name.in_(list(wanted)), seen)).all():
            del wanted[row.full_name]
            yield from self._repository(row, is_pushed=row.full_name in query.repo and not query.adapter)
            if self._left <= 0 or self._commits_left <= 0:
                return
        for namespace in {name.partition("/")[0] for name in query.repo}:
            rule = rule_seen(self._registry, self._connection, self._caller, namespace)
            path = f"api/adapt/v1/namespaces/{quote(namespace, safe='')}/tests"
            yield _answer(path, dumped(rule))
        for name in wanted:
            try:
                self._registry.repos.find(self._connection, self._caller, known_repo_id(*name.split("/")))
            except Refusal as refusal:
                yield Ahead(path=f"api/adapt/v1/adapters/{name}/versions", error=refusal.code)
                yield Ahead(path=f"api/models/{name}/refs", error=refusal.code)

    def _tagged(self, namespace: str, tag: str) -> list[str] | None:
        """The repositories of a namespace with a tag; None for more than a few."""
        visible = self._registry.repos.visible(self._caller)
        wanted = Listing(filters=(tag,), author=namespace, limit=MOST_REPOSITORIES)
        page = list_repos(self._connection, wanted, visible)
        if page.more:
            return None
        rows = self._connection.execute(select(repos.c.id, repos.c.full_name).where(repos.c.id.in_(page.ids))).all()
        names = dict[int, str]((row.id, row.full_name) for row in rows)
        return [names[number] for number in page.ids]

    def _repository(self, row: Row[Any], *, is_pushed: bool) -> Iterator[Ahead]:
        name = row.full_name
        listed = releases_of(self._connection, row)
        yield _answer(f"api/adapt/v1/adapters/{name}/versions", listed.model_dump_json().encode())
        if not listed.versions or is_pushed:
            yield _json(f"api/models/{name}/refs", branches_and_tags(self._connection, row.id))
        if row.gated and not self._caller.reaches(name):
            return
        with contextlib.suppress(Refusal):  # a damaged repository
            if not listed.versions:
                yield from self._commit(row, row.head, (*MEDIA_TYPES, CARD_FILE), is_plain=True)
            for one in listed.versions[:1]:
                results = results_of(self._connection, row, str(one.version), ResultQuery())
                path = f"api/adapt/v1/adapters/{name}/tests/{quote(str(one.version), safe='')}"
                yield _answer(path, results.model_dump_json().encode())
                yield from self._commit(row, one.commit, [file for file in MEDIA_TYPES if file != WEIGHTS_FILE])
            for one in listed.versions[1 : min(MOST_VERSIONS, self._commits_left)]:
                yield from self._commit(row, one.commit, ())

    def _commit(
        self, row: Row[Any], commit_id: str, files: Sequence[str], *, is_plain: bool = False
    ) -> Iterator[Ahead]:
        """The manifest and signature at a commit, and `files`; also what describes one without a manifest."""
        self._commits_left -= 1
        place = f"{row.full_name}/resolve/{commit_id}"
        tree = commits.tree_of(self._connection, row.id, commit_id)
        names = (MANIFEST_FILE, SIGNATURE_FILE, *files)
        entries = {name: tree.find(name) for name in names}
        if is_plain:
            about = commits_table.c.repo_id == row.id, commits_table.c.id == commit_id
            made = self._connection.scalars(select(commits_table.c.created_at).where(*about)).one()
            yield _json(
                f"api/models/{row.full_name}/commits/{commit_id}?limit=200", [{"id": commit_id, "date": iso_time(made)}]
            )
            listed = [file_facts(entry) for name in (*MEDIA_TYPES, CARD_FILE) if (entry := entries[name]) is not None]
            yield _json(f"api/models/{row.full_name}/paths-info/{commit_id}", listed)
        for name, entry in entries.items():
            path = f"{place}/{quote(name)}"
            if entry is None:
                if name in (MANIFEST_FILE, SIGNATURE_FILE):
                    yield Ahead(path=path, error="EntryNotFound")
            elif name == WEIGHTS_FILE:
                if (head := self._head(entry)) is not None:
                    yield _answer(f"{path}#head", head)
            elif entry.size <= SMALL_BYTES:
                yield _answer(path, self._bytes(entry, entry.size))

    def _bytes(self, entry: FileEntry, end: int) -> bytes:
        self._left -= end
        return b"".join(self._registry.blobs.open(entry.sha256, 0, end))

    def _head(self, entry: FileEntry) -> bytes | None:
        """Length and header of a safetensors file; None for one that is large, or no such file."""
        begin = self._bytes(entry, min(entry.size, LENGTH_BYTES))
        end = LENGTH_BYTES + int.from_bytes(begin, "little")
        return self._bytes(entry, end) if end <= min(entry.size, SMALL_BYTES) else None


def _json(path: str, value: object) -> Ahead:
    return _answer(path, json.dumps(value, ensure_ascii=False).encode())


def _answer(path: str, body: bytes) -> Ahead:
    return Ahead(path=path, body=base64.b64encode(body).decode("ascii"))
