"""Webhooks: each change reaches its receiver, signed, at least once, also after a failure and a kill."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from adapterhub_registry import outbox
from adapterhub_registry.database.db import Database
from adapterhub_registry.operations.commands import registry
from adapterhub_registry.outbox import claim
from adapterhub_registry.settings import ServerLimits, parse_networks
from click.testing import CliRunner
from sqlalchemy import text

from adapterhub.core.errors import NotFound, RemoteUnreachable
from adapterhub.core.webhooks import verify_webhook
from tests.registry.conftest import ROOT
from tests.registry.receiver import Receiver, receiver, status
from tests.registry.running import Running, running
from tests.registry.shared_servers import Postgres

LOOPBACK = parse_networks(("127.0.0.0/8",))
QUICK = ServerLimits(webhook_retry_s=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("registry"), webhook_networks=LOOPBACK, limits=QUICK) as server:
        yield server


def hook(server: Running, scope: str, url: str, **more: Any) -> dict[str, Any]:
    answer = server.post("/api/adapt/v1/webhooks", {"scope": scope, "url": url, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()


def deliveries(server: Running, made: dict[str, Any]) -> list[dict[str, Any]]:
    return server.get(f"/api/adapt/v1/webhooks/{made['webhook']['id']}/deliveries").json()["deliveries"]


def settled(server: Running, made: dict[str, Any], *, within_s: float = 60) -> list[dict[str, Any]]:
    """The deliveries when none waits any more."""
    end = time.monotonic() + within_s
    while True:
        found = deliveries(server, made)
        if found and all(one["state"] != "waiting" for one in found):
            return found
        assert time.monotonic() < end, found
        time.sleep(0.05)


def test_each_change_of_a_repository_reaches_its_webhook_signed_and_in_order(server: Running) -> None:
    with receiver() as got:
        made = hook(server, "acme", got.url)
        server.push("acme/legal-qa", b"w")
        about = {"version": "1.0.0", "reason": "wrong answers"}
        assert server.post("/api/adapt/v1/adapters/acme/legal-qa/yank", about).status_code == 200
        server.post("/api/adapt/v1/adapters/acme/legal-qa/unyank", {"version": "1.0.0"})
        server.send("DELETE", "/api/models/acme/legal-qa/tag/v1.0.0")
        server.post("/api/repos/move", {"fromRepo": "acme/legal-qa", "toRepo": "acme/law"})
        server.remove("acme/law")
        messages = got.wait_for(6)

    events = [message.event for message in messages]
    assert [event["type"] for event in events] == [
        *("version.published", "version.yanked", "version.unyanked", "version.deleted"),
        *("repository.moved", "repository.deleted"),
    ]
    assert [event["number"] for event in events] == sorted({event["number"] for event in events})
    assert events[0]["data"].keys() == {"repo", "name", "version", "digest"}
    assert events[1]["data"] | {"digest": ""} == about | {
        "repo": "acme/legal-qa",
        "name": "legal-qa",
        "by": "ann",
        "digest": "",
    }
    assert events[4]["data"] == {"repo": "acme/legal-qa", "to": "acme/law"}
    assert events[5]["data"] == {"repo": "acme/law"}
    for message, event in zip(messages, events, strict=True):
        assert message.is_signed_with(made["secret"])
        assert verify_webhook(message.headers, message.body, made["secret"]) == event["id"]
        assert message.headers["webhook-id"] == event["id"]


def test_a_webhook_of_a_repository_gets_the_types_that_it_chose_and_follows_a_rename(server: Running) -> None:
    with receiver() as got:
        made = hook(server, "pick/one", got.url, types=["version.yanked"])
        server.push("pick/one", b"w")
        server.push("pick/two", b"w")
        server.post("/api/repos/move", {"fromRepo": "pick/one", "toRepo": "pick/three"})
        for name in ("two", "three"):
            server.yank(f"pick/{name}", name)
        got.wait_for(1)
        found = settled(server, made)

    assert [(one["type"], one["repo"]) for one in found] == [("version.yanked", "pick/three")]
    assert [message.event["data"]["reason"] for message in got.messages] == ["three"]


def test_a_failed_delivery_is_repeated_with_the_same_id_until_it_is_accepted(server: Running) -> None:
    def respond(handler: BaseHTTPRequestHandler, number: int) -> None:
        status(500 if number < 1 else 200)(handler, number)

    with receiver(respond) as got:
        made = hook(server, "again", got.url)
        server.push("again/x", b"w")
        messages = got.wait_for(2)
        (done,) = settled(server, made)

    assert (done["state"], done["attempts"], done["status"]) == ("delivered", 2, 200)
    assert len({message.headers["webhook-id"] for message in messages}) == 1
    assert len({message.body for message in messages}) == 1
    assert all(message.is_signed_with(made["secret"]) for message in messages)


def test_gone_ends_the_repeats(server: Running) -> None:
    with receiver(status(410)) as got:
        made = hook(server, "gone", got.url)
        server.push("gone/x", b"w")
        (done,) = settled(server, made)

    assert (done["state"], done["attempts"], done["problem"]) == ("failed", 1, "status 410")


def test_a_receiver_that_hangs_holds_up_no_other(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "TIMEOUT_S", 300.0)
    over = threading.Event()
    with receiver(lambda *_: over.wait(200)) as slow, receiver() as quick:
        hook(server, "slow", slow.url)
        hook(server, "quick", quick.url)
        server.push("slow/x", b"w")
        slow.wait_for(1)
        server.push("quick/x", b"w")
        quick.wait_for(1)
        over.set()

        assert len(slow.messages) == 1


def test_a_receiver_that_is_away_rests_as_a_whole(server: Running) -> None:
    with socket.socket() as away:
        away.bind(("127.0.0.1", 0))  # it does not listen, and no other server gets its port meanwhile
        made = hook(server, "away", f"http://127.0.0.1:{away.getsockname()[1]}/hook")
        server.push("away/x", b"w")
        for reason in ("a", "b", "c"):
            server.yank("away/x", reason)
        end = time.monotonic() + 60
        found = deliveries(server, made)
        while not any(one["problem"] for one in found):
            assert time.monotonic() < end
            time.sleep(0.05)
            found = deliveries(server, made)

    assert {one["problem"] for one in found} - {None} == {"could not connect"}  # None: the attempt still runs, or waits
    assert sum(one["attempts"] for one in found) < len(found)


def test_a_test_event_says_how_the_receiver_answers(server: Running) -> None:
    with receiver(status(418)) as got:
        made = hook(server, "probe", got.url)
        path = f"/api/adapt/v1/webhooks/{made['webhook']['id']}/test"
        asked = server.post(path, None)
        (refused,) = settled(server, made)
        got.respond = None
        server.post(path, None)
        taken, before = settled(server, made)

    assert (asked.status_code, asked.json()["state"], asked.json()["id"]) == (202, "waiting", refused["id"])
    assert asked.headers["location"] == f"/api/adapt/v1/webhooks/{made['webhook']['id']}/deliveries"
    assert before == refused
    assert (refused["state"], refused["status"], refused["problem"]) == ("failed", 418, "status 418")
    assert (taken["state"], taken["type"], taken["status"]) == ("delivered", "webhook.test", 204)
    assert all(message.is_signed_with(made["secret"]) for message in got.messages)


def test_a_namespace_has_a_bounded_number_of_webhooks(tmp_path: Path) -> None:
    with running(tmp_path, limits=ServerLimits(namespace_webhooks=2)) as server:
        body = {"scope": "acme", "url": "https://hooks.example.org/"}
        answers = [
            server.post("/api/adapt/v1/webhooks", body | {"scope": scope})
            for scope in ("acme", "acme/x", "acme/y", "b")
        ]
        server.send("DELETE", f"/api/adapt/v1/webhooks/{answers[0].json()['webhook']['id']}")
        again = server.post("/api/adapt/v1/webhooks", body)

    assert [answer.status_code for answer in answers] == [201, 201, 409, 201]
    assert "`acme` has 2 webhooks" in answers[2].json()["error"]
    assert again.status_code == 201
    assert again.json()["webhook"]["id"] > 3


def test_an_owner_manages_webhooks_from_afar_and_the_operator_on_the_machine(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = server.registry.tokens.create("olga", "write", namespaces=["olga/*"])
    monkeypatch.setenv("ADAPTERHUB_TOKEN", owner)
    there = ("--url", server.url)
    here = ("--root", server.root)
    with receiver() as got:
        made = webhook("add", "olga", got.url, "--type", "version.yanked", *there)
        local = webhook("add", "olga/x", got.url, *here)
        tested = webhook("test", made["id"], *there)
        got.respond = status(500)
        refused = CliRunner().invoke(registry, ["webhook", "test", str(local["id"]), *map(str, here), "--json"])
    listed = webhook("list", *there)
    shown = webhook("deliveries", made["id"], *there)
    foreign = CliRunner().invoke(registry, ["webhook", "add", "ann", "https://hooks.example.org", *there])
    gone = webhook("remove", made["id"], *there)

    assert made["secret"].startswith("whsec_")
    assert (tested["state"], [one["id"] for one in shown]) == ("delivered", [tested["id"]])
    assert all(message.is_signed_with(made["secret"]) for message in got.messages[:1])
    assert isinstance(refused.exception, RemoteUnreachable)
    assert "status 500" in str(refused.exception)
    assert [(one["scope"], one["owner"], one["types"]) for one in listed] == [
        ("olga", "olga", "version.yanked"), ("olga/x", None, "")
    ]  # fmt: skip
    assert isinstance(foreign.exception, NotFound)
    assert (gone["id"], [one["id"] for one in webhook("list", *there)]) == (made["id"], [local["id"]])


def webhook(*words: object) -> Any:
    """What `adapt registry webhook … --json` prints."""
    done = CliRunner().invoke(registry, ["webhook", *map(str, words), "--json"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return json.loads(done.stdout)


BAD = [
    ({"scope": "acme/x/y"}, 422, "scope"),
    ({"scope": "../x"}, 404, "expected a namespace"),
    ({"types": ["nothing"]}, 422, "types"),
    ({"url": "ftp://example.org"}, 422, "url"),
    ({"url": "https://user:pass@example.org"}, 422, "url"),
    ({"url": "https://example.org/#x"}, 422, "url"),
    ({"url": "https://example.org:99999/"}, 422, "url"),
    ({"url": "http://example.org"}, 403, "expected https"),
    ({"url": "https://127.0.0.1/"}, 403, "public addresses"),
    ({"url": "https://[::1]/"}, 403, "public addresses"),
    ({"url": "https://[::1:x/"}, 422, "url"),
    ({"url": "https://[1.2]/"}, 403, "webhook URL"),
    ({"url": "http://[::ffff:169.254.169.254]/"}, 403, "public addresses"),
]


def test_a_wrong_webhook_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        fine = {"scope": "acme", "url": "https://hooks.example.org/"}
        for wrong, code, words in BAD:
            answer = server.post("/api/adapt/v1/webhooks", fine | wrong)
            assert (answer.status_code, words in answer.text) == (code, True), (wrong, answer.text)
        assert server.get("/api/adapt/v1/webhooks").json() == {"webhooks": []}


@pytest.mark.slow
def test_a_registry_killed_between_the_change_and_its_delivery_still_delivers(tmp_path: Path) -> None:
    with receiver() as got, running(tmp_path, webhook_networks=LOOPBACK) as server:
        got.respond = lambda *_: time.sleep(30)
        hook(server, "acme", got.url)
        url = server.registry.settings.database
    # the change commits in a process that dies before any server sees it
    script = f"""
