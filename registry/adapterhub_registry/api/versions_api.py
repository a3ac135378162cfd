"""The versions of an adapter, builds like them, the aliases that move between versions, and the names of adapters."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib import metadata
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote, urlencode

from fastapi import Path, Query, Response
from pydantic import BaseModel, Field, StringConstraints
from sqlalchemy import Row, select
from sqlalchemy.engine import Connection

from adapterhub.core.specs import MAX_VERSION_CHARACTERS, parse_name
from adapterhub.formats.administration import AliasRetention, HeldName
from adapterhub.formats.alias import MOST_MOVES, MOST_TARGETS, Alias, AliasMove, AliasTarget
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, MEDIA_TYPES, SIGNATURE_FILE, WEIGHTS_FILE
from adapterhub.formats.publication import Job
from adapterhub.formats.safetensors.file import LENGTH_BYTES
from adapterhub_registry.access import rights
from adapterhub_registry.access.audit import log_change
from adapterhub_registry.access.callers import Caller
from adapterhub_registry.api.adapt_models import (
    FORBIDDEN,
    MISSING,
    SHA256,
    AdapterOf,
    ApiAnswer,
    ApiQuestion,
    ListedFacts,
    NamePage,
    NamePart,
    ReleaseFacts,
    ReleasePublisher,
    Releases,
    ServerInfo,
    Yanked,
    adapt_router,
    problems,
)
from adapterhub_registry.api.context import CallerOf, Registry, RegistryOf, SeekerOf, dumped, user_of
from adapterhub_registry.api.hub.files import SMALL_BYTES, file_facts
from adapterhub_registry.api.hub.info import iso_time
from adapterhub_registry.api.hub.repositories import branches_and_tags
from adapterhub_registry.api.log_api import proof_of
from adapterhub_registry.api.tests_api import ResultQuery, results_of, rule_seen
from adapterhub_registry.database.db import adapters, derived, releases, repos, slices
from adapterhub_registry.database.db import commits as commits_table
from adapterhub_registry.database.prepared import GLANCED, PreparedSql
from adapterhub_registry.database.search_tables import among
from adapterhub_registry.database.trees import FileTree, TreeFile
from adapterhub_registry.errors import HttpRefusal, forbidden, version_not_found
from adapterhub_registry.names import PART, known_repo_id
from adapterhub_registry.repos import adapters as index
from adapterhub_registry.repos import aliases, commits, retention
from adapterhub_registry.repos.adapters import RELEASED_BUILD
from adapterhub_registry.repos.aliases import MOST_ALIASES
from adapterhub_registry.repos.listing import MAX_LISTED, RepoListing, list_repos
from adapterhub_registry.worker import FLOOR

FEATURES: Final = (
    *("adapters", "blobs", "versions", "yank", "yanked", "tokens", "tags", "users", "releases", "aliases"),
    *("events", "webhooks", "tests", "similar", "filters", "ahead", "names", "moving-tags"),
    *("pages", "publish", "publish-alias", "log"),
)
UPLOAD_MODES: Final = ("regular", "lfs", "multipart", "xet")
MOST_AHEAD: Final = 50
MOST_REPOSITORIES: Final = 200
MOST_VERSIONS: Final = 20
MOST_LISTED_VERSIONS: Final = 1000
MOST_VERSIONS_AHEAD: Final = 100
MOST_COMMITS: Final = 200
MOST_BYTES: Final = 8 << 20

router = adapt_router()

FullName = Annotated[str, StringConstraints(max_length=200, pattern=rf"^{PART.pattern}/{PART.pattern}$")]


class VersionQuery(BaseModel):
    """A page of the versions, `below` one. `digest` asks for those of one build."""

    digest: Annotated[str, Field(pattern=SHA256)] | None = None
    limit: Annotated[int, Field(ge=1, le=MOST_LISTED_VERSIONS)] = MOST_LISTED_VERSIONS
    below: Annotated[str, Field(max_length=MAX_VERSION_CHARACTERS)] | None = None


@router.get("/adapters/{namespace}/{name}/versions", responses=MISSING, response_model=Releases)
def versions(
    registry: RegistryOf, caller: CallerOf, repo_id: AdapterOf, query: Annotated[VersionQuery, Query()]
) -> Response:
    """Return the versions of an adapter, newest first; yanked versions are marked.

    `below` continues behind a version.
    """
    with registry.db.read() as connection:
        repo = registry.repos.find(connection, caller, repo_id)
        # of 1,000 versions, to check each takes as long as to find it
        return Response(dumped(_releases(connection, repo, query)), media_type="application/json")


@router.get("/adapters/{namespace}/{name}/versions/{version}", responses=MISSING)
def one_version(
    registry: RegistryOf, caller: CallerOf, repo_id: AdapterOf, version: Annotated[str, Path(max_length=64)]
) -> ReleaseFacts:
    """One version of an adapter, however it is spelled."""
    with registry.db.read() as connection:
        return release_of(connection, registry.repos.find(connection, caller, repo_id), version)


def releases_of(connection: Connection, repo: Row[Any], query: VersionQuery | None = None) -> Releases:
    """Return the versions of a repository."""
    # all at once, which takes a third of the time of a value for each
    return Releases.model_validate(_releases(connection, repo, query or VersionQuery()))


def _releases(connection: Connection, repo: Row[Any], asked: VersionQuery) -> dict[str, Any]:
    """Return the members of `Releases`, in their order."""
    limit = asked.limit
    rows = index.versions_of(connection, repo.id, limit=limit + 1, below=asked.below, digest=asked.digest)
    more = len(rows) > limit
    return {
        "repo": repo.full_name,
        "versions": [_release(row) for row in rows[:limit]],
        "next_below": str(rows[limit - 1].released_as) if more else None,
        "one_base": not more or index.has_one_base(connection, repo.id, rows[0].base_sha256),
    }


def release_of(connection: Connection, repo: Row[Any], version: str) -> ReleaseFacts:
    """One version of a repository.

    Raises:
        HttpRefusal: 404 VersionNotFound.
    """
    row = index.version_in(connection, repo.id, version)
    if row is None:
        raise version_not_found(repo.full_name, version)
    return ReleaseFacts(**_release(row))


def _release(row: Row[Any]) -> dict[str, Any]:
    """Return the members of `ReleaseFacts`, in their order."""
    why = None if row.yanked_at is None else why_yanked(row)
    facts = index.facts_json(row)
    return {name: facts[name] for name in ListedFacts.model_fields} | {
        "version": row.released_as,
        "tag": row.tag,
        "commit": row.commit_id,
        "released_at": iso_time(row.released_at),
        "yanked": why,
        "unyanked": row.yanked_reason if why is None else None,
        "publisher": None if row.publisher is None else _publisher(json.loads(row.publisher)),
    }


def _publisher(stored: dict[str, Any]) -> ReleasePublisher:
    return ReleasePublisher(**stored, by=Job(**stored).by)


def why_yanked(row: Row[Any]) -> Yanked:
    """Why, by whom and when a release was yanked."""
    return Yanked(reason=row.yanked_reason, by=row.yanked_by, at=iso_time(row.yanked_at))


# ------------------------------------------------------------ ahead
class AheadQuery(BaseModel):
    """Full names of adapters, and further repositories that may hold them, or that a push goes to."""

    adapter: Annotated[list[FullName], Field(max_length=MOST_AHEAD)] = []
    repo: Annotated[list[FullName], Field(max_length=MOST_AHEAD)] = []
    version: Annotated[str, Field(max_length=64)] | None = (
        None  # which a push would publish: the answer holds only that one
    )


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
    """Return the version and the features of this server."""
    return ServerInfo(
        version=_own_version(),
        features=list(FEATURES),
        upload_modes=list(UPLOAD_MODES),
        anonymous_read=registry.settings.anonymous_read,
        log_key=str(registry.log.signer().key),
    )


@cache
def _own_version() -> str:
    """Return the installed version, read once: Python parses the metadata of the whole package for it."""
    return metadata.version("adapterhub")


@router.get("/ahead")
def ahead(registry: RegistryOf, caller: CallerOf, query: Annotated[AheadQuery, Query()]) -> AheadPage:
    """Return the next answers that a client needs for each adapter: repositories, versions, commits, small files.

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
        for full_name, names in self._repositories(dict.fromkeys(query.adapter)).items():
            namespace, _, name = full_name.partition("/")
            asked = {"author": namespace, "filter": _tag(name), "limit": MAX_LISTED}
            if len(wanted) + len(names) <= MOST_REPOSITORIES:
                wanted |= dict.fromkeys(names)
                yield _json(f"api/models?{urlencode(asked, quote_via=quote)}", [{"id": one} for one in names])
        seen = self._registry.repos.visible(self._caller)
        for row in self._connection.execute(select(repos).where(repos.c.full_name.in_(list(wanted)), seen)).all():
            del wanted[row.full_name]
            if query.version is not None:
                yield self._version(row, query.version)
            else:
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
                if query.version is not None:
                    yield AheadAnswer(path=_path_of(name, query.version), error=refusal.code)
                yield AheadAnswer(path=f"api/models/{name}/refs", error=refusal.code)

    def _repositories(self, full_names: Iterable[str]) -> dict[str, list[str]]:
        """Return, by adapter, the repositories of its namespace with the tag of its name, unless these are many."""
        found = {full_name: self._tagged(full_name) for full_name in full_names}
        numbers = sorted({number for some in found.values() for number in some or ()})
        names = dict[int, str](_NAMES.tuples(self._connection, numbers=json.dumps(numbers))) if numbers else {}
        return {
            full_name: [
                names[number] for number in some if names[number].partition("/")[0] == full_name.partition("/")[0]
            ]
            for full_name, some in found.items()
            if some is not None
        }

    def _tagged(self, full_name: str) -> list[int] | None:
        """Return the repositories with the tag of an adapter, of all namespaces where these are few."""
        visible = self._registry.repos.sight(self._caller)
        namespace, _, name = full_name.partition("/")
        wanted = RepoListing(filters=(_tag(name),), limit=GLANCED)
        page = list_repos(self._connection, wanted, visible)
        if page.more:
            page = list_repos(self._connection, replace(wanted, author=namespace, limit=MOST_REPOSITORIES), visible)
        return None if page.more else page.ids

    def _version(self, row: Row[Any], version: str) -> AheadAnswer:
        try:
            body = release_of(self._connection, row, version).model_dump_json().encode()
        except HttpRefusal as refusal:
            return AheadAnswer(path=_path_of(row.full_name, version), error=refusal.code)
        return _answer(_path_of(row.full_name, version), body)

    def _repository(self, row: Row[Any], *, is_pushed: bool) -> Iterator[AheadAnswer]:
        name = row.full_name
        if index.has_versions(self._connection, row.id, more_than=MOST_VERSIONS_AHEAD):
            return  # so many that a client asks for those that it needs
        listed = releases_of(self._connection, row)
        yield _answer(f"api/adapt/v1/adapters/{name}/versions", listed.model_dump_json().encode())
        if not listed.versions or is_pushed:
            told, rest = branches_and_tags(self._connection, row.id)
            if rest is None:
                yield _json(f"api/models/{name}/refs", told)
        if row.gated and not self._caller.reaches(name):
            return
        with contextlib.suppress(HttpRefusal):  # a damaged repository
            if not listed.versions:
                yield from self._commit(row, row.head, (*MEDIA_TYPES, CARD_FILE), is_plain=True)
            shown = [one.commit for one in listed.versions[: max(min(MOST_VERSIONS, self._commits_left - 1), 1)]]
            trees = commits.trees_of(self._connection, row.id, shown) if shown else {}
            for one in listed.versions[:1]:
                results = results_of(self._connection, row, str(one.version), ResultQuery())
                if (proof := proof_of(self._registry, self._connection, row, name, str(one.version))) is not None:
                    path = f"api/adapt/v1/tlog/releases/{name}/{quote(str(one.version), safe='')}"
                    yield _answer(path, proof.model_dump_json().encode())
                path = f"api/adapt/v1/adapters/{name}/tests/{quote(str(one.version), safe='')}"
                yield _answer(path, results.model_dump_json().encode())
                files = [file for file in MEDIA_TYPES if file != WEIGHTS_FILE]
                yield from self._commit(row, one.commit, files, tree=trees.get(one.commit))
            for commit in shown[1:]:
                yield from self._commit(row, commit, (), tree=trees.get(commit))

    def _commit(
        self,
        row: Row[Any],
        commit_id: str,
        files: Sequence[str],
        *,
        is_plain: bool = False,
        tree: FileTree | None = None,
    ) -> Iterator[AheadAnswer]:
        """Yield the manifest and signature at a commit, and `files`; also what describes one without a manifest."""
        self._commits_left -= 1
        place = f"{row.full_name}/resolve/{commit_id}"
        tree = tree or commits.tree_of(self._connection, row.id, commit_id)
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


