"""How the pages of a registry look, by the checks that all pages are held to, and how much a page may weigh."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files

import httpx
import pytest
from adapterhub_registry.database.prepared import PreparedSql

from adapterhub.pages.rendering import static_files
from tests.pages.conftest import World
from tests.pages.test_hostile_texts import NAMES, PIXEL, push, whole
from tests.registry.running import Running, running
from tests.support.browser import violations
from tests.support.page_checks import NARROW, SIZES, WIDE, look_at, watched

PATHS = (
    "/",
    "/?yanked=yes&sort=downloads",
    "/?q=nothing+matches&task=legal",
    "/sign-in",
    "/bases",
    "/acme",
    "/acme?tab=activity",
    "/acme?tab=keys",
    "/acme/signed",
    "/acme/legal-qa/1.0.0",
    "/acme/legal-qa?tab=versions",
    "/acme/legal-qa/tree/main",
    "/acme/legal-qa/blob/main/adapter_config.json",
    "/acme/legal-qa/blob/main/adapter_model.safetensors",
    "/acme/legal-qa/commit/main",
    "/lineage/acme/legal-qa",
    "/compare",
    "/acme/missing",
)
MOST_LINES = {"base.css": 400, "pages.js": 120}
MOST_BYTES, OWN_BYTES = 150_000, 90_000
ADAPTERS = 10
STYLED = '---\nlicense: mit\ninstance_prompt: inkbotany\nwidget:\n- text: "inkbotany, fern"\n  output: {url: fern.png}\n---\n'


@pytest.fixture(scope="module")
def crowd(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A registry of ten adapters, the last of which has pictures, and files that only call themselves pictures."""
    with running(tmp_path_factory.mktemp("crowd")) as server, server.client() as client:
        files = {name: whole(world, name) for name in NAMES}
        for number in range(ADAPTERS):
            more: dict[str, bytes] = {}
            if number == ADAPTERS - 1:
                more = {"README.md": STYLED.encode(), "fern.png": PIXEL, "evil.png": b"<svg onload=alert(1)>"}
            push(client, f"crowd/adapter-{number}", files | more, "one of many")
        yield server


def test_every_page_is_held_to_all_checks(browser, world):
    assert look_at(browser, world.url, PATHS) == {}


def test_the_first_page_shows_eight_results_and_the_page_of_pictures_holds_the_checks(browser, crowd):
    with watched(browser, WIDE, "light") as page:
        page.goto(crowd.url)
        bottoms = [box["y"] + box["height"] for one in page.locator(".hit").all() if (box := one.bounding_box())]

    assert sum(bottom <= WIDE["height"] for bottom in bottoms) >= 8
    assert look_at(browser, crowd.url, [f"/crowd/adapter-{ADAPTERS - 1}"]) == {}


@pytest.mark.parametrize("size", SIZES, ids=["wide", "narrow"])
def test_the_line_to_install_ends_above_the_fold(browser, world, size):
    with watched(browser, size, "light") as page:
        page.goto(f"{world.url}/acme/legal-qa")
        box = page.locator(".head .line").bounding_box()

    assert box["y"] + box["height"] < size["height"]


def test_pictures_are_sent_as_what_they_are_and_other_files_not_at_all(browser, crowd):
    with httpx.Client(base_url=crowd.url) as client:
        shown = client.get(f"/crowd/adapter-{ADAPTERS - 1}?format=json").json()
        real, fake = (client.get(f"/crowd/adapter-9/picture/main/{name}") for name in ("fern.png", "evil.png"))
    with watched(browser, WIDE, "light") as page:
        page.goto(f"{crowd.url}/crowd/adapter-9")
        width = page.locator(".gallery img").first.evaluate("img => img.decode().then(() => img.naturalWidth)")

    assert (shown["trigger"], shown["pictures"][0]["caption"]) == ("inkbotany", "inkbotany, fern")
    assert [one["program"] for one in shown["snippets"]] == ["Diffusers", "ComfyUI", "hf"]
    assert (real.headers["content-type"], real.content) == ("image/png", PIXEL)
    assert real.headers["content-security-policy"].startswith("sandbox")
    assert (fake.status_code, width) == (404, 1)


def test_a_result_with_a_picture_has_a_small_one_that_keeps_its_place_and_no_other_has_one(browser, crowd):
    with watched(browser, WIDE, "light") as page:
        page.goto(f"{crowd.url}/crowd")
        small = page.locator(".hit.pictured img")
        box = small.bounding_box()
        attributes = [small.get_attribute(name) for name in ("src", "loading", "width", "height")]

    assert attributes == [f"/crowd/adapter-{ADAPTERS - 1}/picture/main/fern.png", "lazy", "60", "60"]
    assert box["width"] == box["height"] == 60
    repo = f"crowd/adapter-{ADAPTERS - 1}"
    for gated, expected in (("auto", []), (False, [attributes[0]])):
        crowd.send("PUT", f"/api/models/{repo}/settings", {"gated": gated}).raise_for_status()
        listed = crowd.get("/crowd?format=json", token=None).json()["list"]["adapters"]
        assert [one["picture_url"] for one in listed if one["picture_url"]] == expected


