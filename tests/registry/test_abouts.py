"""The line about a namespace: who may write and read it, which texts it takes, and where it goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from adapterhub_registry.access import audit
from adapterhub_registry.access.audit import LogSearch

from tests.registry.running import Running, running, typed

URL = "/api/adapt/v1/namespaces/acme"
SAID = "Adapters for contracts & leases, by <the legal team>"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("abouts"), derives=False) as found:
        for repo, private in (("acme/open", False), ("hidden/secret", True)):
            found.create(repo, private=private)
        found.registry.tokens.create("stranger", "read")
        yield found


def headers(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.fixture
def boss(server: Running) -> dict[str, str]:
    return headers(server.registry.tokens.create("boss", "admin", namespaces=["acme/*"]))


def say(server: Running, text: str, token: dict[str, str], url: str = URL) -> httpx.Response:
    return httpx.put(f"{server.url}{url}", json={"about": text}, headers=token)


def test_an_administrator_says_it_and_every_reader_of_the_namespace_sees_it(server, boss):
    assert say(server, f"  {SAID} ", boss).json() == {"namespace": "acme", "about": SAID}
    assert httpx.get(f"{server.url}{URL}").json()["about"] == SAID
    page = httpx.get(f"{server.url}/acme", headers={"accept": "text/html"}).text
    assert "Adapters for contracts &amp; leases, by &lt;the legal team&gt;" in page

    assert say(server, "", boss).json()["about"] == ""
    assert "legal team" not in httpx.get(f"{server.url}/acme", headers={"accept": "text/html"}).text


def test_each_change_is_in_the_log_and_the_same_text_is_none(server, boss):
    for text in ("One", "Two", "Two", ""):
        say(server, text, boss)
    with server.registry.db.read() as connection:
        found = audit.entries(connection, LogSearch(action="about"), below=1 << 40, limit=3)

    assert [one.subject for one in found] == ["acme: removed", "acme: Two", "acme: One"]
    assert {one.repo for one in found} == {"acme"}


@pytest.mark.parametrize("role", ["read", "write"])
def test_others_may_not_say_it(server, role):
    token = headers(server.registry.tokens.create(f"only-{role}", role, namespaces=["acme/*"]))

    assert say(server, "Mine", token).status_code == 403
    assert say(server, "Mine", {}).status_code == 401
    other = headers(server.registry.tokens.create("elsewhere", "admin", namespaces=["other/*"]))
    assert say(server, "Mine", other).status_code == 403


@pytest.mark.parametrize(
    "text",
    [
        "two\nlines",
        "a\rreturn",
        "a\ttab",
        "nothing\0",
        "turned \u202ekcab",
        "isolated \u2066so",
        "a line \u2028 more",
        "bell \u0007",
        "x" * 201,
    ],
)
def test_a_text_that_is_not_one_visible_line_changes_nothing(server, boss, text):
    say(server, "Before", boss)

    assert 400 <= say(server, text, boss).status_code < 500
    assert httpx.get(f"{server.url}{URL}").json()["about"] == "Before"


def test_200_characters_of_any_script_are_taken(server, boss):
    text = "ä" * 100 + "法" * 100

    assert say(server, text, boss).json()["about"] == text


def test_a_stranger_sees_nothing_of_a_hidden_namespace(server):
    boss = headers(server.registry.tokens.create("keeper", "admin", namespaces=["hidden/*"]))
    hidden = "/api/adapt/v1/namespaces/hidden"
    assert say(server, "Our secret", boss, hidden).status_code == 200
    stranger = headers(server.registry.tokens.create("stranger", "read", namespaces=["acme/*"]))

    assert httpx.get(f"{server.url}{hidden}", headers=boss).json()["about"] == "Our secret"
    for token in (stranger, {}):
        assert httpx.get(f"{server.url}{hidden}", headers=token).json() == {"namespace": "hidden", "about": ""}
        assert httpx.get(f"{server.url}/hidden", headers=token).status_code == 404


def test_the_command_says_it_and_a_copy_of_the_registry_has_it(server, tmp_path: Path):
    here = ("--root", str(server.root))
    done = typed("members", "acme", "--about", "By the command", *here)
    assert (done.exit_code, done.stdout) == (0, "acme: By the command\n")
    assert typed("backup", str(tmp_path / "copy"), *here).exit_code == 0
    assert typed("restore", str(tmp_path / "copy"), "--root", str(tmp_path / "again")).exit_code == 0

    with running(tmp_path / "again", derives=False) as again:
        assert httpx.get(f"{again.url}{URL}").json()["about"] == "By the command"


def test_a_form_of_the_settings_says_it(server):
    from tests.registry.test_people_routes import browser

    server.registry.members.add("acme", "stranger", role="administer")
    with browser(server, "stranger") as client:
        page = client.get("/acme/-/settings")
        token = page.text.partition('name="form_token" value="')[2].partition('"')[0]
        sent = client.post("/acme/-/settings", data={"form_token": token, "do": "about", "about": "By the form"})
        assert sent.status_code == 303
        refused = client.post("/acme/-/settings", data={"form_token": token, "do": "about", "about": "x" * 201})

    assert 'role="alert"' in refused.text
    assert httpx.get(f"{server.url}{URL}").json()["about"] == "By the form"
