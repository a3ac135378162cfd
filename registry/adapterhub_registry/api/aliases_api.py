"""The routes of aliases, which move between the versions of a repository, and of names, which repositories hold."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import Path
from pydantic import Field, StringConstraints
from sqlalchemy import ColumnElement, Row
from sqlalchemy.engine import Connection

from adapterhub.core.specs import parse_name
from adapterhub.formats.administration import HeldName
from adapterhub.formats.alias import MOST_MOVES, MOST_TARGETS, Alias, AliasMove
from adapterhub_registry.access import adapter_names
from adapterhub_registry.api.adapt_models import NAME, Answer, Problem, Question
from adapterhub_registry.api.adapt_router import adapt_router
from adapterhub_registry.api.context import CallerOf, RegistryOf, user_of
from adapterhub_registry.api.hub.model_info import iso_time
from adapterhub_registry.errors import forbidden
from adapterhub_registry.names import PART, known_repo_id
from adapterhub_registry.repos import aliases
from adapterhub_registry.repos.aliases import MOST_ALIASES

_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    404: {"model": Problem, "description": "Not found"},
}
_WRITING: Final[dict[int | str, dict[str, Any]]] = {
    **_PROBLEMS,
    403: {"model": Problem, "description": "The token lacks the right"},
    409: {"model": Problem, "description": "A branch, a tag or a yanked version is in the way"},
    413: {"model": Problem, "description": "The body is too large, or the repository has too many aliases"},
}

router = adapt_router()

NamePart = Annotated[str, Path(pattern=NAME)]
FullName = Annotated[str, StringConstraints(max_length=200, pattern=rf"^{PART.pattern}/{PART.pattern}$")]
Version = Annotated[str, Field(min_length=1, max_length=64)]


class TargetFacts(Answer):
    """One build under an alias; its share of the requests is `weight` divided by the sum of all weights."""

    version: str
    digest: str
    weight: float


class AliasFacts(Answer):
    """What an alias means now, and its last move. `adapter` is the name in the manifest of its builds."""

    repo: str
    adapter: str | None
    alias: str
    targets: list[TargetFacts]
    moved_at: str
    moved_by: str
    action: str


class MoveFacts(Answer):
    """One move of an alias."""

    action: str
    at: str
    by: str
    targets: list[TargetFacts]


class AliasList(Answer):
    """Aliases, by name."""

    aliases: list[AliasFacts]


class MoveList(Answer):
    """The moves of an alias, oldest first."""

    repo: str
    alias: str
    moves: list[MoveFacts]


class TargetRequest(Question):
    """A released version, and its weight."""

    version: Version
    weight: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] = 1.0


class AliasRequest(Question):
    """What an alias shall mean."""

    targets: Annotated[list[TargetRequest], Field(min_length=1, max_length=MOST_TARGETS)]


class RollbackRequest(Question):
    """The move to go back to, counted from 1; without it, one step."""

    to: Annotated[int, Field(ge=1, le=MOST_MOVES)] | None = None


class NameList(Answer):
    """The names of a namespace, each with its repositories that the caller sees."""

    namespace: str
    names: list[HeldName]


class NameRequest(Question):
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
        adapter_names.move(connection, namespace, parse_name(wanted.name), wanted.repo)
        return _names(connection, namespace, registry.repos.visible(caller))


def _names(connection: Connection, namespace: str, visible: ColumnElement[bool]) -> NameList:
    return NameList(namespace=namespace, names=adapter_names.held_in(connection, namespace, visible))


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
        targets=[TargetFacts(**target.to_json()) for target in alias.targets],
        moved_at=iso_time(int(last.at * 1000)),
        moved_by=last.by,
        action=last.action,
    )


def _move(move: AliasMove) -> MoveFacts:
    targets = [TargetFacts(**target.to_json()) for target in move.targets]
    return MoveFacts(action=move.action, at=iso_time(int(move.at * 1000)), by=move.by, targets=targets)
