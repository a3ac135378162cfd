"""The tenants of a server: the keys of each, the adapters that it may use, and its quotas. Read from a TOML file.

[tenants.acme]
keys = ["sha256:9f86…"]              # of `adapt serve --new-key`
adapters = ["acme/*", "legal-qa"]    # a namespace, a name, or "*"
base = true                          # may use the base alone
max-loaded = 4                       # adapters in memory at once
max-requests = 8                     # requests at once
requests-per-minute = 600
tokens-per-minute = 200000           # of prompts and answers
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from adapterhub.core.digests import Digest, digest_of, parse_digest
from adapterhub.core.errors import Malformed, SpecError, problem_list, shown
from adapterhub.core.specs import AdapterSpec, parse_name, parse_namespace
from adapterhub.formats.documents import DocumentReader, toml_of
from adapterhub.formats.toml_lines import line_of, lines_of
from adapterhub.inference.serving.access.refused import RequestRefused

MOST_TENANTS: Final = 1000
MOST_LOADED: Final = 4
"""How many adapters a tenant may have in memory where its table does not say."""

_LARGEST: Final = 10**12
_KEYS: Final = (
    "keys", "adapters", "base", "grammars", "max-loaded", "max-requests", "requests-per-minute", "tokens-per-minute",
)  # fmt: skip
_ANY: Final = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One tenant. A limit of None is no limit. `adapters` holds `*`, `acme/*`, `acme/legal-qa` or `legal-qa`.

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
        """Whether it may use the adapter of that full name, such as `acme/legal-qa`."""
        namespace, slash, _ = full_name.rpartition("/")
        allowed = self.adapters
        return full_name in allowed or _ANY in allowed or (bool(slash) and f"{namespace}/{_ANY}" in allowed)

    def name_for(self, asked: str) -> str:
        """The name to look up for the name of a request: a bare name gets the namespace of the tenant.

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
        """The namespaces in which it may use an adapter of that name."""
        places = (one.rpartition("/") for one in self.adapters)
        return tuple(sorted({place for place, slash, last in places if slash and last in {_ANY, name}}))

    def ensure_may_use(self, name: str, label: str) -> None:
        """Refuse the build `label`, which `name` was found to be, unless the tenant may use it.

        Raises:
            RequestRefused: as for a name that does not exist, since other tenants' names are none of its business.
        """
        if not self.allows(label.partition("==")[0]):
            raise RequestRefused(404, f"no adapter `{shown(name, 200)}` is known to this server")

    def ensure_may_use_base(self) -> None:
        """Refuse a request for the base alone, unless the tenant may use it.

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
        """The tenants in the bytes of the file at `path`.

        Raises:
            Malformed: names each problem with its line.
        """
        reader = _Reader()
        try:
            document = toml_of(data)
        except ValueError as error:
            raise Malformed(f"`{shown(str(path), 200)}`: {error}") from None
        tenants = reader.tenants(document)
        if reader.problems:
            lines = lines_of(data.decode("utf-8"))
            told = [
                f"line {line}: {shown(where, 200)}: {text}" if (line := line_of(where, lines)) else f"{where}: {text}"
                for where, text in reader.problems
            ]
            raise Malformed(problem_list(f"`{shown(str(path), 200)}` is not a list of tenants", told))
        return cls({one.name: one for one in tenants}, {key: one for one in tenants for key in one.keys})

    @property
    def loaded(self) -> int:
        """How many adapters all of them may have in memory together."""
        return sum(one.max_loaded for one in self.by_name.values())

    def of(self, authorization: bytes) -> Tenant:
        """The tenant whose key the header `Authorization: Bearer KEY` has.

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
    """A key of 256 random bits for a tenant, and its digest for the file."""
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
