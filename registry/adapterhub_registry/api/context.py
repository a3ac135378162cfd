"""The dependencies of the routes: the registry, the caller, the base URL, and a strict JSON body."""

from __future__ import annotations

import base64
import contextlib
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from typing import Annotated, Any, TypeVar, cast
from urllib.parse import unquote, urlencode

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from sqlalchemy import Row
from sqlalchemy.engine import Connection
from starlette.concurrency import run_in_threadpool

from adapterhub.core.errors import shown
from adapterhub_registry.access.accounts import Accounts
from adapterhub_registry.access.audit import By
from adapterhub_registry.access.callers import ANONYMOUS, OPERATOR, Caller
from adapterhub_registry.access.devices import Devices
from adapterhub_registry.access.members import Members
from adapterhub_registry.access.oidc import SignIn
from adapterhub_registry.access.telemetry import Downloads, Rates, RequestRecord, Telemetry, address_of
from adapterhub_registry.access.tokens import (
    MAX_TOKEN_CHARACTERS,
    BadSignature,
    Tokens,
    digest_of,
    new_token,
    row_of,
    seal,
    unseal,
    working,
)
from adapterhub_registry.access.trusted import Publishers
from adapterhub_registry.database.counting import Counts
from adapterhub_registry.database.db import Database
from adapterhub_registry.errors import HttpRefusal, bad_request, forbidden, too_many, unauthorized
from adapterhub_registry.names import RepoId, known_repo_id
from adapterhub_registry.nearest import Nearest
from adapterhub_registry.outbox import EventWatch, Webhooks
from adapterhub_registry.repos.commits import Top
from adapterhub_registry.repos.git import KnownIds
from adapterhub_registry.repos.repos import Repos
from adapterhub_registry.settings import Settings
from adapterhub_registry.storage.blobs import BlobStore
from adapterhub_registry.storage.xet import XorbStore
from adapterhub_registry.treelog import TreeLog
from adapterhub_registry.worker import KnownSketches, Once

