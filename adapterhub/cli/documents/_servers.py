"""Documents of servers and the registry."""
# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.

from __future__ import annotations

from typing import Annotated, Any

from adapterhub.api import describing, listed, publishing
from adapterhub.api.steps import publishing as steps
from adapterhub.cli.documents._keys import REMOTES
from adapterhub.cli.documents._parts import (
    Manifest,
)
from adapterhub.cli.documents._values import document_of
from adapterhub.distribution import withdrawal
from adapterhub.formats import administration


# ---------------------------------------------------------------- servers
class Info(Manifest, document_of(describing.ShownThere)):
    """An adapter on a server."""


SERVERS = {
    "push": document_of(publishing.Sent),
    "push.server": document_of(publishing.Sent),
    "push.results": document_of(publishing.SentResults),
    "push.dry-run": document_of(publishing.PushPlan),
    "pull": document_of(steps.Pulled),
    "info.server": Info,
    "search.server": list[document_of(listed.FoundThere)],
    "mirror": list[document_of(steps.Mirrored)],
    "mirror.dry-run": list[document_of(steps.Mirrored)],
    "yank": document_of(withdrawal.Withdrawn),
    "unyank": document_of(withdrawal.Withdrawn),
    "delete": document_of(withdrawal.Withdrawn),
    **REMOTES,
}
REGISTRY: dict[str, Any] = {
    "registry-serve": list[Annotated[dict[str, str], "`url`, then once `admin_token`; one document per line"]],
    "registry-check": document_of(administration.Holdings),
    "registry-move": document_of(administration.MovedRegistry),
    "registry-token-create": document_of(administration.NewToken),
    "registry-token-list": list[document_of(administration.Token)],
    "registry-token-revoke": document_of(administration.Token),
    "registry-token-log": list[document_of(administration.LogEntry)],
    "registry-user-list": list[document_of(administration.User)],
    "registry-user-revoke": list[document_of(administration.Token)],
    "registry-webhook-add": document_of(administration.NewWebhook),
    "registry-webhook-list": list[document_of(administration.Webhook)],
    "registry-webhook-remove": document_of(administration.Webhook),
    "registry-webhook-test": document_of(administration.Delivery),
    "registry-webhook-deliveries": list[document_of(administration.Delivery)],
    "registry-tests": document_of(administration.NamespaceRule),
    "registry-names": list[document_of(administration.HeldName)],
    "registry-gc": document_of(administration.FreedSpace),
    "registry-worker": document_of(administration.MadeRecords),
    "registry-meaning": document_of(administration.MeaningModel),
}
