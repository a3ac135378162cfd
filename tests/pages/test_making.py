"""The pages of `adapt ui` that say what works on which base, and that port and convert by the command which they show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import adapterhub
from tests.support.command_line import Adapt
from tests.support.contracts import recorded_library
from tests.support.moved_bases import moved_copy

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def adapt(tmp_path_factory: pytest.TempPathFactory) -> Adapt:
    """`a` has a contract on `base-7b`, and `next` is a later checkpoint of that base."""
    adapt = recorded_library(tmp_path_factory.mktemp("making"))
    moved_copy(adapt.folder / "base", adapt.folder / "next", 0.002)
    adapt.ok("base", "add", adapt.folder / "next", "--as", "next")
    return adapt


@pytest.fixture
def client(adapt: Adapt) -> Iterator[httpx.Client]:
    with (
        adapterhub.Library(adapt.folder / "home").ui() as ui,
        httpx.Client(base_url=f"http://127.0.0.1:{ui.port}", headers={"Accept": "text/html"}, timeout=120) as client,
    ):
        client.get(ui.url)
        yield client


def post(client: httpx.Client, path: str, **fields: str) -> str:
    token = re.search(r'name="form_token" value="(\w+)"', client.get(path).text)
    assert token is not None
    answer = client.post(path, data={"form_token": token[1], **fields})
    assert answer.status_code == 200, answer.text
    return answer.text


def test_the_matrix_has_what_the_command_below_it_found(client: httpx.Client, adapt: Adapt) -> None:
    before = client.get("/contracts?base=next&format=json").json()
    adapt(*shlex.split(before["command"])[1:])
    after = client.get("/contracts?format=json").json()

    assert (before["outcomes"], before["command"]) == (None, "adapt test --all --on next")
    assert "next" in [base["text"] for base in after["outcomes"]["bases"]]
    assert [row["name"] for row in after["outcomes"]["rows"]] == ["a"]
    assert after["without"] == 0


def test_a_build_is_converted_and_ported_by_the_command_that_the_page_shows(
    client: httpx.Client, adapt: Adapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = client.get("/make/-/a?into=peft&to=next&format=json").json()
    assert page["convert"] == "adapt export 'a==1.0.1#" + page["convert"].partition("#")[2]
    assert page["convert"].endswith(" --format peft -o ./a-1.0.1-peft")
    assert page["port"].endswith(" --to next")

    text = post(client, "/make/-/a", do="convert", into="peft", to="next")
    assert (tmp_path / "a-1.0.1-peft" / "adapter_config.json").is_file(), text
    again = post(client, "/make/-/a", do="convert", into="peft", to="next")
    assert 'role="alert"' in again  # it overwrites nothing
    refused = client.get("/make/-/a?into=../x", headers={"Accept": "text/html"})
    assert refused.status_code == 400

    ported = post(client, "/make/-/a", do="port", to="next", into="peft", method="copy")
    assert "Added <a" in ported, ported
    library = adapterhub.Library(adapt.folder / "home")
    assert {build.base_name for build in library.installed() if build.full_name == "a"} >= {"next"}
