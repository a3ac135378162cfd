"""The pages of a registry in Chromium: reachable, readable, quiet, and usable without JavaScript."""

from __future__ import annotations

import pytest

from tests.support.browser import PHONE, overflow, quiet, violations

PATHS = (
    "/?yanked=yes&sort=downloads",
    "/",
    "/?q=legal&yanked=yes",
    "/?q=nothing+matches",
    "/sign-in",
    "/acme/legal-qa",
    "/acme/signed",
    "/acme/legal-qa/tree/main",
    "/acme/legal-qa/blob/main/adapter_config.json",
    "/acme/legal-qa/blob/main/adapter_model.safetensors",
    "/acme/legal-qa/commit/main",
    "/acme/missing",
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_nothing_to_object_and_no_page_is_wider_than_a_phone(page, world, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(PHONE)
    found = {}
    with quiet(page, world.url):
        for path in PATHS:
            page.goto(world.url + path)
            found[path] = [*violations(page), *(["wider than the screen"] if overflow(page) else [])]

    assert {path: problems for path, problems in found.items() if problems} == {}


def test_everything_works_without_javascript(browser, world):
    context = browser.new_context(java_script_enabled=False, viewport=PHONE)
    page = context.new_page()
    with quiet(page, world.url):
        page.goto(f"{world.url}/")
        page.get_by_text("Conditions and order").click()
        page.get_by_role("textbox", name="Task").fill("legal")
        page.get_by_role("button", name="Search").click()
        assert page.locator("article h2").all_inner_texts() == ["acme/legal-qa 1.1.0"]
        page.get_by_role("link", name="acme/legal-qa").click()
        page.get_by_role("link", name="adapter_config.json").click()
        assert '"r": 8' in page.locator("pre").inner_text()
        page.locator("a", has_text=world.commits[1]).click()
        page.get_by_label("Compare with the commit").fill("v1.0.0")
        page.get_by_role("button", name="Compare").click()
        page.get_by_role("row", name="r 4 8", exact=True).wait_for()
    context.close()


def test_a_person_signs_in_looks_at_a_private_adapter_and_signs_out(page, world):
    with quiet(page, world.url):
        page.goto(f"{world.url}/acme/hidden")
        page.get_by_role("link", name="Sign in").first.click()
        page.get_by_label("Token").fill(world.reader)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"{world.url}/acme/hidden")
        page.get_by_text("private", exact=True).wait_for()
        assert violations(page) == []
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Sign out").click()
        page.goto(f"{world.url}/acme/hidden")
        page.get_by_role("heading", name="Not found").wait_for()


def test_results_follow_the_typing_and_the_address_keeps_them(page, world):
    with quiet(page, world.url):
        page.goto(f"{world.url}/")
        page.get_by_label("Words").press_sequentially("legal")
        page.wait_for_url("**/?q=legal**")
        page.get_by_role("link", name="acme/signed").wait_for(state="detached")  # the answer may come after the address
        assert page.locator("article h2").all_inner_texts() == ["acme/legal-qa 1.1.0"]
        page.reload()
        assert page.get_by_label("Words").input_value() == "legal"


def test_the_keyboard_reaches_the_content_first(page, world):
    page.goto(f"{world.url}/acme/legal-qa")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_a_time_is_relative_and_its_title_has_all_of_it(page, world):
    page.goto(f"{world.url}/acme/legal-qa")
    moment = page.locator("time").first

    assert moment.inner_text() in {"just now", "1 minute ago", "2 minutes ago"}
    assert moment.get_attribute("title").endswith(" UTC")


def test_another_page_cannot_frame_it(page, world):
    page.set_content(f"<iframe src='{world.url}/sign-in'></iframe>")
    page.wait_for_load_state("networkidle")

    assert page.frames[1].get_by_label("Token").count() == 0
