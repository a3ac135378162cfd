"""Proxies in the environment that cannot be used: one line, and no word of a bug."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub.utils import close_session  # type: ignore[attr-defined]  # public, not re-exported

from tests.support.command_line import Adapt

PROXIES = {
    "ALL_PROXY": [
        "socks5://127.0.0.1:9",
        "junk://h",
        "http://[::1",
        "http://h:99999",
        "http://user:pass word@h:x",
        "://",
    ],
    "HTTPS_PROXY": ["junk://h", "socks4://h", "http://h:port", "\x1b[2J"],
    "HTTP_PROXY": ["gopher://h:1"],
}


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hub's client reads the environment once, when it is made."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in PROXIES:
        monkeypatch.delenv(name.lower(), raising=False)
        monkeypatch.delenv(name, raising=False)
    close_session()
    yield
    close_session()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in PROXIES.items() for value in values])
def test_a_proxy_that_cannot_be_used_is_one_line(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    adapt = Adapt(tmp_path)
    adapt.ok("remote", "add", "ours", "https://127.0.0.1:9", "--default")

    done = adapt("install", "acme/x")

    lines = [line for line in done.stderr.splitlines() if not line.startswith(("hint:", "warning:"))]
    assert done.exit_code in (2, 13), done.stderr
    assert "bug" not in done.stderr
    assert "pass word" not in done.stderr
    assert len(lines) == 1, done.stderr


def test_the_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "junk://h")

    said = Adapt(tmp_path).fails(13, "install", "acme/x", "--remote", "https://127.0.0.1:9")

    assert "(ALL_PROXY)" in said
    assert "unset it" in said