def _tag(name: str) -> str:
    return f"adapter-name:{name}"


_NAMES: Final = PreparedSql(select(repos.c.id, repos.c.full_name).where(among(repos.c.id, "numbers")))


def _path_of(repo: str, version: str) -> str:
    return f"api/adapt/v1/adapters/{repo}/versions/{quote(version, safe='')}"


def _json(path: str, value: object) -> AheadAnswer:
    return _answer(path, json.dumps(value, ensure_ascii=False).encode())


def _answer(path: str, body: bytes) -> AheadAnswer:
    return AheadAnswer(path=path, body=base64.b64encode(body).decode("ascii"))


_WRITING: Final = {
    **MISSING,
    **FORBIDDEN,
    **problems({409: "A branch, a tag or a yanked version is in the way"}),
    **problems({413: "The body is too large, or the repository has too many aliases"}),
}


Version = Annotated[str, Field(min_length=1, max_length=64)]


class AliasFacts(ApiAnswer):
    """The present targets of an alias, and its last move. `adapter` is the name in the manifest of its builds."""

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


class RetentionRequest(ApiQuestion):
    """How many of the versions that the alias had stay; null for all. Others go `grace_days` after the alias left."""

    newest: Annotated[int, Field(ge=1, le=1_000_000)] | None
    grace_days: Annotated[float, Field(ge=0, le=3650, allow_inf_nan=False)] = 30.0


