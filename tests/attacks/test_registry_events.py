"""Events and webhooks as ways in: into the server's network, and to what others keep private."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapterhub_registry import outbox
from adapterhub_registry.settings import ServerLimits, parse_networks

from adapterhub.core.errors import NotAllowed
from adapterhub.core.webhooks import WINDOW_S, new_secret, signed_headers, verify_webhook
from tests.registry.pushing import Push
from tests.registry.receiver import Receiver, receiver, status
from tests.registry.running import Running, running

HOOKS, FEED = "/api/adapt/v1/webhooks", "/api/adapt/v1/events"
LOOPBACK = parse_networks(("127.0.0.0/8",))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A registry with a private adapter of alice and a public one of bob."""
    limits = ServerLimits(webhook_retry_s=1)
    with running(tmp_path_factory.mktemp("registry"), webhook_networks=LOOPBACK, limits=limits) as server:
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.token}"}) as client:
            made = {"organization": "alice", "name": "secret", "private": True}
            client.post("/api/repos/create", json=made).raise_for_status()
            for repo in ("alice/secret", "bob/open"):
                Push(repo=repo, weights=b"w").run(client)
        yield server


def token(server: Running, user: str, *globs: str, role: str = "write") -> str:
    return server.registry.tokens.create(user, role, namespaces=list(globs))


def yank(server: Running, repo: str, reason: str) -> None:
    about = {"version": "1.0.0", "reason": reason}
    assert server.post(f"/api/adapt/v1/adapters/{repo}/yank", about).status_code == 200


def heard(server: Running, as_token: str | None) -> list[str]:
    events = server.get(f"{FEED}?since=0&limit=500", token=as_token).json()["events"]
    return [event["data"]["repo"] for event in events]


# ------------------------------------------------------------ what is private
def test_the_feed_shows_a_stranger_nothing_of_a_private_repository(server: Running) -> None:
    yank(server, "alice/secret", "leaked keys")
    stranger, owner = token(server, "mallory"), token(server, "alice")

    answer = server.get(f"{FEED}?since=0&limit=500", token=stranger)

    assert "secret" not in answer.text
    assert "leaked" not in answer.text
    assert set(heard(server, None)) == set(heard(server, stranger)) == {"bob/open"}
    assert "alice/secret" in heard(server, owner)
    assert server.get(FEED, token=stranger).json()["next"] < server.get(FEED, token=owner).json()["next"]


def test_what_was_public_is_hidden_once_its_repository_is_private(server: Running) -> None:
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.token}"}) as client:
        Push(repo="bob/later", weights=b"w").run(client)
    before = heard(server, None)
    server.send("PUT", "/api/models/bob/later/settings", {"private": True})

    assert "bob/later" in before
    assert "bob/later" not in heard(server, None)
    assert "bob/later" in heard(server, token(server, "bob"))


def test_a_revoked_token_hears_nothing_while_it_waits(server: Running) -> None:
    mine = token(server, "eve", "alice/*", role="read")
    since = server.get(FEED, token=mine).json()["next"]
    number = next(record.id for record in server.registry.tokens.records() if record.user == "eve")
    with httpx.Client(base_url=server.url, timeout=40) as client:
        waiting = client.build_request(
            "GET", f"{FEED}?since={since}&wait=20", headers={"Authorization": f"Bearer {mine}"}
        )
        answers: list[httpx.Response] = []
        follower = threading.Thread(target=lambda: answers.append(client.send(waiting)))
        follower.start()
        end = time.monotonic() + 60
        while not server.registry.watch._latest and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.3)
        server.registry.tokens.revoke(number)
        yank(server, "alice/secret", "after the revocation")
        follower.join(30)

    assert answers[0].status_code == 401


SCOPES = ["alice", "alice/secret", "alice/nothing"]


@pytest.mark.parametrize("scope", SCOPES)
def test_a_stranger_adds_no_webhook_to_the_namespace_of_another(server: Running, scope: str) -> None:
    body = {"scope": scope, "url": "https://hooks.example.org/"}
    strangers = [token(server, "mallory"), token(server, "reader", "alice/*", role="read")]
    parts = token(server, "part", "alice/x*")

    answers = [server.post(HOOKS, body, token=one) for one in (*strangers, parts, None)]

    # 403: a token that only reads is refused before its body is read, whatever that names
    assert [answer.status_code for answer in answers] == [404, 403, 404, 401]
    assert len({answer.json()["error"].replace(scope, "") for answer in answers[:3:2]}) == 1


def test_a_webhook_of_another_is_not_found(server: Running) -> None:
    made = server.post(HOOKS, {"scope": "alice", "url": "https://hooks.example.org/"}, token=token(server, "alice"))
    place = f"{HOOKS}/{made.json()['webhook']['id']}"
    stranger = token(server, "mallory")

    answers = [
        server.send(method, place + path, token=stranger)
        for method, path in (("DELETE", ""), ("POST", "/test"), ("GET", "/deliveries"))
    ]

    assert [answer.status_code for answer in answers] == [404, 404, 404]
    assert server.get(HOOKS, token=stranger).json() == {"webhooks": []}
    assert "whsec_" not in server.get(HOOKS).text


