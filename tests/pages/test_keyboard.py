"""The keyboard alone: each control is reached and seen, dialogs let go, and one finds, copies, compares and asks."""

from __future__ import annotations

import pytest

from tests.pages.test_administration import sign_in
from tests.support.browser import press, reach
from tests.support.page_checks import NARROW, WIDE, unreached, watched

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
PATHS = (
    "/",
    "/?task=legal",
    "/bases",
    "/acme",
    "/acme/legal-qa",
    "/acme/legal-qa/1.0.0",
    "/acme/legal-qa?tab=versions",
    "/acme/legal-qa/tree/main",
    "/lineage/acme/legal-qa",
    "/compare?a=acme/legal-qa==1.1.0&b=acme/signed@main",
    "/sign-in",
    "/acme/missing",
)


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_every_control_of_a_registry_is_reached_and_its_focus_is_seen(browser, world, size) -> None:
    found = {}
    with watched(browser, size, "light") as page:
        for path in PATHS:
            page.goto(world.url + path)
            if wrong := unreached(page):
                found[path] = wrong
    assert found == {}


def test_every_control_of_an_administrator_is_reached_and_a_question_lets_go(browser, world) -> None:
    boss = world.server.registry.tokens.create("keys", "admin")
    with watched(browser, WIDE, "light") as page:
        sign_in(page, world, boss)
        page.wait_for_url("**/admin")
        found = {}
        for path in ("/admin", "/admin-users", "/admin-space", "/acme/-/settings", "/settings"):
            page.goto(world.url + path)
            if wrong := unreached(page):
                found[path] = wrong
        assert found == {}

        page.goto(f"{world.url}/admin")
        asks = page.get_by_role("button", name="of keys")
        press(page, asks)
        question = page.get_by_role("dialog")
        question.wait_for()
        page.keyboard.press("Tab")
        assert question.evaluate("one => one.contains(document.activeElement)")
        press(page, question.get_by_role("button", name="Cancel"), "Space", most=3)
        question.wait_for(state="hidden")
        assert asks.evaluate("one => one === document.activeElement")
        page.keyboard.press("Enter")
        question.wait_for()
        page.keyboard.press("Escape")
        question.wait_for(state="hidden")
        assert asks.evaluate("one => one === document.activeElement")


def test_filters_fill_a_phone_take_the_focus_and_give_it_back(browser, world) -> None:
    with watched(browser, NARROW, "light") as page:
        page.goto(f"{world.url}/")
        opens = page.get_by_role("button", name="Filters")
        press(page, opens)
        page.locator("#filters").wait_for()
        page.keyboard.press("Tab")
        assert page.locator("#filters").evaluate("one => one.contains(document.activeElement)")
        page.keyboard.press("Escape")
        page.locator("#filters").wait_for(state="hidden")
        assert opens.evaluate("one => one === document.activeElement")


def test_the_keyboard_finds_an_adapter_copies_its_line_and_compares_it(page, world) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(world.url)
    page.keyboard.press("/")
    page.keyboard.type("legal-qa")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="acme/signed").wait_for(state="detached")
    press(page, page.get_by_role("link", name="acme/legal-qa"))
    page.wait_for_url("**/acme/legal-qa")
    press(page, page.get_by_role("button", name="Copy: Install this version"))
    page.get_by_text("Copied to the clipboard").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").startswith("adapt install acme/legal-qa==1.1.0")
    press(page, page.get_by_role("link", name="Compare").last)
    page.wait_for_url("**/compare?a=**")
    second = page.get_by_role("combobox", name="Second adapter")
    reach(page, second)
    page.keyboard.press("ArrowDown")  # which compares at once
    page.get_by_role("heading", name="Merge forecast").wait_for()
    assert second.evaluate("one => one === document.activeElement")  # so that the next one is one more press
    reach(page, page.get_by_role("slider", name="Weight of acme/legal-qa 1.1.0"))
    page.keyboard.press("ArrowRight")
    page.get_by_text("With 0.55 and 0.5, the sum").wait_for()
    press(page, page.get_by_role("button", name="Copy: Command for the suggested merge"), "Space")
    page.get_by_role("button", name="Copied: Command for the suggested merge").wait_for()
    assert "--weights=0.55,0.5" in page.evaluate("navigator.clipboard.readText()")
