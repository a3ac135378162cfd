"""What the pages of a registry say, and that the API's answers stay: by HTTP alone."""

from __future__ import annotations

import pytest

HTML = {"Accept": "text/html,application/xhtml+xml"}


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/?q=legal",
        "/sign-in",
        "/acme/legal-qa",
        "/acme/legal-qa/tree/main",
        "/acme/legal-qa/blob/main/adapter_config.json",
        "/acme/legal-qa/commit/main",
    ],
)
def test_each_page_has_a_json_twin_and_loads_nothing_from_elsewhere(world, path):
    page = world.get(path, headers=HTML)
    join = "&" if "?" in path else "?"
    twin = world.get(f"{path}{join}format=json")

    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert (twin.status_code, twin.headers["content-type"]) == (200, "application/json")
    assert isinstance(twin.json(), dict)
    assert page.headers["content-security-policy"].startswith("default-src 'self'; ")
    assert "'unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-frame-options"] == "DENY"


def test_the_address_that_a_push_prints_shows_the_commit(world):
    first, second = world.commits
    twin = world.get(f"/acme/legal-qa/commit/{second}?format=json&before={first}").json()
    changes = {
        c["key"]: (c["before"], c["after"])
        for f in twin["files"]
        for c in f["changes"]
        if f["path"] == "adapter_config.json"
    }

    assert twin["id"] == second
    assert changes["r"] == ("4", "8")
    assert twin["versions"] == ["1.1.0"]
