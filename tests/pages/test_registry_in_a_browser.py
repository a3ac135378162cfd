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
