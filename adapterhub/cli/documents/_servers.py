"""Documents of servers and the registry."""
# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.

from __future__ import annotations

from typing import Annotated, Any

from adapterhub.api import publishing
from adapterhub.api.steps import publishing as steps
from adapterhub.cli.documents._keys import REMOTES
from adapterhub.cli.documents._parts import (
    Digest,
    Manifest,
    ModuleGroup,
    Size,
    TypedDict,
    Verdict,
    WhyFound,
)
from adapterhub.cli.documents._values import document_of
from adapterhub.distribution import withdrawal


# ---------------------------------------------------------------- servers
class Found(TypedDict):
    """An adapter on a server."""

    repository: str
    name: str | None
    version: str | None
    base: str
    base_weights: Digest | None
    base_hub_id: str | None
    fits: Annotated[str, "how it matches --base: `by weights`, `by name`, or empty"]
    task: str | None
    rank: int | None
    method: list[str]
    description: str | None
    digest: Digest | None
    score: Annotated[float | None, "how well it fits the text, more is better; null where the server does not say"]
    by: Annotated[str | None, "`words` or `meaning`: what the score compares"]
    matched: WhyFound | None


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


# ---------------------------------------------------------------- registry
class NewToken(TypedDict):
    """A new token, shown only once."""

    token: str
    user: str
    role: Annotated[str, "`read`, `write` or `admin`"]


class Token(TypedDict):
    """A token without its secret; times are RFC 3339."""

    id: int
    user: str
    role: str
    namespaces: Annotated[str, "globs, separated by commas"]
    label: str
    created: str
    expires: str | None
    used: str | None
    revoked: str | None


class HeldName(TypedDict):
    """The name of an adapter in a namespace, and a repository that may release it."""

    name: str
    repo: str


class User(TypedDict):
    """A user of a registry, and how many of the user's tokens work; the time is RFC 3339."""

    user: str
    created: str
    tokens: int


class LogEntry(TypedDict):
    """Who created or revoked a token; the time is RFC 3339."""

    at: str
    actor: Annotated[str, "a user and the token, or a command on the server's machine"]
    action: Annotated[str, "`create` or `revoke`"]
    subject: str


class NewWebhook(TypedDict):
    """A new webhook with the secret that signs its messages, shown only once."""

    id: int
    scope: Annotated[str, "a namespace, or a repository"]
    url: str
    secret: str


class Webhook(TypedDict):
    """A webhook without its secret; the time is RFC 3339."""

    id: int
    scope: Annotated[str, "a namespace, or a repository"]
    url: str
    types: Annotated[str, "event types, separated by commas; empty for all"]
    owner: Annotated[str | None, "the user who added it; null for the operator of the server"]
    created: str
    waiting: Annotated[int, "deliveries that wait"]
    failed: Annotated[int, "deliveries that failed for good"]
    silent: Annotated[bool, "true: no token of its owner may change the scope, so it gets nothing"]


class TesterKey(TypedDict):
    """A key whose results count in a namespace."""

    name: str
    fingerprint: Digest


class NamespaceRule(TypedDict):
    """What a namespace asks of a version before it is published."""

    namespace: str
    asks: Annotated[str, "`off`, `contract` or `passed`"]
    keys_only: Annotated[bool, "whether it stores results by its own keys only"]
    keys: list[TesterKey]


class Delivery(TypedDict):
    """A delivery of one event to a webhook; times are RFC 3339."""

    id: int
    event: str
    type: str
    repo: str
    state: Annotated[str, "`waiting`, `delivered`, `failed`, or `withheld` because its owner may not know the event"]
    attempts: int
    status: Annotated[int | None, "of the last answer"]
    problem: Annotated[str | None, "of the last attempt"]
    created: str
    due: Annotated[str | None, "the next attempt"]
    ended: str | None


class FreedSpace(TypedDict):
    """What `gc` removed from a registry, or would remove."""

    dry_run: bool
    commits: int
    blobs: int
    blob_bytes: int
    xorbs: Annotated[int, "parts of uploads by Xet"]
    xorb_bytes: int
    bytes: Annotated[int, "of the blobs and the xorbs"]


class Holdings(TypedDict):
    """The blobs that a registry's database names, and what is missing or damaged; any problem means exit code 12."""

    blobs: int
    bytes: Annotated[int, "total size of the blobs"]
    problems: Annotated[list[str], "one sentence per problem"]


class MovedRegistry(TypedDict):
    """The content of a registry at its new place."""

    blobs: int
    bytes: Annotated[int, "total size of the blobs"]
    rows: Annotated[int, "of all tables"]


class MadeRecords(TypedDict):
    """What a worker of a registry made until it ended."""

    records: Annotated[int, "of the weights of builds"]
    vectors: Annotated[int, "builds whose vectors were made, for search by meaning"]


class MeaningModel(TypedDict):
    """Whether a registry can search by meaning."""

    model: Annotated[str | None, "which vectors belong together: 16 hex digits; null without the model"]
    waiting: Annotated[int, "builds that wait for a worker to make their vectors"]


SERVERS = {
    "push": document_of(publishing.Sent),
    "push.server": document_of(publishing.Sent),
    "push.results": document_of(publishing.SentResults),
    "push.dry-run": document_of(publishing.PushPlan),
    "pull": document_of(steps.Pulled),
    "info.server": Info,
    "search.server": list[Found],
    "mirror": list[document_of(steps.Mirrored)],
    "mirror.dry-run": list[document_of(steps.Mirrored)],
    "yank": document_of(withdrawal.Withdrawn),
    "unyank": document_of(withdrawal.Withdrawn),
    "delete": document_of(withdrawal.Withdrawn),
    **REMOTES,
}
REGISTRY: dict[str, Any] = {
    "registry-serve": list[Annotated[dict[str, str], "`url`, then once `admin_token`; one document per line"]],
    "registry-check": Holdings,
    "registry-move": MovedRegistry,
    "registry-token-create": NewToken,
    "registry-token-list": list[Token],
    "registry-token-revoke": Token,
    "registry-token-log": list[LogEntry],
    "registry-user-list": list[User],
    "registry-user-revoke": list[Token],
    "registry-webhook-add": NewWebhook,
    "registry-webhook-list": list[Webhook],
    "registry-webhook-remove": Webhook,
    "registry-webhook-test": Delivery,
    "registry-webhook-deliveries": list[Delivery],
    "registry-tests": NamespaceRule,
    "registry-names": list[HeldName],
    "registry-gc": FreedSpace,
    "registry-worker": MadeRecords,
    "registry-meaning": MeaningModel,
}