import os, signal
from adapterhub_registry.app import open_registry
from adapterhub_registry.settings import load_settings
from adapterhub_registry.access.callers import Caller
from adapterhub_registry.names import parse_repo_id
from adapterhub_registry import outbox
import pathlib
registry = open_registry(load_settings(pathlib.Path({str(tmp_path)!r})))
me = Caller(user="ann", role="admin", namespaces=("*",))
with registry.db.begin() as connection:
    repo = registry.repos.create(connection, me, parse_repo_id("acme", "x"), private=False)
    outbox.record(connection, repo, "version.yanked", version="1.0.0")
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "registry")])}
    died = subprocess.run([sys.executable, "-c", script], env=environment, check=False, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    # and a server claims it, and dies before it notes the result
    database = Database(url)
    (claimed,) = claim(database, 1)
    with database.begin() as connection:
        connection.execute(text("UPDATE deliveries SET due_at = 0"))  # a minute later
    database.close()

    with receiver() as again:
        port_of_hook(tmp_path, again)
        with running(tmp_path, webhook_networks=LOOPBACK):
            (message,) = again.wait_for(1)

    assert message.headers["webhook-id"] == claimed.event
    assert message.event["type"] == "version.yanked"


def port_of_hook(root: Path, got: Receiver) -> None:
    database = Database(f"sqlite:///{root / 'registry.db'}")
    with database.begin() as connection:
        connection.execute(text("UPDATE webhooks SET url = :url"), {"url": got.url})
    database.close()


@pytest.mark.slow
def test_servers_of_one_database_deliver_each_event_once(tmp_path: Path, pg: Postgres) -> None:
    shared = {"database_url": pg.new_registry(), "webhook_networks": LOOPBACK, "limits": QUICK}
    with running(tmp_path, **shared) as first, running(tmp_path, **shared), receiver() as got:
        made = hook(first, "acme", got.url)
        first.push("acme/x", b"w")
        for number in range(5):
            first.yank("acme/x", str(number))
        settled(first, made)

    assert sorted(message.event["data"].get("reason", "") for message in got.messages) == ["", *"01234"]
    assert len({message.event["number"] for message in got.messages}) == 6
