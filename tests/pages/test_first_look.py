"""What a newcomer does: the commands of an empty library, and from a search to a line in the clipboard by the keyboard."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import httpx
import pytest

import adapterhub
from tests.support.command_line import Adapt
from tests.support.docs_sandbox import make_sandbox
from tests.support.tiny import make_adapter, make_base

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def begin(library: adapterhub.Library) -> list[list[str]]:
    """The commands that the first page of an empty library shows."""
    with library.ui() as ui, httpx.Client(base_url=f"http://127.0.0.1:{ui.port}", timeout=60) as client:
        client.get(ui.url)
        return [shlex.split(command)[1:] for _, command in client.get("/?format=json").json()["begin"]]


def test_the_commands_of_an_empty_library_work_as_they_stand(world, tmp_path: Path) -> None:
    make_base(tmp_path / "models" / "base-7b")
    make_adapter(tmp_path / "out" / "legal-qa", seed=9)
    adapt = Adapt(tmp_path)
    adapt.ok("remote", "add", "team", world.url, "--default")

    commands = begin(adapterhub.Library(tmp_path / "home"))
    for command in commands:
        adapt.ok(*command)

    assert len(commands) == 3
    assert {build.full_name for build in adapt.library.installed()} == {"legal-qa", "acme/legal-qa"}
    assert begin(adapterhub.Library(tmp_path / "home")) == []


def test_updates_have_a_count_once_servers_were_asked(tmp_path: Path) -> None:
    make_sandbox(tmp_path, filled=True)
    Adapt(tmp_path).ok("install", "summarize@base-7b==1.0.0", "--from", "team")
    with (
        adapterhub.Library(tmp_path / "home").ui() as ui,
        httpx.Client(base_url=f"http://127.0.0.1:{ui.port}") as client,
    ):
        client.get(ui.url)
        before = client.get("/").text
        token = re.search(r'name="form_token" value="(\w+)"', client.get("/updates").text)
        assert token is not None
        asked = client.post("/updates", data={"form_token": token[1]}).text
        after = client.get("/").text

    assert "available" not in before
    assert 'Updates<span class="n">1</span>' in asked
    assert 'Updates<span class="n">1</span>' in after
    assert "1.1.0 available" in after
    assert "1 adapter has a newer release" in after


def press(page, role: str, name: str, *, most: int = 80) -> None:
    """Tab to a control, and press Enter."""
    reach(page, role, name, most=most)
    page.keyboard.press("Enter")


def reach(page, role: str, name: str, *, most: int = 80) -> None:
    """Tab until a control has the focus."""
    wanted = page.get_by_role(role, name=name).first
    wanted.wait_for()
    for _ in range(most):
        if wanted.evaluate("one => one === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{most} times Tab do not reach {role} {name}")


def test_the_keyboard_finds_an_adapter_compares_it_and_copies_the_line(page, world) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(world.url)
    page.get_by_role("searchbox").first.focus()
    page.keyboard.type("legal-qa")
    page.keyboard.press("Enter")
    press(page, "link", "acme/legal-qa")
    page.wait_for_url("**/acme/legal-qa")
    page.goto(f"{world.url}/compare?a=acme/legal-qa==1.1.0")
    reach(page, "combobox", "Second adapter")
    page.keyboard.press("ArrowDown")  # which compares at once
    page.get_by_role("heading", name="Merge forecast").wait_for()
    reach(page, "slider", "Weight of acme/legal-qa")
    page.keyboard.press("ArrowRight")
    page.get_by_text("With 0.55 and 0.5, the sum").wait_for()
    press(page, "button", "Copy: Command for the suggested merge")
    page.get_by_text("Copied", exact=True).wait_for()
    assert "--weights=0.55,0.5" in page.evaluate("navigator.clipboard.readText()")
