"""The routes of signed results of tests, and of the rules of namespaces about them. The server runs nothing."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import Depends, Path, Query, Request
from pydantic import BaseModel, Field, StrictBool, StringConstraints
from sqlalchemy import Row, select
from sqlalchemy.engine import Connection
from starlette.concurrency import run_in_threadpool

from adapterhub.formats.administration import Asks, NamespaceRule
from adapterhub.formats.contract.results import RESULT_LIMIT_BYTES
from adapterhub_registry.access.callers import Caller
from adapterhub_registry.api.adapt_models import (
    MISSING,
    SHA256,
    TOO_LARGE,
    USER_NAME,
    AdapterOf,
    ApiAnswer,
    ApiQuestion,
    NamePart,
    Text,
    adapt_router,
    problems,
    whole,
)
from adapterhub_registry.api.bodies import sent_by
from adapterhub_registry.api.context import CallerOf, Registry, RegistryOf, caller_of, user_of
from adapterhub_registry.api.hub.info import iso_time
from adapterhub_registry.database.db import repos
from adapterhub_registry.errors import forbidden
from adapterhub_registry.names import KEY_NAME, known_repo_id
from adapterhub_registry.testing import (
    MOST_KEYS,
    StoredResult,
    change_rule,
    digest_of_version,
    results_on,
    rule_of,
    take,
)

_TAKING: Final = MISSING | problems(
    {
        403: "The result is forged, or the token may not send it",
        409: "A later result by the same key on the same question is here",
        413: "The result is too large, or the build has too many results",
    }
)
_RULING: Final = {
    **MISSING,
    **problems({403: "The token does not administer the namespace"}),
    **problems({409: "Another key has this name, or the key has another one"}),
    **TOO_LARGE,
}

_BUNDLE: Final = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}

router = adapt_router()

VersionPart = Annotated[str, Path(pattern="^[A-Za-z0-9.!+_-]{1,64}$")]
KeyName = Annotated[str, StringConstraints(pattern=whole(KEY_NAME))]


class ResultQuery(BaseModel):
    """Which results to list: on this base (a digest of its weights), in this precision, with this verdict."""

    base: Annotated[str, StringConstraints(pattern=SHA256)] | None = None
    dtype: Text | None = None
    verdict: Annotated[str, StringConstraints(pattern="^(PASS|CHANGED)$")] | None = None


class ResultFacts(ApiAnswer):
    """A signed result. `signer` is the name of the namespace's key that made it, or null: then it is a claim.

    `bundle` is the file that was signed, to be checked by the reader.
    """

    digest: str
    contract: str
    rules: str | None
    base: str
    dtype: str
    load_in: str
    verdict: str
    sequence: int
    time: str
    key: str
    signer: str | None
    sent_by: str
    sent_at: str
    statement: str
    bundle: str


class ResultList(ApiAnswer):
    """The results on a version, the newest first."""

    repo: str
    version: str
    digest: str
    results: list[ResultFacts]


class KeyRequest(ApiQuestion):
    """A public key in PEM, its name here, and its user, with whose removal it ends."""

    name: KeyName
    pem: Annotated[str, StringConstraints(min_length=1, max_length=16 << 10)]
    user: Annotated[str, StringConstraints(pattern=USER_NAME)] | None = None


class RuleRequest(ApiQuestion):
    """What to change; a member that is left out, or null, stays."""

    asks: Asks | None = None
    keys_only: StrictBool | None = None
    trust: Annotated[tuple[KeyRequest, ...], Field(max_length=MOST_KEYS)] = ()
    distrust: Annotated[tuple[KeyName, ...], Field(max_length=MOST_KEYS)] = ()


async def reader(request: Request, registry: Registry) -> int:
    """Return a user who can read the files of a repository, as the sender of a result."""
    caller, names = await caller_of(request, registry), request.path_params
    user_of(caller)

    def check() -> None:
        with registry.db.read() as connection:
            registry.repos.find_files(connection, caller, known_repo_id(names["namespace"], names["name"]))

    await run_in_threadpool(check)
    return RESULT_LIMIT_BYTES


async def raw_body(request: Request) -> bytes:
    """Return the body; `Edge` has bounded it."""
    return await request.body()


@router.put("/adapters/{namespace}/{name}/tests/{version}", responses=_TAKING, openapi_extra=_BUNDLE)
@sent_by(reader)
def add_result(
    registry: RegistryOf,
    caller: CallerOf,
    repo_id: AdapterOf,
    version: VersionPart,
    raw: Annotated[bytes, Depends(raw_body)],
) -> ResultFacts:
    """Store a signed result on a version: a bundle over an in-toto statement about its manifest.

    A result by a key of the namespace may come from every user who can read the files; any other needs a token that
    may change the repository. A later result of a key on the same question replaces the earlier one.
    """
    user_of(caller)
    with registry.db.begin() as connection:
        repo = registry.repos.find_files(connection, caller, repo_id)
        may_write = caller.writes(repo.full_name)
        return _result(take(connection, repo, version, raw, by=caller.actor, may_write=may_write))


@router.get("/adapters/{namespace}/{name}/tests/{version}", responses=MISSING)
def list_results(
    registry: RegistryOf,
    caller: CallerOf,
    repo_id: AdapterOf,
    version: VersionPart,
    query: Annotated[ResultQuery, Query()],
) -> ResultList:
    """Return the signed results on a version, the newest first."""
    with registry.db.read() as connection:
        repo = registry.repos.find_files(connection, caller, repo_id)
        return results_of(connection, repo, version, query)


def results_of(connection: Connection, repo: Row[Any], version: str, query: ResultQuery) -> ResultList:
    """Those results on a version of a repository that meet a query.

    Raises:
        HttpRefusal: 404 for an unknown version.
    """
    digest = digest_of_version(connection, repo, version)
    found = results_on(connection, repo, digest, rule_of(connection, repo.namespace))
    listed = [_result(one) for one in found if _meets(one, query)]
    return ResultList(repo=repo.full_name, version=version, digest=f"sha256:{digest}", results=listed)


@router.get("/namespaces/{namespace}/tests", responses=MISSING)
def show_rule(registry: RegistryOf, caller: CallerOf, namespace: NamePart) -> NamespaceRule:
    """Return the rule of a namespace; one of which the caller sees no repository looks as if it had none."""
    registry.repos.check_may_read(caller)
    with registry.db.read() as connection:
        return rule_seen(registry, connection, caller, namespace)


def rule_seen(registry: Registry, connection: Connection, caller: Caller, namespace: str) -> NamespaceRule:
    """Return the rule of a namespace as a caller sees it."""
    seen = caller.owns(namespace) or has_visible(registry, connection, caller, namespace)
    rule = rule_of(connection, namespace) if seen else None
    return rule or NamespaceRule(namespace=namespace)


@router.post("/namespaces/{namespace}/tests", responses=_RULING)
def set_rule(registry: RegistryOf, caller: CallerOf, namespace: NamePart, wanted: RuleRequest) -> NamespaceRule:
    """Change the rule of a namespace; this needs a token with the role `admin` for all of it."""
    user_of(caller)
    if not caller.owns(namespace, "administer"):
        raise forbidden(f"this needs a token with the role `admin` for all of `{namespace}`")
    with registry.db.begin() as connection:
        return change_rule(
            connection,
            namespace,
            by=caller.by,
            asks=wanted.asks,
            keys_only=wanted.keys_only,
            trust=[(key.name, key.pem) for key in wanted.trust],
            owners={key.name: key.user for key in wanted.trust if key.user},
            distrust=wanted.distrust,
        )


def has_visible(registry: Registry, connection: Connection, caller: Caller, namespace: str) -> bool:
    """Return whether a caller sees a repository of a namespace."""
    seen = select(repos.c.id).where(repos.c.namespace == namespace, registry.repos.visible(caller))
    return connection.scalar(seen.limit(1)) is not None


def _meets(one: StoredResult, query: ResultQuery) -> bool:
    wanted = {"verdict": query.verdict, "dtype": query.dtype, "base": f"sha256:{query.base}" if query.base else None}
    return all(value is None or getattr(one.said, member) == value for member, value in wanted.items())


def _result(one: StoredResult) -> ResultFacts:
    said = one.said
    return ResultFacts(
        digest=said.manifest,
        contract=said.contract,
        rules=said.rules,
        base=said.base,
        dtype=said.dtype,
        load_in=said.load_in,
        verdict=said.verdict,
        sequence=said.sequence,
        time=iso_time(int(said.time * 1000)),
        key=f"sha256:{one.key}",
        signer=one.signer,
        sent_by=one.sent_by,
        sent_at=iso_time(one.sent_at),
        statement=f"sha256:{one.sha256}",
        bundle=one.body.decode(),
    )
