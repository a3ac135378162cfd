"""What a test may take from outside the repository, and a record of which tests do.

A machine with Python, git and pip alone has neither the programs of `tests.support.programs` nor the data of
`tests.support.shared_data`. `.ci/run` hides both from all tests but those that ask here, and then runs those once more without.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any, NoReturn

import pytest

RECORD = "ADAPTERHUB_TEST_RECORD"
"""Names a folder in which each process writes the tests that asked."""

_fixtures_now: list[str] = []
_fixtures_that_asked: set[str] = set()
_asked = False


def asks() -> None:
    """Note that the running test, or each test that uses the running fixture, depends on this machine.

    Raises:
        RuntimeError: while tests are collected. What a file reads when it is imported would go unrecorded.
    """
    global _asked  # noqa: PLW0603 - one test runs at a time in a process
    if RECORD in os.environ and "PYTEST_CURRENT_TEST" not in os.environ:
        raise RuntimeError("ask for programs and shared data in a test or a fixture, not while a file is imported")
    _asked = True
    _fixtures_that_asked.update(_fixtures_now)


def lacking(reason: str) -> NoReturn:
    """End the test: it skips on a user's machine and fails in CI, where everything has to be there."""
    if os.environ.get("CI", "").lower() not in ("", "0", "false") or RECORD in os.environ:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


class Recording:
    """The part of pytest that knows which test and which fixture is running."""

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        _fixtures_now.append(fixturedef.argname)
        try:
            return (yield)
        finally:
            _fixtures_now.pop()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        global _asked  # noqa: PLW0603
        _asked = False
        done = yield
        folder = os.environ.get(RECORD)
        if folder and (_asked or _fixtures_that_asked.intersection(getattr(item, "fixturenames", ()))):
            with Path(folder, str(os.getpid())).open("a", encoding="utf-8") as record:
                record.write(f"{item.nodeid}\n")
        return done
