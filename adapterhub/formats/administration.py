"""What administers a registry, each as one type: the server answers with it, commands print it, pages show it.

Answers of the server have the fields; the documents of commands have the keys.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from adapterhub.core.dates import Moment
from adapterhub.core.digests import Digest, canonical_json
from adapterhub.core.errors import shown
from adapterhub.formats.documented import Documented

Asks = Literal["off", "contract", "passed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken(Documented):
    """A new token, shown only once."""

    token: str
    user: str
    role: Annotated[str, "`read`, `write` or `admin`"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Token(
    Documented,
    keys="id user role namespaces=globs label created=created_at.text expires=expires_at.text used=used_at.text "
    "revoked=revoked_at.text scopes=scope_names own",
):
    """A token without its secret; times are RFC 3339."""

    id: int
    user: str
    label: str
    role: str
    namespaces: tuple[str, ...]
    created_at: Moment
    expires_at: Moment | None
    used_at: Moment | None
    revoked_at: Moment | None
    scopes: tuple[str, ...] = ()
    own: Annotated[bool, "true: a person made it, and it does no more than the person may"] = False

    @property
    def globs(self) -> str:
        """Globs, separated by commas."""
        return ",".join(self.namespaces)

    @property
    def scope_names(self) -> str:
        """`read`, `write`, `release` and `administer`, or `session`; separated by commas."""
        return ",".join(self.scopes)


@dataclass(frozen=True, slots=True, kw_only=True)
class User(Documented, keys="user=name created=created_at.text tokens"):
    """A user of a registry, and how many of the user's tokens work; the time is RFC 3339."""

    name: str
    created_at: Moment
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Member(
    Documented,
    keys="user namespace team role source created=created_at.text by=created_by expires=expires_at.text",
    title="NamespaceMember",
):
    """A person in a namespace, or in one of its teams; times are RFC 3339."""

    user: str
    namespace: Annotated[str, "`*` for the whole registry"]
    team: Annotated[str, "empty: of the namespace itself"]
    role: Annotated[str, "`read`, `write`, `release` or `administer`; each includes those before it"]
    source: Annotated[str, "empty, or the issuer whose groups made the person a member"]
    created_at: Moment
    created_by: Annotated[str, "a user and the token, or a command on the server's machine"]
    expires_at: Moment | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Team(Documented, keys="namespace name role repos=patterns members created=created_at.text by=created_by"):
    """People who may do the same with some repositories of a namespace; the time is RFC 3339."""

    namespace: str
    name: str
    role: Annotated[str, "`read`, `write`, `release` or `administer`"]
    repos: tuple[str, ...]
    members: int
    created_at: Moment
    created_by: Annotated[str, "a user and the token, or a command on the server's machine"]

    @property
    def patterns(self) -> str:
        """Patterns of names in the namespace, separated by commas; `*` for all."""
        return ",".join(self.repos)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation(
    Documented,
    keys="id namespace team role user created=created_at.text by=created_by expires=expires_at.text used=used_at.text "
    "used_by",
):
    """A link by which one person becomes a member; times are RFC 3339."""

    id: int
    namespace: str
    team: str
    role: str
    user: Annotated[str | None, "the only one who may accept it; null: anyone who has the link"]
    created_at: Moment
    created_by: Annotated[str, "a user and the token, or a command on the server's machine"]
    expires_at: Moment
    used_at: Moment | None
    used_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewInvitation(
    Documented, keys="id=invitation.id namespace=invitation.namespace expires=invitation.expires_at.text code link"
):
    """A new invitation with its code, shown only once; the time is RFC 3339."""

    invitation: Invitation
    code: str
    link: Annotated[str, "where the person accepts it"] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedMember(Documented):
    """What ended with the removal of a person from a namespace, or from the registry."""

    user: str
    namespace: Annotated[str, "`*` for the whole registry"]
    memberships: int
    tokens: Annotated[tuple[int, ...], "numbers of tokens that were revoked, or lost the namespace"]
    keys: Annotated[tuple[str, ...], "names of the person's keys that count no more"]
    publishers: Annotated[tuple[str, ...], "trusted publishers that the person added"]
    webhooks: int
    requests: Annotated[int, "accesses to gated repositories"]
    left: Annotated[tuple[int, ...], "tokens that an administrator granted for more than the namespace, which stay"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account(
    Documented,
    keys="user issuer subject groups=group_names created=created_at.text signed_in=signed_in_at.text "
    "removed=removed_at.text",
):
    """A user who signs in at an issuer; times are RFC 3339."""

    user: str
    issuer: str
    subject: Annotated[str, "who it is there"]
    groups: Annotated[tuple[str, ...], "as the issuer stated them at the last sign-in"]
    created_at: Moment
    signed_in_at: Annotated[Moment | None, "the last time"]
    removed_at: Annotated[Moment | None, "since when every sign-in and token is refused; null where none is"]

    @property
    def group_names(self) -> str:
        """Separated by commas."""
        return ",".join(self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry(Documented, keys="at=created_at.sent actor action subject number user repo address seal"):
    """An entry of a registry's audit log: the actor, the action and its subject; the time is RFC 3339."""

    created_at: Moment
    actor: Annotated[str, "a user and the token, or a command on the server's machine"]
    action: Annotated[str, "such as `create`, `revoke`, `member` or `release`"]
    subject: str
    number: Annotated[int, "grows by one with each entry"] = 0
    user: Annotated[str | None, "null for a command on the server's machine"] = None
    repo: Annotated[str, "a repository, a namespace, or empty for the whole registry"] = ""
    address: Annotated[str | None, "of the request, if any"] = None
    seal: Annotated[str, "sha256 of the seal before, a line feed, and the other members as canonical JSON"] = ""

    def seal_after(self, before: str) -> str:
        """Return the seal that the entry has after one with the seal `before`, which is empty for the first."""
        told = {key: value for key, value in self.to_json().items() if key != "seal"}
        return hashlib.sha256(f"{before}\n".encode() + canonical_json(told)).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher(Documented, keys="id repo issuer claims=pins created=created_at.text by=created_by"):
    """Jobs of a CI that may publish to a repository without a secret; the time is RFC 3339."""

    id: int
    repo: str
    issuer: Annotated[str, "who vouches for the jobs, as their tokens name it"]
    claims: dict[str, str]
    created_at: Moment
    created_by: Annotated[str, "a user and the token, or a command on the server's machine"]

    @property
    def pins(self) -> str:
        """What the tokens must state: `NAME=VALUE`, separated by blanks."""
        return " ".join(f"{name}={value}" for name, value in self.claims.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook(Documented, keys="id scope url types=type_names owner created=created_at.text waiting failed silent"):
    """A webhook without its secret; the time is RFC 3339."""

    id: int
    scope: Annotated[str, "a namespace, or a repository"]
    url: str
    types: tuple[str, ...]
    owner: Annotated[str | None, "the user who added it; null for the operator of the server"]
    created_at: Moment
    waiting: Annotated[int, "deliveries that wait"]
    failed: Annotated[int, "deliveries that failed for good"]
    silent: Annotated[bool, "true: no token of its owner may change the scope, so it gets nothing"]

    @property
    def type_names(self) -> str:
        """Event types, separated by commas; empty for all."""
        return ",".join(self.types)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWebhook(Documented, keys="id=webhook.id scope=webhook.scope url=webhook.url secret"):
    """A new webhook with the secret that signs its messages, shown only once."""

    webhook: Webhook
    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery(
    Documented,
    keys="id event type repo state attempts status problem created=created_at.text due=due_at.text ended=ended_at.text",
):
    """A delivery of one event to a webhook; times are RFC 3339."""

    id: int
    event: str
    type: str
    repo: str
    state: Annotated[str, "`waiting`, `delivered`, `failed`, or `withheld` because its owner may not know the event"]
    attempts: int
    status: Annotated[int | None, "of the last answer"]
    problem: Annotated[str | None, "of the last attempt"]
    created_at: Moment
    due_at: Annotated[Moment | None, "the next attempt"]
    ended_at: Moment | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TesterKey(Documented, keys="name fingerprint"):
    """A key whose results count in a namespace."""

    name: str
    fingerprint: Digest
    pem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceRule(Documented):
    """Requirements of a namespace on a version before it is published.

    `off` asks nothing, `contract` a contract, `passed` also a PASS by one of the keys on the base that the adapter
    declares. With `keys_only`, results by other keys are not stored.
    """

    namespace: str
    asks: Annotated[Asks, "`off`, `contract` or `passed`"] = "off"
    keys_only: Annotated[bool, "whether it stores results by its own keys only"] = False
    keys: tuple[TesterKey, ...] = ()

    def key_of(self, fingerprint: Digest) -> TesterKey | None:
        """Return the key with this fingerprint."""
        return next((key for key in self.keys if key.fingerprint == fingerprint), None)


MOST_ABOUT: Final = 200
"""Characters in the line of text about a namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceAbout(Documented):
    """A namespace, and the line of text about it."""

    namespace: str
    about: Annotated[str, "one line of plain text; empty without one"] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldName(Documented):
    """The name of an adapter in a namespace, and a repository that may release it."""

    name: str
    repo: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasRetention(Documented, keys="repo alias newest grace_days set_by set_at=set_at.text"):
    """The number of versions of an alias that a repository keeps; without a limit, it keeps all."""

    repo: str
    alias: str
    newest: Annotated[int | None, "how many of the newest stay; null for all"] = None
    grace_days: Annotated[float | None, "the others go so many days after the alias left them"] = None
    set_by: Annotated[str | None, "a user and the token"] = None
    set_at: Annotated[Moment | None, "RFC 3339"] = None

    @property
    def text(self) -> str:
        """Such as `the newest 20; others go 30 days after it leaves them`."""
        if self.newest is None:
            return "all"
        return f"the newest {self.newest}; others go {self.grace_days:g} days after it leaves them"

    @classmethod
    def from_json(cls, value: Any) -> AliasRetention:
        """Return the answer of a registry.

        Raises:
            LookupError, TypeError, ValueError: it is not a retention.
        """
        repo, alias, newest, days = (value[key] for key in ("repo", "alias", "newest", "grace_days"))
        by, at = value["set_by"], value["set_at"]
        if newest is None:
            return cls(repo=shown(repo, 200), alias=shown(alias, 200))
        if type(newest) is not int or not isinstance(days, int | float) or not isinstance(by, str):
            raise ValueError("a retention has a number `newest`, `grace_days` and `set_by`")
        said = {"repo": shown(repo, 200), "alias": shown(alias, 200), "set_by": shown(by, 200)}
        return cls(**said, newest=newest, grace_days=float(days), set_at=Moment.parse(at))


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedChange:
    """A change that the server refused: `count` times, last at `created_at` in milliseconds since 1970."""

    created_at: int
    user: str
    token_id: int | None
    repo: str
    action: str
    status: int
    code: str
    message: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FreedSpace(Documented, keys="dry_run commits blobs blob_bytes xorbs xorb_bytes bytes"):
    """What `gc` removed from a registry, or would remove."""

    dry_run: bool
    commits: int
    blobs: int
    blob_bytes: int
    xorbs: Annotated[int, "parts of uploads by Xet"]
    xorb_bytes: int

    @property
    def bytes(self) -> int:
        """Of the blobs and the xorbs."""
        return self.blob_bytes + self.xorb_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings(Documented):
    """The blobs that a registry's database names, and what is missing or damaged; any problem means exit code 12."""

    blobs: int
    bytes: Annotated[int, "total size of the blobs"]
    builds: int
    database_bytes: Annotated[int, "what the database takes, beside the blobs"]
    problems: Annotated[tuple[str, ...], "one sentence per problem"]
    mended: Annotated[tuple[str, ...], "kept numbers that were wrong and are right now, one sentence each"] = ()

    @property
    def build_bytes(self) -> int:
        """Bytes of the database per build."""
        return self.database_bytes // self.builds if self.builds else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedRegistry(Documented):
    """The content of a registry at its new place."""

    blobs: int
    bytes: Annotated[int, "total size of the blobs"]
    rows: Annotated[int, "of all tables"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackedUp(Documented):
    """Contents of a backup of a registry; if there is any problem (exit code 12), the earlier backup is kept."""

    blobs: int
    bytes: Annotated[int, "total size of the blobs"]
    copied: Annotated[int, "blobs that the backup before had not"]
    rows: Annotated[int, "of all tables"]
    schema: Annotated[str, "the number of the schema of the database"]
    log_size: Annotated[int, "entries of the log of public releases"]
    problems: Annotated[tuple[str, ...], "one sentence for each blob that could not be copied"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored(Documented, keys="made=made_at.text blobs bytes rows schema log_size"):
    """Contents of a restored registry; the time is that of its backup, in RFC 3339."""

    made_at: Moment
    blobs: int
    bytes: Annotated[int, "total size of the blobs, all of which were hashed"]
    rows: Annotated[int, "of all tables, compared with those of the backup"]
    schema: Annotated[str, "the number of the schema of the database"]
    log_size: Annotated[int, "entries of the log of public releases"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaStep(Documented):
    """One migration of the database of a registry."""

    schema: Annotated[str, "the number of the schema that it makes"]
    what: str
    rolling: Annotated[bool, "true: servers of the version before go on beside it"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaUpgrade(Documented):
    """What an upgrade of the database of a registry changes, or changed."""

    before: Annotated[str, "the number of the schema"]
    after: Annotated[str, "the same where nothing changes"]
    steps: tuple[SchemaStep, ...]
    done: Annotated[bool, "false with `--dry-run`"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled(Documented):
    """What an import brought into a registry; any problem means exit code 12."""

    added: Annotated[int, "adapters in new repositories"]
    updated: Annotated[int, "adapters in repositories that had other files"]
    unchanged: Annotated[int, "adapters that were there already"]
    bytes: Annotated[int, "of the files that were stored"]
    problems: Annotated[tuple[str, ...], "one sentence for each adapter that could not come in"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeRecords(Documented):
    """What a worker of a registry made until it ended."""

    records: Annotated[int, "of the weights of builds"]
    bases: Annotated[int, "builds whose base was compared with the bases of others"]
    vectors: Annotated[int, "builds whose vectors were made, for search by meaning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeaningModel(Documented):
    """Whether a registry can search by meaning."""

    model: Annotated[str | None, "which vectors belong together: 16 hex digits; null without the model"]
    waiting: Annotated[int, "builds that wait for a worker to make their vectors"]
