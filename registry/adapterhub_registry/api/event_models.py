"""The request and response models of events and webhooks, as the OpenAPI document shows them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints

from adapterhub.formats.administration import Delivery, Webhook
from adapterhub_registry.api.adapt_models import Answer, Question, whole
from adapterhub_registry.events.outbox import MOST_IN_PAGE, Change
from adapterhub_registry.events.sending import MOST_URL_CHARACTERS, URL
from adapterhub_registry.names import PART

LONGEST_WAIT_S = 30
SCOPE = f"^{PART.pattern}(/{PART.pattern})?$"
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

    scope: Annotated[str, StringConstraints(max_length=200, pattern=SCOPE)]
    url: Annotated[str, StringConstraints(max_length=MOST_URL_CHARACTERS, pattern=whole(URL))]
    types: Annotated[list[Change], Field(max_length=16)] = Field(default_factory=list)


class WebhookList(Answer):
    """The webhooks that the caller owns."""

    webhooks: list[Webhook]


class DeliveryList(Answer):
    """The last deliveries of a webhook, newest first."""

    deliveries: list[Delivery]