class NameList(ApiAnswer):
    """The names of a namespace with their repositories that the caller sees. `next_after` leads to the next page."""

    namespace: str
    names: list[HeldName]
    next_after: str | None = None


class NameRequest(ApiQuestion):
    """The name of an adapter, and the repository of its namespace that it moves to."""

    name: Annotated[str, Field(min_length=1, max_length=96)]
    repo: FullName


@router.get("/namespaces/{namespace}/names", responses=MISSING)
def list_names(
    registry: RegistryOf, caller: CallerOf, namespace: NamePart, query: Annotated[NamePage, Query()]
) -> NameList:
    """Return which repositories may release the adapter names of a namespace."""
    registry.repos.check_may_read(caller)
    visible = registry.repos.visible(caller)
    with registry.db.read() as connection:
        found = rights.held_in(connection, namespace, visible, after=query.after, limit=query.limit)
        if len(found) < query.limit:
            return NameList(namespace=namespace, names=found)
        last = found[-1].name  # it may have more repositories
        whole = [one for one in found if one.name != last]
        whole = whole or rights.held_in(connection, namespace, visible, only=last)
    return NameList(namespace=namespace, names=whole, next_after=whole[-1].name)


@router.post("/namespaces/{namespace}/names", responses=_WRITING)
def move_name(registry: RegistryOf, caller: CallerOf, namespace: NamePart, wanted: NameRequest) -> NameList:
    """Give a name to only one repository; this needs a token that may write all of the namespace."""
    user_of(caller)
    if not caller.owns(namespace, "release"):
        raise forbidden(f"this needs a token that may write all of `{namespace}`")
    with registry.db.begin() as connection:
        rights.move(connection, namespace, name := parse_name(wanted.name), wanted.repo)
        log_change(connection, caller.by, "name", f"{name} to {wanted.repo}", repo=namespace)
        names = rights.held_in(connection, namespace, registry.repos.visible(caller), only=name)
        return NameList(namespace=namespace, names=names)


