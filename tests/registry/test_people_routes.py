"""Members, tokens with scopes, invitations and the log through the API, the commands and the pages."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from adapterhub_registry.access import audit
from adapterhub_registry.access.audit import MACHINE, LogSearch
from adapterhub_registry.access.tokens import cookie_for, open_session
from adapterhub_registry.database.db import now_ms, test_keys
from adapterhub_registry.database.people import records
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from sqlalchemy import insert, select, update

from adapterhub.formats.administration import LogEntry
from tests.registry.matrix.asking import requests
from tests.registry.pushing import Push
from tests.registry.running import Running, running, typed

V1 = "/api/adapt/v1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("people"), derives=False) as found:
        found.registry.tokens.create("owner", "read")
        for repo in ("acme/open", "acme/secret", "other/secret"):
            found.create(repo, **({"private": True} if "secret" in repo else {}))
        found.registry.members.add("acme", "owner", role="administer")
        yield found


@pytest.fixture
def owner(server: Running) -> str:
    """A session's token of the administrator of acme."""
    return own(server, "owner")


def own(server: Running, user: str, *scopes: str, namespaces: tuple[str, ...] = ()) -> str:
    """A token that a user made, with some scopes or all."""
    with server.registry.db.begin() as connection:
        number = open_session(connection, user, lasts_s=600, label="signed in")
    caller = server.registry.tokens.caller_numbered(number)
    assert caller is not None
    wanted = scopes or ("read", "write", "release", "administer")
    return server.registry.tokens.create_own(caller, scopes=wanted, namespaces=namespaces)


def browser(server: Running, user: str) -> httpx.Client:
    """A browser in which a user signed in."""
    with server.registry.db.begin() as connection:
        number = open_session(connection, user, lasts_s=600, label="signed in")
    client = httpx.Client(base_url=server.url, headers={"accept": "text/html"}, timeout=60)
    name = server.app.state.pages.cookies.session
    client.cookies.set(name, cookie_for(number, server.registry.settings.secret, lasts_s=600))
    return client


def submit(client: httpx.Client, page: str, **fields: object) -> httpx.Response:
    form = re.search(r'name="form_token" value="([^"]+)"', client.get(page).raise_for_status().text)
    assert form is not None
    return client.post(page.partition("?")[0], data={"form_token": form[1], **fields})  # type: ignore[dict-item]


def user(server: Running, name: str) -> str:
    server.registry.tokens.create(name, "read")
    return name


# ---------------------------------------------------------------- members
def test_a_member_reads_a_private_repository_from_then_on_and_no_more_after_leaving(
    server: Running, owner: str
) -> None:
    token, place = own(server, user(server, "mia")), f"{V1}/namespaces/acme"
    seen = []

    def look() -> None:
        seen.append(
            [server.get(f"/api/models/{repo}", token=token).status_code for repo in ("acme/secret", "other/secret")]
        )

    look()
    made = server.post(f"{place}/members", {"user": "mia", "role": "read"}, token=owner)
    look()
    assert (made.status_code, made.json()["role"]) == (201, "read")
    listed = server.get("/api/models?author=acme", token=token).json()
    assert sorted(one["id"] for one in listed) == ["acme/open", "acme/secret"]
    assert server.post(f"{place}/members", {"user": "mia", "role": "read"}, token=token).status_code == 403
    gone = server.send("DELETE", f"{place}/members/mia", token=owner)
    look()

    assert gone.json()["memberships"] == 1
    assert seen == [[404, 404], [200, 404], [404, 404]]


