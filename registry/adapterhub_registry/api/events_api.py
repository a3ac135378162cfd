"""The routes of events, which others follow, and of webhooks, which the server sends."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Annotated, Final, cast

from fastapi import Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from adapterhub.formats.administration import Delivery, NewWebhook, Webhook
from adapterhub_registry.access.callers import Caller
from adapterhub_registry.api.adapt_models import (
    MISSING,
    TOO_LARGE,
    DeliveryList,
    EventList,
    EventQuery,
    WebhookList,
    WebhookRequest,
    adapt_router,
    problems,
)
from adapterhub_registry.api.bodies import FairSlots
from adapterhub_registry.api.context import CallerOf, Registry, RegistryOf, authenticated, user_of
from adapterhub_registry.outbox import MOST_DELIVERIES, Webhooks, read_page

LOOK_EVERY_S: Final = 0.25
STOPPING: Final = "adapterhub.stopping"
"""The member of a request's state that says that the server is about to stop."""

_REFUSED: Final = {
    403: "The server does not send to this address",
    409: "The namespace has as many webhooks as the registry allows",
}

router = adapt_router()

Number = Annotated[int, Path(ge=1, le=2**31 - 1)]


@router.get("/events", responses=problems({429: "Too many requests wait"}))
async def events(
    request: Request, registry: RegistryOf, caller: CallerOf, query: Annotated[EventQuery, Query()]
) -> EventList:
    """Return the changes in repositories that the caller sees: new, yanked and deleted versions, moved aliases.

    With `wait`, the answer comes with the first event, or when the time is over.
    """
    end = time.monotonic() + query.wait
    known = await registry.watch.latest()
    page = await run_in_threadpool(_page, registry, caller, query)
    if query.since is None or page.events or not query.wait:
        return page
    waiting = cast("FairSlots", request.app.state.follower_slots)
    with waiting.hold(caller.token_id):
        while time.monotonic() < end and STOPPING not in request.scope["state"]:
            await asyncio.sleep(LOOK_EVERY_S)
            latest = await registry.watch.latest()
            if latest == known:
                continue
            known = latest
            caller = await authenticated(request, registry)  # its token may have been revoked meanwhile
            page = await run_in_threadpool(_page, registry, caller, query)
            if page.events:
                break
    return page


def _page(registry: Registry, caller: Caller, query: EventQuery) -> EventList:
    registry.repos.check_may_read(caller)
    page = read_page(registry.db, caller, registry.repos.visible(caller), since=query.since, limit=query.limit)
    return EventList.model_validate(asdict(page))


@router.get("/webhooks")
def list_webhooks(registry: RegistryOf, caller: CallerOf) -> WebhookList:
    """Return the webhooks of the namespaces and repositories that the caller owns."""
    return WebhookList(webhooks=_mine(registry, caller).records())


@router.post("/webhooks", status_code=201, responses={**MISSING, **problems(_REFUSED), **TOO_LARGE})
def add_webhook(registry: RegistryOf, caller: CallerOf, wanted: WebhookRequest) -> NewWebhook:
    """Send the events of a namespace or repository to a URL; only this response shows the secret that signs them."""
    return _mine(registry, caller).add(wanted.scope, wanted.url, wanted.types)


@router.delete("/webhooks/{number}", responses=MISSING)
def remove_webhook(registry: RegistryOf, caller: CallerOf, number: Number) -> Webhook:
    """Remove a webhook, and the deliveries that wait for it."""
    return _mine(registry, caller).remove(number)


@router.post("/webhooks/{number}/test", status_code=202, responses=MISSING)
def test_webhook(registry: RegistryOf, caller: CallerOf, number: Number, response: Response) -> Delivery:
    """Send the event `webhook.test` soon, once; `deliveries`, to which `Location` leads, contains the result."""
    response.headers["Location"] = f"/api/adapt/v1/webhooks/{number}/deliveries"
    return _mine(registry, caller).ask_test(number)


@router.get("/webhooks/{number}/deliveries", responses=MISSING)
def deliveries(
    registry: RegistryOf,
    caller: CallerOf,
    number: Number,
    limit: Annotated[int, Query(ge=1, le=MOST_DELIVERIES)] = 50,
) -> DeliveryList:
    """Return the last deliveries of a webhook, newest first."""
    return DeliveryList(deliveries=_mine(registry, caller).deliveries(number, limit=limit))


def _mine(registry: Registry, caller: Caller) -> Webhooks:
    user_of(caller)
    return registry.webhooks.of(caller)
