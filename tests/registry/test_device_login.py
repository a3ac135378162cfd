"""`adapt remote login` gets a token that a person approves on a page of the registry."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub import Library
from adapterhub.core.errors import Conflict, NotAllowed
from adapterhub.distribution.hub.device import CodeToType
from tests.registry.people import Browser, People, people
from tests.registry.running import running

pytestmark = pytest.mark.usefixtures("online")


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    with pytest.MonkeyPatch.context() as patch, people(tmp_path_factory.mktemp("login")) as team:
        patch.setattr("adapterhub_registry.api.sign_in_api.WAIT_S", 0)
        patch.setattr("adapterhub_registry.access.devices.WAIT_S", 0)
        yield team


@pytest.fixture
def library(tmp_path: Path, team: People) -> Library:
    made = Library(tmp_path / "home")
    made.remotes.add("ours", team.server.url)
    return made


def test_a_person_approves_and_the_token_is_kept_for_this_server(team: People, library: Library) -> None:
    browser, seen = team.signed_in(), []

    def approve(code: CodeToType) -> None:
        seen.append(code)
        browser.post("/sign-in/device", code=code.code, do="approve")

    done = library.remotes.sign_in("ours", approve, scopes=["read", "write"], days=7)

    (code,) = seen
    record = next(one for one in team.server.registry.tokens.newest(9) if one.label.startswith("adapt on "))
    kept = json.loads((Path(library.root) / "credentials.json").read_text())["tokens"][team.server.url]
    assert code.url == f"{team.server.url}/sign-in/device"
    assert (done.who, done.scopes) == ("signed in as ana", ("read", "write"))
    assert done.expires == record.expires_at.text  # type: ignore[union-attr]
    assert team.server.get("/api/whoami-v2", token=kept).json()["name"] == "ana"
    assert kept not in repr(done)


def test_a_refusal_keeps_nothing(team: People, library: Library) -> None:
    browser = team.signed_in()

    with pytest.raises(NotAllowed, match="was refused on the page"):
        library.remotes.sign_in("ours", lambda code: browser.post("/sign-in/device", code=code.code, do="refuse"))

    assert not (Path(library.root) / "credentials.json").exists()


def test_a_code_that_ran_out_keeps_nothing(team: People, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapterhub_registry.access.devices.LIFE_S", 0)

    with pytest.raises(NotAllowed, match="no one approved it in time"):
        library.remotes.sign_in("ours", lambda _: None)

    assert not (Path(library.root) / "credentials.json").exists()


def test_a_server_without_the_route_takes_a_pasted_token(library: Library, tmp_path: Path) -> None:
    library.remotes.add("hub-like", "https://huggingface.co")
    with pytest.raises(Conflict, match="makes no tokens"):
        library.remotes.sign_in("hub-like", lambda _: None)


def test_a_registry_without_an_issuer_signs_in_by_a_token_that_is_there(tmp_path: Path) -> None:
    with running(tmp_path / "registry") as server:
        browser, library = Browser(server), Library(tmp_path / "home")
        browser.post("/sign-in", token=server.registry.tokens.create("ben", "write", namespaces=["acme"]))
        library.remotes.add("ours", server.url)

        done = library.remotes.sign_in(
            "ours", lambda code: browser.post("/sign-in/device", code=code.code, do="approve"), scopes=["read"]
        )

        assert (done.who, done.scopes) == ("signed in as ben", ("read",))


@pytest.mark.slow
def test_the_command_shows_the_code_and_prints_one_document(team: People, tmp_path: Path) -> None:
    browser = team.signed_in()
    typed = [str(Path(sys.executable).with_name("adapt")), "remote", "login", team.server.url, "--device", "--json"]
    words = {"ADAPTERHUB_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    with subprocess.Popen(
        typed, env=words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        shown = ""
        while (found := re.search(r"type the code (\S+),", shown)) is None:
            line = process.stderr.readline()
            assert line, shown
            shown += line
        browser.post("/sign-in/device", code=found[1], do="approve")
        told, _ = process.communicate(timeout=120)

    assert process.returncode == 0
    assert f"{team.server.url}/sign-in/device" in shown
    document = json.loads(told)
    assert (document["who"], document["scopes"]) == ("signed in as ana", ["read", "write", "release"])
    assert "hf_adp" not in told + shown
