"""The folder of a registry: whose it is, who reads it, and which names its addresses leave."""

from __future__ import annotations

import contextlib
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from adapterhub_registry.operations.server_commands import show_rows
from adapterhub_registry.settings import load_settings

from adapterhub.core.dates import Moment
from adapterhub.formats.administration import User
from tests.registry.running import running


@contextlib.contextmanager
def started(root: Path, *options: str) -> Iterator[None]:
    """A server over `root`, once it listens."""
    command = [sys.executable, "-m", "adapterhub_registry", "--root", str(root), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("url: ")
        try:
            yield
        finally:
            process.terminate()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_server_closes_a_folder_that_others_could_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir(mode=0o755)
    with running(root):
        pass
    for path in (root, *root.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    with started(root):
        found = {path.name: mode(path) for path in root.iterdir()}

    assert mode(root) == 0o700
    assert {bits & 0o077 for bits in found.values()} == {0}
    assert found["registry.db"] == 0o600


def test_a_link_in_the_folder_changes_nothing_elsewhere(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    root.mkdir()
    other.mkdir(mode=0o755)
    (root / "blobs").symlink_to(other)

    load_settings(root)

    assert mode(other) == 0o755


def test_a_second_server_of_a_database_with_another_folder_does_not_start(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'shared.db'}"
    with started(tmp_path / "one", "--database", database):
        other = [sys.executable, "-m", "adapterhub_registry", "--root", str(tmp_path / "two"), "--port", "0"]
        done = subprocess.run([*other, "--database", database], capture_output=True, text=True, timeout=60, check=False)
    with started(tmp_path / "one", "--database", database):  # its own folder it takes again
        pass

    assert (done.returncode, done.stdout) == (2, "")
    assert "the files of this database lie in another folder" in done.stderr


WORDS = (
    "base",
    "compare",
    "feed",
    "lineage",
    "library",
    "projects",
    "outdated",
    "sign-in",
    "v1",
    "Base",
    "static",
)


def test_no_namespace_is_called_as_the_path_of_a_route_begins(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        answers = {
            word: server.post("/api/repos/create", {"organization": word, "name": "x"}).status_code for word in WORDS
        }
        server.post("/api/repos/create", {"organization": "acme", "name": "x"}).raise_for_status()
        own = server.post("/api/repos/create", {"organization": "admin", "name": "x"}).status_code
        moved = server.post("/api/repos/move", {"fromRepo": "acme/x", "toRepo": "base/x"}).status_code
        paths = [str(getattr(route, "path", "/")) for route in server.app.router.routes]

    assert answers == dict.fromkeys(WORDS, 400)
    assert moved == 400
    words = {path.split("/")[1] for path in paths if "{" not in path.split("/")[1]}
    assert words - {"admin"} <= server.registry.repos.reserved  # the first user's own namespace
    assert own == 200


@pytest.mark.parametrize("is_terminal", [True, False])
def test_rows_are_a_table_on_a_terminal(
    *, is_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)

    at = Moment(0)
    show_rows(
        User, [User(name="ann", created_at=at, tokens=12), User(name="bo", created_at=at, tokens=0)], as_json=False
    )

    first, second, *_ = capsys.readouterr().out.splitlines()
    assert ("\t" in first, second.startswith("─")) == (not is_terminal, is_terminal)
