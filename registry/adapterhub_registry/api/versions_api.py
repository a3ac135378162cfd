"""The versions of an adapter, builds like them, the aliases that move between versions, and the names of adapters."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote, urlencode

from fastapi import Path, Query
from pydantic import BaseModel, Field, StringConstraints
from sqlalchemy import ColumnElement, Row, select
from sqlalchemy.engine import Connection

from adapterhub.core.specs import parse_name
from adapterhub.formats.administration import HeldName
from adapterhub.formats.alias import MOST_MOVES, MOST_TARGETS, Alias, AliasMove, AliasTarget
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, MEDIA_TYPES, SIGNATURE_FILE, WEIGHTS_FILE
from adapterhub.formats.safetensors.file import LENGTH_BYTES
from adapterhub_registry.access import rights
from adapterhub_registry.access.tokens import Caller
from adapterhub_registry.api.adapt_models import (
    NAME,
    ApiAnswer,
    ApiQuestion,
    ProblemAnswer,
    ReleaseFacts,
    Releases,
    ServerInfo,
    Yanked,
    adapt_router,
)
from adapterhub_registry.api.context import CallerOf, Registry, RegistryOf, SeekerOf, dumped, user_of
from adapterhub_registry.api.hub.files import SMALL_BYTES, file_facts
from adapterhub_registry.api.hub.info import iso_time
from adapterhub_registry.api.hub.repositories import branches_and_tags
from adapterhub_registry.api.tests_api import ResultQuery, results_of, rule_seen
from adapterhub_registry.database.db import adapters, derived, releases, repos, slices
from adapterhub_registry.database.db import commits as commits_table
from adapterhub_registry.database.trees import TreeFile
from adapterhub_registry.errors import HttpRefusal, forbidden
from adapterhub_registry.names import PART, known_repo_id
from adapterhub_registry.repos import adapters as index
from adapterhub_registry.repos import aliases, commits
from adapterhub_registry.repos.adapters import versions_of
from adapterhub_registry.repos.aliases import MOST_ALIASES
from adapterhub_registry.repos.search import MAX_LISTED, RepoListing, list_repos
from adapterhub_registry.worker import FLOOR

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


@router.get(
    "/adapters/{namespace}/{name}/versions", responses={404: {"model": ProblemAnswer, "description": "Not found"}}
)
def versions(registry: RegistryOf, caller: CallerOf, namespace: NamePart, name: NamePart) -> Releases:
    """Every version of an adapter, newest first; yanked versions are marked."""
    with registry.db.read() as connection:
        repo = registry.repos.find(connection, caller, known_repo_id(namespace, name))
        return releases_of(connection, repo)


def releases_of(connection: Connection, repo: Row[Any]) -> Releases:
    """The versions of a repository."""
    versions = [_release(row) for row in index.versions_of(connection, repo.id)]
    return Releases(repo=repo.full_name, versions=versions)


def _release(row: Row[Any]) -> ReleaseFacts:
    facts = index.facts_json(row) | {"version": row.released_as}
    why = None if row.yanked_at is None else why_yanked(row)
    return ReleaseFacts(
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


class AheadAnswer(ApiAnswer):
    """The answer to one request: its body in base64, or the code of its error.

    `path` is its path and query. After `#head`, the body is the length and the header of a safetensors file.
    """

    path: str
    body: str | None = None
    error: str | None = None


class AheadPage(ApiAnswer):
    """The answers that a client would get to its next requests, as far as the server has them at hand."""

    answers: list[AheadAnswer]


def info_of(registry: Registry) -> ServerInfo:
    """The version and the features of this server."""
    return ServerInfo(
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

    def answers(self, query: AheadQuery) -> Iterator[AheadAnswer]:
        yield _answer("api/adapt/v1/info", info_of(self._registry).model_dump_json().encode())
        wanted = dict.fromkeys([*query.adapter, *query.repo])
        for full_name in dict.fromkeys(query.adapter):
            namespace, _, name = full_name.partition("/")
            asked = {"author": namespace, "filter": f"adapter-name:{name}", "limit": MAX_LISTED}
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
            except HttpRefusal as refusal:
                yield AheadAnswer(path=f"api/adapt/v1/adapters/{name}/versions", error=refusal.code)
                yield AheadAnswer(path=f"api/models/{name}/refs", error=refusal.code)

    def _tagged(self, namespace: str, tag: str) -> list[str] | None:
        """The repositories of a namespace with a tag; None for more than a few."""
        visible = self._registry.repos.visible(self._caller)
        wanted = RepoListing(filters=(tag,), author=namespace, limit=MOST_REPOSITORIES)
        page = list_repos(self._connection, wanted, visible)
        if page.more:
            return None
        rows = self._connection.execute(select(repos.c.id, repos.c.full_name).where(repos.c.id.in_(page.ids))).all()
        names = dict[int, str]((row.id, row.full_name) for row in rows)
        return [names[number] for number in page.ids]

    def _repository(self, row: Row[Any], *, is_pushed: bool) -> Iterator[AheadAnswer]:
        name = row.full_name
        listed = releases_of(self._connection, row)
        yield _answer(f"api/adapt/v1/adapters/{name}/versions", listed.model_dump_json().encode())
        if not listed.versions or is_pushed:
            yield _json(f"api/models/{name}/refs", branches_and_tags(self._connection, row.id))
        if row.gated and not self._caller.reaches(name):
            return
        with contextlib.suppress(HttpRefusal):  # a damaged repository
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
    ) -> Iterator[AheadAnswer]:
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
                    yield AheadAnswer(path=path, error="EntryNotFound")
            elif name == WEIGHTS_FILE:
                if (head := self._head(entry)) is not None:
                    yield _answer(f"{path}#head", head)
            elif entry.size <= SMALL_BYTES:
                yield _answer(path, self._bytes(entry, entry.size))

    def _bytes(self, entry: TreeFile, end: int) -> bytes:
        self._left -= end
        return b"".join(self._registry.blobs.open(entry.sha256, 0, end))

    def _head(self, entry: TreeFile) -> bytes | None:
        """Length and header of a safetensors file; None for one that is large, or no such file."""
        begin = self._bytes(entry, min(entry.size, LENGTH_BYTES))
        end = LENGTH_BYTES + int.from_bytes(begin, "little")
        return self._bytes(entry, end) if end <= min(entry.size, SMALL_BYTES) else None


def _json(path: str, value: object) -> AheadAnswer:
    return _answer(path, json.dumps(value, ensure_ascii=False).encode())


def _answer(path: str, body: bytes) -> AheadAnswer:
    return AheadAnswer(path=path, body=base64.b64encode(body).decode("ascii"))


_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    404: {"model": ProblemAnswer, "description": "Not found"},
}
_WRITING: Final[dict[int | str, dict[str, Any]]] = {
    **_PROBLEMS,
    403: {"model": ProblemAnswer, "description": "The token lacks the right"},
    409: {"model": ProblemAnswer, "description": "A branch, a tag or a yanked version is in the way"},
    413: {"model": ProblemAnswer, "description": "The body is too large, or the repository has too many aliases"},
}


Version = Annotated[str, Field(min_length=1, max_length=64)]


class AliasFacts(ApiAnswer):
    """What an alias means now, and its last move. `adapter` is the name in the manifest of its builds."""

    repo: str
    adapter: str | None
    alias: str
    targets: tuple[AliasTarget, ...]
    moved_at: str
    moved_by: str
    action: str


class MoveFacts(ApiAnswer):
    """One move of an alias."""

    action: str
    at: str
    by: str
    targets: tuple[AliasTarget, ...]


class AliasList(ApiAnswer):
    """Aliases, by name."""

    aliases: list[AliasFacts]


class MoveList(ApiAnswer):
    """The moves of an alias, oldest first."""

    repo: str
    alias: str
    moves: list[MoveFacts]


class TargetRequest(ApiQuestion):
    """A released version, and its weight."""

    version: Version
    weight: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] = 1.0


class AliasRequest(ApiQuestion):
    """What an alias shall mean."""

    targets: Annotated[list[TargetRequest], Field(min_length=1, max_length=MOST_TARGETS)]


class RollbackRequest(ApiQuestion):
    """The move to go back to, counted from 1; without it, one step."""

    to: Annotated[int, Field(ge=1, le=MOST_MOVES)] | None = None


class NameList(ApiAnswer):
    """The names of a namespace, each with its repositories that the caller sees."""

    namespace: str
    names: list[HeldName]


class NameRequest(ApiQuestion):
    """The name of an adapter, and the repository of its namespace that it moves to."""

    name: Annotated[str, Field(min_length=1, max_length=96)]
    repo: FullName


@router.get("/namespaces/{namespace}/names", responses=_PROBLEMS)
def list_names(registry: RegistryOf, caller: CallerOf, namespace: NamePart) -> NameList:
    """Which repositories may release the adapter names of a namespace."""
    registry.repos.check_may_read(caller)
    with registry.db.read() as connection:
        return _names(connection, namespace, registry.repos.visible(caller))


@router.post("/namespaces/{namespace}/names", responses=_WRITING)
def move_name(registry: RegistryOf, caller: CallerOf, namespace: NamePart, wanted: NameRequest) -> NameList:
    """Give a name to one repository alone; this needs a token that may write all of the namespace."""
    user_of(caller)
    if not caller.owns(namespace):
        raise forbidden(f"this needs a token that may write all of `{namespace}`")
    with registry.db.begin() as connection:
        rights.move(connection, namespace, parse_name(wanted.name), wanted.repo)
        return _names(connection, namespace, registry.repos.visible(caller))


def _names(connection: Connection, namespace: str, visible: ColumnElement[bool]) -> NameList:
    return NameList(namespace=namespace, names=rights.held_in(connection, namespace, visible))


@router.get("/aliases/{namespace}/{name}/{alias}", responses=_PROBLEMS)
def look_up(registry: RegistryOf, caller: CallerOf, namespace: NamePart, name: NamePart, alias: NamePart) -> AliasList:
    """The aliases of that name, of the repository `name` or of the repositories with the adapter `name`."""
    registry.repos.check_may_read(caller)
    with registry.db.read() as connection:
        found = aliases.named(connection, namespace, name, alias, registry.repos.visible(caller))
        return AliasList(aliases=[_facts(connection, repo, one) for repo, one in found[:MOST_ALIASES]])


@router.get("/adapters/{namespace}/{name}/aliases", responses=_PROBLEMS)
def list_aliases(registry: RegistryOf, caller: CallerOf, namespace: NamePart, name: NamePart) -> AliasList:
    """The aliases of a repository."""
    with registry.db.read() as connection:
        repo = registry.repos.find(connection, caller, known_repo_id(namespace, name))
        return AliasList(aliases=[_facts(connection, repo, one) for one in aliases.all_of(connection, repo)])


@router.get("/adapters/{namespace}/{name}/aliases/{alias}/history", responses=_PROBLEMS)
def history(registry: RegistryOf, caller: CallerOf, namespace: NamePart, name: NamePart, alias: NamePart) -> MoveList:
    """The moves of an alias, also of one that was removed: when, by whom, and what it meant since then."""
    with registry.db.read() as connection:
        repo = registry.repos.find(connection, caller, known_repo_id(namespace, name))
        found = aliases.ever(connection, repo, alias)
        moves = [_move(move) for move in found.moves] if found else []
        return MoveList(repo=repo.full_name, alias=alias, moves=moves)


@router.post("/adapters/{namespace}/{name}/aliases/{alias}", responses=_WRITING)
def set_alias(
    registry: RegistryOf,
    caller: CallerOf,
    namespace: NamePart,
    name: NamePart,
    alias: NamePart,
    wanted: AliasRequest,
) -> AliasFacts:
    """Point an alias at released versions of a repository."""
    targets = [(one.version, one.weight) for one in wanted.targets]
    with registry.db.begin() as connection:
        repo = registry.repos.find_writable(connection, caller, known_repo_id(namespace, name))
        most = registry.settings.limits.refs
        moved = aliases.set_alias(connection, repo, alias, targets, by=caller.actor, most_refs=most)
        return _facts(connection, repo, moved)


@router.post("/adapters/{namespace}/{name}/aliases/{alias}/rollback", responses=_WRITING)
def roll_back(
    registry: RegistryOf,
    caller: CallerOf,
    namespace: NamePart,
    name: NamePart,
    alias: NamePart,
    wanted: RollbackRequest,
) -> AliasFacts:
    """Point an alias at what it meant before."""
    with registry.db.begin() as connection:
        repo = registry.repos.find_writable(connection, caller, known_repo_id(namespace, name))
        most = registry.settings.limits.refs
        moved = aliases.roll_back(connection, repo, alias, to=wanted.to, by=caller.actor, most_refs=most)
        return _facts(connection, repo, moved)


@router.post("/adapters/{namespace}/{name}/aliases/{alias}/remove", responses=_WRITING)
def remove(registry: RegistryOf, caller: CallerOf, namespace: NamePart, name: NamePart, alias: NamePart) -> AliasFacts:
    """Remove an alias; its history stays."""
    with registry.db.begin() as connection:
        repo = registry.repos.find_writable(connection, caller, known_repo_id(namespace, name))
        return _facts(connection, repo, aliases.remove(connection, repo, alias, by=caller.actor))


def _facts(connection: Connection, repo: Row[Any], alias: Alias) -> AliasFacts:
    last = alias.moves[-1]
    adapter = aliases.adapter_of(connection, repo, alias.main.digest) if alias.targets else None
    return AliasFacts(
        repo=repo.full_name,
        adapter=adapter,
        alias=alias.name,
        targets=alias.targets,
        moved_at=iso_time(int(last.at * 1000)),
        moved_by=last.by,
        action=last.action,
    )


def _move(move: AliasMove) -> MoveFacts:
    return MoveFacts(action=move.action, at=iso_time(int(move.at * 1000)), by=move.by, targets=move.targets)


MOST_LISTED: Final = 100

_SIMILAR: Final[dict[int | str, dict[str, Any]]] = {
    403: {"model": ProblemAnswer, "description": "The repository is gated"},
    404: {"model": ProblemAnswer, "description": "Not found"},
    429: {"model": ProblemAnswer, "description": "Too many requests for like updates"},
}


class SimilarQuery(BaseModel):
    """The least cosine to list."""

    above: Annotated[float, Field(ge=FLOOR, le=1)] = FLOOR


class SimilarBuild(ApiAnswer):
    """A build whose update is alike. `cosine` is an estimate, negative for an opposite update.

    `version` is null for a commit without a release. `same_base`: both declare one base.
    """

    repo: str
    version: str | None
    commit: str
    digest: str
    cosine: float
    same_base: bool


class SimilarBuilds(ApiAnswer):
    """The builds whose update is like that of one. `state`: `made`, `waiting` for a worker, or `none` to compare."""

    digest: str
    state: Literal["made", "waiting", "none"]
    similar: list[SimilarBuild]


@router.get("/adapters/{namespace}/{name}/{version}/similar", responses=_SIMILAR)
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
        rows = versions_of(connection, repo.id)
        mine = next((row for row in rows if row.released_as == version.removeprefix("v")), None)
        if mine is None:
            raise HttpRefusal(404, "RevisionNotFound", f"`{repo.full_name}` has no such version")
        is_seen = rights.is_seen(connection, mine.created_at)
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
            .where(registry.repos.readable(caller), rights.SEEN, adapters.c.is_listed | releases.c.version.is_not(None))
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
