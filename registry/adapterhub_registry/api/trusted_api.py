"""The routes of trusted publishing: a job of a CI gets a token for its own; administrators name the jobs."""

from __future__ import annotations

from typing import Annotated, Final, cast

import anyio
from fastapi import Path, Query, Request

from adapterhub.formats.administration import Publisher
from adapterhub_registry.access.callers import Caller
from adapterhub_registry.access.issuers import audience_of
from adapterhub_registry.access.members import ALL
from adapterhub_registry.access.trusted import Publishers
from adapterhub_registry.api.adapt_models import (
    FORBIDDEN,
    MISSING,
    TOO_LARGE,
    ExchangedToken,
    IdentityRequest,
    PublisherList,
    PublisherRequest,
    adapt_router,
    problems,
)
from adapterhub_registry.api.bodies import FairSlots, sent_by
from adapterhub_registry.api.context import CallerOf, Registry, RegistryOf, administrator_of, caller_of, check_rate
from adapterhub_registry.api.members_api import manager_of
from adapterhub_registry.errors import conflict
from adapterhub_registry.names import PART, known_repo_id, split

AT_ONCE: Final = 8
"""Exchanges of one server at the same time, each of which may wait for an issuer."""
A_MINUTE: Final = 30
"""Exchanges that one address may ask for."""
_BODY_BYTES: Final = 32 << 10
_EXCHANGING: Final = {
    403: "The identity token is not valid here, was used before, or fits no publisher of the repository",
    409: "The server does not know its public URL, which the tokens have to name",
    429: "Too many exchanges",
    503: "The issuer gives no keys",
}

Namespace = Annotated[str | None, Query(pattern=f"^{PART.pattern}$")]

router = adapt_router()


class ExchangeSlots(FairSlots):
    """The slots of exchanges, with threads of their own: strangers who wait hold up no other route."""

    def __init__(self) -> None:
        super().__init__(AT_ONCE, "exchanges")
        self.threads = anyio.CapacityLimiter(AT_ONCE)


async def _stranger(request: Request, registry: Registry) -> int:
    """Anyone, for a small body: a job has no token yet."""
    await caller_of(request, registry)
    check_rate(registry, "exchange", request.scope["adapterhub.record"].address, A_MINUTE)
    return _BODY_BYTES


@router.post("/publish-token", status_code=201, responses={**TOO_LARGE, **problems(_EXCHANGING)})
@sent_by(_stranger)
async def exchange(request: Request, registry: RegistryOf, wanted: IdentityRequest) -> ExchangedToken:
    """Exchange the identity token of a job for a token of 15 minutes, for one repository; each works once."""
    if registry.settings.public_url is None:
        raise conflict(
            "this registry does not know its own URL, which tokens have to name: start it with `--public-url`"
        )
    audience = audience_of(registry.settings.public_url)
    repo_id = known_repo_id(*split(wanted.repo))
    slots = cast("ExchangeSlots", request.app.state.exchange_slots)
    with slots.hold(None):
        made = await anyio.to_thread.run_sync(
            lambda: registry.publishers.exchange(repo_id, wanted.token, audience=audience), limiter=slots.threads
        )
    return ExchangedToken(token=made.token, user=made.user, repo=made.repo, expires_at=made.expires_at.text)


def publishers_of(registry: Registry, caller: Caller, namespace: str | None) -> Publishers:
    """Return the publishers that a caller may change: of a namespace that the caller administers; for all raises 403.

    An administrator of the registry may use every issuer.
    """
    if caller.is_admin and namespace is None:
        return registry.publishers.by(administrator_of(caller))
    manager_of(registry, caller, namespace or ALL)
    return registry.publishers.by(caller.by, namespace=namespace)


@router.get("/publishers", responses=FORBIDDEN)
def list_publishers(registry: RegistryOf, caller: CallerOf, namespace: Namespace = None) -> PublisherList:
    """Return the trusted publishers, or those of a namespace, for its administrators."""
    return PublisherList(publishers=publishers_of(registry, caller, namespace).records())


@router.post("/publishers", status_code=201, responses={**FORBIDDEN, **TOO_LARGE, **problems({409: "It exists"})})
def add_publisher(registry: RegistryOf, caller: CallerOf, wanted: PublisherRequest) -> Publisher:
    """Trust the jobs of an issuer whose tokens state these claims to publish to a repository."""
    space = None if caller.is_admin else split(wanted.repo)[0]
    return publishers_of(registry, caller, space).add(wanted.repo, wanted.issuer, wanted.claims)


@router.delete("/publishers/{number}", responses={**FORBIDDEN, **MISSING})
def remove_publisher(
    registry: RegistryOf,
    caller: CallerOf,
    number: Annotated[int, Path(ge=1, le=2**31 - 1)],
    namespace: Namespace = None,
) -> Publisher:
    """Trust a publisher no more. The tokens that its jobs have stop working at once; its releases stay."""
    return publishers_of(registry, caller, namespace).remove(number)
