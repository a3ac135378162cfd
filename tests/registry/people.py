"""A registry at which people sign in at an issuer, and browsers that keep cookies and follow what leads on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from adapterhub.inference.serving.process import free_port
from tests.registry.issuer import Issuer, issuing
from tests.registry.running import Running, running

HTML = {"Accept": "text/html"}
SECRET = "s3cret of the client: with a colon"  # noqa: S105 - of this test
RULES = """
issuer = "{issuer}"
client-id = "registry"
client-secret-file = "client-secret"
groups-claim = "realm_access.roles"
button = "Sign in with Acme"

[groups]
bosses = {{ role = "administer", namespaces = ["*"] }}
ml-team = {{ role = "release", namespaces = ["acme"] }}
lawyers = {{ role = "read", namespaces = ["law"] }}
reviewers = {{ teams = ["law/review"] }}
"""
ANA = {"sub": "f:1:ana", "preferred_username": "ana", "realm_access": {"roles": ["ml-team"]}}


@dataclass
class Browser:
    """A browser of one person: cookies, no token."""

    server: Running
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.server.url, headers=HTML, timeout=60)

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)

    def post(self, path: str, page: str = "", **form: str) -> httpx.Response:
        """A form of the page, with the token that the page has."""
        (token,) = set(re.findall(r'name="form_token" value="(\w+)"', self.get(page or path).text))
        return self.client.post(path, data={"form_token": token, **form})

    def begin(self, then: str = "/") -> str:
        """Where the issuer is asked."""
        return str(self.client.get("/sign-in/oidc", params={"then": then}).headers["location"])

    def answer(self, asked: str) -> str:
        """Where the issuer sends this browser back."""
        return str(httpx.get(asked).headers["location"])

    def sign_in(self, then: str = "/") -> httpx.Response:
        return self.client.get(self.answer(self.begin(then)))

    @property
    def name(self) -> str | None:
        """The user, as each page shows it."""
        found = re.search(r'<bdi class="name">(.*?)</bdi>', self.get("/").text)
        return found and found[1]

    @property
    def has_session(self) -> bool:
        return any("session" in name and value for name, value in self.client.cookies.items())


@dataclass(frozen=True)
class People:
    """A registry and its issuer. `asked` is the person whom it signs in next."""

    server: Running
    issuer: Issuer

    def browser(self) -> Browser:
        return Browser(self.server)

    def signed_in(self, **claims: Any) -> Browser:
        """The browser of a person who just signed in; by default, of ana of the ml-team."""
        self.issuer.person = ANA | claims
        made = self.browser()
        answer = made.sign_in()
        assert made.has_session, answer.text
        return made

    def refused(self, **claims: Any) -> str:
        """Why a person is not signed in."""
        self.issuer.person = ANA | claims
        return problem_of(self.browser().sign_in())

    def account(self, user: str) -> dict[str, Any]:
        found = self.server.get("/api/adapt/v1/accounts").json()["accounts"]
        return next(one for one in found if one["user"] == user)


def problem_of(answer: httpx.Response) -> str:
    """The problem that a page shows; it opened no session."""
    assert not any("session" in one and "session_=" not in one for one in answer.headers.get_list("set-cookie"))
    found = re.search(r'id="problem">.*?<p>(.*?)</p>', answer.text, re.DOTALL)
    assert found, answer.text
    return found[1]


@contextmanager
def people(folder: Path, rules: str = RULES, secret: str | None = SECRET) -> Iterator[People]:
    """A registry on 127.0.0.1 and an issuer on localhost, which a browser takes for two sites."""
    port = free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    with issuing("localhost") as issuer:
        issuer.client, issuer.returns = ("registry", secret), f"{url}/sign-in/oidc/done"
        (folder / "client-secret").write_text(f"{secret or ''}\n")
        file = folder / "sign-in.toml"
        file.write_text(rules.format(issuer=issuer.url))
        with running(folder / "registry", port=port, public_url=url, sign_in_file=file) as server:
            yield People(server, issuer)
