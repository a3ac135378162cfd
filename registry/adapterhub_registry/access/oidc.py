"""Sign-in at an issuer of OpenID Connect: the authorization code flow, with PKCE, a state and a nonce.

The state of a flow is sealed in a cookie of the browser that began it, for ten minutes, and each flow ends once. So an
answer counts only in the browser that asked for it, and a server keeps nothing for a stranger who began.

The file of rules names the issuer, and what its groups may do. It is read when a server starts.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from adapterhub.core.disk.files import read_plain
from adapterhub.core.errors import CHECK_FILE, UsageProblem, shown
from adapterhub.core.specs import parse_namespace
from adapterhub.formats.documents import DocumentReader, toml_of
from adapterhub.pages.page import FLOW_S
from adapterhub_registry.access import tokens
from adapterhub_registry.access.accounts import MOST_GROUPS, MOST_SUBJECT_CHARACTERS, Person, held_by
from adapterhub_registry.access.callers import SCOPES
from adapterhub_registry.access.issuers import Issuers, document_at, is_here
from adapterhub_registry.access.members import ALL, Held
from adapterhub_registry.access.tokens import BadSignature
from adapterhub_registry.database.db import Database
from adapterhub_registry.errors import HttpRefusal, busy, sign_in_refused

AT_ONCE: Final = 8
"""Sign-ins of one server that may wait for the issuer at the same time."""
BEGIN: Final = "/sign-in/oidc"
BACK: Final = "/sign-in/oidc/done"
MOST_RULES_BYTES: Final = 256 << 10
MOST_HOURS: Final = 24 * 30
MOST_DAYS: Final = 366
_AN_ISSUER: Final = "correct this place; the documentation of sign-in has an example"
_PURPOSE: Final = "sign-in"
_SPENT: Final = "signed in "
_KEYS: Final = (
    "issuer", "client-id", "client-secret-file", "name-claim", "groups-claim", "scopes", "button", "session-hours",
    "token-days", "everyone", "groups",
)  # fmt: skip
CODE_CHARACTERS: Final = 4096
_THEN_CHARACTERS: Final = 1000
"""Of a longer path, the cookie would be too long to be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInRules:
    """The issuer at which people sign in, and the rights of their groups."""

    issuer: str
    client_id: str
    client_secret: str | None = field(default=None, repr=False)
    name_claim: str = "preferred_username"
    groups_claim: str = "groups"
    scopes: tuple[str, ...] = ("openid", "profile")
    button: str = "Sign in with your organisation"
    session_hours: int = 12
    token_days: int = 30
    everyone: tuple[Held, ...] = ()
    groups: Mapping[str, tuple[Held, ...]] = field(default_factory=dict)


def read_rules(path: Path, *, public_url: str | None) -> SignInRules:
    """Read the rules in a file.

    Raises:
        UsageProblem: names each problem of the file, or what it needs beside it.
    """
    where = f"sign-in file `{shown(str(path))}`"
    if public_url is None:
        raise UsageProblem(
            f"{where}: the issuer must know the address to which it sends people back, and this server has none",
            hint="add `--public-url https://registry.example.org`",
        )
    if not (public_url.startswith("https://") or is_here(public_url)):
        raise UsageProblem(f"{where}: sign-in needs an encrypted address, and --public-url is {shown(public_url)}")
    reader = _Reader()
    try:
        rules = reader.rules(toml_of(read_plain(path, MOST_RULES_BYTES)), path.parent, public_url)
    except OSError as error:
        raise UsageProblem(f"{where}: {error.strerror}", hint=CHECK_FILE) from None
    except ValueError as error:
        raise UsageProblem(f"{where}: {error}", hint=_AN_ISSUER) from None
    if rules is None:
        raise UsageProblem(f"{where}: {'; '.join(reader.lines[:5])}", hint=_AN_ISSUER)
    return rules


