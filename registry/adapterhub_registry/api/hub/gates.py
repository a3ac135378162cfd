"""Hub API: ask for the files of a gated repository, and answer those who asked."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl

from fastapi import Query, Request
from fastapi.responses import JSONResponse
from sqlalchemy import Row
from starlette.concurrency import run_in_threadpool

from adapterhub.core.errors import shown
from adapterhub_registry.access import gates
from adapterhub_registry.api.bodies import hub_router, sent_by, user
from adapterhub_registry.api.context import (
    BaseUrl,
    CallerOf,
    JsonBody,
    JsonObject,
    RegistryOf,
    RepoOf,
    json_object,
    next_link,
    user_of,
)
from adapterhub_registry.api.hub.model_info import iso_time
from adapterhub_registry.errors import bad_request

router = hub_router()
REQUESTS_PAGE: Final = 1000
MAX_FIELDS: Final = 50
_REQUESTS: Final = "/api/models/{namespace}/{name}/user-access-request"


@router.post("/{namespace}/{name}/ask-access")
@sent_by(user)
async def ask(request: Request, registry: RegistryOf, caller: CallerOf, repo_id: RepoOf) -> JSONResponse:
    """Ask for access as the caller, with the fields of a form or of JSON; `status` is the answer so far."""
    user = user_of(caller)
    fields = await _fields(request)

    def work() -> str:
        with registry.db.begin() as connection:
            row = registry.repos.find(connection, caller, repo_id)
            return gates.ask(connection, row, user, fields)

    return JSONResponse({"status": await run_in_threadpool(work)})


async def _fields(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").startswith("application/json"):
        body = await json_object(request)
        return {name: body.value(name) for name in body.names()}
    try:
        return dict(parse_qsl((await request.body()).decode("utf-8"), max_num_fields=MAX_FIELDS))
    except ValueError:
        raise bad_request(f"body: expected a form with at most {MAX_FIELDS} fields, or a JSON object") from None


@router.post(f"{_REQUESTS}/cancel")
def withdraw(registry: RegistryOf, caller: CallerOf, repo_id: RepoOf) -> JSONResponse:
    """Take back the caller's own request."""
    user = user_of(caller)
    with registry.db.begin() as connection:
        gates.withdraw(connection, registry.repos.find(connection, caller, repo_id), user)
    return JSONResponse({})


@router.post(f"{_REQUESTS}/grant")
def grant(registry: RegistryOf, caller: CallerOf, repo_id: RepoOf, body: JsonBody) -> JSONResponse:
    """Give a user access, asked or not."""
    with registry.db.begin() as connection:
        gates.grant(connection, registry.repos.find_writable(connection, caller, repo_id), body.text("user"))
    return JSONResponse({})


@router.post(f"{_REQUESTS}/handle")
def handle(registry: RegistryOf, caller: CallerOf, repo_id: RepoOf, body: JsonBody) -> JSONResponse:
    """Accept or reject a user's request, or make it pending again."""
    reason = body.text_or_none("rejectionReason", limit=gates.MAX_REASON_CHARACTERS)
    status = _status(body.text("status"))
    with registry.db.begin() as connection:
        row = registry.repos.find_writable(connection, caller, repo_id)
        gates.answer(connection, row, _user_in(body), status, reason)
    return JSONResponse({})


@router.get(f"{_REQUESTS}/{{status}}")
def list_requests(
    request: Request,
    registry: RegistryOf,
    caller: CallerOf,
    repo_id: RepoOf,
    base: BaseUrl,
    status: str,
    after: Annotated[str, Query()] = "",
) -> JSONResponse:
    """List the requests that are pending, accepted or rejected; `Link` leads to the next page."""
    wanted = _status(status)
    with registry.db.read() as connection:
        row = registry.repos.find_writable(connection, caller, repo_id)
        found = gates.listed(connection, row, wanted, after=after, limit=REQUESTS_PAGE + 1)
    page, headers = found[:REQUESTS_PAGE], {}
    if len(found) > len(page):
        headers["Link"] = next_link(request, f"{base}{request.url.path}", after=page[-1].user_name)
    return JSONResponse([_described(one) for one in page], headers=headers)


def _user_in(body: JsonObject) -> str:
    """The user whose request a body names: by the user's name, or by the id that the list gives a request."""
    number = body.text_or_none("requestId")
    if number is None:
        return body.text("user")
    try:
        return bytes.fromhex(number).decode()
    except ValueError:
        raise bad_request("requestId: expected one from the list of requests") from None


def _described(row: Row[Any]) -> dict[str, Any]:
    found = {
        "requestId": row.user_name.encode().hex(),
        "user": {"user": row.user_name, "fullname": row.user_name},
        "status": row.status,
        "timestamp": iso_time(row.created_at),
    }
    if row.fields:
        found["fields"] = json.loads(row.fields)
    if row.reason:
        found["rejectionReason"] = row.reason
    return found


def _status(text: str) -> gates.Status:
    found = next((status for status in gates.STATUSES if status == text), None)
    if found is None:
        raise bad_request(f"status `{shown(text)}`: expected one of {', '.join(gates.STATUSES)}")
    return found
