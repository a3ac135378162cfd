"""The unmodified hub client against the running registry, as installed and with Xet switched off.

All checks of a mode run in one process of the client, which is most of their cost; each is judged on its own here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.registry.conformance import downloads, errors, listings, repositories, uploads
from tests.registry.conformance.client import CHECKS
from tests.registry.conftest import MODES, ROOT, Served

MODULES = (repositories, uploads, downloads, listings, errors)
BY_MODE = {uploads.__name__, downloads.__name__}
"""The checks in which the way of a file's bytes decides something; the others run by Xet, and with `--exhaustive` by both."""
CASES = [
    pytest.param(
        name,
        mode,
        marks=() if mode == "xet" or check.__module__ in BY_MODE else pytest.mark.exhaustive,
        id=f"{name}-{mode}",
    )
    for mode in MODES
    for name, check in CHECKS.items()
]
Results = dict[str, dict[str, str | None]]


@pytest.fixture(scope="session")
def results(served: Served, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Results:
    takes_all = request.config.getoption("--exhaustive")
    found: Results = {}
    for mode, switches in MODES.items():
        names = [n for n, check in CHECKS.items() if takes_all or mode == "xet" or check.__module__ in BY_MODE]
        done = subprocess.run(
            [sys.executable, "-m", "tests.registry.conformance", *names],
            env=served.environment(tmp_path_factory.mktemp(mode), **switches),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert lines, done.stderr
        found[mode] = {line["check"]: line["problem"] for line in lines if "check" in line}
    return found


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_stock_client(results: Results, name: str, mode: str) -> None:
    problem = results[mode][name]

    if problem is not None:
        pytest.fail(problem, pytrace=False)


def test_large_files_went_by_the_way_that_was_switched_on(results: Results, served: Served) -> None:
    assert results.keys() == MODES.keys()
    sent = [path for path in (served.root / "xorbs").rglob("*") if path.is_file()]

    assert sent, "no xorb arrived: the default mode did not use Xet"


def test_the_checks_are_found() -> None:
    assert len(CHECKS) >= 61
    assert {function.__module__ for function in CHECKS.values()} == {module.__name__ for module in MODULES}


def test_no_upload_is_left_behind(results: Results, served: Served) -> None:
    assert results
    left = [path for path in (served.root / "uploads").rglob("*") if path.is_file()]

    assert left == []


def test_blobs_are_what_their_names_say(results: Results, served: Served) -> None:
    import hashlib

    assert results
    for path in Path(served.root / "blobs").rglob("*"):
        if path.is_file():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