def test_only_those_who_administer_a_namespace_see_or_change_who_is_in_it(server: Running, owner: str) -> None:
    user(server, "rob")
    server.registry.members.add("acme", "rob", role="release")
    others = [
        own(server, "rob"),
        own(server, "owner", "read", "write", "release"),
        server.registry.tokens.create("w", "write", namespaces=["acme"]),
        None,
    ]
    place = f"{V1}/namespaces/acme"
    asked: list[tuple[str, str, Any]] = [
        *(("GET", f"{place}/{what}", None) for what in ("members", "teams", "invitations")),
        ("POST", f"{place}/members", {"user": "rob", "role": "administer"}),
        ("POST", f"{place}/teams", {"name": "t", "role": "read"}),
        ("POST", f"{place}/invitations", {"role": "administer"}),
        ("DELETE", f"{place}/members/owner", None),
        ("DELETE", f"{place}/teams/t", None),
        ("DELETE", f"{place}/teams/t/members/owner", None),
        ("DELETE", f"{place}/invitations/1", None),
        ("GET", f"{V1}/log?repo=acme", None),
        ("GET", f"{V1}/log/export?repo=acme", None),
    ]

    for method, path, body in asked:
        found = [server.send(method, path, body, token=token).status_code for token in others]
        assert found == [403, 403, 403, 401], path
        elsewhere = path.replace("acme", "other").replace("/namespaces/acme", "/namespaces/*")
        assert server.send(method, elsewhere, body, token=owner).status_code == 403, elsewhere
    assert server.get(f"{V1}/log", token=owner).status_code == 403


@pytest.mark.parametrize(
    ("scope", "may"),
    [("read", ""), ("write", "commit branch create"), ("release", "tag yank alias"), ("administer", "settings access")],
)
def test_a_token_of_one_scope_does_that_and_nothing_else(server: Running, owner: str, scope: str, may: str) -> None:
    repo = f"acme/scoped-{scope}"
    server.create(repo)
    Push(repo=repo, weights=b"w", version="v1.0.0").run(server.client())
    token = own(server, "owner", scope)
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "file", "value": {"path": "a.txt", "content": "eA==", "encoding": "base64"}},
    ]
    adapter = f"{V1}/adapters/{repo}"
    asked: dict[str, Callable[[httpx.Client], httpx.Response]] = {
        "commit": lambda c: c.post(f"/api/models/{repo}/commit/main", content="\n".join(map(json.dumps, lines))),
        "branch": lambda c: c.post(f"/api/models/{repo}/branch/b", json={}),
        "create": lambda c: c.post("/api/repos/create", json={"organization": "acme", "name": f"new-{scope}"}),
        "tag": lambda c: c.post(f"/api/models/{repo}/tag/main", json={"tag": "v2.0.0"}),
        "alias": lambda c: c.post(f"{adapter}/aliases/prod", json={"targets": [{"version": "1.0.0"}]}),
        "yank": lambda c: c.post(f"{adapter}/yank", json={"version": "1.0.0", "reason": "x"}),
        "settings": lambda c: c.put(f"/api/models/{repo}/settings", json={"gated": "auto"}),
        "access": lambda c: c.post(f"/api/models/{repo}/user-access-request/grant", json={"user": "owner"}),
    }  # fmt: skip

    with server.client(token) as client:
        found = {name: ask(client).status_code for name, ask in asked.items()}

    assert sorted(name for name, status in found.items() if status == 403) == sorted(asked.keys() - set(may.split()))
    assert all(status < 300 for name, status in found.items() if name in may.split()), found
    elsewhere = own(server, "owner", namespaces=("acme/other",))
    with server.client(elsewhere) as client:
        assert {ask(client).status_code for ask in asked.values()} == {403}


