"""An issuer of identity tokens that runs on loopback: discovery, keys that rotate, and what GitHub gives its jobs.

It also signs people in by the code flow with PKCE: whoever comes is `person`, as a person with a session there is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

REQUEST_TOKEN = "token-of-a-job-at-the-ci"  # noqa: S105 - of this test
EVERY = JWSRegistry(algorithms=["RS256", "ES256", "EdDSA", "HS256", "none", "RS512", "ES384"])
KINDS: dict[str, Callable[[str], Any]] = {
    "RS256": lambda kid: RSAKey.generate_key(2048, {"kid": kid, "use": "sig"}),
    "ES256": lambda kid: ECKey.generate_key("P-256", {"kid": kid, "use": "sig"}),
    "EdDSA": lambda kid: OKPKey.generate_key("Ed25519", {"kid": kid, "use": "sig"}),
}


@dataclass
class Issuer:
    url: str = ""
    keys: list[Any] = field(default_factory=list)
    algorithm: str = "ES256"
    claims: dict[str, Any] = field(default_factory=dict)
    """What it states of every job."""
    called: str | None = None
    """What it calls itself, where that is not its own name."""
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    """What it answers instead, by path."""
    asked: list[str] = field(default_factory=list)
    person: dict[str, Any] = field(default_factory=dict)
    """The claims of the person who signs in; empty for one who refuses."""
    about: dict[str, Any] = field(default_factory=dict)
    """What it publishes about itself besides."""
    client: tuple[str, str | None] = ("registry", None)
    """The name and the secret of its client, and where it sends people back."""
    returns: str = ""
    changed: dict[str, Any] = field(default_factory=dict)
    """Claims that it states wrongly of a person, such as a nonce."""
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    """What each code is for, which works once."""
    ended: list[dict[str, list[str]]] = field(default_factory=list)
    """The queries by which people signed out."""

    def rotate(self, algorithm: str = "ES256") -> None:
        """Sign with a new key, and publish only this."""
        self.algorithm = algorithm
        self.keys = [KINDS[algorithm](f"key-{uuid.uuid4()}")]

    def token(self, audience: Any, *, key: Any = None, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token as the issuer makes it; a claim that is None is left out."""
        now, signer = int(time.time()), key or self.keys[-1]
        told = {"iss": self.url, "aud": audience, "iat": now, "nbf": now, "exp": now + 300, "jti": str(uuid.uuid4())}
        told |= {"sub": "repo:acme/training:ref:refs/heads/main", **self.claims, **claims}
        kept = {name: value for name, value in told.items() if value is not None}
        head = {"alg": self.algorithm, "kid": self.keys[-1].kid, "typ": "JWT"} | (header or {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of algorithms that no one should use
            return jwt.encode({k: v for k, v in head.items() if v is not None}, kept, signer, registry=EVERY)

    def answer(self, path: str, headers: Any) -> tuple[int, dict[str, str], bytes]:
        place = urlsplit(path)
        self.asked.append(place.path)
        if place.path in self.answers:
            return self.answers[place.path]
        if place.path == "/.well-known/openid-configuration":
            places = {f"{name}_endpoint": f"{self.url}/{name}" for name in ("authorization", "token", "end_session")}
            body: Any = {"issuer": self.called or self.url, "jwks_uri": f"{self.url}/jwks", **places, **self.about}
        elif place.path == "/jwks":
            body = {"keys": [key.as_dict(private=False) for key in self.keys]}
        elif place.path == "/job/id" and headers["Authorization"] == f"Bearer {REQUEST_TOKEN}":
            body = {"value": self.token(parse_qs(place.query)["audience"][0])}
        elif place.path == "/authorization":
            return 302, {"Location": self.sent_back(dict(parse_qs(place.query)))}, b""
        elif place.path == "/end_session":
            self.ended.append(parse_qs(place.query))
            return 200, {"Content-Type": "text/html"}, b"<title>Signed out there</title>"
        else:
            return 404, {}, b"{}"
        return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()

    def sent_back(self, query: dict[str, list[str]]) -> str:
        """Where a browser goes that asked to sign in, with a code."""
        asked = {name: values[0] for name, values in query.items()}
        assert (asked["client_id"], asked["response_type"]) == (self.client[0], "code")
        assert asked["redirect_uri"] == self.returns
        assert (asked["code_challenge_method"], len(asked["code_challenge"])) == ("S256", 43)
        answer = {"state": asked["state"], "iss": self.url}
        if self.person:
            answer["code"] = uuid.uuid4().hex
            self.codes[answer["code"]] = asked
        else:
            answer["error"] = "access_denied"
        return f"{self.returns}?{urlencode(answer)}"

    def redeemed(self, form: dict[str, str], authorization: str | None) -> tuple[int, dict[str, str], bytes]:
        """The identity token for a code that was made for this client, and this verifier."""
        name, secret = form.get("client_id", ""), form.get("client_secret")
        if authorization is not None:
            name, secret = map(unquote, base64.b64decode(authorization.removeprefix("Basic ")).decode().split(":"))
        asked = self.codes.pop(form.get("code", ""), None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        is_right = (
            asked is not None
            and (name, secret) == self.client
            and form.get("grant_type") == "authorization_code"
            and form.get("redirect_uri") == asked["redirect_uri"]
            and challenge.decode().rstrip("=") == asked["code_challenge"]
        )
        if not is_right or asked is None:
            return 400, {"Content-Type": "application/json"}, b'{"error": "invalid_grant"}'
        told = {"nonce": asked["nonce"], **self.person, **self.changed}
        body = {"id_token": self.token(told.pop("aud", name), **told), "access_token": "x", "token_type": "Bearer"}
        return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()


@contextmanager
def issuing(host: str = "127.0.0.1") -> Iterator[Issuer]:
    """An issuer that runs; by the host `localhost`, browsers take it for another site than 127.0.0.1."""
    found = Issuer()
    found.rotate()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send(*found.answer(self.path, self.headers))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            found.asked.append(self.path)
            form = {name: values[0] for name, values in parse_qs(body).items()}
            answer = found.answers.get(self.path) or found.redeemed(form, self.headers["Authorization"])
            self.send(*answer)

        def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
