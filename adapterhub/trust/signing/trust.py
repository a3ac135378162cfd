"""The keys that the user trusts, in `trusted_keys.json`, the only source of trust.

The file lists each key by name, with the adapters and places it may sign for and the day it expires, and the signature
policies of namespaces and in general. Only its owner can read it, and it is replaced whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Final

from adapterhub.core.arguments import parse
from adapterhub.core.digests import Digest, canonical_json, parse_digest, strict_json
from adapterhub.core.disk.files import not_read, read_owned, write_durably
from adapterhub.core.disk.root import Root
from adapterhub.core.errors import Conflict, Malformed, NotAllowed, NotFound, UsageProblem, shown
from adapterhub.core.specs import parse_namespace
from adapterhub.formats.documented import Documented
from adapterhub.formats.signature import PublicKey
from adapterhub.trust.signing.keys import parse_key_name
from adapterhub.trust.signing.policy import SignaturePolicy, strict_policy

Policy = SignaturePolicy
GENERAL: Final = "*"
"""The key of the policy that holds where no namespace and no remote has one."""

_LIMIT_BYTES: Final = 4 << 20
_MOST_REASON: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TrustedKey(Documented, keys="name kind fingerprint adapters remotes not_after=end accepts replaces"):
    """A trusted key and its scope.

    `adapters` and `remotes` are globs over full names (`acme/*`) and over names or addresses of places. `accepts` are
    globs over names that this key may take over from the key that signed them before; `replaces` are the fingerprints
    of keys whose names it may take over. `not_after` is the last second, Unix time.
    """

    name: str
    key: PublicKey
    adapters: Annotated[tuple[str, ...], "globs of adapters that it may sign"] = ("*",)
    remotes: Annotated[tuple[str, ...], "globs of places that it may sign for"] = ("*",)
    not_after: int | None = None
    accepts: Annotated[tuple[str, ...], "globs of adapters that it takes over from another key"] = ()
    replaces: Annotated[tuple[Digest, ...], "fingerprints of keys that it replaces"] = ()

    @property
    def kind(self) -> str:
        """`trusted`."""
        return "trusted"

    @property
    def end(self) -> str | None:
        """End of validity, RFC 3339."""
        return day_text(self.not_after) if self.not_after is not None else None

    @property
    def fingerprint(self) -> Digest:
        """The name of the key in bundles."""
        return self.key.fingerprint

    def __repr__(self) -> str:
        return f"<TrustedKey {self.name} {self.fingerprint[:19]} for {' '.join(self.adapters)}>"

    def covers(self, full_name: str, places: Sequence[str]) -> bool:
        """Return whether it may sign `full_name` in a place that goes by one of these names."""
        at_place = "*" in self.remotes or any(fnmatchcase(place, g) for g in self.remotes for place in places)
        return at_place and _matches(full_name, self.adapters)

    def takes_over(self, full_name: str, signers: Sequence[str]) -> bool:
        """Return whether it may sign a name that `signers` signed until now."""
        return self.fingerprint in signers or _matches(full_name, self.accepts) or bool({*signers} & {*self.replaces})

    def is_over(self, now: float) -> bool:
        """Return whether its last day is past."""
        return self.not_after is not None and now > self.not_after

    def stored(self) -> dict[str, Any]:
        """Return the key as the file has it; what is not set is left out."""
        value: dict[str, Any] = {"name": self.name, "key": self.key.pem}
        lists = {"adapters": self.adapters, "remotes": self.remotes, "accepts": self.accepts, "replaces": self.replaces}
        value |= {name: list(items) for name, items in lists.items() if items}
        return value | ({"not_after": self.end} if self.end is not None else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokedKey(Documented, keys="name kind fingerprint reason"):
    """A key whose signatures are refused.

    `name` is what it was called here.
    """

    name: str
    fingerprint: Digest
    reason: Annotated[str, "why"] = ""

    @property
    def kind(self) -> str:
        """`revoked`."""
        return "revoked"

    @property
    def clause(self) -> str:
        """What a refusal says of it."""
        return f"is signed by `{self.name}`, a key that was revoked" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms on which a user trusts a key; None keeps the earlier term. `accepts`, `replaces` are added to it."""

    adapters: tuple[str, ...] | None = None
    remotes: tuple[str, ...] | None = None
    not_after: int | None = None
    accepts: tuple[str, ...] = ()
    replaces: tuple[Digest, ...] = ()

    def on(self, key: TrustedKey, replaces: tuple[Digest, ...]) -> TrustedKey:
        """Return the key with these terms."""
        return replace(
            key,
            adapters=self.adapters or key.adapters,
            remotes=self.remotes or key.remotes,
            not_after=key.not_after if self.not_after is None else self.not_after,
            accepts=tuple(dict.fromkeys([*key.accepts, *self.accepts])),
            replaces=replaces,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectivePolicy:
    """The signature policy that holds for a build; `where` says in words where it was set."""

    policy: Policy
    where: str

    @classmethod
    def of(cls, given: EffectivePolicy | Policy | None) -> EffectivePolicy | None:
        """Return the policy of one run; a plain policy counts as given by the option `--signatures`.

        Raises:
            UsageProblem: it is not a policy.
        """
        if given is None or isinstance(given, cls):
            return given
        return cls(policy=parse(Policy, given, "`signatures`"), where="the option `--signatures`")


GivenPolicy = EffectivePolicy | Policy | None
"""The policy that the caller of one run gives, if any; it overrides what the user set."""


def _matches(full_name: str, globs: Sequence[str]) -> bool:
    """Return True if a name matches one of the globs; a bare namespace matches everything in it."""
    namespace = full_name.partition("/")[0] if "/" in full_name else None
    return any(fnmatchcase(full_name, g) or g == namespace for g in globs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """The content of the trust file; `problems` are invalid policies, which count as `require`."""

    keys: tuple[TrustedKey, ...] = ()
    policies: Mapping[str, Policy] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    revoked: tuple[RevokedKey, ...] = ()

    def revoked_of(self, fingerprint: str) -> RevokedKey | None:
        """Return the revoked key with that fingerprint."""
        return next((key for key in self.revoked if key.fingerprint == fingerprint), None)

    def key_of(self, fingerprint: str) -> TrustedKey | None:
        """Return the trusted key with that fingerprint."""
        return next((key for key in self.keys if key.fingerprint == fingerprint), None)

    def name_of(self, fingerprint: str) -> str:
        """Return a key for messages: its name here, or the start of its fingerprint."""
        key = self.key_of(fingerprint)
        return f"`{key.name}`" if key else f"{fingerprint[:19]}…"

    def policy_for(self, namespace: str | None, of_remote: EffectivePolicy | None) -> EffectivePolicy | None:
        """Return the policy for a build: that of its namespace, or `of_remote` (of its remote), or the general one."""
        if namespace and namespace in self.policies:
            where = f"the policy of the namespace `{namespace}` (`adapt key policy`)"
            return EffectivePolicy(policy=self.policies[namespace], where=where)
        if of_remote is not None:
            return of_remote
        if GENERAL in self.policies:
            return EffectivePolicy(policy=self.policies[GENERAL], where="the general policy (`adapt key policy`)")
        return None


class TrustFile:
    """The trust file of the library under `root`. Cheap to make; read when needed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.path = root / "trusted_keys.json"

    def read(self) -> Trust:
        """Return the content of the file; empty if it does not exist.

        Raises:
            NotAllowed: others may write or own it or its folder, or it cannot be read.
            Malformed: it is damaged.
        """
        try:
            raw = read_owned(self.path, "says which keys to trust", limit_bytes=_LIMIT_BYTES)
        except FileNotFoundError:
            return Trust()
        except OSError as error:
            raise not_read(error, self.path, NotAllowed) from None
        try:
            return _trust(strict_json(raw, limit_bytes=_LIMIT_BYTES))
        except (ValueError, KeyError, TypeError, UsageProblem) as error:
            reason = f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else str(error)
            hint = "mend the file, or move it away and trust the keys again"
            raise Malformed(f"`{self.path}`: {shown(reason, 200)}", hint=hint) from None

    def trust(self, name: str, key: PublicKey, terms: Terms, *, replace_key: bool = False) -> TrustedKey:
        """Trust a key. Trusting it again changes the given terms and keeps the others.

        `replace_key` lets it replace another key of that name, whose adapters it may then sign.

        Raises:
            Conflict: the name belongs to another key, or the key has another name.
        """
        parse_key_name(name)
        with self._changing() as trust:
            if (gone := trust.revoked_of(key.fingerprint)) is not None:
                raise Conflict(
                    f"this key was revoked as `{gone.name}`; nothing was changed",
                    hint=f"trust the new key of its owner; a mistake is taken back in `revoked` of {self.path}",
                )
            known = next((k for k in trust.keys if k.name == name), None)
            same = trust.key_of(key.fingerprint)
            if same is not None and same.name != name:
                raise Conflict(
                    f"this key is trusted as `{same.name}` already; nothing was changed",
                    hint="use that name, or `adapt key untrust` it first",
                )
            replaces = tuple(dict.fromkeys([*(known.replaces if known else ()), *terms.replaces]))
            if known is not None and known.fingerprint != key.fingerprint:
                if not replace_key:
                    raise Conflict(
                        f"`{name}` is the key {known.fingerprint}, not this one; nothing was changed",
                        hint="if its owner announced a new key to you, add `--replace`",
                    )
                replaces = (*replaces, known.fingerprint)
            made = terms.on(replace(known, key=key) if known else TrustedKey(name=name, key=key), replaces)
            others = [k for k in trust.keys if k.name != name]
            self._write(replace(trust, keys=(*others, made)))
        return made

    def succeed(self, old: Digest, name: str, key: PublicKey) -> None:
        """Trust a key where the key `old` is trusted, whose names it may take over; the last day of `old` is its own.

        Raises:
            Conflict: as `trust`.
        """
        before, known = self.read().key_of(old), self.read().key_of(key.fingerprint)
        if before is not None and (known is None or old not in known.replaces):
            replaces = (*before.replaces, old)
            terms = Terms(adapters=before.adapters, remotes=before.remotes, accepts=before.accepts, replaces=replaces)
            self.trust(name, key, terms)

    def untrust(self, name: str) -> TrustedKey:
        """Stop trusting a key.

        Raises:
            NotFound: no trusted key has that name.
        """
        with self._changing() as trust:
            gone = next((key for key in trust.keys if key.name == name), None)
            if gone is None:
                raise NotFound(f"no trusted key `{shown(name)}`", hint="`adapt key list` shows them")
            self._write(replace(trust, keys=tuple(key for key in trust.keys if key.name != name)))
        return gone

    def revoke(self, name: str, key: PublicKey, reason: str = "") -> RevokedKey:
        """Refuse whatever a key signed or signs, under every policy, and stop trusting it.

        Raises:
            UsageProblem: the reason is longer than 500 characters, or holds control characters.
        """
        made = RevokedKey(name=parse_key_name(name), fingerprint=key.fingerprint, reason=parse_reason(reason))
        with self._changing() as trust:
            keys = tuple(one for one in trust.keys if one.fingerprint != made.fingerprint)
            others = tuple(one for one in trust.revoked if one.fingerprint != made.fingerprint)
            self._write(replace(trust, keys=keys, revoked=(*others, made)))
        return made

    def set_policy(self, namespace: str | None, policy: Policy | None) -> None:
        """Set the policy of `namespace`, or the general one; None removes it.

        Raises:
            UsageProblem: `policy` or `namespace` is not valid.
        """
        policy = parse(Policy | None, policy, "`policy`")
        place = GENERAL if namespace is None else parse_namespace(namespace)
        with self._changing() as trust:
            kept = {name: p for name, p in trust.policies.items() if name != place}
            self._write(replace(trust, policies=kept | ({place: policy} if policy else {})))

    @contextmanager
    def _changing(self) -> Iterator[Trust]:
        with Root(self._root).lock("trust", exclusive=True):
            yield self.read()

    def _write(self, trust: Trust) -> None:
        value: dict[str, Any] = {"keys": [key.stored() for key in trust.keys], "policies": dict(trust.policies)}
        if trust.revoked:
            value["revoked"] = [asdict(key) for key in trust.revoked]
        try:
            write_durably(self.path, canonical_json(value) + b"\n", mode=0o600)
        except OSError as error:
            raise Root(self._root).explain(error) from error


def parse_reason(text: str) -> str:
    """Return why a key is revoked.

    Raises:
        UsageProblem: it is longer than 500 characters, or holds control characters.
    """
    if len(text) > _MOST_REASON or not text.isprintable():
        raise UsageProblem(f"a reason has at most {_MOST_REASON} printable characters, in one line")
    return text


def parse_day(text: str) -> int:
    """Return the last second of a day (`2027-01-31`), or a moment (`2027-01-31T12:00:00+00:00`), as Unix time.

    UTC by default.

    Raises:
        ValueError: it is neither.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"expected a day as in 2027-01-31, got {shown(text)}") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    is_day = len(text) == len("2027-01-31")
    return int(moment.timestamp()) + (24 * 60 * 60 - 1 if is_day else 0)


def day_text(moment: int) -> str:
    """Return a moment in the form that `parse_day` reads."""
    return datetime.fromtimestamp(moment, tz=timezone.utc).isoformat()


def clock() -> float:
    """Return the time that decides whether a key has expired."""
    return time.time()


def _trust(value: object) -> Trust:
    if not isinstance(value, dict) or not isinstance(value.get("keys"), list):
        raise ValueError("keys: expected a list")
    policies = value.get("policies", {})
    if not isinstance(policies, dict):
        raise ValueError("policies: expected an object")
    keys = tuple(_key(item, f"keys[{n}]") for n, item in enumerate(value["keys"]))
    if len({key.name for key in keys}) != len(keys):
        raise ValueError("keys: a name is given twice")
    strict: dict[str, Policy] = {}
    problems = []
    for name, policy in policies.items():
        strict[name], problem = strict_policy(policy)
        problems += [f"policies.{shown(name)}: {problem}"] if problem else []
    return Trust(
        keys=keys, policies=strict, problems=tuple(problems), revoked=tuple(_revoked(value.get("revoked", [])))
    )


def _revoked(items: object) -> Iterator[RevokedKey]:
    names = ("name", "fingerprint", "reason")
    if not isinstance(items, list):
        raise ValueError("revoked: expected a list")
    for number, item in enumerate(items):
        if not isinstance(item, dict) or not all(isinstance(item.get(name), str) for name in names):
            raise ValueError(f"revoked[{number}]: expected the texts {', '.join(names)}")
        fingerprint = parse_digest(item["fingerprint"])
        yield RevokedKey(name=parse_key_name(item["name"]), fingerprint=fingerprint, reason=shown(item["reason"], 500))


def _key(item: object, where: str) -> TrustedKey:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str) or not isinstance(item.get("key"), str):
        raise ValueError(f"{where}: expected the texts `name` and `key`")
    lists: dict[str, Any] = {name: item.get(name, []) for name in ("adapters", "remotes", "accepts", "replaces")}
    for name, found in lists.items():
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise ValueError(f"{where}.{name}: expected a list of texts")
    not_after = item.get("not_after")
    # PEM is not parsed here: what matters is that its digest is the fingerprint, and a key is parsed before it is used
    return TrustedKey(
        name=parse_key_name(item["name"]),
        key=PublicKey(pem=item["key"]),
        adapters=tuple(lists["adapters"]),
        remotes=tuple(lists["remotes"]),
        not_after=parse_day(not_after) if not_after is not None else None,
        accepts=tuple(lists["accepts"]),
        replaces=tuple(lists["replaces"]),
    )