def test_more_pictures_on_a_page_of_results_take_no_more_statements(world, tmp_path, monkeypatch):
    asked: list[object] = []
    counts = []
    for name in ("rows", "tuples"):
        plain = getattr(PreparedSql, name)
        monkeypatch.setattr(PreparedSql, name, lambda *a, plain=plain, **k: (asked.append(a[0]), plain(*a, **k))[1])
    with running(tmp_path / "many") as server, server.client() as client:
        adapter = {name: whole(world, name) for name in NAMES}
        for number in range(4):
            push(client, f"crowd/styled-{number}", adapter | {"README.md": STYLED.encode(), "fern.png": PIXEL}, "one")
            asked.clear()
            listed = client.get("/?format=json").json()["adapters"]
            assert [bool(one["picture_url"]) for one in listed] == [True] * (number + 1)
            counts.append(len(asked))

    assert counts[1] == counts[2] == counts[3] > 0


def test_every_class_of_the_style_sheet_is_used():
    css = re.sub(r"/\*.*?\*/|\{[^{}]*\}", "{}", static_files()["base.css"].decode(), flags=re.DOTALL)
    names = set(re.findall(r"\.([a-z][\w-]*)", css)) - {"htmx-request"}  # which htmx sets
    templates = [path.read_text() for path in (files("adapterhub.pages") / "templates").iterdir()]
    used = " ".join((*templates, static_files()["pages.js"].decode()))

    assert {name for name in names if not re.search(rf"(?<![\w-]){name}(?![\w-])", used)} == set()


def test_a_page_stays_light(world):
    shared = sum(len(static_files()[name]) for name in ("base.css", "pages.js", "icon.svg"))
    vendored = sum(len(content) for name, content in static_files().items() if name.startswith(("pico", "htmx")))
    sizes = {path: len(world.get(path, headers={"Accept": "text/html"}).content) + shared for path in PATHS}

    assert {path: size for path, size in sizes.items() if size > OWN_BYTES} == {}
    assert vendored < MOST_BYTES


def test_text_never_touches_the_edge_of_a_window(browser, world):
    page = browser.new_page(viewport={"width": 1000, "height": 700})
    page.goto(f"{world.url}/acme/legal-qa")

    assert all(page.locator(part).bounding_box()["x"] >= 10 for part in ("main", "footer", ".brand"))


@pytest.mark.parametrize("name", MOST_LINES)
def test_style_sheet_and_script_stay_short(name):
    assert len(static_files()[name].splitlines()) < MOST_LINES[name]


def test_the_keyboard_alone_copies_a_line_chooses_a_version_and_reads_a_heat_map(browser, world):
    with watched(browser, WIDE, "light") as page:
        page.goto(f"{world.url}/")
        page.keyboard.press("/")
        page.keyboard.type("legal")
        page.keyboard.press("Enter")
        page.get_by_role("link", name="acme/signed").wait_for(state="detached")  # the answer to the words is there
        page.wait_for_load_state("networkidle")
        page.get_by_role("link", name="acme/legal-qa").press("Enter")
        page.wait_for_url(f"{world.url}/acme/legal-qa")
        page.get_by_role("button", name="Copy: Install this version").press("Enter")
        page.get_by_role("button", name="Copied: Install this version").wait_for()
        assert page.locator("#said").inner_text() == "Copied to the clipboard"
        page.get_by_label("PEFT", exact=True).press("ArrowRight")
        assert page.locator(".tabs .panel:visible").inner_text().startswith("HF_ENDPOINT=")
        menu = page.get_by_label("Version 1.1.0, choose another")
        menu.press("Enter")
        assert violations(page) == []
        page.get_by_role("link", name="1.0.0 yanked").first.focus()
        page.keyboard.press("Escape")
        assert page.locator("details.drop").get_attribute("open") is None
        page.get_by_role("link", name="Weights").press("Enter")
        heat = page.locator("svg.heat").first
        heat.focus()
        first = page.locator("output").first.inner_text()
        page.keyboard.press("ArrowRight")
        assert (first.split(":")[0], page.locator("output").first.inner_text().split(":")[0]) == (
            "q_proj of layer 0",
            "q_proj of layer 1",
        )


def test_on_a_phone_the_filters_fill_the_screen_and_close(browser, world):
    with watched(browser, NARROW, "dark") as page:
        page.goto(f"{world.url}/")
        page.get_by_role("button", name="Filters").click()
        sheet = page.locator("#filters")
        assert (sheet.bounding_box()["width"], violations(page)) == (NARROW["width"], [])
        page.get_by_role("button", name="Show 2 adapters").click()
        sheet.wait_for(state="hidden")


def test_without_a_script_tabs_work_and_no_button_copies(browser, world):
    with watched(browser, WIDE, "light", script=False) as page:
        page.goto(f"{world.url}/acme/legal-qa")
        assert page.locator("button.copy:visible").count() == 0
        page.get_by_label("hf", exact=True).check()
        assert "hf download" in page.locator(".tabs .panel:visible").inner_text()


def test_a_name_that_is_not_here_leads_to_the_nearest_one_that_the_reader_may_see(world):
    def said(path: str, **headers: str) -> str:
        return world.get(path, headers={"Accept": "text/html", **headers}).text

    token = {"Authorization": f"Bearer {world.reader}"}
    assert 'Did you mean <a href="/acme/legal-qa">' in said("/acme/legal-qq")
    assert 'Did you mean <a href="/acme/legal-qa">' in said("/acne/legal-qa")
    assert 'Did you mean <a href="/acme">' in said("/acmee")
    assert "hidden" not in said("/acme/hiddem")
    assert 'Did you mean <a href="/acme/hidden">' in said("/acme/hiddem", **token)
    assert "legal-qa" not in world.get("/acme/legal-qq?format=json").text
