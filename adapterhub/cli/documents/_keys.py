"""Documents of keys and signatures."""
# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.

from __future__ import annotations

from typing import Annotated

from adapterhub.api import publishing
from adapterhub.api.steps.keys import rotating
from adapterhub.cli.documents._parts import Digest, NotRequired, Path, TypedDict
from adapterhub.cli.documents._values import document_of


class NewKey(TypedDict):
    """A new key pair."""

    name: str
    fingerprint: Digest
    private: Path
    public: Path
    encrypted: bool


class TrustedKey(TypedDict):
    """A trusted key and its scope."""

    name: str
    kind: Annotated[str, "`trusted`"]
    fingerprint: Digest
    adapters: Annotated[list[str], "globs of adapters that it may sign"]
    remotes: Annotated[list[str], "globs of places that it may sign for"]
    not_after: Annotated[str | None, "end of validity, RFC 3339"]
    accepts: Annotated[list[str], "globs of adapters that it takes over from another key"]
    replaces: Annotated[list[str], "fingerprints of keys that it replaces"]


class ListedKey(TypedDict):
    """One of your keys, a trusted or a revoked one; fields after `reason` are present for trusted keys."""

    name: str
    kind: Annotated[str, "`own`, `trusted` or `revoked`"]
    fingerprint: Digest
    reason: NotRequired[Annotated[str, "why it was revoked"]]
    adapters: NotRequired[list[str]]
    remotes: NotRequired[list[str]]
    not_after: NotRequired[str | None]
    accepts: NotRequired[list[str]]
    replaces: NotRequired[list[str]]


class PublicKey(TypedDict):
    """The public half of a key."""

    name: str
    fingerprint: Digest
    pem: Annotated[str, "the key in PEM format"]


class Revoked(TypedDict):
    """A key whose signatures are refused."""

    name: str
    fingerprint: Digest
    revoked: Annotated[bool, "true"]
    reason: Annotated[str, "why"]


class Untrusted(TypedDict):
    """A key that is no longer trusted."""

    name: str
    fingerprint: Digest
    trusted: Annotated[bool, "false"]


class Policy(TypedDict):
    """The signature policy of one place."""

    place: Annotated[str, "`*` for all places, a namespace, or `remote NAME`"]
    policy: Annotated[str, "`require`, `warn`, `off` or `default`"]


KEYS = {
    "key-new": NewKey,
    "key-list": list[ListedKey],
    "key-show": PublicKey,
    "key-trust": TrustedKey,
    "key-untrust": Untrusted,
    "key-revoke": Revoked,
    "key-rotate": document_of(rotating.Rotated),
    "key-policy": list[Policy],
    "sign": document_of(publishing.Signed),
}
