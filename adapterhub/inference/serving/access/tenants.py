"""The tenants of a server: the keys of each, the adapters that it may use, and its quotas. Read from a TOML file.

[tenants.acme]
keys = ["sha256:9f86…"]              # of `adapt serve --new-key`
adapters = ["acme/*", "legal-qa"]    # a namespace, a name, or "*"
base = true                          # may use the plain base
max-loaded = 4                       # adapters in memory at once
max-requests = 8                     # requests at once
requests-per-minute = 600
tokens-per-minute = 200000           # of prompts and answers
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple

from adapterhub.core.digests import Digest, digest_of, parse_digest
from adapterhub.core.errors import Malformed, SpecError, problem_list, shown
from adapterhub.core.specs import AdapterSpec, parse_name, parse_namespace
from adapterhub.formats.documents import DocumentReader, line_of, lines_of, toml_of
from adapterhub.inference.serving.refusal import RequestRefused

MOST_TENANTS: Final = 1000
MOST_LOADED: Final = 4
"""How many adapters a tenant may have in memory where its table does not say."""

_LARGEST: Final = 10**12
_KEYS: Final = (
    "keys", "adapters", "base", "grammars", "max-loaded", "max-requests", "requests-per-minute", "tokens-per-minute",
)  # fmt: skip
_ANY: Final = "*"
_NEW_KEY: Final = "`adapt serve --new-key` prints a key and its lines for the file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One tenant. A limit of None means unlimited. `adapters` holds `*`, `acme/*`, `acme/legal-qa` or `legal-qa`.

    `grammars`: its requests may hold a grammar, which can take an engine's whole time.
    """

    name: str
    keys: tuple[Digest, ...]
    adapters: frozenset[str]
    base: bool = True
    grammars: bool = False
    max_loaded: int = MOST_LOADED
    max_requests: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def allows(self, full_name: str) -> bool:
        """Return whether it may use the adapter of that full name, such as `acme/legal-qa`."""
        namespace, slash, _ = full_name.rpartition("/")
        allowed = self.adapters
        return full_name in allowed or _ANY in allowed or (bool(slash) and f"{namespace}/{_ANY}" in allowed)

    def name_for(self, asked: str) -> str:
        """Return the name to look up for the name of a request: a bare name gets the namespace of the tenant.

        So what a name means does not depend on the adapters of others. Nothing is looked up.

        Raises:
            RequestRefused: 403, the same whether there is such an adapter or not; 400, for a bare name in several
                namespaces.
        """
        try:
            spec = AdapterSpec.parse(asked)
        except SpecError:  # such as an adapter of `--lora-modules`
            if self.allows(asked) and not asked.endswith(_ANY):
                return asked
        else:
            if self.allows(spec.full_name):
                return asked
            owners = () if spec.namespace else self._namespaces_of(spec.name)
            if len(owners) == 1:
                return str(replace(spec, namespace=owners[0]))
            if owners:
                words = ", ".join(f"`{owner}/{spec.name}`" for owner in owners)
                raise RequestRefused(400, f"`{spec.name}` may be in several namespaces; write one of {words}")
        raise RequestRefused(403, f"this key may not use the adapter `{shown(asked, 200)}`")

    def _namespaces_of(self, name: str) -> tuple[str, ...]:
        """Return the namespaces in which it may use an adapter of that name."""
        places = (one.rpartition("/") for one in self.adapters)
        return tuple(sorted({place for place, slash, last in places if slash and last in {_ANY, name}}))

    def ensure_may_use(self, name: str, label: str) -> None:
        """Refuse the build `label`, which `name` was found to be, unless the tenant may use it.

        Raises:
            RequestRefused: as for a name that does not exist, since other tenants' names are private.
        """
        if not self.allows(label.partition("==")[0]):
            raise RequestRefused(404, f"no adapter `{shown(name, 200)}` is known to this server")

    def ensure_may_use_base(self) -> None:
        """Refuse a request for the plain base, unless the tenant may use it.

        Raises:
            RequestRefused: 403.
        """
        if not self.base:
            raise RequestRefused(403, "this key may not use the base alone; name an adapter as the `model`")


