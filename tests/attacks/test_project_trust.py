"""The servers of a project are asked only after the user agreed to them, for that folder and what it says of servers."""

from __future__ import annotations

import http.server
import os
import pty
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base


class Curious(http.server.ThreadingHTTPServer):
    """A server of a stranger that has nothing, and notes what it is asked."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.seen.append(self.path)
                self.send_error(404)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def stranger() -> Iterator[Curious]:
    with Curious() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def work(tmp_path: Path, stranger: Curious, online: None) -> Adapt:
    """A cloned project that names the stranger's server for the namespace `acme`."""
    make_base(tmp_path / "models" / "base-7b")
    (tmp_path / "work").mkdir()
    work = Adapt(tmp_path / "work", "../home")
    work.ok("base", "add", "../models/base-7b", "--as", "base-7b")
    write(work, remote(stranger))
    return work


def remote(stranger: Curious, namespaces: str = '["acme"]', name: str = "x", more: str = "") -> str:
    return f'[remotes.{name}]\nurl = "{stranger.url}"\nnamespaces = {namespaces}\n{more}'


def write(work: Adapt, remotes: str, adapters: str = 'qa = "acme/legal-qa"\n') -> None:
    text = f'[project]\nbase = "base-7b"\n\n{remotes}\n[adapters]\n{adapters}'
    (work.folder / "adapters.toml").write_text(text)


def is_asked(work: Adapt, stranger: Curious) -> bool:
    """Whether `lock` asks the stranger, which cannot answer, or is refused before it does."""
    stranger.seen.clear()
    done = work("lock")
    assert done.exit_code == (13 if stranger.seen else 14), done.stderr
    return bool(stranger.seen)


@pytest.mark.parametrize(
    "command",
    [("lock",), ("sync",), ("upgrade",), ("install", "acme/legal-qa"), ("install", "legal-qa", "--save")],
    ids=" ".join,
)
def test_a_server_of_a_project_is_not_asked_before_the_user_agreed(work, stranger, command):
    told = work.fails(14, *command)

    assert stranger.url in told
    assert f"`adapt remote trust {work.folder}`" in told
    assert "ADAPTERHUB_TRUST_PROJECT=1" in told
    assert stranger.seen == []


def test_trust_is_given_once_and_lasts(work, stranger):
    told = work.ok("remote", "trust")

    assert stranger.url in told
    assert is_asked(work, stranger)
    assert is_asked(work, stranger)


def test_trust_for_one_run_is_not_remembered(work, stranger):
    work.having(ADAPTERHUB_TRUST_PROJECT="1").fails(13, "lock")

    assert stranger.seen
    assert not is_asked(work, stranger)


def test_trust_can_be_taken_back_also_of_a_folder_that_is_gone(work, stranger, tmp_path):
    work.ok("remote", "trust")
    assert work.json("remote", "trust", "--revoke")["revoked"] is True
    assert not is_asked(work, stranger)

    work.ok("remote", "trust")
    shutil.rmtree(work.folder)
    home = Adapt(tmp_path)
    assert home.json("remote", "trust", work.folder, "--revoke") == {"project": str(work.folder), "revoked": True}
    assert home.json("remote", "trust", "--list") == []
    assert home.json("remote", "trust", work.folder, "--revoke")["revoked"] is False


def test_what_is_trusted_is_listed_and_kept_from_others(work, stranger, tmp_path):
    work.ok("remote", "trust")

    [one] = work.json("remote", "trust", "--list")

    assert one["folder"] == os.path.realpath(work.folder)
    assert one["remotes"] == [{"name": "x", "url": stranger.url, "namespaces": ["acme"], "signatures": None}]
    assert stranger.url in work.ok("remote", "trust", "--list")
    path = tmp_path / "home" / "trusted_projects.json"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o622)
    assert "others may write it" in work.fails(14, "lock")
    path.chmod(0o600)
    path.write_text('{"projects": [{}]}')
    work.fails(16, "lock")
    assert stranger.seen == []


