"""What tests ask a page in Chromium: whether axe objects, what it requested, how wide it is; and Tab to its controls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

AXE = Path(__file__).resolve().parent.parent / "data" / "axe-core" / "axe-4.14.1.min.js"
PHONE = {"width": 360, "height": 740}


def violations(page: Page, *rules: str) -> list[str]:
    """What axe (Mozilla Public License 2.0) finds wrong with the page as it stands: rule, and the first element.

    With `rules`, it looks for these only.
    """
    page.evaluate(AXE.read_text(encoding="utf-8") + ";0")
    options = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    found = page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{item['id']}: {item['nodes'][0]['html']} {item['nodes'][0]['failureSummary']}" for item in found["violations"]
    ]


def overflow(page: Page) -> int:
    """How many pixels the page is wider than the window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


@contextmanager
def quiet(page: Page, url: str) -> Iterator[None]:
    """Fails when the page within requests another host, opens a dialog, or breaks the policy or a script."""
    foreign, said = [], []

    def on_request(request: object) -> None:
        address = request.url  # type: ignore[attr-defined]
        if not address.startswith((f"{url}/", "data:")):
            foreign.append(address)

    def on_dialog(dialog: object) -> None:
        said.append(f"dialog: {dialog.message}")  # type: ignore[attr-defined]
        dialog.dismiss()  # type: ignore[attr-defined]

    handlers = {
        "request": on_request,
        "dialog": on_dialog,
        "pageerror": lambda error: said.append(f"error: {error}"),
        "console": lambda message: said.append(message.text) if "Content Security Policy" in message.text else None,
    }
    for event, handler in handlers.items():
        page.on(event, handler)  # type: ignore[call-overload]
    yield
    for event, handler in handlers.items():
        page.remove_listener(event, handler)
    assert (foreign, said) == ([], [])


def reach(page: Page, wanted: Locator, *, most: int = 120) -> None:
    """Press Tab until a control has the focus."""
    wanted.wait_for()
    for _ in range(most):
        if wanted.evaluate("one => one === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{most} times Tab do not reach {wanted}")


def press(page: Page, wanted: Locator, key: str = "Enter", *, most: int = 120) -> None:
    """Reach a control by Tab, and press a key there."""
    reach(page, wanted, most=most)
    page.keyboard.press(key)