@dataclass(frozen=True, slots=True)
class Tenants:
    """All tenants of a server, by name."""

    by_name: Mapping[str, Tenant]
    _by_key: Mapping[Digest, Tenant] = field(repr=False)

    @classmethod
    def parse(cls, data: bytes, path: Path) -> Tenants:
        """Return the tenants in the bytes of the file at `path`.

        Raises:
            Malformed: names each problem with its line.
        """
        reader = _Reader()
        try:
            document = toml_of(data)
        except ValueError as error:
            raise Malformed(f"`{shown(str(path), 200)}`: {error}", hint=_NEW_KEY) from None
        tenants = reader.tenants(document)
        if reader.problems:
            lines = lines_of(data.decode("utf-8"))
            told = [
                f"line {line}: {shown(where, 200)}: {text}" if (line := line_of(where, lines)) else f"{where}: {text}"
                for where, text in reader.problems
            ]
            raise Malformed(problem_list(f"`{shown(str(path), 200)}` is not a list of tenants", told), hint=_NEW_KEY)
        return cls({one.name: one for one in tenants}, {key: one for one in tenants for key in one.keys})

    @property
    def loaded(self) -> int:
        """How many adapters all of them may have in memory together."""
        return sum(one.max_loaded for one in self.by_name.values())

    def of(self, authorization: bytes) -> Tenant:
        """Return the tenant whose key the header `Authorization: Bearer KEY` has.

        Raises:
            RequestRefused: 401, without a key or with an unknown one.
        """
        digest = digest_of(bearer_key(authorization))
        # The digest of a guess says nothing about a key, so that the time of this lookup says nothing either.
        tenant = self._by_key.get(digest)
        if tenant is None or not any(hmac.compare_digest(digest, one) for one in tenant.keys):
            raise RequestRefused(401, "this key is not known to this server")
        return tenant


def bearer_key(authorization: bytes) -> bytes:
    """Read the key of the header `Authorization: Bearer KEY`.

    Raises:
        RequestRefused: 401, without a key.
    """
    scheme, _, key = authorization.strip().partition(b" ")
    if scheme.lower() != b"bearer" or not key.strip():
        raise RequestRefused(401, "this server needs a key: send `Authorization: Bearer KEY`")
    return key.strip()


def new_key() -> tuple[str, Digest]:
    """Return a key of 256 random bits for a tenant, and its digest for the file."""
    key = f"adapt-{secrets.token_urlsafe(32)}"
    return key, digest_of(key.encode())


class _Reader(DocumentReader):
    def tenants(self, document: Mapping[str, Any]) -> list[Tenant]:
        self.known(document, ("tenants",))
        tables = self.take(document, "tenants", dict, required=True) or {}
        if len(tables) > MOST_TENANTS:
            self.say("tenants", f"{len(tables)} tenants, expected at most {MOST_TENANTS}")
            return []
        if not tables and not self.problems:
            self.say("tenants", "no tenant, so that no key would be accepted")
        found = [one for name in tables if (one := self._tenant(tables, name)) is not None]
        seen: dict[Digest, str] = {}
        for tenant in found:
            for at, key in enumerate(tenant.keys):
                if seen.setdefault(key, tenant.name) != tenant.name:
                    self.say(f"tenants.{tenant.name}.keys[{at}]", f"`{seen[key]}` has this key, too")
        return found

    def _tenant(self, tables: Mapping[str, Any], name: str) -> Tenant | None:
        path = f"tenants.{name}."
        table = self.take(tables, name, dict, "tenants.")
        self.parsed(name, parse_name, "tenants.", name)
        if table is None:
            return None
        self.known(table, _KEYS, path)
        base = self.take(table, "base", bool, path)
        keys: tuple[str, ...] = ()
        if isinstance(table.get("keys"), str):  # may be a key, which no log should show
            self.say(f"{path}keys", 'expected a list, as in `keys = ["sha256:9f86…"]`')
        else:
            keys = self.texts(table, "keys", path, _key, required=True)
        return Tenant(
            name=name,
            keys=tuple(Digest(key) for key in keys),
            adapters=frozenset(self.texts(table, "adapters", path, _allowed, required=True)),
            base=base is not False,
            grammars=self.take(table, "grammars", bool, path) is True,
            max_loaded=self._limit(table, "max-loaded", path) or MOST_LOADED,
            max_requests=self._limit(table, "max-requests", path),
            requests_per_minute=self._limit(table, "requests-per-minute", path),
            tokens_per_minute=self._limit(table, "tokens-per-minute", path),
        )

    def _limit(self, table: Mapping[str, Any], key: str, path: str) -> int | None:
        number: int | None = self.take(table, key, int, path)
        if number is not None and not 1 <= number <= _LARGEST:
            self.say(f"{path}{key}", f"expected a number of at least 1, got {shown(number)}")
            return None
        return number


