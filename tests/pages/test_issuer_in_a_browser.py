"""People sign in at an issuer in Chromium, which takes it for another site, and approve a program."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.registry.people import ANA, People, people
from tests.support.browser import PHONE, overflow, violations

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    with people(tmp_path_factory.mktemp("issuer")) as team:
        team.server.create("acme/plans", private=True)
        team.issuer.person = ANA
        yield team


def test_a_person_signs_in_at_the_issuer_approves_a_program_and_signs_out_at_both(page: Page, team: People) -> None:
    url = team.server.url
    codes = team.server.post("/api/adapt/v1/device", {"client": "adapt on desk"}, token=None).json()
    page.goto(f"{url}/acme/plans")
    page.get_by_role("link", name="Sign in").first.click()
    assert violations(page) == []

    page.get_by_role("link", name="Sign in with Acme").click()
    page.get_by_role("heading", name="plans").wait_for()

    assert page.url == f"{url}/acme/plans"
    page.goto(codes["verification_uri"])
    page.get_by_label("Code that the program shows").fill(codes["user_code"].lower())
    page.get_by_role("button", name="Continue").click()
    page.get_by_text("adapt on desk").wait_for()
    assert page.get_by_text("If someone sent you the code, refuse it").is_visible()
    assert violations(page) == []
    page.set_viewport_size(PHONE)
    assert overflow(page) == 0
    page.get_by_role("button", name="Approve").click()
    page.get_by_role("status").filter(has_text="Approved").wait_for()
    given = team.server.post("/api/adapt/v1/device/token", {"device_code": codes["device_code"]}, token=None).json()
    assert given["user"] == "ana"

    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(f"{team.issuer.url}/end_session*")

    assert team.issuer.ended[-1]["post_logout_redirect_uri"] == [f"{url}/"]
    page.goto(f"{url}/acme/plans")
    assert page.get_by_role("link", name="Sign in").first.is_visible()


def test_a_person_who_is_let_in_nowhere_reads_why(page: Page, team: People) -> None:
    team.issuer.person = ANA | {"sub": "stranger", "realm_access": {"roles": []}}
    page.goto(f"{team.server.url}/sign-in")

    page.get_by_role("link", name="Sign in with Acme").click()

    page.get_by_role("alert").filter(has_text="none of your groups").wait_for()
    assert violations(page) == []
