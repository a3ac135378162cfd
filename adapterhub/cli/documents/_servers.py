"""Documents of servers and the registry."""
# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.

from __future__ import annotations

from typing import Annotated, Any

from adapterhub.api import listed, publishing
from adapterhub.api.steps import publishing as steps
from adapterhub.cli.documents._keys import REMOTES
from adapterhub.cli.documents._parts import (
    Manifest,
    ModuleGroup,
    Size,
    TypedDict,
    Verdict,
)
from adapterhub.cli.documents._values import document_of
from adapterhub.distribution import withdrawal
from adapterhub.formats import administration


# ---------------------------------------------------------------- servers
class Header(TypedDict):
    """Facts from the header of the weights file."""

    tensors: int
    parameters: int
    dtypes: list[str]
    modules: int


class Config(TypedDict):
    """Facts from `adapter_config.json`."""

    peft_type: str
    r: int | None
    lora_alpha: float | None
    base_model_name_or_path: str | None


class Info(Manifest):
    """An adapter on a server."""

    installed: Annotated[bool, "false"]
    remote: str
    repository: str
    commit: str
    yanked: Annotated[str | None, "the reason; null: not yanked"]
    base_asked: Annotated[str | None, "the base of the verdict: the given one, else the registered one"]
    base_verdict: Verdict
    base_differences: Annotated[list[str], "one sentence per difference"]
    policy_refusal: Annotated[str | None, "why the project's `[policy]` would refuse it; null: allowed"]
    size_bytes: Size
    header: Header
    config: Config
    groups: list[ModuleGroup]
    whole: Annotated[list[str], "tensors that replace a tensor of the base"]
    received_bytes: Annotated[int, "bytes received for this document"]


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