def _key(text: str) -> str:
    try:
        return parse_digest(text)
    except ValueError:  # may be the key itself, which no log should show
        raise ValueError("expected the digest of a key, `sha256:` and 64 hex digits, not the key itself") from None


def _allowed(text: str) -> str:
    if text == _ANY:
        return text
    namespace, slash, name = text.rpartition("/")
    if slash:
        parse_namespace(namespace)
    if name != _ANY or not slash:
        parse_name(name)
    return text


_MINUTE_S: Final = 60.0


class TenantDemand(NamedTuple):
    """The most that a request may cost: how many answers it has, and an estimate of its tokens."""

    answers: int
    tokens: int


class _Allowance:
    """What is left of a number a minute; it fills evenly, up to that number, and may be overdrawn."""

    def __init__(self) -> None:
        self._left: float | None = None
        self._at = 0.0

    def wait_s(self, a_minute: int, now: float, least: float) -> float:
        """Return the seconds until at least `least` is left; 0 if it is."""
        rate = a_minute / _MINUTE_S
        left = a_minute if self._left is None else min(a_minute, self._left + (now - self._at) * rate)
        self._left, self._at = left, now
        return max(0.0, (least - left) / rate)

    def take(self, amount: float) -> None:
        if self._left is not None:
            self._left -= amount


class _Use:
    """The use of one tenant."""

    def __init__(self) -> None:
        self.running = 0
        self.requests = _Allowance()
        self.tokens = _Allowance()


class Quotas:
    """The use of all tenants. `clock` gives seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uses: dict[str, _Use] = {}
        self._lock = Lock()

    def enter(self, tenant: Tenant) -> None:
        """Count a request that begins.

        Raises:
            RequestRefused: 429, with the seconds after which the quota allows one.
        """
        with self._lock:
            use, now = self._uses.setdefault(tenant.name, _Use()), self._clock()
            if tenant.max_requests is not None and use.running >= tenant.max_requests:
                raise RequestRefused(429, f"{tenant.max_requests} requests of this key run already", 1)
            if tenant.tokens_per_minute is not None:
                wait = use.tokens.wait_s(tenant.tokens_per_minute, now, 1)
                if wait:
                    raise RequestRefused(429, f"this key has used its {tenant.tokens_per_minute} tokens a minute", wait)
            if tenant.requests_per_minute is not None:
                wait = use.requests.wait_s(tenant.requests_per_minute, now, 1)
                if wait:
                    words = f"this key has sent its {tenant.requests_per_minute} requests a minute"
                    raise RequestRefused(429, words, wait)
                use.requests.take(1)
            use.running += 1

    def reserve(self, tenant: Tenant, demand: TenantDemand) -> None:
        """Count what a request that `enter` counted may use: each further answer as a request, and its tokens.

        A request that needs more than a whole minute's number waits for that number and overdraws it.

        Raises:
            RequestRefused: 429, with the seconds after which the quota allows it.
        """
        with self._lock:
            use, now, more = self._uses[tenant.name], self._clock(), demand.answers - 1
            tokens, requests = tenant.tokens_per_minute, tenant.requests_per_minute
            for allowance, a_minute, least, most, what in (
                (use.tokens, tokens, demand.tokens, tokens or 0, "tokens"),
                (use.requests, requests, more, (requests or 1) - 1, "requests"),  # `enter` took one
            ):
                wait = 0.0 if a_minute is None else allowance.wait_s(a_minute, now, min(least, most))
                if wait:
                    words = f"this request may need {least} {what}, and this key has {a_minute} a minute"
                    raise RequestRefused(429, words, wait)
            use.tokens.take(demand.tokens)
            use.requests.take(more)

    def leave(self, tenant: Tenant, tokens: int, reserved: int = 0) -> None:
        """Count the end of a request that `enter` counted, and the tokens that it used of its reserve."""
        with self._lock:
            use = self._uses[tenant.name]
            use.running -= 1
            use.tokens.take(tokens - reserved)
