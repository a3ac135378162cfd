"""Makes the pictures of the pages: `python -m docs.screenshots`, from the root of the repository, in about a minute.

A registry on loopback gets the adapters of `adapt demo` by real pushes, `adapt ui` shows a library with the same, and
Chromium looks at both. The base is SmolLM2-135M-Instruct, as in the tests.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import huggingface_hub.constants
from playwright.sync_api import sync_playwright

import adapterhub
from tests.registry.running import running
from tests.support.programs import needs_chromium
from tests.support.real_base import smollm2_base

if TYPE_CHECKING:
    from playwright.sync_api import Page

PICTURES: Final = Path(__file__).resolve().parent / "how-to" / "pictures"
SHIPPED: Final = Path(adapterhub.__file__).parent / "cli" / "start" / "demo_run" / "adapters"
ABOUT: Final = {"json": ("extraction", "Turns an order into a JSON object"), "pirate": ("style", "Talks like a pirate")}
PROMPT: Final = "The boss sells Priya 12 maps for 30 dollars."
SIZE: Final = {"width": 1000, "height": 720}


def fill(folder: Path) -> adapterhub.Library:
    """Return a library with the base, the adapters of `adapt demo`, and a merge of them."""
    library = adapterhub.Library(folder / "home")
    library.add_base(smollm2_base(), "smollm2-135m")
    for name, (task, text) in ABOUT.items():
        library.add(SHIPPED / name, text, name=name, version="1.0.0", task=task, base="smollm2-135m", license="MIT")
    library.merge({"json": 0.3, "pirate": 0.7}, output="pirate-orders", base="smollm2-135m")
    return library


def save(page: Page, name: str) -> None:
    """Write one picture of what the window shows."""
    page.screenshot(path=PICTURES / f"{name}.png")


def look_at_library(page: Page, library: adapterhub.Library) -> None:
    """Take the pictures of the adapters, and of the playground after an answer of three columns."""
    with library.ui() as ui:
        page.goto(ui.url)
        page.wait_for_url("**/")
        save(page, "library")
        page.goto(f"http://127.0.0.1:{ui.port}/playground")
        page.set_viewport_size({"width": 1280, "height": 800})
        page.get_by_role("button", name="Add a column").click()
        for column, name in enumerate(("pirate", "json"), 1):
            field = page.get_by_label(f"Adapter of column {column}", exact=True)
            field.select_option(field.locator(f"option[value^='{name}==']").get_attribute("value"))
            page.get_by_role("heading", name=f"{name} 1.0.0").wait_for()
        page.get_by_label("Adapter of column 3").select_option("sum")
        for term, (name, weight) in enumerate((("pirate", "0.7"), ("json", "0.3")), 1):
            field = page.get_by_label(f"Adapter {term} of the sum in column 3")
            field.select_option(field.locator(f"option[value^='{name}==']").get_attribute("value"))
            page.get_by_role("spinbutton", name="Weight of").nth(term - 1).fill(weight)
        page.get_by_label("Max new tokens").fill("40")
        page.get_by_label("Prompt", exact=True).fill(PROMPT)
        page.get_by_role("button", name="Answer").click()
        page.get_by_text("Done.").wait_for(timeout=300_000)
        page.evaluate("scrollTo(0, 0)")
        save(page, "playground")
        page.set_viewport_size(SIZE)


def look_at_merge(page: Page, library: adapterhub.Library) -> None:
    """Take the maps of two adapters before they are merged: where their updates agree, by layer and module."""
    with library.ui() as ui:
        page.goto(ui.url)
        page.wait_for_url("**/")
        page.goto(f"http://127.0.0.1:{ui.port}/compare?a=json&b=pirate")
        page.set_viewport_size({"width": 1280, "height": 720})
        page.locator("figure").first.screenshot(path=PICTURES / "heat-map.png")


def look_at_registry(page: Page, library: adapterhub.Library, folder: Path) -> None:
    """Take the pictures of the search, one adapter and an administrator's page."""
    with running(folder / "registry") as server:
        library.remotes.add("team", server.url)
        library.remotes.login("team", server.token)
        for name in ABOUT:
            library.push(name, to=f"acme/{name}", remote="team")
        page.goto(server.url)
        save(page, "registry")
        page.goto(f"{server.url}/acme/pirate")
        save(page, "adapter")
        page.goto(f"{server.url}/sign-in?then=/admin")
        page.get_by_label("Token", exact=True).fill(server.token)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/admin")
        save(page, "administration")


def main() -> None:
    """Write all pictures."""
    huggingface_hub.constants.HF_HUB_OFFLINE = False  # for the pushes, to loopback
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        library = fill(folder)
        browser = playwright.chromium.launch(executable_path=needs_chromium(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=SIZE)
        look_at_library(page, library)
        look_at_merge(page, library)
        look_at_registry(page, library, folder)
        browser.close()


if __name__ == "__main__":
    main()
