"""Identity tokens of other programs, such as jobs of a CI: who signed one, and what it states.

A token is believed when its issuer is on the list, a key that this issuer publishes signed it, its audience is this
registry and no other, and its times fit. Nothing is fetched for an issuer that is not on the list. What is fetched for
one that is has bounds: of size, of time, and of how often a token may cause it, since everyone can write a token that
names an unknown key.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from urllib.parse import urlsplit

from adapterhub.core.digests import strict_json
from adapterhub.core.errors import shown
from adapterhub.core.hosts import is_loopback
from adapterhub_registry.errors import HttpRefusal, identity_refused, too_many

if TYPE_CHECKING:
    from joserfc.jws import JWSRegistry

PublicKey = Any
"""A key of joserfc: one of RSAKey, ECKey and OKPKey."""

ALGORITHMS: Final = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}
"""The only algorithms, by the type of the key: none that a public key could verify by being a shared secret."""
CURVES: Final = {"EC": "P-256", "OKP": "Ed25519"}
RSA_BITS: Final = range(2048, 4097)
MOST_TOKEN_CHARACTERS: Final = 16_384
MOST_URL_CHARACTERS: Final = 500
MOST_DOCUMENT_BYTES: Final = 256 << 10
MOST_KEYS: Final = 64
FRESH_S: Final = 3600.0
"""For how long keys are believed before they are fetched again; a key that the issuer withdraws ends then."""
SKEW_S: Final = 60
FETCHES_A_MINUTE: Final = 5
"""Of one issuer's keys, by one server: for an unknown key; and as often for keys that grew old."""
FETCH_S: Final = 10.0
_MINUTE_S: Final = 60.0
T = TypeVar("T")
_DISCOVERY: Final = "/.well-known/openid-configuration"


def audience_of(public_url: str) -> str:
    """Return the audience of tokens for this registry: its address in the form in which clients write it."""
    place = urlsplit(public_url)
    standard = {"http": ":80", "https": ":443"}.get(place.scheme, "")
    return f"{place.scheme}://{place.netloc.lower().removesuffix(standard)}{place.path.rstrip('/')}"


