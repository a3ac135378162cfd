"""The webhooks of a registry elsewhere, through its `/api/adapt/v1` and the token of their owner."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar, Final

from adapterhub.core.errors import RemoteUnreachable
from adapterhub_registry.events.webhooks import DeliveryRecord, NewWebhook, WebhookRecord
from adapterhub_registry.operations.far import FarRegistry

LOOK_EVERY_S: Final = 0.3
TEST_WAIT_S: Final = 60.0


class FarWebhooks(FarRegistry):
    """What `Webhooks` does, on the registry at `url`, with a token that may change the namespace or repository."""

    needs: ClassVar[str] = "a token that may change the namespace or repository"
    hint_missing: ClassVar[str] = "`adapt registry webhook list` shows what there is"

    def add(self, scope: str, url: str, types: Sequence[str] = ()) -> NewWebhook:
        """Send the events of a namespace or repository to `url`; see `Webhooks.add`."""
        answer = self.send("POST", "webhooks", {"scope": scope, "url": url, "types": list(types)})
        record = self.records_in(WebhookRecord, {"webhooks": [answer.get("webhook")]}, "webhooks")[0]
        secret = answer.get("secret")
        if not isinstance(secret, str):
            raise RemoteUnreachable(f"{self.url} sent no secret; remove webhook {record.id} and add it again")
        return NewWebhook(webhook=record, secret=secret)

    def records(self) -> list[WebhookRecord]:
        """Every webhook of the caller, oldest first."""
        return self.records_in(WebhookRecord, self.send("GET", "webhooks"), "webhooks")

    def remove(self, number: int) -> WebhookRecord:
        """Remove a webhook and return its record; raises `NotFound`."""
        return self.records_in(WebhookRecord, {"webhooks": [self.send("DELETE", f"webhooks/{number}")]}, "webhooks")[0]

    def deliveries(self, number: int, *, limit: int = 50) -> list[DeliveryRecord]:
        """The last deliveries of a webhook, newest first; raises `NotFound`."""
        answer = self.send("GET", f"webhooks/{number}/deliveries?limit={limit}")
        return self.records_in(DeliveryRecord, answer, "deliveries")

    def test(self, number: int) -> DeliveryRecord:
        """Let the server send the event `webhook.test` once, wait, and return how it went.

        Raises:
            NotFound: no such webhook.
            RemoteUnreachable: the server did not send it within `TEST_WAIT_S`.
        """
        answer = {"deliveries": [self.send("POST", f"webhooks/{number}/test")]}
        found = self.records_in(DeliveryRecord, answer, "deliveries")[0]
        end = time.monotonic() + TEST_WAIT_S
        while found.state == "waiting" and time.monotonic() < end:
            time.sleep(LOOK_EVERY_S)
            found = next((one for one in self.deliveries(number) if one.id == found.id), found)
        if found.state == "waiting":
            raise RemoteUnreachable(
                f"webhook {number}: the server has not sent the event within {TEST_WAIT_S:.0f} s",
                hint=f"`adapt registry webhook deliveries {number} --url {self.url}` tells later how it went",
            )
        return found