@router.get("/aliases/{namespace}/{name}/{alias}", responses=MISSING)
def look_up(registry: RegistryOf, caller: CallerOf, namespace: NamePart, name: NamePart, alias: NamePart) -> AliasList:
    """Return the aliases of that name, of the repository `name` or of the repositories with the adapter `name`."""
    registry.repos.check_may_read(caller)
    with registry.db.read() as connection:
        found = aliases.named(connection, namespace, name, alias, registry.repos.visible(caller))
        return AliasList(aliases=[_facts(connection, repo, one) for repo, one in found[:MOST_ALIASES]])


@router.get("/adapters/{namespace}/{name}/aliases", responses=MISSING)
def list_aliases(registry: RegistryOf, caller: CallerOf, repo_id: AdapterOf) -> AliasList:
    """Return the aliases of a repository."""
    with registry.db.read() as connection:
        repo = registry.repos.find(connection, caller, repo_id)
        return AliasList(aliases=[_facts(connection, repo, one) for one in aliases.all_of(connection, repo)])


@router.get("/adapters/{namespace}/{name}/aliases/{alias}/history", responses=MISSING)
def history(registry: RegistryOf, caller: CallerOf, repo_id: AdapterOf, alias: NamePart) -> MoveList:
    """Return the moves of an alias, also of one that was removed: when, by whom, and what it meant since then."""
    with registry.db.read() as connection:
        repo = registry.repos.find(connection, caller, repo_id)
        found = aliases.ever(connection, repo, alias)
        moves = [_move(move) for move in found.moves] if found else []
        return MoveList(repo=repo.full_name, alias=alias, moves=moves)


