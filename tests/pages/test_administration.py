"""The pages of an administrator: who may see them, what they do, and what forged requests get."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.support.browser import PHONE, quiet
from tests.support.page_checks import SCHEMES, SIZES, problems, problems_after_use, watched

PATHS = (
    "/admin",
    "/admin-users",
    "/admin-space",
    "/admin-refusals",
    "/admin-adapter",
    "/admin-adapter?repo=acme/legal-qa",
)
OF_PEOPLE = (
    *("/settings", "/sign-in/device", "/join", "/acme", "/acme/-/settings", "/acme/-/log", "/admin-members"),
    *("/admin-log", "/join?code={invitation}"),
)
HTML = {"Accept": "text/html"}
HOSTILE = "<script>x</script>\u202e"


def sign_in(page, world, token: str) -> None:
    page.goto(f"{world.url}/sign-in?then=/admin")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()


def refused_push(world, token: str) -> None:
    """A push that the server refuses, with a hostile name in its path."""
    lines = '{"key":"header","value":{"summary":"x"}}\n{"key":"file","value":{"path":"../<b>x","content":""}}'
    kind = {"Content-Type": "application/x-ndjson", "Authorization": f"Bearer {token}"}
    assert httpx.post(f"{world.url}/api/models/acme/legal-qa/commit/main", content=lines, headers=kind).is_client_error


@pytest.mark.parametrize("path", PATHS)
def test_only_an_administrator_sees_them(world, path):
    reader = httpx.Client(headers=HTML)
    form = re.search(r'name="form_token" value="(\w+)"', reader.get(f"{world.url}/sign-in").text)
    signed = reader.post(f"{world.url}/sign-in", data={"form_token": form[1], "token": world.reader})

    codes = [httpx.get(world.url + path, headers=HTML).status_code, reader.get(world.url + path).status_code]
    forged = reader.post(world.url + path, data={"do": "create", "user": "eve", "role": "admin"}).status_code

    assert (signed.status_code, codes) == (303, [401, 403])
    assert forged == 403 if path in {"/admin", "/admin-users", "/admin-space"} else forged in {403, 405}
    assert httpx.get(f"{world.url}/api/whoami-v2", cookies=dict(reader.cookies)).status_code == 401


def test_all_tokens_of_a_user_are_revoked_only_after_the_name_is_typed(world):
    tokens = world.server.registry.tokens
    boss, made = tokens.create("boss2", "admin"), tokens.create("dirk", "read")
    with httpx.Client(base_url=world.url, headers=HTML) as page:
        form = re.search(r'name="form_token" value="(\w+)"', page.get("/sign-in").text)[1]
        page.post("/sign-in", data={"form_token": form, "token": boss})
        asked = {"do": "revoke-user", "user": "dirk"}
        for typed, works in (("", True), ("dir", True), ("dirk", False)):
            form = re.search(r'name="form_token" value="(\w+)"', page.get("/admin-users").text)[1]
            page.post("/admin-users", data={**asked, "form_token": form, "confirmed": typed})
            assert (tokens.authenticate(made) is not None) == works


def make_and_revoke_tokens(page, world) -> None:
    """On the pages of tokens and of users, which say no to a hostile name and to another name than the user's."""
    other = world.server.registry.tokens.create("erik", "read")
    page.reload()
    page.get_by_label("User", exact=True).fill("dora")
    page.get_by_label("Namespaces").fill("acme/*")
    page.get_by_role("button", name="Create token").click()
    made = page.get_by_role("region", name="New token").inner_text().strip()
    assert world.server.get("/api/whoami-v2", token=made).json()["name"] == "dora"

    page.get_by_label("User", exact=True).fill(HOSTILE)
    page.get_by_role("button", name="Create token").click()
    assert "expected 1 to 96 letters" in page.get_by_role("alert").inner_text()

    assert page.get_by_label("Namespaces").input_value() == ""  # what was typed stays
    assert page.get_by_label("User", exact=True).get_attribute("aria-invalid") == "true"
    assert world.server.get("/api/whoami-v2", token=other).status_code == 200
    page.get_by_role("button", name="Revoke token").and_(page.get_by_label("of erik")).click()
    asked = page.get_by_role("dialog")
    assert "stops working at once" in asked.inner_text()
    asked.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Revoke token").and_(page.get_by_label("of erik")).click()
    asked.get_by_role("button", name="Revoke").click()
    assert world.server.get("/api/whoami-v2", token=other).status_code == 401

    page.get_by_role("link", name="Users").click()
    for typed in ("dor", "dora"):
        assert world.server.get("/api/whoami-v2", token=made).status_code == 200
        page.get_by_role("button", name="Revoke all tokens of dora").click()
        page.get_by_role("dialog").get_by_role("textbox").fill(typed)
        page.get_by_role("dialog").get_by_role("button", name="Revoke all tokens of dora").click()
    assert world.server.get("/api/whoami-v2", token=made).status_code == 401
    page.get_by_role("link", name="Tokens").click()
    assert "revoke" in page.get_by_role("region", name="Recent changes").inner_text()


