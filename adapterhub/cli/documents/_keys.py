"""Documents of keys and signatures."""

from __future__ import annotations

from typing import Annotated

from adapterhub.cli.documents._parts import Digest, NotRequired, Path, TypedDict


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


class Signed(TypedDict):
    """A new or existing signature."""

    name: str
    version: str
    namespace: Annotated[str | None, "the namespace it is signed for"]
    digest: Annotated[str, "of the manifest"]
    key: str
    fingerprint: Annotated[str, "of the key"]
    path: Annotated[str, "the signature file"]
    created: Annotated[bool, "false: the same signature existed already"]
    statement: NotRequired[Annotated[str, "with --statement: the file that says how it was made"]]


KEYS = {
    "key-new": NewKey,
    "key-list": list[ListedKey],
    "key-show": PublicKey,
    "key-trust": TrustedKey,
    "key-untrust": Untrusted,
    "key-revoke": Revoked,
    "key-policy": list[Policy],
    "sign": Signed,
}
