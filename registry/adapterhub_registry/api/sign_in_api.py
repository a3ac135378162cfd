"""The routes by which programs get a token that a person approves, and administrators see to the people.

A request for a token and each poll are JSON with the names of RFC 8628, and so are the answers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Final

from fastapi import Path, Query, Request

from adapterhub.formats.administration import Account
from adapterhub_registry.access.devices import LIFE_S, WAIT_S, shown_code
from adapterhub_registry.api.adapt_models import (
    FORBIDDEN,
    MISSING,
    TOO_LARGE,
    USER_NAME,
    AccountList,
    AccountRequest,
    DeviceCodes,
    DevicePoll,
    DeviceRequest,
    DeviceToken,
    NamePage,
    adapt_router,
    problems,
)
from adapterhub_registry.api.bodies import administrator, sent_by
from adapterhub_registry.api.context import (
    BaseUrl,
    CallerOf,
    Registry,
    RegistryOf,
    administrator_of,
    caller_of,
    check_rate,
)
from adapterhub_registry.database.db import now_ms
from adapterhub_registry.errors import conflict

DEVICE_PAGE: Final = "/sign-in/device"
STARTS_A_MINUTE: Final = 30
POLLS_A_MINUTE: Final = 300
"""What one address may send: as many as its programs that wait need."""
_BODY_BYTES: Final = 8 << 10
_UserName = Annotated[str, Path(pattern=USER_NAME)]

router = adapt_router()


def stranger(kind: str) -> Callable[[Request, Registry], Awaitable[int]]:
    """Let anyone send a small body, so often a minute: a program has no token yet."""

    async def check(request: Request, registry: Registry) -> int:
        await caller_of(request, registry)
        most = STARTS_A_MINUTE if kind == "device" else POLLS_A_MINUTE
        check_rate(registry, kind, request.scope["adapterhub.record"].address, most)
        return _BODY_BYTES

    return check


@router.post("/device", responses={**TOO_LARGE, **problems({429: "Too many programs wait", 503: "As 429, of all"})})
@sent_by(stranger("device"))
def start(request: Request, registry: RegistryOf, base: BaseUrl, wanted: DeviceRequest) -> DeviceCodes:
    """Ask for a token that a person approves on the page `verification_uri`, by the code `user_code`."""
    address = request.scope["adapterhub.record"].address
    made = registry.devices.start(wanted.client, address=address, scopes=wanted.scopes, days=wanted.days)
    return DeviceCodes(
        device_code=made.device_code,
        user_code=shown_code(made.user_code),
        verification_uri=base + DEVICE_PAGE,
        expires_in=LIFE_S,
        interval=WAIT_S,
    )


@router.post("/device/token", responses={**TOO_LARGE, **problems({400: "As RFC 8628 has them", 429: "Too many polls"})})
@sent_by(stranger("device poll"))
def poll(registry: RegistryOf, wanted: DevicePoll) -> DeviceToken:
    """Take the token once a person approved it; the error `authorization_pending` says to ask again later."""
    made = registry.devices.poll(wanted.device_code)
    return DeviceToken(
        access_token=made.token,
        token_type="bearer",  # noqa: S106 - its kind
        expires_in=(made.expires_at - now_ms()) // 1000,
        user=made.user,
        scopes=list(made.scopes),
        namespaces=list(made.namespaces),
        label=made.label,
        expires_at=made.expires_at.text,
    )


@router.get("/accounts", responses=FORBIDDEN)
def list_accounts(registry: RegistryOf, caller: CallerOf, query: Annotated[NamePage, Query()]) -> AccountList:
    """List the people of the issuer, for an administrator."""
    administrator_of(caller)
    found = registry.accounts.records(after=query.after, limit=query.limit + 1)
    page = found[: query.limit]
    return AccountList(accounts=page, next_after=page[-1].user if len(found) > len(page) else None)


@router.post(
    "/accounts", status_code=201, responses={**FORBIDDEN, **MISSING, **TOO_LARGE, **problems({409: "It is linked"})}
)
@sent_by(administrator)
def link_account(registry: RegistryOf, caller: CallerOf, wanted: AccountRequest) -> Account:
    """Let a person of the issuer sign in as a user who is there already."""
    actor = administrator_of(caller)
    if registry.sign_in is None:
        raise conflict("this registry has no issuer: start it with `--sign-in FILE`")
    return registry.accounts.by(actor).link(wanted.user, registry.sign_in.rules.issuer, wanted.subject)


@router.delete("/accounts/{name}", responses={**FORBIDDEN, **MISSING})
def unlink_account(registry: RegistryOf, caller: CallerOf, name: _UserName) -> Account:
    """Let the person of a user sign in no more as that user, whose sessions and approved tokens end."""
    actor = administrator_of(caller)
    return registry.accounts.by(actor).unlink(name)


@router.post("/accounts/{name}/readmit", responses={**FORBIDDEN, **MISSING})
@sent_by(administrator)
def readmit_account(registry: RegistryOf, caller: CallerOf, name: _UserName) -> Account:
    """Let a person sign in again whose user was removed from the registry."""
    actor = administrator_of(caller)
    return registry.accounts.by(actor).readmit(name)