def test_an_owner_who_left_hears_nothing_more(server: Running) -> None:
    with receiver() as got:
        made = server.post(HOOKS, {"scope": "alice", "url": got.url}, token=token(server, "leaver", "alice/*")).json()
        number = made["webhook"]["id"]
        server.registry.tokens.revoke_user("leaver")
        yank(server, "alice/secret", "after leaving")
        (done,) = ended(server, number)
        server.post(f"{HOOKS}/{number}/test", None)
        probe, _ = ended(server, number)
        shown = next(one for one in server.get(HOOKS).json()["webhooks"] if one["id"] == number)

    assert (done["state"], probe["state"], shown["silent"]) == ("withheld", "withheld", True)
    assert got.messages == []


def ended(server: Running, number: int) -> list[dict[str, Any]]:
    end = time.monotonic() + 60
    while True:
        found = server.get(f"{HOOKS}/{number}/deliveries").json()["deliveries"]
        if found and all(one["state"] != "waiting" for one in found):
            return found
        assert time.monotonic() < end, found
        time.sleep(0.05)


# ------------------------------------------------------------ the server's network
INSIDE = [
    *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),  # noqa: S104
    *("255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.2.1", "::1", "::", "fe80::1", "fec0::1", "fd00::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"),
    *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "ff02::1", "2001:db8::1"),
]


@pytest.mark.parametrize("address", INSIDE)
def test_no_address_inside_counts_as_public(address: str) -> None:
    assert not outbox.is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_an_address_on_the_internet_counts_as_public(address: str) -> None:
    assert outbox.is_public(ipaddress.ip_address(address))


SPELLINGS = [
    "localhost",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "[::ffff:7f00:1]",
    "127.0.0.1.",
    "①②⑦.0.0.1",
]


@pytest.mark.parametrize("host", SPELLINGS)
def test_no_spelling_of_loopback_gets_a_message(host: str) -> None:
    with receiver() as got:
        url = f"https://{host}:{httpx.URL(got.url).port}/"
        outcome = send(url)

    assert outcome.status is None
    assert outcome.problem in {
        "the host name has no address",
        "the host name leads to an address that this server does not send to",
    }
    assert got.messages == []


