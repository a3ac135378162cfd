"""Asks every route with every caller, and finds what the answers tell of hidden things."""

from __future__ import annotations

import base64
import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from adapterhub_registry.access.accounts import Person
from adapterhub_registry.access.members import Held
from adapterhub_registry.access.tokens import cookie_for

from adapterhub.formats.manifest import WEIGHTS_FILE
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from tests.registry.matrix.asking import Request, requests
from tests.registry.matrix.worlds import DEVICE, JOBS, KINDS, MARK, MEMBERS, ROLES, Hidden, World, make_builds, world

SESSION = "signed in"
ISSUED = "signed in at an issuer"
CALLERS = ("nobody", *ROLES, *MEMBERS, *JOBS, DEVICE, SESSION, ISSUED)
PAGE = {"accept": "text/html"}
_OWN = frozenset({"date", "x-request-id", "x-xet-token-expiration"})
_MASKS = (
    (re.compile(r'(name="form_token" value=")[^"]*'), r"\1TOKEN"),
    (re.compile(r"(adapt_(?:visitor|session)_)[^;]*"), r"\1VALUE"),
    (re.compile(r"gAAAAA[A-Za-z0-9_-]+={0,2}|(?<=cursor=)[^&>\"]+"), lambda found: f"SEALED-{len(found[0])}"),
    (re.compile(r"(?<=_code\":\")[^\"]+"), "CODE"),
    (re.compile(r"(?<=/_xet/)[0-9a-f]{32}"), "SPACE"),
    (re.compile(r"(?<=/_lfs/object/)[^\"]+|(?<=/_lfs/file/)[^\"]+"), lambda found: f"LINK-{len(found[0])}"),
    (re.compile(r"(?<=\"number\":)1\d{15}|(?<=\"exp\":)\d{10}|(?<=\"id\":)(?:1\d{15}|[1-9]\d{8}(?!\d))"), "NUMBER"),
    (re.compile(r'(?<=<td class="num">)\d+(?=</td>\n<td>)|(?<=revoke-)\d+|(?<=Revoke token )\d+'), "COUNTED"),
    (re.compile(r'(?<=name="number" value=")\d+'), "COUNTED"),  # tokens have the numbers of one count on the server
    (re.compile(r"evt_[0-9a-f]{32}|(?<=\"next\":)1\d{15}"), "EVENT"),
    (re.compile(r"(hf_)?adp_[a-z2-7]{32}_[0-9a-f]{8}|whsec_[A-Za-z0-9+/=]+|eyJ[\w.-]+"), "TOKEN"),
)
"""What is random or names the server. The length of what is sealed stays: it may count."""


def _all(_request: Request) -> bool:
    return True


