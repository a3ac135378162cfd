"""The pages of a registry in Chromium: reachable, readable, quiet, and usable without JavaScript."""

from __future__ import annotations

import re

from tests.support.browser import PHONE, quiet, violations


def test_everything_works_without_javascript(browser, world):
    context = browser.new_context(java_script_enabled=False, viewport=PHONE)
    page = context.new_page()
    with quiet(page, world.url):
        page.goto(f"{world.url}/")
        page.get_by_role("button", name="Filters").click()
        page.get_by_role("link", name="legal 1", exact=True).click()
        assert page.locator(".hit h3").all_inner_texts() == ["acme/legal-qa 1.1.0"]
        page.get_by_label("Sort by").select_option("Recently updated")
        page.get_by_role("button", name="Sort").click()
        page.wait_for_url(f"{world.url}/?task=legal&sort=changed")
        page.get_by_role("link", name="acme/legal-qa").click()
        page.get_by_role("link", name="adapter_config.json").click()
        assert '"r": 8' in page.get_by_role("region", name="Text of the file").inner_text()
        page.locator("a", has_text=world.commits[1][:12]).click()
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
        page.get_by_text("Private", exact=True).wait_for()
        assert violations(page) == []
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Sign out").click()
        page.goto(f"{world.url}/acme/hidden")
        page.get_by_role("heading", name="Not found").wait_for()


def test_results_follow_the_typing_and_the_address_keeps_them(page, world):
    with quiet(page, world.url):
        page.goto(f"{world.url}/")
        page.get_by_label("Search adapters").press_sequentially("legal")
        page.wait_for_url("**/?q=legal**")
        page.get_by_role("link", name="acme/signed").wait_for(state="detached")  # the answer may come after the address
        assert page.locator(".hit h3").all_inner_texts() == ["acme/legal-qa 1.1.0"]
        page.reload()
        assert page.get_by_label("Search adapters").input_value() == "legal"


def test_the_keyboard_reaches_the_content_first(page, world):
    page.goto(f"{world.url}/acme/legal-qa")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_a_time_is_relative_and_its_title_has_all_of_it(page, world):
    page.goto(f"{world.url}/acme/legal-qa")
    moment = page.locator("time:visible").first

    assert re.fullmatch(r"just now|\d+ minutes? ago", moment.inner_text())
    assert moment.get_attribute("title").endswith(" UTC")


def test_another_page_cannot_frame_it(page, world):
    page.set_content(f"<iframe src='{world.url}/sign-in'></iframe>")
    page.wait_for_load_state("networkidle")

    assert page.frames[1].get_by_label("Token").count() == 0