EDITS = {
    "another URL": lambda text, url: text.replace(url, url.replace("127.0.0.1", "localhost")),
    "another namespace": lambda text, _: text.replace('["acme"]', '["acme", "more"]'),
    "no namespace": lambda text, _: text.replace('namespaces = ["acme"]', ""),
    "another name": lambda text, _: text.replace("[remotes.x]", "[remotes.y]"),
    "no signatures": lambda text, _: text.replace('signatures = "require"\n', ""),
    "one more server": lambda text, url: text + f'\n[remotes.z]\nurl = "{url}/z"\nnamespaces = ["z"]\n',
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_what_the_project_says_of_servers_asks_again(work, stranger, edit):
    write(work, remote(stranger, more='signatures = "require"\n'))
    work.ok("remote", "trust")
    path = work.folder / "adapters.toml"

    path.write_text(EDITS[edit](path.read_text(), stranger.url))

    assert not is_asked(work, stranger)


def test_an_edit_of_other_lines_asks_nothing(work, stranger):
    work.ok("remote", "trust")
    path = work.folder / "adapters.toml"

    path.write_text("# a comment\n" + path.read_text().replace("legal-qa", "tables") + "\n[policy]\nmax-rank = 8\n")

    assert is_asked(work, stranger)


def test_trust_holds_for_one_folder_whichever_link_leads_there(work, stranger, tmp_path):
    work.ok("remote", "trust")
    (tmp_path / "link").symlink_to(work.folder)
    shutil.copytree(work.folder, tmp_path / "copy")

    assert is_asked(Adapt(tmp_path / "link", "../home"), stranger)
    assert not is_asked(Adapt(tmp_path / "copy", "../home"), stranger)


def test_a_server_that_the_user_has_for_the_same_namespaces_needs_no_trust(work, stranger):
    work.ok("remote", "add", "theirs", stranger.url, "--namespaces", "acme,more")
    assert is_asked(work, stranger)

    write(work, remote(stranger, '["acme", "unheard-of"]'))
    assert not is_asked(work, stranger)
    write(work, remote(stranger, "[]"))
    assert not is_asked(work, stranger)


def test_a_project_of_directories_needs_no_trust(work, tmp_path):
    made = make_adapter(tmp_path / "out" / "legal-qa")
    work.ok("add", made, "--name", "legal-qa", "--base", "base-7b")
    work.ok("push", "legal-qa", "--to", "./team")
    write(work, '[remotes.team]\npath = "./team"\n', 'legal-qa = ""\n')

    work.ok("sync")

    assert work.json("remote", "trust", "--list") == []


def test_what_is_here_is_synced_without_asking_anybody(work, stranger, tmp_path):
    made = make_adapter(tmp_path / "out" / "legal-qa")
    work.ok("add", made, "--name", "legal-qa", "--base", "base-7b")
    write(work, remote(stranger), 'legal-qa = ""\n')
    work.ok("lock", "--offline")

    work.ok("sync", "--frozen")

    assert stranger.seen == []


def locked_from(work: Adapt, url: str, tmp_path: Path) -> Adapt:
    """The project with a lock file that names `url` alone, and a library that has nothing yet."""
    made = make_adapter(tmp_path / "out" / "legal-qa")
    work.ok("add", made, "--name", "legal-qa", "--base", "base-7b")
    write(work, "", 'legal-qa = ""\n')
    work.ok("lock")
    path = work.folder / "adapters.lock"
    source = f'source = {{ url = "{url}", repo = "acme/legal-qa", commit = "{"0" * 40}" }}'
    path.write_text(
        path.read_text().replace("source = {}", source).replace('name = "legal-qa"', 'name = "acme/legal-qa"')
    )
    write(work, "", 'legal-qa = "acme/legal-qa"\n')
    path.write_text(path.read_text().replace('wanted = "legal-qa"', 'wanted = "acme/legal-qa"'))
    fresh = Adapt(work.folder, "../fresh")
    fresh.ok("base", "add", "../models/base-7b", "--as", "base-7b")
    return fresh


def test_a_server_that_the_lock_file_alone_names_is_not_asked_either(work, stranger, tmp_path):
    fresh = locked_from(work, stranger.url, tmp_path)

    told = fresh.fails(14, "sync", "--frozen")

    assert f"adapters.lock  {stranger.url}" in told
    assert stranger.seen == []
    fresh.ok("remote", "trust")
    fresh.fails(13, "sync", "--frozen")
    assert stranger.seen


def test_saving_what_the_user_typed_keeps_the_trust(work, stranger, tmp_path):
    write(work, remote(stranger, '["other"]'), "")
    work.having(ADAPTERHUB_TRUST_PROJECT="1").ok("lock")
    made = make_adapter(tmp_path / "out" / "legal-qa")
    work.ok("add", made, "--name", "legal-qa", "--base", "base-7b")
    work.ok("push", "legal-qa", "--to", "./team")
    work.ok("remove", "legal-qa", "--yes")
    work.ok("remote", "trust")

    work.ok("install", "legal-qa", "--from", "./team", "--save", "--offline")

    [one] = work.json("remote", "trust", "--list")
    assert one["remotes"][0]["namespaces"] == ["other"]
    write(work, remote(stranger, '["acme"]'))
    assert not is_asked(work, stranger)


@pytest.mark.parametrize(("answer", "asked"), [("y\n", True), ("n\n", False)])
def test_on_a_terminal_the_user_is_asked(work, stranger, tmp_path, answer, asked):
    leader, follower = pty.openpty()
    environ = os.environ | {"ADAPTERHUB_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    os.write(leader, answer.encode())
    try:
        done = subprocess.run(
            [sys.executable, "-m", "adapterhub.cli", "lock"],
            cwd=work.folder, stdin=follower, capture_output=True, text=True, env=environ, check=False, timeout=120,
        )  # fmt: skip
    finally:
        os.close(leader)
        os.close(follower)

    assert stranger.url in done.stderr
    assert (done.returncode, bool(stranger.seen)) == ((13, True) if asked else (14, False)), done.stderr
    assert bool(work.json("remote", "trust", "--list")) == asked