def test_an_administrator_works_in_a_browser_without_scripts(browser, world):
    tokens = world.server.registry.tokens
    boss = tokens.create("boss", "admin")
    refused_push(world, tokens.create("carl", "read", namespaces=["acme/*"]))
    world.server.create("acme/doomed")
    page = browser.new_context(java_script_enabled=False, viewport=PHONE, color_scheme="dark").new_page()
    with quiet(page, world.url):
        sign_in(page, world, boss)
        make_and_revoke_tokens(page, world)

        page.get_by_role("link", name="Storage").click()
        page.get_by_role("button", name="Count it now").click()
        assert "Nothing was removed" in page.get_by_role("status").inner_text()

        page.get_by_role("link", name="Refusals").click()
        assert re.search(
            r"carl.*commit.*acme/legal-qa", page.get_by_role("region", name="Refusals").inner_text(), re.DOTALL
        )

        page.goto(f"{world.url}/acme/legal-qa")
        page.get_by_role("link", name="Yank or delete").click()
        page.get_by_role("button", name="Yank 1.1.0").click()
        page.get_by_label("Why 1.1.0 is yanked").fill(HOSTILE)
        page.get_by_role("dialog").get_by_role("button", name="Yank 1.1.0").click()
        assert "<script>" in page.get_by_role("row", name="1.1.0").inner_text()
        page.get_by_role("button", name="Take the yank back from 1.1.0").click()
        page.get_by_role("button", name="Yank 1.1.0").wait_for()

        page.goto(f"{world.url}/admin-adapter?repo=acme/doomed")
        for typed in ("acme/other", "acme/doomed"):
            page.get_by_role("button", name="Delete acme/doomed").click()
            page.get_by_label("Name", exact=True).fill(typed)
            page.get_by_role("dialog").get_by_role("button", name="Delete acme/doomed").click()
    page.context.close()

    assert world.server.get("/api/models/acme/doomed").status_code == 404
    assert world.server.get("/api/models/acme/legal-qa").status_code == 200


def test_every_page_is_held_to_all_checks(browser, world):
    """With an open question, too, and those of people: a team, invitations, and a publisher."""
    boss = world.server.registry.tokens.create("boss", "admin", label="<img src=x>")
    members = world.server.registry.members
    members.put_team("acme", "law", "write", ["legal-*", "signed"])
    members.add("acme", "boss", team="law", days=9)
    members.add("acme", "boss", role="administer")
    invitation = members.invite("acme", team="law").code
    found = {}
    for size, scheme in zip(SIZES, SCHEMES, strict=True):
        with watched(browser, size, scheme) as page:
            sign_in(page, world, boss)
            for path in (*PATHS, *OF_PEOPLE):
                page.goto(world.url + path.format(invitation=invitation))
                found[path, scheme] = problems(page)
            for path, question in (("/admin", "Revoke token"), ("/acme/-/settings", "Remove boss")):
                page.goto(world.url + path)
                page.get_by_role("button", name=question).first.click()
                found[question, scheme] = problems_after_use(page)
                page.keyboard.press("Escape")
                assert not page.get_by_role("dialog").count()

    assert {key: problems for key, problems in found.items() if problems} == {}