@router.post("/adapters/{namespace}/{name}/aliases/{alias}", responses=_WRITING)
def set_alias(
    registry: RegistryOf, caller: CallerOf, repo_id: AdapterOf, alias: NamePart, wanted: AliasRequest
) -> AliasFacts:
    """Point an alias at released versions of a repository."""
    targets = [(one.version, one.weight) for one in wanted.targets]
    with registry.db.begin() as connection:
        repo = registry.repos.find_writable(connection, caller, repo_id, "release")
        most = registry.settings.limits.refs
        moved = aliases.set_alias(connection, repo, alias, targets, by=caller.actor, most_refs=most)
        told = ", ".join(version for version, _ in targets)
        log_change(connection, caller.by, "alias", f"{alias}: {told}", repo=repo.full_name)
        return _facts(connection, repo, moved)


@router.get("/adapters/{namespace}/{name}/aliases/{alias}/retention", responses=MISSING)
def show_retention(registry: RegistryOf, caller: CallerOf, repo_id: AdapterOf, alias: NamePart) -> AliasRetention:
    """Return how many of the versions that an alias had stay."""
    with registry.db.read() as connection:
        repo = registry.repos.find(connection, caller, repo_id)
        return retention.of_alias(connection, repo, alias)


@router.post("/adapters/{namespace}/{name}/aliases/{alias}/retention", responses=_WRITING)
def set_retention(
    registry: RegistryOf, caller: CallerOf, repo_id: AdapterOf, alias: NamePart, wanted: RetentionRequest
) -> AliasRetention:
    """Let a repository keep the newest versions of an alias, or all."""
    with registry.db.begin() as connection:
        repo = registry.repos.find_writable(connection, caller, repo_id, "release")
        log_change(connection, caller.by, "alias", f"{alias}: retention", repo=repo.full_name)
        return retention.change(
            connection, repo, alias, newest=wanted.newest, grace_days=wanted.grace_days, by=caller.actor
        )


@router.post("/adapters/{namespace}/{name}/aliases/{alias}/rollback", responses=_WRITING)
def roll_back(
    registry: RegistryOf, caller: CallerOf, repo_id: AdapterOf, alias: NamePart, wanted: RollbackRequest
) -> AliasFacts:
    """Point an alias at what it meant before."""
    with registry.db.begin() as connection:
        repo = registry.repos.find_writable(connection, caller, repo_id, "release")
        most = registry.settings.limits.refs
        log_change(connection, caller.by, "alias", f"{alias}: roll back", repo=repo.full_name)
        moved = aliases.roll_back(connection, repo, alias, to=wanted.to, by=caller.actor, most_refs=most)
        return _facts(connection, repo, moved)


@router.post("/adapters/{namespace}/{name}/aliases/{alias}/remove", responses=_WRITING)
def remove(registry: RegistryOf, caller: CallerOf, repo_id: AdapterOf, alias: NamePart) -> AliasFacts:
    """Remove an alias; its history stays."""
    with registry.db.begin() as connection:
        repo = registry.repos.find_writable(connection, caller, repo_id, "release")
        log_change(connection, caller.by, "alias", f"no more {alias}", repo=repo.full_name)
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

_SIMILAR: Final = {403: "The repository is gated", 404: "Not found", 429: "Too many requests for like updates"}


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


@router.get("/adapters/{namespace}/{name}/{version}/similar", responses=problems(_SIMILAR))
def similar(
    registry: RegistryOf,
    caller: SeekerOf,
    repo_id: AdapterOf,
    version: Annotated[str, Path(max_length=64)],
    query: Annotated[SimilarQuery, Query()],
) -> SimilarBuilds:
    """Return the builds whose update is like that of a release, the most alike first, among the caller's."""
    with registry.db.read() as connection:
        repo = registry.repos.find_files(connection, caller, repo_id)
        mine = index.version_in(connection, repo.id, version.removeprefix("v"))
        if mine is None:
            raise version_not_found(repo.full_name, version)
        is_seen = rights.is_seen(connection, mine.created_at)
        near = registry.sketches.near(connection, mine.digest, query.above) if is_seen else None
        if near is None:
            state = connection.scalar(select(derived.c.state).where(derived.c.digest == mine.digest))
            waits = not is_seen or state == "waiting"
            return SimilarBuilds(digest=f"sha256:{mine.digest}", state="waiting" if waits else "none", similar=[])
        wanted = (
            select(adapters, repos.c.full_name, releases.c.version.label("released_as"))
            .join_from(adapters, repos, repos.c.id == adapters.c.repo_id)
            .outerjoin(releases, RELEASED_BUILD)
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