def test_a_name_that_changes_its_address_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: public when checked, loopback when connected. One look decides, and one bad address refuses all."""
    with receiver() as got:
        port = httpx.URL(got.url).port
        asked: list[str] = []

        def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
            asked.append(host)
            found = ["203.0.114.1"] if len(asked) == 1 else ["127.0.0.1"]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

        monkeypatch.setattr(outbox.socket, "getaddrinfo", resolve)
        with monkeypatch.context() as hasty:
            hasty.setattr(outbox, "TIMEOUT_S", 0.5)
            first = send(f"https://rebinding.example:{port}/")
        second = send(f"https://rebinding.example:{port}/")

    assert first.problem in {"could not connect", "no answer within 0 s"}
    assert second.problem == "the host name leads to an address that this server does not send to"
    assert (asked.count("rebinding.example"), got.messages) == (2, [])


def test_one_inside_address_among_public_ones_refuses_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(outbox.socket, "getaddrinfo", lambda *_, **__: both)

    assert (
        send("https://both.example/").problem == "the host name leads to an address that this server does not send to"
    )


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_to_the_inside_is_not_followed(code: int) -> None:
    with receiver() as inside, receiver(status(code, Location=inside.url)) as outside:
        outcome = send(outside.url, LOOPBACK)

    assert outcome.problem == f"status {code}: redirects are not followed"
    assert (len(outside.messages), inside.messages) == (1, [])


def test_a_proxy_of_the_environment_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as proxy, receiver() as got:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        outcome = send(got.url, LOOPBACK)

    assert (outcome.status, len(got.messages), proxy.messages) == (204, 1, [])


def test_an_allowed_network_is_the_only_one(tmp_path: Path) -> None:
    with receiver() as got:
        url = got.url.replace("127.0.0.1", "127.0.0.2")

        assert send(got.url, parse_networks(("127.0.0.1",))).status == 204
        assert send(url, parse_networks(("127.0.0.1",))).status is None


def test_a_receiver_that_drips_or_floods_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "TIMEOUT_S", 1.0)

    def drip(handler: Any, _: int) -> None:
        for _ in range(100):
            handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            handler.wfile.flush()
            time.sleep(0.05)

    def flood(handler: Any, _: int) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nx: " + b"a" * (1 << 20))

    with receiver(drip) as dripping, receiver(flood) as flooding:
        outcomes = [send(one.url, LOOPBACK) for one in (dripping, flooding)]

    assert [outcome.status for outcome in outcomes] == [None, None]
    assert outcomes[0].problem == "no answer within 1 s"


def test_a_receiver_that_does_not_speak_tls_gets_nothing() -> None:
    with receiver() as got:
        outcome = send(got.url.replace("http:", "https:"), LOOPBACK)

    assert outcome.problem is not None
    assert outcome.problem.startswith("TLS")
    assert got.messages == []
    assert ssl.create_default_context().check_hostname


def send(url: str, allowed: Any = ()) -> outbox.DeliveryOutcome:
    return asyncio.run(outbox.post(url, b"{}", {"webhook-id": "x"}, allowed=allowed))


# ------------------------------------------------------------ forged and repeated messages
def test_a_forged_or_repeated_message_is_refused() -> None:
    secret, body, now = new_secret(), b'{"type":"version.yanked"}', 1_700_000_000.0
    good = signed_headers(secret, "evt_1", body, at=now)
    assert verify_webhook(good, body, secret, now=now + WINDOW_S) == "evt_1"
    assert verify_webhook({k.title(): v for k, v in good.items()}, body, secret, now=now) == "evt_1"
    several = good | {"webhook-signature": "v1,AAAA v2,BBBB " + good["webhook-signature"]}
    assert verify_webhook(several, body, secret, now=now) == "evt_1"
    forged: list[tuple[dict[str, str], bytes, float]] = [
        (good, body + b" ", now),
        (good | {"webhook-id": "evt_2"}, body, now),
        (good | {"webhook-timestamp": str(int(now) + 1)}, body, now),
        (good | {"webhook-signature": "v1,"}, body, now),
        (good | {"webhook-signature": good["webhook-signature"].replace("v1,", "v0,")}, body, now),
        (good | {"webhook-signature": " ".join(["v1,AAAA"] * 1000)}, body, now),
        (good | {"webhook-timestamp": "9" * 500}, body, now),
        (good | {"webhook-timestamp": "١٢٣"}, body, now),
        (good | {"webhook-signature": "v1,é"}, body, now),
        (signed_headers(new_secret(), "evt_1", body, at=now), body, now),
        (good, body, now + WINDOW_S + 1),
        (good, body, now - WINDOW_S - 1),
        *[({name: value for name, value in good.items() if name != left}, body, now) for left in good],
    ]
    for headers, content, at in forged:
        with pytest.raises(NotAllowed):
            verify_webhook(headers, content, secret, now=at)


def test_a_webhook_gets_nothing_that_could_be_taken_for_a_registry_token(server: Running) -> None:
    with receiver() as got:
        server.post(HOOKS, {"scope": "bob", "url": got.url})
        yank(server, "bob/open", "x")
        (message,) = Receiver.wait_for(got, 1)

    assert "authorization" not in message.headers
    assert "adp_" not in str(message.headers) + message.body.decode()


# ------------------------------------------------------------ receivers that let the server wait
def silent_hook(server: Running, scope: str, port: int, as_token: str = "") -> int:
    body = {"scope": scope, "url": f"http://127.0.0.1:{port}/", "types": []}
    made = server.post("/api/adapt/v1/webhooks", body, token=as_token)
    return int(made.json()["webhook"]["id"])


def test_tests_of_a_silent_receiver_hold_no_route_up(server: Running) -> None:
    mallory = token(server, "mallory", "mallory/*")
    with socket.create_server(("127.0.0.1", 0), backlog=512) as silent:
        number = silent_hook(server, "mallory", silent.getsockname()[1], mallory)

        def ask(_: int) -> tuple[int, int]:
            answer = httpx.post(
                f"{server.url}/api/adapt/v1/webhooks/{number}/test",
                headers={"Authorization": f"Bearer {mallory}"},
                timeout=60,
            )
            return answer.status_code, answer.json()["id"]

        start = time.monotonic()
        with ThreadPoolExecutor(80) as pool:
            answers = list(pool.map(ask, range(80)))
        server.get("/api/adapt/v1/healthz").raise_for_status()
        took_s = time.monotonic() - start

        assert {status for status, _ in answers} == {202}
        assert len({delivery for _, delivery in answers}) <= 2  # one at a time waits
        assert took_s < outbox.TIMEOUT_S  # no answer waited for the receiver
        server.send("DELETE", f"/api/adapt/v1/webhooks/{number}", token=mallory)


def test_silent_receivers_of_one_user_leave_room_for_those_of_others(server: Running) -> None:
    mallory, olga = (token(server, name, f"{name}/*") for name in ("mallory2", "olga2"))
    with socket.create_server(("127.0.0.1", 0), backlog=512) as silent, receiver() as got:
        numbers = [silent_hook(server, "mallory2", silent.getsockname()[1], mallory) for _ in range(18)]
        for number in numbers:
            server.post(f"/api/adapt/v1/webhooks/{number}/test", None, token=mallory)
        body = {"scope": "olga2", "url": got.url, "types": []}
        other = server.post("/api/adapt/v1/webhooks", body, token=olga).json()["webhook"]["id"]
        start = time.monotonic()
        server.post(f"/api/adapt/v1/webhooks/{other}/test", None, token=olga)

        got.wait_for(1)

        assert time.monotonic() - start < outbox.TIMEOUT_S
        for number in numbers:
            server.send("DELETE", f"/api/adapt/v1/webhooks/{number}", token=mallory)
