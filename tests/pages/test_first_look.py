"""What a newcomer does: the commands of an empty library, and what is newer on servers."""

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