def is_here(url: str) -> bool:
    """Return whether a URL leads to this machine without encryption, as that of a registry for trying out does."""
    place = urlsplit(url)
    return place.scheme == "http" and is_loopback(place.hostname)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a token states that was proved. `proof` is the same for the same token, however it is written."""

    issuer: str
    claims: Mapping[str, Any]
    proof: str


@dataclass(slots=True)
class _Known:
    about: Mapping[str, Any] = field(default_factory=dict)
    keys: dict[tuple[str | None, str], PublicKey] = field(default_factory=dict)
    read_at: float | None = None
    fetching: threading.Lock = field(default_factory=threading.Lock)
    routine: deque[float] = field(default_factory=deque)
    forced: deque[float] = field(default_factory=deque)


class Issuers:
    """The keys of issuers, as far as tokens needed them. With `allows_loopback`, one on this machine may use http."""

    def __init__(self, *, allows_loopback: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._allows_loopback = allows_loopback
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}

    def check_url(self, url: str) -> None:
        """Raise unless `url` can be an issuer, or the place of its keys.

        Raises:
            HttpRefusal: 400.
        """
        try:
            place = urlsplit(url)
            host, port = place.hostname, place.port
        except ValueError:
            host, port = None, None
        is_web = host is not None and (place.scheme == "https" or (self._allows_loopback and is_here(url)))
        plain = url.isascii() and url.isprintable() and not {" ", "\\"} & set(url) and len(url) <= MOST_URL_CHARACTERS
        if not is_web or not plain or port == 0 or place.username is not None or place.query or place.fragment:
            raise HttpRefusal(
                400, "BadRequest", f"issuer `{shown(url)}`: expected a URL such as https://gitlab.example.org"
            )

    def identity(self, token: str, *, listed: Collection[str], audience: str) -> Identity:
        """Return the identity of a sender that a token proves. `listed` has the issuers that an administrator trusts.

        Raises:
            HttpRefusal: 403 IdentityRefused, 429 when keys were fetched too often, 503 when the issuer does not answer.
        """
        from joserfc import jwt
        from joserfc.errors import BadSignatureError, JoseError

        issuer, kid, algorithm = _unproved(token)
        if issuer not in listed:
            raise _refused(f"its issuer `{shown(issuer)}` is not on the list of this registry")
        key = self._key(issuer, kid, algorithm, listed)
        known = {"iss": {"essential": True, "value": issuer}, "exp": {"essential": True}, "iat": {"essential": True}}
        rules: Any = jwt.JWTClaimsRegistry(leeway=SKEW_S, **cast("dict[str, Any]", known))
        try:
            claims = jwt.decode(token, key, registry=_only(algorithm)).claims
            rules.validate(claims)
        except BadSignatureError:
            raise _refused(f"its signature is not by the key `{shown(str(kid), 80)}` of its issuer") from None
        except (JoseError, ValueError, OverflowError) as error:
            why = getattr(error, "description", "") or getattr(error, "error", "") or str(error)
            raise _refused(shown(str(why), 200)) from None
        given = claims.get("aud")
        if given not in (audience, [audience]):
            raise _refused(f"its audience is {shown(str(given), 200)}, expected only {audience}")
        return Identity(issuer=issuer, claims=claims, proof=_proof(token, issuer, claims))

    def about(self, issuer: str) -> Mapping[str, Any]:
        """Return the metadata of an issuer that is trusted.

        Raises:
            HttpRefusal: as `identity`.
        """
        return self._found(issuer, {issuer}, lambda known: known.about) or {}

    def place(self, issuer: str, name: str) -> str | None:
        """Return the address that an issuer publishes as `name`; None if this server may not contact it or lead there.

        Raises:
            HttpRefusal: as `identity`.
        """
        place = self.about(issuer).get(name)
        try:
            self.check_url(place if isinstance(place, str) else "")
        except HttpRefusal:
            return None
        return str(place)

    def _key(self, issuer: str, kid: str | None, algorithm: str, listed: Collection[str]) -> PublicKey:
        found = self._found(issuer, listed, lambda known: _chosen(known.keys, kid, algorithm))
        if found is None:
            raise _refused(f"its key `{shown(str(kid), 80)}` is not one of those that `{shown(issuer)}` publishes")
        return found

    def _found(self, issuer: str, listed: Collection[str], look: Callable[[_Known], T | None]) -> T | None:
        """Return the result of `look` in an issuer's metadata, which are fetched where they are old or lack it."""
        with self._lock:
            for gone in self._known.keys() - set(listed):
                del self._known[gone]
            known = self._known.setdefault(issuer, _Known())
        fetched_before = known.read_at
        if self._is_fresh(known) and (found := look(known)) is not None:
            return found
        if not known.fetching.acquire(timeout=FETCH_S):
            raise _away(issuer)
        try:
            # another request may have fetched meanwhile
            if known.read_at == fetched_before or not self._is_fresh(known):
                self._count(known.forced if self._is_fresh(known) else known.routine, issuer)
                known.about, known.keys = self._fetched(issuer)
                known.read_at = self._clock()
            return look(known)
        finally:
            known.fetching.release()

    def _is_fresh(self, known: _Known) -> bool:
        return known.read_at is not None and self._clock() - known.read_at < FRESH_S

    def _count(self, times: deque[float], issuer: str) -> None:
        """Note one more fetch; raises 429 when a minute had as many as it may have."""
        now = self._clock()
        while times and now - times[0] >= _MINUTE_S:
            times.popleft()
        if len(times) >= FETCHES_A_MINUTE:
            after_s = int(_MINUTE_S - (now - times[0])) + 1
            raise too_many(f"the keys of `{shown(issuer)}` were read too often; try again", after_s=after_s)
        times.append(now)

    def _fetched(self, issuer: str) -> tuple[Mapping[str, Any], dict[tuple[str | None, str], PublicKey]]:
        """Fetch the metadata of an issuer, and its keys.

        Raises:
            HttpRefusal: 403 when its document names another issuer, 503 when it gives no keys.
        """
        about = document_at(issuer.rstrip("/") + _DISCOVERY, issuer)
        if about.get("issuer") != issuer:
            raise _refused(f"`{shown(issuer)}` calls itself `{shown(str(about.get('issuer')), 200)}`")
        place = about.get("jwks_uri")
        try:
            self.check_url(place if isinstance(place, str) else "")
        except HttpRefusal:
            raise _refused(f"`{shown(issuer)}` names no location of its keys that this registry can read") from None
        return about, _keys_of(document_at(str(place), issuer), issuer)


def _unproved(token: str) -> tuple[str, str | None, str]:
    """Return the issuer, the key and the algorithm that a token names, of which nothing is proved yet."""
    from joserfc import jws
    from joserfc.errors import JoseError

    if len(token) > MOST_TOKEN_CHARACTERS or not token.isascii():
        raise _refused(f"expected at most {MOST_TOKEN_CHARACTERS} characters of ASCII")
    try:
        parts = jws.extract_compact(token.encode())
        header, claims = parts.headers(), strict_json(parts.payload, limit_bytes=MOST_TOKEN_CHARACTERS)
    except (JoseError, ValueError, TypeError, AttributeError, RecursionError):
        raise _refused("it is not a signed token") from None
    algorithm, kid = header.get("alg"), header.get("kid")
    if algorithm not in ALGORITHMS.values():
        raise _refused(f"its algorithm is {shown(str(algorithm), 40)}, expected one of RS256, ES256, EdDSA")
    if "crit" in header or "b64" in header or not (kid is None or isinstance(kid, str)):
        raise _refused("its header asks for what this registry does not know")
    issuer = claims.get("iss") if isinstance(claims, dict) else None
    if not isinstance(issuer, str):
        raise _refused("it names no issuer")
    return issuer, kid, str(algorithm)