class _Reader(DocumentReader):
    def rules(self, document: Mapping[str, Any], folder: Path, public_url: str) -> SignInRules | None:
        self.known(document, _KEYS)
        groups = self.take(document, "groups", dict) or {}
        given = {
            "issuer": self.checked(document, "issuer", _issuer_for(public_url), required=True),
            "client_id": self.checked(document, "client-id", _word, required=True),
            "client_secret": self.checked(document, "client-secret-file", lambda text: _secret(folder / text)),
            "name_claim": self.checked(document, "name-claim", _word),
            "groups_claim": self.checked(document, "groups-claim", _word),
            "scopes": self.texts(document, "scopes", "", _word) or None,
            "button": self.checked(document, "button", _line),
            "session_hours": self._number(document, "session-hours", MOST_HOURS),
            "token_days": self._number(document, "token-days", MOST_DAYS),
            "everyone": self._held(document, "everyone"),
            "groups": {name: self._held(groups, name, "groups.") for name in groups},
        }
        if "openid" not in (given["scopes"] or ("openid",)):
            self.say("scopes", "expected `openid` among them")
        if not groups and "everyone" not in document:
            self.say("groups", 'no group may do anything; expected one as in `[groups."ml-team"]`, or `[everyone]`')
        if self.problems:
            return None
        return SignInRules(**{name: value for name, value in given.items() if value is not None})

    def _held(self, holder: Mapping[str, Any], name: str, path: str = "") -> tuple[Held, ...]:
        """Read what a group gives: a role in namespaces, or in all with `*`, and places in teams."""
        table, path = self.take(holder, name, dict, path), f"{path}{name}."
        if table is None:
            return ()
        self.known(table, ("role", "namespaces", "teams"), path)
        role = self.checked(table, "role", _role, path)
        spaces = self.texts(table, "namespaces", path, _namespace)
        teams = self.texts(table, "teams", path, _team)
        if (role is None) != (not spaces) and not self.problems:
            self.say(
                f"{path}{'role' if spaces else 'namespaces'}",
                f"missing; expected one of {', '.join(SCOPES)}"
                if spaces
                else 'missing; expected some, as in `["acme"]`, or `["*"]` for all',
            )
        if not spaces and not teams and not self.problems:
            self.say(path.rstrip("."), "gives nothing; expected `role` and `namespaces`, or `teams`")
        places = (team.split("/") for team in teams)
        return (
            *(Held(namespace=space, role=role) for space in spaces),
            *(Held(namespace=space, team=team) for space, team in places),
        )

    def _number(self, holder: Mapping[str, Any], key: str, most: int) -> int | None:
        number: int | None = self.take(holder, key, int)
        if number is not None and not 1 <= number <= most:
            self.say(key, f"expected 1 to {most}, got {shown(number)}")
        return number


def _issuer_for(public_url: str) -> Any:
    def check(text: str) -> str:
        try:
            Issuers(allows_loopback=is_here(public_url)).check_url(text)
        except HttpRefusal as refusal:
            raise ValueError(refusal.message) from None
        return text

    return check


def _word(text: str) -> str:
    if not text or len(text) > 500 or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"expected one word, got `{shown(text)}`")
    return text


def _line(text: str) -> str:
    if not 0 < len(text) <= 80 or not text.isprintable():
        raise ValueError("expected 1 to 80 printable characters")
    return text


def _role(text: str) -> str:
    if text not in SCOPES:
        raise ValueError(f"expected one of {', '.join(SCOPES)}, got `{shown(text)}`")
    return text


def _namespace(text: str) -> str:
    return text if text == ALL else str(parse_namespace(text))


def _team(text: str) -> str:
    namespace, slash, team = text.partition("/")
    if not slash or not team or "/" in team:
        raise ValueError(f"expected NAMESPACE/TEAM, got `{shown(text)}`")
    return f"{parse_namespace(namespace)}/{team}"


def _secret(path: Path) -> str:
    try:
        raw = read_plain(path, 4096).strip()
    except OSError as error:
        raise ValueError(f"`{shown(str(path))}`: {error.strerror}") from None
    text = raw.decode("ascii", "replace")
    if not text or not text.isprintable() or not text.isascii():
        raise ValueError(f"`{shown(str(path))}`: expected the secret of the client, one line of ASCII")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """The address at which a person signs in, and the cookie without which no answer of the issuer counts."""

    url: str
    cookie: str


