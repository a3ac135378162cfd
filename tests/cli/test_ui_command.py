"""`adapt ui` as a command: it starts, answers, ends politely, and names the extra that is missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.command_line import Adapt


def test_it_prints_the_address_and_ends_on_an_interruption(tmp_path: Path) -> None:
    code = "import sys; sys.argv[0] = 'adapt'; from adapterhub.cli import main; main()"
    command = [sys.executable, "-c", code, "ui", "--root", str(tmp_path / "home"), "--no-open"]

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as running:
        url = running.stdout.readline().decode().strip()
        page = httpx.get(url)
        running.send_signal(signal.SIGINT)
        _, complaints = running.communicate()

    assert (page.status_code, "set-cookie" in page.headers) == (200, True)
    assert (running.returncode, b"Traceback" in complaints) == (130, False)


def test_the_browser_gets_a_file_that_others_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub.cli.start.ui import _open_browser

    monkeypatch.setenv("BROWSER", f"{sys.executable} -c 'pass' %s")
    page = _open_browser("http://127.0.0.1:1/?token=x")
    assert page is not None
    mode, text = page.stat().st_mode & 0o777, page.read_text(encoding="utf-8")
    page.unlink()
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)

    assert (mode, "token=x" in text) == (0o600, True)
    assert sys.platform != "linux" or _open_browser("http://127.0.0.1:1/") is None


def test_without_its_packages_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "starlette", None)  # as where it is not installed

    said = Adapt(tmp_path).fails(2, "ui")

    assert "adapterhub[ui]" in said


def test_its_help_loads_no_server() -> None:
    code = "import sys; sys.argv = ['adapt', 'ui', '--help']\nfrom adapterhub.cli import _run\n_run()\nprint([m for m in ('starlette', 'uvicorn', 'jinja2', 'torch', 'adapterhub.pages') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)

    assert done.stdout.splitlines()[-1] == "[]"
