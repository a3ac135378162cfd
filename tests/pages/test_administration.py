"""The pages of an administrator: who may see them, what they do, and what forged requests get."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.support.browser import PHONE, overflow, quiet, violations

PATHS = ("/admin", "/admin-space", "/admin-refusals", "/admin-adapter", "/admin-adapter?repo=acme/legal-qa")
HTML = {"Accept": "text/html"}
HOSTILE = "<script>alert(1)</script>\u202e"


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
    assert forged == 403 if path in {"/admin", "/admin-space"} else forged in {403, 405}
    assert httpx.get(f"{world.url}/api/whoami-v2", cookies=dict(reader.cookies)).status_code == 401


def test_all_tokens_of_a_user_are_revoked_only_after_the_name_is_typed(world):
    tokens = world.server.registry.tokens
    boss, made = tokens.create("boss2", "admin"), tokens.create("dirk", "read")
    with httpx.Client(base_url=world.url, headers=HTML) as page:
        form = re.search(r'name="form_token" value="(\w+)"', page.get("/sign-in").text)[1]
        page.post("/sign-in", data={"form_token": form, "token": boss})
        asked = {"do": "revoke-user", "user": "dirk"}
        for typed, works in (("", True), ("dir", True), ("dirk", False)):
            form = re.search(r'name="form_token" value="(\w+)"', page.get("/admin").text)[1]
            page.post("/admin", data={**asked, "form_token": form, "confirmed": typed})
            assert (tokens.authenticate(made) is not None) == works


def test_an_administrator_works_in_a_browser_without_scripts(browser, world):
    tokens = world.server.registry.tokens
    boss = tokens.create("boss", "admin")
    refused_push(world, tokens.create("carl", "read", namespaces=["acme/*"]))
    world.server.post("/api/repos/create", {"name": "doomed", "organization": "acme"})
    page = browser.new_context(java_script_enabled=False, viewport=PHONE, color_scheme="dark").new_page()
    with quiet(page, world.url):
        sign_in(page, world, boss)
        page.get_by_label("User", exact=True).fill("dora")
        page.get_by_label("Namespaces").fill("acme/*")
        page.get_by_role("button", name="Create the token").click()
        made = page.get_by_role("region", name="New token").inner_text().strip()
        assert world.server.get("/api/whoami-v2", token=made).json()["name"] == "dora"

        page.get_by_label("User", exact=True).fill(HOSTILE)
        page.get_by_role("button", name="Create the token").click()
        assert "expected 1 to 96 letters" in page.get_by_role("alert").inner_text()

        row = page.get_by_role("row", name="dora")
        for typed in ("dor", "dora"):
            assert world.server.get("/api/whoami-v2", token=made).status_code == 200
            page.get_by_text("Revoke all tokens", exact=True).and_(row.locator("summary")).first.click()
            row.get_by_role("textbox").first.fill(typed)
            row.get_by_role("button", name="Revoke all tokens of dora").click()
        assert world.server.get("/api/whoami-v2", token=made).status_code == 401
        assert "revoke" in page.get_by_role("region", name="Log").inner_text()

        page.get_by_role("link", name="Space").click()
        page.get_by_role("button", name="Count it now").click()
        assert "Nothing was removed" in page.get_by_role("status").inner_text()

        page.get_by_role("link", name="Refusals").click()
        assert re.search(
            r"carl.*commit.*acme/legal-qa", page.get_by_role("region", name="Refusals").inner_text(), re.DOTALL
        )

        page.goto(f"{world.url}/acme/legal-qa")
        page.get_by_role("link", name="Yank or delete").click()
        page.get_by_label("Why 1.1.0 is yanked").fill(HOSTILE)
        page.get_by_role("button", name="Yank 1.1.0").click()
        assert "<script>" in page.locator("article", has_text="1.1.0").inner_text()
        page.get_by_role("button", name="Take the yank back from 1.1.0").click()
        page.get_by_role("button", name="Yank 1.1.0").wait_for()

        page.goto(f"{world.url}/admin-adapter?repo=acme/doomed")
        for typed in ("acme/other", "acme/doomed"):
            page.get_by_label("Name", exact=True).fill(typed)
            page.get_by_role("button", name="Delete acme/doomed").click()
    page.context.close()

    assert world.server.get("/api/models/acme/doomed").status_code == 404
    assert world.server.get("/api/models/acme/legal-qa").status_code == 200


def test_axe_has_nothing_to_object(page, world):
    sign_in(page, world, world.server.registry.tokens.create("boss", "admin"))
    page.set_viewport_size(PHONE)
    found = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for path in PATHS if scheme == "light" else PATHS[:1]:
            page.goto(world.url + path)
            found[scheme, path] = [*violations(page), *(["wider than the screen"] if overflow(page) else [])]

    assert {key: problems for key, problems in found.items() if problems} == {}