# ---------------------------------------------------------------- tokens
def test_a_person_makes_a_token_by_the_api_the_command_and_the_page_and_sees_it_there(
    server: Running, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"scopes": ["release"], "namespaces": ["acme/open"], "label": "by api", "days": 30}
    made = server.post(f"{V1}/tokens", body, token=owner)
    assert (made.status_code, made.json()["user"]) == (201, "owner")
    monkeypatch.setenv("ADAPTERHUB_TOKEN", owner)
    typed_one = typed(
        "token", "create", "--scope", "write", "--namespaces", "acme", "--label", "by command", "--url", server.url
    )
    assert typed_one.exit_code == 0, typed_one.stderr
    with browser(server, "owner") as client:
        shown = submit(
            client,
            "/settings",
            do="create",
            label="by page",
            namespaces="acme/secret",
            days="7",
            **{"scope-read": "on"},
        )
        token = re.search(r"hf_adp_\w{32}_\w{8}", shown.text)
        page = client.get("/settings").text

    assert token is not None
    found = {one["label"]: one for one in server.get(f"{V1}/tokens", token=owner).json()["tokens"]}
    assert [(found[name]["scopes"], found[name]["namespaces"]) for name in ("by api", "by command", "by page")] == [
        (["read", "release"], ["acme/open"]), (["read", "write"], ["acme/*"]), (["read"], ["acme/secret"])
    ]  # fmt: skip
    assert all(name in page for name in ("by api", "by command", "by page"))
    assert token[0] not in page
    assert server.get("/api/models/acme/secret", token=token[0]).status_code == 200
    told = server.get("/api/whoami-v2", token=made.json()["token"]).json()
    assert (told["name"], told["auth"]["accessToken"]) == ("owner", {"displayName": "by api", "role": "write"})
    assert [one["name"] for one in told["orgs"]] == ["acme"]