@lru_cache
def _only(algorithm: str) -> JWSRegistry:
    """Read tokens of one algorithm. Headers that it does not know change nothing, as the standard wants."""
    from joserfc.jws import JWSRegistry

    def get_alg(name: str) -> Any:
        if name != algorithm:
            raise ValueError(f"expected the algorithm {algorithm}")
        return JWSRegistry.algorithms[name]

    rules: Any = JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    rules.get_alg = get_alg  # the library's own warns of the name EdDSA, which issuers write
    return cast("JWSRegistry", rules)


def _proof(token: str, issuer: str, claims: Mapping[str, Any]) -> str:
    """Return the key of a token: its `jti`, or the signed text, as a signature can be written in two ways."""
    number = claims.get("jti")
    told = f"jti {issuer}\n{number}" if isinstance(number, str) and number else f"text {token.rpartition('.')[0]}"
    return hashlib.sha256(told.encode()).hexdigest()


def _chosen(keys: Mapping[tuple[str | None, str], PublicKey], kid: str | None, algorithm: str) -> PublicKey | None:
    """Return the key that a token names; for one that names none, the only one."""
    if kid is not None:
        return keys.get((kid, algorithm))
    fitting = [key for (_, of), key in keys.items() if of == algorithm]
    return fitting[0] if len(fitting) == 1 else None


def _keys_of(document: Mapping[str, Any], issuer: str) -> dict[tuple[str | None, str], PublicKey]:
    """Return the keys for signatures in a JWK set; leaves out those of another kind, weak ones and malformed ones."""
    listed = document.get("keys")
    if not isinstance(listed, list) or len(listed) > MOST_KEYS:
        raise _away(issuer)
    found: dict[tuple[str | None, str], PublicKey] = {}
    for one in listed:
        if not isinstance(one, dict) or (key := _public_key(one)) is None:
            continue
        name = (one.get("kid"), ALGORITHMS[one["kty"]])
        if name in found:
            raise _refused(f"`{shown(issuer)}` publishes two keys of one name")
        found[name] = key
    return found


def _public_key(value: dict[str, Any]) -> PublicKey | None:
    from joserfc.errors import JoseError
    from joserfc.jwk import ECKey, OKPKey, RSAKey

    kinds: dict[str, Any] = {"RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}
    kty, kid = value.get("kty"), value.get("kid")
    if not isinstance(kty, str) or kty not in kinds or not isinstance(kid, str | None) or "d" in value:
        return None
    if value.get("use", "sig") != "sig" or value.get("alg", ALGORITHMS[kty]) not in {ALGORITHMS[kty], CURVES.get(kty)}:
        return None
    if value.get("crv") != CURVES.get(kty):
        return None
    try:
        key = kinds[kty].import_key({name: text for name, text in value.items() if name in {"kty", "crv", *"nexy"}})
        is_strong = kty != "RSA" or key.raw_value.key_size in RSA_BITS
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return key if is_strong else None


def document_at(
    url: str, issuer: str, form: Mapping[str, str] | None = None, auth: tuple[str, str] | None = None
) -> dict[str, Any]:
    """Return a JSON object at a URL, which may not lead on, or the answer to a form; bounded in size and time.

    Raises:
        HttpRefusal: 403 where the issuer refuses a form, 503 where it gives no object.
    """
    import httpx

    end, raw = time.monotonic() + FETCH_S, bytearray()
    method = "GET" if form is None else "POST"
    try:
        with (
            httpx.Client(timeout=FETCH_S / 2, follow_redirects=False, auth=auth) as client,
            client.stream(method, url, data=form, headers={"Accept": "application/json"}) as answer,
        ):
            if form is not None and answer.status_code in {400, 401, 403}:
                raise HttpRefusal(
                    403, "SignInRefused", f"`{shown(issuer)}` refused it: status {answer.status_code}; sign in again"
                )
            if answer.status_code != httpx.codes.OK:
                raise _away(issuer)
            for piece in answer.iter_bytes():
                raw += piece
                if len(raw) > MOST_DOCUMENT_BYTES or time.monotonic() > end:
                    raise _away(issuer)
        value = strict_json(bytes(raw), limit_bytes=MOST_DOCUMENT_BYTES)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError):
        raise _away(issuer) from None
    if not isinstance(value, dict):
        raise _away(issuer)
    return value


def _refused(why: str) -> HttpRefusal:
    return identity_refused(why)


def _away(issuer: str) -> HttpRefusal:
    return HttpRefusal(
        503, "Busy", f"the issuer `{shown(issuer)}` gives no keys; try again", headers={"Retry-After": "10"}
    )
