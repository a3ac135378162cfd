"""Documents of keys, signatures, servers and the registry."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from adapterhub.cli.documents._parts import Digest, File, Manifest, ModuleGroup, NotRequired, Path, Size, Verdict


# ---------------------------------------------------------------- keys
class NewKey(TypedDict):
    """A key pair that was made."""

    name: str
    fingerprint: Digest
    private: Path
    public: Path
    encrypted: bool


class TrustedKey(TypedDict):
    """A key that is trusted, and for what."""

    name: str
    kind: Annotated[str, "`trusted`"]
    fingerprint: Digest
    adapters: Annotated[list[str], "globs it may sign"]
    remotes: Annotated[list[str], "globs of places it may sign for"]
    not_after: Annotated[str | None, "RFC 3339"]
    accepts: Annotated[list[str], "globs that it takes over from another key"]
    replaces: Annotated[list[str], "fingerprints of keys that it stands in place of"]


class ListedKey(TypedDict):
    """A key of yours or a trusted one; what follows `fingerprint` is there for trusted ones."""

    name: str
    kind: Annotated[str, "`own` or `trusted`"]
    fingerprint: Digest
    adapters: NotRequired[list[str]]
    remotes: NotRequired[list[str]]
    not_after: NotRequired[str | None]
    accepts: NotRequired[list[str]]
    replaces: NotRequired[list[str]]


class PublicKey(TypedDict):
    """The public half of a key."""

    name: str
    fingerprint: Digest
    pem: str


class Untrusted(TypedDict):
    """A key that is trusted no more."""

    name: str
    fingerprint: Digest
    trusted: Annotated[bool, "false"]


class Policy(TypedDict):
    """What is asked of signatures in one place."""

    place: Annotated[str, "`*` in general, a namespace, or `remote NAME`"]
    policy: Annotated[str, "`require`, `warn`, `off` or `default`"]


class Signed(TypedDict):
    """A signature."""

    name: str
    version: str
    namespace: Annotated[str | None, "that it is signed for"]
    digest: Annotated[str, "of the manifest"]
    key: str
    fingerprint: Annotated[str, "of the key"]
    path: Annotated[str, "the file"]
    created: Annotated[bool, "false: it was signed so already"]


# ---------------------------------------------------------------- publishing
class Pushed(TypedDict):
    """What was published."""

    name: str
    version: str
    digest: Digest
    to: str
    sent_files: int
    sent_bytes: int
    created: Annotated[bool, "false: it was there already"]
    signed: bool
    url: Annotated[str | None, "of the commit; null for a directory"]


class PushPlan(TypedDict):
    """Exactly what would be sent."""

    dry_run: Annotated[bool, "true"]
    to: str
    kind: Annotated[str, "`directory` or `repository`"]
    commit_message: str
    tag: str
    digest: Digest
    signed: bool
    files: list[File]
    tags: Annotated[list[str], "searchable facts, in the card"]
    card: Annotated[str, "README.md"]


class Pulled(TypedDict):
    """A build whose files were written."""

    name: str
    version: str
    digest: Digest
    source: Annotated[str, "where it was found, in words"]
    path: Path
    sent_files: Annotated[int, "0: they were there already"]
    sent_bytes: int


class MirrorPlan(TypedDict("_From", {"from": str})):  # a word of Python, so no class can have it
    """A build that would be copied to another server."""

    name: str
    version: str
    digest: Digest
    commit: str
    to: str
    size_bytes: Size


class Mirrored(MirrorPlan):
    """A build that was copied to another server."""

    created: Annotated[bool, "false: it was there already"]
    sent_bytes: int


# ---------------------------------------------------------------- servers
class Remote(TypedDict):
    """A server by name."""

    name: str
    url: str
    namespaces: Annotated[list[str], "asked of this server, in order"]
    default: bool
    signatures: Annotated[str | None, "the policy; null: the general one"]
    token: Annotated[bool, "whether one is kept"]


class Login(TypedDict):
    """A server that a token is kept for."""

    name: str | None
    url: str
    who: Annotated[str | None, "whom the server takes it for; null if it was not asked"]


class Logout(TypedDict):
    """A server that no token is kept for any more."""

    url: str
    forgotten: Annotated[bool, "false: none was kept"]


class RemovedRemote(TypedDict):
    """A name that is free again."""

    removed: str


class Found(TypedDict):
    """An adapter on a server."""

    repository: str
    name: str | None
    version: str | None
    base: str
    base_weights: Digest | None
    base_hub_id: str | None
    fits: Annotated[str, "how it fits --base: `by weights`, `by name`, or empty"]
    task: str | None
    rank: int | None
    method: list[str]
    description: str | None
    digest: Digest | None


class Header(TypedDict):
    """What the first bytes of the weights say."""

    tensors: int
    parameters: int
    dtypes: list[str]
    modules: int


class Config(TypedDict):
    """What adapter_config.json says."""

    peft_type: str
    r: int | None
    lora_alpha: float | None
    base_model_name_or_path: str | None


class Info(Manifest):
    """What an adapter on a server is."""

    installed: Annotated[bool, "false"]
    remote: str
    repository: str
    commit: str
    yanked: Annotated[str | None, "the reason; null: it is not"]
    base_verdict: Verdict
    policy_refusal: Annotated[str | None, "why the project's `[policy]` would refuse it; null: it would not"]
    size_bytes: Size
    header: Header
    config: Config
    groups: list[ModuleGroup]
    whole: Annotated[list[str], "tensors that replace those of the base"]
    received_bytes: Annotated[int, "that it took to tell"]


# ---------------------------------------------------------------- registry
class NewToken(TypedDict):
    """A token, shown once."""

    token: str
    user: str
    role: Annotated[str, "`read`, `write` or `admin`"]


class Token(TypedDict):
    """A token without itself; times are RFC 3339."""

    id: int
    user: str
    role: str
    namespaces: Annotated[str, "globs with commas between"]
    label: str
    created: str
    expires: str | None
    used: str | None
    revoked: str | None


class Holdings(TypedDict):
    """What a registry's database names, and what of it is not there; the exit code is 12 where something is not."""

    blobs: int
    bytes: Annotated[int, "that the blobs have together"]
    problems: Annotated[list[str], "one sentence for each"]


class MovedRegistry(TypedDict):
    """What stands at the new place of a registry now."""

    blobs: int
    bytes: Annotated[int, "that the blobs have together"]
    rows: Annotated[int, "of all tables"]


KEYS = {
    "key-new": NewKey,
    "key-list": list[ListedKey],
    "key-show": PublicKey,
    "key-trust": TrustedKey,
    "key-untrust": Untrusted,
    "key-policy": list[Policy],
    "sign": Signed,
}
SERVERS = {
    "push": Pushed,
    "push.server": Pushed,
    "push.dry-run": PushPlan,
    "pull": Pulled,
    "info.server": Info,
    "search.server": list[Found],
    "mirror": list[Mirrored],
    "mirror.dry-run": list[MirrorPlan],
    "remote-add": Remote,
    "remote-set": Remote,
    "remote-list": list[Remote],
    "remote-remove": RemovedRemote,
    "remote-login": Login,
    "remote-logout": Logout,
}
REGISTRY: dict[str, Any] = {
    "registry-serve": list[Annotated[dict[str, str], "`url`, then once `admin_token`: one document a line"]],
    "registry-check": Holdings,
    "registry-move": MovedRegistry,
    "registry-token-create": NewToken,
    "registry-token-list": list[Token],
    "registry-token-revoke": Token,
}
