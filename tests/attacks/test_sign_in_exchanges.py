"""Attacks on each exchange of a sign-in at an issuer, and of a program that waits for a token."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from adapterhub_registry.access import devices, issuers
from joserfc.jwk import ECKey

from tests.registry.issuer import Issuer
from tests.registry.people import ANA, People, people, problem_of

numbers = count(1)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    with people(tmp_path_factory.mktemp("attacked")) as team:
        yield team


@pytest.fixture(autouse=True)
def _restored(team: People, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("adapterhub_registry.pages.signing_in.SIGN_INS_A_MINUTE", 100_000)
    issuer = team.issuer
    issuer.person = dict(ANA)
    yield
    issuer.changed, issuer.about, issuer.answers = {}, {}, {}


def with_query(url: str, **changed: str | None) -> str:
    """The address with other parameters; None leaves one out."""
    place = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(place.query).items()} | changed
    return place._replace(query=urlencode({n: v for n, v in query.items() if v is not None})).geturl()


# ------------------------------------------------------------ the answer of the issuer
def test_an_answer_that_another_browser_asked_for_signs_nobody_in(team: People) -> None:
    """Sign-in CSRF: the attacker's code in the victim's browser, with and without a flow of the victim."""
    attacker, victim, other = team.browser(), team.browser(), team.browser()
    answer = attacker.answer(attacker.begin())
    victim.begin()

    assert "another sign-in" in problem_of(victim.client.get(answer))
    assert "did not begin it" in problem_of(other.client.get(answer))
    assert (victim.name, other.name) == (None, None)


def test_an_answer_counts_once(team: People) -> None:
    browser = team.browser()
    answer = browser.answer(browser.begin())
    copied = dict(browser.client.cookies)
    browser.client.get(answer)
    thief = team.browser()
    thief.client.cookies.update({name: value for name, value in copied.items() if "flow" in name})

    why = problem_of(thief.client.get(answer))

    assert "used before" in why
    assert team.issuer.asked.count("/token") == 1 or not thief.has_session


def test_a_code_that_was_redeemed_opens_no_second_session(team: People) -> None:
    first, second = team.browser(), team.browser()
    code = parse_qs(urlsplit(first.answer(first.begin())).query)["code"][0]
    stolen = with_query(second.answer(second.begin()), code=code)

    assert "refused it" in problem_of(second.client.get(stolen))


def test_a_code_without_the_verifier_of_its_flow_is_worth_nothing(team: People) -> None:
    thief, victim = team.browser(), team.browser()
    code = parse_qs(urlsplit(victim.answer(victim.begin())).query)["code"][0]

    why = problem_of(thief.client.get(with_query(thief.answer(thief.begin()), code=code)))

    assert "refused it" in why
    assert not thief.has_session


@pytest.mark.parametrize("sender", ["https://evil.example", "", None])
def test_an_answer_of_another_issuer_is_a_mix_up(team: People, sender: str | None) -> None:
    """RFC 9207: an issuer that names itself must do so, and no answer may name another."""
    team.issuer.about = {"authorization_response_iss_parameter_supported": True}
    team.server.registry.sign_in._issuers._known.clear()  # type: ignore[union-attr]
    browser = team.browser()
    answer = browser.answer(browser.begin())

    why = problem_of(browser.client.get(with_query(answer, iss=sender)))

    assert "expected" in why
    assert "/token" not in team.issuer.asked[-1]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"code": None}, "no code"),
        ({"code": ""}, "no code"),
        ({"code": "x" * 4000}, "refused it"),
        ({"state": None}, "another sign-in"),
        ({"state": "x"}, "another sign-in"),
        ({"state": "\u00e9"}, "another sign-in"),
        ({"code": None, "error": "<b>x</b>"}, "&lt;b&gt;x"),
    ],
)
def test_a_changed_answer_signs_nobody_in(team: People, changed: dict[str, str | None], why: str) -> None:
    browser = team.browser()

    assert why in problem_of(browser.client.get(with_query(browser.answer(browser.begin()), **changed)))


def test_a_person_who_refuses_at_the_issuer_is_told_so(team: People) -> None:
    team.issuer.person = {}

    assert "access_denied" in problem_of(team.browser().sign_in())


def test_a_flow_ends_after_ten_minutes_and_its_cookie_cannot_be_made(
    team: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, forger = team.browser(), team.browser()
    answer = late.answer(late.begin())
    forged = forger.answer(forger.begin())
    (name,) = (name for name in forger.client.cookies if "flow" in name)
    forger.client.cookies.clear()
    forger.client.cookies.set(name, base64.urlsafe_b64encode(json.dumps({"state": "x"}).encode()).decode())
    now = time.time()
    with monkeypatch.context() as patched:
        patched.setattr("adapterhub_registry.access.tokens.time.time", lambda: now + 601)
        why = problem_of(late.client.get(answer))

    assert "did not begin it" in why
    assert "did not begin it" in problem_of(forger.client.get(forged))


# ------------------------------------------------------------ the identity token
IDENTITIES: dict[str, tuple[Callable[[Issuer], dict[str, Any]], str]] = {
    "another audience": (lambda _: {"aud": "other-client"}, "audience"),
    "two audiences": (lambda _: {"aud": ["registry", "other-client"]}, "audience"),
    "another issuer": (lambda _: {"iss": "https://evil.example"}, "not on the list"),
    "another nonce": (lambda _: {"nonce": "x"}, "nonce"),
    "no nonce": (lambda _: {"nonce": None}, "nonce"),
    "a nonce that is no text": (lambda _: {"nonce": ["x"]}, "nonce"),
    "expired": (lambda _: {"exp": int(time.time()) - 120}, "expired"),
    "not yet valid": (lambda _: {"nbf": int(time.time()) + 120}, "not yet"),
    "made in the future": (lambda _: {"iat": int(time.time()) + 120}, "future"),
    "no subject": (lambda _: {"sub": None}, "no person"),
    "an empty subject": (lambda _: {"sub": ""}, "no person"),
    "a subject that is no text": (lambda _: {"sub": 7}, ""),
    "a long subject": (lambda _: {"sub": "x" * 256}, "no person"),
}


@pytest.mark.parametrize("case", IDENTITIES)
def test_an_identity_token_that_is_not_for_this_sign_in_is_refused(team: People, case: str) -> None:
    make, why = IDENTITIES[case]
    team.issuer.changed = make(team.issuer)
    before = team.server.get("/api/adapt/v1/accounts").json()

    browser = team.browser()
    told = problem_of(browser.sign_in())

    assert why in told
    assert not browser.has_session
    assert team.server.get("/api/adapt/v1/accounts").json() == before


def test_an_identity_token_of_an_unknown_key_or_none_is_refused(team: People) -> None:
    foreign = ECKey.generate_key("P-256")
    for token in (team.issuer.token("registry", key=foreign), "e30.e30.e30", 7, None):
        body = json.dumps({"id_token": token}).encode()
        team.issuer.answers = {"/token": (200, {"Content-Type": "application/json"}, body)}

        assert "refused" in problem_of(team.browser().sign_in())


def test_a_small_difference_of_clocks_and_a_new_key_do_no_harm(team: People) -> None:
    team.issuer.changed = {"nbf": int(time.time()) + 45, "iat": int(time.time()) + 45}
    team.issuer.rotate("RS256")

    assert team.signed_in().name == "ana"


@pytest.mark.parametrize("body", [b"[]", b"{", b"x" * (issuers.MOST_DOCUMENT_BYTES + 1), b'{"a":1,"a":2}'])
def test_a_malformed_answer_of_the_issuer_is_no_sign_in(team: People, body: bytes) -> None:
    team.issuer.answers = {"/token": (200, {}, body)}

    browser = team.browser()
    answer = browser.sign_in()

    assert (answer.status_code, browser.has_session) == (503, False)


def test_the_issuer_cannot_send_the_registry_elsewhere(team: People) -> None:
    team.issuer.answers = {"/token": (307, {"Location": f"{team.server.url}/api/adapt/v1/users"}, b"")}
    assert team.browser().sign_in().status_code == 503
    assert "/api/adapt/v1/users" not in team.issuer.asked
    for place in ("http://registry.internal/token", "file:///etc/passwd", "https://a@b.example/", 7):
        team.issuer.about = {"token_endpoint": place}
        team.server.registry.sign_in._issuers._known.clear()  # type: ignore[union-attr]

        assert "publishes no token_endpoint" in problem_of(team.browser().sign_in())
    team.issuer.about = {"authorization_endpoint": "javascript:alert(1)"}
    team.server.registry.sign_in._issuers._known.clear()  # type: ignore[union-attr]
    assert "publishes no authorization_endpoint" in problem_of(team.browser().get("/sign-in/oidc"))
    team.issuer.about = {}
    team.server.registry.sign_in._issuers._known.clear()  # type: ignore[union-attr]


# ------------------------------------------------------------ who somebody is
def test_a_name_or_an_address_of_somebody_else_makes_nobody_that_user(team: People) -> None:
    team.server.registry.tokens.create("victim", "admin")
    for told in (
        {"preferred_username": "victim"},
        {"preferred_username": "VICTIM"},
        {"preferred_username": "victim", "email": "victim@example.org", "email_verified": True},
        {"preferred_username": "admin"},
        {"preferred_username": "publisher:1"},
        {"preferred_username": "../../etc"},
        {"preferred_username": "\u202evictim"},
        {"preferred_username": ""},
    ):
        browser = team.signed_in(sub=f"thief-{next(numbers)}", **told)

        assert browser.name not in {"victim", "admin", "publisher:1"}
        assert browser.get("/admin").status_code == 403


def test_the_subject_of_another_issuer_is_another_person(team: People) -> None:
    first = team.signed_in(sub="same").name
    account = next(one for one in team.server.get("/api/adapt/v1/accounts").json()["accounts"] if one["user"] == first)
    team.server.registry.accounts.unlink(str(first))
    team.server.registry.accounts.link(str(first), "https://other.example", "same")

    second = team.signed_in(sub="same").name

    assert account["issuer"] == team.issuer.url
    assert second != first


def test_groups_of_another_form_give_nothing(team: People) -> None:
    for groups in ("bosses", {"roles": {"bosses": True}}, {"roles": [["bosses"], {"a": 1}, 7]}, None):
        assert "none of your groups" in team.refused(sub=f"odd-{next(numbers)}", realm_access=groups)


# ------------------------------------------------------------ the pages around it
@pytest.mark.parametrize("then", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_no_sign_in_leads_to_another_site(team: People, then: str) -> None:
    answer = team.browser().sign_in(then)

    assert 'url=/"' in answer.text
    assert "evil" not in answer.text
    assert "javascript" not in answer.text


def test_a_long_way_back_does_not_break_the_cookie(team: People) -> None:
    assert 'url=/"' in team.browser().sign_in("/?q=" + "x" * 1015).text


def test_the_host_header_does_not_decide_where_the_issuer_sends_people(team: People) -> None:
    headers = {"Host": "evil.example", "Accept": "text/html"}
    asked = httpx.get(f"{team.server.url}/sign-in/oidc", headers=headers).headers["location"]

    assert parse_qs(urlsplit(asked).query)["redirect_uri"] == [f"{team.server.url}/sign-in/oidc/done"]


def test_the_cookies_of_a_sign_in_stay_with_this_host(team: People) -> None:
    browser = team.browser()
    begun = browser.client.get("/sign-in/oidc")
    done = browser.client.get(browser.answer(begun.headers["location"]))

    (flow,) = begun.headers.get_list("set-cookie")
    cookies = [flow, *done.headers.get_list("set-cookie")]
    assert "samesite=lax" in flow.lower()
    assert all("httponly" in one.lower() and "domain" not in one.lower() for one in cookies)
    assert any("samesite=strict" in one.lower() and "session" in one for one in cookies)
    assert ANA["sub"] not in str(cookies)


def test_a_session_that_was_there_before_is_not_the_one_after(team: People) -> None:
    """Session fixation: the cookie of before opens nothing new."""
    browser = team.signed_in()
    before = dict(browser.client.cookies)
    browser.sign_in()

    assert {n: v for n, v in browser.client.cookies.items() if "session" in n}.items() != before.items()
    assert before.items() != dict(browser.client.cookies).items()


def test_an_issuer_that_does_not_answer_holds_up_no_other_page(team: People) -> None:
    slots = team.server.registry.sign_in._slots  # type: ignore[union-attr]
    taken = [slots.acquire(blocking=False) for _ in range(8)]
    try:
        answer = team.browser().get("/sign-in/oidc")
        assert all(taken)
        assert (answer.status_code, "too many people are signing in" in answer.text) == (503, True)
        assert team.browser().get("/").status_code == 200
    finally:
        for _ in taken:
            slots.release()


def test_sign_ins_of_one_address_are_counted(team: People, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapterhub_registry.pages.signing_in.SIGN_INS_A_MINUTE", 3)
    team.server.registry.rates._buckets.clear()

    codes = [team.browser().get("/sign-in/oidc").status_code for _ in range(5)]

    assert codes[:3] == [303] * 3
    assert 429 in codes[3:]
    team.server.registry.rates._buckets.clear()


# ------------------------------------------------------------ a program that waits
def started(team: People, **more: Any) -> dict[str, Any]:
    answer = team.server.post("/api/adapt/v1/device", {"client": "adapt", **more}, token=None)
    return dict(answer.raise_for_status().json())


def polled(team: People, device_code: str) -> httpx.Response:
    return team.server.post("/api/adapt/v1/device/token", {"device_code": device_code}, token=None)


def test_short_codes_cannot_be_tried_out(team: People) -> None:
    """Ten a minute of 25 thousand million, of somebody who signed in, while codes live ten minutes."""
    codes = started(team)
    browser = team.signed_in(sub=f"guesser-{next(numbers)}")
    form = browser.get("/sign-in/device").text.split('name="form_token" value="')[1].split('"')[0]
    guess = {"form_token": form, "code": "BBBBBBBB", "do": "look"}

    answers = [browser.client.post("/sign-in/device", data=guess).status_code for _ in range(12)]

    assert answers[:10] == [200] * 10
    assert 429 in answers[10:]
    right = browser.client.post("/sign-in/device", data=guess | {"code": codes["user_code"], "do": "approve"})
    assert right.status_code == 429
    assert polled(team, codes["device_code"]).json()["error"] == "authorization_pending"
    assert len(devices.LETTERS) ** devices.CODE_LETTERS > 25e9
    team.server.registry.rates._buckets.clear()


def test_nobody_looks_at_codes_without_a_session_or_from_another_site(team: People) -> None:
    codes = started(team)
    stranger, browser = team.browser(), team.signed_in(sub=f"visitor-{next(numbers)}")
    unsigned = stranger.post("/sign-in/device", page="/sign-in", code=codes["user_code"], do="approve")
    sent = {"code": codes["user_code"], "do": "approve"}
    forged = browser.client.post("/sign-in/device", data=sent)
    foreign = browser.client.post("/sign-in/device", data=sent, headers={"Origin": "https://evil.example"})
    link = browser.get(f"/sign-in/device?code={codes['user_code']}&do=approve")

    assert [one.status_code for one in (unsigned, forged, foreign)] == [401, 403, 403]
    assert 'name="code" required' in link.text
    assert polled(team, codes["device_code"]).json()["error"] == "authorization_pending"


def test_a_program_that_asks_too_often_waits_longer(team: People) -> None:
    codes = started(team)

    errors = [polled(team, codes["device_code"]).json() for _ in range(3)]

    assert [one["error"] for one in errors] == ["authorization_pending", "slow_down", "slow_down"]
    assert "every 15 seconds" in errors[2]["error_description"]


def test_a_wrong_device_code_tells_nothing_and_a_right_one_works_once(team: People) -> None:
    codes = started(team)
    browser = team.signed_in(sub=f"owner-{next(numbers)}")
    browser.post("/sign-in/device", code=codes["user_code"], do="approve")

    wrong = polled(team, codes["device_code"][:-1] + "x").json()
    short = polled(team, codes["user_code"]).json()
    first, again = polled(team, codes["device_code"]), polled(team, codes["device_code"])

    assert (wrong["error"], short["error"]) == ("expired_token", "expired_token")
    assert (first.status_code, again.json()["error"]) == (200, "expired_token")
    team.server.registry.rates._buckets.clear()


def test_a_session_that_ended_before_the_program_came_gives_it_nothing(team: People) -> None:
    codes = started(team)
    browser = team.signed_in(sub=f"leaver-{next(numbers)}")
    browser.post("/sign-in/device", code=codes["user_code"], do="approve")
    browser.post("/sign-out", page="/")

    assert polled(team, codes["device_code"]).json()["error"] == "access_denied"


def test_a_token_gives_a_program_no_more_than_it_may_itself(team: People) -> None:
    """A stolen token that only reads cannot be made into one that writes, administers, or lasts."""
    parent = team.server.registry.tokens.create("reader", "read", namespaces=["acme/open-*"], days=1)
    browser = team.browser()
    browser.post("/sign-in", token=parent)
    codes = started(team, scopes=["write", "release", "administer"], days=366)
    browser.post("/sign-in/device", code=codes["user_code"], do="approve")

    given = polled(team, codes["device_code"]).json()

    assert (given["scopes"], given["namespaces"]) == (["read"], ["acme/open-*"])
    assert given["expires_in"] <= 86_400
    named = {"organization": "acme", "name": "open-x"}
    assert team.server.post("/api/repos/create", named, token=given["access_token"]).status_code == 403


def test_a_job_of_a_ci_approves_nothing(team: People) -> None:
    registry = team.server.registry
    with registry.db.begin() as connection:
        from adapterhub_registry.access.tokens import Wanted, insert_token, new_token

        token = new_token()
        wanted = Wanted(user="publisher:9", globs=["acme/x"], label="job", role="write")
        insert_token(connection, token, wanted)
    browser = team.browser()
    browser.post("/sign-in", token=token)
    codes = started(team)

    assert browser.post("/sign-in/device", code=codes["user_code"], do="approve").status_code == 403


def test_what_a_program_calls_itself_is_only_text(team: People) -> None:
    hostile = "<script>alert(1)</script>\u202eadapt"
    codes = started(team, client=hostile)
    browser = team.signed_in(sub=f"reader-{next(numbers)}")

    page = browser.post("/sign-in/device", code=codes["user_code"], do="look").text

    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert "calls itself" in page
    for client in ("", "x" * 101, "a\nb"):
        assert team.server.post("/api/adapt/v1/device", {"client": client}, token=None).status_code == 422


def test_programs_that_wait_are_bounded(team: People, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "MOST_OF_ADDRESS", 0)
    assert team.server.post("/api/adapt/v1/device", {"client": "x"}, token=None).status_code == 429
    monkeypatch.setattr(devices, "MOST_OF_ADDRESS", 1000)
    monkeypatch.setattr(devices, "MOST_WAITING", 0)
    assert team.server.post("/api/adapt/v1/device", {"client": "x"}, token=None).status_code == 503
    monkeypatch.setattr("adapterhub_registry.api.sign_in_api.STARTS_A_MINUTE", 1)
    team.server.registry.rates._buckets.clear()
    codes = [team.server.post("/api/adapt/v1/device", {"client": "x"}, token=None).status_code for _ in range(3)]
    assert codes == [503, 429, 429]
    team.server.registry.rates._buckets.clear()
