"""People sign in at an issuer: who they become, what their groups may do, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from adapterhub_registry.access.accounts import held_by
from adapterhub_registry.access.members import Held, Members
from adapterhub_registry.access.oidc import read_rules
from adapterhub_registry.operations.far import FarAccounts

from adapterhub.core.errors import Conflict, NotAllowed, NotFound, UsageProblem
from tests.registry.people import ANA, People, people
from tests.registry.running import typed

numbers = count(1)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    with people(tmp_path_factory.mktemp("people")) as team:
        team.server.create("law/briefs", private=True)
        team.server.create("acme/plans", private=True)
        yield team


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIGN_INS_A_MINUTE", "CODES_A_MINUTE"):
        monkeypatch.setattr(f"adapterhub_registry.pages.signing_in.{name}", 100_000)


@pytest.fixture
def far(team: People) -> FarAccounts:
    return FarAccounts(team.server.url, team.server.token)


def roles(*groups: str) -> dict[str, Any]:
    return {"realm_access": {"roles": list(groups)}}


def newcomer() -> dict[str, Any]:
    """The claims of a person who was never here."""
    number = next(numbers)
    return {"sub": f"s-{number}", "preferred_username": f"new{number}"}


# ------------------------------------------------------------ who signs in
def test_a_person_signs_in_and_returns_to_the_page(team: People) -> None:
    team.issuer.person = ANA
    browser = team.browser()

    answer = browser.sign_in("/acme/plans?x=1")

    assert 'href="/acme/plans?x=1"' in answer.text
    assert browser.name == "ana"
    assert browser.get("/acme/plans").status_code == 200
    assert browser.get("/law/briefs").status_code == 404
    assert browser.get("/admin").status_code == 403


def test_the_first_administrator_may_come_by_a_group(team: People) -> None:
    browser = team.signed_in(**newcomer(), **roles("bosses"))

    assert browser.get("/admin").status_code == 200


def test_each_group_gives_its_own_role_in_its_own_namespace(team: People) -> None:
    told = newcomer()
    browser = team.signed_in(**told, **roles("ml-team", "lawyers", "unknown"))
    token = approved(team, browser)

    held = team.server.registry.members.of(told["preferred_username"])
    named = {"organization": "law", "name": "mine"}
    assert browser.get("/law/briefs").status_code == 200
    assert [(one.namespace, one.role, one.source) for one in held] == [
        ("acme", "release", "sign-in"),
        ("law", "read", "sign-in"),
    ]
    assert team.account(told["preferred_username"])["groups"] == ["ml-team", "lawyers", "unknown"]
    assert team.server.post("/api/repos/create", named, token=token).status_code == 403
    assert team.server.post("/api/models/law/briefs/branch/x", {}, token=token).status_code == 403
    assert team.server.post("/api/models/acme/plans/branch/x", {}, token=token).status_code == 200


def test_a_group_may_put_people_into_a_team(team: People) -> None:
    team.server.registry.members.put_team("law", "review", role="read", repos=["briefs"])
    told = newcomer()

    browser = team.signed_in(**told, **roles("reviewers"))

    (held,) = team.server.registry.members.of(told["preferred_username"])
    assert (held.namespace, held.team) == ("law", "review")
    assert browser.get("/law/briefs").status_code == 200
    assert browser.get("/acme/plans").status_code == 404


def test_groups_give_the_highest_role_in_each_namespace() -> None:
    writes = Held(namespace="acme", role="write")
    reads = Held(namespace="acme", role="read")
    inside = Held(namespace="acme", team="ml")
    everyone = (Held(namespace="open", role="read"),)
    granted = {"w": (writes,), "r": (reads, inside)}

    assert set(held_by(["r", "w", "w", "x"], granted, everyone)) == {writes, inside, *everyone}
    assert held_by(["w", "r"], granted) == (writes, inside)
    assert held_by(["x"], granted) == ()


def test_a_person_without_a_group_is_nobody_here(team: People) -> None:
    told = newcomer()

    why = team.refused(**told, **roles("others"))

    assert "none of your groups" in why
    assert told["preferred_username"] not in team.server.get("/api/adapt/v1/users").text


def test_a_person_keeps_the_user_whatever_the_issuer_calls_them_later(team: People) -> None:
    told = newcomer()
    team.signed_in(**told)

    again = team.signed_in(**told | {"preferred_username": "renamed"})

    assert again.name == told["preferred_username"]


# ------------------------------------------------------------ what changes with the groups
def test_the_next_sign_in_takes_what_a_group_gave_from_sessions_and_tokens(team: People) -> None:
    told = newcomer()
    before = team.signed_in(**told, **roles("bosses"))
    token = approved(team, before, scopes=["administer"])
    was_admin = [before.get("/admin").status_code, team.server.get("/api/adapt/v1/users", token=token).status_code]

    team.signed_in(**told, **roles("lawyers"))

    assert was_admin == [200, 200]
    assert before.get("/admin").status_code == 403
    assert team.server.get("/api/adapt/v1/users", token=token).status_code == 403
    assert team.server.get("/api/models/law/briefs", token=token).status_code == 200
    assert team.server.get("/api/models/acme/plans", token=token).status_code == 404


def test_a_person_who_left_all_groups_loses_sessions_and_tokens(team: People) -> None:
    told = newcomer()
    before = team.signed_in(**told)
    token = approved(team, before)
    worked = team.server.get("/api/whoami-v2", token=token).status_code

    assert "none of your groups" in team.refused(**told, **roles())

    assert (worked, team.server.get("/api/whoami-v2", token=token).status_code) == (200, 401)
    assert before.name is None
    assert team.server.registry.members.of(told["preferred_username"]) == []


def test_an_administrator_ends_what_a_person_has_until_the_next_sign_in(team: People) -> None:
    told = newcomer()
    before = team.signed_in(**told)
    token = approved(team, before)

    typed("token", "revoke", "--user", told["preferred_username"], "--root", team.server.root)

    assert (before.name, team.server.get("/api/whoami-v2", token=token).status_code) == (None, 401)
    assert team.signed_in(**told).name == told["preferred_username"]


def test_a_removed_user_loses_all_and_gets_nothing_until_readmitted(team: People, far: FarAccounts) -> None:
    told = newcomer()
    user = told["preferred_username"]
    before = team.signed_in(**told)
    token = approved(team, before)
    made = team.server.registry.tokens.create(user, "read")
    waiting = started(team)
    before.post("/sign-in/device", code=waiting["user_code"], do="approve")

    team.server.registry.members.remove("*", user)

    assert before.name is None
    assert {team.server.get("/api/whoami-v2", token=one).status_code for one in (token, made)} == {401}
    assert polled(team, waiting["device_code"])[1]["error"] == "access_denied"
    assert "was removed" in team.refused(**told)
    assert team.account(user)["removed_at"] is not None
    assert far.readmit(user).removed_at is None
    assert team.server.get("/api/whoami-v2", token=token).status_code == 401
    assert team.signed_in(**told).name == user


def test_the_log_names_the_session_and_who_it_is_at_the_issuer(team: People) -> None:
    told = newcomer()
    browser = team.signed_in(**told)
    browser.post("/sign-out", page="/")
    refused, local = newcomer() | {"realm_access": {"roles": ["nobodies"]}}, f"local{next(numbers)}"
    team.refused(**refused)
    token = team.server.registry.tokens.create(local, "read")
    visitor = team.browser()
    mistyped = "hf_adp_mistyped"
    visitor.post("/sign-in", token=mistyped)
    visitor.post("/sign-in", token=token)
    visitor.post("/sign-out", page="/")

    entries = team.server.get("/api/adapt/v1/log?limit=1000").json()["entries"]

    subjects = [one["subject"] for one in entries if told["sub"] in one["subject"]]
    assert subjects[0] == f"account {told['preferred_username']}: {team.issuer.url} {told['sub']}"
    assert subjects[1].endswith(f", as {team.issuer.url} {told['sub']}")
    words = ("sign-in", "sign-out")
    mine = [one for one in entries if one["action"] in words][-6:]
    assert [one["action"] for one in mine] == ["sign-in", "sign-out", "sign-in", "sign-in", "sign-in", "sign-out"]
    assert [one["user"] for one in mine] == [told["preferred_username"]] * 2 + [None] * 2 + [local] * 2
    assert [one["subject"].startswith("refused: ") for one in mine] == [False, False, True, True, False, False]
    assert {one["address"] for one in mine} == {"127.0.0.1"}
    assert not [one for one in entries if "mistyped" in str(one) or token in str(one)]
    exported = team.server.get("/api/adapt/v1/log/export?action=sign-in")
    assert f'"user":"{local}"' in exported.text


def test_an_account_that_is_removed_during_a_sign_in_opens_nothing(
    team: People, far: FarAccounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, whole = newcomer(), Members.set_from
    team.signed_in(**told)
    name = told["preferred_username"]

    def removed_first(members: Members, user: str, source: str, held: Any) -> None:
        monkeypatch.setattr(Members, "set_from", whole)
        far.unlink(name)
        whole(members, user, source, held)

    monkeypatch.setattr(Members, "set_from", removed_first)

    assert "was removed just now" in team.refused(**told)
    assert team.server.registry.members.of(name) == []


# ------------------------------------------------------------ signing out
def test_signing_out_ends_the_session_here_and_leads_to_the_issuer(team: People) -> None:
    browser = team.signed_in(**newcomer())
    copied = dict(browser.client.cookies)

    answer = browser.post("/sign-out", page="/")

    assert f"{team.issuer.url}/end_session?client_id=registry&amp;post_logout_redirect_uri=" in answer.text
    other = team.browser()
    other.client.cookies.update(copied)
    assert (browser.name, other.name) == (None, None)


def test_who_signed_in_by_a_token_stays_here_on_signing_out(team: People) -> None:
    browser = team.browser()
    browser.post("/sign-in", token=team.server.registry.tokens.create("local", "read"))

    answer = browser.post("/sign-out", page="/")

    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_an_issuer_without_a_place_to_sign_out_is_left_alone(tmp_path: Path) -> None:
    with people(tmp_path) as team:
        team.issuer.about = {
            "end_session_endpoint": None,
            "token_endpoint_auth_methods_supported": ["client_secret_post"],
        }
        browser = team.signed_in()

        answer = browser.post("/sign-out", page="/")

        assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_a_public_client_needs_no_secret(tmp_path: Path) -> None:
    rules = "\n".join(line for line in RULES_OF_ALL.splitlines() if "secret" not in line)
    with people(tmp_path, rules, secret=None) as team:
        browser = team.signed_in(**roles())

        assert browser.name == "ana"
        assert [one.role for one in team.server.registry.members.of("ana")] == ["read"]


RULES_OF_ALL = """
issuer = "{issuer}"
client-id = "registry"
client-secret-file = "client-secret"
[everyone]
role = "read"
namespaces = ["*"]
"""


# ------------------------------------------------------------ programs that wait
def started(team: People, **more: Any) -> dict[str, Any]:
    answer = team.server.post("/api/adapt/v1/device", {"client": "adapt on desk", **more}, token=None)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def polled(team: People, device_code: str) -> tuple[int, dict[str, Any]]:
    answer = team.server.post("/api/adapt/v1/device/token", {"device_code": device_code}, token=None)
    return answer.status_code, answer.json()


def approved(team: People, browser: Any, **more: Any) -> str:
    """The token of a program that the person of a browser approved."""
    codes = started(team, **more)
    assert "Approved" in browser.post("/sign-in/device", code=codes["user_code"], do="approve").text
    status, given = polled(team, codes["device_code"])
    assert status == 200, given
    return str(given["access_token"])


def test_a_program_gets_a_token_of_the_person_who_approves(team: People) -> None:
    browser = team.signed_in(**newcomer())
    codes = started(team, days=7)
    waiting = polled(team, codes["device_code"])
    page = browser.post("/sign-in/device", code=codes["user_code"].lower().replace("-", " "), do="look").text
    browser.post("/sign-in/device", code=codes["user_code"], do="approve")

    status, given = polled(team, codes["device_code"])

    assert (waiting[0], waiting[1]["error"]) == (400, "authorization_pending")
    wanted = ("adapt on desk", "read, write, release in acme/*", "127.0.0.1", codes["user_code"], "refuse it")
    assert [part for part in wanted if part not in page] == []
    assert (status, given["scopes"], given["namespaces"]) == (200, ["read", "write", "release"], ["*"])
    assert given["label"] == "adapt on desk"
    assert 6.9 * 86_400 < given["expires_in"] <= 7 * 86_400
    assert team.server.get("/api/whoami-v2", token=given["access_token"]).json()["name"] == browser.name
    assert polled(team, codes["device_code"])[1]["error"] == "expired_token"


def test_the_token_outlives_the_session_but_not_the_days_of_the_rules(team: People) -> None:
    browser = team.signed_in(**newcomer())
    token = approved(team, browser, days=366)
    browser.post("/sign-out", page="/")

    record = next(one for one in team.server.registry.tokens.newest(5) if one.label == "adapt on desk")

    assert team.server.get("/api/whoami-v2", token=token).status_code == 200
    assert record.expires_at is not None
    assert 29.9 < (record.expires_at - record.created_at) / 86_400_000 <= 30


def test_a_local_user_approves_by_a_token_with_which_the_new_one_ends(team: People) -> None:
    user = f"local{next(numbers)}"
    parent = team.server.registry.tokens.create(user, "write", namespaces=["acme/*"], days=3)
    browser = team.browser()
    browser.post("/sign-in", token=parent)
    token = approved(team, browser, scopes=["read"], days=30)
    who = team.server.get("/api/whoami-v2", token=token).json()
    mine = sorted(team.server.registry.tokens.records(user=user), key=lambda one: one.id)

    team.server.registry.tokens.revoke(mine[0].id)

    assert (who["name"], who["auth"]["accessToken"]["role"]) == (user, "read")
    assert mine[1].expires_at == mine[0].expires_at
    assert team.server.get("/api/whoami-v2", token=token).status_code == 401


def test_a_refusal_and_the_end_of_the_time_are_told_to_the_program(
    team: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = team.signed_in(**newcomer())
    codes = started(team)
    browser.post("/sign-in/device", code=codes["user_code"], do="refuse")
    late = started(team)
    monkeypatch.setattr("adapterhub_registry.access.devices.now_ms", lambda: 1 << 50)

    refused = polled(team, codes["device_code"])
    monkeypatch.undo()

    assert refused[1]["error"] == "expired_token"
    assert polled(team, codes["device_code"])[1]["error"] == "access_denied"
    assert polled(team, late["device_code"])[1]["error"] == "authorization_pending"


def test_a_page_for_codes_asks_for_a_session_first(team: People) -> None:
    answer = team.browser().get("/sign-in/device")

    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?then=%2Fsign-in%2Fdevice")


# ------------------------------------------------------------ administration
def test_an_administrator_links_a_person_to_a_user_who_is_there(team: People, far: FarAccounts) -> None:
    user, told = f"old{next(numbers)}", newcomer()
    team.server.registry.tokens.create(user, "read")

    made = far.link(user, told["sub"])
    browser = team.signed_in(**told)

    assert (made.user, made.subject, made.signed_in_at) == (user, told["sub"], None)
    assert browser.name == user
    with pytest.raises(Conflict):
        far.link(user, "another")
    with pytest.raises(NotFound):
        far.link("nobody-here", "x")
    assert far.unlink(user).subject == told["sub"]
    assert browser.name is None
    assert team.signed_in(**told).name == told["preferred_username"]
    with pytest.raises(NotFound):
        far.unlink(user)


def test_the_command_lists_and_changes_accounts(team: People) -> None:
    told, here = newcomer(), ("--root", team.server.root, "--json")
    user = told["preferred_username"]
    team.signed_in(**told)

    listed = json.loads(typed("accounts", *here).stdout)
    (free,) = json.loads(typed("accounts", "--unlink", user, *here).stdout)
    (made,) = json.loads(typed("accounts", "--link", user, "--subject", told["sub"], *here).stdout)
    (back,) = json.loads(typed("accounts", "--readmit", user, *here).stdout)

    assert next(one for one in listed if one["user"] == user)["groups"] == "ml-team"
    assert (free["subject"], made["subject"], back["removed"]) == (told["sub"], told["sub"], None)
    assert typed("accounts", "--link", user, *here).exit_code == UsageProblem.exit_code
    assert typed("accounts", "--link", user, "--unlink", user, *here).exit_code == UsageProblem.exit_code


def test_only_an_administrator_sees_and_changes_accounts(team: People) -> None:
    far = FarAccounts(team.server.url, team.server.registry.tokens.create("carl", "write", namespaces=["acme/*"]))

    for call in (
        far.records,
        lambda: far.link("ann", "x"),
        lambda: far.unlink("ann"),
        lambda: far.readmit("ann"),
    ):
        with pytest.raises(NotAllowed):
            call()


# ------------------------------------------------------------ the file of rules
GOOD = (
    'issuer = "https://sso.example.org"\nclient-id = "registry"\n[groups.a]\nrole = "administer"\nnamespaces = ["*"]\n'
)


@pytest.mark.parametrize(
    ("text", "url", "why"),
    [
        (GOOD, None, "--public-url"),
        (GOOD, "http://registry.example.org", "encrypted"),
        (GOOD.replace("https", "http"), "https://r.example.org", "issuer"),
        (GOOD.replace("client-id", "client_id"), "https://r.example.org", "did you mean `client-id`"),
        (GOOD.replace("administer", "boss"), "https://r.example.org", "groups.a.role: expected one of read, write"),
        (GOOD.replace('role = "administer"\n', ""), "https://r.example.org", "groups.a.role: missing"),
        (GOOD.replace('namespaces = ["*"]\n', ""), "https://r.example.org", "groups.a.namespaces: missing"),
        (GOOD.replace('"*"', '"acme/*"'), "https://r.example.org", "groups.a.namespaces[0]"),
        (GOOD + 'teams = ["review"]\n', "https://r.example.org", "expected NAMESPACE/TEAM"),
        (GOOD + "[groups.b]\n", "https://r.example.org", "groups.b: gives nothing"),
        (GOOD.partition("[")[0], "https://r.example.org", "no group may do anything"),
        ('client-secret-file = "gone"\n' + GOOD, "https://r.example.org", "client-secret-file: `"),
        ("session-hours = 0\n" + GOOD, "https://r.example.org", "session-hours: expected 1 to 720"),
        ('scopes = ["profile"]\n' + GOOD, "https://r.example.org", "scopes: expected `openid`"),
        ("issuer = ", "https://r.example.org", "not TOML"),
    ],
)
def test_a_file_of_rules_that_would_not_work_is_refused(tmp_path: Path, text: str, url: str | None, why: str) -> None:
    file = tmp_path / "sign-in.toml"
    file.write_text(text)

    with pytest.raises(UsageProblem) as caught:
        read_rules(file, public_url=url)

    assert why in f"{caught.value.message} {caught.value.hint}"


def test_a_right_file_has_plain_defaults(tmp_path: Path) -> None:
    (tmp_path / "sign-in.toml").write_text(GOOD)

    rules = read_rules(tmp_path / "sign-in.toml", public_url="https://r.example.org")

    assert (rules.session_hours, rules.token_days, rules.groups_claim) == (12, 30, "groups")
    assert rules.groups == {"a": (Held(namespace="*", role="administer"),)}