class SignIn:
    """The issuer at which people sign in to the registry at `public_url`."""

    def __init__(self, rules: SignInRules, database: Database, *, public_url: str, secret: bytes) -> None:
        self.rules = rules
        self._db, self._secret = database, secret
        self._home = public_url
        self._issuers = Issuers(allows_loopback=is_here(public_url))
        self._slots = threading.BoundedSemaphore(AT_ONCE)

    def held_by(self, person: Person) -> tuple[Held, ...]:
        """Collect the memberships that the groups of a person give here."""
        return held_by(person.groups, self.rules.groups, self.rules.everyone)

    def begin(self, then: str) -> Begun:
        """Begin to sign in; `then` is the path of the page to return to.

        Raises:
            HttpRefusal: 503 where the issuer does not answer, or too many wait for it.
        """
        with self._waiting():
            place = self._place("authorization_endpoint")
        flow = {name: secrets.token_urlsafe(32) for name in ("state", "nonce", "verifier")}
        challenge = base64.urlsafe_b64encode(hashlib.sha256(flow["verifier"].encode()).digest()).decode().rstrip("=")
        query = {
            "response_type": "code",
            "client_id": self.rules.client_id,
            "redirect_uri": self._home + BACK,
            "scope": " ".join(self.rules.scopes),
            "state": flow["state"],
            "nonce": flow["nonce"],
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        there = then if len(then) <= _THEN_CHARACTERS else "/"
        cookie = tokens.sign({"purpose": _PURPOSE, **flow, "then": there}, self._secret, FLOW_S)
        return Begun(url=f"{place}?{urlencode(query, quote_via=quote)}", cookie=cookie)

    def finish(self, cookie: str, answer: Mapping[str, str]) -> tuple[Person, str]:
        """Return the person whom the issuer signed in, and the path to return to. `answer` is the query that it sent.

        Raises:
            HttpRefusal: 403 unless the answer belongs to the flow of this browser, which ends with it, and the issuer
                vouches for somebody; 503 where it does not answer.
        """
        try:
            flow = tokens.check(cookie, self._secret, purpose=_PURPOSE)
        except BadSignature:
            raise _refused("this browser did not begin it, or began more than ten minutes ago") from None
        if not secrets.compare_digest(answer.get("state", "").encode(), flow["state"].encode()):
            raise _refused("the answer belongs to another sign-in")
        name = hashlib.sha256(flow["state"].encode()).hexdigest()[:32]
        if not tokens.spend(self._db, _SPENT, name, int(time.time()) + FLOW_S):
            raise _refused("this answer was used before")
        with self._waiting():
            self._check_sender(answer)
            token = self._identity_token(answer["code"], flow["verifier"])
            return self._person(token, flow["nonce"]), flow["then"]

    def end_url(self) -> str | None:
        """Return where a person also signs out at the issuer; None if it offers no such place."""
        try:
            with self._waiting():
                place = self._issuers.place(self.rules.issuer, "end_session_endpoint")
        except HttpRefusal:
            return None
        query = {"client_id": self.rules.client_id, "post_logout_redirect_uri": f"{self._home}/"}
        return None if place is None else f"{place}?{urlencode(query, quote_via=quote)}"

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        if not self._slots.acquire(blocking=False):
            raise busy("too many people are signing in; try again")
        try:
            yield
        finally:
            self._slots.release()

    def _place(self, name: str) -> str:
        place = self._issuers.place(self.rules.issuer, name)
        if place is None:
            raise _refused(f"`{self.rules.issuer}` publishes no {name} that this registry can use")
        return place

    def _check_sender(self, answer: Mapping[str, str]) -> None:
        """Raise unless the answer is the issuer's, with a code (RFC 9207 for the issuer's name in it)."""
        sender = answer.get("iss")
        names_itself = self._issuers.about(self.rules.issuer).get("authorization_response_iss_parameter_supported")
        if sender != self.rules.issuer and (sender is not None or names_itself is True):
            raise _refused(f"the answer comes from `{shown(str(sender), 200)}`, expected {self.rules.issuer}")
        if "error" in answer:
            raise _refused(f"`{self.rules.issuer}` says {shown(answer['error'], 80)}")
        if not 0 < len(answer.get("code", "")) <= CODE_CHARACTERS:
            raise _refused("the answer holds no code")

    def _identity_token(self, code: str, verifier: str) -> str:
        rules = self.rules
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._home + BACK,
            "code_verifier": verifier,
        }
        auth = None
        if rules.client_secret is None:
            form["client_id"] = rules.client_id
        elif self._takes_basic():
            auth = (quote(rules.client_id, safe=""), quote(rules.client_secret, safe=""))
        else:
            form |= {"client_id": rules.client_id, "client_secret": rules.client_secret}
        answer = document_at(self._place("token_endpoint"), rules.issuer, form, auth)
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise _refused(f"`{rules.issuer}` gave no identity token; is `openid` among the scopes?")
        return token

    def _takes_basic(self) -> bool:
        ways = self._issuers.about(self.rules.issuer).get("token_endpoint_auth_methods_supported")
        return not isinstance(ways, list) or "client_secret_basic" in ways

    def _person(self, token: str, nonce: str) -> Person:
        rules = self.rules
        identity = self._issuers.identity(token, listed={rules.issuer}, audience=rules.client_id)
        told, subject = identity.claims.get("nonce"), identity.claims.get("sub")
        if not isinstance(told, str) or not secrets.compare_digest(told.encode(), nonce.encode()):
            raise _refused("the identity token was made for another sign-in (its nonce differs)")
        if not isinstance(subject, str) or not 0 < len(subject) <= MOST_SUBJECT_CHARACTERS or not subject.isprintable():
            raise _refused("the identity token names no person (its `sub`)")
        name, groups = _claim(identity.claims, rules.name_claim), _claim(identity.claims, rules.groups_claim)
        listed = groups if isinstance(groups, list) else [groups]
        return Person(
            issuer=rules.issuer,
            subject=subject,
            name=name if isinstance(name, str) and name else subject,
            groups=tuple(one for one in listed[:MOST_GROUPS] if isinstance(one, str)),
        )


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """Find a claim by its name, or by a path such as `realm_access.roles`."""
    found: Any = claims
    for part in (name,) if name in claims else name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _refused(why: str) -> HttpRefusal:
    return sign_in_refused(why)