@pytest.mark.usefixtures("online")
def test_the_hubs_own_client_works_with_the_token_of_a_person(server: Running) -> None:
    writer, reader = (HfApi(endpoint=server.url, token=own(server, "owner", scope)) for scope in ("write", "read"))

    assert writer.whoami()["auth"]["accessToken"]["role"] == "write"
    assert [one["name"] for one in reader.whoami()["orgs"]] == ["acme"]
    writer.create_repo("acme/by-hub", private=True)
    writer.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="acme/by-hub")
    assert "a.txt" in reader.list_repo_files("acme/by-hub")
    for refused in (
        lambda: reader.upload_file(path_or_fileobj=b"y", path_in_repo="b.txt", repo_id="acme/by-hub"),
        lambda: writer.create_tag("acme/by-hub", tag="v1.0.0"),
        lambda: writer.delete_repo("acme/by-hub"),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            refused()
        assert error.value.response.status_code == 403


def test_the_page_revokes_ones_own_token_only(server: Running) -> None:
    mine, theirs = own(server, user(server, "nia")), own(server, "owner")
    number = {name: server.registry.tokens.records(user=name)[-1].id for name in ("nia", "owner")}
    with browser(server, "nia") as client:
        assert "another user" in submit(client, "/settings", do="revoke", number=number["owner"]).text
        submit(client, "/settings", do="revoke", number=number["nia"])

    statuses = [server.get("/api/whoami-v2", token=token).status_code for token in (mine, theirs)]
    assert statuses == [401, 200]


# ---------------------------------------------------------------- invitations
def test_a_link_lets_one_person_in_by_the_page_and_the_api(server: Running, owner: str) -> None:
    place = f"{V1}/namespaces/acme/invitations"
    links = [server.post(place, {"role": "read"}, token=owner).json()["link"] for _ in range(2)]
    with httpx.Client(base_url=server.url, headers={"accept": "text/html"}) as client:
        page = links[0].removeprefix(server.url)
        code = page.partition("=")[2]
        shown = submit(client, page, code=code, user="pia")
        token = re.search(r"hf_adp_\w{32}_\w{8}", shown.text)
        again = client.get(page).text

    assert token is not None
    assert server.get("/api/models/acme/secret", token=token[0]).status_code == 200
    assert "no such invitation" in again
    given = {"code": links[1].partition("=")[2], "user": "quin"}
    done = server.post(f"{V1}/invitations/accept", given, token=None)
    assert (done.status_code, done.json()["user"]) == (200, "quin")
    assert server.post(f"{V1}/invitations/accept", given, token=None).status_code == 404
    listed = server.get(place, token=owner).json()["invitations"]
    assert {one["used_by"] for one in listed} >= {"pia", "quin"}
    assert given["code"] not in json.dumps(listed)


def test_an_address_tries_few_codes(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapterhub_registry.api.members_api.ACCEPTS_A_MINUTE", 3)
    found = [
        server.post(f"{V1}/invitations/accept", {"code": f"inv_{at}", "user": "x"}, token=None).status_code
        for at in range(30)
    ]

    assert 429 in found
    assert found[-1] == 429


# ---------------------------------------------------------------- pages and commands
def test_the_settings_of_a_namespace_do_what_their_forms_say(server: Running) -> None:
    user(server, "tom")
    page = "/acme/-/settings"
    with browser(server, "owner") as client:
        submit(client, page, do="team", team="legal", role="write", repos="legal-*, qa")
        submit(client, page, do="add", user="tom", role="read", days="9")
        submit(client, page, do="add", user="tom", team="legal")
        link = submit(client, page, do="invite", role="read").text
        assert "/join?code=inv_" in link
        submit(client, page, do="rule", asks="contract")
        shown = client.get(page).text
        assert all(
            text in shown for text in ("tom", "legal-*, qa", 'value="contract" selected', "Anyone with the link")
        )
        assert "inv_" not in shown
        assert "the name differs" in submit(client, page, do="remove", user="tom", confirmed="").text
        assert "expected a role or a team" in submit(client, page, do="add", user="tom").text
        submit(client, page, do="leave", user="tom", team="legal")
        submit(client, page, do="remove-team", team="legal")
        assert "tom was removed" in submit(client, page, do="remove", user="tom", confirmed="tom").text
        submit(client, page, do="rule", asks="off")
        trust = {"do": "publisher", "issuer": "https://gitlab.com", "claims": "project_path=acme/training\nref=main"}
        submit(client, page, name="legal-qa", **trust)
        (publisher,) = server.registry.publishers.by(MACHINE, namespace="acme").records()
        assert (publisher.repo, publisher.pins) == ("acme/legal-qa", "project_path=acme/training ref=main")
        assert "expected NAME=VALUE" in submit(client, page, name="qa", **trust | {"claims": "ref"}).text
        assert (
            "no publisher is of the issuer"
            in submit(client, page, name="qa", **trust | {"issuer": "https://ci.example"}).text
        )
        submit(client, page, do="end-publisher", number=str(publisher.id))
        assert server.registry.publishers.by(MACHINE, namespace="acme").records() == []
        log = client.get("/acme/-/log?action=member").text
        assert "tom: read in acme until" in log
        assert client.get("/acme/-/log?since=yesterday").status_code == 200
        assert client.get("/other/-/settings").status_code == client.get("/other/-/log").status_code == 403
        assert client.get("/admin-members").status_code == client.get("/admin-log").status_code == 403
        assert client.get("/acme/-/log?repo=other").text.count("other/secret") == 0
    assert server.registry.members.of("tom") == []


def test_the_command_shows_and_changes_members_teams_and_invitations(server: Running) -> None:
    user(server, "uma")
    here = ("--root", server.root)

    def rows(*words: object) -> Any:
        done = typed("members", *words, *here, "--json")
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    assert rows("acme", "--team", "ops", "--role", "release", "--repos", "ops-*,qa")[0]["repos"] == "ops-*,qa"
    assert rows("acme", "--add", "uma", "--role", "write", "--days", 3)[0]["expires"] is not None
    assert rows("acme", "--add", "uma", "--team", "ops")[0]["role"] == "release"
    invited = rows("acme", "--invite", "--team", "ops", "--add", "uma", "--days", 2)
    assert invited["link"].startswith("http")
    assert [one["role"] for one in rows("acme") if one["user"] == "uma"] == ["write", "release"]
    assert [(one["name"], one["members"]) for one in rows("acme", "--list", "teams")] == [("ops", 1)]
    assert rows("acme", "--list", "invitations")[0]["user"] == "uma"
    assert rows("acme", "--withdraw", invited["id"])[0]["id"] == invited["id"]
    assert rows("acme", "--remove", "uma", "--team", "ops")[0]["team"] == "ops"
    assert rows("acme", "--team", "ops", "--role", "none")[0]["name"] == "ops"
    assert rows("*", "--remove", "uma")[0]["memberships"] == 1
    assert typed("members", "acme", "--role", "read", *here).exit_code == 2
    assert typed("members", "acme", "--add", "uma", "--role", "read", *here).exit_code == 10


# ---------------------------------------------------------------- the log
def test_the_log_holds_who_what_where_when_and_from_which_address_and_one_searches_it(
    server: Running, owner: str
) -> None:
    server.post("/api/repos/create", {"organization": "acme", "name": "logged"}, token=owner).raise_for_status()
    server.send("PUT", "/api/models/acme/logged/settings", {"gated": "auto"}, token=owner).raise_for_status()
    begin = server.get(f"{V1}/log?order=newest&limit=2", token="").json()["entries"]
    at = begin[1]["created_at"]
    find = {
        "repo=acme/logged": ["create", "settings"],
        "repo=acme/logged&action=settings": ["settings"],
        f"repo=acme&user=owner&since={at}": ["create", "settings"],
        "repo=acme/logged&address=127.0.0.1": ["create", "settings"],
        "repo=acme/logged&address=10.0.0.1": [],
        f"repo=acme/logged&until={at}": ["create"],
        "repo=acme/logged&until=2020-01-01T00:00:00Z": [],
    }

    for query, actions in find.items():
        found = server.get(f"{V1}/log?{query}", token=owner).json()["entries"]
        assert [one["action"] for one in found] == actions, query
    assert begin[0]["actor"].startswith("owner (token ")
    assert server.get(f"{V1}/log?since=x", token="").status_code == 400
    exported = server.get(f"{V1}/log/export?repo=acme/logged", token=owner)
    assert [json.loads(line)["action"] for line in exported.text.splitlines()] == ["create", "settings"]


def test_each_entry_is_sealed_with_the_one_before_and_the_command_finds_one_that_was_changed(server: Running) -> None:
    found = typed("token", "log", "--lines", "--root", server.root)
    assert found.exit_code == 0, found.stderr
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    with server.registry.db.read() as connection:
        entries = audit.entries(connection, LogSearch())
    assert [entry.to_json() for entry in entries] == lines
    assert all(two.seal == two.seal_after(one.seal) for one, two in itertools.pairwise(entries))
    assert entries[0].seal == entries[0].seal_after("")
    middle = entries[len(entries) // 2]
    change = update(records).where(records.c.position == middle.number)
    try:
        with server.registry.db.begin() as connection:
            connection.execute(change.values(subject="something else"))
        spoilt = typed("token", "log", "--lines", "--root", server.root)
    finally:
        with server.registry.db.begin() as connection:
            connection.execute(change.values(subject=middle.subject))

    assert spoilt.exit_code == 12
    assert f"entry {middle.number}" in spoilt.stderr


def test_the_log_keeps_its_end_and_the_chain_over_what_is_old(server: Running) -> None:
    db = server.registry.db
    with db.read() as connection:
        before = audit.entries(connection, LogSearch())
    audit.prune(db, 0)
    audit.prune(db, 1)
    with db.read() as connection:
        assert audit.entries(connection, LogSearch()) == before
    with db.begin() as connection:
        old = now_ms() - 3 * audit.DAY_MS
        connection.execute(update(records).where(records.c.position <= before[4].number).values(created_at=old))
    audit.prune(db, 2)
    with db.read() as connection:
        rest = audit.entries(connection, LogSearch())

    assert rest == before[5:]
    assert rest[0].seal == rest[0].seal_after(before[4].seal)


def test_entries_of_an_earlier_version_get_their_place_with_the_next(server: Running) -> None:
    with server.registry.db.begin() as connection:
        connection.execute(insert(records).values(created_at=now_ms(), actor="old", action="create", subject="of old"))
    server.registry.tokens.create("old", "read")

    with server.registry.db.read() as connection:
        two = audit.entries(connection, LogSearch(), below=0, limit=2)
    assert [one.actor for one in reversed(two)] == ["old", "a command on the server's machine"]
    assert isinstance(two[0], LogEntry)
    assert two[0].seal == two[0].seal_after(two[1].seal)


def test_every_change_of_a_route_leaves_an_entry_with_its_sender(server: Running) -> None:
    repo = "acme/told"
    with server.client() as client:
        server.create(repo)
        Push(repo=repo, weights=b"t", version="v1.0.0").run(client)
        adapter = f"{V1}/adapters/{repo}"
        for path, body in (
            (f"{adapter}/aliases/prod", {"targets": [{"version": "1.0.0"}]}),
            (f"{adapter}/aliases/prod/retention", {"newest": 3, "grace_days": 1}),
            (f"{adapter}/aliases/prod/remove", {}),
            (f"{adapter}/yank", {"version": "1.0.0", "reason": "bad"}),
            (f"{adapter}/unyank", {"version": "1.0.0"}),
            (f"{V1}/webhooks", {"scope": repo, "url": "https://hooks.example.org/x"}),
            ("/api/repos/move", {"fromRepo": repo, "toRepo": "acme/told-2"}),
        ):
            client.post(path, json=body).raise_for_status()
        client.request("DELETE", "/api/models/acme/told-2/tag/v1.0.0").raise_for_status()
        server.remove("acme/told-2")
    with server.registry.db.read() as connection:
        found = [
            *audit.entries(connection, LogSearch(repo=repo)),
            *audit.entries(connection, LogSearch(repo="acme/told-2")),
        ]

    assert [one.action for one in found] == [
        "create", "release", "alias", "alias", "alias", "yank", "yank", "webhook", "move", "release", "delete"
    ]  # fmt: skip
    assert {one.user for one in found} == {"ann"}
    assert {one.address for one in found} == {"127.0.0.1"}


# ---------------------------------------------------------------- removal
def test_a_removed_person_gets_from_every_route_what_a_stranger_gets(server: Running) -> None:
    user(server, "zoe")
    server.registry.members.add("acme", "zoe", role="administer")
    token, granted = own(server, "zoe"), server.registry.tokens.create("zoe", "write", namespaces=["acme"])
    with server.registry.db.begin() as connection:
        row = {"namespace": "acme", "fingerprint": "f" * 64, "name": "zoe", "pem": "x", "created_at": 1, "owner": "zoe"}
        connection.execute(insert(test_keys).values(row))
    digests = {
        "WEIGHTS": "a" * 64,
        "OTHER WEIGHTS": "b" * 64,
        "BASE": "c" * 64,
        "BUILD": f"sha256:{'d' * 64}",
        "SIZE": "3",
    }
    # one of each route, in the private repository where it names one
    every = [
        one for one in requests(server.app, digests) if one.method in {"GET", "HEAD"} and one.route != "/join"
    ]  # which counts tries
    in_order = sorted(every, key=lambda one: "acme/secret" in one.path)
    asked = list({one.route: one for one in in_order}.values())
    unknown = f"hf_adp_{'a' * 32}_{'0' * 8}"

    def ask(**about: Any) -> list[int]:
        with httpx.Client(base_url=server.url, timeout=60, **about) as client:
            return [client.request(one.method, one.path).status_code for one in asked]

    def bearer(text: str) -> dict[str, Any]:
        return {"headers": {"Authorization": f"Bearer {text}", "accept": "application/json"}}

    with browser(server, "zoe") as signed_in:
        jar = dict(signed_in.cookies)
        pages = {"headers": {"accept": "text/html"}}
        before = [ask(**bearer(token)), ask(**bearer(granted)), ask(**pages, cookies=jar)]
        gone = server.send("DELETE", f"{V1}/namespaces/*/members/zoe")
        after = [ask(**bearer(token)), ask(**bearer(granted)), ask(**pages, cookies=jar)]

    stranger, nobody = ask(**bearer(unknown)), ask(**pages)
    assert gone.status_code == 200, gone.text
    assert (gone.json()["keys"], len(gone.json()["tokens"])) == (["zoe"], 5)
    assert after == [stranger, stranger, nobody]
    assert all(one != two for one, two in zip(before, after, strict=True))
    assert before[0].count(200) > stranger.count(200)
    with server.registry.db.read() as connection:
        assert connection.scalars(select(test_keys.c.name).where(test_keys.c.owner == "zoe")).all() == []