@dataclass(frozen=True)
class Told:
    """One answer, without what is random."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: str


@dataclass(frozen=True)
class Difference:
    """What an answer tells of a hidden thing. `what` begins with the part that tells it."""

    kind: str
    caller: str
    request: Request
    what: str

    def __str__(self) -> str:
        asked = f"{self.request.method} {self.request.path}"
        return f"{self.kind}\t{self.request.route}\t{self.caller}\t{asked}\t{self.what}"


def differences(
    kinds: tuple[str, ...] = tuple(KINDS), callers: tuple[str, ...] = CALLERS, wanted: Callable[[Request], bool] = _all
) -> Iterator[Difference]:
    """Every difference, those that are meant included; of the requests that are `wanted`."""
    with TemporaryDirectory(prefix="matrix-") as name:
        folder = Path(name)
        made, port = make_builds(folder / "library"), free_port()  # cards name the address
        plain = _answers(folder / "plain", port, made, None, callers, wanted)
        for kind in kinds:
            told = _answers(folder / kind, port, made, KINDS[kind], callers, wanted)
            for key, answer in told.items():
                for what in tells(plain[key] if KINDS[kind].compares else answer, answer, key[1]):
                    yield Difference(kind, *key, what)


def tells(plain: Told, told: Told, request: Request) -> Iterator[str]:
    if plain.status != told.status:
        yield f"status: {plain.status} without, {told.status} with"
        return
    for name in sorted({name for name, _ in (*plain.headers, *told.headers)}):
        one, other = (dict(answer.headers).get(name) for answer in (plain, told))
        if one != other:
            yield f"{name}: {one} without, {other} with"
    if plain.body != told.body:
        at = next((at for at, (a, b) in enumerate(zip(plain.body, told.body, strict=False)) if a != b), 0)
        yield f"body: {plain.body[max(at - 30, 0) : at + 60]!r} without, {told.body[max(at - 30, 0) : at + 60]!r} with"
    text = f"{told.headers} {told.body}".replace(request.path, "")
    if MARK in text and MARK not in request.path + request.body:
        at = text.index(MARK)
        yield f"mark: {text[max(at - 60, 0) : at + 30]!r}"


def _answers(
    folder: Path,
    port: int,
    made: tuple[Library, dict[str, Installed]],
    hidden: Hidden | None,
    callers: tuple[str, ...],
    wanted: Callable[[Request], bool],
) -> dict[tuple[str, Request], Told]:
    with world(folder, port, made, hidden) as there:
        return answers_of(there, made[1], callers, wanted)


def answers_of(
    there: World,
    builds: dict[str, Installed],
    callers: tuple[str, ...] = CALLERS,
    wanted: Callable[[Request], bool] = _all,
) -> dict[tuple[str, Request], Told]:
    """What each route answers to each caller."""
    secret = builds["secret"].manifest
    weights = secret.file(WEIGHTS_FILE)
    assert weights is not None
    other = builds["secret 2"].manifest.file(WEIGHTS_FILE)
    assert other is not None
    fingerprint = secret.base.fingerprint
    assert fingerprint is not None
    digests = {
        "WEIGHTS": weights.sha256[7:],
        "OTHER WEIGHTS": other.sha256[7:],
        "SIZE": str(weights.size_bytes),
        "BASE": fingerprint.weights.removeprefix("sha256:"),
        "BUILD": builds["secret"].manifest.digest,
    }
    found: dict[tuple[str, Request], Told] = {}
    clients = {caller: _client(there, caller) for caller in callers}
    for request in filter(wanted, requests(there.server.app, digests)):
        for caller, client in clients.items():
            answer = _ask(client, request)
            found[caller, request] = told = _told(answer)
            if request.method == "GET" and answer.status_code == 200 and "etag" in answer.headers:
                again = _ask(client, request, {"if-none-match": answer.headers["etag"]})
                found[caller, Request("GET again", request.route, request.path)] = _told(again)
                assert again.status_code in {200, 304}, told
    for client in clients.values():
        client.close()
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _client(there: World, caller: str) -> httpx.Client:
    token = there.tokens.get(caller)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    client = httpx.Client(base_url=there.server.url, headers=headers, timeout=60)
    if caller == ISSUED:
        registry = there.server.registry
        person = Person(issuer="https://sso.example.org", subject="s-1", name="isa", groups=("team",))
        held = (Held(namespace="isa", role="administer"), Held(namespace="bob", role="read"))
        number = registry.accounts.signed_in(person, held, lasts_s=86_400)
        cookie = cookie_for(number, registry.settings.secret, lasts_s=86_400)
        client.headers.update(PAGE)
        client.cookies.set(there.server.app.state.pages.cookies.session, cookie)
    if caller == SESSION:
        client.headers.update(PAGE)
        form = re.search(r'name="form_token" value="([^"]+)"', client.get("/sign-in").text)
        assert form is not None
        sent = {"form_token": form[1], "token": there.tokens["writer"], "then": "/"}
        assert client.post("/sign-in", data=sent).status_code == 303
    return client


def _ask(client: httpx.Client, request: Request, headers: dict[str, str] | None = None) -> httpx.Response:
    body = json.loads(request.body)
    if isinstance(body, str):
        return client.request(request.method, request.path, content=body, headers=headers)
    return client.request(request.method, request.path, json=body, headers=headers)


def _told(answer: httpx.Response) -> Told:
    packed = answer.headers.get("content-type", "").startswith(("application/octet", "image/"))
    body = base64.b64encode(answer.content).decode() if packed else answer.text
    headers = [(name, text) for name, text in answer.headers.multi_items() if name not in _OWN]
    return Told(answer.status_code, tuple(sorted((name, _masked(text)) for name, text in headers)), _masked(body))


def _masked(text: str) -> str:
    for pattern, mask in _MASKS:
        text = pattern.sub(mask, text)  # type: ignore[arg-type]  # a text or a function
    return text