_HOST = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_GIT_PATH = re.compile(r"(/models)?/[^/]+/[^/]+/(info/refs|git-upload-pack|info/lfs/objects/batch)")
MAX_BASIC_CHARACTERS = 2048
WHOLE_ANSWER_BYTES = 1 << 20
_ADMINISTRATION = tuple(
    f"/api/adapt/v1/{word}" for word in ("tokens", "users", "accounts", "log", "publishers", "webhooks", "namespaces")
)
"""The only paths that the operator's token of a running server opens: commands with `--root` get 401 elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """The parts of one server."""

    settings: Settings
    db: Database
    blobs: BlobStore
    xorbs: XorbStore
    repos: Repos
    tokens: Tokens
    members: Members
    publishers: Publishers
    accounts: Accounts
    devices: Devices
    sign_in: SignIn | None
    downloads: Downloads
    rates: Rates
    telemetry: Telemetry
    webhooks: Webhooks
    watch: EventWatch
    nearest: Nearest
    log: TreeLog
    operator: str = field(default_factory=new_token, repr=False)
    """The token of commands on this machine, which ends with the server."""
    once: Once = field(default_factory=Once)
    counts: Counts = field(default_factory=Counts)
    git: KnownIds = field(default_factory=KnownIds)
    sketches: KnownSketches = field(default_factory=KnownSketches)


async def registry_of(request: Request) -> Registry:
    """Return the registry of this application."""
    return cast("Registry", request.app.state.registry)


RegistryOf = Annotated[Registry, Depends(registry_of)]


async def caller_of(request: Request, registry: RegistryOf) -> Caller:
    """As `authenticated`, once for each request, however many parts of it ask."""
    known: Caller | None = request.scope.get("adapterhub.caller")
    if known is None:
        known = request.scope["adapterhub.caller"] = await authenticated(request, registry)
    return known


async def authenticated(request: Request, registry: Registry) -> Caller:
    """Return the sender of a request; anonymous without a token.

    Raises:
        HttpRefusal: 401 for an invalid token, even where none is needed: its user relies on it. 429 for more requests a
            minute than this token, or this address without a valid token, may send.
    """
    token = _token_of(request)
    if token is None:
        return admitted(request, registry, ANONYMOUS)
    administers = request.scope["path"].startswith(_ADMINISTRATION)
    if administers and secrets.compare_digest(token.encode(), registry.operator.encode()):
        return admitted(request, registry, OPERATOR)
    caller = await run_in_threadpool(registry.tokens.authenticate, token) if token else None
    return _valid(request, registry, caller)


@contextlib.contextmanager
def reading(request: Request, registry: Registry) -> Iterator[tuple[Connection, Caller]]:
    """Provide a transaction that reads, and the sender of the request: `caller_of` takes one of its own.

    Raises:
        HttpRefusal: as `caller_of`.
    """
    token = _token_of(request)
    if token is None:
        caller = admitted(request, registry, ANONYMOUS)
        with registry.db.read() as connection:
            yield connection, caller
        return
    found = None
    try:
        with registry.db.read() as connection:
            row = row_of(connection, token)
            known = working(row)
            found = row if known is not None else None
            yield connection, _valid(request, registry, known)
    finally:
        if found is not None:
            registry.tokens.note_use(found)


def glanced(request: Request, registry: Registry, wanted: Top, **given: object) -> tuple[Caller, Row[Any] | None]:
    """Return the sender of a request, and what it asks for: one statement, hence one way to the database and back.

    Raises:
        HttpRefusal: as `caller_of`.
    """
    token = _token_of(request)
    if token is None:
        return admitted(request, registry, ANONYMOUS), registry.db.look(wanted.alone, **given)
    digest = digest_of(token)
    row, found = (None, None) if digest is None else registry.db.look(wanted.with_token, token=digest, **given)
    caller = _valid(request, registry, working(row))
    if row is not None:
        registry.tokens.note_use(row)
    return caller, found


def _token_of(request: Request) -> str | None:
    """Return the token of a request, empty for a malformed header; None without one."""
    header = request.headers.get("authorization")
    if header is None:
        return None
    scheme, _, given = header.partition(" ")
    kind, token = scheme.lower(), given.strip()
    if kind == "basic" and of_git(request.scope["path"]) and len(token) <= MAX_BASIC_CHARACTERS:
        kind, token = "bearer", _password(token)
    return token if kind == "bearer" and len(token) <= MAX_TOKEN_CHARACTERS else ""


def of_git(path: str) -> bool:
    """Whether git or git-lfs asks for this path: they send a token as the password of a user, as a browser might.

    No other path takes passwords: a browser would add one to the requests of every page that it shows.
    """
    return _GIT_PATH.fullmatch(path) is not None


def _password(text: str) -> str:
    """Return the password in a header of the scheme Basic; empty for a malformed one."""
    try:
        return base64.b64decode(text, validate=True).decode("ascii").partition(":")[2]
    except ValueError:
        return ""


def _valid(request: Request, registry: Registry, caller: Caller | None) -> Caller:
    """Return the caller of a token, who may send one more request; raises 401 for an invalid token."""
    if caller is None:
        admitted(request, registry, ANONYMOUS)
        raise unauthorized(
            "Invalid credentials in Authorization header, expected `Bearer TOKEN` with a token that is valid"
        )
    return admitted(request, registry, caller)


def admitted(request: Request, registry: Registry, caller: Caller) -> Caller:
    """Note the caller of a request for the log, and return it.

    Raises:
        HttpRefusal: 429, as `caller_of`.
    """
    peer = request.client.host if request.client else None
    address = address_of(peer, request.headers.getlist("x-forwarded-for"), registry.settings.trusted_proxies)
    record: RequestRecord = request.scope.setdefault("adapterhub.record", RequestRecord())
    record.address, record.user, record.token_id = address, caller.user, caller.token_id
    limits = registry.settings.limits
    if caller.user is None:
        check_rate(registry, "address", address, limits.address_requests_per_minute)
    else:
        check_rate(registry, "token", str(caller.token_id), limits.token_requests_per_minute)
    return replace(caller, address=address)


def check_rate(registry: Registry, kind: str, caller: str, per_minute: int) -> None:
    """Raise 429 when the caller exceeds its rate."""
    wait_s = registry.rates.wait_s(f"{kind} {caller}", per_minute)
    if wait_s:
        registry.telemetry.refused.labels(kind).inc()
        raise too_many(f"rate limit: at most {per_minute} requests a minute from one {kind}", after_s=wait_s)


CallerOf = Annotated[Caller, Depends(caller_of)]


def seeker_of(request: Request, registry: RegistryOf, caller: CallerOf) -> Caller:
    """Return the caller of a route that compares updates, at a lower rate: each answer reveals a little of the key.

    Raises:
        HttpRefusal: 429, as `caller_of`.
    """
    address = request.scope["adapterhub.record"].address
    asking = f"token {caller.token_id}" if caller.user is not None else f"address {address}"
    check_rate(registry, "similar", asking, registry.settings.limits.similar_requests_per_minute)
    return caller


SeekerOf = Annotated[Caller, Depends(seeker_of)]


def user_of(caller: Caller) -> str:
    """Return the user name of a caller; raises 401 without a token."""
    if caller.user is None:
        raise unauthorized()
    return caller.user


async def repo_id_of(namespace: str, name: str) -> RepoId:
    """Return the repository in the path of a URL."""
    return known_repo_id(namespace, name)


RepoOf = Annotated[RepoId, Depends(repo_id_of)]


async def base_url(request: Request, registry: RegistryOf) -> str:
    """As `base_of`."""
    return base_of(request, registry)


def base_of(request: Request, registry: Registry) -> str:
    """Return the address at which the client reached this server, without a trailing slash.

    The hub client refuses URLs of other hosts, so links follow the Host header (or `public_url`).

    Raises:
        HttpRefusal: 400 for a malformed Host header.
    """
    public = registry.settings.public_url
    if public is not None:
        return public
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):
        raise bad_request(f"Host `{shown(host)}`: expected a name or address with an optional port")
    return f"{request.url.scheme}://{host}{request.scope.get('root_path', '')}"


def next_link(request: Request, place: str, **position: str) -> str:
    """Return the `Link` header to the next page: the same query at the URL `place`, from another position."""
    kept = [(name, value) for name, value in request.query_params.multi_items() if name not in position]
    return f'<{place}?{urlencode([*kept, *position.items()])}>; rel="next"'


def administrator_of(caller: Caller) -> By:
    """Return the administrator of a request, as the log names it; raises 401 or 403 for anyone else."""
    user_of(caller)
    if not caller.is_admin:
        raise forbidden("this needs the token of an administrator: role `admin`, namespaces `*`")
    return caller.by


BaseUrl = Annotated[str, Depends(base_url)]


def sealed_cursor(registry: Registry, position: str | None) -> str | None:
    """Encrypt a position in a listing: it contains a repository number, from which clients could count private ones."""
    return None if position is None else seal(position, registry.settings.secret)


def opened_cursor(registry: Registry, cursor: str | None) -> str | None:
    """Decrypt the position that a client sent back.

    Raises:
        HttpRefusal: 404 for a cursor that does not come from this registry.
    """
    if cursor is None:
        return None
    try:
        return unseal(cursor, registry.settings.secret)
    except BadSignature as problem:
        raise HttpRefusal(404, "NotFound", f"cursor `{shown(cursor)}` {problem}; start without a cursor") from None


def dumped(value: object) -> bytes:
    """Compact JSON, as in every response; null for a number that JSON lacks."""
    return to_json(value, inf_nan_mode="null")


QueryModel = TypeVar("QueryModel", bound=BaseModel)


def query_of(request: Request, model: type[QueryModel]) -> QueryModel:
    """Return the parameters of a request, for a route that does without the framework's dependencies.

    Raises:
        RequestValidationError: as the framework does for its parameters.
    """
    given = request.query_params
    lists = _lists_of(model)
    values = {name: given.getlist(name) if name in lists else text for name, text in given.items()}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError([{**one, "loc": ("query", *one["loc"])} for one in error.errors()]) from None


@lru_cache
def _lists_of(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in model.model_fields.items() if field.default == [])


def json_answer(pieces: Iterator[bytes], headers: Mapping[str, str]) -> Response:
    """Return a JSON response in pieces: a small one goes out whole, a large one streams in constant memory."""
    first, size = [], 0
    for piece in pieces:
        first.append(piece)
        size += len(piece)
        if size > WHOLE_ANSWER_BYTES:
            return StreamingResponse(chain(first, pieces), headers=dict(headers), media_type="application/json")
    return Response(b"".join(first), headers=dict(headers), media_type="application/json")


async def revision_of(rev: str) -> str:
    """Return the branch, tag or commit in the path of a URL; its slashes arrive percent-encoded (see `edge`)."""
    return unquote(rev)


RevisionOf = Annotated[str, Depends(revision_of)]


class JsonObject:
    """A JSON object from a client, read by member; a wrong type is a `HttpRefusal` 400 that names the member."""

    def __init__(self, values: dict[str, Any], where: str = "") -> None:
        self._values = values
        self._where = where

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str, default: str | None = None, *, limit: int = 4096) -> str:
        """Return a string of at most `limit` characters; required unless there is a default."""
        value = self._values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self._wrong(name, "a string")
        if len(value) > limit:
            raise self._wrong(name, f"a string of at most {limit} characters")
        return self._storable(name, value)

    def text_or_none(self, name: str, *, limit: int = 4096) -> str | None:
        """Return a string, or None when it is absent or null."""
        return None if self._values.get(name) is None else self.text(name, limit=limit)

    def flag_or_none(self, name: str) -> bool | None:
        """Return true, false, or None when it is absent or null."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def number(self, name: str, *, most: int, least: int = 0) -> int:
        """Return a whole number within bounds."""
        value = self._values.get(name)
        if type(value) is not int or not least <= value <= most:
            raise self._wrong(name, f"a whole number from {least} to {most}")
        return value

    def objects(self, name: str, *, most: int) -> list[JsonObject]:
        """Return a list of at most `most` objects."""
        value = self._values.get(name)
        if not isinstance(value, list) or len(value) > most or not all(isinstance(item, dict) for item in value):
            raise self._wrong(name, f"a list of at most {most} objects")
        return [JsonObject(item, f"{self._where}{name}[{at}].") for at, item in enumerate(value)]

    def child(self, name: str) -> JsonObject:
        """Return an object."""
        value = self._values.get(name)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return JsonObject(value, f"{self._where}{name}.")

    def texts(self, name: str, *, most: int) -> list[str]:
        """Return a list of at most `most` strings; one string counts as a list, an absent member as an empty one."""
        value = self._values.get(name, [])
        items = value if isinstance(value, list) else [value]
        if len(items) > most or not all(isinstance(item, str) for item in items):
            raise self._wrong(name, f"a list of at most {most} strings")
        return [self._storable(name, item) for item in items]

    def names(self) -> Iterator[str]:
        """Return the names of its members."""
        return iter(self._values)

    def value(self, name: str) -> object:
        """Any JSON value; None when absent."""
        return self._values.get(name)

    def _storable(self, name: str, text: str) -> str:
        if "\0" in text or not _is_utf8(text):
            raise self._wrong(name, "a string without NUL characters and lone surrogates")
        return text

    def _wrong(self, name: str, expected: str) -> Exception:
        return bad_request(f"{self._where}{name}: expected {expected}, got {shown(self._values.get(name))}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


async def json_object(request: Request) -> JsonObject:
    """Parse the body as a JSON object; the request of a `GuardedRoute` asks first whether its sender may send one.

    Raises:
        HttpRefusal: 400.
    """
    value = await request.json()
    if not isinstance(value, dict):
        raise bad_request(f"body: expected a JSON object, got {shown(value)}")
    return JsonObject(value)


JsonBody = Annotated[JsonObject, Depends(json_object)]
