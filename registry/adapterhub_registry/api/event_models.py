"""The request and response models of events and webhooks, as the OpenAPI document shows them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints

from adapterhub_registry.api.adapt_models import Answer, Question
from adapterhub_registry.events.outbox import MOST_IN_PAGE
from adapterhub_registry.events.sending import MOST_URL_CHARACTERS

LONGEST_WAIT_S = 30
MOST_NUMBER = 2**53 - 1


class EventQuery(BaseModel):
    """Where to continue. Without `since`, the answer has no event, but the number to begin with."""

    since: Annotated[int, Field(ge=0, le=MOST_NUMBER)] | None = None
    wait: Annotated[int, Field(ge=0, le=LONGEST_WAIT_S, description="seconds to wait for an event")] = 0
    limit: Annotated[int, Field(ge=1, le=MOST_IN_PAGE)] = 100


class Event(Answer):
    """Something that changed. Numbers grow, with gaps; `data` has `repo`, and what belongs to the type."""

    id: str
    type: str
    timestamp: str
    number: int
    data: dict[str, Any]


class EventPage(Answer):
    """Events in their order. Continue with `next`; with `missed`, events after `since` may be gone: look again."""

    events: list[Event]
    next: int
    missed: bool


class WebhookRequest(Question):
    """A new webhook: a namespace or `namespace/name`, an https URL, and event types (none means all)."""

    scope: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    url: Annotated[str, StringConstraints(min_length=1, max_length=MOST_URL_CHARACTERS)]
    types: Annotated[list[Annotated[str, StringConstraints(max_length=32)]], Field(max_length=16)] = Field(
        default_factory=list
    )


class WebhookFacts(Answer):
    """A webhook without its secret. `silent`: its owner has no token any more that may change the scope."""

    id: int
    scope: str
    url: str
    types: list[str]
    owner: str | None
    created_at: str
    waiting: int
    failed: int
    silent: bool


class NewWebhookFacts(Answer):
    """A new webhook and its secret, which no other answer shows."""

    webhook: WebhookFacts
    secret: str


class WebhookList(Answer):
    """The webhooks that the caller owns."""

    webhooks: list[WebhookFacts]


class DeliveryFacts(Answer):
    """A delivery: `state` is waiting, delivered, failed, or withheld because the owner may not know the event."""

    id: int
    event: str
    type: str
    repo: str
    state: str
    attempts: int
    status: int | None
    problem: str | None
    created_at: str
    due_at: str | None
    ended_at: str | None


class DeliveryList(Answer):
    """The last deliveries of a webhook, newest first."""

    deliveries: list[DeliveryFacts]
